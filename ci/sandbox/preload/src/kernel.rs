//! System calls without the changes of this library.

use crate::{errno, real};
use libc::{c_char, c_int, c_ulong, c_void};
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Opens a file close-on-exec; makes none. The error is an `errno`.
pub(crate) fn open(path: *const c_char, flags: c_int) -> Result<OwnedFd, c_int> {
    let open = real::open().ok_or(libc::ENOSYS)?;
    // SAFETY: a path is a C string, as for `open` itself; no file is made, so no mode is needed.
    owned(unsafe { open(path, flags | libc::O_CLOEXEC) })
}

/// The descriptor that a call has just returned, or the `errno` of its failure.
pub(crate) fn owned(descriptor: c_int) -> Result<OwnedFd, c_int> {
    if descriptor < 0 {
        return Err(errno::get());
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `ioctl` of the kernel.
pub(crate) fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    match real::ioctl() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(descriptor, request, argument) },
        None => real::missing(),
    }
}

/// `fstatat` of the kernel; libc may have the function under another name.
/// Reads where a link leads, and returns how long that is. `None` for what is no link, or is longer than the buffer.
pub(crate) fn read_link(path: *const c_char, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the path is a C string of the program, or NULL, which the kernel refuses; the buffer is as long as said.
    let len = unsafe {
        libc::syscall(
            libc::SYS_readlinkat,
            libc::AT_FDCWD,
            path,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(len).ok().filter(|len| *len < buffer.len())
}

pub(crate) fn fstatat(
    directory: c_int,
    path: *const c_char,
    status: *mut libc::stat,
    flags: c_int,
) -> c_int {
    // SAFETY: the kernel checks the pointers; where this is built, its structure is libc's.
    unsafe { libc::syscall(libc::SYS_newfstatat, directory, path, status, flags) as c_int }
}

/// The status of an open file, with its real device numbers. None with `errno` set if it is none.
pub(crate) fn status_of_descriptor(descriptor: c_int) -> Option<libc::stat> {
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    let result = match real::fstat() {
        // SAFETY: the pointer is valid.
        Some(real) => unsafe { real(descriptor, &mut status) },
        None => fstatat(descriptor, c"".as_ptr(), &mut status, libc::AT_EMPTY_PATH),
    };
    (result == 0).then_some(status)
}

/// The status of a path, with its real device numbers. None with `errno` set if it names nothing.
pub(crate) fn status_of_path(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
) -> Option<libc::stat> {
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    (fstatat(directory, path, &mut status, flags) == 0).then_some(status)
}
