//! The lock of an image, and how long operations wait for it.
//!
//! An operation takes three locks, in this order. It waits for them for at most [the time set here](set_timeout), in
//! any thread, and then ends with [`ErrorKind::Locked`]:
//!
//! 1. a lock among the threads of this process;
//! 2. for a change, `DiskDescriptor.xml.op.lck`, which only this crate knows. It is held until the operation ends, and
//!    then removed;
//! 3. libploop's own, `DiskDescriptor.xml.lck`. It is made where it is missing, and held while the descriptor is read
//!    and checked. libploop takes it itself, so it is released immediately before libploop is called.
//!
//! An operation on a [volume](crate::image::Volume) that stands upon other images then locks both files of each of these,
//! upwards, together with others that do so: who changes one of them waits until the operation ends.
//!
//! So a program that uses this crate never sees an image while another such program is in the middle of an operation on it.
//! `image::OfflineImage`, which does without libploop, holds all three until the operation ends.
//!
//! # Programs that use libploop without this crate
//!
//! They know only the third lock. One of them may get it in the microseconds between its release and libploop's call;
//! then libploop waits, for at most 60 seconds. Nothing that the other program does is overwritten: libploop reads
//! the descriptor once it has the lock, and works on what it finds. A snapshot that is gone by then is an error, and
//! what libploop reports as done is done. But this crate has checked the image as it was before. It does not see that
//! in this moment
//!
//! * the image was attached. libploop looks for a device itself, by the path of the base, and then works on the
//!   running image; but not in a conversion, and not in a switch with one of the flags of
//!   [`SwitchFlag`](crate::SwitchFlag) (`SKIP_DESTROY`, `SKIP_CREATE`), which change the files under the device;
//! * the snapshot that [`SKIP_CREATE`](crate::SwitchFlag::SKIP_CREATE) makes the top got another child;
//! * a merge of [all](crate::MergeTarget::All) or of the [top](crate::MergeTarget::Top) begins at a newer top;
//! * a damaged delta was added.
//!
//! What the operation should have done is looked at after the call: the delta that libploop was to remove is gone, or named by the descriptor
//! again (deleting, switching); the descriptor has the new delta (replacing), the mark (deleting a snapshot with
//! several children) or the limit (`Ploop::set_max_delta_size`). The checks do not take
//! the lock: where another program has changed the same thing since, they report an error although the work was done.
//! What libploop drops from a descriptor is put back into the one that is there by then. For the rest libploop's word
//! is taken.
//!
//! # The files
//!
//! Both files are locked with `flock`, have mode 0600, and may not be symbolic links. A file that is replaced while
//! somebody waits for it is opened again. On NFS the locks work between all hosts that have mounted the directory, if
//! the server and the kernels (2.6.12 or later) support locks. With the mount options `nolock` and `local_lock` they
//! work only between the processes of one host.

mod lock_file;
mod lock_wait;
mod thread_lock;

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lock_file::{LockFile, Share};
use lock_wait::LockWait;
use thread_lock::thread_lock_of;

use crate::{Error, ErrorKind, Result, side_files};

pub(crate) use thread_lock::{TimedLock, with_lock_of};

/// libploop's lock around its search for devices.
const DEVICES: &str = "/var/lock/ploop/ploop.lck";

/// The directory of that lock.
#[cfg(feature = "libploop")]
const LOCK_DIRECTORY: &str = "/var/lock/ploop";

/// As libploop's own limit.
static TIMEOUT_MILLIS: AtomicU64 = AtomicU64::new(60_000);

/// How long operations wait for a lock, unless their handle has a limit of its own (`set_lock_timeout`;
/// default: 60 seconds).
#[must_use]
pub fn timeout() -> Duration {
    Duration::from_millis(TIMEOUT_MILLIS.load(Ordering::Relaxed))
}

/// Sets how long operations wait, for the whole process. Zero means one attempt.
///
/// `set_lock_timeout` of `Ploop` and `OfflineImage` sets it for one handle.
///
/// ```
/// use std::time::Duration;
///
/// ploop::lock::set_timeout(Duration::from_secs(5));
/// assert_eq!(ploop::lock::timeout(), Duration::from_secs(5));
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_timeout(timeout: Duration) {
    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    TIMEOUT_MILLIS.store(millis, Ordering::Relaxed);
}

/// What an image is locked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at devices. Locks out the threads of this process only: libploop does not lock the descriptor here.
    Devices,
    /// To read the descriptor.
    Look,
    /// To change the image.
    Change,
}

/// The lock of one image.
pub(crate) struct ImageLock {
    descriptor: PathBuf,
    thread_lock: Arc<TimedLock>,
    /// Kept open: opening it costs more than the lock itself.
    libploop: Cell<Option<Arc<LockFile>>>,
}

impl ImageLock {
    pub(crate) fn of(descriptor: &Path) -> ImageLock {
        ImageLock {
            descriptor: descriptor.to_owned(),
            thread_lock: thread_lock_of(descriptor),
            libploop: Cell::default(),
        }
    }

    pub(crate) fn descriptor(&self) -> &Path {
        &self.descriptor
    }

    pub(crate) fn acquire(
        &self,
        operation: &'static str,
        purpose: Purpose,
        finds_device: bool,
        timeout: Duration,
    ) -> Result<ImageLockGuard> {
        let wait = LockWait::new(operation, &self.descriptor, timeout);
        if !self.thread_lock.acquire(wait.deadline) {
            return Err(wait.timed_out("another thread of this process"));
        }
        // From here on an error gives everything back.
        let mut held = ImageLockGuard {
            libploop: Mutex::new(None),
            libploop_file: None,
            operation: None,
            _thread_lock: ThreadLockGuard(Arc::clone(&self.thread_lock)),
        };
        if purpose == Purpose::Change {
            held.operation = OperationLock::acquire(&self.descriptor, &wait)?;
        }
        if purpose != Purpose::Devices {
            let path = side_files::lock_file(&self.descriptor);
            let file = LockFile::acquire(self.libploop.take(), &path, &wait)?;
            self.libploop.set(Some(Arc::clone(&file)));
            held.libploop_file = Some(Arc::clone(&file));
            held.libploop = Mutex::new(Some(file));
        }
        if finds_device {
            wait_for_devices_lock(&wait)?;
        }
        Ok(held)
    }
}

/// The locks of an image, held until this is dropped.
///
/// Here it is said how a line of libploop locks. This one, and 7.x, take `flock` on a file beside the descriptor,
/// in an open file of their own, so that ours must be given back before. (8.x and 9.x take record locks on the
/// base image. Those of one process do not exclude each other; they would be held on, and no file of
/// the base may be closed meanwhile.)
pub(crate) struct ImageLockGuard {
    /// While libploop does not have it.
    libploop: Mutex<Option<Arc<LockFile>>>,
    libploop_file: Option<Arc<LockFile>>,
    operation: Option<OperationLock>,
    _thread_lock: ThreadLockGuard,
}

impl ImageLockGuard {
    /// The open file of libploop's lock, if that is held.
    pub(crate) fn libploop_file(&self) -> Option<RawFd> {
        self.libploop().as_ref().map(|file| file.file.as_raw_fd())
    }

    /// Gives libploop's lock back, for libploop to take it.
    pub(crate) fn hand_over(&self) {
        if let Some(file) = self.libploop().take() {
            file.unlock();
        }
    }

    /// After a call of libploop: runs `f` under its lock, if it can be had within a moment: a program that uses
    /// libploop alone may have it by now.
    pub(crate) fn try_with_libploop_lock(&self, f: impl FnOnce()) {
        const MOMENT: Duration = Duration::from_secs(1);
        let mut libploop = self.libploop();
        let Some(file) = self.libploop_file.as_ref().filter(|_| libploop.is_none()) else {
            // Never given back, or not needed.
            return f();
        };
        let wait = LockWait::new("clean up", &file.path, MOMENT);
        if let Ok(file) = LockFile::acquire(Some(Arc::clone(file)), &file.path, &wait) {
            *libploop = Some(file);
            f();
            drop(libploop);
            self.hand_over();
        }
    }

    fn libploop(&self) -> MutexGuard<'_, Option<Arc<LockFile>>> {
        self.libploop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ImageLockGuard {
    fn drop(&mut self) {
        self.hand_over();
        // Before the next thread of this process comes.
        self.operation = None;
    }
}

struct ThreadLockGuard(Arc<TimedLock>);

impl Drop for ThreadLockGuard {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The lock that this crate holds through a whole operation. It is a file of its own. NFS implements `flock` by record
/// locks, so a second lock on libploop's file would exclude libploop. A lock on the directory could be held by everybody
/// who may read it.
struct OperationLock(Arc<LockFile>);

impl OperationLock {
    /// `None` where there is no room for a file: what needs none, or makes room, still works then.
    fn acquire(descriptor: &Path, wait: &LockWait<'_>) -> Result<Option<OperationLock>> {
        match LockFile::acquire(None, &side_files::operation_lock_file(descriptor), wait) {
            Ok(file) => Ok(Some(OperationLock(file))),
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Held while a file is made under a name, until it is part of an image or removed. So of two operations that make a
/// file under one name, neither removes the file of the other.
pub(crate) struct NewFileLock(
    #[expect(dead_code, reason = "given back when dropped")] Option<OperationLock>,
);

impl NewFileLock {
    pub(crate) fn acquire(
        operation: &'static str,
        file: &Path,
        timeout: Duration,
    ) -> Result<NewFileLock> {
        let wait = LockWait::new(operation, file, timeout);
        OperationLock::acquire(file, &wait).map(NewFileLock)
    }
}

/// Held while a device is copied. Two copies at once would take each other's changes from the driver, and both would
/// lack some. It is a file beside libploop's lock for all devices.
pub(crate) struct CopyLock(OperationLock);

impl CopyLock {
    pub(crate) fn acquire(operation: &'static str, device: &Path) -> Result<CopyLock> {
        let devices = Path::new(DEVICES);
        let mut name = device.file_name().unwrap_or_default().to_owned();
        name.push(".copy.lck");
        let path = devices.with_file_name(name);
        if let Some(directory) = devices.parent() {
            // If it cannot be made, the file cannot be opened.
            let _ = fs::DirBuilder::new().mode(0o700).create(directory);
        }
        let wait = LockWait::new(operation, device, timeout());
        LockFile::acquire(None, &path, &wait).map(|file| CopyLock(OperationLock(file)))
    }

    /// A process that shares the open file keeps the lock after the end of this one.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.0.0.file.as_fd()
    }
}

impl Drop for OperationLock {
    fn drop(&mut self) {
        // Who waits for it finds that it is gone, and makes another one.
        let _ = fs::remove_file(&self.0.path);
        self.0.unlock();
    }
}

/// The locks of an image that is read, and may not be changed meanwhile: a volume stands upon it. Other volumes that stand
/// upon it hold them as well, for a merge of one may not keep the others from being mounted.
///
/// The threads of this process are kept out by the files, too: so nobody waits for a thread that waits for such a lock.
#[cfg(feature = "libploop")]
pub(crate) struct SharedImageLock {
    libploop: Arc<LockFile>,
    /// Given back last.
    _operation: SharedOperationLock,
}

#[cfg(feature = "libploop")]
impl SharedImageLock {
    pub(crate) fn acquire(
        operation: &'static str,
        descriptor: &Path,
        timeout: Duration,
    ) -> Result<SharedImageLock> {
        let wait = LockWait::new(operation, descriptor, timeout);
        let path = side_files::operation_lock_file(descriptor);
        let operation = match LockFile::acquire_as(Share::Readers, None, &path, &wait) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NoSpace => None,
            Err(error) => return Err(error),
        };
        // From here on an error gives it back.
        let operation = SharedOperationLock(operation);
        let path = side_files::lock_file(descriptor);
        let libploop = LockFile::acquire_as(Share::Readers, None, &path, &wait)?;
        Ok(SharedImageLock {
            libploop,
            _operation: operation,
        })
    }
}

#[cfg(feature = "libploop")]
impl Drop for SharedImageLock {
    fn drop(&mut self) {
        self.libploop.unlock();
    }
}

/// Held while volumes are made, changed or removed: each of these operations works on several images, and finishes what
/// another one has left. One for all volumes of a host, for root; and one for each other user.
#[cfg(feature = "libploop")]
pub(crate) struct VolumesLock(Arc<LockFile>);

#[cfg(feature = "libploop")]
impl VolumesLock {
    pub(crate) fn acquire(operation: &'static str, volume: &Path) -> Result<VolumesLock> {
        let user = rustix::process::geteuid();
        let path = match user.is_root() {
            true => {
                // As libploop makes it.
                let made = fs::DirBuilder::new()
                    .mode(0o755)
                    .recursive(true)
                    .create(LOCK_DIRECTORY);
                made.map_err(|error| {
                    let what = "the directory of the lock cannot be made";
                    Error::io(operation, what, error).with_path(LOCK_DIRECTORY)
                })?;
                Path::new(LOCK_DIRECTORY).join("volumes.lck")
            }
            false => PathBuf::from(format!("{LOCK_DIRECTORY}-volumes.{}.lck", user.as_raw())),
        };
        let wait = LockWait::new(operation, volume, timeout());
        LockFile::acquire(None, &path, &wait).map(VolumesLock)
    }
}

#[cfg(feature = "libploop")]
impl Drop for VolumesLock {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

/// Half of a [`SharedImageLock`].
#[cfg(feature = "libploop")]
struct SharedOperationLock(
    /// `None` where there is no room for a file.
    Option<Arc<LockFile>>,
);

#[cfg(feature = "libploop")]
impl Drop for SharedOperationLock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // The last one removes it. Nobody else has it then, nor a newer file of this name.
            if file.try_lock(Share::Nobody).unwrap_or(false) && file.is_current() {
                let _ = fs::remove_file(&file.path);
            }
            file.unlock();
        }
    }
}

/// For operations without a handle that look for a device, and those that find one half attached.
pub(crate) fn wait_for_devices(
    operation: &'static str,
    path: &Path,
    timeout: Duration,
) -> Result<()> {
    wait_for_devices_lock(&LockWait::new(operation, path, timeout))
}

/// Waits until nobody looks for a device, anywhere on the system. libploop's own wait has no end
/// (hazard A12). The lock is given back at once: libploop takes it some time later.
fn wait_for_devices_lock(wait: &LockWait<'_>) -> Result<()> {
    let path = Path::new(DEVICES);
    match fs::symlink_metadata(path) {
        // One that libploop has not made yet is held by nobody.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => {
            LockFile::acquire(None, path, wait)?.unlock();
            Ok(())
        }
    }
}
