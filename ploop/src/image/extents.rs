//! Which parts of a disk have data ([`Extents`]), and in which file it is ([`Mappings`]).

use std::iter::FusedIterator;

use super::chain::{Chain, Level, Location};
use super::holes;
use super::table::PAGE;
use crate::Result;

/// A part of a disk for which clusters are allocated, in any delta of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Extent {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A part of a disk that lies in one piece in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Mapping {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The file that holds it: the index in [`Disk::files`](super::Disk::files).
    pub level: usize,
    /// Where it begins in that file, in bytes.
    pub file_offset: u64,
}

impl Mapping {
    pub(super) fn location(&self) -> Location {
        Location {
            level: self.level,
            offset: self.file_offset,
        }
    }
}

/// The allocated parts of a disk, in order: see [`Disk::extents`](super::Disk::extents).
#[derive(Debug)]
pub struct Extents<'a> {
    mappings: Mappings<'a>,
    /// What is before it is left out.
    start: u64,
    pending: Option<Extent>,
}

impl<'a> Extents<'a> {
    /// The parts from an offset of the disk on.
    pub(super) fn from(chain: &'a Chain, start: u64) -> Extents<'a> {
        Extents {
            mappings: Mappings::from(chain, start),
            start,
            pending: None,
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            match self.mappings.next() {
                Some(Ok(Mapping { offset, len, .. })) if offset + len <= self.start => {}
                Some(Ok(Mapping { offset, len, .. })) if offset < self.start => {
                    let cut = self.start - offset;
                    self.pending = Some(Extent {
                        offset: self.start,
                        len: len - cut,
                    });
                }
                Some(Ok(Mapping { offset, len, .. })) => match &mut self.pending {
                    Some(extent) if extent.offset + extent.len == offset => extent.len += len,
                    pending => {
                        if let Some(extent) = pending.replace(Extent { offset, len }) {
                            return Some(Ok(extent));
                        }
                    }
                },
                Some(Err(error)) => {
                    self.pending = None;
                    return Some(Err(error));
                }
                None => return self.pending.take().map(Ok),
            }
        }
    }
}

impl FusedIterator for Extents<'_> {}

/// The allocated parts of a disk with the locations they are at, in order: see
/// [`Disk::mappings`](super::Disk::mappings).
#[derive(Debug)]
pub struct Mappings<'a> {
    table_mappings: TableMappings<'a>,
    /// The rest of a mapping to a raw base, which is split at the holes of the file.
    raw: Option<Mapping>,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(chain: &'a Chain) -> Mappings<'a> {
        Mappings::from(chain, 0)
    }

    /// From the page on in which an offset of the disk is.
    fn from(chain: &'a Chain, start: u64) -> Mappings<'a> {
        Mappings {
            table_mappings: TableMappings::from(chain, start),
            raw: None,
        }
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        loop {
            if let Some(mapping) = self.raw.take() {
                let file = self.table_mappings.chain.levels()[mapping.level].file();
                let Some((start, len)) = holes::data(file, mapping.file_offset, mapping.len).next()
                else {
                    continue;
                };
                let skipped = start - mapping.file_offset;
                let used = skipped + len;
                if used < mapping.len {
                    self.raw = Some(Mapping {
                        offset: mapping.offset + used,
                        len: mapping.len - used,
                        level: mapping.level,
                        file_offset: mapping.file_offset + used,
                    });
                }
                return Some(Ok(Mapping {
                    offset: mapping.offset + skipped,
                    len,
                    level: mapping.level,
                    file_offset: start,
                }));
            }
            match self.table_mappings.next()? {
                Ok(mapping) => match self.table_mappings.chain.levels()[mapping.level] {
                    Level::Raw { .. } => self.raw = Some(mapping),
                    Level::Delta(_) => return Some(Ok(mapping)),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl FusedIterator for Mappings<'_> {}

/// [`Mappings`] by the tables alone: a raw base counts as data from end to end.
#[derive(Debug)]
struct TableMappings<'a> {
    chain: &'a Chain,
    /// The number of the next page. `locations` are those of the page before it, read up to `index`.
    page: u32,
    locations: Vec<Option<Location>>,
    index: usize,
    pending: Option<Mapping>,
    failed: bool,
}

impl<'a> TableMappings<'a> {
    fn from(chain: &'a Chain, start: u64) -> TableMappings<'a> {
        let page = start / chain.cluster().bytes() / u64::from(PAGE);
        TableMappings {
            chain,
            page: u32::try_from(page).unwrap_or(u32::MAX),
            locations: Vec::new(),
            index: 0,
            pending: None,
            failed: false,
        }
    }

    /// Reads the next page that has any data; `false` where there is none.
    fn next_page(&mut self) -> Result<bool> {
        self.index = 0;
        self.locations.clear();
        while self.locations.is_empty() && self.page < self.chain.pages() {
            self.chain.page(self.page, &mut self.locations)?;
            self.page += 1;
        }
        Ok(!self.locations.is_empty())
    }
}

impl Iterator for TableMappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        let cluster = self.chain.cluster().bytes();
        let size = self.chain.size().bytes();
        while !self.failed {
            if self.index == self.locations.len() {
                match self.next_page() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
            }
            let number = u64::from(self.page - 1) * u64::from(PAGE) + self.index as u64;
            let location = self.locations[self.index];
            self.index += 1;
            let Some(location) = location else { continue };
            let offset = number * cluster;
            // The last cluster of the disk, or of a raw base, may be shorter.
            let mut len = cluster.min(size - offset);
            if let Level::Raw { len: end, .. } = self.chain.levels()[location.level] {
                len = len.min(end - location.offset);
            }
            match &mut self.pending {
                Some(mapping)
                    if mapping.offset + mapping.len == offset
                        && mapping.level == location.level
                        && mapping.file_offset + mapping.len == location.offset =>
                {
                    mapping.len += len;
                }
                pending => {
                    let next = Mapping {
                        offset,
                        len,
                        level: location.level,
                        file_offset: location.offset,
                    };
                    if let Some(mapping) = pending.replace(next) {
                        return Some(Ok(mapping));
                    }
                }
            }
        }
        self.pending.take().map(Ok)
    }
}
