//! Discarding, zeroing and compacting the clusters of the top delta, and where they are in its file.

use super::storage::Storage;
use super::storage::write_zeros;
use super::{DiskWriter, Top, raw_error};
use crate::Result;

impl DiskWriter {
    /// Frees the clusters of the top delta that lie wholly within a range, and that no delta below has: the range then
    /// reads as zero there. Returns how many bytes were freed. Clusters at the end of the file are cut off when it is
    /// closed; others are used again.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// # let mut disk = ploop::image::DiskWriter::open(image.path())?;
    /// let cluster = ploop::ClusterSize::DEFAULT.bytes();
    /// disk.write_at(&vec![7; cluster as usize], 0)?;
    /// assert_eq!(disk.discard(0, 3 * cluster)?, cluster);
    /// disk.close()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
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
        let mut freed = 0;
        // `check_range` has checked that these are clusters of the disk.
        for number in numbers {
            if let Some(lower) = &self.lower {
                if lower.has(number)? {
                    continue;
                }
            }
            if delta.remove(number)? {
                freed += cluster;
            }
        }
        Ok(freed)
    }

    /// Makes a range read as zero. Clusters that lie wholly in it are freed where no delta below has them; the rest is
    /// zeroed in the top delta's file. In a raw base, the range is zeroed and stays allocated.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// # let mut disk = ploop::image::DiskWriter::open(image.path())?;
    /// disk.write_at(&[7; 4096], 0)?;
    /// disk.write_zeroes(512, 1024)?;
    /// let mut sector = [7; 512];
    /// disk.read_at(&mut sector, 512)?;
    /// assert_eq!(sector, [0; 512]);
    /// disk.close()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
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
            // `check_range` has checked that it is a cluster of the disk.
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
                    // Written, and not unwritten extents: see `partial_clusters`.
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
            Some(file_offset) if whole => delta.zero(file_offset, self.cluster.bytes()),
            Some(file_offset) => {
                let within = offset % self.cluster.bytes();
                delta.write_within(file_offset, within, &vec![0; len as usize])
            }
            None if !below => Ok(()),
            None if whole => delta.add(cluster, 0, &[]),
            // Copies the rest of the cluster from below.
            None => self.write_at(&vec![0; len as usize], offset),
        }
    }

    /// The slot at the end of the top delta's file, without [preallocated](DiskWriter::set_preallocation) space: that of
    /// the next new cluster, if none is free. A slot counts clusters from the beginning of the file.
    #[must_use]
    pub fn allocation_head(&self) -> u32 {
        let end = match &self.top {
            Top::Delta(delta) => delta.space.end,
            Top::Raw { len, .. } => *len,
        };
        u32::try_from(end.div_ceil(self.cluster.bytes())).unwrap_or(u32::MAX)
    }

    /// The slot of a cluster of the disk in the top delta's file. `None` where the top does not have the cluster, and
    /// always for a raw base.
    ///
    /// # Errors
    ///
    /// As [`read_at`](DiskWriter::read_at).
    pub fn slot(&mut self, cluster: u32) -> Result<Option<u32>> {
        match &mut self.top {
            Top::Delta(delta) => {
                let file_offset = delta.cluster(cluster)?;
                // Slots have 32 bits in both versions.
                Ok(file_offset.map(|file_offset| (file_offset / self.cluster.bytes()) as u32))
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

    /// Frees clusters of the top delta whose contents are not needed: they then read as in the deltas below, or as zero.
    /// Clusters that the delta does not have are skipped, and a raw base keeps all. Their slots are free after the next
    /// [`flush`](DiskWriter::flush).
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

    /// Moves clusters from the end of the top delta's file to free slots, and cuts the file. Returns by how many
    /// clusters it is shorter, without [preallocated](DiskWriter::set_preallocation) space. Everything written so far is
    /// synced.
    ///
    /// # Errors
    ///
    /// Those of the operating system: if a write failed, only reading is possible afterwards.
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) where two entries of the table lead to one slot.
    pub fn compact(&mut self) -> Result<u32> {
        self.check_no_merge()?;
        match &mut self.top {
            Top::Delta(delta) => delta.compact(),
            Top::Raw { .. } => Ok(0),
        }
    }
}
