//! A thread with file descriptors of its own.
//!
//! An online merge closes file descriptor 0, whatever that is (hazard 20). Putting standard input back
//! afterwards is not enough where other threads open files meanwhile: one of them gets number 0, and
//! the next merge closes that thread's file. So where a merge of a running image is possible, C runs
//! in a thread whose table of descriptors is a copy, in which it may close what it likes.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Something of the caller's that another thread uses while the caller waits.
struct Lent<T>(T);

// SAFETY: one thread at a time has it: the caller does nothing until the thread that was lent to has
// ended. What is lent are closures over this crate's own data and C's handle, none of which is tied to
// a thread.
unsafe impl<T> Send for Lent<T> {}

impl<T> Lent<T> {
    /// As a method, so that closures capture the whole.
    fn take(self) -> T {
        self.0
    }
}

/// Runs `f` in a thread with its own table, in which nothing is open but the standard streams, what is
/// appended to, such as libploop's log file, and `keep`. The error is that of a thread or a table that
/// could not be had; `f` did not run then.
pub(super) fn with_own_descriptors<T>(keep: &[RawFd], f: impl FnOnce() -> T) -> io::Result<T> {
    let f = Lent(f);
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("ploop-call".into())
            .spawn_scoped(scope, move || {
                // SAFETY: the table of this thread alone becomes a copy; no memory is concerned.
                if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
                    return Lent(Err(io::Error::last_os_error()));
                }
                Lent(close_others(keep).map(|()| f.take()()))
            })?;
        match worker.join() {
            Ok(result) => result.take(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Closes the copies of what others have open, in a table that is the calling thread's alone. They would
/// keep devices busy, locks held and pipes open for as long as the call takes. Where they cannot be
/// listed, nothing is closed.
pub(super) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    for number in own_numbers()? {
        if number <= libc::STDERR_FILENO || keep.contains(&number) {
            continue;
        }
        // SAFETY: it was in the list a moment ago; one that is gone gives an error. The table is this
        // thread's alone, and nothing in it has an owner that runs here.
        unsafe {
            if !is_appended_to(BorrowedFd::borrow_raw(number)) {
                libc::close(number);
            }
        }
    }
    Ok(())
}

fn own_numbers() -> io::Result<Vec<RawFd>> {
    match numbers_in(Path::new("/proc/thread-self/fd")) {
        // Before Linux 3.17. The other way needs the number that `/proc` has for this thread, which is
        // another one where `/proc` belongs to an outer process namespace.
        Err(error) if error.kind() == io::ErrorKind::NotFound => numbers_in(&by_number()),
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

fn is_appended_to(file: BorrowedFd<'_>) -> bool {
    let is_regular = fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    is_regular && fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::APPEND))
}

/// The way of a descriptor out of such a thread.
pub(super) struct Passage {
    inner: UnixStream,
    outer: UnixStream,
}

impl Passage {
    pub(super) fn new() -> io::Result<Passage> {
        let (inner, outer) = UnixStream::pair()?;
        Ok(Passage { inner, outer })
    }

    /// What the thread has to keep.
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

    /// Does not wait: what was sent is there.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn nothing_of_the_others_is_closed_and_nothing_of_theirs_is_kept() {
        let file = File::open("/proc/self/status").unwrap();
        let (mut read, write) = UnixStream::pair().unwrap();
        let is_open = |number: RawFd| {
            // SAFETY: asking for a descriptor's flags has no precondition.
            unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
        };
        let (wait, waits) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            let number = file.as_raw_fd();
            let inside = scope.spawn(move || {
                with_own_descriptors(&[], || {
                    let was_open = is_open(number);
                    // SAFETY: the table is this thread's own.
                    unsafe { libc::close(0) };
                    waits.recv().unwrap();
                    (was_open, is_open(0))
                })
                .unwrap()
            });
            // The copy of this end is closed, so its end is seen while the thread still runs.
            drop(write);
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).unwrap();
            wait.send(()).unwrap();
            assert_eq!(inside.join().unwrap(), (false, false));
        });
        assert!(is_open(0) && is_open(file.as_raw_fd()));
    }

    #[test]
    fn a_thread_s_descriptors_are_listed_in_two_places() {
        let numbers = |directory: &Path| {
            let mut numbers = numbers_in(directory).unwrap();
            numbers.sort_unstable();
            numbers
        };
        with_own_descriptors(&[], || {
            // The list itself is one of them, and has one number both times.
            let own = numbers(Path::new("/proc/thread-self/fd"));
            assert!(own.len() > 1, "{own:?}");
            assert_eq!(numbers(&by_number()), own);
        })
        .unwrap();
    }

    #[test]
    fn descriptors_that_cannot_be_listed_are_an_error() {
        let error = numbers_in(Path::new("/proc/self/task/0/fd")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // What is no number is no list of descriptors.
        assert!(numbers_in(Path::new("/proc/self")).is_err());
    }

    #[test]
    fn a_descriptor_passes() {
        let passage = Passage::new().unwrap();
        with_own_descriptors(&[passage.number()], || {
            let file = File::open("/proc/self/comm").unwrap();
            passage.send(file.as_fd()).unwrap();
        })
        .unwrap();
        let mut text = String::new();
        File::from(passage.receive().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert!(!text.is_empty());
        assert!(passage.receive().is_err());
    }
}
