//! The block allocation table (BAT) of a delta: which cluster of the disk lies where in the file.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::header::Header;
use super::holes;
use crate::{Error, Result};

/// How many entries a page has: they are read together. The table of 16 TiB in clusters of 1 MiB has 1024 pages.
pub(super) const PAGE: u32 = 1 << 14;

/// The table. Each page is read when first needed: the whole table of a large disk would take more time and memory than
/// everything else.
pub(super) struct Table {
    entries: u32,
    /// Whether entries that cannot be read are taken for ones that lead nowhere, and not for errors.
    salvage: bool,
    /// Groups of pages, each made when first needed: in a thousand deltas of a large disk, even empty pages would take
    /// gigabytes.
    groups: Box<[OnceLock<Group>]>,
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
        }
    }

    /// [`new`](Table::new), where entries that cannot be read are [`LOST`].
    pub(super) fn salvaged(entries: u32) -> Table {
        Table {
            salvage: true,
            ..Table::new(entries)
        }
    }

    /// A page of the table, read or not. `None` behind the last page.
    fn page(&self, number: u32) -> Option<&OnceLock<Page>> {
        let group = self.groups.get((number / GROUP) as usize)?;
        let pages = group.get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
        pages
            .get((number % GROUP) as usize)
            .filter(|_| number < self.entries.div_ceil(PAGE))
    }

    /// The entry of a cluster of the disk, 0 for those beyond the end.
    pub(super) fn entry(&self, file: &File, cluster: u32) -> Result<u32> {
        let number = cluster / PAGE;
        let Some(page) = self.page(number) else {
            return Ok(0);
        };
        let page = match page.get() {
            Some(page) => page,
            None => {
                let loaded = self.load(file, number)?;
                page.get_or_init(|| loaded)
            }
        };
        Ok(page.entry(cluster % PAGE))
    }

    /// Changes the entry of a cluster, in memory only. Does nothing for a page without entries.
    #[cfg(feature = "image-write")]
    pub(super) fn set(&mut self, file: &File, cluster: u32, entry: u32) -> Result<()> {
        // Loads the page.
        self.entry(file, cluster)?;
        let number = cluster / PAGE;
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
        let group = self.groups.get((number / GROUP) as usize);
        let pages = group.and_then(OnceLock::get);
        match pages.and_then(|pages| pages.get((number % GROUP) as usize)?.get()) {
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
            read => read.map_err(|error| {
                Error::io("read block table", "the file cannot be read", error).with_offset(offset)
            })?,
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

/// The offset of a cluster's entry in the file.
pub(super) fn entry_offset(cluster: u32) -> u64 {
    Header::LEN as u64 + 4 * u64::from(cluster)
}
