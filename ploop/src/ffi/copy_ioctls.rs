//! Change tracking in the driver (`PLOOP_IOC_TRACK_*`), freezing of file systems (`FIFREEZE`), and a process that ends
//! both if this one is killed.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::ioctl::{Opcode, opcode};
use rustix::net::SendFlags;

use super::fd_table::above_streams;
use super::process::wait_for;
use super::signals::{self, SignalsBlocked};

/// `PLOOPCTLTYPE`.
const PLOOP: u8 = b'P';

const TRACK_INIT: Opcode = opcode::read::<Extent>(PLOOP, 6);
const TRACK_STOP: Opcode = opcode::none(PLOOP, 7);
const TRACK_ABORT: Opcode = opcode::none(PLOOP, 8);
const TRACK_SETPOS: Opcode = opcode::write::<u64>(PLOOP, 9);
const TRACK_READ: Opcode = opcode::read::<Extent>(PLOOP, 10);
const SYNC: Opcode = opcode::none(PLOOP, 11);
const FIFREEZE: Opcode = opcode::read_write::<c_int>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<c_int>(b'X', 120);

/// `struct ploop_track_extent`, in bytes of the file of the top delta.
#[repr(C)]
#[derive(Default)]
struct Extent {
    start: u64,
    end: u64,
}

/// A device whose driver notes the parts of the top delta's file that change. Dropping this ends that.
pub(crate) struct Tracking<'a> {
    device: &'a File,
    is_on: bool,
}

impl<'a> Tracking<'a> {
    /// Ends the tracking that a killed program has left. Returns also the length of the file that has data now. Nothing
    /// is noted before [`set_position`](Tracking::set_position).
    pub(crate) fn begin(device: &'a File) -> io::Result<(Tracking<'a>, u64)> {
        let mut extent = Extent::default();
        let mut begin = || request(device, TRACK_INIT, (&raw mut extent).cast());
        begin().or_else(|error| match error.raw_os_error() {
            // Where the driver is in something else, this does nothing.
            Some(libc::EBUSY) => abort(device).and_then(|()| begin()),
            _ => Err(error),
        })?;
        let tracking = Tracking {
            device,
            is_on: true,
        };
        Ok((tracking, extent.end))
    }

    /// Has the driver note the changes up to here. What lies behind is still to be read.
    pub(crate) fn set_position(&self, mut position: u64) -> io::Result<()> {
        request(self.device, TRACK_SETPOS, (&raw mut position).cast())
    }

    /// The next range that has changed since it was given out the last time; `None` if there is none now. May also be
    /// one behind the position.
    pub(crate) fn next_change(&self) -> io::Result<Option<Range<u64>>> {
        let mut extent = Extent::default();
        match request(self.device, TRACK_READ, (&raw mut extent).cast()) {
            Ok(()) => Ok(Some(extent.start..extent.end)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Brings to the disk what the driver has of the deltas in memory (`PLOOP_IOC_SYNC`).
    pub(crate) fn sync(&self) -> io::Result<()> {
        request(self.device, SYNC, std::ptr::null_mut())
    }

    /// Ends the tracking. Fails if there are changes that were not given out.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        request(self.device, TRACK_STOP, std::ptr::null_mut())?;
        self.is_on = false;
        Ok(())
    }
}

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        if self.is_on {
            // Should it fail, another operation has ended it.
            let _ = abort(self.device);
        }
    }
}

fn abort(device: &File) -> io::Result<()> {
    request(device, TRACK_ABORT, std::ptr::null_mut())
}

/// A file system that no writer gets at until this is dropped.
pub(crate) struct FrozenFileSystem<'a> {
    file: &'a File,
    cleanup: &'a CleanupProcess,
    is_frozen: bool,
}

impl<'a> FrozenFileSystem<'a> {
    /// Freezes the file system of an open file.
    pub(crate) fn freeze(
        file: &'a File,
        cleanup: &'a CleanupProcess,
    ) -> io::Result<FrozenFileSystem<'a>> {
        cleanup.tell(CleanupProcess::FROZEN)?;
        let mut frozen = FrozenFileSystem {
            file,
            cleanup,
            is_frozen: false,
        };
        request(file, FIFREEZE, std::ptr::null_mut())?;
        frozen.is_frozen = true;
        Ok(frozen)
    }

    /// Fails if another program has thawed it.
    pub(crate) fn thaw(mut self) -> io::Result<()> {
        self.is_frozen = false;
        request(self.file, FITHAW, std::ptr::null_mut())
    }
}

impl Drop for FrozenFileSystem<'_> {
    fn drop(&mut self) {
        if self.is_frozen {
            // Should it fail, another program has thawed it.
            let _ = request(self.file, FITHAW, std::ptr::null_mut());
        }
        // Should it fail, there is nobody left to be told.
        let _ = self.cleanup.tell(CleanupProcess::THAWED);
    }
}

fn request(file: &File, opcode: Opcode, argument: *mut libc::c_void) -> io::Result<()> {
    loop {
        // SAFETY: the argument is NULL where the request has none, and otherwise a value of the type that is part of
        // the opcode, which outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), opcode as _, argument) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A process that waits for the end of the thread that started it. If this process is killed, it thaws the file system
/// and ends the tracking: the kernel does neither. It has a session of its own, so that it survives what a terminal or a
/// shell kills.
pub(crate) struct CleanupProcess {
    process: libc::pid_t,
    channel: UnixStream,
}

impl CleanupProcess {
    const FROZEN: u8 = b'F';
    const THAWED: u8 = b'T';
    const DONE: u8 = b'D';

    /// `lock` stays locked until the process has cleaned up.
    pub(crate) fn start(
        device: &File,
        mount_point: &File,
        lock: BorrowedFd<'_>,
    ) -> io::Result<CleanupProcess> {
        let (channel, end) = UnixStream::pair()?;
        let files = [end.as_fd(), device.as_fd(), mount_point.as_fd(), lock];
        // With numbers that are not those to which the child moves them, but for the last one.
        let files: Vec<OwnedFd> = files
            .into_iter()
            .map(above_streams)
            .collect::<io::Result<_>>()?;
        let numbers: Vec<c_int> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = std::process::id() as libc::pid_t;
        let _blocked = SignalsBlocked::begin();
        // SAFETY: without flags, the system call is `fork` without a signal to the parent at the end. The child uses
        // memory that was there before and makes system calls only, and ends in `_exit`.
        let process =
            unsafe { libc::syscall(libc::SYS_clone, 0usize, 0usize, 0usize, 0usize, 0usize) };
        match process {
            -1 => Err(io::Error::last_os_error()),
            0 => clean_up_later(parent, &numbers),
            process => Ok(CleanupProcess {
                process: process as libc::pid_t,
                channel,
            }),
        }
    }

    fn tell(&self, what: u8) -> io::Result<()> {
        rustix::io::retry_on_intr(|| {
            rustix::net::send(&self.channel, &[what], SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }
}

impl Drop for CleanupProcess {
    /// Waits until the process has closed the device and the mount point, which it keeps busy.
    fn drop(&mut self) {
        // Should it fail, the process has ended.
        let _ = self.tell(CleanupProcess::DONE);
        wait_for(self.process);
    }
}

/// In the child: see [`CleanupProcess`]. All signals are blocked.
///
/// The end of the channel is not enough: a killed process keeps its files as long as one of its threads waits for the
/// file system that is frozen. So the kernel is asked to send a signal, too, when the thread that sends ends.
fn clean_up_later(parent: libc::pid_t, files: &[c_int]) -> ! {
    const CHANNEL: c_int = 0;
    const DEVICE: c_int = 1;
    const MOUNT_POINT: c_int = 2;
    const LOCK: c_int = 3;
    const PARENT_ENDED: c_int = libc::SIGUSR1;
    // SAFETY: system calls on numbers, and on memory of this function. No owner of a file descriptor runs here, and the
    // handler does nothing.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"ploop-cleanup".as_ptr());
        for (to, file) in (CHANNEL..).zip(files) {
            if libc::dup2(*file, to) == -1 {
                libc::_exit(1);
            }
        }
        close_from(LOCK + 1);
        signals::set_nothing(PARENT_ENDED);
        libc::prctl(libc::PR_SET_PDEATHSIG, PARENT_ENDED);
        let mut waiting: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut waiting);
        libc::sigdelset(&mut waiting, PARENT_ENDED);
        let (mut is_frozen, mut parent_has_ended) = (false, false);
        loop {
            let mut messages = [0u8; 16];
            let len = libc::recv(
                CHANNEL,
                messages.as_mut_ptr().cast(),
                messages.len(),
                libc::MSG_DONTWAIT,
            );
            for message in messages.iter().take(usize::try_from(len).unwrap_or(0)) {
                match *message {
                    CleanupProcess::FROZEN => is_frozen = true,
                    CleanupProcess::THAWED => is_frozen = false,
                    _ => libc::_exit(0),
                }
            }
            if len == 0 || parent_has_ended {
                break;
            }
            let mut channel = libc::pollfd {
                fd: CHANNEL,
                events: libc::POLLIN,
                revents: 0,
            };
            parent_has_ended = libc::getppid() != parent
                || libc::ppoll(&mut channel, 1, std::ptr::null(), &waiting) != 1;
        }
        if is_frozen {
            libc::ioctl(MOUNT_POINT, FITHAW as _, 0);
        }
        libc::ioctl(DEVICE, TRACK_ABORT as _, 0);
        libc::_exit(0)
    }
}

/// Closes all descriptors from this number on, without allocating memory.
///
/// # Safety
///
/// Nobody in this process uses them.
unsafe fn close_from(first: c_int) {
    // SAFETY: as the caller says; the limit outlives the call that fills it in.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) == 0 {
            return;
        }
        // Before Linux 5.9.
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let end = c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX);
        for number in first..end.min(1 << 20) {
            libc::close(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that a C compiler makes of `ploop_if.h` and `linux/fs.h`.
    #[test]
    fn requests_have_the_numbers_of_the_headers() {
        for (opcode, number) in [
            (TRACK_INIT, 0x8010_5006),
            (TRACK_STOP, 0x5007),
            (TRACK_ABORT, 0x5008),
            (TRACK_SETPOS, 0x4008_5009),
            (TRACK_READ, 0x8010_500a),
            (SYNC, 0x500b),
            (FIFREEZE, 0xc004_5877),
            (FITHAW, 0xc004_5878),
        ] {
            assert_eq!(opcode, number);
        }
    }

    fn start() -> CleanupProcess {
        let file = File::open("/dev/null").unwrap();
        CleanupProcess::start(&file, &file, file.as_fd()).unwrap()
    }

    fn has_file(process: libc::pid_t, file: BorrowedFd<'_>) -> bool {
        let link = |path: String| std::fs::read_link(path).ok();
        let file = link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let entries = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        entries.flatten().any(|entry| {
            link(entry.path().display().to_string()).is_some_and(|found| Some(found) == file)
        })
    }

    #[test]
    fn the_process_keeps_no_other_files_and_is_gone_at_the_end() {
        let (other, _end) = UnixStream::pair().unwrap();
        let cleanup = start();
        let process = cleanup.process;
        let name = format!("/proc/{process}/comm");
        while std::fs::read_to_string(&name).unwrap() != "ploop-cleanup\n" {
            std::thread::yield_now();
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while has_file(process, other.as_fd()) {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
        drop(cleanup);
        assert!(!std::path::Path::new(&name).exists());
        // SAFETY: no pointers but NULL.
        let waited = unsafe { libc::waitpid(process, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, -1);
    }

    /// A program that waits for any of its children does not see this one, nor a signal of its end.
    #[test]
    fn the_program_has_no_child_more() {
        let cleanup = start();
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(cleanup.process, &mut status, libc::WNOHANG) };
        assert_eq!(waited, -1);
        assert_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::ECHILD)
        );
    }
}
