//! A delta file that is read: its header, its block allocation table and its clusters.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "image-write")]
use super::file;
use super::header::{Header, HeaderFlags, at};
use super::layout::Layout;
use super::salvage::LossReason;
use super::table::{self, LOST, Page, Table};
use crate::{Error, ErrorKind, Result};

const OPERATION: &str = "open image";

/// An open delta file.
#[derive(Debug)]
pub(super) struct Delta {
    path: PathBuf,
    file: Arc<File>,
    layout: Layout,
    table: Table,
    /// The length of the file. A delta in use grows while it is read.
    len: AtomicU64,
    /// Ranges of the file without space on its disk, if the caller knows any. No entry may lead there.
    holes: Vec<Range<u64>>,
    /// Whether entries that lead nowhere are told, and no errors.
    salvage: bool,
    /// Whether the header of a salvaged delta contradicts itself about the size of the disk.
    has_doubtful_size: bool,
}

/// Where a delta has a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At this offset. Where the delta is salvaged, the file may end within the cluster.
    At(u64),
    Lost(LossReason),
}

/// Refuses a delta of which clusters that the header counts would be left out without a word.
fn require_no_contradiction(file: &File, len: u64) -> Result<()> {
    let header = Header::read_from(file, len).ok();
    let header = header.filter(|header| header.stored_entries > header.entries());
    match header.and_then(|header| header.contradiction()) {
        Some(contradiction) => {
            let why = format!("{contradiction}; repair the image, or read it by salvage");
            Err(Error::new(ErrorKind::Corrupt, OPERATION, why).with_offset(at::ENTRIES as u64))
        }
        None => Ok(()),
    }
}

impl Delta {
    /// An open file of `len` bytes as a delta. Refused where it cannot be read with certainty.
    pub(super) fn from_file(
        path: &Path,
        file: File,
        len: u64,
        allow_in_use: bool,
    ) -> Result<Delta> {
        let open = || {
            let layout = Layout::read_from(&file, len)?;
            require_readable(layout.flags, layout.in_use, allow_in_use)?;
            require_no_contradiction(&file, len)?;
            Ok(layout)
        };
        let layout = open().map_err(|error: Error| error.with_path(path))?;
        Ok(Delta {
            path: path.to_owned(),
            table: Table::new(layout.entries),
            file: Arc::new(file),
            layout,
            len: AtomicU64::new(len),
            holes: Vec::new(),
            salvage: false,
            has_doubtful_size: false,
        })
    }

    /// A delta of which as much is read as there is: its header may be wrong about where the table ends, the file may
    /// be cut short, and entries may lead anywhere.
    pub(super) fn salvaged(path: &Path, file: File, len: u64) -> Result<Delta> {
        let open = || {
            let (layout, is_doubtful) = Layout::salvaged(&file, len)?;
            require_readable(layout.flags, layout.in_use, true)?;
            Ok((layout, is_doubtful))
        };
        let (layout, has_doubtful_size) = open().map_err(|error: Error| error.with_path(path))?;
        Ok(Delta {
            path: path.to_owned(),
            table: Table::salvaged(layout.entries),
            file: Arc::new(file),
            layout,
            len: AtomicU64::new(len),
            holes: Vec::new(),
            salvage: true,
            has_doubtful_size,
        })
    }

    /// Reads the header, the table and the length again, after others have written to the file. Nothing changes after
    /// an error.
    #[cfg(feature = "image-write")]
    pub(super) fn reload(&mut self) -> Result<()> {
        let read = || {
            let len = file::length(OPERATION, &self.file)?;
            let layout = Layout::read_from(&self.file, len)?;
            require_readable(layout.flags, layout.in_use, true)?;
            if layout.cluster != self.layout.cluster {
                let message = format!(
                    "clusters are of {} now and were of {}",
                    layout.cluster, self.layout.cluster
                );
                return Err(Error::new(ErrorKind::Corrupt, OPERATION, message).with_offset(28));
            }
            Ok((layout, len))
        };
        let (layout, len) = read().map_err(|error: Error| error.with_path(&self.path))?;
        self.table = Table::new(layout.entries);
        self.layout = layout;
        self.len = AtomicU64::new(len);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether the size of the disk is better known from elsewhere.
    pub(super) fn has_doubtful_size(&self) -> bool {
        self.has_doubtful_size
    }

    /// Where this delta has a cluster of the disk, if it has.
    pub(super) fn place(&self, cluster: u32) -> Result<Option<Place>> {
        let entry = self
            .table
            .entry(&self.file, cluster)
            .map_err(|error| error.with_path(&self.path))?;
        self.place_of(cluster, entry)
    }

    /// The place that an entry of the table stands for.
    pub(super) fn place_of(&self, cluster: u32, entry: u32) -> Result<Option<Place>> {
        if !self.salvage {
            return Ok(self.resolve(cluster, entry)?.map(Place::At));
        }
        if entry == 0 {
            return Ok(None);
        }
        let offset = self.layout.cluster_offset(entry);
        let is_cut = offset >= self.len();
        Ok(Some(match self.layout.misplaced(offset, |_| false) {
            Some(_) => Place::Lost(LossReason::Table),
            None if entry == LOST => Place::Lost(LossReason::Table),
            None if is_cut => Place::Lost(LossReason::Missing),
            None => Place::At(offset),
        }))
    }

    /// Where the data of a salvaged delta ends; no limit for others.
    pub(super) fn data_end(&self) -> u64 {
        match self.salvage {
            true => self.len(),
            false => u64::MAX,
        }
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// A page of the table, for a reader of all of it.
    pub(super) fn page(&self, number: u32) -> Result<Page> {
        self.table
            .page_uncached(&self.file, number)
            .map_err(|error| error.with_path(&self.path))
    }

    /// The offset in the file that an entry of the table stands for.
    pub(super) fn resolve(&self, cluster: u32, entry: u32) -> Result<Option<u64>> {
        if entry == 0 {
            return Ok(None);
        }
        let size = self.layout.cluster.bytes();
        let offset = self.layout.cluster_offset(entry);
        let is_beyond = |end| end > self.len.load(Ordering::Relaxed) && end > self.current_len();
        if let Some(what) = self.layout.misplaced(offset, is_beyond) {
            return Err(self.bad_entry(cluster, entry, what));
        }
        if is_in_hole(&self.holes, offset, size) {
            return Err(self.bad_entry(cluster, entry, "is a hole in the file"));
        }
        Ok(Some(offset))
    }

    /// Sets the slot of a cluster in the table in memory.
    #[cfg(feature = "image-write")]
    pub(super) fn set_slot(&mut self, cluster: u32, slot: u32) -> Result<()> {
        let entry = self.layout.entry_of(slot);
        self.table.set(&self.file, cluster, entry)
    }

    /// Whether the table has an entry for a cluster, sound or not.
    #[cfg(feature = "image-write")]
    pub(super) fn has_entry(&self, cluster: u32) -> Result<bool> {
        Ok(self.table.entry(&self.file, cluster)? != 0)
    }

    #[cfg(feature = "image-write")]
    pub(super) fn holes(&self) -> &[Range<u64>] {
        &self.holes
    }

    #[cfg(feature = "image-write")]
    pub(super) fn set_holes(&mut self, holes: Vec<Range<u64>>) {
        self.holes = holes;
    }

    fn current_len(&self) -> u64 {
        let len = self.file.metadata().map_or(0, |metadata| metadata.len());
        self.len.fetch_max(len, Ordering::Relaxed).max(len)
    }

    fn bad_entry(&self, cluster: u32, entry: u32, what: &str) -> Error {
        let message = format!("the table puts cluster {cluster} at {entry}, which {what}");
        Error::new(ErrorKind::Corrupt, "read block table", message)
            .with_path(&self.path)
            .with_offset(table::entry_offset(cluster))
    }
}

/// Whether any part of the cluster at `offset` is in a hole.
pub(super) fn is_in_hole(holes: &[Range<u64>], offset: u64, cluster: u64) -> bool {
    holes
        .iter()
        .any(|hole| hole.start < offset + cluster && offset < hole.end)
}

/// The offset of the cluster to which an entry leads. It is below 2^58, so sums do not overflow.
#[cfg(feature = "image-write")]
pub(super) fn cluster_offset(header: &Header, entry: u32) -> u64 {
    Layout::from(header).cluster_offset(entry)
}

/// The entry that leads to a slot of the file.
#[cfg(feature = "image-write")]
pub(super) fn entry_of(header: &Header, slot: u32) -> u32 {
    Layout::from(header).entry_of(slot)
}

/// Refuses a delta that cannot be read with certainty.
#[cfg(feature = "image-write")]
pub(super) fn check_readable(header: &Header, allow_in_use: bool) -> Result<()> {
    require_readable(header.flags, header.in_use, allow_in_use)
}

fn require_readable(flags: HeaderFlags, in_use: bool, allow_in_use: bool) -> Result<()> {
    let unsupported = |message| Error::new(ErrorKind::Unsupported, OPERATION, message);
    if flags.contains(HeaderFlags::CONVERTING) {
        return Err(unsupported(
            "a change of the format version was interrupted; libploop can finish it",
        ));
    }
    if in_use && !allow_in_use {
        return Err(Error::new(
            ErrorKind::Busy,
            OPERATION,
            "the image is marked as in use: it is mounted, or was when its host went down",
        )
        .with_offset(44));
    }
    Ok(())
}
