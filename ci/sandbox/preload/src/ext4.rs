//! What OpenVZ's ext4 can do and others cannot; and growing, which takes a privilege that root in a container lacks.

use crate::aside::{self, Aside};
use crate::daemon::{self, Beside, NotCancelled, Wait};
use crate::errno::{self, fail};
use crate::{balloon, kernel, libploop, memory, real, settings, stat};
use libc::{c_int, c_ulong, c_void, pid_t};
use ploop_sandbox_wire::{Request, call};
use std::cell::Cell;

/// Opens the balloon of the file system that a directory is the root of: `_IO('f', 42)`.
pub(crate) const OPEN_BALLOON: u32 = 0x662a;
/// Reserves blocks: `_IOW('f', 44, __u64)`. To other ext4s the same number sets the file system's UUID.
pub(crate) const SET_RSV_BLOCKS: u32 = 0x4008_662c;
/// Grows the file system: `_IOW('f', 16, __u64)`.
pub(crate) const RESIZE_FS: u32 = 0x4008_6610;

thread_local! {
    /// The balloon that this thread has open, or −1. Nothing is done when a thread ends, so that no destructor is needed.
    static OPENED: Cell<c_int> = const { Cell::new(-1) };
}

/// The result as of an ioctl; None: it is the kernel's call.
pub(crate) fn open_balloon(descriptor: c_int) -> Option<Result<c_int, c_int>> {
    if !libploop::is_used() {
        return None;
    }
    let status = kernel::status_of_descriptor(descriptor)?;
    if status.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return None;
    }
    if balloon::inode(status.st_dev).is_none() {
        return Some(Err(libc::ENOENT));
    }
    let openat = real::openat()?;
    // Not for the programs that are started meanwhile: resize2fs would hold the file system that has to be unmounted.
    // SAFETY: a C string; no file is made, so no mode is needed.
    let balloon = unsafe {
        openat(
            descriptor,
            balloon::NAME.as_ptr(),
            libc::O_RDWR | libc::O_CLOEXEC,
        )
    };
    if balloon < 0 {
        return Some(Err(errno::get()));
    }
    // A thread that is ending may have none.
    let _ = OPENED.try_with(|opened| opened.set(balloon));
    Some(Ok(balloon))
}

/// Never the kernel's in a process that uses libploop, for it would change the UUID. libploop runs tune2fs instead.
pub(crate) fn set_reserved_blocks() -> Option<Result<c_int, c_int>> {
    libploop::is_used().then_some(Err(libc::ENOTTY))
}

/// The kernel grows the file system if it lets this process; if not, and it is one of the sandbox's, the daemon does.
pub(crate) fn resize(descriptor: c_int, argument: *mut c_void) -> c_int {
    let before = errno::get();
    let result = kernel::ioctl(descriptor, c_ulong::from(RESIZE_FS), argument);
    if result == 0 || errno::get() != libc::EPERM {
        return result;
    }
    let grown = {
        let _whole = NotCancelled::new();
        grow(descriptor, argument)
    };
    match grown {
        Some(Ok(result)) if result >= 0 => {
            errno::set(before);
            result
        }
        Some(Ok(result)) => fail(result.saturating_neg()),
        Some(Err(errno)) => fail(errno),
        None => fail(libc::EPERM),
    }
}

/// None: the file system is not the sandbox's.
fn grow(descriptor: c_int, argument: *mut c_void) -> Option<Result<c_int, c_int>> {
    let device = kernel::status_of_descriptor(descriptor)?.st_dev;
    if !stat::may_be_ours(device) {
        return None;
    }
    let node = stat::node(&daemon::aliases()?, device)?;
    let address = argument.expose_provenance() as u64;
    let Some(blocks) = memory::read(address, size_of::<u64>()) else {
        return Some(Err(libc::EFAULT));
    };
    let path = aside::path(descriptor)?;
    let request = Request {
        call: call::GROW_FILE_SYSTEM,
        node,
        argument: 0,
        payload: blocks,
    };
    // The daemon unmounts the file system, which an open descriptor forbids: it gets the last one.
    let (aside, held) = match Aside::step(descriptor) {
        Ok(stepped) => stepped,
        Err(errno) => return Some(Err(errno)),
    };
    let reply = daemon::ask(&request, Beside::LastOf(held), Wait::Answer);
    aside.back(&path);
    Some(reply.map(|reply| reply.result))
}

/// A balloon that is closed is this thread's no more: another thread may get the number, for its own balloon. libploop
/// closes a balloon in the thread that opened it.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn close(descriptor: c_int) -> c_int {
    if descriptor >= 0 && OPENED.try_with(Cell::get) == Ok(descriptor) {
        // Before the number is free.
        let _ = OPENED.try_with(|opened| opened.set(-1));
    }
    match real::close() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(descriptor) },
        // SAFETY: no pointers.
        None => unsafe { libc::syscall(libc::SYS_close, descriptor) as c_int },
    }
}

/// libploop holds the balloon open while it waits for resize2fs. Where the file system has to be unmounted for that, the
/// balloon steps aside for as long as the thread waits for a child.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
    let wait = || match real::waitpid() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(pid, status, options) },
        None => real::missing(),
    };
    if settings::settings().is_none()
        || options & libc::WNOHANG != 0
        || OPENED.try_with(Cell::get).unwrap_or(-1) < 0
        || may_grow()
    {
        return wait();
    }
    let _whole = NotCancelled::new();
    let aside = errno::kept(balloon_aside);
    let result = wait();
    errno::kept(|| {
        if let Some((aside, path)) = aside {
            let balloon = aside.descriptor();
            aside.back(&path);
            // As libploop had it. Nobody else who uses libploop can have taken it: the image is locked.
            // SAFETY: no pointers.
            unsafe { libc::flock(balloon, libc::LOCK_EX | libc::LOCK_NB) };
        }
    });
    result
}

/// The thread's balloon steps aside, if the descriptor is still one.
fn balloon_aside() -> Option<(Aside, std::ffi::CString)> {
    let balloon = OPENED.try_with(Cell::get).ok()?;
    let path =
        aside::path(balloon).filter(|path| path.to_bytes().ends_with(balloon::NAME.to_bytes()));
    let Some(path) = path else {
        // Replaced with `dup2`, say.
        let _ = OPENED.try_with(|opened| opened.set(-1));
        return None;
    };
    let (aside, _closed_here) = Aside::step(balloon).ok()?;
    Some((aside, path))
}

/// Does the kernel let this process grow a mounted ext4?
fn may_grow() -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_SYS_RESOURCE: u32 = 24;
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    errno::kept(|| {
        // SAFETY: version 3 fills two such structures.
        let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
        result == 0 && data[0].effective & 1 << CAP_SYS_RESOURCE != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_libploop_is_left_alone() {
        assert!(open_balloon(0).is_none());
        assert!(set_reserved_blocks().is_none());
        // A number that does not go to the daemon fails as it always does.
        assert_eq!(resize(-1, std::ptr::null_mut()), -1);
        assert_eq!(errno::get(), libc::EBADF);
    }

    #[test]
    fn children_are_waited_for() {
        may_grow();
        let status = std::process::Command::new("true").status().unwrap();
        assert!(status.success());
        // SAFETY: a null status is allowed.
        let child = unsafe { waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        assert_eq!(child, -1);
    }

    #[test]
    fn the_nodes_of_other_file_systems_are_not_asked_for() {
        assert!(grow(0, std::ptr::null_mut()).is_none());
    }
}
