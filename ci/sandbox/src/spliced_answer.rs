//! The answer to a read, whose data goes from the host's file to the kernel by `splice`, without a copy in this process.
//! `fuser` does not offer it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use fuser::RequestId;
use ploop::image::ReadPlan;
use rustix::pipe::{self, PipeFlags, SpliceFlags};

use crate::fuse::Connection;

/// The size of a pipe. The kernel gives more to privileged processes only.
const PIPE: usize = 1 << 20;

/// The size of the header of an answer (`struct fuse_out_header`).
const HEADER: usize = 16;

/// A pipe, by which data goes from file to file.
struct Pipe {
    read: OwnedFd,
    write: File,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (read, write) = pipe::pipe_with(PipeFlags::CLOEXEC)?;
        pipe::fcntl_setpipe_size(&write, PIPE)?;
        Ok(Pipe {
            read,
            write: write.into(),
        })
    }

    /// Puts all of a plan into the pipe that has no zeros in it.
    fn fill(&self, plan: &ReadPlan) -> io::Result<()> {
        for (mut left, place) in plan.pieces() {
            let (file, mut offset) = place.ok_or(io::ErrorKind::InvalidInput)?;
            while left > 0 {
                let flags = SpliceFlags::NONBLOCK;
                let moved = pipe::splice(file, Some(&mut offset), &self.write, None, left, flags)?;
                if moved == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                left -= moved;
            }
        }
        Ok(())
    }
}

thread_local! {
    /// An empty pipe.
    static PIPES: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

/// Sends answers to the requests of a connection.
pub(crate) struct SplicedAnswer {
    device: File,
}

impl SplicedAnswer {
    pub(crate) fn new(connection: &Connection) -> io::Result<SplicedAnswer> {
        Ok(SplicedAnswer {
            device: connection.device()?,
        })
    }

    /// Answers a read with what a plan names. `false` where it has zeros in it. Without success, the request has no
    /// answer.
    pub(crate) fn send(&self, request: RequestId, plan: &ReadPlan) -> io::Result<bool> {
        if plan.pieces().any(|(_, place)| place.is_none()) {
            return Ok(false);
        }
        // Length, error, number of the request.
        let len = HEADER + plan.len();
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        header[8..].copy_from_slice(&request.0.to_ne_bytes());
        // A pipe in which something may be left is not used again.
        let mut pipe = match PIPES.take() {
            Some(pipe) => pipe,
            None => Pipe::new()?,
        };
        pipe.write.write_all(&header)?;
        pipe.fill(plan)?;
        // The kernel takes an answer as a whole or not at all.
        let flags = SpliceFlags::empty();
        let moved = pipe::splice(&pipe.read, None, &self.device, None, len, flags)?;
        PIPES.set(Some(pipe));
        Ok(moved == len)
    }
}
