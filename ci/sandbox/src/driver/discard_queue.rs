//! The queue of discards, and the list of free clusters of the top delta that a held discard or the balloon makes.

use std::collections::VecDeque;
use std::time::Instant;

use ploop::image::DiskWriter;

use super::errors::into_io;
use super::request::Extent;
use super::stack::Stack;
use crate::virtual_disk::Completion;

/// A discard that is not completed yet.
pub(super) struct DiscardRequest {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) completion: Completion,
}

/// The queue of discards and the list of free clusters.
pub(super) struct DiscardQueue {
    /// Discards are held.
    pub(super) active: bool,
    pub(super) held: Option<DiscardRequest>,
    pub(super) waiting: VecDeque<DiscardRequest>,
    /// When the last request about discards came.
    pub(super) touched: Instant,
    /// How many `PLOOP_IOC_DISCARD_WAIT` are waiting.
    pub(super) waiters: usize,
    /// The size of a cluster in bytes.
    cluster: u64,
    /// Clusters of the top delta that are going to be freed, ordered by their slots.
    pub(super) free: Vec<Extent>,
    /// The allocation head of the file when a caller was given the list.
    pub(super) head: u32,
    /// A caller was given the list, and new clusters take the slots of the free ones.
    pub(super) loaded: bool,
    /// The level of the top delta at that time.
    pub(super) level: u8,
}

impl Default for DiscardQueue {
    fn default() -> DiscardQueue {
        DiscardQueue {
            active: false,
            held: None,
            waiting: VecDeque::new(),
            touched: Instant::now(),
            waiters: 0,
            cluster: 512,
            free: Vec::new(),
            head: 0,
            loaded: false,
            level: 0,
        }
    }
}

impl DiscardQueue {
    /// Notes that a request about discards has come.
    pub(super) fn touch(&mut self) {
        self.touched = Instant::now();
    }

    /// Whether a discard is held.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn set_cluster(&mut self, log: u32) {
        self.cluster = 512 << log;
    }

    /// Takes clusters that are written to off the list.
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

    /// Completes everything, and holds no more discards.
    pub(super) fn reset(&mut self) {
        self.active = false;
        self.loaded = false;
        self.answer_all();
        self.free.clear();
    }

    /// Frees clusters of the list for a write that needs new ones, so that it gets their slots.
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
            // Its slot is free only after that.
            disk.flush()?;
            (free.cluster, free.slot) = (free.cluster + 1, free.slot + 1);
            free.len -= 1;
            if free.len == 0 {
                self.free.remove(0);
            }
        }
        Ok(())
    }

    /// Completes all discards without doing what they ask for; the device has stopped.
    pub(super) fn answer_all(&mut self) {
        if self.held.is_some() {
            self.free.clear();
        }
        for request in self.held.take().into_iter().chain(self.waiting.drain(..)) {
            request.completion.complete(Ok(()));
        }
    }

    /// Holds the first waiting discard that frees any clusters; completes those before it.
    pub(super) fn hold_next(&mut self, disk: &mut DiskWriter) {
        while self.held.is_none() {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            match self.list_free(disk, &request) {
                Ok(true) => {
                    self.held = Some(request);
                    self.touch();
                }
                Ok(false) => request.completion.complete(Ok(())),
                Err(error) => request.completion.complete(Err(into_io(error))),
            }
        }
    }

    /// Lists the whole clusters of the top delta that a discard frees. False if there are none.
    ///
    /// Zeros that are written arrive as discards do. A range shorter than a cluster is no discard of libploop: zeros
    /// are written. In a longer one, zeros are written to a cluster of the top delta that is covered in part. A cluster
    /// that only a lower delta has is left as it is, as in the driver: zeros would make the image grow.
    fn list_free(
        &mut self,
        disk: &mut DiskWriter,
        request: &DiscardRequest,
    ) -> ploop::Result<bool> {
        if request.len < self.cluster {
            disk.write_zeroes(request.offset, request.len)?;
            return Ok(false);
        }
        let end = request.offset + request.len;
        let mut free = Vec::new();
        let mut at = request.offset;
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

    /// Does at once what all discards ask for, held and waiting, and completes them.
    pub(super) fn finish(&mut self, disk: &mut Stack) {
        let Stack::Writable(disk) = disk else {
            return self.reset();
        };
        if let Some(request) = self.held.take() {
            request
                .completion
                .complete(self.release_free(disk).map_err(into_io));
        }
        while let Some(request) = self.waiting.pop_front() {
            let released = match self.list_free(disk, &request) {
                Ok(true) => self.release_free(disk),
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            };
            request.completion.complete(released.map_err(into_io));
        }
        self.free.clear();
    }

    /// Frees the clusters of the list, without moving others into their slots.
    fn release_free(&mut self, disk: &mut DiskWriter) -> ploop::Result<()> {
        let free = std::mem::take(&mut self.free);
        let clusters: Vec<u32> = free
            .iter()
            .flat_map(|extent| extent.each())
            .map(|(cluster, _)| cluster)
            .collect();
        disk.release(&clusters)
    }
}

/// Joins clusters that are neighbours both on the disk and in the file.
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
