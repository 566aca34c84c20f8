//! [`OfflineImage`]: changes of an image that is not attached, without libploop and the driver.

mod change;
mod compact;
mod convert;
mod copy;
mod create;
mod delta;
mod free_parts;
mod grow;
mod import;
mod in_use;
mod merge;
mod repair;
mod restore;
mod size;
mod snapshot;
mod target;
mod upgrade;

pub use compact::{CompactOptions, CompactReport, CompactedDelta};
pub use create::{CreateOptions, create, import, import_disk};
pub use free_parts::FreeParts;
pub use repair::{
    RepairChoice, RepairGeometry, RepairItem, RepairOptions, RepairOutcome, RepairReport,
};
pub use restore::restore_descriptor;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::descriptor::{Descriptor, require_readable};
use crate::lock::{self, ImageLock, Purpose};
use crate::{Error, Result};

/// An image that no device has, and that is changed by its files alone: libploop, the driver and root are not needed.
/// Needs the feature `image-write`.
///
/// Both types may be used on one image by turns: an operation here takes the same locks, `DiskDescriptor.xml.lck` among
/// them, which libploop takes as well, waits for them as long as `ploop::lock` says, and leaves files as libploop would.
/// libploop makes no delta of format v2 where the driver is missing; this does.
///
/// # What is refused
///
/// * An image of which a device of the driver has any delta: [`Busy`](crate::ErrorKind::Busy).
/// * An image whose top is marked as in use: [`Busy`](crate::ErrorKind::Busy). A program works with it on this host or on
///   another one, or the host went down; [`clear_in_use_marks`](OfflineImage::clear_in_use_marks) and
///   [`repair`](OfflineImage::repair) are for that.
/// * An image whose lock somebody else holds for too long: [`Locked`](crate::ErrorKind::Locked).
/// * Encrypted images, and volumes that share deltas with others: [`Unsupported`](crate::ErrorKind::Unsupported).
/// * A change that would write to a delta in another directory, or remove it, where a descriptor there names it: it is
///   that of another image: [`Unsupported`](crate::ErrorKind::Unsupported). The manual says more under trust.
/// * Where the program runs as root, images that other users can write to:
///   [`PermissionDenied`](crate::ErrorKind::PermissionDenied), see `ploop::trust`.
///
/// # After a failure, a kill or a power cut
///
/// Each operation writes what is new, syncs it, puts the new descriptor in place, syncs that, and removes what is old.
/// Before, the image is as it was; afterwards, the operation is done. The next change, of this type or of `Ploop`,
/// removes what was left, or finishes what was begun. What differs from that is said at the operation: a
/// [merge](OfflineImage::merge) into an existing delta.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use ploop::image::{ChainOptions, Descriptor, Image, ImageKind, create_delta};
/// # use ploop::{ClusterSize, FormatVersion, Guid, Size};
/// # let base = dir.path().join("root.hds");
/// # let size = Size::from_mib(64);
/// # create_delta(&base, FormatVersion::V2, ClusterSize::DEFAULT, size)?;
/// # let descriptor = Descriptor::new(size, Image::new(Guid::TOP, &base, ImageKind::Compressed));
/// # std::fs::write(dir.path().join("DiskDescriptor.xml"), descriptor.to_xml(dir.path())?).unwrap();
/// use ploop::image::OfflineImage;
///
/// let mut image = OfflineImage::open(dir.path().join("DiskDescriptor.xml"))?;
/// let before = image.snapshot()?;
/// // … the disk is written to …
/// image.switch_snapshot(before)?;
/// image.delete_snapshot(before, |progress| println!("{}", progress.copied))?;
/// # Ok::<(), ploop::Error>(())
/// ```
pub struct OfflineImage {
    lock: ImageLock,
    timeout: Option<Duration>,
    cancel: Option<Arc<AtomicBool>>,
}

impl OfflineImage {
    /// Opens an image by its descriptor, which each operation reads anew. Symbolic links in the path are resolved now.
    ///
    /// ```no_run
    /// use ploop::image::OfflineImage;
    ///
    /// let image = OfflineImage::open("/backup/101/DiskDescriptor.xml")?;
    /// println!("{} snapshots", image.descriptor()?.snapshots.len());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) where there is no such file,
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a delta or a directory; the message says what to open.
    pub fn open(descriptor: impl AsRef<Path>) -> Result<OfflineImage> {
        const OPERATION: &str = "open";
        let path = descriptor.as_ref();
        let resolved = fs::canonicalize(path).map_err(|error| {
            Error::io(OPERATION, "the file cannot be found", error).with_path(path)
        })?;
        require_readable(&resolved).map_err(|error| error.during(OPERATION).with_path(path))?;
        Ok(OfflineImage {
            lock: ImageLock::of(&resolved),
            timeout: None,
            cancel: None,
        })
    }

    /// The absolute path of the descriptor, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.lock.descriptor()
    }

    /// How long operations wait for the image's locks; `None` is [the process's default](crate::lock::timeout), zero is
    /// one attempt.
    pub fn set_lock_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// A flag that ends operations which copy data, once it is set: they fail with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), and leave what they leave after any other failure. `None` is none.
    pub fn set_cancel(&mut self, flag: Option<Arc<AtomicBool>>) {
        self.cancel = flag;
    }

    /// Reads the descriptor, under the image's lock.
    ///
    /// # Errors
    ///
    /// As [`Descriptor::open`], and [`Locked`](crate::ErrorKind::Locked).
    pub fn descriptor(&self) -> Result<Descriptor> {
        const OPERATION: &str = "read descriptor";
        let _lock = self
            .lock
            .acquire(OPERATION, Purpose::Look, false, self.timeout())?;
        Descriptor::open(self.path())
    }

    fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(lock::timeout)
    }
}

impl std::fmt::Debug for OfflineImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfflineImage")
            .field("descriptor", &self.path())
            .finish()
    }
}
