//! Power cuts. The images lie in a file system on a disk that records what it is told, and forgets what
//! was not flushed. After each cut what had returned `Ok` is there, every synced byte is, and the next
//! operation or mount works.
//!
//! `PLOOP_CUTS` is how many there are of images that are not attached, and four times those of one that
//! is. `PLOOP_CUT_SEED` is the first of their seeds.

#[path = "../../src/fuse.rs"]
#[allow(dead_code, reason = "the tests use a part of it")]
mod fuse;
mod host;
#[path = "../faults/image.rs"]
mod image;
#[path = "../../src/lock.rs"]
mod lock;
#[path = "../../src/mounts.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use a part of it")]
mod mounts;
mod offline;
mod online;
mod recorder;
mod repair;
#[path = "../faults/sandbox.rs"]
mod sandbox;
#[path = "../../src/spliced_answer.rs"]
mod spliced_answer;
#[path = "../../src/virtual_disk.rs"]
#[allow(dead_code, reason = "the tests use a part of it")]
mod virtual_disk;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use fastrand::Rng;
use libtest_mimic::Arguments;

use host::Host;
use recorder::Recorder;
use sandbox::{note, number};

fn cuts() -> u64 {
    number("PLOOP_CUTS", 160)
}

/// Another one each time, unless it is given.
fn seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        number("PLOOP_CUT_SEED", now.map_or(1, |since| since.as_secs()))
    })
}

/// What was done to an image while its disk was recorded.
trait Life {
    /// The operations that returned: where in the record, and their names.
    fn steps(&self) -> Vec<(usize, &str)>;

    /// What is wrong with the image after the cut of this number, if anything is.
    fn verify(&self, image: &Path, position: usize, number: u64) -> Result<(), String>;
}

/// Cuts the power so many times, and says what was wrong. Before a record begins, `prepare` makes the directory of the
/// image in a file system of `size` bytes; `live` is what is recorded.
fn try_cuts<L: Life>(
    place: &Path,
    total: u64,
    size: u64,
    prepare: impl Fn(&Path),
    live: impl Fn(&Recorder, &Path, &mut Rng) -> L,
) -> Vec<String> {
    /// Of one record.
    const CUTS: u64 = 25;

    let base = place.join("base");
    Host::format(&base, size);
    // It has one path before a cut and after.
    let target = place.join("host");
    let host = Host::mount(&base, &target);
    prepare(&host.target.join("image"));
    drop(host);
    // After a cut the system starts anew, and then this differs.
    let boot = place.join("boot_id");
    fs::write(&boot, "").unwrap();
    rustix::mount::mount_bind(&boot, "/proc/sys/kernel/random/boot_id").unwrap();
    let mut wrong = Vec::new();
    let mut done = 0;
    for seed in seed().. {
        if done >= total {
            break;
        }
        let mut random = Rng::with_seed(seed);
        fs::write(&boot, "recorded").unwrap();
        let directory = place.join(seed.to_string());
        fs::create_dir(&directory).unwrap();
        let recorder = Recorder::new(&directory, &base);
        let host = Host::mount(&recorder.disk(), &target);
        let start = recorder.position();
        let life = live(&recorder, &host.target.join("image"), &mut random);
        drop(host);
        let end = recorder.position();
        let steps = life.steps();
        for number in 0..CUTS.min(total - done) {
            // Half of them soon after something has returned.
            let position = match random.bool() {
                true => (steps[random.usize(..steps.len())].0 + random.usize(..6)).min(end),
                false => random.usize(start..end),
            };
            let (disk, lost) = recorder.cut(position, &mut random.fork());
            fs::write(&boot, "cut").unwrap();
            let host = Host::mount(&disk, &target);
            let last = steps.iter().rfind(|step| step.0 <= position);
            let next = steps.iter().find(|step| step.0 > position);
            if let Err(error) = life.verify(&host.target.join("image"), position, number) {
                wrong.push(format!(
                    "seed {seed}, cut {number} at {position} of {end}, after {}, in {}, {lost}: {error}",
                    last.map_or("nothing", |step| step.1),
                    next.map_or("nothing", |step| step.1),
                ));
            }
            drop(host);
            done += 1;
        }
        drop(recorder);
        fs::remove_dir_all(&directory).unwrap();
    }
    note!("{done} cuts, the first seed {}", self::seed());
    wrong
}

const PARTS: &[sandbox::Part] = &[
    ("offline", offline::conduct),
    ("offline-by-files", offline::conduct_by_files),
    ("offline-unsynced", offline::conduct_unsynced),
    ("online", online::conduct),
    ("repair", repair::conduct),
];

const TESTS: &[(&str, fn())] = &[
    ("an_image_that_is_mounted", online::run_in_sandbox),
    ("images_that_are_not_attached", || offline::run("offline")),
    ("images_that_are_changed_without_libploop", || {
        offline::run("offline-by-files")
    }),
    ("without_syncs_success_is_undone", || {
        offline::run("offline-unsynced")
    }),
    ("repairs_and_their_undo", || offline::run("repair")),
];

fn main() -> ExitCode {
    sandbox::run_part(PARTS);
    libtest_mimic::run(&Arguments::from_args(), sandbox::trials(TESTS)).exit_code()
}
