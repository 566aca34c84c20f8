//! The lock of an image among the threads of this process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::lock_wait::deadline_after;
use super::timeout;
use crate::{Error, ErrorKind, Result};

/// A lock among threads whose wait ends.
#[derive(Default)]
pub(crate) struct TimedLock {
    queue: Mutex<Queue>,
    freed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// By a thread of this process. After a fork the child has no such thread.
    taken_in: Option<u32>,
    /// To spare the system call of a notification that nobody waits for.
    waiting: usize,
}

impl TimedLock {
    pub(crate) const fn new() -> TimedLock {
        TimedLock {
            queue: Mutex::new(Queue {
                taken_in: None,
                waiting: 0,
            }),
            freed: Condvar::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acquire(&self, end: Option<Instant>) -> bool {
        let process = process::id();
        let mut queue = self.queue();
        queue.waiting += 1;
        while queue.taken_in == Some(process) {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            queue = match left {
                None => self
                    .freed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    queue.waiting -= 1;
                    return false;
                }
                Some(left) => {
                    self.freed
                        .wait_timeout(queue, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        queue.waiting -= 1;
        queue.taken_in = Some(process);
        true
    }

    pub(super) fn release(&self) {
        let mut queue = self.queue();
        queue.taken_in = None;
        if queue.waiting > 0 {
            self.freed.notify_one();
        }
    }

    /// Runs `f` alone, or fails after `timeout`.
    pub(crate) fn with_lock<T>(
        &self,
        operation: &'static str,
        timeout: Duration,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if !self.acquire(deadline_after(timeout)) {
            return Err(Error::new(
                ErrorKind::Locked,
                operation,
                format!("another thread of this process held the lock for {timeout:?}"),
            ));
        }
        let _release = TimedLockGuard(self);
        f()
    }
}

struct TimedLockGuard<'a>(&'a TimedLock);

impl Drop for TimedLockGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The lock of a descriptor or a device among the threads of this process, one per path. Two names of one
/// file have two of them; the lock files still keep these apart.
pub(super) fn thread_lock_of(path: &Path) -> Arc<TimedLock> {
    static LOCKS: Mutex<Option<HashMap<PathBuf, Weak<TimedLock>>>> = Mutex::new(None);
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let locks = locks.get_or_insert_default();
    if let Some(lock) = locks.get(path).and_then(Weak::upgrade) {
        return lock;
    }
    // Forget images nobody has open, so that a daemon's map does not grow for ever.
    locks.retain(|_, lock| lock.strong_count() > 0);
    let lock = Arc::new(TimedLock::new());
    locks.insert(path.to_owned(), Arc::downgrade(&lock));
    lock
}

/// Runs `f` under the thread lock of a path that has no handle: a descriptor that is being made, a device.
pub(crate) fn with_lock_of<T>(
    operation: &'static str,
    path: &Path,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    thread_lock_of(path)
        .with_lock(operation, timeout(), f)
        .map_err(|error| match error.path() {
            None => error.with_path(path),
            Some(_) => error,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_has_one_lock_and_leaves_none_behind() {
        let a = thread_lock_of(Path::new("/lock-test/a"));
        assert!(Arc::ptr_eq(&a, &thread_lock_of(Path::new("/lock-test/a"))));
        assert!(!Arc::ptr_eq(&a, &thread_lock_of(Path::new("/lock-test/b"))));
    }

    #[test]
    fn waiting_for_another_thread_ends() {
        let lock = TimedLock::new();
        assert!(lock.acquire(deadline_after(Duration::ZERO)));
        let begin = Instant::now();
        let refused = lock.with_lock("test", Duration::from_millis(50), || Ok(()));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Locked);
        assert!(begin.elapsed() >= Duration::from_millis(50));
        lock.release();
        assert!(lock.with_lock("test", Duration::ZERO, || Ok(())).is_ok());
    }

    #[test]
    fn an_endless_timeout_is_no_overflow() {
        assert!(deadline_after(Duration::MAX).is_none());
        assert!(TimedLock::new().acquire(deadline_after(Duration::MAX)));
    }
}
