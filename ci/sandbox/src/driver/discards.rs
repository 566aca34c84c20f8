//! Discards that are asked for, and the clusters of the top delta that they make free.

use std::collections::VecDeque;
use std::time::Instant;

use ploop::image::DiskWriter;

use super::errors::into_io;
use super::request::Extent;
use super::stack::Stack;
use crate::data::Done;

/// Part of the disk that is to read as zero.
pub(super) struct Hole {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) done: Done,
}

/// Free clusters, of discards or of the balloon, and the discards behind them.
pub(super) struct Discards {
    /// Discards are held.
    pub(super) active: bool,
    pub(super) held: Option<Hole>,
    pub(super) waiting: VecDeque<Hole>,
    /// When somebody last asked about them.
    pub(super) touched: Instant,
    /// Who waits for one.
    pub(super) watchers: usize,
    cluster: u64,
    /// Clusters of the top delta that are to be given up, ordered by their slots.
    pub(super) free: Vec<Extent>,
    /// Where the clusters of the file ended when they were asked for.
    pub(super) head: u32,
    /// They are named to whoever asked, and new clusters take their places.
    pub(super) loaded: bool,
    /// The level of the top delta then.
    pub(super) level: u8,
}

impl Default for Discards {
    fn default() -> Discards {
        Discards {
            active: false,
            held: None,
            waiting: VecDeque::new(),
            touched: Instant::now(),
            watchers: 0,
            cluster: 512,
            free: Vec::new(),
            head: 0,
            loaded: false,
            level: 0,
        }
    }
}

impl Discards {
    /// Somebody is at it.
    pub(super) fn touch(&mut self) {
        self.touched = Instant::now();
    }

    /// A discard is held.
    pub(super) fn is_loaded(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn set_cluster(&mut self, log: u32) {
        self.cluster = 512 << log;
    }

    /// What is written to is not free.
    pub(super) fn written(&mut self, offset: u64, len: u64) {
        if self.free.is_empty() || len == 0 {
            return;
        }
        let first = (offset / self.cluster) as u32;
        let end = (offset + len).div_ceil(self.cluster) as u32;
        let touches = |e: &Extent| e.cluster < end && first < e.cluster.saturating_add(e.len);
        if !self.free.iter().any(touches) {
            return;
        }
        let kept = self
            .free
            .iter()
            .flat_map(|extent| extent.each())
            .filter(|(cluster, _)| *cluster < first || *cluster >= end);
        self.free = extents(kept);
    }

    /// There are none any more, and none is held.
    pub(super) fn reset(&mut self) {
        self.active = false;
        self.loaded = false;
        self.answer_all();
        self.free.clear();
    }

    /// Sees that what is about to be written finds room in the free clusters, the first of them first.
    pub(super) fn take_free(
        &mut self,
        disk: &mut DiskWriter,
        offset: u64,
        len: u64,
    ) -> ploop::Result<()> {
        if !self.loaded {
            return Ok(());
        }
        let first = offset / self.cluster;
        for number in first..(offset + len).div_ceil(self.cluster) {
            // The size of a disk in clusters fits in 32 bits.
            if disk.slot(number as u32)?.is_some() {
                continue;
            }
            let Some(free) = self.free.first_mut() else {
                break;
            };
            disk.release(&[free.cluster])?;
            // Only then its place is free.
            disk.flush()?;
            (free.cluster, free.slot) = (free.cluster + 1, free.slot + 1);
            free.len -= 1;
            if free.len == 0 {
                self.free.remove(0);
            }
        }
        Ok(())
    }

    /// Answers everything; the device has stopped.
    pub(super) fn answer_all(&mut self) {
        if self.held.is_some() {
            self.free.clear();
        }
        for hole in self.held.take().into_iter().chain(self.waiting.drain(..)) {
            hole.done.answer(Ok(()));
        }
    }

    /// Holds the discard that waits longest, if it frees anything.
    pub(super) fn next(&mut self, disk: &mut DiskWriter) {
        while self.held.is_none() {
            let Some(hole) = self.waiting.pop_front() else {
                return;
            };
            match self.load(disk, &hole) {
                Ok(true) => {
                    self.held = Some(hole);
                    self.touch();
                }
                Ok(false) => hole.done.answer(Ok(())),
                Err(error) => hole.done.answer(Err(into_io(error))),
            }
        }
    }

    /// Makes whole clusters of the top delta free. Whether there are any.
    ///
    /// Zeros that are written arrive as discards do. Those shorter than a cluster are no discards of
    /// libploop's, and made zeros. Otherwise what the top has a part of is made zero, and what a delta
    /// below has is to be seen again, as in the driver: zeros would make the image grow.
    fn load(&mut self, disk: &mut DiskWriter, hole: &Hole) -> ploop::Result<bool> {
        if hole.len < self.cluster {
            disk.write_zeroes(hole.offset, hole.len)?;
            return Ok(false);
        }
        let end = hole.offset + hole.len;
        let mut free = Vec::new();
        let mut at = hole.offset;
        while at < end {
            // The size of a disk in clusters fits in 32 bits.
            let number = (at / self.cluster) as u32;
            let stop = end.min((u64::from(number) + 1) * self.cluster);
            if let Some(slot) = disk.slot(number)? {
                if stop - at < self.cluster {
                    disk.write_zeroes(at, stop - at)?;
                } else {
                    free.push((number, slot));
                }
            }
            at = stop;
        }
        free.sort_by_key(|(_, slot)| *slot);
        self.free = extents(free.into_iter());
        self.level = u8::try_from(disk.levels().saturating_sub(1)).unwrap_or(u8::MAX);
        Ok(!self.free.is_empty())
    }

    /// Does at once what is asked for by everything that is held or waits, and answers it.
    pub(super) fn finish(&mut self, disk: &mut Stack) {
        let Stack::Writable(disk) = disk else {
            return self.reset();
        };
        if let Some(hole) = self.held.take() {
            hole.done.answer(self.give_up(disk).map_err(into_io));
        }
        while let Some(hole) = self.waiting.pop_front() {
            let given_up = match self.load(disk, &hole) {
                Ok(true) => self.give_up(disk),
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            };
            hole.done.answer(given_up.map_err(into_io));
        }
        self.free.clear();
    }

    /// Drops the free clusters from the disk, without moving others into their places.
    fn give_up(&mut self, disk: &mut DiskWriter) -> ploop::Result<()> {
        let free = std::mem::take(&mut self.free);
        let clusters: Vec<u32> = free
            .iter()
            .flat_map(|extent| extent.each())
            .map(|(cluster, _)| cluster)
            .collect();
        disk.release(&clusters)
    }
}

/// Joins neighbours, of the disk and of the file.
fn extents(clusters: impl Iterator<Item = (u32, u32)>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (cluster, slot) in clusters {
        match extents.last_mut() {
            Some(last) if last.cluster + last.len == cluster && last.slot + last.len == slot => {
                last.len += 1;
            }
            _ => extents.push(Extent {
                cluster,
                slot,
                len: 1,
            }),
        }
    }
    extents
}
