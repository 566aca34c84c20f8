//! Allocation of clusters in a delta's file: free ones, new ones at its end, and preallocation as in the driver.

use std::io;

use super::OPERATION;
use super::delta::WritableDelta;
use super::storage::write_zeros;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Result};

/// The space of a file. Clusters are given by their offsets.
#[derive(Debug)]
pub(super) struct Space {
    /// Clusters without an entry, in memory and in the file.
    pub(super) free: Vec<u64>,
    /// Clusters without an entry in memory. The table in the file may still lead to them.
    pub(super) released: Vec<u64>,
    /// The offset of the next new cluster.
    pub(super) end: u64,
    /// The end of the preallocated space, which reads as zero from `end` on.
    reserved: u64,
    /// The length of the file.
    len: u64,
    /// The most that is preallocated at a time; 0 for no preallocation.
    limit: u64,
    /// How much may be added cluster by cluster before more is preallocated.
    credit: u64,
    /// The greatest length that the file may have.
    max_len: u64,
}

/// The contents of a cluster that was just allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Contents {
    Zero,
    /// Old data.
    Stale,
    /// None: the cluster lies behind the end of the file.
    Missing,
}

impl Space {
    /// The space of a file of `len` bytes. A last cluster that is not whole does not count, and is overwritten or cut
    /// off.
    pub(super) fn new(len: u64, cluster: ClusterSize) -> Space {
        let end = len - len % cluster.bytes();
        Space {
            free: Vec::new(),
            released: Vec::new(),
            end,
            reserved: end,
            len,
            limit: 0,
            credit: 0,
            max_len: u64::MAX,
        }
    }

    pub(super) fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    pub(super) fn set_max_len(&mut self, len: Option<u64>) {
        self.max_len = len.unwrap_or(u64::MAX);
    }
}

impl WritableDelta {
    /// Allocates a cluster of the file. An error of [`ErrorKind::NoSpace`] changes nothing.
    pub(in crate::image) fn allocate(&mut self) -> Result<(u64, Contents)> {
        self.check_whole()?;
        if let Some(offset) = self.space.free.pop() {
            return Ok((offset, Contents::Stale));
        }
        let offset = self.space.end;
        let size = self.header.cluster.bytes();
        self.reserve(offset + size)?;
        self.space.end += size;
        self.space.len = self.space.len.max(self.space.end);
        let contents = if self.space.end <= self.space.reserved {
            Contents::Zero
        } else {
            Contents::Missing
        };
        Ok((offset, contents))
    }

    /// Checks that the file may become as long as `end`, a multiple of the cluster size, and preallocates the space if
    /// that is switched on. An error changes nothing.
    pub(super) fn reserve(&mut self, end: u64) -> Result<()> {
        let size = self.header.cluster.bytes();
        let limit = match self.header.version {
            FormatVersion::V1 => u64::from(u32::MAX) * 512,
            FormatVersion::V2 => u64::from(u32::MAX) * size,
        };
        let refused = |message| Error::new(ErrorKind::NoSpace, OPERATION, message);
        if end - size > limit {
            let error = refused("an entry of the table cannot lead so far into the file");
            return Err(error.with_path(&self.path));
        }
        if end > self.space.max_len {
            let error = refused("the file would become longer than the limit that was set");
            return Err(error.with_path(&self.path));
        }
        if self.space.limit == 0 || end <= self.space.reserved {
            return Ok(());
        }
        if self.space.len % size != 0 {
            // The new cluster must have no old data.
            self.cut_to(self.space.end)?;
        }
        let start = self.space.reserved.max(self.space.end);
        // As in the driver, which preallocates as much as the file is long with the new cluster. It does not count what
        // it uses of that: when all is used, as much again is added cluster by cluster.
        let more = if self.space.credit >= size {
            0
        } else {
            end.min(self.space.limit)
        };
        let max = self.space.max_len - self.space.max_len % size;
        let ahead = (start + more).next_multiple_of(size).min(max).max(end);
        let mut result = self.storage.allocate(start, ahead - start);
        let mut reserved = ahead;
        if matches!(&result, Err(error) if is_full(error)) && ahead > end {
            reserved = end;
            result = self.storage.allocate(start, end - start);
        }
        match result {
            Ok(()) => {
                self.space.credit = match more {
                    0 => self.space.credit - size,
                    _ => reserved - end,
                };
                self.space.reserved = reserved;
                self.space.len = self.space.len.max(reserved);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.space.limit = 0;
                Ok(())
            }
            Err(error) => {
                // A part may have been allocated.
                self.space.len = self.storage.len().unwrap_or(self.space.len);
                Err(
                    Error::io(OPERATION, "the file cannot be made longer", error)
                        .with_path(&self.path),
                )
            }
        }
    }

    /// Allocates the space for so many new clusters at the end of the file. What is not used is cut off by
    /// [`trim`](WritableDelta::trim). An error changes nothing; where the file system cannot do it, nothing is done.
    pub(in crate::image) fn preallocate(&mut self, clusters: u64) -> Result<()> {
        let size = self.header.cluster.bytes();
        let start = self.space.end;
        let end = start + clusters * size;
        if clusters == 0 {
            return Ok(());
        }
        self.reserve(end)?;
        if self.space.len % size != 0 {
            self.cut_to(start)?;
        }
        match self.storage.allocate(start, end - start) {
            Ok(()) => {
                self.space.reserved = self.space.reserved.max(end);
                self.space.len = self.space.len.max(end);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            Err(error) => {
                // A part may have been allocated.
                let _ = self.storage.set_len(self.space.len);
                Err(
                    Error::io(OPERATION, "the file cannot be made longer", error)
                        .with_path(&self.path),
                )
            }
        }
    }

    /// Extends the file with zeros up to `end`, where the next new cluster will be.
    pub(super) fn extend_with_zeros(&mut self, end: u64) -> Result<()> {
        let old = self.space.end;
        if end > old.max(self.space.reserved) {
            self.attempt("the file cannot be made longer", |storage| {
                write_zeros(storage, old, end - old)
            })?;
        }
        self.space.end = end.max(old);
        self.space.len = self.space.len.max(self.space.end);
        Ok(())
    }

    /// Cuts off free clusters at the end of the file, and preallocated space. Everything must be flushed.
    pub(in crate::image) fn trim(&mut self) -> Result<()> {
        let size = self.header.cluster.bytes();
        let mut end = self.space.end;
        self.space.free.sort_unstable();
        while self
            .space
            .free
            .last()
            .is_some_and(|last| last + size == end)
        {
            self.space.free.pop();
            end -= size;
        }
        self.cut_to(end)
    }

    /// Cuts the file at `end`, behind which there is no data.
    pub(super) fn cut_to(&mut self, end: u64) -> Result<()> {
        if end != self.space.len {
            self.attempt("the file cannot be cut", |storage| storage.set_len(end))?;
        }
        self.space.end = end;
        self.space.reserved = end;
        self.space.len = end;
        self.space.credit = 0;
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
