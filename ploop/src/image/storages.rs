//! The storages of a disk, each a chain of deltas: nearly always one.

use super::chain::{Chain, Level, Location};
use crate::{Result, Size};

/// The chains of a disk, one behind the other.
#[derive(Debug)]
pub(super) struct Storages {
    first: Chain,
    further: Vec<Chain>,
}

/// A storage, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) chain: &'a Chain,
    /// Where it begins on the disk.
    pub(super) start: u64,
    /// The number of its base among the files of the disk.
    pub(super) first_level: usize,
}

impl Storages {
    /// A disk in one piece.
    pub(super) fn one(chain: Chain) -> Storages {
        Storages::new(chain, Vec::new())
    }

    pub(super) fn new(first: Chain, further: Vec<Chain>) -> Storages {
        Storages { first, further }
    }

    pub(super) fn size(&self) -> Size {
        let further = self.further.iter().map(Chain::size);
        self.first.size() + further.sum::<Size>()
    }

    pub(super) fn first(&self) -> &Chain {
        &self.first
    }

    #[cfg(feature = "image-write")]
    pub(super) fn first_mut(&mut self) -> &mut Chain {
        &mut self.first
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let (mut start, mut first_level) = (0, 0);
        [&self.first]
            .into_iter()
            .chain(&self.further)
            .map(move |chain| {
                let part = Part {
                    chain,
                    start,
                    first_level,
                };
                start += chain.size().bytes();
                first_level += chain.levels().len();
                part
            })
    }

    /// The files of all storages, of each the base first.
    pub(super) fn levels(&self) -> impl Iterator<Item = &Level> {
        let further = self.further.iter().flat_map(Chain::levels);
        self.first.levels().iter().chain(further)
    }

    /// A file, by its number among all.
    pub(super) fn level(&self, number: usize) -> Option<&Level> {
        self.levels().nth(number)
    }

    /// Fills `buffer` from an offset of a file, which has this number among all, for what is at `offset` of the disk.
    pub(super) fn read_file(
        &self,
        number: usize,
        file_offset: u64,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<()> {
        for part in self.parts() {
            let level = number - part.first_level;
            if level < part.chain.levels().len() {
                let location = Location {
                    level,
                    offset: file_offset,
                };
                return part
                    .chain
                    .read_location(location, buffer, offset - part.start);
            }
        }
        // No mapping has another number.
        Ok(())
    }

    /// Fills `buffer` from `offset` on, up to the end of the disk at most.
    pub(super) fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        if self.further.is_empty() {
            return self.first.read(buffer, offset);
        }
        for part in self.parts() {
            let size = part.chain.size().bytes();
            // The parts before it are read, so it does not begin behind `offset`.
            let within = offset - part.start;
            let len = size.saturating_sub(within).min(buffer.len() as u64);
            let (now, rest) = buffer.split_at_mut(len as usize);
            part.chain.read(now, within)?;
            buffer = rest;
            offset += len;
            if buffer.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
