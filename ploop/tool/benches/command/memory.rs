//! The memory that each command takes at most, on an image of 8 TiB.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use ploop::image::ImageKind;
use ploop::{Descriptor, Guid, Size};

use crate::PLOOP_IMAGE;
use crate::images::{self, M};
use crate::mount::Server;
use crate::turns::Bars;

/// The first argument of a process that runs a command and prints its peak.
pub(crate) const PEAK_OF: &str = "--peak-of";

const DESCRIPTOR: &str = "DiskDescriptor.xml";
const SIZE: Size = Size::from_gib(8 << 10);
/// How much any of them may take.
const LIMIT: f64 = 64.0;
/// The distance of the clusters of the upper delta: no two have their entries in one part of the table that is read at
/// once.
const DISTANCE: u64 = 16 << 30;

pub(crate) fn table(dir: &Path, bars: &mut Bars) -> Result<(), String> {
    let image = Image::make(dir);
    println!(
        "memory at most, of an image of {SIZE}: a file system with a file of 1 GiB, a snapshot, and {} clusters after it",
        SIZE.bytes() / DISTANCE
    );
    let path = image.path.to_str().unwrap();
    let at = |name: &str| dir.join(name).into_os_string().into_string().unwrap();
    let (raw, qcow2, archive, copy) = (at("raw"), at("qcow2"), at("tar"), at("copy"));
    let (imported, new) = (at("imported"), at("new"));
    let guid = &image.snapshot;
    let looks: [&[&str]; 11] = [
        &["info", path],
        &["check", path],
        &["map", path],
        &["diff", path, "--from", guid],
        &["export", path, &raw, "--no-sync"],
        &["export", path, &qcow2, "--no-sync", "--format", "qcow2"],
        &["import", &raw, &imported],
        &["ls", path, "/"],
        &["cat", path, "/large"],
        &["cp", path, "/large", &copy],
        &["tar", path, "-o", &archive],
    ];
    for command in looks {
        bars.limit(&title(command), peak(command), LIMIT, "MiB");
    }
    let mounted = mounted(dir, &image.path);
    bars.limit("mount, and reads everywhere", mounted, LIMIT, "MiB");
    // The exported disk as an image.
    let plain = dir.join("plain");
    fs::create_dir(&plain).unwrap();
    let base = ploop::image::Image::new(Guid::TOP, &raw, ImageKind::Plain);
    let xml = Descriptor::new(SIZE, base).to_xml(&plain).unwrap();
    fs::write(plain.join(DESCRIPTOR), xml).unwrap();
    let plain = plain.to_str().unwrap();
    let changes: [&[&str]; 6] = [
        &["create", &new, "--size", "16T"],
        &["convert", plain, "--mode", "expanded"],
        &["compact", path],
        &["merge", path],
        &["snapshot", path],
        &["resize", path, "9T"],
    ];
    for command in changes {
        bars.limit(&title(command), peak(command), LIMIT, "MiB");
    }
    let descriptor = Descriptor::open(image.path.join(DESCRIPTOR)).unwrap();
    let snapshot = descriptor.parent(descriptor.top).unwrap().to_string();
    for command in [&["switch", path, &snapshot], &["delete", path, &snapshot]] {
        bars.limit(command[0], peak(command), LIMIT, "MiB");
    }
    Ok(())
}

/// A command with the options that tell it from others.
fn title(command: &[&str]) -> String {
    let option = command.iter().position(|it| *it == "--format");
    match option {
        Some(at) => format!("{} {} {}", command[0], command[at], command[at + 1]),
        None => command[0].to_owned(),
    }
}

struct Image {
    path: PathBuf,
    snapshot: String,
}

impl Image {
    fn make(dir: &Path) -> Image {
        let (raw, tree, path) = (dir.join("disk"), dir.join("tree"), dir.join("image"));
        fs::create_dir(&tree).unwrap();
        let large = File::create(tree.join("large")).unwrap();
        let mut noise = vec![0; M as usize];
        let mut random = fastrand::Rng::with_seed(3);
        for number in 0..1024 {
            random.fill(&mut noise);
            large.write_all_at(&noise, number * M).unwrap();
        }
        File::create(&raw).unwrap().set_len(SIZE.bytes()).unwrap();
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {words}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&tree, &raw]));
        run(Command::new(PLOOP_IMAGE)
            .args(["--quiet", "import"])
            .args([&raw, &path]));
        fs::remove_dir_all(&tree).unwrap();
        fs::remove_file(&raw).unwrap();
        let snapshot = run(Command::new(PLOOP_IMAGE).arg("snapshot").arg(&path));
        let descriptor = Descriptor::open(path.join(DESCRIPTOR)).unwrap();
        let top = &descriptor.top_image().unwrap().file;
        fs::remove_file(top).unwrap();
        // Between the tables of the file system, which are at the beginning of each 2 GiB.
        let clusters = (1 << 30..SIZE.bytes()).step_by(DISTANCE as usize);
        images::delta(top, SIZE, clusters.map(|at| (at / M) as u32));
        Image { path, snapshot }
    }
}

/// The memory in MiB of `ploop-image` with these arguments, in a process of its own, whose only child it is.
fn peak(arguments: &[&str]) -> f64 {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args([PEAK_OF, PLOOP_IMAGE])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    let kib: f64 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    kib / 1024.0
}

/// Runs a command and prints the most memory it had, in KiB.
pub(crate) fn tell_peak(command: &[String]) -> ExitCode {
    let status = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    status.unwrap();
    println!(
        "{}",
        getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
    );
    ExitCode::SUCCESS
}

/// The most memory that a running process had, in KiB.
pub(crate) fn peak_of(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn mounted(dir: &Path, image: &Path) -> f64 {
    let server = Server::ploop_image(image, &dir.join("mnt")).unwrap();
    let disk = File::open(&server.file).unwrap();
    let mut block = [0; 4096];
    for at in (0..SIZE.bytes()).step_by(4 << 30) {
        disk.read_exact_at(&mut block, at).unwrap();
    }
    // And what is read ahead.
    let mut left = (&disk).take(256 * M);
    std::io::copy(&mut left, &mut std::io::sink()).unwrap();
    peak_of(server.child.id()) as f64 / 1024.0
}
