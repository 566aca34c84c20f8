//! What the kernel says, whatever this library tells the program.

use crate::real;
use libc::{c_char, c_int, c_ulong, c_void};

/// The kernel's answer.
pub(crate) fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    match real::ioctl() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(descriptor, request, argument) },
        None => real::missing(),
    }
}

/// `fstatat` as the kernel has it, for a libc that has the function under another name.
pub(crate) fn fstatat(
    directory: c_int,
    path: *const c_char,
    status: *mut libc::stat,
    flags: c_int,
) -> c_int {
    // SAFETY: the kernel checks the pointers; where this is built, its structure is libc's.
    unsafe { libc::syscall(libc::SYS_newfstatat, directory, path, status, flags) as c_int }
}

/// The real numbers of an open file; None if it is none, with `errno` set.
pub(crate) fn status_of_descriptor(descriptor: c_int) -> Option<libc::stat> {
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    let result = match real::fstat() {
        // SAFETY: the place is valid.
        Some(real) => unsafe { real(descriptor, &mut status) },
        None => fstatat(descriptor, c"".as_ptr(), &mut status, libc::AT_EMPTY_PATH),
    };
    (result == 0).then_some(status)
}

/// The real numbers of what a path names; None if it names nothing, with `errno` set.
pub(crate) fn status_of_path(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
) -> Option<libc::stat> {
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    (fstatat(directory, path, &mut status, flags) == 0).then_some(status)
}
