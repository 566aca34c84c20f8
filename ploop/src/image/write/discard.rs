//! Which clusters the top delta has, and how it gives them up.

use super::storage::Storage;
use super::storage::write_zeros;
use super::{DiskWriter, Top, raw_error};
use crate::Result;

impl DiskWriter {
    /// Gives up the clusters of the top delta that lie wholly within a range, and that no delta
    /// below has; they read as zero. Returns how many bytes that were. The file becomes shorter
    /// when it is closed, if they were at its end; otherwise they are used again.
    ///
    /// # Errors
    ///
    /// As [`write_at`](DiskWriter::write_at).
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<u64> {
        self.check_range(offset, len)?;
        let cluster = self.cluster.bytes();
        let end = if offset + len == self.size().bytes() {
            (offset + len).div_ceil(cluster)
        } else {
            (offset + len) / cluster
        };
        let numbers = offset.div_ceil(cluster) as u32..end as u32;
        if self.merge.is_some() {
            for number in numbers.clone() {
                self.move_down(number)?;
            }
        }
        let Top::Delta(delta) = &mut self.top else {
            return Ok(0);
        };
        let mut given = 0;
        // `check_range` has seen that these are clusters of the disk.
        for number in numbers {
            if let Some(lower) = &self.lower {
                if lower.has(number)? {
                    continue;
                }
            }
            if delta.remove(number)? {
                given += cluster;
            }
        }
        Ok(given)
    }

    /// Has a range read as zero. Clusters that lie wholly in it are given up where no delta below has
    /// them; otherwise they are made zero in the file of the top delta. In a plain base, the range is
    /// made zero and stays allocated.
    ///
    /// # Errors
    ///
    /// As [`write_at`](DiskWriter::write_at).
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<()> {
        self.check_range(offset, len)?;
        let (cluster, size) = (self.cluster.bytes(), self.size().bytes());
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let start = at - at % cluster;
            let stop = end.min(start + cluster);
            let whole = at == start && (stop == start + cluster || stop == size);
            // `check_range` has seen that it is a cluster of the disk.
            self.zero_within((start / cluster) as u32, at, stop - at, whole)?;
            at = stop;
        }
        Ok(())
    }

    /// [`write_zeroes`](DiskWriter::write_zeroes) in one cluster, or in the whole of it.
    fn zero_within(&mut self, cluster: u32, offset: u64, len: u64, whole: bool) -> Result<()> {
        self.move_down(cluster)?;
        let below = self.lower_has(cluster)?;
        let delta = match &mut self.top {
            Top::Delta(delta) => delta,
            Top::Raw { path, file, .. } => {
                let zeroed = if whole {
                    file.zero(offset, len)
                } else {
                    // Not by space that was never written to: see `partial_clusters`.
                    write_zeros(&**file, offset, len)
                };
                return zeroed
                    .map_err(|error| raw_error(path, "the data cannot be made zero", error));
            }
        };
        match delta.cluster(cluster)? {
            Some(_) if whole && !below && !self.settings.keep_clusters => {
                delta.remove(cluster).map(drop)
            }
            Some(place) if whole => delta.zero(place, self.cluster.bytes()),
            Some(place) => {
                let within = offset % self.cluster.bytes();
                delta.write_within(place, within, &vec![0; len as usize])
            }
            None if !below => Ok(()),
            None if whole => delta.add(cluster, 0, &[]),
            // With the rest of the cluster as it is below.
            None => self.write_at(&vec![0; len as usize], offset),
        }
    }

    /// Where the file of the top delta ends, in clusters of the file from its beginning, without what
    /// was got [ahead](DiskWriter::set_preallocation): the place of the next cluster, if none is free.
    #[must_use]
    pub fn allocation_head(&self) -> u32 {
        let end = match &self.top {
            Top::Delta(delta) => delta.space.end,
            Top::Raw { len, .. } => *len,
        };
        u32::try_from(end.div_ceil(self.cluster.bytes())).unwrap_or(u32::MAX)
    }

    /// Where a cluster of the disk lies in the file of the top delta, in clusters of the file from its
    /// beginning. `None` where the top does not have it, and always for a plain base.
    ///
    /// # Errors
    ///
    /// As [`read_at`](DiskWriter::read_at).
    pub fn slot(&mut self, cluster: u32) -> Result<Option<u32>> {
        match &mut self.top {
            Top::Delta(delta) => {
                let place = delta.cluster(cluster)?;
                // Places in the file are of 32 bits in both versions.
                Ok(place.map(|place| (place / self.cluster.bytes()) as u32))
            }
            Top::Raw { .. } => Ok(None),
        }
    }

    /// Whether the top has a cluster of the disk.
    ///
    /// # Errors
    ///
    /// As [`read_at`](DiskWriter::read_at).
    pub fn top_has(&mut self, cluster: u32) -> Result<bool> {
        if self.merge_source_cluster(cluster)?.is_some() {
            return Ok(true);
        }
        match &mut self.top {
            Top::Delta(delta) => Ok(delta.cluster(cluster)?.is_some()),
            Top::Raw { len, .. } => Ok(u64::from(cluster) * self.cluster.bytes() < *len),
        }
    }

    /// Whether any file below the top has a cluster of the disk.
    ///
    /// # Errors
    ///
    /// As [`read_at`](DiskWriter::read_at).
    pub fn lower_has(&self, cluster: u32) -> Result<bool> {
        match &self.lower {
            Some(lower) => lower.has(cluster),
            None => Ok(false),
        }
    }

    /// Gives up clusters of the top delta whose contents are not needed: they read as the deltas below
    /// have them, or as zero. Those that it does not have are passed over, and a plain base keeps all.
    /// Their places in the file are free after the next [`flush`](DiskWriter::flush).
    ///
    /// # Errors
    ///
    /// As [`discard`](DiskWriter::discard).
    pub fn release(&mut self, clusters: &[u32]) -> Result<()> {
        self.check_no_merge()?;
        if let Top::Delta(delta) = &mut self.top {
            for cluster in clusters {
                delta.remove(*cluster)?;
            }
        }
        Ok(())
    }

    /// Moves clusters from the end of the top delta's file into places that nothing leads to, and cuts
    /// the file. Returns by how many clusters it is shorter, without what was got
    /// [ahead](DiskWriter::set_preallocation). What was written so far is on the disk afterwards.
    ///
    /// # Errors
    ///
    /// Those of the operating system, after which all but reading is refused where a write failed;
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) where the table leads to a place twice.
    pub fn compact(&mut self) -> Result<u32> {
        self.check_no_merge()?;
        match &mut self.top {
            Top::Delta(delta) => delta.compact(),
            Top::Raw { .. } => Ok(0),
        }
    }
}
