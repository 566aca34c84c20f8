//! The daemon is killed while the file system is being written.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::image::{Files, Image, write_synced};
use super::program::points;
use super::sandbox::{self, Lines, RunningPart};
use fastrand::Rng;

/// Makes an image. In a sandbox.
pub(crate) fn prepare(directory: &Path) {
    let image = Image::create(&directory.join("image"));
    image.mount();
    image.write("old", 8 << 20);
    // So that there are clusters to copy from below.
    image.open().snapshot().unwrap();
    image.open().umount().unwrap();
}

/// Writes until the daemon is gone, and says what is synced. In a sandbox.
pub(crate) fn write(directory: &Path) {
    let image = Image::at(&directory.join("image"));
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    image.mount();
    write_until_it_fails(&image.target(), seed);
}

/// Says what it begins to write, and what is synced.
pub(crate) fn write_until_it_fails(target: &Path, seed: u64) {
    let mut random = Rng::with_seed(seed);
    println!("mounted");
    for number in 0.. {
        // Some are written again, large and small ones.
        let name = format!("written.{}", number % 200);
        let limit = if number % 8 == 0 { 2 << 20 } else { 64 << 10 };
        let (seed, len) = (random.u64(..), 1 + random.usize(..limit));
        println!("begins {name}");
        if let Err(error) = write_synced(target, &name, seed, len) {
            println!("failed {name}: {error}");
            break;
        }
        println!("synced {name} {seed} {len}");
    }
    std::io::stdout().flush().unwrap();
}

const SEED: &str = "PLOOP_FAULT_WRITER";

/// Compares with the manifest. In a sandbox.
pub(crate) fn verify(directory: &Path) {
    let image = Image::at(&directory.join("image"));
    let manifest = fs::read_to_string(directory.join("manifest")).unwrap();
    *image.files.lock().unwrap() = read_manifest(&manifest);
    image.recover("after the fault");
}

pub(crate) fn read_manifest(text: &str) -> Files {
    let mut files = Files::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["begins", name] => {
                files.remove(name);
            }
            ["synced", name, seed, len] => {
                let value = (seed.parse().unwrap(), len.parse().unwrap());
                files.insert(name.to_owned(), value);
            }
            _ => {}
        }
    }
    files
}

pub(crate) fn killed() {
    let directory = sandbox::directory();
    let limit = Duration::from_secs(120);
    RunningPart::start(
        sandbox::sandboxed("daemon-prepare", directory.path()),
        false,
    )
    .succeed(limit);
    let (count, first) = points(3);
    for seed in first..first + count {
        let mut random = Rng::with_seed(seed);
        let delay = Duration::from_micros(random.u64(..1_500_000));
        let what = format!("daemon killed, seed {seed}, after {delay:.1?}");
        let mut command = sandbox::sandboxed("daemon-write", directory.path());
        command.env(SEED, seed.to_string());
        let mut running = RunningPart::start(command, true);
        let lines = Lines::of(running.stdout());
        let mut manifest = String::new();
        let mut take = |limit| match lines.next(limit) {
            None => false,
            Some(line) => {
                manifest += &line;
                manifest.push('\n');
                true
            }
        };
        assert!(
            take(Duration::from_secs(60)),
            "{what}: {}",
            running.output()
        );
        let end = Instant::now() + delay;
        while Instant::now() < end {
            take(end.saturating_duration_since(Instant::now()));
        }
        let daemon = sandbox::daemon_of(running.id()).expect("the sandbox has a daemon");
        kill_process(daemon, Signal::KILL).unwrap();
        // What was synced in the same moment is on its way.
        let status = running.finish(Duration::from_secs(60));
        while take(Duration::from_millis(100)) {}
        let status = status.unwrap_or_else(|why| panic!("{what}: {why}"));
        running.left_nothing();
        let synced = read_manifest(&manifest).len();
        fs::write(directory.path().join("manifest"), &manifest).unwrap();
        RunningPart::start(sandbox::sandboxed("daemon-verify", directory.path()), false)
            .succeed(limit);
        println!("{what}: {synced} files were synced; the sandbox ended with {status}");
    }
}
