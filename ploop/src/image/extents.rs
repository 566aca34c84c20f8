//! Which parts of a disk have data, and where it is.

use std::iter::FusedIterator;

use super::chain::{Chain, Layer, Place};
use super::holes;
use super::table::PAGE;
use crate::Result;

/// A part of a disk for which clusters are allocated, in any delta of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Extent {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A part of a disk that lies in one piece in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mapping {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The file that holds it: the index in [`Disk::files`](super::Disk::files).
    pub layer: usize,
    /// Where it begins in that file, in bytes.
    pub file_offset: u64,
}

impl Mapping {
    pub(super) fn place(&self) -> Place {
        Place {
            layer: self.layer,
            offset: self.file_offset,
        }
    }
}

/// The allocated parts of a disk, in order: see [`Disk::extents`](super::Disk::extents).
#[derive(Debug)]
pub struct Extents<'a> {
    mappings: Mappings<'a>,
    pending: Option<Extent>,
}

impl<'a> Extents<'a> {
    pub(super) fn new(chain: &'a Chain) -> Extents<'a> {
        Extents {
            mappings: Mappings::new(chain),
            pending: None,
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            match self.mappings.next() {
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

/// The allocated parts of a disk with the places they are at, in order: see
/// [`Disk::mappings`](super::Disk::mappings).
#[derive(Debug)]
pub struct Mappings<'a> {
    runs: Runs<'a>,
    /// What is left of a run in a plain base, which file systems make holes in.
    raw: Option<Mapping>,
}

impl<'a> Mappings<'a> {
    pub(super) fn new(chain: &'a Chain) -> Mappings<'a> {
        Mappings {
            runs: Runs::new(chain),
            raw: None,
        }
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        loop {
            if let Some(run) = self.raw.take() {
                let file = self.runs.chain.layers()[run.layer].file();
                let Some((start, len)) = holes::data(file, run.file_offset, run.len).next() else {
                    continue;
                };
                let skipped = start - run.file_offset;
                let used = skipped + len;
                if used < run.len {
                    self.raw = Some(Mapping {
                        offset: run.offset + used,
                        len: run.len - used,
                        layer: run.layer,
                        file_offset: run.file_offset + used,
                    });
                }
                return Some(Ok(Mapping {
                    offset: run.offset + skipped,
                    len,
                    layer: run.layer,
                    file_offset: start,
                }));
            }
            match self.runs.next()? {
                Ok(run) => match self.runs.chain.layers()[run.layer] {
                    Layer::Raw { .. } => self.raw = Some(run),
                    Layer::Delta(_) => return Some(Ok(run)),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl FusedIterator for Mappings<'_> {}

/// As [`Mappings`], with a plain base taken for allocated from end to end.
#[derive(Debug)]
struct Runs<'a> {
    chain: &'a Chain,
    /// The page that is next, and the places of the one before it from `index` on.
    page: u32,
    places: Vec<Option<Place>>,
    index: usize,
    pending: Option<Mapping>,
    failed: bool,
}

impl<'a> Runs<'a> {
    fn new(chain: &'a Chain) -> Runs<'a> {
        Runs {
            chain,
            page: 0,
            places: Vec::new(),
            index: 0,
            pending: None,
            failed: false,
        }
    }

    /// Goes to the next page that has anything, `false` where there is none.
    fn turn(&mut self) -> Result<bool> {
        self.index = 0;
        self.places.clear();
        while self.places.is_empty() && self.page < self.chain.pages() {
            self.chain.page(self.page, &mut self.places)?;
            self.page += 1;
        }
        Ok(!self.places.is_empty())
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Result<Mapping>> {
        let cluster = self.chain.cluster().bytes();
        let size = self.chain.size().bytes();
        while !self.failed {
            if self.index == self.places.len() {
                match self.turn() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
            }
            let number = u64::from(self.page - 1) * u64::from(PAGE) + self.index as u64;
            let place = self.places[self.index];
            self.index += 1;
            let Some(place) = place else { continue };
            let offset = number * cluster;
            // The last cluster of the disk, and of a plain base, may be cut short.
            let mut len = cluster.min(size - offset);
            if let Layer::Raw { len: end, .. } = self.chain.layers()[place.layer] {
                len = len.min(end - place.offset);
            }
            match &mut self.pending {
                Some(run)
                    if run.offset + run.len == offset
                        && run.layer == place.layer
                        && run.file_offset + run.len == place.offset =>
                {
                    run.len += len;
                }
                pending => {
                    let next = Mapping {
                        offset,
                        len,
                        layer: place.layer,
                        file_offset: place.offset,
                    };
                    if let Some(run) = pending.replace(next) {
                        return Some(Ok(run));
                    }
                }
            }
        }
        self.pending.take().map(Ok)
    }
}
