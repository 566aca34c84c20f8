//! Merging deltas: what `ploop_merge_snapshot` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::OfflineImage;
use super::change::OfflineChange;
use super::delta::NewDelta;
use super::target::Target;
use crate::image::Progress;
use crate::image::chain::{Chain, Level};
use crate::image::descriptor::Image;
use crate::image::file;
use crate::lock::NewFileLock;
use crate::{Error, ErrorKind, Guid, MergeParam, MergeTarget, Result, paths};

impl OfflineImage {
    /// Merges deltas of one chain, as `Ploop::merge` does (`ploop_merge_snapshot`).
    ///
    /// What remains is the state of the upper end; the others are gone. Takes as long as copying the data of the upper
    /// deltas; `progress` is called on this thread, at the beginning, then after every few MiB, and at the end. The
    /// space for new clusters is allocated before anything else.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// use ploop::{MergeParam, MergeTarget};
    ///
    /// image.snapshot()?;
    /// image.snapshot()?;
    /// image.merge(&MergeParam::new(MergeTarget::All), |_| {})?;
    /// assert_eq!(image.descriptor()?.images.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the base, for ends that are not on one chain, where a delta between
    /// has other children, and for a merge of the top's child into the top;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) for a new delta that is there, [`Unsupported`](ErrorKind::Unsupported)
    /// for a new file in the place of a raw base, a lower delta with several names, one with the disk larger than in
    /// the upper, and a delta with a format extension (dirty bitmaps of backup programs), which would be lost;
    /// [`NoSpace`](ErrorKind::NoSpace); [`Corrupt`](ErrorKind::Corrupt) for a damaged delta;
    /// [`Cancelled`](ErrorKind::Cancelled) after [`set_cancel`](OfflineImage::set_cancel); and those that [all
    /// operations](OfflineImage#what-is-refused) have.
    ///
    /// After an error all deltas are there. A merge that failed or was cut short after it had begun to write leaves the
    /// deltas below the upper end marked [temporary](crate::image::Snapshot::temporary): their states are gone, since
    /// the lowest already holds part of the data of the others. The upper end reads as before. The next
    /// [snapshot](OfflineImage::snapshot), [deletion](OfflineImage::delete_snapshot) of one, merge of others, growing, conversion or
    /// [compaction](OfflineImage::compact) finishes the merge; and so does libploop, also in a mount. A merge to a new file
    /// leaves all as it was.
    pub fn merge(&mut self, param: &MergeParam, mut progress: impl FnMut(Progress)) -> Result<()> {
        let mut change = OfflineChange::begin(self, "merge")?;
        let named = match param.target {
            MergeTarget::Snapshot(guid) => vec![guid],
            MergeTarget::Range { from, to } => vec![from, to],
            MergeTarget::Top | MergeTarget::All => Vec::new(),
        };
        if !(change.temporary_snapshots()).any(|guid| named.contains(&guid)) {
            change.merge_temporary_snapshots(&mut progress)?;
        }
        match &param.new_delta {
            None => change.merge_in_place(param.target, &mut progress),
            Some(file) => {
                let timeout = self.timeout();
                change
                    .merge_to_new_file(param.target, file, timeout, &mut progress)
                    .map_err(|error| error.with_paths(self.path(), file))
            }
        }
    }
}

impl OfflineChange<'_> {
    /// The deltas to merge, the lowest first, once it is clear that they can be merged.
    fn deltas_to_merge(&self, target: MergeTarget) -> Result<Vec<Image>> {
        let merged = self
            .descriptor
            .deltas_to_merge(self.operation(), target)
            .map_err(|error| error.with_path(self.path()))?;
        let lower = &merged[..merged.len() - 1];
        let guids: Vec<Guid> = lower.iter().map(|image| image.guid).collect();
        self.require_no_child_of_top(&guids)?;
        self.require_of_no_other_image(merged.iter().map(|image| &*image.file))?;
        let sound = self.require_sound(merged.iter().copied())?;
        self.require_no_extension(&sound)?;
        Ok(merged.into_iter().cloned().collect())
    }

    /// Merges deltas into the file of the lowest.
    pub(super) fn merge_in_place(
        &mut self,
        target: MergeTarget,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let merged = self.deltas_to_merge(target)?;
        let [lowest, upper @ ..] = merged.as_slice() else {
            return Ok(());
        };
        self.require_own_file(lowest)?;
        let source = self.open_chain(upper)?;
        let mut target = Target::open(self, lowest)?;
        if target.size() > source.size() {
            return self.refuse(
                ErrorKind::Unsupported,
                format!(
                    "the disk has {} in the lowest delta, and {} in the uppermost: its end would be lost",
                    target.size(),
                    source.size()
                ),
            );
        }
        let total = target.reserve(&source)?;
        if total > 0 || target.size() < source.size() {
            // From here on the lower states are lost, and so nobody can go back to them.
            let lower = merged[..merged.len() - 1].iter().map(|image| image.guid);
            let lower: Vec<Guid> = lower.collect();
            let marked = self.descriptor.with_temporary(&lower);
            if marked != self.descriptor {
                self.put(marked)?;
            }
            target.grow(source.size())?;
            target.copy(self, &source, total, progress)?;
            target.finish()?;
        }
        let files: Vec<PathBuf> = upper.iter().map(|image| image.file.clone()).collect();
        let from = upper.last().map_or(lowest.guid, |image| image.guid);
        let new = self.descriptor.merged(from, lowest.guid);
        let _record = self.record(files.iter().map(PathBuf::as_path))?;
        self.put(new)?;
        self.remove_files(&files)
    }

    fn merge_to_new_file(
        &mut self,
        target: MergeTarget,
        file: &Path,
        timeout: Duration,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let merged = self.deltas_to_merge(target)?;
        if let Some(base) = merged.iter().find(|image| self.is_raw_base(image)) {
            return self.refuse(
                ErrorKind::Unsupported,
                format!(
                    "{} is a raw base, and new deltas have a header; merge without a new file, or convert the image first",
                    base.file.display()
                ),
            );
        }
        let operation = self.operation();
        let path = paths::of_new_file(operation, file)?;
        paths::require_no_side_file_name(operation, &path)?;
        let require_free = || match fs::symlink_metadata(&path) {
            Err(_) => Ok(()),
            Ok(_) => {
                let why = "the new delta is made under this name, and a file is there";
                Err(Error::new(ErrorKind::AlreadyExists, operation, why).with_path(&path))
            }
        };
        // Before the lock, too: that of the descriptor of this image is held already.
        require_free()?;
        let _lock = NewFileLock::acquire(operation, &path, timeout)?;
        require_free()?;
        let [lowest, .., highest] = merged.as_slice() else {
            return Ok(());
        };
        let from = highest.guid;
        let mut new = self.descriptor.merged(from, lowest.guid);
        for image in new.images.iter_mut().filter(|image| image.guid == from) {
            image.file.clone_from(&path);
        }
        self.text(&new)?;
        let source = self.open_chain(&merged)?;
        let header = self.header_upon(from)?;
        let made = NewDelta::begin(operation, &path, self.owner_of_base())?;
        let mut target = Target::of_delta(operation, made.delta(&header)?);
        let total = target.reserve(&source)?;
        target.copy(self, &source, total, progress)?;
        target.finish()?;
        let files: Vec<PathBuf> = merged.iter().map(|image| image.file.clone()).collect();
        let _record = self.record(files.iter().map(PathBuf::as_path).chain([&*path]))?;
        made.publish(false)?;
        let put = self.put(new);
        if put.is_err() && !self.descriptor.images.iter().any(|it| it.file == path) {
            let _ = fs::remove_file(&path);
        }
        put?;
        self.remove_files(&files)
    }

    /// Opens deltas for reading, the lowest first.
    pub(super) fn open_chain(&self, images: &[Image]) -> Result<Chain> {
        Chain::new(self.open_levels(images)?, self.descriptor.cluster)
            .map_err(|error| error.during(self.operation()))
    }

    pub(super) fn open_levels(&self, images: &[Image]) -> Result<Vec<Level>> {
        let operation = self.operation();
        let open = |image: &Image| {
            let (file, _) =
                file::open(operation, &image.file).map_err(|error| error.with_path(&image.file))?;
            Level::from_file(&image.file, file, self.is_raw_base(image), false)
        };
        let levels = images.iter().map(open).collect::<Result<_>>();
        levels.map_err(|error| error.during(operation))
    }
}
