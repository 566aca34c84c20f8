//! In-use marks that a program which was killed has left.

use super::OfflineImage;
use super::change::OfflineChange;
use crate::image::header::Header;
use crate::image::recovery::detached::clear_unused_mark;
use crate::{Guid, Result};

impl OfflineImage {
    /// Clears the in-use marks of all deltas, and returns whose they were. A mark says that a program has the delta open, on
    /// this host or another one: clear it only if none has, as after a crash of the host. What was written last before that
    /// may be missing on the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// for guid in image.clear_in_use_marks()? {
    ///     println!("{guid} was marked");
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) where the table of a marked delta is damaged: its mark stays; and those that
    /// [all operations](OfflineImage#what-is-refused) have, but for that of a marked top.
    pub fn clear_in_use_marks(&mut self) -> Result<Vec<Guid>> {
        let change = OfflineChange::begin_marked(self, "clear in-use marks")?;
        let mut cleared = Vec::new();
        for image in &change.descriptor.images {
            let is_marked = Header::read(&image.file).is_ok_and(|header| header.in_use);
            if !change.is_raw_base(image) && is_marked {
                change.require_of_no_other_image([&*image.file])?;
                clear_unused_mark(change.operation(), &change.descriptor, image)?;
                cleared.push(image.guid);
            }
        }
        Ok(cleared)
    }
}
