//! [`MountGuard`] and [`OwnedMountGuard`]: images that are mounted for as long as a value lives.

use std::error::Error as StdError;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::{Error, MountParam, Mounted, Ploop, Result};

impl Ploop {
    /// [`mount`](Ploop::mount) for as long as the guard lives.
    ///
    /// The guard dereferences to the handle, so that operations work through it while the image is mounted. Dropping
    /// it unmounts, and ignores an error; [`MountGuard::umount`] returns it. In a forked child, dropping it does nothing.
    ///
    /// # Errors
    ///
    /// As [`mount`](Ploop::mount).
    ///
    /// ```no_run
    /// use ploop::{MountParam, Ploop};
    ///
    /// let mut image = Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// let mut guard = image.mount_guard(&MountParam::new().target("/mnt"))?;
    /// guard.snapshot()?;
    /// guard.umount()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn mount_guard(&mut self, param: &MountParam) -> Result<MountGuard<'_>> {
        let mount = GuardedMount::begin(self, param)?;
        Ok(MountGuard { ploop: self, mount })
    }

    /// [`mount`](Ploop::mount) for as long as the guard lives, which has the handle in it: for a program
    /// that keeps what it has mounted in a struct of its own.
    ///
    /// # Errors
    ///
    /// As [`mount`](Ploop::mount). The handle comes back in the error; `?` drops it.
    ///
    /// ```no_run
    /// use ploop::{MountParam, OwnedMountGuard, Ploop};
    ///
    /// struct Volume {
    ///     mount: OwnedMountGuard,
    /// }
    ///
    /// # fn main() -> ploop::Result<()> {
    /// let image = Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// let mut volume = Volume {
    ///     mount: image.into_mount_guard(&MountParam::new().target("/mnt"))?,
    /// };
    /// volume.mount.snapshot()?;
    /// match volume.mount.umount() {
    ///     Ok(image) => image.close(),
    ///     // Still mounted.
    ///     Err(failed) => {
    ///         eprintln!("{failed}");
    ///         volume.mount = failed.value;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_mount_guard(
        mut self,
        param: &MountParam,
    ) -> Result<OwnedMountGuard, ErrorWith<Ploop>> {
        match GuardedMount::begin(&mut self, param) {
            Ok(mount) => Ok(OwnedMountGuard {
                ploop: self,
                mount: Box::new(mount),
            }),
            Err(error) => Err(ErrorWith { value: self, error }),
        }
    }
}

/// What a guard unmounts.
#[derive(Debug)]
struct GuardedMount {
    mounted: Mounted,
    /// A handle of its own: the program can change the one that the guard gives it, or put another in its place.
    handle: Ploop,
    /// The process that mounted. A copy of the guard in a forked child unmounts nothing.
    process: u32,
    unmounts_on_drop: bool,
}

impl GuardedMount {
    fn begin(ploop: &mut Ploop, param: &MountParam) -> Result<GuardedMount> {
        Ok(GuardedMount {
            mounted: ploop.mount(param)?,
            handle: ploop.clone(),
            process: std::process::id(),
            unmounts_on_drop: true,
        })
    }

    /// Waits for the lock as long as `ploop` would, which has the component of the mount afterwards.
    fn umount(&mut self, ploop: &mut Ploop) -> Result<()> {
        if ploop.path() == self.handle.path() {
            ploop.set_component(self.handle.component().cloned());
        }
        self.handle.set_lock_timeout(Some(ploop.image.timeout()));
        self.handle
            .image
            .set_umount_timeout(ploop.image.umount_timeout());
        self.handle.umount()
    }

    fn end(&mut self, ploop: &mut Ploop) {
        if self.unmounts_on_drop && self.process == std::process::id() {
            // Nobody is there to be told; `umount` is for those who ask.
            let _ = self.umount(ploop);
        }
    }
}

/// A mounted image that is unmounted when this is dropped. See [`Ploop::mount_guard`].
#[derive(Debug)]
#[must_use = "dropping the guard unmounts the image"]
pub struct MountGuard<'a> {
    ploop: &'a mut Ploop,
    mount: GuardedMount,
}

impl MountGuard<'_> {
    /// What was mounted where.
    #[must_use]
    pub fn mounted(&self) -> &Mounted {
        &self.mount.mounted
    }

    /// Unmounts.
    ///
    /// # Errors
    ///
    /// As [`Ploop::umount`]. After an error the image is still attached, and the handle can try again.
    pub fn umount(mut self) -> Result<()> {
        self.mount.unmounts_on_drop = false;
        self.mount.umount(self.ploop)
    }

    /// Leaves the image mounted.
    pub fn keep(mut self) -> Mounted {
        self.mount.unmounts_on_drop = false;
        self.mount.mounted.clone()
    }
}

impl Deref for MountGuard<'_> {
    type Target = Ploop;

    fn deref(&self) -> &Ploop {
        self.ploop
    }
}

impl DerefMut for MountGuard<'_> {
    fn deref_mut(&mut self) -> &mut Ploop {
        self.ploop
    }
}

impl Drop for MountGuard<'_> {
    fn drop(&mut self) {
        self.mount.end(self.ploop);
    }
}

/// A mounted image, with its handle, that is unmounted when this is dropped. See
/// [`Ploop::into_mount_guard`].
#[derive(Debug)]
#[must_use = "dropping the guard unmounts the image"]
pub struct OwnedMountGuard {
    ploop: Ploop,
    mount: Box<GuardedMount>,
}

impl OwnedMountGuard {
    /// What was mounted where.
    #[must_use]
    pub fn mounted(&self) -> &Mounted {
        &self.mount.mounted
    }

    /// Unmounts, and gives the handle back.
    ///
    /// # Errors
    ///
    /// As [`Ploop::umount`]. After an error the image is still attached, and the guard comes back in the error to try again. One
    /// that is not wanted, as with `?`, tries once more when it is dropped, unless it is told to
    /// [`keep`](OwnedMountGuard::keep).
    pub fn umount(mut self) -> Result<Ploop, ErrorWith<OwnedMountGuard>> {
        match self.mount.umount(&mut self.ploop) {
            Ok(()) => Ok(self.keep().0),
            Err(error) => Err(ErrorWith { value: self, error }),
        }
    }

    /// Leaves the image mounted, and gives the handle back.
    pub fn keep(mut self) -> (Ploop, Mounted) {
        self.mount.unmounts_on_drop = false;
        (self.ploop.clone(), self.mount.mounted.clone())
    }
}

impl Deref for OwnedMountGuard {
    type Target = Ploop;

    fn deref(&self) -> &Ploop {
        &self.ploop
    }
}

impl DerefMut for OwnedMountGuard {
    fn deref_mut(&mut self) -> &mut Ploop {
        &mut self.ploop
    }
}

impl Drop for OwnedMountGuard {
    fn drop(&mut self) {
        self.mount.end(&mut self.ploop);
    }
}

/// The error of a call that takes a value for good, with the value: nothing is lost by the failure. It becomes an
/// [`Error`] by `?`.
#[non_exhaustive]
pub struct ErrorWith<T> {
    /// What the call has taken.
    pub value: T,
    /// Why it failed.
    pub error: Error,
}

impl<T> From<ErrorWith<T>> for Error {
    fn from(failed: ErrorWith<T>) -> Error {
        failed.error
    }
}

impl<T> fmt::Display for ErrorWith<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

/// As that of the error, for `unwrap` and for programs whose `main` returns it.
impl<T> fmt::Debug for ErrorWith<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl<T> StdError for ErrorWith<T> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}
