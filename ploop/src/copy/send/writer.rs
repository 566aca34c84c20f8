//! The thread that writes a copy, to a stream or a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use crate::copy::descriptors::{FileKind, Stream};
use crate::copy::stream::{self, NOT_SYNCED, SYNC, SYNCED};
use crate::copy::{SEND, not_a_stream};
use crate::ffi::WriteSignalsBlocked;
use crate::{Code, Error, ErrorKind, Result};

use super::{failed, refused};

/// While the file system is frozen, a receiver that takes nothing for this long ends the copy.
const STALL: Duration = Duration::from_secs(60);

/// What the thread is to do.
pub(super) enum Order {
    /// The data at this position.
    Block(Buffer, u64),
    /// The receiver is to sync. The first bytes of the file are sent with it.
    Sync([u8; SYNC]),
    /// Everything was sent.
    End,
}

/// What it has done.
pub(super) enum Answer {
    /// The buffer is free.
    Written(Buffer),
    Synced,
}

/// What both threads know.
#[derive(Default)]
pub(super) struct State {
    is_cancelled: AtomicBool,
    is_frozen: AtomicBool,
}

impl State {
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_frozen(&self, is_frozen: bool) {
        self.is_frozen.store(is_frozen, Ordering::Relaxed);
    }
}

/// Where a copy goes.
pub(super) enum Output<'a> {
    Stream {
        stream: Stream<'a>,
        feedback: Option<Stream<'a>>,
    },
    File(File),
}

impl<'a> Output<'a> {
    pub(super) fn new(
        output: BorrowedFd<'a>,
        feedback: Option<BorrowedFd<'a>>,
    ) -> Result<Output<'a>> {
        let kind = FileKind::of(output).ok_or_else(|| {
            let message = "the output is no file, pipe or socket";
            Error::new(ErrorKind::InvalidInput, SEND, message).with_code(Code::PARAM.get())
        })?;
        let feedback = feedback
            .map(|fd| match FileKind::of(fd) {
                Some(FileKind::Pipe | FileKind::Socket) => Ok(Stream::new(fd)),
                _ => Err(not_a_stream(SEND, "feedback")),
            })
            .transpose()?;
        if kind.is_stream() {
            return Ok(Output::Stream {
                stream: Stream::new(output),
                feedback,
            });
        }
        let file = output
            .try_clone_to_owned()
            .map_err(|error| Error::io(SEND, "the output cannot be duplicated", error))?;
        Ok(Output::File(file.into()))
    }

    /// Whether it is known when the data is on the disk.
    pub(super) fn is_confirmed(&self) -> bool {
        matches!(
            self,
            Output::File(_)
                | Output::Stream {
                    feedback: Some(_),
                    ..
                }
        )
    }
}

/// The thread that writes.
pub(super) struct Writer<'a> {
    path: &'a Path,
    output: &'a Output<'a>,
    state: &'a State,
    stall: Duration,
}

impl<'a> Writer<'a> {
    pub(super) fn new(path: &'a Path, output: &'a Output<'a>, state: &'a State) -> Writer<'a> {
        Writer {
            path,
            output,
            state,
            stall: STALL,
        }
    }

    /// Works until nobody gives orders any more.
    pub(super) fn follow(self, orders: &Receiver<Order>, answers: &Sender<Answer>) -> Result<()> {
        let _write_signals = WriteSignalsBlocked::begin();
        for order in orders {
            let answer = match order {
                Order::Block(buffer, position) => {
                    self.write(buffer.bytes(), position)?;
                    Answer::Written(buffer)
                }
                Order::Sync(first_bytes) => {
                    self.sync(&first_bytes)?;
                    Answer::Synced
                }
                Order::End => {
                    self.end()?;
                    continue;
                }
            };
            // Nobody waits for the last answers.
            let _ = answers.send(answer);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], position: u64) -> Result<()> {
        let written = match self.output {
            Output::File(file) => file.write_all_at(bytes, position),
            Output::Stream { stream, .. } => self.write_block(stream, bytes, position),
        };
        written.map_err(|error| self.not_written(error))
    }

    fn write_block(&self, stream: &Stream<'_>, bytes: &[u8], position: u64) -> io::Result<()> {
        let go_on = |waited| self.go_on(waited);
        stream.write(&stream::header(bytes.len() as u32, position), go_on)?;
        stream.write(bytes, go_on)
    }

    /// Whether to wait longer for the other side.
    fn go_on(&self, waited: Duration) -> io::Result<()> {
        if self.state.is_cancelled.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.state.is_frozen.load(Ordering::Relaxed) && waited > self.stall {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn not_written(&self, error: io::Error) -> Error {
        let what = match error.kind() {
            io::ErrorKind::TimedOut => {
                "the receiver takes no data while the file system is frozen for it"
            }
            _ => "the copy cannot be written",
        };
        failed(self.path, what, error, Code::WRITE)
    }

    fn sync(&self, first_bytes: &[u8; SYNC]) -> Result<()> {
        let (stream, feedback) = match self.output {
            Output::File(file) => {
                return file.sync_data().map_err(|error| {
                    failed(self.path, "the copy cannot be synced", error, Code::FSYNC)
                });
            }
            Output::Stream { stream, feedback } => (stream, feedback),
        };
        self.write_block(stream, first_bytes, 0)
            .map_err(|error| self.not_written(error))?;
        let Some(feedback) = feedback else {
            return Ok(());
        };
        let mut answer = [0; SYNCED.len()];
        self.read_feedback(*feedback, &mut answer)
            .map_err(|error| {
                let what = "the receiver does not say that it has synced the copy";
                failed(self.path, what, error, Code::PROTOCOL)
            })?;
        match &answer {
            SYNCED => Ok(()),
            NOT_SYNCED => {
                let message = "the receiver cannot sync the copy; see what it reports";
                Err(refused(self.path, ErrorKind::Io, message, Code::FSYNC))
            }
            other => {
                let message = format!(
                    "the receiver answers {:?}, which is no answer of a receiver of libploop",
                    String::from_utf8_lossy(other)
                );
                Err(refused(
                    self.path,
                    ErrorKind::Corrupt,
                    message,
                    Code::PROTOCOL,
                ))
            }
        }
    }

    fn read_feedback(&self, mut feedback: Stream<'_>, answer: &mut [u8]) -> io::Result<()> {
        let mut read = 0;
        while read < answer.len() {
            feedback.wait_for_input(|_| self.go_on(Duration::ZERO))?;
            read += match feedback.read(&mut answer[read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => len,
            };
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let ended = match self.output {
            Output::File(file) => file.sync_all(),
            Output::Stream { stream, .. } => {
                stream.write(&stream::header(0, 0), |waited| self.go_on(waited))
            }
        };
        ended.map_err(|error| self.not_written(error))
    }
}

/// Memory for direct reads.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Where the aligned part begins.
    start: usize,
    len: usize,
}

impl Buffer {
    /// Memory for direct reads begins at a multiple of this.
    pub(super) const ALIGNMENT: usize = 4096;

    pub(super) fn new(size: usize) -> Buffer {
        let bytes = vec![0; size.max(Buffer::ALIGNMENT) + Buffer::ALIGNMENT];
        Buffer {
            // The memory of a vector stays where it is when the vector is moved.
            start: bytes.as_ptr().addr().wrapping_neg() % Buffer::ALIGNMENT,
            len: 0,
            bytes,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Reads at most `len` bytes; fewer at the end of the file, behind it none.
    pub(super) fn fill(&mut self, file: &File, position: u64, len: usize) -> io::Result<()> {
        let space = &mut self.bytes[self.start..][..len];
        self.len = loop {
            match file.read_at(space, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{channel, sync_channel};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// The result of a writer whose receiver, behind this descriptor, takes nothing.
    fn to_a_deaf_receiver(output: BorrowedFd<'_>, state: &State) -> Result<()> {
        let output = Output::new(output, None).unwrap();
        let mut writer = Writer::new(Path::new("/dev/ploop1"), &output, state);
        writer.stall = Duration::from_millis(300);
        let (orders, ordered) = sync_channel(1);
        let (answer, _answers) = channel();
        thread::scope(|scope| {
            let writer = scope.spawn(move || writer.follow(&ordered, &answer));
            let mut buffer = Buffer::new(4 << 20);
            buffer.len = 4 << 20;
            orders.send(Order::Block(buffer, 0)).unwrap();
            drop(orders);
            writer.join().unwrap()
        })
    }

    fn with_pipe_and_socket(check: impl Fn(BorrowedFd<'_>)) {
        let (output, _receiver) = UnixStream::pair().unwrap();
        check(output.as_fd());
        let (_receiver, output) = rustix::pipe::pipe().unwrap();
        check(output.as_fd());
    }

    #[test]
    fn a_receiver_that_takes_nothing_does_not_keep_the_file_system_frozen() {
        with_pipe_and_socket(|output| {
            let state = State::default();
            state.set_frozen(true);
            let begin = Instant::now();
            let error = to_a_deaf_receiver(output, &state).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert_eq!(error.libploop_code(), Some(Code::WRITE), "{error}");
            assert!(error.message().contains("frozen"), "{error}");
            assert!(begin.elapsed() >= Duration::from_millis(300));
        });
    }

    #[test]
    fn a_writer_that_waits_can_be_ended() {
        with_pipe_and_socket(|output| {
            let state = State::default();
            thread::scope(|scope| {
                let written = scope.spawn(|| to_a_deaf_receiver(output, &state));
                // Nothing is frozen, so there is no limit.
                thread::sleep(Duration::from_millis(600));
                assert!(!written.is_finished());
                state.cancel();
                written.join().unwrap().unwrap_err();
            });
        });
    }

    #[test]
    fn direct_reads_have_aligned_memory() {
        for size in [512, 4096, 1 << 20] {
            let mut buffer = Buffer::new(size);
            buffer.len = size;
            let moved = buffer;
            assert_eq!(moved.bytes().as_ptr().addr() % Buffer::ALIGNMENT, 0);
            assert_eq!(moved.bytes().len(), size);
        }
    }
}
