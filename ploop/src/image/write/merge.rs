//! Merging the top delta into the one below (`PLOOP_IOC_MERGE`), cluster by cluster, while the disk is
//! read and written.
//!
//! The delta below is the top from the beginning of a merge, and the old top stands above it until it
//! is empty. A cluster is copied to the lower file and is on the disk there before the upper file
//! loses its entry. So the two files together are whole at any moment, and what is written meanwhile
//! is never hidden by an old cluster.

use std::path::PathBuf;

use super::delta::WritableDelta;
use super::delta_file::reopen;
use super::levels::no_level;
use super::{DiskWriter, OPERATION, Top};
use crate::image::chain::Chain;
use crate::{Error, ErrorKind, Result};

/// After so many clusters, the tables are written: each time costs as much as a few clusters.
const BATCH: u32 = 16;

/// The delta that is being merged into the top.
#[derive(Debug)]
pub(super) struct RunningMerge {
    pub(super) source: WritableDelta,
    /// Those before it were moved.
    next: u32,
    /// Since the tables were last written.
    moved: u32,
}

impl DiskWriter {
    /// Merges the top delta into the one below, which then is the top and marked as in use, and
    /// returns the path of the file that is no longer needed: its table is empty then, and its mark
    /// cleared. Other deltas must not stand on the one below: they would see the change. After a
    /// crash at any point, the chain of both files reads the same. A smaller disk below grows.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no delta below; otherwise as
    /// [`write_at`](DiskWriter::write_at). The top is the top still then, without the clusters that
    /// the delta below has already, and nothing reads otherwise.
    pub fn merge_down(&mut self) -> Result<PathBuf> {
        self.begin_merge()?;
        let merged = self.finish_merge();
        if merged.is_err() {
            // What matters is the first error.
            let _ = self.give_up_merge();
        }
        merged
    }

    /// Begins what [`merge_down`](DiskWriter::merge_down) does, or goes on with it: clusters are moved
    /// by [`merge_next`](DiskWriter::merge_next), and before they are written to. The disk can be read
    /// and written meanwhile, but its deltas and its size do not change.
    ///
    /// # Errors
    ///
    /// As [`merge_down`](DiskWriter::merge_down), and then there is no merge.
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
            // Clusters may have moved in the file.
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

    /// Marks the delta, and makes the disk as large as what it takes in.
    fn take_as_top(&mut self, size: crate::Size) -> Result<()> {
        if let Top::Delta(delta) = &mut self.top {
            delta.mark(true)?;
        }
        if self.size() < size {
            self.grow(size)?;
        }
        Ok(())
    }

    /// Whether a merge has begun and is not finished.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        self.merge.is_some()
    }

    /// Moves the next cluster of the merge. `false` where there is none left; all are on the disk then.
    ///
    /// # Errors
    ///
    /// As [`write_at`](DiskWriter::write_at). The merge can go on where that can.
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

    /// Moves the clusters that are left, and takes the old top out of the chain.
    ///
    /// # Errors
    ///
    /// As [`merge_down`](DiskWriter::merge_down), but the merge can go on where writes can;
    /// [`ErrorKind::InvalidInput`] where none has begun.
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

    /// Makes the old top the top again, as far as it was not moved.
    fn give_up_merge(&mut self) -> Result<()> {
        let flushed = self.flush();
        let Some(mut merge) = self.merge.take() else {
            return flushed;
        };
        if flushed.is_err() {
            // As the file has it.
            merge.source.forget_table();
        }
        let target = std::mem::replace(&mut self.top, Top::Delta(Box::new(merge.source)));
        self.apply_settings();
        let mut target = DiskWriter::from_levels(Vec::new(), target, self.cluster)?;
        let finished = flushed.and_then(|()| target.finish());
        self.add_lower(target.top.as_level()?)?;
        finished
    }

    /// Refuses what a merge has no place for.
    pub(super) fn check_no_merge(&self) -> Result<()> {
        if self.merge.is_none() {
            return Ok(());
        }
        let message = "a merge of the top is under way, and has to be finished first";
        Err(Error::new(ErrorKind::Busy, OPERATION, message).with_path(self.top()))
    }

    /// Where a cluster is in the delta that is being merged.
    pub(super) fn merge_source_cluster(&mut self, number: u32) -> Result<Option<u64>> {
        match &mut self.merge {
            Some(merge) => merge.source.cluster(number),
            None => Ok(None),
        }
    }

    /// Sees that a cluster is not above the top any more, where a write to it would not be seen.
    pub(super) fn move_down(&mut self, number: u32) -> Result<()> {
        let Some(merge) = &mut self.merge else {
            return Ok(());
        };
        let Some(place) = merge.source.cluster(number)? else {
            return Ok(());
        };
        let offset = u64::from(number) * self.cluster.bytes();
        let mut buffer = vec![0; self.cluster.bytes() as usize];
        merge.source.read(&mut buffer, place)?;
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

    /// Cuts off what was got ahead. Clusters that were moved stay, though nothing leads to them.
    pub(super) fn trim_merge_source(&mut self) -> Result<()> {
        match &mut self.merge {
            Some(merge) => merge.source.cut_to(merge.source.space.end),
            None => Ok(()),
        }
    }

    /// After the top: what it took in is on the disk.
    pub(super) fn flush_merge_source(&mut self) -> Result<()> {
        if let Some(merge) = &mut self.merge {
            merge.source.flush()?;
            merge.moved = 0;
        }
        Ok(())
    }
}
