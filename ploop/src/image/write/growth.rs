//! Growth of the disk (`PLOOP_IOC_GROW`): a longer table displaces clusters.

use super::OPERATION;
use super::delta::{WritableDelta, new_header};
use crate::image::header::Header;
use crate::image::table::entry_offset;
use crate::{Error, ErrorKind, Result, Size};

impl WritableDelta {
    /// Makes the disk larger. The clusters that the longer table displaces are copied to the end of the file. When they
    /// and their entries are on the disk, their old place is cleared; when that is on the disk, the header is written,
    /// and makes it a part of the table. With preallocation, [`ErrorKind::NoSpace`] changes nothing.
    pub(super) fn grow(&mut self, size: Size) -> Result<()> {
        let header = new_header(self.header.version, self.header.cluster, size)?;
        self.grow_to(header)
    }

    /// [`grow`](WritableDelta::grow) to the size of a header.
    pub(in crate::image) fn grow_to(&mut self, mut header: Header) -> Result<()> {
        header.in_use = self.header.in_use;
        header.flags = self.header.flags;
        if header.size < self.header.size {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                format!("the disk has {} and cannot shrink", self.header.size),
            )
            .with_path(&self.path));
        }
        self.flush()?;
        let cluster = self.header.cluster.bytes();
        let table = self.header.data_start()..header.data_start().max(self.header.data_start());
        header.first_block_sector = (table.end / 512) as u32;
        let mut displaced = Vec::new();
        let mut next = self.next_cluster(0)?;
        while let Some((number, offset)) = next {
            if table.contains(&offset) {
                displaced.push((number, offset));
            }
            next = self.next_cluster(number + 1)?;
        }
        let kept = |offset: &u64| !table.contains(offset);
        let spare = self.space.free.iter().filter(|at| kept(at)).count();
        let more = displaced.len().saturating_sub(spare) as u64 * cluster;
        let end = self.space.end.max(table.end);
        if end + more > self.space.end {
            self.reserve(end + more)?;
        }
        self.space.free.retain(kept);
        self.extend_with_zeros(end)?;
        let mut buffer = vec![0; cluster as usize];
        for (number, offset) in displaced {
            self.read(&mut buffer, offset)?;
            self.add(number, 0, &buffer)?;
        }
        self.flush()?;
        // Including the rest of the old table, where other programs may have left something.
        buffer.fill(0);
        let mut at = entry_offset(self.header.entries());
        while at < table.end {
            let len = (cluster - at % cluster) as usize;
            self.write(&buffer[..len], at)?;
            at += len as u64;
        }
        self.attempt("the table cannot be brought to the disk", |storage| {
            storage.sync()
        })?;
        self.put_header(header)?;
        self.forget_table();
        Ok(())
    }
}
