//! Receiving a copy without libploop.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::descriptors::{FileKind, Stream};
use super::stream::{self, NOT_SYNCED, OtherStream, ReceiveError, SYNCED, Target};
use super::{RECEIVE, not_a_stream};
use crate::ffi::WriteSignalsBlocked;
use crate::identity::Identity;
use crate::{Code, Error, ErrorKind, Result};

/// Data is read and written in parts of this size.
const PART: usize = 1 << 20;

pub(super) fn receive(
    path: &Path,
    input: BorrowedFd<'_>,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let stream = |fd, name| {
        let is_stream = FileKind::of(fd).is_some_and(FileKind::is_stream);
        let error = || not_a_stream(RECEIVE, name).with_path(path);
        is_stream.then(|| Stream::new(fd)).ok_or_else(error)
    };
    let mut input = stream(input, "input")?;
    let feedback = feedback.map(|fd| stream(fd, "feedback")).transpose()?;
    let _write_signals = WriteSignalsBlocked::begin();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed("the file cannot be made", error, Code::CREAT, path))?;
    let mut target = ReceivedFile {
        path,
        file: &file,
        feedback,
    };
    let mut buffer = vec![0; PART];
    let received = stream::receive(&mut input, &mut buffer, &mut target)
        .map_err(|error| into_error(error, path))
        .and_then(|()| {
            let synced = file.sync_data();
            synced.map_err(|error| failed("the file cannot be synced", error, Code::WRITE, path))
        });
    if received.is_err() {
        remove(path, &file);
    }
    received
}

/// Removes the file, if it still has this name.
fn remove(path: &Path, file: &File) {
    let is_ours = || {
        let found = Identity::from(&fs::symlink_metadata(path)?);
        io::Result::Ok(found == Identity::from(&file.metadata()?))
    };
    if is_ours().unwrap_or(false) {
        // Should it fail, the file stays; the error of the copy says more.
        let _ = fs::remove_file(path);
    }
}

struct ReceivedFile<'a> {
    path: &'a Path,
    file: &'a File,
    feedback: Option<Stream<'a>>,
}

impl Target for ReceivedFile<'_> {
    type Error = Error;

    fn write(&mut self, bytes: &[u8], position: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, position)
            .map_err(|error| failed("the file cannot be written", error, Code::WRITE, self.path))
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.file.sync_data();
        let answered = match &self.feedback {
            Some(feedback) => {
                let answer = if synced.is_ok() { SYNCED } else { NOT_SYNCED };
                feedback.write(answer, |_| Ok(()))
            }
            None => Ok(()),
        };
        synced
            .map_err(|error| failed("the file cannot be synced", error, Code::WRITE, self.path))?;
        answered.map_err(|error| {
            failed(
                "the sender cannot be told that the file is synced",
                error,
                Code::WRITE,
                self.path,
            )
        })
    }
}

fn into_error(error: ReceiveError<Error>, path: &Path) -> Error {
    let malformed = |offset: u64| {
        let message =
            format!("the stream is damaged: what is at offset {offset} begins no block of a copy");
        Error::new(ErrorKind::Corrupt, RECEIVE, message).with_code(Code::PROTOCOL.get())
    };
    match error {
        ReceiveError::Target(error) => return error,
        ReceiveError::Read(error) => {
            return failed("the stream cannot be read", error, Code::READ, path);
        }
        ReceiveError::Ended => Error::new(
            ErrorKind::Io,
            RECEIVE,
            "the stream ended before the copy was complete; see what the sender reports",
        )
        .with_code(Code::READ.get()),
        ReceiveError::Other(other) => other_stream(other).unwrap_or_else(|| malformed(0)),
        ReceiveError::Corrupt(offset) => malformed(offset),
    }
    .with_path(path)
}

/// The error for a stream of another kind that has a name.
pub(super) fn other_stream(other: OtherStream) -> Option<Error> {
    let message = match other {
        OtherStream::Packets => {
            "the stream is that of the command `ploop copy` of libploop 7 and later (`ploop_copy_start`), which this crate does not read: send with `ploop::copy::send`, or receive with that command"
        }
        OtherStream::OtherByteOrder => {
            "the stream is of a sender with another byte order, which libploop does not read; copy between hosts of one kind"
        }
        OtherStream::Unknown => return None,
    };
    let error = Error::new(ErrorKind::Unsupported, RECEIVE, message);
    Some(error.with_code(Code::PROTOCOL.get()))
}

fn failed(what: &str, error: io::Error, code: Code, path: &Path) -> Error {
    Error::io(RECEIVE, what, error)
        .with_path(path)
        .with_code(code.get())
}
