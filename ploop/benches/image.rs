//! Export, random reads and the opening of large disks and long chains, next to QEMU where it is installed.
//!
//! ```text
//! cargo bench -p ploop --bench image
//! cargo bench -p ploop --bench image -- --bars    fails where an image takes too long or too much memory to open
//! ```
//!
//! Needs 5 GiB in the temporary directory (`TMPDIR`). Prints medians; the two sides take turns, so
//! that whatever else the machine does meets both.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::image::{
    Descriptor, Disk, ExportOptions, Header, HeaderFlags, Image, ImageKind, Snapshot,
};
use ploop::{ClusterSize, FormatVersion, Guid, Size};

const ROUNDS: usize = 9;
const READS: u64 = 20_000;
const BLOCK: usize = 4096;

/// How many deltas a long chain has.
const CHAIN: usize = 1000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, path] = &arguments[..] {
        if let Some(opening) = OPENINGS.iter().find(|opening| opening.name == command) {
            opening.open(Path::new(path));
            return ExitCode::SUCCESS;
        }
    }
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --benches` is no reason to work for a minute.
    if !has("--bench") {
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.hds");
    println!("4 GiB, 2 GiB allocated in clusters of 1 MiB, medians of {ROUNDS}:");
    make(&image, Size::from_gib(4), (0..4096).step_by(2));
    export(&image, dir.path());
    reads(&image);
    fs::remove_file(&image).unwrap();
    println!("opened in processes of their own, medians of {ROUNDS}:");
    let are_met = OPENINGS.map(|opening| opening.measure(dir.path()));
    match has("--bars") && are_met.contains(&false) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// A delta with noise in these clusters.
fn make(path: &Path, size: Size, clusters: impl IntoIterator<Item = u32>) {
    let cluster = ClusterSize::DEFAULT;
    let mut header = Header::new(FormatVersion::V2, cluster, size).unwrap();
    header.flags = HeaderFlags::empty();
    let table = header.data_start();
    let file = File::create(path).unwrap();
    file.set_len(table).unwrap();
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    let first = u32::try_from(table / cluster.bytes()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = vec![0; usize::try_from(cluster.bytes()).unwrap()];
    for (place, number) in (first..).zip(clusters) {
        random.fill(&mut noise);
        let at = u64::from(place) * cluster.bytes();
        file.write_all_at(&noise, at).unwrap();
        let entry = 64 + 4 * u64::from(number);
        file.write_all_at(&place.to_le_bytes(), entry).unwrap();
    }
    file.sync_all().unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn export(image: &Path, dir: &Path) {
    let target = dir.join("disk.raw");
    let qemu = Command::new("qemu-img").arg("--version").output().is_ok();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let settle = || {
        let _ = fs::remove_file(&target);
        rustix::fs::sync();
    };
    for _ in 0..ROUNDS {
        settle();
        ours.push(time(|| {
            let disk = Disk::open_image(image).unwrap();
            // QEMU does not wait for the disk either.
            let options = ExportOptions::new().sync(false);
            disk.export(&target, &options, |_| {}).unwrap();
        }));
        if qemu {
            settle();
            theirs.push(time(|| {
                let status = Command::new("qemu-img")
                    .args(["convert", "-f", "parallels", "-O", "raw"])
                    .args([image, &target])
                    .status();
                assert!(status.unwrap().success());
            }));
        }
    }
    settle();
    println!(
        "  export                  {:>8.2} s",
        median(ours).as_secs_f64()
    );
    if qemu {
        println!(
            "  qemu-img convert        {:>8.2} s",
            median(theirs).as_secs_f64()
        );
    }
}

/// Offsets of blocks that lie in clusters which are allocated.
fn offsets(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || {
        random.u64(..2048) * (2 << 20) + random.u64(..256) * BLOCK as u64
    })
}

fn reads(image: &Path) {
    let disk = Disk::open_image(image).unwrap();
    for threads in [1, 2, 4, 8] {
        let times = (0..ROUNDS).map(|_| {
            time(|| {
                thread::scope(|scope| {
                    for thread in 0..threads {
                        let disk = &disk;
                        scope.spawn(move || {
                            let mut buffer = [0; BLOCK];
                            for offset in offsets(thread).take(READS as usize) {
                                disk.read_at(&mut buffer, offset).unwrap();
                            }
                        });
                    }
                });
            })
        });
        let rate = (threads * READS) as f64 / median(times.collect()).as_secs_f64();
        println!(
            "  read_at 4 KiB, {threads} thread{} {rate:>8.0}/s",
            if threads == 1 { " " } else { "s" }
        );
    }
    let qemu = Command::new("qemu-io").arg("--version").output();
    if qemu.is_err() {
        return;
    }
    let commands: String = offsets(0)
        .take(READS as usize)
        .map(|offset| format!("read -q {offset} {BLOCK}\n"))
        .collect();
    let run = |commands: &str| {
        time(|| {
            let mut child = Command::new("qemu-io")
                .args(["-r", "-f", "parallels"])
                .arg(image)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(commands.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success());
        })
    };
    let times = (0..3).map(|_| run(&commands).saturating_sub(run("quit\n")));
    let rate = READS as f64 / median(times.collect()).as_secs_f64();
    println!("  qemu-io read 4 KiB        {rate:>8.0}/s");
}

/// An image that is opened, and what that may take.
struct Opening {
    name: &'static str,
    title: &'static str,
    /// Makes the image, and returns what is opened.
    make: fn(&Path) -> PathBuf,
    open: fn(&Path) -> Disk,
    /// Where the only data is that is read.
    data: u64,
    time: Duration,
    kib: u64,
}

const OPENINGS: [Opening; 2] = [
    Opening {
        name: "large",
        title: "16 TiB, a cluster in each 4 TiB",
        make: |dir| {
            let path = dir.join("large.hds");
            make(&path, LARGE, (0..16 << 20).step_by(4 << 20));
            path
        },
        open: |path| Disk::open_image(path).unwrap(),
        data: 12 << 40,
        time: Duration::from_millis(10),
        kib: 16 << 10,
    },
    Opening {
        name: "chain",
        title: "1000 deltas of 16 TiB, a cluster in each",
        make: make_chain,
        open: |path| Disk::open(path).unwrap(),
        // In the base: all tables are asked.
        data: 0,
        time: Duration::from_secs(1),
        kib: 64 << 10,
    },
];

const LARGE: Size = Size::from_gib(16 << 10);

/// A chain of deltas, each with a cluster of its own.
fn make_chain(dir: &Path) -> PathBuf {
    let mut described: Option<Descriptor> = None;
    let mut parent = Guid::NONE;
    for level in 0..CHAIN {
        let path = dir.join(format!("root.hds.{level}"));
        let number = u32::try_from(level).unwrap();
        make(&path, LARGE, [number]);
        let guid = match level + 1 == CHAIN {
            true => Guid::TOP,
            false => Guid::generate(),
        };
        let image = Image::new(guid, &path, ImageKind::Compressed);
        let snapshot = Snapshot::new(guid, parent);
        match &mut described {
            Some(described) => {
                described.images.push(image);
                described.snapshots.push(snapshot);
            }
            None => {
                let base = described.insert(Descriptor::new(LARGE, image));
                base.snapshots = vec![snapshot];
            }
        }
        parent = guid;
    }
    let mut described = described.unwrap();
    described.top = parent;
    let path = dir.join("DiskDescriptor.xml");
    let xml = described.to_xml(dir).unwrap();
    fs::write(&path, xml).unwrap();
    path
}

impl Opening {
    /// In processes of their own, whose memory is counted. Whether the bars are met.
    fn measure(&self, dir: &Path) -> bool {
        let image = (self.make)(dir);
        let program = std::env::current_exe().unwrap();
        let told = |index: usize| -> (Duration, u64) {
            let mut command = Command::new(&program);
            let output = command.arg(self.name).arg(&image).output().unwrap();
            assert!(output.status.success(), "{index}");
            let text = String::from_utf8(output.stdout).unwrap();
            let (time, kib) = text.trim().split_once(' ').unwrap();
            (
                Duration::from_nanos(time.parse().unwrap()),
                kib.parse().unwrap(),
            )
        };
        let told: Vec<(Duration, u64)> = (0..ROUNDS).map(told).collect();
        let time = median(told.iter().map(|(time, _)| *time).collect());
        let kib = told.iter().map(|(_, kib)| *kib).max().unwrap_or_default();
        let is_met = time < self.time && kib < self.kib;
        println!(
            "  {:<42}{time:>9.1?}, {kib} KiB at most; less than {:?} and {} KiB: {}",
            self.title,
            self.time,
            self.kib,
            if is_met { "met" } else { "missed" }
        );
        is_met
    }

    fn open(&self, image: &Path) {
        let mut block = [0; BLOCK];
        let taken = time(|| {
            let disk = (self.open)(image);
            disk.read_at(&mut block, self.data).unwrap();
        });
        assert_ne!(block, [0; BLOCK]);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        println!("{} {kib}", taken.as_nanos());
    }
}
