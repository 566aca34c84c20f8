//! How long operations wait for an image's lock.
//!
//! libploop waits 60 seconds for the lock of a descriptor, but only in a program of one thread: in
//! any other the wait may never end. This crate polls the lock itself first, in whichever thread, and
//! ends with [`ErrorKind::Locked`](crate::ErrorKind::Locked) after the time set here. Waiting for
//! another thread of the same process counts.
//!
//! Between the poll and libploop's own attempt the lock is free for some microseconds. Where another
//! process takes it then, the wait is libploop's own, and ends after 60 seconds.

use std::time::Duration;

use crate::ffi;

/// How long operations wait where their handle was not told otherwise. 60 seconds unless set.
#[must_use]
pub fn timeout() -> Duration {
    ffi::default_lock_timeout()
}

/// Sets how long operations wait, for the whole process. Zero means one attempt.
///
/// [`Ploop::set_lock_timeout`](crate::Ploop::set_lock_timeout) sets it for one handle.
pub fn set_timeout(timeout: Duration) {
    ffi::set_default_lock_timeout(timeout);
}
