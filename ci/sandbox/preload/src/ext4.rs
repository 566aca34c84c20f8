//! The ioctls that only OpenVZ's ext4 has (`EXT4_IOC_OPEN_BALLOON`, `EXT4_IOC_SET_RSV_BLOCKS`), and growth
//! (`EXT4_IOC_RESIZE_FS`) where CAP_SYS_RESOURCE is missing, as for root in a container.

use crate::daemon::{self, CancellationDisabled, SentDescriptor, Wait};
use crate::errno::{self, fail};
use crate::released::{self, ReleasedDescriptor};
use crate::{balloon, kernel, libploop, memory, real, settings, stat};
use libc::{c_int, c_ulong, c_void, pid_t};
use ploop_sandbox_wire::{Request, call};
use std::cell::Cell;

/// `EXT4_IOC_OPEN_BALLOON`, `_IO('f', 42)`: opens the balloon of the file system; called on its root directory.
pub(crate) const OPEN_BALLOON: u32 = 0x662a;
/// `EXT4_IOC_SET_RSV_BLOCKS`, `_IOW('f', 44, __u64)`: reserves blocks. In other kernels the same number sets the UUID
/// of the file system.
pub(crate) const SET_RSV_BLOCKS: u32 = 0x4008_662c;
/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)`: enlarges the file system.
pub(crate) const RESIZE_FS: u32 = 0x4008_6610;

thread_local! {
    /// The balloon that this thread has open, or −1. A number needs no destructor when the thread ends.
    static BALLOON: Cell<c_int> = const { Cell::new(-1) };
}

/// `EXT4_IOC_OPEN_BALLOON`. None: the kernel has to answer.
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
    // Close-on-exec, because resize2fs would keep the file system busy that has to be unmounted.
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
    // Fails in a thread that is ending.
    let _ = BALLOON.try_with(|number| number.set(balloon));
    Some(Ok(balloon))
}

/// `EXT4_IOC_SET_RSV_BLOCKS`: ENOTTY in a process that uses libploop, because the kernel would change the UUID.
/// libploop runs tune2fs then.
pub(crate) fn set_reserved_blocks() -> Option<Result<c_int, c_int>> {
    libploop::is_used().then_some(Err(libc::ENOTTY))
}

/// `EXT4_IOC_RESIZE_FS`: the kernel's, or, where that gives EPERM for a file system of the sandbox, the daemon's.
pub(crate) fn resize(descriptor: c_int, argument: *mut c_void) -> c_int {
    let before = errno::get();
    let result = kernel::ioctl(descriptor, c_ulong::from(RESIZE_FS), argument);
    if result == 0 || errno::get() != libc::EPERM {
        return result;
    }
    let grown = {
        let _guard = CancellationDisabled::new();
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

/// Has the daemon enlarge the file system. None: it is not one of the sandbox.
fn grow(descriptor: c_int, argument: *mut c_void) -> Option<Result<c_int, c_int>> {
    let device = kernel::status_of_descriptor(descriptor)?.st_dev;
    if !stat::may_be_sandbox_device(device) {
        return None;
    }
    let node = stat::node(&daemon::aliases()?, device)?;
    let address = argument.expose_provenance() as u64;
    let Some(blocks) = memory::read(address, size_of::<u64>()) else {
        return Some(Err(libc::EFAULT));
    };
    let path = released::path(descriptor)?;
    let request = Request::new(call::GROW_FILE_SYSTEM, node, blocks);
    // The daemon unmounts the file system, so no descriptor may keep it busy.
    let (released, file) = match ReleasedDescriptor::release(descriptor) {
        Ok(released) => released,
        Err(errno) => return Some(Err(errno)),
    };
    let reply = daemon::ask(&request, SentDescriptor::Closed(file), Wait::Reply);
    released.reopen(&path);
    Some(reply.map(|reply| reply.result))
}

/// `close` forgets the thread's balloon, because another thread may get the number. libploop closes a balloon in the
/// thread that opened it.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn close(descriptor: c_int) -> c_int {
    if descriptor >= 0 && BALLOON.try_with(Cell::get) == Ok(descriptor) {
        // Before the number can be used again.
        let _ = BALLOON.try_with(|number| number.set(-1));
    }
    match real::close() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(descriptor) },
        // SAFETY: no pointers.
        None => unsafe { libc::syscall(libc::SYS_close, descriptor) as c_int },
    }
}

/// libploop has the balloon open while it waits for resize2fs. Where the daemon has to unmount the file system for
/// that, `waitpid` releases the balloon while it waits.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
    let wait = || match real::waitpid() {
        // SAFETY: called as the program calls it.
        Some(real) => unsafe { real(pid, status, options) },
        None => real::missing(),
    };
    if settings::settings().is_none()
        || options & libc::WNOHANG != 0
        || BALLOON.try_with(Cell::get).unwrap_or(-1) < 0
        || may_grow()
    {
        return wait();
    }
    let _guard = CancellationDisabled::new();
    let released = errno::preserve_errno(release_balloon);
    let result = wait();
    errno::preserve_errno(|| {
        if let Some((released, path)) = released {
            let balloon = released.descriptor();
            released.reopen(&path);
            // libploop had locked it. No other user of libploop can have locked it meanwhile: the image is locked.
            // SAFETY: no pointers.
            unsafe { libc::flock(balloon, libc::LOCK_EX | libc::LOCK_NB) };
        }
    });
    result
}

/// Releases the thread's balloon, if the descriptor still is one.
fn release_balloon() -> Option<(ReleasedDescriptor, std::ffi::CString)> {
    let balloon = BALLOON.try_with(Cell::get).ok()?;
    let path =
        released::path(balloon).filter(|path| path.to_bytes().ends_with(balloon::NAME.to_bytes()));
    let Some(path) = path else {
        // The program has replaced it, with `dup2` for example.
        let _ = BALLOON.try_with(|number| number.set(-1));
        return None;
    };
    let (released, _closed_here) = ReleasedDescriptor::release(balloon).ok()?;
    Some((released, path))
}

/// Whether the kernel lets this process enlarge a mounted ext4: it has CAP_SYS_RESOURCE.
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
    errno::preserve_errno(|| {
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
    fn other_file_systems_are_left_to_the_kernel() {
        assert!(grow(0, std::ptr::null_mut()).is_none());
    }
}
