//! Protects files that are attached to devices, as the driver does, which marks them like swap files: the last name of
//! one cannot be removed or renamed (EPERM), and the file cannot be shortened, and no space allocated in it (ETXTBSY).
//! It may be made longer, written to, linked, and its mode changed.
//!
//! The daemon lists these files in a file that every program maps. So a call for any other file costs a `stat` at most,
//! and nothing where no file is attached.

use crate::errno::{fail, preserve_errno};
use crate::{balloon, kernel, paths, real, settings};
use libc::{c_char, c_int, c_uint, mode_t, off_t};
use ploop_sandbox_wire::ATTACHED;
use ploop_sandbox_wire::attached::{LEN, SLOTS};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A slot of the list. The head of the list has the size of a slot.
#[repr(C)]
struct Slot {
    device: AtomicU64,
    inode: AtomicU64,
}

const _: () = assert!(LEN == (SLOTS + 1) * size_of::<Slot>());

/// The list, or null.
static LIST: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

/// Maps the list, if there is one. The mapping stays until the program ends; a forked child has it, too.
pub(crate) fn map() {
    let Some(settings) = settings::settings() else {
        return;
    };
    let mut path = [0u8; 512];
    let socket = settings.socket.bytes();
    let directory = socket
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    if !paths::join(
        &mut path,
        socket.get(..directory),
        Some(ATTACHED.as_bytes()),
    ) {
        return;
    }
    preserve_errno(|| {
        let Ok(file) = kernel::open(path.as_ptr().cast(), libc::O_RDONLY) else {
            return;
        };
        // SAFETY: the mapping is a new one, of a file that is as long.
        let list = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if list != libc::MAP_FAILED {
            LIST.store(list.cast(), Ordering::Release);
        }
    });
}

/// The slots that were ever used.
fn slots() -> &'static [Slot] {
    let list = LIST.load(Ordering::Acquire);
    if list.is_null() {
        return &[];
    }
    // SAFETY: the mapping has `SLOTS` slots and the head, is never unmapped, and consists of atomic numbers. Only the
    // daemon writes to the file, and never makes it shorter.
    unsafe {
        let used = (*list).device.load(Ordering::Acquire) as usize;
        std::slice::from_raw_parts(list.add(1), used.min(SLOTS))
    }
}

fn is_attached(status: &libc::stat) -> bool {
    status.st_mode & libc::S_IFMT == libc::S_IFREG
        && slots().iter().any(|slot| {
            slot.inode.load(Ordering::Acquire) == status.st_ino
                && slot.device.load(Ordering::Relaxed) == status.st_dev
        })
}

/// Whether this is the last name of a file that is attached.
fn is_held(status: &libc::stat) -> bool {
    status.st_nlink == 1 && is_attached(status)
}

/// The `errno` with which the removal of a path fails, if it does.
fn removal(directory: c_int, path: *const c_char) -> Option<c_int> {
    if balloon::hides(directory, path) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    preserve_errno(|| kernel::status_of_path(directory, path, libc::AT_SYMLINK_NOFOLLOW))
        .is_some_and(|status| is_held(&status))
        .then_some(libc::EPERM)
}

/// The `errno` with which renaming fails, if it does.
fn renaming(from: (c_int, *const c_char), to: (c_int, *const c_char)) -> Option<c_int> {
    if balloon::hides(from.0, from.1) || balloon::hides(to.0, to.1) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    preserve_errno(|| {
        let status =
            |(directory, path)| kernel::status_of_path(directory, path, libc::AT_SYMLINK_NOFOLLOW);
        let (from, to) = (status(from)?, status(to));
        // The kernel does nothing with two names of one file.
        let same = to.is_some_and(|to| (to.st_dev, to.st_ino) == (from.st_dev, from.st_ino));
        let held = is_held(&from) || to.is_some_and(|to| is_held(&to));
        (held && !same).then_some(libc::EPERM)
    })
}

/// The `errno` with which `open` with these flags fails, if it does.
pub(crate) fn opening(directory: c_int, path: *const c_char, flags: c_int) -> Option<c_int> {
    const NEW: c_int = libc::O_CREAT | libc::O_EXCL;
    if balloon::hides(directory, path) {
        return Some(libc::EPERM);
    }
    if flags & libc::O_TRUNC == 0 || flags & NEW == NEW || slots().is_empty() {
        return None;
    }
    let follow = if flags & libc::O_NOFOLLOW == 0 {
        0
    } else {
        libc::AT_SYMLINK_NOFOLLOW
    };
    preserve_errno(|| kernel::status_of_path(directory, path, follow))
        .is_some_and(|status| is_attached(&status))
        .then_some(libc::ETXTBSY)
}

/// The `errno` with which `fopen` with this mode fails, if it does.
pub(crate) fn opening_stream(path: *const c_char, mode: *const c_char) -> Option<c_int> {
    let mode = paths::bytes(mode);
    let flags = match mode.first() {
        Some(b'w') if mode.contains(&b'x') => libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC,
        Some(b'w') => libc::O_CREAT | libc::O_TRUNC,
        _ => 0,
    };
    opening(libc::AT_FDCWD, path, flags)
}

/// The `errno` with which `truncate` fails, if it does.
fn truncation(path: *const c_char, len: off_t) -> Option<c_int> {
    if balloon::hides(libc::AT_FDCWD, path) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    preserve_errno(|| kernel::status_of_path(libc::AT_FDCWD, path, 0))
        .and_then(|status| shortening(&status, len))
}

/// The `errno` for giving a file this length, if that fails.
fn shortening(status: &libc::stat, len: off_t) -> Option<c_int> {
    (len >= 0 && len <= status.st_size && is_attached(status)).then_some(libc::ETXTBSY)
}

/// The status of an open file that is attached and open for writing. For others the kernel's answer is right.
fn attached_writable(descriptor: c_int) -> Option<libc::stat> {
    if slots().is_empty() {
        return None;
    }
    preserve_errno(|| {
        // SAFETY: no pointers; any number may be asked about.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
        if flags < 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
            return None;
        }
        kernel::status_of_descriptor(descriptor).filter(is_attached)
    })
}

/// Functions of libc that fail if `$errno` is one.
macro_rules! refuse {
    ($($name:ident($($argument:ident: $type:ty),+) = $errno:expr;)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name($($argument: $type),+) -> c_int {
                if let Some(errno) = $errno {
                    return fail(errno);
                }
                match real::$name() {
                    // SAFETY: called as the program calls it.
                    Some(real) => unsafe { real($($argument),+) },
                    None => real::missing(),
                }
            }
        )+
    };
}

refuse! {
    unlink(path: *const c_char) = removal(libc::AT_FDCWD, path);
    unlinkat(directory: c_int, path: *const c_char, flags: c_int) = removal(directory, path);
    remove(path: *const c_char) = removal(libc::AT_FDCWD, path);
    rename(old: *const c_char, new: *const c_char) = renaming((libc::AT_FDCWD, old), (libc::AT_FDCWD, new));
    renameat(from: c_int, old: *const c_char, to: c_int, new: *const c_char) = renaming((from, old), (to, new));
    renameat2(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_uint)
        = renaming((from, old), (to, new));
    truncate(path: *const c_char, len: off_t) = truncation(path, len);
    truncate64(path: *const c_char, len: off_t) = truncation(path, len);
    ftruncate(descriptor: c_int, len: off_t) = attached_writable(descriptor).and_then(|status| shortening(&status, len));
    ftruncate64(descriptor: c_int, len: off_t) = attached_writable(descriptor).and_then(|status| shortening(&status, len));
    fallocate(descriptor: c_int, mode: c_int, offset: off_t, len: off_t)
        = attached_writable(descriptor).map(|_| libc::ETXTBSY);
    fallocate64(descriptor: c_int, mode: c_int, offset: off_t, len: off_t)
        = attached_writable(descriptor).map(|_| libc::ETXTBSY);
    creat(path: *const c_char, mode: mode_t) = opening(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_TRUNC);
    creat64(path: *const c_char, mode: mode_t) = opening(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_TRUNC);
}

/// Functions of libc that return the error and leave `errno` alone.
macro_rules! allocate {
    ($($name:ident)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(descriptor: c_int, offset: off_t, len: off_t) -> c_int {
                if attached_writable(descriptor).is_some() {
                    return libc::ETXTBSY;
                }
                match real::$name() {
                    // SAFETY: called as the program calls it.
                    Some(real) => unsafe { real(descriptor, offset, len) },
                    None => libc::ENOSYS,
                }
            }
        )+
    };
}

allocate! { posix_fallocate posix_fallocate64 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_sandbox_nothing_is_attached() {
        assert!(slots().is_empty());
        let path = c"/proc/self/maps".as_ptr();
        assert_eq!(removal(libc::AT_FDCWD, path), None);
        assert_eq!(opening(libc::AT_FDCWD, path, libc::O_TRUNC), None);
        assert_eq!(truncation(path, 0), None);
        assert!(attached_writable(-1).is_none());
    }
}
