//! Whose turn it is: one operation at a time on one image, and none while another process works
//! on it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ploop_sys as sys;
use rustix::fs::{FlockOperation, flock};

use super::call::{Op, guarded, guarded_keeping};
use super::reply::Reply;
use super::text::{CPath, CText};
use crate::image::{Descriptor, descriptor};
use crate::{Error, ErrorKind, Result, paths};

/// libploop's lock around its search for devices.
const DEVICE_LOCK: &str = "/var/lock/ploop/ploop.lck";

/// As libploop's own limit.
static TIMEOUT_MILLIS: AtomicU64 = AtomicU64::new(60_000);

pub(crate) fn default_lock_timeout() -> Duration {
    Duration::from_millis(TIMEOUT_MILLIS.load(Ordering::Relaxed))
}

pub(crate) fn set_default_lock_timeout(timeout: Duration) {
    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    TIMEOUT_MILLIS.store(millis, Ordering::Relaxed);
}

/// A lock whose wait ends.
#[derive(Default)]
pub(super) struct TimedLock {
    queue: Mutex<Queue>,
    freed: Condvar,
}

#[derive(Default)]
struct Queue {
    taken: bool,
    /// To spare the system call of a notification that nobody waits for.
    waiting: usize,
}

impl TimedLock {
    pub(super) const fn new() -> TimedLock {
        TimedLock {
            queue: Mutex::new(Queue {
                taken: false,
                waiting: 0,
            }),
            freed: Condvar::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquire(&self, end: Option<Instant>) -> bool {
        let mut queue = self.queue();
        queue.waiting += 1;
        while queue.taken {
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
        queue.taken = true;
        true
    }

    fn release(&self) {
        let mut queue = self.queue();
        queue.taken = false;
        if queue.waiting > 0 {
            self.freed.notify_one();
        }
    }

    /// Runs `f` alone, or fails after `timeout`.
    pub(super) fn alone<T>(
        &self,
        operation: &'static str,
        timeout: Duration,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if !self.acquire(deadline(timeout)) {
            return Err(Error::new(
                ErrorKind::Locked,
                operation,
                format!("another thread of this process was at it for {timeout:?}"),
            ));
        }
        let _release = Release(self);
        f()
    }
}

struct Release<'a>(&'a TimedLock);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// `None` where the end is beyond what the clock can tell: no end.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// The lock of the image whose descriptor this is, or of a device, one per path in this process.
/// Two names of one file (a hard link, a bind mount) have two of them; libploop's own lock still
/// keeps these apart.
fn lock_of(path: &Path) -> Arc<TimedLock> {
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

/// C's handle of an image. Exclusive: C has no lock for it (hazard 2).
struct Handle(NonNull<sys::ploop_disk_images_data>);

// SAFETY: the handle is heap memory without ties to the thread that made it; what libploop keeps per
// thread (error text, cancel flag) is not part of it. It is not `Sync`, and used through `&mut` only.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ploop_open_dd`, is freed only here, and nothing that C handed
        // out of it was kept.
        unsafe { sys::ploop_close_dd(self.0.as_ptr()) }
    }
}

/// An image that was opened: its descriptor, and C's handle of it once a call needed one.
pub(crate) struct Image {
    /// Resolved, and checked to be one that C takes.
    path: PathBuf,
    component: Option<CText>,
    timeout: Option<Duration>,
    lock: Arc<TimedLock>,
    /// libploop's lock file, kept open: opening it costs more than the lock itself.
    lock_file: Option<File>,
    /// Kept between calls that only look. C does not reset every field when it reads the descriptor
    /// again, and a failed change stays in it, so whatever changes the image starts with a new one.
    handle: Option<Handle>,
}

impl Image {
    /// `path` is resolved as C does it, so that what is checked here is what C works on.
    pub(crate) fn open(operation: &'static str, path: &Path) -> Result<Image> {
        paths::require_passable(operation, path)?;
        let resolved = match std::fs::canonicalize(path) {
            Ok(resolved) => resolved,
            Err(error) => return Err(refused_by_c(operation, path, error)),
        };
        descriptor::require_readable(&resolved)
            .map_err(|error| error.during(operation).with_path(path))?;
        paths::require_passable(operation, &resolved)?;
        Ok(Image {
            lock: lock_of(&resolved),
            path: resolved,
            component: None,
            timeout: None,
            lock_file: None,
            handle: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn set_component(&mut self, component: Option<CText>) {
        self.component = component;
        // C has no way to take a name back.
        self.handle = None;
    }

    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(default_lock_timeout)
    }

    /// Waits for the image's turn, at most for the lock timeout. What is read through the [`Turn`]
    /// before its call is what the call will find, save for a process that takes the lock in the
    /// moment in which C takes it over.
    pub(crate) fn turn<'a>(&'a mut self, op: &'static Op) -> Result<Turn<'a>> {
        let timeout = self.timeout();
        let end = deadline(timeout);
        if !self.lock.acquire(end) {
            let by = "another thread of this process";
            return Err(locked(op.name, &self.path, by, timeout));
        }
        // From here on an error gives the turn back.
        let in_process = InProcess(Arc::clone(&self.lock));
        if op.locks {
            if self.lock_file.is_none() {
                self.lock_file = open_lock(op.name, &paths::lock_file(&self.path))?;
            }
            if let Some(file) = &self.lock_file {
                wait_for_lock(op.name, &self.path, file, timeout, end)?;
            }
        }
        // The descriptor's lock is given back even where the devices' cannot be had.
        let turn = Turn {
            holds_lock: op.locks,
            image: self,
            op,
            _in_process: in_process,
        };
        if op.finds_device {
            poll_device_lock(op.name, turn.path(), timeout, end)?;
        }
        Ok(turn)
    }

    fn handle(&mut self, operation: &'static str) -> Result<NonNull<sys::ploop_disk_images_data>> {
        if self.handle.is_none() {
            let handle = open_dd(operation, &self.path)?;
            if let Some(component) = &self.component {
                const SET: Op = Op::new("set component name");
                // SAFETY: the handle was just made; the name is terminated and copied by C.
                guarded(&SET, || unsafe {
                    sys::ploop_set_component_name(handle.0.as_ptr(), component.as_ptr())
                })?
                .done(&self.path)?;
            }
            self.handle = Some(handle);
        }
        match &self.handle {
            Some(handle) => Ok(handle.0),
            None => Err(Error::new(
                ErrorKind::Other,
                operation,
                "libploop gave no handle",
            )),
        }
    }
}

fn open_dd(operation: &'static str, path: &Path) -> Result<Handle> {
    const OPEN: Op = Op::new("open");
    let c_path = CPath::new(operation, path)?;
    let mut handle = std::ptr::null_mut();
    let mut reply = guarded(&OPEN, || {
        // SAFETY: the path is terminated; C writes one pointer to `handle`, and only on success.
        unsafe { sys::ploop_open_dd(&mut handle, c_path.as_ptr()) }
    })?;
    reply.operation = operation;
    reply.done(path)?;
    NonNull::new(handle)
        .map(Handle)
        .ok_or_else(|| Error::new(ErrorKind::Other, operation, "libploop gave no handle"))
}

/// A path that does not resolve gets the code and the words libploop has for it.
fn refused_by_c(operation: &'static str, path: &Path, error: io::Error) -> Error {
    match open_dd(operation, path) {
        Err(refused) => refused,
        Ok(_) => Error::io(operation, "the path does not resolve", error).with_path(path),
    }
}

struct InProcess(Arc<TimedLock>);

impl Drop for InProcess {
    fn drop(&mut self) {
        self.0.release();
    }
}

fn locked(operation: &'static str, path: &Path, by: &str, timeout: Duration) -> Error {
    Error::new(
        ErrorKind::Locked,
        operation,
        format!("{by} held the lock for {timeout:?}; try again later or raise the lock timeout"),
    )
    .with_path(path)
}

/// `None` where the file is not there yet: nobody holds it, and C makes it.
fn open_lock(operation: &'static str, path: &Path) -> Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Error::io(operation, "the lock file cannot be opened", error).with_path(path))
        }
    }
}

/// Takes the lock libploop is about to take, so that waiting for it has an end in every thread. C
/// opens the file once more, so the lock must be given back before.
fn wait_for_lock(
    operation: &'static str,
    path: &Path,
    file: &File,
    timeout: Duration,
    end: Option<Instant>,
) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                return Err(
                    Error::io(operation, "the lock file cannot be locked", error).with_path(path),
                );
            }
        }
        let left = end.map_or(pause, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(locked(operation, path, "another process", timeout));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until nobody looks for a device, anywhere on the system. libploop's own wait has no end
/// (hazard 0.2). The lock is given back at once: C takes it some time later.
fn poll_device_lock(
    operation: &'static str,
    path: &Path,
    timeout: Duration,
    end: Option<Instant>,
) -> Result<()> {
    static FILE: OnceLock<File> = OnceLock::new();
    if FILE.get().is_none() {
        match open_lock(operation, Path::new(DEVICE_LOCK))? {
            // Of two threads that opened it, one keeps it.
            Some(file) => drop(FILE.set(file)),
            None => return Ok(()),
        }
    }
    let Some(file) = FILE.get() else {
        return Ok(());
    };
    wait_for_lock(operation, path, file, timeout, end)?;
    unlock(file);
    Ok(())
}

/// For operations without a handle that look for a device.
pub(super) fn wait_for_device_lock(operation: &'static str, path: &Path) -> Result<()> {
    let timeout = default_lock_timeout();
    poll_device_lock(operation, path, timeout, deadline(timeout))
}

fn unlock(file: &File) {
    // Nothing can be done about a failure, and none is known for a lock that is held.
    let _ = flock(file, FlockOperation::Unlock);
}

/// The image's turn: the only way to C for operations on an image. The C functions are methods of
/// it, in `image_calls` and their neighbours.
pub(crate) struct Turn<'a> {
    pub(super) image: &'a mut Image,
    pub(super) op: &'static Op,
    /// Until C takes it.
    holds_lock: bool,
    _in_process: InProcess,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.give_lock_back();
    }
}

impl Turn<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.image.path
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.op.name
    }

    /// The name of the device that the call will look for; empty for one without.
    pub(crate) fn component(&self) -> &[u8] {
        match &self.image.component {
            Some(component) if self.op.by_component => component.as_bytes(),
            _ => &[],
        }
    }

    /// How long this operation waits for others.
    pub(super) fn timeout(&self) -> Duration {
        self.image.timeout()
    }

    pub(super) fn c_path(&self) -> Result<CPath> {
        CPath::new(self.op.name, &self.image.path)
    }

    /// The descriptor as it is on disk now.
    pub(crate) fn descriptor(&self) -> Result<Descriptor> {
        Ok(self.descriptor_and_text()?.0)
    }

    pub(crate) fn descriptor_and_text(&self) -> Result<(Descriptor, Vec<u8>)> {
        let path = &self.image.path;
        descriptor::text(path)
            .and_then(|text| Ok((Descriptor::parse(&text, descriptor::directory(path))?, text)))
            .map_err(|error| error.during(self.op.name).with_path(path))
    }

    /// C's handle as it was left is not good enough for this call: see [`Image::handle`].
    pub(super) fn with_new_handle(mut self) -> Self {
        self.forget_handle();
        self
    }

    /// The descriptor is another one now.
    pub(crate) fn forget_handle(&mut self) {
        self.image.handle = None;
    }

    fn give_lock_back(&mut self) {
        if std::mem::take(&mut self.holds_lock) {
            if let Some(file) = &self.image.lock_file {
                unlock(file);
            }
        }
    }

    /// Calls C with the handle. The lock passes to C here. The turn stays, so that the result can be
    /// looked at before another thread changes it.
    pub(super) fn call(
        &mut self,
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32,
    ) -> Result<Reply> {
        self.call_keeping(&[], c)
    }

    /// [`call`](Turn::call), where the closure uses file descriptors of the caller.
    pub(super) fn call_keeping(
        &mut self,
        keep: &[RawFd],
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32,
    ) -> Result<Reply> {
        self.call_by(|op, handle| guarded_keeping(op, keep, || c(handle)))
    }

    /// [`call`](Turn::call), where `guarded` takes the place of [`guarded_keeping`].
    pub(super) fn call_by(
        &mut self,
        guarded: impl FnOnce(&'static Op, *mut sys::ploop_disk_images_data) -> Result<Reply>,
    ) -> Result<Reply> {
        let handle = self.image.handle(self.op.name)?.as_ptr();
        self.give_lock_back();
        let mut reply = guarded(self.op, handle)?;
        if !matches!(reply.code, 0 | 1) {
            self.forget_handle();
            reply.cause = self.descriptor().err();
            reply.descriptor_is_sound = reply.cause.is_none();
        }
        Ok(reply)
    }
}

/// Runs `f` if nobody holds the lock of the descriptor, and holds it meanwhile.
pub(crate) fn if_unlocked(descriptor: &Path, f: impl FnOnce()) {
    let Ok(file) = open_lock("clean up", &paths::lock_file(descriptor)) else {
        return;
    };
    if let Some(file) = &file {
        // The end has come: one attempt.
        let now = Some(Instant::now());
        if wait_for_lock("clean up", descriptor, file, Duration::ZERO, now).is_err() {
            return;
        }
    }
    f();
    // Closing the file gives the lock back.
}

/// A turn at something that is named by a path but has no handle: a descriptor that is being made,
/// a device.
pub(crate) fn alone_at<T>(
    operation: &'static str,
    path: &Path,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    lock_of(path)
        .alone(operation, default_lock_timeout(), f)
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
        let a = lock_of(Path::new("/turn-test/a"));
        assert!(Arc::ptr_eq(&a, &lock_of(Path::new("/turn-test/a"))));
        assert!(!Arc::ptr_eq(&a, &lock_of(Path::new("/turn-test/b"))));
    }

    #[test]
    fn waiting_for_a_turn_ends() {
        let lock = TimedLock::new();
        assert!(lock.acquire(deadline(Duration::ZERO)));
        let begin = Instant::now();
        let refused = lock.alone("test", Duration::from_millis(50), || Ok(()));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Locked);
        assert!(begin.elapsed() >= Duration::from_millis(50));
        lock.release();
        assert!(lock.alone("test", Duration::ZERO, || Ok(())).is_ok());
    }

    #[test]
    fn an_endless_timeout_is_no_overflow() {
        assert!(deadline(Duration::MAX).is_none());
        assert!(TimedLock::new().acquire(deadline(Duration::MAX)));
    }
}
