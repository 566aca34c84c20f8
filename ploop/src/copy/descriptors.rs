//! The file descriptors of a copy: what kind of file they are, and reading and writing in a way that can be ended.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};

/// What a file descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Regular,
    Pipe,
    Socket,
}

impl FileKind {
    /// `None` for what a copy can neither be read from nor written to.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<FileKind> {
        match FileType::from_raw_mode(fstat(fd).ok()?.st_mode) {
            FileType::RegularFile => Some(FileKind::Regular),
            FileType::Fifo => Some(FileKind::Pipe),
            FileType::Socket => Some(FileKind::Socket),
            _ => None,
        }
    }

    pub(super) fn is_stream(self) -> bool {
        self != FileKind::Regular
    }
}

/// The first bytes that a pipe or socket has for its reader, who still gets them. Waits for them. `None` where they
/// cannot be had, such as at the end of the stream.
pub(super) fn peek(fd: BorrowedFd<'_>) -> Option<[u8; 4]> {
    let mut bytes = [0; 4];
    let stream = Stream::new(fd);
    stream.wait_for_input(|_| Ok(())).ok()?;
    let len = match FileKind::of(fd)? {
        FileKind::Regular => return None,
        FileKind::Socket => {
            let received = retry_on_intr(|| recv(fd, &mut bytes, RecvFlags::PEEK));
            received.ok()?.0
        }
        FileKind::Pipe => {
            let (copy, copy_in) = pipe_with(PipeFlags::CLOEXEC).ok()?;
            let copied = || tee(fd, &copy_in, bytes.len(), SpliceFlags::empty());
            retry_on_intr(copied).ok()?;
            drop(copy_in);
            rustix::io::read(&copy, &mut bytes).ok()?
        }
    };
    (len == bytes.len()).then_some(bytes)
}

/// A pipe or a socket. Whether its descriptor blocks does not matter, and is not changed: other processes may have it.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    fd: BorrowedFd<'a>,
    is_socket: bool,
}

/// How often a wait asks whether it is to go on.
const TICK: Duration = Duration::from_millis(100);

impl<'a> Stream<'a> {
    pub(super) fn new(fd: BorrowedFd<'a>) -> Stream<'a> {
        Stream {
            fd,
            is_socket: FileKind::of(fd) == Some(FileKind::Socket),
        }
    }

    /// Writes all bytes. While the other side takes none, asks from time to time whether to go on, with the time since
    /// it took the last ones.
    pub(super) fn write(
        &self,
        mut bytes: &[u8],
        go_on: impl Fn(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        /// `PIPE_BUF`: when a pipe can be written to, it takes this many bytes without waiting.
        const PIPE_PART: usize = 4096;
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT, &go_on)?;
            let written = if self.is_socket {
                rustix::net::send(self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            } else {
                rustix::io::write(self.fd, &bytes[..bytes.len().min(PIPE_PART)])
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => bytes = &bytes[len..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, or the stream ends. Asks from time to time whether to go on.
    pub(super) fn wait_for_input(
        &self,
        go_on: impl Fn(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        self.wait(PollFlags::IN, &go_on)
    }

    /// Waits until one of these is possible, or fails for good.
    fn wait(
        &self,
        events: PollFlags,
        go_on: &impl Fn(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        let begin = Instant::now();
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(TICK.subsec_nanos()),
        };
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.fd, events)];
            match poll(&mut fds, Some(&tick)) {
                Ok(0) => go_on(begin.elapsed())?,
                Err(Errno::INTR) => {}
                result => {
                    result?;
                    return Ok(());
                }
            }
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(self.fd, &mut *bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for_input(|_| Ok(()))?,
                result => return Ok(result?),
            }
        }
    }
}
