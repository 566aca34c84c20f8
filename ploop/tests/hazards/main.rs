//! What libploop 1.15 does to a program or its data, shown with a raw call where that is cheap, and
//! that this crate does not let it.
//!
//! The numbers are those of the table in the crate's manual: `h0_…` what a binding must know first,
//! `h4_…` the table of hazards, `ha_…` what was found later. One test may stand for several numbers.
//! Whatever may crash, hang, or meet a signal runs in a child process; see [`fixture::child`].
//!
//! Not provoked here, since libploop gets there only with a running device:
//!
//! * 0.3, 4.21, the stray child of a tool that is missing: no tool is started without the driver. The
//!   guard around a call is tested with a real stray child in `src/ffi/call.rs`, the look for the
//!   tools here, with the tools hidden.
//! * 0.19, 4.22, `kill(-1, SIGKILL)` when a discard cannot fork: the filter is tested in
//!   `src/ffi/kill_filter.rs`.
//! * 0.18, 4.20 by online merge: the other way to a closed descriptor 0, a conversion that is short of
//!   memory, is provoked.
//! * 4.11 by `ploop_get_mnt_by_dev`, 4.12, 4.14 by the device look-ups, 4.16, 4.17, 4.18, and 4.28 by
//!   `SKIP_CREATE`.
//!
//! Nothing to provoke:
//!
//! * 0.5: return values of several styles, tested in `src/ffi/reply.rs` for each.
//! * 0.6, 4.1: no pointer out of a handle can be passed back, since none leaves `ffi`.
//! * 4.30: images of 2^30 clusters need format version 2, which needs the driver; the limit is tested
//!   in `src/kernel.rs`.
//! * 4.32: no hazard.

#[path = "../fixture/mod.rs"]
mod fixture;

mod files;
mod locks;
mod memory;
mod process;
mod running;
mod snapshots;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut tests = memory::tests();
    tests.extend(files::tests());
    tests.extend(snapshots::tests());
    tests.extend(locks::tests());
    tests.extend(process::tests());
    tests.extend(running::tests());
    fixture::harness::run(tests)
}
