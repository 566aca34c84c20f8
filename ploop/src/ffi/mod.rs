//! The calls of libploop. No other module knows C or has `unsafe`.
//!
//! Each C function has a constant [`Call`] that says what it needs. The way from `Ploop::snapshot` to
//! `ploop_create_snapshot`, for example:
//!
//! 1. `snapshot.rs` begins a [`Change`](crate::change::Change) with `LockedImage::SNAPSHOT`.
//! 2. [`ImageHandle::lock`] takes the image's lock, and polls libploop's own locks. So waiting for another
//!    process ends after the lock timeout.
//! 3. `Change::begin` asks who else can write to the files, finishes what was interrupted, and checks the descriptor;
//!    `snapshot.rs` checks the rest. `Change::run` gives libploop a descriptor that this crate has written, and makes the
//!    file to which libploop writes the next one.
//! 4. `image_calls` fills in the C struct: one method of [`LockedImage`] for each function.
//! 5. [`call`] asks [`line`] whether the library that is loaded is of the line the program was built for. It runs the
//!    C function in a [process] of its own that shares the program's memory. There libploop's lock is given back at the
//!    last moment, for libploop to take it. The input of that process is empty, its
//!    [output] is captured, and it has no signal handlers of the program. Where libploop
//!    [reads beyond its buffers](over_read), the process makes that memory readable.
//! 6. [`call_result`] turns the code and the error text into a [`Result`](crate::Result).
//! 7. `Change::run` looks whether what was to be done is in the descriptor, restores the fields libploop has dropped, and
//!    syncs; after a failure it cleans up.
#![allow(unsafe_code)]

mod call;
mod call_result;
mod calls_without_handle;
mod clear_device;
mod copy_calls;
mod copy_ioctls;
mod discard_calls;
mod fd_table;
mod image_calls;
mod kill_filter;
mod last_error;
mod line;
mod locked_image;
#[cfg(test)]
#[path = "../../tests/old_kernel/mod.rs"]
mod old_kernel;
mod output;
mod over_read;
mod process;
mod running_merge;
mod signals;
mod text;

pub use ploop_sys as sys;

pub(crate) use call::Call;
pub(crate) use calls_without_handle::*;
pub(crate) use clear_device::clear_device;
pub(crate) use copy_calls::{copy_receive, copy_send};
pub(crate) use copy_ioctls::{CleanupProcess, FrozenFileSystem, Tracking};
pub(crate) use discard_calls::{DiscardArgs, StopInt};
pub(crate) use image_calls::{AttachFirst, MountArgs, ReplaceWhich};
pub(crate) use line::{
    LINE, descriptor_form, exports, loaded_file, misjudges_replacement, require_line,
    upgrades_v1_at_mount,
};
pub(crate) use locked_image::{ImageHandle, LockedImage};
pub(crate) use output::{NO_CONSOLE, TIMESTAMPS, set_log_file, set_log_level, set_verbose_level};
pub(crate) use running_merge::finish_merge;
pub(crate) use signals::WriteSignalsBlocked;
pub(crate) use text::{CPath, CText};

/// All tests of the library, but two kinds: such a kernel has no system call filter, and in the test of all moments
/// at which a writer can die, no system call depends on the kernel.
#[cfg(test)]
#[test]
fn on_an_old_kernel() {
    old_kernel::run_again(&["--skip", "kill_filter", "--skip", "a_kill_at_any_point"]);
}
