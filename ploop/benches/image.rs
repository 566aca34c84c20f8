//! Export, random reads and the opening of a large disk, next to QEMU where it is installed.
//!
//! ```text
//! cargo bench -p ploop --bench image
//! ```
//!
//! Needs 5 GiB in the temporary directory (`TMPDIR`). Prints medians; the two sides take turns, so
//! that whatever else the machine does meets both.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::image::{Disk, ExportOptions, Header, HeaderFlags};
use ploop::{ClusterSize, FormatVersion, Size};

const ROUNDS: usize = 9;
const READS: u64 = 20_000;
const BLOCK: usize = 4096;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, path] = &arguments[..] {
        if command == "open" {
            return open_and_tell(Path::new(path));
        }
    }
    // `cargo test --benches` is no reason to work for a minute.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.hds");
    println!("4 GiB, 2 GiB allocated in clusters of 1 MiB, medians of {ROUNDS}:");
    make(&image, Size::from_gib(4), |cluster| cluster % 2 == 0);
    export(&image, dir.path());
    reads(&image);
    fs::remove_file(&image).unwrap();
    let large = dir.path().join("large.hds");
    make(&large, Size::from_gib(16 << 10), |cluster| {
        cluster % (4 << 20) == 0
    });
    open(&large);
}

/// A delta with noise in the clusters that `allocated` chooses.
fn make(path: &Path, size: Size, allocated: impl Fn(u32) -> bool) {
    let cluster = ClusterSize::DEFAULT;
    let entries = u32::try_from(size.bytes() / cluster.bytes()).unwrap();
    let mut header = Header::new(FormatVersion::V2, cluster, size).unwrap();
    header.flags = HeaderFlags::empty();
    let table = header.data_start();
    let file = File::create(path).unwrap();
    file.set_len(table).unwrap();
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    let first = u32::try_from(table / cluster.bytes()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = vec![0; usize::try_from(cluster.bytes()).unwrap()];
    let chosen = (0..entries).filter(|number| allocated(*number));
    for (place, number) in (first..).zip(chosen) {
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

/// In processes of their own, whose memory is counted.
fn open(image: &Path) {
    println!("16 TiB, all holes but for four clusters:");
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).arg("open").arg(image).status();
    assert!(status.unwrap().success());
}

fn open_and_tell(image: &Path) {
    let memory = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM"));
        line.unwrap_or_default()
            .split_whitespace()
            .nth(1)
            .unwrap_or("?")
            .to_owned()
    };
    let opened = time(|| {
        let disk = Disk::open_image(image).unwrap();
        disk.read_at(&mut [0; BLOCK], 12 << 40).unwrap();
    });
    println!(
        "  open and read         {opened:>8.1?}, {} KiB at most",
        memory()
    );
    let scanned = time(|| {
        let disk = Disk::open_image(image).unwrap();
        assert_eq!(disk.extents().count(), 4);
    });
    println!(
        "  all extents           {scanned:>8.1?}, {} KiB at most",
        memory()
    );
}
