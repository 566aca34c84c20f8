//! The only place that knows C, and the only one with `unsafe`.
//!
//! Every call of libploop is described by one value, a [`Call`], and takes the same road:
//!
//! 1. [`locked_image`] takes the image's lock, and polls libploop's own locks, so that
//!    waiting for another process ends after the lock timeout;
//! 2. the caller checks the descriptor while the lock is held;
//! 3. [`call`] has C run in a [process] of its own that shares the program's memory, with empty input,
//!    [captured output](output), no signal handlers of the program's, and room where libploop
//!    [reads too far](over_read);
//! 4. [`call_result`] turns what C returned into a typed result.
//!
//! The files `image_calls` and its neighbours hold the C functions themselves, a few lines each.
#![allow(unsafe_code)]

mod call;
mod call_result;
mod calls_without_handle;
mod copy_calls;
mod discard_calls;
mod fd_table;
mod image_calls;
mod kill_filter;
mod last_error;
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
pub(crate) use copy_calls::{copy_receive, copy_send};
pub(crate) use discard_calls::{DiscardArgs, StopInt};
pub(crate) use image_calls::{MergeWhich, MountArgs, ReplaceWhich};
pub(crate) use locked_image::{ImageHandle, LockedImage};
pub(crate) use output::{NO_CONSOLE, TIMESTAMPS, set_log_file, set_log_level, set_verbose_level};
pub(crate) use running_merge::finish_merge;
pub(crate) use signals::WriteSignalsBlocked;
pub(crate) use text::{CPath, CText};

/// All tests of the library, but those of the filter that such a kernel does not have, and the one that
/// tries every moment at which a writer can die: no system call of it depends on the kernel.
#[cfg(test)]
#[test]
fn on_an_old_kernel() {
    old_kernel::run_again(&["--skip", "kill_filter", "--skip", "a_kill_at_any_point"]);
}
