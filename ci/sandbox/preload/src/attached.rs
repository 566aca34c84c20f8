//! Files that are attached to devices. The driver marks them as a swap file is marked: the last name of one is neither
//! removed nor renamed (EPERM), and it is neither shortened nor given space (ETXTBSY). To make it longer, to write to
//! it, to link it and to change its mode are allowed.
//!
//! Which files those are, the daemon writes to a file that every program maps, so that a call about any other file
//! costs a `stat` at most, and where nothing is attached not even that.

use crate::errno::{fail, kept};
use crate::{balloon, kernel, paths, real, settings};
use libc::{c_char, c_int, c_uint, mode_t, off_t};
use ploop_sandbox_wire::ATTACHED;
use ploop_sandbox_wire::attached::{LEN, SLOTS};
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A slot of the list; what stands before the first is of the same size.
#[repr(C)]
struct Slot {
    device: AtomicU64,
    inode: AtomicU64,
}

const _: () = assert!(LEN == (SLOTS + 1) * size_of::<Slot>());

/// The list, or null.
static LIST: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

/// Maps the list, if there is one. The mapping stays until the program ends; a child of a fork has it, too.
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
    let name = socket.get(..directory).unwrap_or_default();
    // One byte stays 0.
    if name.len() + ATTACHED.len() >= path.len() {
        return;
    }
    for (to, from) in path.iter_mut().zip(name.iter().chain(ATTACHED.as_bytes())) {
        *to = *from;
    }
    let (Ok(path), Some(open)) = (CStr::from_bytes_until_nul(&path), real::open()) else {
        return;
    };
    kept(|| {
        // SAFETY: a C string; no file is made, so no mode is needed. The mapping is a new one, of a file that is as
        // long; the descriptor is this function's own.
        let list = unsafe {
            let file = open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if file < 0 {
                return;
            }
            let list = libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file,
                0,
            );
            libc::close(file);
            list
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
    // SAFETY: the mapping is `SLOTS` slots and one more long, is never taken away, and is made of atomic numbers. Only
    // the daemon writes to it, which never makes it shorter.
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

/// The `errno` with which removing what this path names fails.
fn removal(directory: c_int, path: *const c_char) -> Option<c_int> {
    if balloon::hides(directory, path) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    kept(|| kernel::status_of_path(directory, path, libc::AT_SYMLINK_NOFOLLOW))
        .is_some_and(|status| is_held(&status))
        .then_some(libc::EPERM)
}

/// The same for a renaming.
fn renaming(from: (c_int, *const c_char), to: (c_int, *const c_char)) -> Option<c_int> {
    if balloon::hides(from.0, from.1) || balloon::hides(to.0, to.1) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    kept(|| {
        let status =
            |(directory, path)| kernel::status_of_path(directory, path, libc::AT_SYMLINK_NOFOLLOW);
        let (from, to) = (status(from)?, status(to));
        // Two names of one file: nothing is done.
        let same = to.is_some_and(|to| (to.st_dev, to.st_ino) == (from.st_dev, from.st_ino));
        let held = is_held(&from) || to.is_some_and(|to| is_held(&to));
        (held && !same).then_some(libc::EPERM)
    })
}

/// The same for opening a path with these flags.
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
    kept(|| kernel::status_of_path(directory, path, follow))
        .is_some_and(|status| is_attached(&status))
        .then_some(libc::ETXTBSY)
}

/// The same for opening with a mode as `fopen` knows it.
pub(crate) fn opening_stream(path: *const c_char, mode: *const c_char) -> Option<c_int> {
    let mode = paths::bytes(mode);
    let flags = match mode.first() {
        Some(b'w') if mode.contains(&b'x') => libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC,
        Some(b'w') => libc::O_CREAT | libc::O_TRUNC,
        _ => 0,
    };
    opening(libc::AT_FDCWD, path, flags)
}

/// The same for giving a path this length.
fn cutting(path: *const c_char, len: off_t) -> Option<c_int> {
    if balloon::hides(libc::AT_FDCWD, path) {
        return Some(libc::EPERM);
    }
    if slots().is_empty() {
        return None;
    }
    kept(|| kernel::status_of_path(libc::AT_FDCWD, path, 0))
        .and_then(|status| too_short(&status, len))
}

fn too_short(status: &libc::stat, len: off_t) -> Option<c_int> {
    (len >= 0 && len <= status.st_size && is_attached(status)).then_some(libc::ETXTBSY)
}

/// An open file that is attached, and that may be written to: without that, the kernel's own answer comes first.
fn writable(descriptor: c_int) -> Option<libc::stat> {
    if slots().is_empty() {
        return None;
    }
    kept(|| {
        // SAFETY: no pointers; any number may be asked about.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
        if flags < 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
            return None;
        }
        kernel::status_of_descriptor(descriptor).filter(is_attached)
    })
}

/// libc's functions, refused where `$errno` says so.
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
    truncate(path: *const c_char, len: off_t) = cutting(path, len);
    truncate64(path: *const c_char, len: off_t) = cutting(path, len);
    ftruncate(descriptor: c_int, len: off_t) = writable(descriptor).and_then(|status| too_short(&status, len));
    ftruncate64(descriptor: c_int, len: off_t) = writable(descriptor).and_then(|status| too_short(&status, len));
    fallocate(descriptor: c_int, mode: c_int, offset: off_t, len: off_t)
        = writable(descriptor).map(|_| libc::ETXTBSY);
    fallocate64(descriptor: c_int, mode: c_int, offset: off_t, len: off_t)
        = writable(descriptor).map(|_| libc::ETXTBSY);
    creat(path: *const c_char, mode: mode_t) = opening(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_TRUNC);
    creat64(path: *const c_char, mode: mode_t) = opening(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_TRUNC);
}

/// The functions that return the error and leave `errno` alone.
macro_rules! allocate {
    ($($name:ident)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(descriptor: c_int, offset: off_t, len: off_t) -> c_int {
                if writable(descriptor).is_some() {
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
        assert_eq!(cutting(path, 0), None);
        assert!(writable(-1).is_none());
    }
}
