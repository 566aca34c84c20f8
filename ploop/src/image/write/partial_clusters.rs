//! New clusters of the file that are written in part so far. The rest of such a cluster is preallocated space that was
//! never written and reads as zero. libploop takes it for a hole, and so for damage. So zeros are written there before
//! the table in the file leads to the cluster. By then, most clusters are full.

use std::collections::BTreeMap;
use std::ops::Range;

use super::delta::WritableDelta;
use super::storage::write_zeros;
use crate::Result;

/// The range that was written of each such cluster, by the cluster's offset.
#[derive(Debug, Default)]
pub(super) struct PartialClusters(BTreeMap<u64, Range<u64>>);

impl PartialClusters {
    /// For a cluster that is complete for another reason.
    pub(super) fn forget(&mut self, offset: u64) {
        self.0.remove(&offset);
    }
}

impl WritableDelta {
    /// Writes the first part of a new cluster that reads as zero.
    pub(super) fn write_first_part(&mut self, offset: u64, within: u64, data: &[u8]) -> Result<()> {
        self.write(data, offset + within)?;
        if !data.is_empty() {
            let written = within..within + data.len() as u64;
            self.partial_clusters.0.insert(offset, written);
        }
        Ok(())
    }

    /// Writes into the cluster at `offset`, which the file has.
    pub(super) fn write_within(&mut self, offset: u64, within: u64, data: &[u8]) -> Result<()> {
        if let Some(written) = self.partial_clusters.0.get(&offset).cloned() {
            let part = within..within + data.len() as u64;
            // The written range stays contiguous.
            self.fill(offset, written.end..part.start)?;
            self.fill(offset, part.end..written.start)?;
            let written = written.start.min(part.start)..written.end.max(part.end);
            if written == (0..self.header.cluster.bytes()) {
                self.partial_clusters.forget(offset);
            } else {
                self.partial_clusters.0.insert(offset, written);
            }
        }
        self.write(data, offset + within)
    }

    /// Writes zeros to the rest of all partial clusters.
    pub(super) fn complete_clusters(&mut self) -> Result<()> {
        let size = self.header.cluster.bytes();
        while let Some((offset, written)) = self.partial_clusters.0.pop_first() {
            self.fill(offset, 0..written.start)?;
            self.fill(offset, written.end..size)?;
        }
        Ok(())
    }

    fn fill(&mut self, offset: u64, part: Range<u64>) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.write_zeros(offset + part.start, part.end - part.start)
    }

    /// Writes zeros to a part of a cluster.
    pub(in crate::image) fn write_zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        self.record(offset, len);
        self.attempt("the data cannot be made zero", |storage| {
            write_zeros(storage, offset, len)
        })
    }
}
