//! Functions of libc that take a path: `open`, `fopen`, `access`, `readlink`, `mknod`, `chmod` and their variants.

use crate::daemon::{self, SentDescriptor, Wait};
use crate::errno::{self, fail};
use crate::paths::{self, redirected};
use crate::{attached, balloon, libploop, mounts, real, settings};
use libc::{DIR, FILE, c_char, c_int, dev_t, mode_t, size_t, ssize_t};
use ploop_sandbox_wire::{MAJOR, Node, Request, call};

/// The flags to open with. A process that uses libploop opens ploop's devices close-on-exec: a program that it starts
/// is no new opener to the driver, but would keep the loop device busy.
fn flags(path: *const c_char, flags: c_int) -> c_int {
    if paths::starts_with(path, b"/dev/ploop")
        && settings::settings().is_some()
        && paths::node(paths::bytes(path)).is_some()
        && libploop::is_used()
    {
        flags | libc::O_CLOEXEC
    } else {
        flags
    }
}

/// The directory that a path is relative to.
macro_rules! start {
    () => {
        libc::AT_FDCWD
    };
    ($directory:ident) => {
        $directory
    };
}

/// Tells the daemon that a device was opened, because the driver looks for partitions then.
fn note_open(path: *const c_char) {
    if !paths::starts_with(path, b"/dev/ploop") || settings::settings().is_none() {
        return;
    }
    if let Some(node @ Node::Whole(_)) = paths::node(paths::bytes(path)) {
        let request = Request::new(call::OPENED, node, Vec::new());
        // Where that fails, the program sees no partition.
        let _ = errno::preserve_errno(|| daemon::ask(&request, SentDescriptor::None, Wait::Reply));
    }
}

/// The variants of `open`, with and without a mode.
macro_rules! open {
    ($($name:ident $([$directory:ident])? (path, flags $(, $mode:ident)?);)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(
                $($directory: c_int,)?
                path: *const c_char,
                flags: c_int
                $(, $mode: mode_t)?
            ) -> c_int {
                if let Some(descriptor) = mounts::opened(path, flags) {
                    return descriptor;
                }
                if let Some(errno) = attached::opening(start!($($directory)?), path, flags) {
                    return fail(errno);
                }
                let flags = self::flags(path, flags);
                let descriptor = redirected(path, |path| match real::$name() {
                    // SAFETY: called as the program calls it, the path aside, which is a C string too.
                    Some(real) => unsafe { real($($directory,)? path, flags $(, $mode)?) },
                    None => real::missing(),
                });
                if descriptor >= 0 && flags & libc::O_PATH == 0 {
                    note_open(path);
                }
                descriptor
            }
        )+
    };
}

open! {
    open(path, flags, mode);
    open64(path, flags, mode);
    __open_2(path, flags);
    __open64_2(path, flags);
    openat [directory] (path, flags, mode);
    openat64 [directory] (path, flags, mode);
    __openat_2 [directory] (path, flags);
    __openat64_2 [directory] (path, flags);
}

macro_rules! fopen {
    ($($name:ident)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(path: *const c_char, mode: *const c_char) -> *mut FILE {
                if let Some(file) = mounts::fopened(path, mode) {
                    return file;
                }
                if let Some(errno) = attached::opening_stream(path, mode) {
                    return fail(errno);
                }
                redirected(path, |path| match real::$name() {
                    // SAFETY: called as the program calls it, the path aside, which is a C string too.
                    Some(real) => unsafe { real(path, mode) },
                    None => real::missing(),
                })
            }
        )+
    };
}

fopen! { fopen fopen64 setmntent }

/// Functions that are called with the redirected path.
macro_rules! redirect {
    ($($name:ident $([$before:ident: $before_type:ty])? (path $(, $argument:ident: $type:ty)*) -> $result:ty;)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(
                $($before: $before_type,)?
                path: *const c_char
                $(, $argument: $type)*
            ) -> $result {
                if balloon::hides(start!($($before)?), path) {
                    return fail(libc::EPERM);
                }
                redirected(path, |path| match real::$name() {
                    // SAFETY: called as the program calls it, the path aside, which is a C string too.
                    Some(real) => unsafe { real($($before,)? path $(, $argument)*) },
                    None => real::missing(),
                })
            }
        )+
    };
}

redirect! {
    opendir(path) -> *mut DIR;
    access(path, mode: c_int) -> c_int;
    faccessat [directory: c_int] (path, mode: c_int, flags: c_int) -> c_int;
    readlink(path, buffer: *mut c_char, len: size_t) -> ssize_t;
    __readlink_chk(path, buffer: *mut c_char, len: size_t, size: size_t) -> ssize_t;
    readlinkat [directory: c_int] (path, buffer: *mut c_char, len: size_t) -> ssize_t;
    __readlinkat_chk [directory: c_int] (path, buffer: *mut c_char, len: size_t, size: size_t) -> ssize_t;
}

/// Whether this is a node of the driver. The daemon makes and removes those.
fn is_the_daemons(path: *const c_char, mode: mode_t, device: dev_t) -> bool {
    settings::settings().is_some()
        && ((mode & libc::S_IFMT == libc::S_IFBLK && libc::major(device) == MAJOR)
            || paths::node(paths::bytes(path)).is_some())
}

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mknod(path: *const c_char, mode: mode_t, device: dev_t) -> c_int {
    if is_the_daemons(path, mode, device) {
        return 0;
    }
    match real::mknod() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(path, mode, device) },
        // SAFETY: as libc's own, and the same system call.
        None => unsafe { mknodat(libc::AT_FDCWD, path, mode, device) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mknodat(
    directory: c_int,
    path: *const c_char,
    mode: mode_t,
    device: dev_t,
) -> c_int {
    if is_the_daemons(path, mode, device) {
        return 0;
    }
    match real::mknodat() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(directory, path, mode, device) },
        // SAFETY: an older libc has this under the next function's name only; the kernel checks the path.
        None => unsafe { libc::syscall(libc::SYS_mknodat, directory, path, mode, device) as c_int },
    }
}

/// `mknod` of programs built with an older libc.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __xmknod(
    _version: c_int,
    path: *const c_char,
    mode: mode_t,
    device: *const dev_t,
) -> c_int {
    if device.is_null() {
        return fail(libc::EFAULT);
    }
    // SAFETY: called as the program calls it; the number is behind a pointer that is not null.
    unsafe { mknod(path, mode, *device) }
}

/// `mknodat` of programs built with an older libc.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __xmknodat(
    _version: c_int,
    directory: c_int,
    path: *const c_char,
    mode: mode_t,
    device: *const dev_t,
) -> c_int {
    if device.is_null() {
        return fail(libc::EFAULT);
    }
    // SAFETY: called as the program calls it; the number is behind a pointer that is not null.
    unsafe { mknodat(directory, path, mode, *device) }
}

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn chmod(path: *const c_char, mode: mode_t) -> c_int {
    if balloon::hides(libc::AT_FDCWD, path) {
        return fail(libc::EPERM);
    }
    let before = errno::get();
    let result = match real::chmod() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(path, mode) },
        None => real::missing(),
    };
    // The node of a partition, which `mknod` above did not make.
    if result < 0
        && errno::get() == libc::ENOENT
        && settings::settings().is_some()
        && paths::node(paths::bytes(path)).is_some()
    {
        errno::set(before);
        return 0;
    }
    result
}
