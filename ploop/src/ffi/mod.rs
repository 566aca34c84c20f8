//! The only place that knows C, and the only one with `unsafe`.
//!
//! Every call of libploop takes the same road:
//!
//! 1. [`process`] makes the process fit for it (signal handler, no log change under way);
//! 2. [`turn`] takes the image's turn in this process, and polls libploop's own locks, so that
//!    waiting for another process ends after the lock timeout;
//! 3. the caller checks the descriptor while the lock is held;
//! 4. [`call`] clears the thread's last error, calls C, ends a stray child, gives file descriptor 0
//!    back, and reads the error on the same thread; calls that may merge a running image are made in
//!    a thread with [file descriptors of its own](own_descriptors);
//! 5. [`reply`] turns what C returned into a typed result.
//!
//! A discard goes through [`kill_filter`], or where the kernel has no such filters through
//! [`pid_namespace`].
//!
//! The files `image_calls` and `other_calls` hold the C functions themselves, a few lines each.
#![allow(unsafe_code)]

mod call;
mod copy_calls;
mod discard_calls;
mod heap_room;
mod image_calls;
mod kill_filter;
mod last_error;
mod lock_watch;
#[cfg(test)]
#[path = "../../tests/old_kernel/mod.rs"]
mod old_kernel;
mod other_calls;
mod own_descriptors;
mod pid_namespace;
mod process;
mod reply;
mod running_merge;
mod text;
mod turn;

pub(crate) use call::Op;
pub(crate) use copy_calls::{copy_receive, copy_send};
pub(crate) use discard_calls::{DiscardArgs, StopInt};
pub(crate) use image_calls::{MergeWhich, MountArgs, ReplaceWhich};
pub(crate) use other_calls::*;
pub(crate) use running_merge::finish_merge;
pub(crate) use text::{CPath, CText};
pub(crate) use turn::{Image, Turn};

/// All tests of the library, but those of the filter that such a kernel does not have, and the one that
/// tries every moment at which a writer can die: no system call of it depends on the kernel.
#[cfg(test)]
#[test]
fn on_an_old_kernel() {
    old_kernel::run_again(&["--skip", "kill_filter", "--skip", "a_kill_at_any_point"]);
}
