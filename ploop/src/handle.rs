//! An opened image.

use std::path::Path;
use std::time::Duration;

use crate::ffi::{self, LockedImage};
use crate::{ComponentName, Descriptor, Error, ErrorKind, Feature, Result};

/// libploop counts microseconds in 32 bits.
const MAX_UMOUNT_TIMEOUT: Duration = Duration::from_secs(1800);

/// An image, named by its `DiskDescriptor.xml`.
///
/// A handle can move between threads, and several may name one image, in one process or in many: each operation takes
/// the image's lock and reads the descriptor anew. One image has one operation at a time; different images are
/// independent. A handle is not [`Sync`]: give each thread a clone, or put it in a mutex.
///
/// Operations block. An async program runs them on threads for blocking work, such as tokio's `spawn_blocking`.
///
/// ```
/// use ploop::{CreateParam, Ploop, Size};
///
/// # fn main() -> ploop::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path();
/// let mut image = Ploop::create(&CreateParam::new(dir.join("root.hds"), Size::from_mib(64)).fs(None))?;
/// let before = image.snapshot()?;
/// // … the image is used …
/// image.switch_snapshot(before)?;
/// image.close();
/// # Ok(())
/// # }
/// ```
pub struct Ploop {
    pub(crate) image: ffi::ImageHandle,
}

impl Ploop {
    /// Opens an image by its descriptor (`ploop_open_dd`).
    ///
    /// Symbolic links in the path are resolved now. The descriptor itself is read by each operation, and not here.
    /// Needs no driver; does not wait.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) where there is no such file,
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a delta or a directory (the message says what to open) and for a
    /// path that is empty, has a NUL byte or has 4000 bytes or more.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::Ploop;
    ///
    /// let image = Ploop::open(dir.path().join("DiskDescriptor.xml"))?;
    /// let error = Ploop::open(dir.path().join("root.hds")).unwrap_err();
    /// assert!(error.message().contains("this is a delta"));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn open(descriptor: impl AsRef<Path>) -> Result<Ploop> {
        let image = ffi::ImageHandle::open("open", descriptor.as_ref())?;
        Ok(Ploop { image })
    }

    /// Closes the handle (`ploop_close_dd`), as dropping it does. A mounted image stays mounted.
    pub fn close(self) {}

    /// The absolute path of the descriptor, without symbolic links.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// assert!(image.path().ends_with("DiskDescriptor.xml"));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        self.image.path()
    }

    /// Sets the name under which this handle attaches the image and finds its device
    /// (`ploop_set_component_name`); `None` is no name.
    ///
    /// An image can be attached several times, each time under another name: the top without one, snapshots
    /// read-only under their own. [`mount`](Ploop::mount), [`umount`](Ploop::umount), [`device`](Ploop::device),
    /// [`discard`](Ploop::discard) and [`discard_stat`](Ploop::discard_stat) use the name; all other operations look
    /// for the device without one.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.set_component(Some("backup".parse()?));
    /// assert_eq!(image.component().unwrap().as_str(), "backup");
    /// assert_eq!(image.device()?, None);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn set_component(&mut self, component: Option<ComponentName>) {
        self.image.set_component(component);
    }

    /// The name set with [`set_component`](Ploop::set_component).
    #[must_use]
    pub fn component(&self) -> Option<&ComponentName> {
        self.image.component()
    }

    /// Sets how long operations of this handle wait for the image's lock; `None` is
    /// [the process's default](crate::lock::timeout), zero is one attempt.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.set_lock_timeout(Some(std::time::Duration::from_secs(5)));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn set_lock_timeout(&mut self, timeout: Option<Duration>) {
        self.image.set_timeout(timeout);
    }

    /// Sets how long operations of this handle wait for a file system that is in use, and again for its device, when
    /// they unmount (`ploop_set_umount_timeout`); `None` is libploop's own time, 60 s each. A part of a second counts
    /// as a whole one, and zero is a second attempt after a moment.
    ///
    /// Since libploop 7.0.92, so with each version of line 7 that this crate takes.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) with libploop 1, which waits for six seconds, and for a minute,
    /// whatever it is told; [`InvalidInput`](crate::ErrorKind::InvalidInput) for more than half an hour, which libploop
    /// miscalculates.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use std::time::Duration;
    ///
    /// match image.set_umount_timeout(Some(Duration::from_secs(5))) {
    ///     Err(error) if error.kind() == ploop::ErrorKind::Unsupported => {}
    ///     other => other?,
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn set_umount_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        const OPERATION: &str = "set unmount timeout";
        Feature::UmountTimeout.require(OPERATION, self.path())?;
        if timeout.is_some_and(|timeout| timeout > MAX_UMOUNT_TIMEOUT) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                format!(
                    "the timeout is above {} s, the longest that libploop calculates right",
                    MAX_UMOUNT_TIMEOUT.as_secs()
                ),
            )
            .with_path(self.path()));
        }
        let seconds = timeout.map(|timeout| {
            let started = u64::from(timeout.subsec_nanos() > 0);
            (timeout.as_secs() + started) as i32
        });
        self.image.set_umount_timeout(seconds);
        Ok(())
    }

    /// Reads the descriptor: size, mode, cluster, images and the snapshot tree, as they are now.
    ///
    /// Needs no driver. Waits for the image's lock.
    ///
    /// # Errors
    ///
    /// As [`Descriptor::open`], and [`Locked`](crate::ErrorKind::Locked).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.snapshot()?;
    /// let descriptor = image.descriptor()?;
    /// for image in descriptor.chain(descriptor.top) {
    ///     println!("{} is in {}", image.guid, image.file.display());
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn descriptor(&self) -> Result<Descriptor> {
        self.image.lock(&LockedImage::DESCRIPTOR)?.descriptor()
    }
}

/// Another handle of the same image, with the same component and timeouts: for another thread, say.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
/// # let image = ploop::Ploop::create(&param.fs(None))?;
/// let mut other = image.clone();
/// let snapshot = std::thread::spawn(move || other.snapshot()).join().unwrap()?;
/// assert!(image.descriptor()?.snapshot(snapshot).is_some());
/// # Ok::<(), ploop::Error>(())
/// ```
impl Clone for Ploop {
    fn clone(&self) -> Ploop {
        Ploop {
            image: self.image.another(),
        }
    }
}

impl std::fmt::Debug for Ploop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ploop")
            .field("descriptor", &self.path())
            .field("component", &self.component())
            .finish()
    }
}
