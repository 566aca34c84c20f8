//! Live copy: a stream of an attached device, and its other end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use ploop_sys as sys;

use super::call::{Op, guarded};
use super::last_error;
use super::process::BrokenPipes;
use super::reply::Reply;
use super::text::{CPath, CText};
use crate::{Error, ErrorKind, Result};

/// A number above standard error: C writes differently, and lowers the verbosity of the whole
/// process, when feedback goes to 1 or 2.
fn above_stderr(operation: &'static str, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
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
    const OP: Op = Op::new("receive copy");
    let input = above_stderr(OP.name, input)?;
    let feedback = feedback.map(|fd| above_stderr(OP.name, fd)).transpose()?;
    let mut param = sys::ploop_copy_receive_param {
        file: file.as_ptr(),
        ifd: input.as_raw_fd(),
        feedback_fd: raw_or_none(feedback.as_ref()),
        ..Default::default()
    };
    let _broken_pipes = BrokenPipes::hold_back();
    // SAFETY: the path is terminated; the descriptors are open for the length of the call.
    guarded(&OP, || unsafe { sys::ploop_copy_receive(&mut param) })?.done(path)
}

/// Runs in a child process: when C fails here it leaves a thread behind that works on memory of a
/// function that returned (hazard 18). The child ends with it.
pub(crate) fn copy_send(
    device: &Path,
    name: &CText,
    output: BorrowedFd<'_>,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const NAME: &str = "send copy";
    let failed = |what: &str, error: io::Error| Error::io(NAME, what, error).with_path(device);
    let output = above_stderr(NAME, output)?;
    let feedback = feedback.map(|fd| above_stderr(NAME, fd)).transpose()?;
    let (answer, answer_in) = pipe().map_err(|error| failed("no pipe could be made", error))?;
    let mut param = sys::ploop_copy_send_param {
        device: name.as_ptr(),
        ofd: output.as_raw_fd(),
        flush_cmd: std::ptr::null(),
        feedback_fd: raw_or_none(feedback.as_ref()),
        ..Default::default()
    };
    let keep = [
        output.as_raw_fd(),
        raw_or_none(feedback.as_ref()),
        answer_in.as_raw_fd(),
    ];
    // SAFETY: the child uses memory it inherited (`param` and what it points to), libploop, and the
    // allocator, which glibc keeps usable across `fork`; it takes no lock of this crate or of the
    // standard library, runs no destructor, and ends in `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        close_all_but(&keep);
        last_error::clear();
        // So that a receiver that is gone is an error with words.
        // SAFETY: it concerns the child alone.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: the name is terminated, there is no command, and the descriptors are open.
        let code = unsafe { sys::ploop_copy_send(&mut param) };
        let message = last_error::take().unwrap_or_default();
        let mut answer = File::from(answer_in);
        let written = answer
            .write_all(&code.to_ne_bytes())
            .and_then(|()| answer.write_all(message.as_bytes()));
        // SAFETY: `_exit` has no precondition; nothing of the parent's is flushed or run.
        unsafe { libc::_exit(if written.is_ok() { 0 } else { 1 }) }
    }
    if child < 0 {
        return Err(failed(
            "no process could be started",
            io::Error::last_os_error(),
        ));
    }
    drop(answer_in);
    let mut bytes = Vec::new();
    let read = File::from(answer).read_to_end(&mut bytes);
    let mut status = 0;
    // SAFETY: `child` is ours and not yet waited for; `status` outlives the call.
    while unsafe { libc::waitpid(child, &mut status, 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    read.map_err(|error| failed("the result could not be read", error))?;
    let Some((code, message)) = bytes.split_first_chunk() else {
        return Err(Error::new(
            ErrorKind::Other,
            NAME,
            format!(
                "the process that copied died (wait status {status:#x}); the copy is not complete"
            ),
        )
        .with_path(device));
    };
    Reply {
        operation: NAME,
        code: i32::from_ne_bytes(*code),
        message: Some(String::from_utf8_lossy(message).into_owned())
            .filter(|text| !text.is_empty()),
        cause: None,
        descriptor_is_sound: false,
    }
    .done(device)
}

/// Both ends are closed by `exec`.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors; on success they are ours alone.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// In the child: a device of another image, inherited here, could not be stopped while the copy runs.
fn close_all_but(keep: &[RawFd]) {
    // SAFETY: `sysconf` and `close` have no precondition; only the child's table is touched, and what
    // the child still uses is kept. No owner of a closed descriptor runs in the child.
    unsafe {
        let end = libc::sysconf(libc::_SC_OPEN_MAX).clamp(64, 1 << 16) as RawFd;
        for fd in (3..end).filter(|fd| !keep.contains(fd)) {
            libc::close(fd);
        }
    }
}
