//! Merging the top delta into the one below (`PLOOP_IOC_MERGE`), cluster by cluster, while the disk is
//! read and written.
//!
//! From the beginning of a merge the delta below is the top. The old top, the source of the merge, stays above it until
//! it is empty. A cluster is synced in the lower file before the upper file loses its entry, so the two files together
//! are complete at any moment. A cluster is moved before it is written to, so no old cluster hides the new data.

use std::path::PathBuf;

use super::delta::WritableDelta;
use super::delta_file::reopen;
use super::levels::no_level;
use super::{DiskWriter, OPERATION, Top};
use crate::image::aligned_buffer::AlignedBuffer;
use crate::image::chain::Chain;
use crate::{Error, ErrorKind, Result};

/// After how many clusters the tables are written: that costs as much as a few clusters.
const BATCH: u32 = 16;

/// A merge that is running.
#[derive(Debug)]
pub(super) struct RunningMerge {
    /// The old top, which is merged into the new one.
    pub(super) source: WritableDelta,
    /// The next cluster to move.
    next: u32,
    /// How many clusters were moved since the tables were last written.
    moved: u32,
}

impl DiskWriter {
    /// Merges the top delta into the one below, which becomes the top and is marked as in use. Returns the path of the
    /// old top, which is no longer needed: its table is empty, and its mark is cleared. No other delta may be based on
    /// the one below: its contents would change. After a crash at any point, the chain of both files reads the same. If
    /// the disk below is smaller, it grows.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// # let mut disk = ploop::image::DiskWriter::open(image.path())?;
    /// disk.snapshot(dir.path().join("top.hds"))?;
    /// disk.write_at(b"hello", 0)?;
    /// let merged = disk.merge_down()?;
    /// std::fs::remove_file(merged).unwrap();
    /// disk.close()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no delta below; otherwise as
    /// [`write_at`](DiskWriter::write_at). Then the old top is the top again, without the clusters that were moved, and
    /// the disk reads as before.
    pub fn merge_down(&mut self) -> Result<PathBuf> {
        self.begin_merge()?;
        let merged = self.finish_merge();
        if merged.is_err() {
            // The first error is returned.
            let _ = self.cancel_merge();
        }
        merged
    }

    /// Begins a merge in steps, if none is running. Clusters are moved by [`merge_next`](DiskWriter::merge_next), and
    /// whenever one is to be written to. The disk can be read and written meanwhile; its deltas and its size cannot be
    /// changed.
    ///
    /// # Errors
    ///
    /// As [`merge_down`](DiskWriter::merge_down). Then no merge is running.
    pub fn begin_merge(&mut self) -> Result<()> {
        if self.merge.is_some() {
            return Ok(());
        }
        self.flush()?;
        let Top::Delta(top) = &self.top else {
            return Err(no_level());
        };
        let size = top.header().size;
        let lower = self.lower.as_mut().ok_or_else(no_level)?;
        let below = lower.levels().last().ok_or_else(no_level)?;
        let path = below.path();
        let file = reopen(below.file(), true).map_err(|error| {
            Error::io(OPERATION, "the file cannot be opened for writing", error).with_path(path)
        })?;
        let mut target = Top::open(path, file, self.cluster, below.is_raw(), true)?;
        target.set_holes(below.holes());
        let mut target = DiskWriter::from_levels(Vec::new(), target, self.cluster)?;
        target.settings = self.settings;
        target.apply_settings();
        if let Err(error) = target.take_as_top(size) {
            // Growing may have moved clusters in the file.
            if target.flush().is_ok() {
                let _ = target.finish();
            }
            lower.reload(lower.levels().len() - 1)?;
            return Err(error);
        }
        self.lower = self.lower.take().and_then(Chain::without_top);
        if let Top::Delta(delta) = std::mem::replace(&mut self.top, target.top) {
            self.merge = Some(Box::new(RunningMerge {
                source: *delta,
                next: 0,
                moved: 0,
            }));
        }
        Ok(())
    }

    /// Marks the delta as in use, and makes its disk as large as that of the source.
    fn take_as_top(&mut self, size: crate::Size) -> Result<()> {
        if let Top::Delta(delta) = &mut self.top {
            delta.mark(true)?;
        }
        if self.size() < size {
            self.grow(size)?;
        }
        Ok(())
    }

    /// Whether a merge is running.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        self.merge.is_some()
    }

    /// Moves the next cluster of the merge. `false` where none is left; then all are synced.
    ///
    /// # Errors
    ///
    /// As [`write_at`](DiskWriter::write_at). If the writer can go on, so can the merge.
    pub fn merge_next(&mut self) -> Result<bool> {
        while let Some(merge) = &mut self.merge {
            let number = merge.next;
            if number >= merge.source.header().entries() {
                break;
            }
            let there = merge.source.cluster(number)?.is_some();
            if there {
                self.move_down(number)?;
            }
            if let Some(merge) = &mut self.merge {
                merge.next += 1;
            }
            if there {
                return Ok(true);
            }
        }
        self.flush()?;
        Ok(false)
    }

    /// Moves the clusters that are left, and removes the old top from the chain. Returns its path.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where no merge is running; otherwise as [`merge_next`](DiskWriter::merge_next).
    pub fn finish_merge(&mut self) -> Result<PathBuf> {
        while self.merge_next()? {}
        let merge = self
            .merge
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, OPERATION, "no merge has begun"))?;
        merge.source.mark(false)?;
        let path = merge.source.path().to_owned();
        self.trim_merge_source()?;
        self.merge = None;
        Ok(path)
    }

    /// Makes the source the top again, with the clusters that were not moved.
    fn cancel_merge(&mut self) -> Result<()> {
        let flushed = self.flush();
        let Some(mut merge) = self.merge.take() else {
            return flushed;
        };
        if flushed.is_err() {
            // Entries that were not written are still in the file.
            merge.source.forget_table();
        }
        let target = std::mem::replace(&mut self.top, Top::Delta(Box::new(merge.source)));
        self.apply_settings();
        let mut target = DiskWriter::from_levels(Vec::new(), target, self.cluster)?;
        let finished = flushed.and_then(|()| target.finish());
        self.add_lower(target.top.as_level()?)?;
        finished
    }

    /// Refuses an operation that cannot be done during a merge.
    pub(super) fn check_no_merge(&self) -> Result<()> {
        if self.merge.is_none() {
            return Ok(());
        }
        let message = "a merge of the top is running and has to be finished first";
        Err(Error::new(ErrorKind::Busy, OPERATION, message).with_path(self.top()))
    }

    /// The offset of a cluster in the source of the merge.
    pub(super) fn merge_source_cluster(&mut self, number: u32) -> Result<Option<u64>> {
        match &mut self.merge {
            Some(merge) => merge.source.cluster(number),
            None => Ok(None),
        }
    }

    /// Moves a cluster from the source to the top, if it is still in the source: there it would hide what is written
    /// to the top.
    pub(super) fn move_down(&mut self, number: u32) -> Result<()> {
        let Some(merge) = &mut self.merge else {
            return Ok(());
        };
        let Some(file_offset) = merge.source.cluster(number)? else {
            return Ok(());
        };
        let offset = u64::from(number) * self.cluster.bytes();
        let mut buffer = AlignedBuffer::new(self.cluster.bytes() as usize);
        merge.source.read(&mut buffer, file_offset)?;
        let left = self.size().bytes().saturating_sub(offset);
        let len = left.min(self.cluster.bytes()) as usize;
        self.write_to_top(&buffer[..len], offset)?;
        let Some(merge) = &mut self.merge else {
            return Ok(());
        };
        merge.source.remove(number)?;
        merge.moved += 1;
        if merge.moved >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Cuts off preallocated space of the source. Clusters that were moved stay in the file, without an entry.
    pub(super) fn trim_merge_source(&mut self) -> Result<()> {
        match &mut self.merge {
            Some(merge) => merge.source.cut_to(merge.source.space.end),
            None => Ok(()),
        }
    }

    /// Syncs the source, after the top: what was moved there is on the disk.
    pub(super) fn flush_merge_source(&mut self) -> Result<()> {
        if let Some(merge) = &mut self.merge {
            merge.source.flush()?;
            merge.moved = 0;
        }
        Ok(())
    }
}
