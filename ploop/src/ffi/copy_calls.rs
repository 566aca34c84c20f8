//! The C functions of a live copy: `ploop_copy_send` and `ploop_copy_receive`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use ploop_sys as sys;
use rustix::pipe::{PipeFlags, pipe_with};

use super::call::{Call, execute_keeping};
use super::fd_table::above_streams;
use super::last_error;
use super::line;
use super::process::wait_for;
use super::text::{CPath, CText, Param};
use crate::{Error, Result};

/// A duplicate above the standard streams: for feedback on 1 or 2, C writes differently and lowers the verbosity of
/// the whole process.
fn above(operation: &'static str, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    above_streams(fd)
        .map_err(|error| Error::io(operation, "a file descriptor cannot be duplicated", error))
}

/// C's number for "no descriptor". 0 would be standard input.
const NONE: RawFd = -1;

fn raw_or_none(fd: Option<&OwnedFd>) -> RawFd {
    fd.map_or(NONE, AsRawFd::as_raw_fd)
}

pub(crate) fn copy_receive(
    path: &Path,
    file: &CPath,
    input: BorrowedFd<'_>,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const CALL: Call = Call::new("receive copy");
    let input = above(CALL.name, input)?;
    let feedback = feedback.map(|fd| above(CALL.name, fd)).transpose()?;
    let keep = [input.as_raw_fd(), raw_or_none(feedback.as_ref())];
    let mut param = Param(sys::ploop_copy_receive_param {
        file: file.as_ptr(),
        ifd: input.as_raw_fd(),
        feedback_fd: raw_or_none(feedback.as_ref()),
        ..Default::default()
    });
    // SAFETY: the path is terminated; the descriptors are open for the length of the call.
    execute_keeping(&CALL, &keep, || unsafe {
        line::copy_receive(param.as_mut_ptr())
    })?
    .done(path)
}

/// C runs in a child with memory of its own. When C fails, it leaves a thread behind that uses the stack of a function
/// that has returned (hazard 18); the thread ends with the child.
pub(crate) fn copy_send(
    device: &Path,
    name: &CText,
    output: BorrowedFd<'_>,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const CALL: Call = Call::new("send copy");
    let output = above(CALL.name, output)?;
    let feedback = feedback.map(|fd| above(CALL.name, fd)).transpose()?;
    let keep = [output.as_raw_fd(), raw_or_none(feedback.as_ref())];
    let mut param = Param(sys::ploop_copy_send_param {
        device: name.as_ptr(),
        ofd: output.as_raw_fd(),
        flush_cmd: std::ptr::null(),
        feedback_fd: raw_or_none(feedback.as_ref()),
        ..Default::default()
    });
    let mut message = None;
    let mut result = execute_keeping(&CALL, &keep, || {
        // SAFETY: the name is terminated, there is no command, and the descriptors are open.
        in_own_memory(|| unsafe { line::copy_send(param.as_mut_ptr()) }).unwrap_or_else(|error| {
            message = Some(format!(
                "the process that copied died ({error}); the copy is not complete"
            ));
            -1
        })
    })?;
    if message.is_some() {
        result.message = message;
    }
    result.done(device)
}

/// Called in the process of C: runs `c` in a forked child, and takes over its code and its error text.
fn in_own_memory(c: impl FnOnce() -> i32) -> io::Result<i32> {
    let (answer, answer_in) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the child uses inherited memory, libploop, and the allocator, which libc keeps usable across `fork`. It
    // takes no lock of this crate or of the standard library, runs no destructor, and ends in `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        last_error::clear();
        let code = c();
        let message = last_error::take().unwrap_or_default();
        let mut answer = File::from(answer_in);
        let written = answer
            .write_all(&code.to_ne_bytes())
            .and_then(|()| answer.write_all(message.as_bytes()));
        // SAFETY: `_exit` has no precondition; nothing of the parent's is flushed or run.
        unsafe { libc::_exit(if written.is_ok() { 0 } else { 1 }) }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(answer_in);
    let mut bytes = Vec::new();
    let read = File::from(answer).read_to_end(&mut bytes);
    let status = wait_for(child);
    read?;
    let Some((code, message)) = bytes.split_first_chunk() else {
        return Err(io::Error::other(format!("wait status {status:#x}")));
    };
    last_error::put(message);
    Ok(i32::from_ne_bytes(*code))
}
