//! Power cuts. The images lie in a file system on a disk that records what it is told, and forgets what
//! was not flushed. After each cut what had returned `Ok` is there, every synced byte is, and the next
//! operation or mount works.
//!
//! `PLOOP_CUTS` is how many there are of images that are not attached, and four times those of one that
//! is. `PLOOP_CUT_SEED` is the first of their seeds.

mod host;
#[path = "../faults/image.rs"]
mod image;
mod offline;
mod online;
#[path = "../faults/random.rs"]
mod random;
mod recorder;
#[path = "../faults/sandbox.rs"]
mod sandbox;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

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

const PARTS: &[sandbox::Part] = &[
    ("offline", offline::conduct),
    ("offline-unsynced", offline::conduct_unsynced),
    ("online", online::conduct),
];

const TESTS: &[(&str, fn())] = &[
    ("an_image_that_is_mounted", online::run_in_sandbox),
    ("images_that_are_not_attached", || offline::run("offline")),
    ("without_syncs_success_is_undone", || {
        offline::run("offline-unsynced")
    }),
];

fn main() -> ExitCode {
    sandbox::run_part(PARTS);
    libtest_mimic::run(&Arguments::from_args(), sandbox::trials(TESTS)).exit_code()
}
