//! `errno`.

use libc::c_int;

pub(crate) fn get() -> c_int {
    // SAFETY: the address is that of the calling thread's own variable, always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// What a function of libc's returns when it fails.
pub(crate) trait Failure {
    const FAILURE: Self;
}

impl Failure for c_int {
    const FAILURE: c_int = -1;
}

impl Failure for isize {
    const FAILURE: isize = -1;
}

impl<T> Failure for *mut T {
    const FAILURE: *mut T = std::ptr::null_mut();
}

/// Fails with `errno` set.
pub(crate) fn fail<T: Failure>(value: c_int) -> T {
    set(value);
    T::FAILURE
}

/// Does something on the side, of which `errno` shows nothing.
pub(crate) fn kept<T>(work: impl FnOnce() -> T) -> T {
    let errno = get();
    let result = work();
    set(errno);
    result
}
