//! The block allocation table (BAT) of a delta: which cluster of the disk lies where in the file.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::header::Header;
use super::holes;
use crate::{Error, Result};

/// How many entries a page has: they are read together. The table of 16 TiB in clusters of 1 MiB has 1024 pages.
pub(super) const PAGE: u32 = 1 << 14;

/// The most bytes that all tables of the process keep in memory together. What does not fit is read from the file each
/// time. In clusters of 1 MiB this is the whole table of 8 TiB.
const MAX_KEPT: usize = 32 << 20;

/// How much the tables of the process keep.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The table. Each page is read when first needed: the whole table of a large disk would take more time and memory than
/// everything else.
pub(super) struct Table {
    entries: u32,
    /// Whether entries that cannot be read are taken for ones that lead nowhere, and not for errors.
    salvage: bool,
    /// Groups of pages, each made when first needed: in a thousand deltas of a large disk, even empty pages would take
    /// gigabytes.
    groups: Box<[OnceLock<Group>]>,
    /// How much of [`KEPT`] is this table's.
    kept: AtomicUsize,
}

impl Drop for Table {
    fn drop(&mut self) {
        KEPT.fetch_sub(*self.kept.get_mut(), Ordering::Relaxed);
    }
}

type Group = Box<[OnceLock<Page>]>;

/// How many pages a group has.
const GROUP: u32 = 1 << 9;

impl fmt::Debug for Table {
    /// Without the entries: there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

/// A page of the table.
#[derive(Debug, Clone)]
pub(super) enum Page {
    /// No cluster is allocated. Usual on a large disk, and in a new delta.
    Empty,
    Entries(Box<[u32]>),
    /// Nothing of it can be read: see [`Table::salvaged`].
    Lost,
}

/// An entry that cannot be read. No table leads so far.
pub(super) const LOST: u32 = u32::MAX;

/// Reads what can be read of a part of the table; the rest becomes [`LOST`]. `false` where that is all.
fn read_pieces(file: &File, bytes: &mut [u8], offset: u64) -> bool {
    const PIECE: usize = 512;
    let mut any = false;
    // The table begins between two sectors.
    let first = PIECE - (offset % PIECE as u64) as usize;
    let (first, rest) = bytes.split_at_mut(first.min(bytes.len()));
    let mut at = offset;
    for piece in [first].into_iter().chain(rest.chunks_mut(PIECE)) {
        match file.read_exact_at(piece, at) {
            Ok(()) => any = true,
            Err(_) => piece.fill(0xff),
        }
        at += piece.len() as u64;
    }
    any
}

impl Page {
    /// The entry at `index` of this page; 0 means that the cluster is not allocated.
    pub(super) fn entry(&self, index: u32) -> u32 {
        match self {
            Page::Empty => 0,
            Page::Lost => LOST,
            Page::Entries(entries) => entries.get(index as usize).copied().unwrap_or(0),
        }
    }
}

impl Table {
    /// The table of a delta with that many entries.
    pub(super) fn new(entries: u32) -> Table {
        let groups = entries.div_ceil(PAGE).div_ceil(GROUP);
        Table {
            entries,
            salvage: false,
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
            kept: AtomicUsize::new(0),
        }
    }

    /// [`new`](Table::new), where entries that cannot be read are [`LOST`].
    pub(super) fn salvaged(entries: u32) -> Table {
        let mut table = Table::new(entries);
        table.salvage = true;
        table
    }

    /// The entry of a cluster of the disk, 0 for those beyond the end.
    pub(super) fn entry(&self, file: &File, cluster: u32) -> Result<u32> {
        let number = cluster / PAGE;
        if number >= self.entries.div_ceil(PAGE) {
            return Ok(0);
        }
        if let Some(page) = self.kept_page(number) {
            return Ok(page.entry(cluster % PAGE));
        }
        if KEPT.load(Ordering::Relaxed) < MAX_KEPT {
            return Ok(self.keep(file, number)?.entry(cluster % PAGE));
        }
        if self.salvage {
            // What is lost is found by pages.
            return Ok(self.load(file, number)?.entry(cluster % PAGE));
        }
        if cluster >= self.entries {
            return Ok(0);
        }
        let (mut entry, offset) = ([0; 4], entry_offset(cluster));
        file.read_exact_at(&mut entry, offset)
            .map_err(|error| cannot_read(error, offset))?;
        Ok(u32::from_le_bytes(entry))
    }

    /// A page that is in memory.
    fn kept_page(&self, number: u32) -> Option<&Page> {
        let group = self.groups.get((number / GROUP) as usize)?.get()?;
        group.get((number % GROUP) as usize)?.get()
    }

    /// Reads a page, which has to exist, and keeps it in memory.
    fn keep(&self, file: &File, number: u32) -> Result<&Page> {
        let page = self.load(file, number)?;
        let group = self.groups[(number / GROUP) as usize].get_or_init(|| {
            self.count(GROUP as usize * size_of::<OnceLock<Page>>());
            (0..GROUP).map(|_| OnceLock::new()).collect()
        });
        Ok(group[(number % GROUP) as usize].get_or_init(|| {
            if let Page::Entries(entries) = &page {
                self.count(size_of_val(&**entries));
            }
            page
        }))
    }

    fn count(&self, bytes: usize) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
        KEPT.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Changes the entry of a cluster, in memory only. Does nothing for a page without entries.
    #[cfg(feature = "image-write")]
    pub(super) fn set(&mut self, file: &File, cluster: u32, entry: u32) -> Result<()> {
        let number = cluster / PAGE;
        // What is changed in memory has to be kept there.
        if number < self.entries.div_ceil(PAGE) && self.kept_page(number).is_none() {
            self.keep(file, number)?;
        }
        let group = self.groups.get_mut((number / GROUP) as usize);
        let page = group
            .and_then(OnceLock::get_mut)
            .and_then(|pages| pages.get_mut((number % GROUP) as usize));
        if let Some(Page::Entries(entries)) = page.and_then(OnceLock::get_mut) {
            if let Some(slot) = entries.get_mut((cluster % PAGE) as usize) {
                *slot = entry;
            }
        }
        Ok(())
    }

    /// A page for a reader that reads the table once: a page that is not in memory is not kept there.
    pub(super) fn page_uncached(&self, file: &File, number: u32) -> Result<Page> {
        if number >= self.entries.div_ceil(PAGE) {
            return Ok(Page::Empty);
        }
        match self.kept_page(number) {
            Some(page) => Ok(page.clone()),
            None => self.load(file, number),
        }
    }

    fn load(&self, file: &File, number: u32) -> Result<Page> {
        let first = number * PAGE;
        let count = (self.entries - first).min(PAGE);
        let offset = entry_offset(first);
        let len = 4 * count as usize;
        // What is behind the end of the file is no hole.
        let end = match self.salvage.then(|| file.metadata()) {
            Some(Ok(metadata)) if metadata.is_file() => metadata.len(),
            _ => u64::MAX,
        };
        if end <= offset {
            return Ok(Page::Lost);
        }
        let is_cut = end < offset + len as u64;
        if !is_cut && holes::is_hole(file, offset, len as u64) {
            return Ok(Page::Empty);
        }
        let mut bytes = vec![0; len];
        match file.read_exact_at(&mut bytes, offset) {
            Err(_) if self.salvage => {
                if !read_pieces(file, &mut bytes, offset) {
                    return Ok(Page::Lost);
                }
            }
            read => read.map_err(|error| cannot_read(error, offset))?,
        }
        if holes::is_zero(&bytes) {
            return Ok(Page::Empty);
        }
        let entries = bytes
            .chunks_exact(4)
            .map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
            .collect();
        Ok(Page::Entries(entries))
    }
}

fn cannot_read(error: std::io::Error, offset: u64) -> Error {
    Error::io("read block table", "the file cannot be read", error).with_offset(offset)
}

/// The offset of a cluster's entry in the file.
pub(super) fn entry_offset(cluster: u32) -> u64 {
    Header::LEN as u64 + 4 * u64::from(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clusters in each page of a table of 64 MiB, which is more than is kept.
    #[test]
    fn a_table_that_is_not_kept_is_read_all_the_same() {
        let entries = 1 << 24;
        let expected = |cluster: u32| match cluster % PAGE {
            0 | 77 => cluster + 1,
            _ => 0,
        };
        let file = tempfile::tempfile().unwrap();
        file.set_len(entry_offset(entries)).unwrap();
        let pages = (0..entries).step_by(PAGE as usize);
        for cluster in pages.flat_map(|first| [first, first + 77]) {
            let entry = expected(cluster).to_le_bytes();
            file.write_all_at(&entry, entry_offset(cluster)).unwrap();
        }
        let mut table = Table::new(entries);
        // The last pages are not kept, the first time and the second.
        for _ in 0..2 {
            for cluster in (0..entries)
                .step_by(PAGE as usize)
                .flat_map(|first| [0, 1, 77, PAGE - 1].map(|index| first + index))
            {
                assert_eq!(table.entry(&file, cluster).unwrap(), expected(cluster));
            }
        }
        assert!(KEPT.load(Ordering::Relaxed) < MAX_KEPT + (1 << 20));
        let last = entries - PAGE;
        assert!(table.kept_page(0).is_some() && table.kept_page(last / PAGE).is_none());
        assert_eq!(table.entry(&file, entries).unwrap(), 0);
        assert_eq!(table.entry(&file, u32::MAX).unwrap(), 0);
        #[cfg(feature = "image-write")]
        {
            table.set(&file, last + 77, 5).unwrap();
            assert_eq!(table.entry(&file, last + 77).unwrap(), 5);
        }
        let kept = *table.kept.get_mut();
        assert!(kept > MAX_KEPT / 2);
        let before = KEPT.load(Ordering::Relaxed);
        drop(table);
        assert!(KEPT.load(Ordering::Relaxed) <= before - kept / 2);
    }
}
