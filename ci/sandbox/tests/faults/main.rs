//! Faults in the middle of things: the program killed, the daemon killed, the host's disk full or
//! broken. Afterwards the descriptor can be read, the image is sound, its file system is in order, and
//! every byte that was synced before is there.
//!
//! `PLOOP_FAULT_POINTS` is how many moments are tried of each kind (50 for the full run),
//! `PLOOP_FAULT_SEED` the first of their seeds.

mod daemon;
mod exact;
mod frozen;
mod host;
mod image;
#[path = "../../src/ioctl.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use a part of it")]
mod ioctl;
mod program;
mod sandbox;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::Arguments;

const PARTS: &[sandbox::Part] = &[
    ("perform", program::perform),
    ("create", program::conduct_creation),
    ("snapshot", |place| {
        conduct(place, |name| name.starts_with("snapshot"))
    }),
    ("merge", |place| {
        conduct(place, |name| name.starts_with("merge"))
    }),
    ("resize", |place| {
        conduct(place, |name| {
            name.starts_with("growth") || name.starts_with("shrinking")
        });
    }),
    ("copy", |place| {
        conduct(place, |name| name.starts_with("copy"))
    }),
    ("discard", |place| {
        conduct(place, |name| name.starts_with("discard"))
    }),
    ("exact", exact::crate_recovers),
    ("exact-libploop", exact::libploop_loses),
    ("merging", exact::killed_while_clusters_move),
    ("stopped", exact::stopped),
    ("daemon-prepare", daemon::prepare),
    ("daemon-write", daemon::write),
    ("daemon-verify", daemon::verify),
    ("frozen-leave", frozen::leave),
    ("frozen-hold", frozen::hold),
    ("frozen-verify", frozen::verify),
    ("host-write", host::write),
    ("host-full", host::full),
    ("host-failing", host::failing),
];

fn conduct(directory: &Path, wanted: fn(&str) -> bool) {
    program::conduct(directory, wanted);
}

const TESTS: &[(&str, fn())] = &[
    ("killed_while_creating", || program::in_sandbox("create")),
    ("killed_while_making_a_snapshot", || {
        program::in_sandbox("snapshot")
    }),
    ("killed_while_merging", || program::in_sandbox("merge")),
    ("killed_while_resizing", || program::in_sandbox("resize")),
    ("killed_while_copying", || program::in_sandbox("copy")),
    ("killed_while_discarding", || program::in_sandbox("discard")),
    ("killed_before_the_descriptor_takes_its_place", || {
        program::in_sandbox("exact")
    }),
    ("killed_while_clusters_move", || {
        program::in_sandbox("merging")
    }),
    ("libploop_alone_loses_what_came_after", || {
        program::in_sandbox("exact-libploop")
    }),
    ("a_device_that_was_left_stopped", || {
        program::in_sandbox("stopped")
    }),
    ("daemon_killed_while_writing", daemon::killed),
    ("a_file_system_that_was_left_frozen", frozen::left),
    ("a_frozen_file_system_of_a_killed_sandbox", frozen::killed),
    ("no_space_under_the_image", || {
        host::with_own_mounts("host-full")
    }),
    ("a_broken_disk_under_the_image", || {
        host::with_own_mounts("host-failing")
    }),
];

fn main() -> ExitCode {
    sandbox::run_part(PARTS);
    libtest_mimic::run(&Arguments::from_args(), sandbox::trials(TESTS)).exit_code()
}
