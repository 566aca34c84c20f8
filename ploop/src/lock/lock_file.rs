//! A lock file: opening it, waiting for its lock, and what it must not be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::lock_wait::LockWait;
use crate::identity::Identity;
use crate::{Error, ErrorKind, Result};

/// With whom a lock can be held.
#[derive(Clone, Copy)]
pub(super) enum Share {
    Nobody,
    #[cfg(feature = "libploop")]
    Readers,
}

/// An open lock file.
pub(super) struct LockFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// The process that opened it. One that was forked shares the lock with its parent, and so excludes nothing.
    process: u32,
    identity: Identity,
}

impl LockFile {
    fn open(path: &Path, operation: &'static str) -> Result<LockFile> {
        let failed = |what, error: io::Error| Error::io(operation, what, error).with_path(path);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(path)
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                    not_a_regular_file(operation, path)
                }
                _ => failed("the lock file cannot be opened", error),
            })?;
        let metadata = file
            .metadata()
            .map_err(|error| failed("the lock file cannot be examined", error))?;
        if !metadata.is_file() {
            return Err(not_a_regular_file(operation, path));
        }
        // Where the program has closed its standard streams, the number may be one of theirs, which another file
        // gets in the process of C.
        let file = match file.as_raw_fd() {
            0..=2 => {
                let above = fcntl_dupfd_cloexec(&file, 3);
                File::from(above.map_err(|error| {
                    failed("the lock file cannot be opened", io::Error::from(error))
                })?)
            }
            _ => file,
        };
        Ok(LockFile {
            path: path.to_owned(),
            file,
            process: process::id(),
            identity: Identity::from(&metadata),
        })
    }

    /// Waits for the lock of the file that has this name. `open` is one from before.
    pub(super) fn acquire(
        open: Option<Arc<LockFile>>,
        path: &Path,
        wait: &LockWait<'_>,
    ) -> Result<Arc<LockFile>> {
        LockFile::acquire_as(Share::Nobody, open, path, wait)
    }

    pub(super) fn acquire_as(
        share: Share,
        mut open: Option<Arc<LockFile>>,
        path: &Path,
        wait: &LockWait<'_>,
    ) -> Result<Arc<LockFile>> {
        let process = process::id();
        let mut pause = Duration::from_millis(1);
        // A bound for the case that the limit is zero and the file is replaced all the time.
        let mut replaced = 0;
        loop {
            let file = match open.take().filter(|file| file.process == process) {
                Some(file) => file,
                None => Arc::new(LockFile::open(path, wait.operation)?),
            };
            let locked = file.try_lock(share).map_err(|error| {
                Error::io(wait.operation, "the lock file cannot be locked", error).with_path(path)
            })?;
            let is_current = file.is_current();
            if locked && is_current {
                return Ok(file);
            }
            let left = wait.remaining();
            if is_current {
                if left.is_zero() {
                    return Err(wait.timed_out("another process"));
                }
                open = Some(file);
                thread::sleep(pause.min(left));
                pause = (pause * 2).min(Duration::from_millis(10));
            } else {
                if locked {
                    file.unlock();
                }
                replaced += 1;
                if left.is_zero() && replaced > 100 {
                    return Err(wait.timed_out("another process"));
                }
            }
        }
    }

    /// Whether the lock could be had at once.
    pub(super) fn try_lock(&self, share: Share) -> Result<bool, Errno> {
        let operation = match share {
            Share::Nobody => FlockOperation::NonBlockingLockExclusive,
            #[cfg(feature = "libploop")]
            Share::Readers => FlockOperation::NonBlockingLockShared,
        };
        loop {
            match flock(&self.file, operation) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Also where copies of the file descriptor are open elsewhere.
    pub(super) fn unlock(&self) {
        // Nothing can be done about a failure, and none is known for a lock that is held.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }

    /// Whether the path still names this file.
    pub(super) fn is_current(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| Identity::from(&found) == self.identity)
    }
}

fn not_a_regular_file(operation: &'static str, path: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        operation,
        "the lock file is a link, or something else that is no regular file; remove it",
    )
    .with_path(path)
}
