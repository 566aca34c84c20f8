//! The chain of a disk that is written to: adds, removes and exchanges deltas (`PLOOP_IOC_SNAPSHOT`,
//! `PLOOP_IOC_REPLACE_DELTA`, `PLOOP_IOC_DEL_DELTA`).

use std::path::Path;

use super::delta::{WritableDelta, new_header};
use super::delta_file::DeltaFile;
use super::{DiskWriter, OPERATION, Top};
use crate::image::chain::{Chain, Level};
use crate::{Error, ErrorKind, FormatVersion, Result};

impl DiskWriter {
    /// How many files the disk consists of. The base has level 0.
    #[must_use]
    pub fn levels(&self) -> usize {
        1 + self.lower_levels() + usize::from(self.is_merging())
    }

    pub(super) fn lower_levels(&self) -> usize {
        self.lower.as_ref().map_or(0, |lower| lower.levels().len())
    }

    /// Puts a new, empty delta on top, which is written to from now on. First everything written so far is synced, and
    /// the in-use mark of the old top is cleared.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] where there is a file of that name; otherwise as
    /// [`write_at`](DiskWriter::write_at). The new file may be left.
    pub fn snapshot(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.check_no_merge()?;
        let header = new_header(self.version(), self.cluster, self.size())?;
        self.flush()?;
        let new = WritableDelta::create(path.as_ref(), &header)?;
        self.put_on_top(new)
    }

    /// [`snapshot`](DiskWriter::snapshot) with a delta that exists: libploop makes one for the driver. Its data is part
    /// of the disk from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where it has another size, cluster size or format version than
    /// the disk, [`ErrorKind::Busy`] where it is in use; otherwise as
    /// [`snapshot`](DiskWriter::snapshot).
    pub fn push(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let new =
            WritableDelta::from_storage(path, Box::new(WritableDelta::open_file(path)?), false)?;
        self.check_fit(&new, new.header().size == self.size())?;
        self.put_on_top(new)
    }

    /// [`push`](DiskWriter::push) with an open file. If it is that of a larger disk, the disk gets that size.
    ///
    /// # Errors
    ///
    /// As [`push`](DiskWriter::push).
    pub fn push_file(&mut self, file: DeltaFile) -> Result<()> {
        let mut new =
            WritableDelta::from_storage(file.path(), Box::new(file.reopen(true)?), false)?;
        new.holes = file.holes().to_vec();
        self.check_fit(&new, new.header().size >= self.size())?;
        self.put_on_top(new)
    }

    /// Refuses a delta that does not fit the others.
    fn check_fit(&self, new: &WritableDelta, size_fits: bool) -> Result<()> {
        let header = new.header();
        let fits = size_fits
            && header.cluster == self.cluster
            && (header.version == self.version() || matches!(self.top, Top::Raw { .. }));
        if fits {
            return Ok(());
        }
        let message = format!(
            "the delta has {} in {} clusters of {}, the disk {} in {} clusters of {}",
            header.size,
            header.version,
            header.cluster,
            self.size(),
            self.version(),
            self.cluster
        );
        Err(Error::new(ErrorKind::InvalidInput, OPERATION, message).with_path(new.path()))
    }

    fn version(&self) -> FormatVersion {
        match &self.top {
            Top::Delta(delta) => delta.header().version,
            Top::Raw { .. } => FormatVersion::V2,
        }
    }

    /// After an error, the old top is still the top.
    fn put_on_top(&mut self, mut new: WritableDelta) -> Result<()> {
        self.check_no_merge()?;
        let old_top = self.top.as_level()?;
        new.mark(true)?;
        if let Err(error) = self.finish().and_then(|()| self.add_lower(old_top)) {
            // Nothing was written to it, and the first error is returned.
            let _ = new.mark(false);
            if let Top::Delta(top) = &mut self.top {
                let _ = top.mark(true);
            }
            return Err(error);
        }
        self.settings.apply(&mut new);
        self.top = Top::Delta(Box::new(new));
        Ok(())
    }

    /// Adds a level to those below the top.
    pub(super) fn add_lower(&mut self, level: Level) -> Result<()> {
        match &mut self.lower {
            Some(lower) => lower.push(level),
            None => {
                self.lower = Some(Chain::new(vec![level], self.cluster)?);
                Ok(())
            }
        }
    }

    /// Replaces a file by one with the same contents. In the place of the top, it may be marked as in use, as a copy
    /// of the top is; the old file is closed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no such level, or the file is of another kind, size,
    /// cluster size or format version; otherwise as [`from_files`](DiskWriter::from_files) and
    /// [`flush`](DiskWriter::flush).
    pub fn replace_level(&mut self, level: usize, file: DeltaFile) -> Result<()> {
        self.check_no_merge()?;
        if level == self.lower_levels() {
            return self.replace_top(&file);
        }
        let lower = self.lower.as_mut().ok_or_else(no_level)?;
        let raw = lower.levels().get(level).is_some_and(Level::is_raw);
        lower.replace(level, file.open_level(raw, true)?)
    }

    fn replace_top(&mut self, file: &DeltaFile) -> Result<()> {
        self.flush()?;
        let raw = matches!(self.top, Top::Raw { .. });
        let mut new = Top::open(file.path(), file.reopen(true)?, self.cluster, raw, true)?;
        let same = match (&self.top, &new) {
            (Top::Raw { len: old, .. }, Top::Raw { len: new, .. }) => old == new,
            (Top::Delta(old), Top::Delta(new)) => {
                let (old, new) = (old.header(), new.header());
                old.size == new.size && old.version == new.version
            }
            _ => false,
        };
        if !same {
            let message = "the file differs in kind or size from the top, which it is to replace";
            let error = Error::new(ErrorKind::InvalidInput, OPERATION, message);
            return Err(error.with_path(file.path()));
        }
        new.set_holes(file.holes().to_vec());
        if let Top::Delta(delta) = &mut new {
            self.settings.apply(delta);
            delta.mark(true)?;
        }
        // The disk no longer depends on the old file.
        let _ = self.finish();
        self.top = new;
        Ok(())
    }

    /// Removes a delta below the top, after others have merged it into the one below it. The header and the table of
    /// that one are read again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for the base, the top, and where there is no such level;
    /// otherwise as [`reload_level`](DiskWriter::reload_level).
    pub fn remove_level(&mut self, level: usize) -> Result<()> {
        self.check_no_merge()?;
        self.lower.as_mut().ok_or_else(no_level)?.remove(level)
    }

    /// Reads the header, the table and the length of a file below the top again, after others have changed it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for the top and where there is no such level; those of
    /// [`Disk::open`](crate::image::Disk::open), and then nothing changes.
    pub fn reload_level(&mut self, level: usize) -> Result<()> {
        self.lower.as_mut().ok_or_else(no_level)?.reload(level)
    }

    /// Sets the slot of a cluster of a level, in memory only: others change the table in the file. `slot` counts
    /// clusters of the file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where that is not the level from which the cluster is read.
    pub fn set_slot(&mut self, level: usize, cluster: u32, slot: u32) -> Result<()> {
        self.check_no_merge()?;
        let is_top = level == self.lower_levels();
        let Top::Delta(delta) = &mut self.top else {
            return Err(no_level());
        };
        match (delta.has_entry(cluster)?, is_top, &mut self.lower) {
            (true, true, _) => delta.set_in_memory(cluster, slot),
            (false, false, Some(lower)) => lower.set_slot(level, cluster, slot),
            _ => Err(no_level()),
        }
    }
}

pub(super) fn no_level() -> Error {
    let message = "the disk has no such delta below the top";
    Error::new(ErrorKind::InvalidInput, OPERATION, message)
}
