//! Growing the disk: what `ploop grow` does to an image that is not attached.

use super::OfflineImage;
use super::change::OfflineChange;
use super::size::whole_clusters;
use super::target::Target;
use crate::{ErrorKind, FormatVersion, Result, Size};

impl OfflineImage {
    /// Makes the disk larger; the size is rounded up to whole clusters. The partition table and the file systems inside
    /// stay as they are. Snapshots keep their sizes.
    ///
    /// The top delta gets a longer table, for which some clusters may be moved; a raw base gets the whole space.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// use ploop::Size;
    /// use ploop::image::Disk;
    ///
    /// image.grow(Size::from_mib(256))?;
    /// assert_eq!(Disk::open(image.path())?.size(), Size::from_mib(256));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a smaller size and for one that the format cannot hold;
    /// [`Unsupported`](ErrorKind::Unsupported) where the top delta's file has several names;
    /// [`NoSpace`](ErrorKind::NoSpace); [`Corrupt`](ErrorKind::Corrupt) where the top delta is damaged; and those that
    /// [all operations](OfflineImage#what-is-refused) have. After an error or an interruption the disk has the old size
    /// or the new one, and the file may be longer.
    pub fn grow(&mut self, size: Size) -> Result<()> {
        let mut change = OfflineChange::begin(self, "grow image")?;
        change.merge_temporary_snapshots(&mut |_| {})?;
        let top = change.image(change.descriptor.top)?.clone();
        let sound = change.require_sound([&top])?;
        let version = sound.first().and_then(|delta| delta.version);
        let old = change.size_of(&top)?;
        // A raw base has no table. Whatever is put upon it can be of version 2.
        let version = version.unwrap_or(FormatVersion::V2);
        let cluster = change.descriptor.cluster;
        let size = whole_clusters(change.operation(), version, cluster, size)
            .map_err(|error| error.with_path(change.path()))?;
        if size < old {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!("the disk has {old}, and cannot shrink to {size}"),
            );
        }
        change.require_own_file(&top)?;
        let mut new = change.descriptor.clone();
        new.size = size;
        let is_raw = change.is_raw_base(&top);
        if is_raw {
            // Only the descriptor says how large a raw base is to be.
            change.stage(&new)?;
        }
        let mut target = Target::open(&change, &top)?;
        target.grow(size)?;
        target.finish()?;
        match is_raw {
            true => change.put_staged(new),
            false => change.put(new),
        }
    }
}
