//! Waiting for a lock until a time.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Error, ErrorKind};

/// `None` where the end is beyond what the clock can tell: no end.
pub(super) fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// A wait that ends.
pub(super) struct LockWait<'a> {
    pub(super) operation: &'static str,
    descriptor: &'a Path,
    timeout: Duration,
    pub(super) deadline: Option<Instant>,
}

impl<'a> LockWait<'a> {
    pub(super) fn new(
        operation: &'static str,
        descriptor: &'a Path,
        timeout: Duration,
    ) -> LockWait<'a> {
        LockWait {
            operation,
            descriptor,
            timeout,
            deadline: deadline_after(timeout),
        }
    }

    pub(super) fn remaining(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }

    pub(super) fn timed_out(&self, by: &str) -> Error {
        let message = format!(
            "{by} held the lock for {:?}; try again later or raise the lock timeout",
            self.timeout
        );
        Error::new(ErrorKind::Locked, self.operation, message).with_path(self.descriptor)
    }
}
