//! Which parts of a disk have data ([`Extents`]), and in which file it is ([`Mappings`]).

use std::iter::FusedIterator;

use super::chain::{Chain, Level, Location};
use super::holes;
use super::storages::{Part, Storages};
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
    pub(super) fn from(storages: &'a Storages, start: u64) -> Extents<'a> {
        Extents {
            mappings: Mappings::from(storages, start),
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
    /// The storages that are not begun.
    parts: std::vec::IntoIter<Part<'a>>,
    current: Option<PartMappings<'a>>,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(storages: &'a Storages) -> Mappings<'a> {
        Mappings::from(storages, 0)
    }

    /// From the page on in which an offset of the disk is.
    fn from(storages: &'a Storages, start: u64) -> Mappings<'a> {
        let ends_before = |part: &Part<'_>| part.start + part.chain.size().bytes() <= start;
        let mut parts = storages.parts();
        let first = parts.by_ref().find(|part| !ends_before(part));
        let current = first.map(|part| PartMappings::from(part, start - part.start));
        let parts: Vec<Part<'a>> = parts.collect();
        Mappings {
            parts: parts.into_iter(),
            current,
        }
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        loop {
            if let Some(current) = &mut self.current {
                match current.next() {
                    Some(Ok(mapping)) => return Some(Ok(mapping)),
                    Some(Err(error)) => {
                        // Nothing comes after an error.
                        self.parts = Vec::new().into_iter();
                        self.current = None;
                        return Some(Err(error));
                    }
                    None => {}
                }
            }
            self.current = Some(PartMappings::from(self.parts.next()?, 0));
        }
    }
}

/// The [`Mappings`] of one storage.
#[derive(Debug)]
struct PartMappings<'a> {
    part: Part<'a>,
    table_mappings: TableMappings<'a>,
    /// The rest of a mapping to a raw base, which is split at the holes of the file.
    raw: Option<Mapping>,
}

impl<'a> PartMappings<'a> {
    /// From the page on in which an offset of the storage is.
    fn from(part: Part<'a>, start: u64) -> PartMappings<'a> {
        PartMappings {
            part,
            table_mappings: TableMappings::from(part.chain, start),
            raw: None,
        }
    }

    /// A mapping of the storage as one of the disk.
    fn of_disk(&self, mapping: Mapping) -> Mapping {
        Mapping {
            offset: self.part.start + mapping.offset,
            level: self.part.first_level + mapping.level,
            ..mapping
        }
    }
}

impl Iterator for PartMappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        let levels = self.part.chain.levels();
        loop {
            if let Some(mapping) = self.raw.take() {
                let file = levels[mapping.level].file();
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
                return Some(Ok(self.of_disk(Mapping {
                    offset: mapping.offset + skipped,
                    len,
                    level: mapping.level,
                    file_offset: start,
                })));
            }
            match self.table_mappings.next()? {
                Ok(mapping) => match levels[mapping.level] {
                    Level::Raw { .. } => self.raw = Some(mapping),
                    Level::Delta(_) => return Some(Ok(self.of_disk(mapping))),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl FusedIterator for Mappings<'_> {}

/// [`PartMappings`] by the tables alone: a raw base counts as data from end to end.
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
            len = match &self.chain.levels()[location.level] {
                Level::Raw { len: end, .. } => len.min(end - location.offset),
                Level::Delta(delta) => len.min(delta.data_end() - location.offset),
            };
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
