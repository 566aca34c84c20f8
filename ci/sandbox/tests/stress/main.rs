//! Eight images at once, each with a thread of its own that makes, mounts, writes, snapshots, merges
//! and unmounts it as chance has it; and that a merge in one does not hold up a mount of another.
//!
//! `PLOOP_STRESS_SECONDS` is how long it goes on (300 for the full run), `PLOOP_STRESS_SEED` decides
//! what is done.

#[path = "../faults/image.rs"]
mod image;
#[path = "../faults/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;
use ploop::{CreateParam, Guid, Ploop, Size};

use fastrand::Rng;
use image::{Files, Image};
use sandbox::{RunningPart, number};

const IMAGES: u64 = 8;

/// After the time is over: the last operations, and the comparison.
const REST: Duration = Duration::from_secs(180);

fn seconds() -> u64 {
    number("PLOOP_STRESS_SECONDS", 20)
}

/// How often each operation was done.
type Counts = BTreeMap<&'static str, u64>;

/// An image that random operations are done to, and what it must hold.
struct Worker {
    image: Image,
    random: Rng,
    /// The snapshots, from the base up, and what was in the file system then.
    snapshots: Vec<(Guid, Files)>,
    mounted: bool,
    written: u64,
    counts: Counts,
}

impl Worker {
    fn new(directory: &Path, seed: u64) -> Worker {
        Worker {
            image: Image::create(directory),
            random: Rng::with_seed(seed),
            snapshots: Vec::new(),
            mounted: false,
            written: 0,
            counts: Counts::from([("created", 1)]),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn files(&self) -> Files {
        self.image.files.lock().unwrap().clone()
    }

    fn step(&mut self) {
        if !self.mounted {
            match self.random.u64(..10) {
                0..6 => {
                    self.image.mount();
                    self.mounted = true;
                    self.image.verify("after a mount");
                    self.count("mounted");
                }
                6 => self.snapshot(),
                7 => self.merge(),
                8 => self.switch(),
                _ => self.begin_again(),
            }
            return;
        }
        match self.random.u64(..10) {
            0..5 => self.write(),
            5 => {
                self.snapshot();
                self.image.verify("after a snapshot");
            }
            6 | 7 => {
                self.merge();
                self.image.verify("after a merge");
            }
            _ => {
                self.image.verify("before an unmount");
                self.unmount();
            }
        }
    }

    fn unmount(&mut self) {
        self.image.open().umount().unwrap();
        self.mounted = false;
        self.count("unmounted");
    }

    fn write(&mut self) {
        let name = format!("file.{}", self.random.u64(..20));
        let len = 1 + self.random.usize(..1 << 20);
        let seed = self.random.u64(..);
        image::write_synced(&self.image.target(), &name, seed, len).unwrap();
        self.image.files.lock().unwrap().insert(name, (seed, len));
        self.written += len as u64;
        self.count("written");
    }

    fn snapshot(&mut self) {
        if self.snapshots.len() < 4 {
            let guid = self.image.open().snapshot().unwrap();
            self.snapshots.push((guid, self.files()));
            self.count("snapshots");
        }
    }

    fn merge(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let which = self.random.usize(..self.snapshots.len());
        let (guid, _) = self.snapshots.remove(which);
        self.image.open().delete_snapshot(guid).unwrap();
        self.count(if self.mounted {
            "merged, mounted"
        } else {
            "merged"
        });
    }

    fn switch(&mut self) {
        let Some((guid, files)) = self.snapshots.last().cloned() else {
            return;
        };
        self.image.open().switch_snapshot(guid).unwrap();
        *self.image.files.lock().unwrap() = files;
        self.count("switched back");
    }

    fn begin_again(&mut self) {
        self.finish();
        let directory = self.image.directory.clone();
        fs::remove_dir_all(&directory).unwrap();
        self.image = Image::create(&directory);
        self.snapshots.clear();
        self.count("created");
    }

    /// Compares everything, snapshots too.
    fn finish(&mut self) {
        if self.mounted {
            self.unmount();
        }
        self.image.recover("at the end");
        for (guid, files) in &self.snapshots {
            let mut image = self.image.open();
            let param = self.image.param().snapshot(*guid).read_only(true);
            let guard = image.mount_guard(&param).unwrap();
            let wrong = image::differences(&self.image.target(), files);
            assert!(wrong.is_empty(), "snapshot {guid}: {wrong:?}");
            guard.umount().unwrap();
        }
    }
}

/// Runs in a sandbox.
fn stress(directory: &Path) {
    let seed = number("PLOOP_STRESS_SEED", 1);
    let end = Instant::now() + Duration::from_secs(seconds());
    let (sender, receiver) = mpsc::channel();
    for number in 0..IMAGES {
        let directory = directory.join(number.to_string());
        let sender = sender.clone();
        thread::spawn(move || {
            let mut worker = Worker::new(&directory, seed.wrapping_mul(1000) + number);
            while Instant::now() < end {
                worker.step();
            }
            worker.finish();
            let _ = sender.send((worker.counts, worker.written));
        });
    }
    drop(sender);
    let (mut counts, mut written) = (Counts::new(), 0);
    for _ in 0..IMAGES {
        let left = (end + REST).saturating_duration_since(Instant::now());
        // A thread that panicked has said why.
        let Ok((some, bytes)) = receiver.recv_timeout(left) else {
            eprintln!("seed {seed}: an image failed or hangs");
            std::process::exit(101);
        };
        written += bytes;
        for (what, count) in some {
            *counts.entry(what).or_default() += count;
        }
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, n)| format!("{what} {n}"))
        .collect();
    sandbox::note!(
        "seed {seed}, {} s, {IMAGES} images: {}; {} MiB in files",
        seconds(),
        counts.join(", "),
        written >> 20
    );
}

/// Runs in a sandbox: the top of one image is merged, and another is mounted meanwhile.
fn merge_and_mount(directory: &Path) {
    let large = Size::from_gib(4);
    let first = directory.join("first");
    fs::create_dir_all(first.join("mnt")).unwrap();
    Ploop::create(&CreateParam::new(first.join("root.hdd"), large)).unwrap();
    let first = Image::at(&first);
    let second = Image::create(&directory.join("second"));
    second.mount();
    second.write("file", 1 << 20);
    second.open().umount().unwrap();

    first.mount();
    for (round, mib) in [384, 768, 1280].into_iter().enumerate() {
        let snapshot = first.open().snapshot().unwrap();
        first.write(&format!("round.{}", round % 2), mib << 20);
        let mut alone = Vec::new();
        for _ in 0..3 {
            let begin = Instant::now();
            second.mount();
            alone.push(begin.elapsed());
            second.open().umount().unwrap();
        }
        alone.sort();
        let (sender, receiver) = mpsc::channel();
        let mut image = first.open();
        let begin = Instant::now();
        thread::spawn(move || {
            image.delete_snapshot(snapshot).unwrap();
            sender.send(Instant::now()).unwrap();
        });
        // Under way.
        thread::sleep(Duration::from_millis(100));
        let mounting = Instant::now();
        second.mount();
        let mounted = Instant::now();
        second.verify("while another image is merged");
        let merged = receiver.recv_timeout(Duration::from_secs(120));
        let merged = merged.expect("the merge ends");
        second.open().umount().unwrap();
        first.verify("after the merge");
        let (took, merge) = (mounted - mounting, merged - begin);
        sandbox::note!(
            "a mount beside a merge of {mib} MiB: {took:.1?}, alone {:.1?}; the merge took {merge:.1?}",
            alone[1]
        );
        if merged > mounted {
            first.open().umount().unwrap();
            return;
        }
        // The merge was too short to tell.
        assert!(
            mib < 1024,
            "the mount ended after a merge of {merge:.1?} had"
        );
    }
}

const PARTS: &[sandbox::Part] = &[("stress", stress), ("merge-and-mount", merge_and_mount)];

fn in_sandbox(part: &str, limit: Duration) {
    let directory = sandbox::directory();
    let running = RunningPart::start(sandbox::sandboxed(part, directory.path()), false);
    let output = running.succeed(limit);
    sandbox::show(&output);
}

const TESTS: &[(&str, fn())] = &[
    ("eight_images_at_once", || {
        in_sandbox("stress", Duration::from_secs(seconds()) + REST + REST);
    }),
    ("a_merge_does_not_hold_up_a_mount_of_another_image", || {
        in_sandbox("merge-and-mount", Duration::from_secs(300));
    }),
];

fn main() -> ExitCode {
    sandbox::run_part(PARTS);
    let mut arguments = Arguments::from_args();
    // One measures what the other would disturb.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, sandbox::trials(TESTS)).exit_code()
}
