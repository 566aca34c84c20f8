//! Compaction: clusters from the end of a delta's file move to free slots, and the file is cut.

use super::OPERATION;
use super::delta::WritableDelta;
use crate::image::aligned_buffer::AlignedBuffer;
use crate::image::clusters::Clusters;
use crate::image::table::entry_offset;
use crate::{Error, ErrorKind, Result};

impl WritableDelta {
    /// Moves clusters from the end of the file to slots without an entry, and cuts the file. Returns by how many
    /// clusters it is shorter, without preallocated space.
    ///
    /// The copies are on the disk before an entry leads to them, and the entries before the file is cut. Until then, the
    /// old and the new slot of a cluster are the same.
    pub(in crate::image) fn compact(&mut self) -> Result<u32> {
        self.flush()?;
        let size = self.header.cluster.bytes();
        // All slots without an entry are free, whatever the reason.
        let mut used = Clusters::default();
        let mut next = self.next_cluster(0)?;
        while let Some((number, offset)) = next {
            next = self.next_cluster(number + 1)?;
            if !used.insert((offset / size) as u32) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    OPERATION,
                    format!("the table puts cluster {number} in the place of another one"),
                )
                .with_path(&self.path)
                .with_offset(entry_offset(number)));
            }
        }
        let end = self.header.data_start() + used.len() * size;
        let mut slots = (self.header.data_start()..end)
            .step_by(size as usize)
            .filter(|offset| !used.contains((offset / size) as u32));
        // All of these are used below, or cut off.
        self.space.free.clear();
        let mut buffer = AlignedBuffer::new(size as usize);
        let mut next = self.next_cluster(0)?;
        while let Some((number, from)) = next {
            next = self.next_cluster(number + 1)?;
            if from < end {
                continue;
            }
            // There are as many slots as clusters behind the new end.
            let Some(to) = slots.next() else { break };
            self.read(&mut buffer, from)?;
            self.write(&buffer, to)?;
            self.map_cluster(number, to)?;
        }
        self.flush()?;
        let lost = (self.space.end - end) / size;
        self.cut_to(end)?;
        Ok(u32::try_from(lost).unwrap_or(u32::MAX))
    }
}
