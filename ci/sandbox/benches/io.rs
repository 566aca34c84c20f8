//! What ext4 does on a sandbox's ploop, on a plain loop device over a raw file, and on a loop device
//! over `qemu-storage-daemon`'s FUSE export of the same image: `cargo bench -p ploop-sandbox --bench io`.
//!
//! The three have the same file system. They are measured by turns in one run; the table has the
//! medians. Then how long a mount and an unmount through the crate take. The exit code is 1 where a bar
//! is missed: sequential writes, at least half of the plain loop device, and reads at least 0.7 of it; what is sequential
//! and large, more than the export; a mount and an unmount together in less than 100 ms.

#[path = "../tests/faults/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::image::{Disk, ExportOptions};
use ploop::{CreateParam, MountParam, Ploop, Size};
use rustix::process::{Pid, Signal, kill_process};

use sandbox::{Lines, RunningPart, tool};

const SIZE: Size = Size::from_gib(3);
const ROUNDS: usize = 5;
const ATTACHMENTS: usize = 15;

/// A job of fio: the name of its line, and its arguments.
struct Job {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The least that it must reach of the plain loop device and of the export; 0 where there is no bar.
    bars: [f64; 2],
}

const JOBS: &[Job] = &[
    Job {
        name: "sequential write, new space",
        arguments: &["--rw=write", "--bs=1M", "--iodepth=4", "--overwrite=0"],
        bars: [0.5, 1.0],
    },
    Job {
        name: "sequential write, again",
        arguments: &["--rw=write", "--bs=1M", "--iodepth=4"],
        bars: [0.5, 1.0],
    },
    Job {
        name: "sequential read",
        arguments: &["--rw=read", "--bs=1M", "--iodepth=4"],
        bars: [0.7, 1.0],
    },
    Job {
        name: "sequential write, 4 KiB",
        arguments: &["--rw=write", "--bs=4k", "--iodepth=16", TIMED[0], TIMED[1]],
        bars: [0.0, 0.0],
    },
    Job {
        name: "sequential read, 4 KiB",
        arguments: &["--rw=read", "--bs=4k", "--iodepth=16", TIMED[0], TIMED[1]],
        bars: [0.7, 0.0],
    },
    Job {
        name: "random write, 4 KiB",
        arguments: &[
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            TIMED[0],
            TIMED[1],
        ],
        bars: [0.0, 0.0],
    },
    Job {
        name: "random read, 4 KiB",
        arguments: &[
            "--rw=randread",
            "--bs=4k",
            "--iodepth=16",
            TIMED[0],
            TIMED[1],
        ],
        bars: [0.7, 0.0],
    },
];

const TIMED: [&str; 2] = ["--time_based", "--runtime=3"];

/// MB/s of a job, in a directory of the file system. Each round has a file of its own.
fn fio(target: &Path, job: usize, round: usize) -> f64 {
    let job = &JOBS[job];
    let file = format!(
        "--filename={}",
        target.join(format!("round.{round}")).display()
    );
    let common = [
        "--name=job",
        "--size=384M",
        "--direct=1",
        "--ioengine=libaio",
        "--fallocate=none",
        "--invalidate=1",
        "--output-format=json",
        &file,
    ];
    let text = tool("fio", &[&common[..], job.arguments].concat());
    // Warnings come first.
    let json = text.find('{').map_or("", |start| &text[start..]);
    let result: serde_json::Value = serde_json::from_str(json).unwrap();
    let way = if job.arguments[0].ends_with("read") {
        "read"
    } else {
        "write"
    };
    result["jobs"][0][way]["bw_bytes"].as_f64().unwrap() / 1e6
}

/// In a sandbox: makes the image and a copy of it, then measures what it is told to.
fn ploop_side(directory: &Path) {
    let (target, copy) = (directory.join("mnt"), directory.join("copy"));
    let place = directory.join("image");
    for directory in [&target, &copy, &place] {
        fs::create_dir(directory).unwrap();
    }
    let mut image = Ploop::create(&CreateParam::new(place.join("root.hdd"), SIZE)).unwrap();
    tool(
        "cp",
        &[
            "--sparse=never",
            at(&place, "root.hdd").as_str(),
            at(&copy, "root.hdd").as_str(),
        ],
    );
    Disk::open(image.path())
        .unwrap()
        .export(directory.join("raw"), &ExportOptions::new(), |_| {})
        .unwrap();
    let param = MountParam::new().target(&target);
    image.mount(&param).unwrap();
    say("ready".into());
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some((job, round)) => {
                let (job, round) = (job.parse().unwrap(), round.parse().unwrap());
                say(fio(&target, job, round).to_string());
            }
            None => {
                image.umount().unwrap();
                let mut times = Vec::new();
                for _ in 0..ATTACHMENTS {
                    let begin = Instant::now();
                    image.mount(&param).unwrap();
                    let mounted = begin.elapsed();
                    image.umount().unwrap();
                    times.push((begin.elapsed(), mounted));
                }
                times.sort();
                let (both, mount) = times[times.len() / 2];
                let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
                say(format!("{} {}", milliseconds(both), milliseconds(mount)));
                image.mount(&param).unwrap();
            }
        }
    }
    image.umount().unwrap();
}

/// Tools write to standard output, too.
const SAYS: &str = "ploop: ";

fn say(what: String) {
    println!("{SAYS}{what}");
}

fn at(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

/// What is measured.
enum Side {
    Ploop(Box<PloopSide>),
    Mounted(Mounted),
}

struct PloopSide {
    running: RunningPart,
    lines: Lines,
    stdin: Option<ChildStdin>,
}

impl PloopSide {
    fn start(directory: &Path) -> PloopSide {
        let mut command = sandbox::sandboxed("ploop", directory);
        command.stdin(Stdio::piped());
        let mut running = RunningPart::start(command, true);
        let lines = Lines::of(running.stdout());
        let stdin = Some(running.stdin());
        let mut side = PloopSide {
            running,
            lines,
            stdin,
        };
        assert_eq!(side.line(), "ready", "{}", side.running.output());
        side
    }

    fn ask(&mut self, what: &str) -> Vec<f64> {
        writeln!(self.stdin.as_mut().unwrap(), "{what}").unwrap();
        let line = self.line();
        line.split(' ')
            .map(|number| number.parse().unwrap_or_else(|_| panic!("{line}")))
            .collect()
    }

    fn line(&mut self) -> String {
        loop {
            let line = self.lines.next(Duration::from_secs(120));
            let line = line.unwrap_or_else(|| {
                panic!("the sandbox says nothing more: {}", self.running.output())
            });
            if let Some(said) = line.strip_prefix(SAYS) {
                return said.to_owned();
            }
        }
    }

    fn end(mut self) {
        drop(self.stdin.take());
        self.running.succeed(Duration::from_secs(60));
    }
}

/// A file system in a file, by a loop device.
struct Mounted {
    target: PathBuf,
    /// Serves the file. It ends after the mount does, or where that fails.
    _server: Option<Server>,
}

impl Mounted {
    fn new(directory: &Path, name: &str, file: &Path, offset: u64, options: &[&str]) -> Mounted {
        let target = directory.join(name);
        fs::create_dir(&target).unwrap();
        let offset = offset.to_string();
        let fixed = ["--show", "-f", "-o", &offset, file.to_str().unwrap()];
        let device = tool("losetup", &[options, &fixed[..]].concat());
        tool("mount", &[device.trim(), target.to_str().unwrap()]);
        // Goes with the mount.
        tool("losetup", &["-d", device.trim()]);
        Mounted {
            target,
            _server: None,
        }
    }

    fn end(self) {
        tool("umount", &[self.target.to_str().unwrap()]);
    }
}

/// A program that serves a file, until this is dropped: also where a job fails, or it would go on for ever.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        if sandbox::wait(&mut self.0, Duration::from_secs(30)).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The image as a file that `qemu-storage-daemon` serves.
fn export(directory: &Path) -> Result<(Server, PathBuf), String> {
    let file = directory.join("export");
    fs::write(&file, b"").unwrap();
    let image = at(&directory.join("copy"), "root.hdd");
    let server = Command::new("qemu-storage-daemon")
        .args([
            "--blockdev",
            &format!("file,filename={image},node-name=file"),
        ])
        .args(["--blockdev", "parallels,file=file,node-name=image"])
        .args([
            "--export",
            &format!(
                "fuse,id=export,node-name=image,mountpoint={},writable=on",
                file.display()
            ),
        ])
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("qemu-storage-daemon cannot be started: {error}"))?;
    let mut server = Server(server);
    let end = Instant::now() + Duration::from_secs(10);
    while file.metadata().map_or(0, |metadata| metadata.len()) == 0 {
        if let Ok(Some(status)) = server.0.try_wait() {
            return Err(format!("qemu-storage-daemon ended with {status}"));
        }
        if Instant::now() > end {
            return Err("qemu-storage-daemon exports nothing".to_owned());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((server, file))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// With mounts of its own.
fn measure(directory: &Path) {
    let mut sides = vec![("ploop", Side::Ploop(Box::new(PloopSide::start(directory))))];
    let raw = directory.join("raw");
    // Where libploop puts the partition.
    let offset = 1 << 20;
    sides.push((
        "plain loop",
        Side::Mounted(Mounted::new(directory, "plain", &raw, offset, &[])),
    ));
    match export(directory) {
        Ok((server, file)) => {
            // As the sandbox does it, for it is a FUSE file too.
            let direct = ["--direct-io=on"];
            let mut mounted = Mounted::new(directory, "qemu", &file, offset, &direct);
            mounted._server = Some(server);
            sides.push(("qemu export", Side::Mounted(mounted)));
        }
        Err(why) => println!("without the qemu export: {why}"),
    }

    let mut results: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for turn in 0..sides.len() {
            let number = (turn + round) % sides.len();
            for job in 0..JOBS.len() {
                let speed = match &mut sides[number].1 {
                    Side::Ploop(side) => side.ask(&format!("{job} {round}"))[0],
                    Side::Mounted(side) => fio(&side.target, job, round),
                };
                results.entry((job, number)).or_default().push(speed);
            }
        }
    }
    let attached = match &mut sides[0].1 {
        Side::Ploop(side) => side.ask("mount"),
        Side::Mounted(_) => Vec::new(),
    };

    let mut missed = Vec::new();
    print!("{:<30}", "MB/s");
    for (name, _) in &sides {
        print!("{name:>13}");
    }
    println!("{:>11}{:>11}", "of loop", "of qemu");
    for (number, job) in JOBS.iter().enumerate() {
        print!("{:<30}", job.name);
        let mut speeds = Vec::new();
        for side in 0..sides.len() {
            let speed = median(results.remove(&(number, side)).unwrap_or_default());
            print!("{speed:>13.1}");
            speeds.push(speed);
        }
        for (other, bar) in (1..).zip(job.bars) {
            let Some(speed) = speeds.get(other) else {
                continue;
            };
            let ratio = speeds[0] / speed;
            print!("{:>10.0}%", 100.0 * ratio);
            if ratio < bar {
                missed.push(format!(
                    "{}: {:.0} % of {}",
                    job.name,
                    100.0 * ratio,
                    sides[other].0
                ));
            }
        }
        println!();
    }
    println!("{ROUNDS} rounds by turns; medians.");
    println!(
        "mount and unmount: {:.1} ms, of which the mount {:.1} ms (median of {ATTACHMENTS})",
        attached[0], attached[1]
    );
    if attached[0] >= 100.0 {
        missed.push(format!("mount and unmount: {:.1} ms", attached[0]));
    }
    for (_, side) in sides {
        match side {
            Side::Ploop(side) => side.end(),
            Side::Mounted(side) => side.end(),
        }
    }
    if !missed.is_empty() {
        println!("bars missed: {}", missed.join("; "));
        std::process::exit(1);
    }
    println!("all bars are met");
}

fn main() -> ExitCode {
    sandbox::run_part(&[("ploop", ploop_side), ("measure", measure)]);
    // `cargo test` starts it too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = sandbox::missing() {
        eprintln!("{missing}");
        return ExitCode::FAILURE;
    }
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("fio is missing (package fio)");
        return ExitCode::FAILURE;
    }
    let directory = sandbox::directory();
    let mut running =
        RunningPart::start(sandbox::with_own_mounts("measure", directory.path()), false);
    let status = running.finish(Duration::from_secs(1200));
    println!("{}", running.output());
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
