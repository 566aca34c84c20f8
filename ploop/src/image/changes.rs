//! Which parts of a disk differ from another state of it ([`Changes`]).

use std::iter::{FusedIterator, Peekable};
use std::path::Path;

use super::aligned_buffer::AlignedBuffer;
use super::disk::Disk;
use super::extents::{Extent, Mapping, Mappings};
use crate::Result;

/// How much is compared at a time.
const BUFFER: usize = 256 << 10;
/// The unit in which bytes are compared.
const BLOCK: usize = 4 << 10;

/// The parts of a disk that differ from another: see [`Disk::changes_since`].
#[derive(Debug)]
pub struct Changes<'a> {
    candidates: Candidates<'a>,
    /// What is left of a candidate.
    rest: Option<Extent>,
    pending: Option<Extent>,
    buffers: [AlignedBuffer; 2],
    failed: bool,
}

impl Disk {
    /// The parts of this disk whose bytes differ from those of `earlier`, in order, in blocks of 4 KiB and as long as
    /// they can be: what a backup since then has to copy. What lies in the same cluster of the same file in both is not
    /// read. Where one disk is longer than the other, that part is as if the other had zeros there.
    ///
    /// ```no_run
    /// use ploop::{Guid, image::Disk};
    ///
    /// let path = "/vz/private/101/root.hdd/DiskDescriptor.xml";
    /// let snapshot: Guid = "{a1a1a1a1-1111-4111-8111-000000000001}".parse()?;
    /// let (earlier, now) = (Disk::open_snapshot(path, snapshot)?, Disk::open(path)?);
    /// for change in now.changes_since(&earlier) {
    ///     let change = change?;
    ///     println!("{} bytes at {}", change.len, change.offset);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// After an error, which is as in [`read_at`](Disk::read_at), the iterator ends.
    pub fn changes_since<'a>(&'a self, earlier: &'a Disk) -> Changes<'a> {
        Changes {
            candidates: Candidates::new(self, earlier),
            rest: None,
            pending: None,
            buffers: [AlignedBuffer::new(BUFFER), AlignedBuffer::new(BUFFER)],
            failed: false,
        }
    }
}

impl Changes<'_> {
    /// Compares the next piece, and returns the part of it that differs and is at its beginning or behind equal
    /// bytes. `None` at the end.
    fn next_difference(&mut self) -> Result<Option<Extent>> {
        loop {
            let Some(candidate) = self
                .rest
                .take()
                .map_or_else(|| self.candidates.next_extent(), |it| Ok(Some(it)))?
            else {
                return Ok(None);
            };
            let len = candidate.len.min(BUFFER as u64);
            let [one, other] = &mut self.buffers;
            let disks = [self.candidates.now.0, self.candidates.earlier.0];
            for (disk, buffer) in disks.into_iter().zip([&mut *one, &mut *other]) {
                let buffer = &mut buffer[..len as usize];
                let read = disk.read_at(buffer, candidate.offset)?;
                buffer[read..].fill(0);
            }
            let (one, other) = (&one[..len as usize], &other[..len as usize]);
            let blocks = one.chunks(BLOCK).zip(other.chunks(BLOCK));
            let equal: usize = blocks
                .clone()
                .take_while(|(a, b)| a == b)
                .map(|(a, _)| a.len())
                .sum();
            let differ: usize = blocks
                .skip(equal.div_ceil(BLOCK))
                .take_while(|(a, b)| a != b)
                .map(|(a, _)| a.len())
                .sum();
            let used = (equal + differ) as u64;
            if used < candidate.len {
                self.rest = Some(Extent {
                    offset: candidate.offset + used,
                    len: candidate.len - used,
                });
            }
            if differ != 0 {
                return Ok(Some(Extent {
                    offset: candidate.offset + equal as u64,
                    len: differ as u64,
                }));
            }
        }
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        while !self.failed {
            match self.next_difference() {
                Ok(Some(extent)) => match &mut self.pending {
                    Some(pending) if pending.offset + pending.len == extent.offset => {
                        pending.len += extent.len;
                    }
                    pending => {
                        if let Some(whole) = pending.replace(extent) {
                            return Some(Ok(whole));
                        }
                    }
                },
                Ok(None) => return self.pending.take().map(Ok),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl FusedIterator for Changes<'_> {}

/// The parts of two disks that do not lie in the same place of the same file.
#[derive(Debug)]
struct Candidates<'a> {
    now: Side<'a>,
    earlier: Side<'a>,
    at: u64,
    /// The end of the last part.
    compared: u64,
}

#[derive(Debug)]
struct Side<'a>(&'a Disk, Peekable<Mappings<'a>>);

/// What a side has from an offset on: where, if anywhere, and up to which offset of the disk.
struct Piece<'a> {
    location: Option<(&'a Path, u64)>,
    end: u64,
}

impl<'a> Side<'a> {
    fn piece(&mut self, at: u64) -> Result<Piece<'a>> {
        let Side(disk, mappings) = self;
        let is_behind = |it: &Result<Mapping>| it.as_ref().is_ok_and(|it| it.offset + it.len <= at);
        while mappings.next_if(is_behind).is_some() {}
        if let Some(error) = mappings.next_if(Result::is_err) {
            error?;
        }
        Ok(match mappings.peek() {
            Some(Ok(mapping)) if mapping.offset <= at => Piece {
                location: disk
                    .storages()
                    .level(mapping.level)
                    .map(|level| (level.path(), mapping.file_offset + (at - mapping.offset))),
                end: mapping.offset + mapping.len,
            },
            Some(Ok(mapping)) => Piece {
                location: None,
                end: mapping.offset,
            },
            _ => Piece {
                location: None,
                end: u64::MAX,
            },
        })
    }
}

impl<'a> Candidates<'a> {
    fn new(now: &'a Disk, earlier: &'a Disk) -> Candidates<'a> {
        let side = |disk: &'a Disk| Side(disk, disk.mappings().peekable());
        Candidates {
            now: side(now),
            earlier: side(earlier),
            at: 0,
            compared: 0,
        }
    }

    /// The next part, in whole blocks.
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        const BLOCK: u64 = self::BLOCK as u64;
        let disk_end = self.now.0.size().max(self.earlier.0.size()).bytes();
        loop {
            let (now, earlier) = (self.now.piece(self.at)?, self.earlier.piece(self.at)?);
            let end = now.end.min(earlier.end);
            if end == u64::MAX && now.location.is_none() && earlier.location.is_none() {
                return Ok(None);
            }
            let start = std::mem::replace(&mut self.at, end);
            if now.location == earlier.location {
                continue;
            }
            // The first block may have been part of the extent before.
            let start = (start / BLOCK * BLOCK).max(self.compared);
            let end = end.next_multiple_of(BLOCK).min(disk_end);
            self.compared = self.compared.max(end);
            if start < end {
                return Ok(Some(Extent {
                    offset: start,
                    len: end - start,
                }));
            }
        }
    }
}
