//! The file descriptor table of the process in which libploop runs: what is open in it, and how a descriptor that
//! libploop opened gets out ([`FdChannel`]).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The first number above the standard streams.
const FIRST: RawFd = libc::STDERR_FILENO + 1;

/// Gives the calling thread its own copy of the table.
pub(super) fn unshare() -> io::Result<()> {
    // SAFETY: no memory is concerned.
    match unsafe { libc::unshare(libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In a table of its own: empties standard input, puts `outputs` in the place of standard output and standard error, and
/// closes all but `keep`. Copies of the program's other descriptors would keep devices busy, locks held and pipes open
/// while C runs.
pub(super) fn replace(outputs: [RawFd; 2], keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: the table belongs to this process or thread alone, and no owner of a descriptor in it runs here; the
    // path is terminated.
    unsafe {
        let empty = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if empty == -1
            || (empty != 0 && libc::dup2(empty, 0) == -1)
            || (empty == 0 && libc::fcntl(0, libc::F_SETFD, 0) == -1)
            || libc::dup2(outputs[0], 1) == -1
            || libc::dup2(outputs[1], 2) == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    close_all_but(keep)
}

fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= FIRST).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = FIRST;
    for kept in keep.iter().copied().chain([RawFd::MAX]) {
        if kept > from && !close_range(from, kept - 1) {
            return close_listed(&keep);
        }
        from = kept.saturating_add(1);
    }
    Ok(())
}

/// Since Linux 5.9.
fn close_range(first: RawFd, last: RawFd) -> bool {
    // SAFETY: as in `replace`. Older versions of libc have no function for this system call.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

fn close_listed(keep: &[RawFd]) -> io::Result<()> {
    for number in own_numbers()? {
        if number >= FIRST && !keep.contains(&number) {
            // SAFETY: as in `replace`; closing one that is closed already (that of the listing) is only an error.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

fn own_numbers() -> io::Result<Vec<RawFd>> {
    match numbers_in(Path::new("/proc/thread-self/fd")) {
        // Before Linux 3.17 there is no such link. The directory by number is missing where `/proc` is that of an
        // outer PID namespace.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            numbers_in(&by_number()).or_else(|_| numbers_in(Path::new("/proc/self/fd")))
        }
        numbers => numbers,
    }
}

fn by_number() -> PathBuf {
    // SAFETY: `gettid` has no precondition and cannot fail.
    let number = unsafe { libc::gettid() };
    PathBuf::from(format!("/proc/self/task/{number}/fd"))
}

fn numbers_in(directory: &Path) -> io::Result<Vec<RawFd>> {
    std::fs::read_dir(directory)?
        .map(|entry| {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            number.ok_or_else(|| io::ErrorKind::InvalidData.into())
        })
        .collect()
}

/// The same file under a number above those of the standard streams.
pub(super) fn above_streams(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST)?)
}

/// A socket pair by which a file descriptor gets from the process of C to the program (`SCM_RIGHTS`).
pub(super) struct FdChannel {
    inner: OwnedFd,
    outer: UnixStream,
}

impl FdChannel {
    pub(super) fn new() -> io::Result<FdChannel> {
        let (inner, outer) = UnixStream::pair()?;
        let inner = above_streams(std::os::fd::AsFd::as_fd(&inner))?;
        Ok(FdChannel { inner, outer })
    }

    /// The number that the process of C has to keep open.
    pub(super) fn number(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.inner)
    }

    pub(super) fn send(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&descriptors));
        let byte = [io::IoSlice::new(&[0])];
        sendmsg(&self.inner, &byte, &mut message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives what was sent, and does not wait.
    pub(super) fn receive(&self) -> io::Result<OwnedFd> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(
            &self.outer,
            &mut [io::IoSliceMut::new(&mut byte)],
            &mut message,
            flags,
        )?;
        for received in message.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = received {
                if let Some(descriptor) = descriptors.next() {
                    return Ok(descriptor);
                }
            }
        }
        Err(Errno::NODATA.into())
    }
}
