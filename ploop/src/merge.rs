//! Merging deltas.

use std::fs;
use std::path::{Path, PathBuf};

use crate::change::{Change, DescriptorWrite};
use crate::ffi::{CPath, CText, LockedImage};
use crate::identity::Identity;
use crate::image::Image;
use crate::lock::NewFileLock;
use crate::{Descriptor, Error, ErrorKind, Guid, MergeParam, Ploop, Result, paths};

impl Ploop {
    /// Merges deltas of one chain (`ploop_merge_snapshot`).
    ///
    /// What remains is the state of the upper end; the others are gone. Needs root, and the driver only where the image
    /// is attached. Takes as long as copying the data of the upper deltas.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the base, for ends that are not on one chain, where a delta
    /// between has other children, and for a merge of the top's child into the top;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) for a new delta that is there,
    /// [`Unsupported`](ErrorKind::Unsupported) for a new file in the place of a raw base, and for one of format v2
    /// without a driver that supports large disks; [`Busy`](ErrorKind::Busy) for a mounted snapshot,
    /// [`Corrupt`](ErrorKind::Corrupt) for a damaged delta. After an error all deltas are there. A merge that failed
    /// or was cut short after it had begun to write leaves the deltas below the upper end marked
    /// [temporary](crate::image::Snapshot::temporary): their states are gone, since the lowest already holds part of
    /// the data of the others. The upper end reads as before. The next change or mount finishes the merge. One that
    /// was killed may leave clusters of the lowest that no entry uses
    /// ([`LostClusters`](crate::image::Issue::LostClusters)): they take space, and hold nothing. A merge to a new file
    /// leaves all as it was.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::{MergeParam, MergeTarget};
    ///
    /// image.snapshot()?;
    /// image.snapshot()?;
    /// image.merge(&MergeParam::new(MergeTarget::All))?;
    /// assert_eq!(image.descriptor()?.images.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn merge(&mut self, param: &MergeParam) -> Result<()> {
        self.merge_deltas(param)
            .map_err(|error| match &param.new_delta {
                Some(file) => error.with_paths(self.path(), file),
                None => error,
            })
    }

    fn merge_deltas(&mut self, param: &MergeParam) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::MERGE)?;
        let descriptor = &change.descriptor;
        // Also keeps C from walking a loop for ever (8): the descriptor was read as a tree.
        let merged = descriptor
            .deltas_to_merge(change.operation(), param.target)
            .map_err(|error| change.refused(error))?;
        let guids: Vec<Guid> = merged.iter().map(|image| image.guid).collect();
        change.require_no_child_of_top(&guids[..guids.len() - 1])?;
        change.require_of_no_other_image(&guids)?;
        change.require_unattached(&guids)?;
        if param.new_delta.is_none() {
            change.require_no_hard_links(guids[0])?;
        }
        change.require_mergeable(&merged)?;
        let new_delta = param
            .new_delta
            .as_deref()
            .map(|file| new_delta(&change, file))
            .transpose()?;
        let raw_base = descriptor.is_raw_base(guids[0]);
        if new_delta.is_some() && raw_base {
            return change.refuse(
                ErrorKind::Unsupported,
                "libploop writes new deltas with a header, and a raw base has none; merge without a new file",
            );
        }
        let removed = &guids[..guids.len() - 1];
        let write = match new_delta {
            None => DescriptorWrite::Merge(removed),
            Some(_) => DescriptorWrite::MergeToNewFile(removed),
        };
        let is_done = |now: &Descriptor| {
            let mut removed = removed.iter();
            removed.all(|merged| now.snapshot(*merged).is_none())
        };
        let c_guids: Vec<CText> = guids.iter().copied().map(CText::guid).collect();
        let result = change.run_until(write, is_done, |locked| {
            locked.merge(&c_guids, new_delta.as_ref().map(|new| &new.c_path))
        });
        match (&result, &new_delta) {
            // Of a program that uses libploop by itself.
            (Err(error), Some(_)) if error.kind() == ErrorKind::AlreadyExists => {}
            (Err(_), Some(new)) => self.remove_unless_used(&new.path),
            _ => {}
        }
        result
    }

    /// Removes the new file of a merge that failed, once the descriptor shows that it was not taken
    /// over.
    fn remove_unless_used(&self, file: &Path) {
        let (Ok(descriptor), Ok(new)) = (self.descriptor(), Identity::of(file)) else {
            return;
        };
        let is_used = |image: &Image| Identity::of(&image.file).is_ok_and(|used| used == new);
        if !descriptor.images.iter().any(is_used) {
            let _ = fs::remove_file(file);
        }
    }
}

/// Where the result of a merge goes. Nobody else who uses this crate makes a file there meanwhile.
struct NewDelta {
    path: PathBuf,
    c_path: CPath,
    _lock: NewFileLock,
}

fn new_delta(change: &Change<'_>, file: &Path) -> Result<NewDelta> {
    let operation = change.operation();
    // C takes the name as relative to the working directory, and stores it as it resolves there.
    let path = paths::of_new_file(operation, file)?;
    change.require_new_delta_path(&path)?;
    let require_free = || match fs::symlink_metadata(&path) {
        Err(_) => Ok(()),
        Ok(_) => Err(Error::new(
            ErrorKind::AlreadyExists,
            operation,
            "the new delta is made under this name, and a file is there",
        )
        .with_path(&path)),
    };
    // Before the lock, too: that of a descriptor, this image's own say, may be held for long.
    require_free()?;
    let lock = NewFileLock::acquire(operation, &path, change.timeout())?;
    require_free()?;
    Ok(NewDelta {
        c_path: CPath::new(operation, &path)?,
        path,
        _lock: lock,
    })
}
