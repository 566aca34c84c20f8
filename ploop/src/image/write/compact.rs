//! Moving clusters from the end of a file into free places before it.

use super::OPERATION;
use super::delta::WritableDelta;
use crate::image::clusters::Clusters;
use crate::image::table::entry_offset;
use crate::{Error, ErrorKind, Result};

impl WritableDelta {
    /// Fills the places that nothing leads to with clusters from the end of the file, and cuts it
    /// there. Returns by how many clusters it is shorter, without what was got ahead.
    ///
    /// The copies are on the disk before an entry leads to them, and the entries before the file is
    /// cut. Until then, a cluster is the same in both places.
    pub(super) fn compact(&mut self) -> Result<u32> {
        self.flush()?;
        let size = self.header.cluster.bytes();
        // What may be used is what no entry leads to, whatever the reason.
        let mut used = Clusters::default();
        for number in 0..self.header.entries() {
            let Some(offset) = self.cluster(number)? else {
                continue;
            };
            if !used.insert((offset / size) as u32) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    OPERATION,
                    format!("the table puts cluster {number} where another is"),
                )
                .with_path(&self.path)
                .with_offset(entry_offset(number)));
            }
        }
        let end = self.header.data_start() + used.len() * size;
        let mut places = (self.header.data_start()..end)
            .step_by(size as usize)
            .filter(|offset| !used.contains((offset / size) as u32));
        // They are all taken below, or cut off.
        self.space.free.clear();
        let mut buffer = vec![0; size as usize];
        for number in 0..self.header.entries() {
            let Some(from) = self.cluster(number)?.filter(|from| *from >= end) else {
                continue;
            };
            // There are as many as clusters behind the end.
            let Some(to) = places.next() else { break };
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
