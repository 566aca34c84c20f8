//! What libploop 1.15 does to a program or its data, shown with a raw call where that is cheap, and
//! that this crate does not let it.
//!
//! The numbers are those of the table in the crate's manual: `h0_…` what a binding must know first,
//! `h4_…` the table of hazards, `ha_…` what was found later. One test may stand for several numbers.
//! Whatever may crash, hang, or meet a signal runs in a child process; see [`fixture::child`].
//!
//! What takes a running image is in [`running`], and needs the driver; in the sandbox there is one.
//!
//! Not provoked here:
//!
//! * 0.19, 4.22, `kill(-1, SIGKILL)` when a discard cannot fork: the driver would have to fail at that very
//!   moment. What it does otherwise is provoked; what keeps the signal from others is tested in
//!   `src/ffi/kill_filter.rs`.
//! * A13 to A15: tested where programs are killed, in the sandbox's tests of faults.
//!
//! Nothing to provoke:
//!
//! * 0.5: return values of several styles, tested in `src/ffi/call_result.rs` for each.
//! * 0.6, 4.1: no pointer out of a handle can be passed back, since none leaves `ffi`.
//! * 4.30: images of 2^30 clusters; the limit is tested in `src/kernel.rs`.
//! * 4.32: no hazard.

#[path = "../fixture/mod.rs"]
mod fixture;

mod files;
mod locks;
mod memory;
mod process;
mod running;
mod snapshots;
mod surroundings;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Thousands of changes, none of which has to survive a power cut: those that have to are the sandbox's tests.
    ploop::durability::set_sync(false);
    let sections = [
        memory::tests(),
        files::tests(),
        snapshots::tests(),
        locks::tests(),
        process::tests(),
        running::tests(),
        surroundings::tests(),
        running::last(),
    ];
    fixture::harness::run(sections.into_iter().flatten().collect())
}
