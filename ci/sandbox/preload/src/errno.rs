//! `errno`: get, set, fail with it, preserve it.

use libc::c_int;

pub(crate) fn get() -> c_int {
    // SAFETY: the address is that of the calling thread's own variable, always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// The result of a function of libc that fails.
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

/// Sets `errno` and returns the result of a failure.
pub(crate) fn fail<T: Failure>(value: c_int) -> T {
    set(value);
    T::FAILURE
}

/// Does something and leaves `errno` as it was.
pub(crate) fn preserve_errno<T>(work: impl FnOnce() -> T) -> T {
    let errno = get();
    let result = work();
    set(errno);
    result
}
