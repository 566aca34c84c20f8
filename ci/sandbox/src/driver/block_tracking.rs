//! The requests of changed block tracking (`BLKCBT*`) that a device answers, and what it notes for them.

use std::sync::atomic::Ordering;

use ploop_sandbox_wire::{Reply, cbt};
use rustix::io::Errno;

use super::changed_blocks::{
    BLOCK_SIZE, ChangedBlocks, change_extents, changed_extents, info, uuid_of,
};
use super::device::Device;
use super::request::{Ioctl, word};
use crate::lock::lock;
use crate::virtual_disk::VirtualDisk as _;

impl Device {
    /// Answers one of these ioctls, by its number.
    pub(super) fn track_blocks(&self, number: u32, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        if !self.is_of_virtuozzo_7() {
            // As a kernel without it.
            return Err(Errno::INVAL);
        }
        let mut blocks = lock(&self.changed_blocks);
        let payload = match number {
            cbt::START => {
                let info = info(ioctl)?;
                let new = ChangedBlocks::new(uuid_of(info), word(info, BLOCK_SIZE)?, self.size())?;
                if blocks.is_some() {
                    return Err(Errno::BUSY);
                }
                *blocks = Some(new);
                self.tracks_blocks.store(true, Ordering::Release);
                Vec::new()
            }
            cbt::STOP => {
                blocks.take().ok_or(Errno::INVAL)?;
                self.tracks_blocks.store(false, Ordering::Release);
                Vec::new()
            }
            cbt::GET => changed_extents(blocks.as_mut(), info(ioctl)?)?,
            cbt::SET | cbt::CLR => {
                change_extents(blocks.as_mut(), ioctl, number == cbt::SET)?;
                Vec::new()
            }
            _ => return Err(Errno::INVAL),
        };
        Ok(Reply { result: 0, payload })
    }

    /// Notes that a part of the device is going to be written.
    pub(super) fn note_written(&self, offset: u64, len: u64) {
        if self.tracks_blocks.load(Ordering::Acquire) {
            if let Some(blocks) = &mut *lock(&self.changed_blocks) {
                blocks.written(offset, len);
            }
        }
    }

    /// Notes the size of the device.
    pub(super) fn note_size(&self, size: u64) {
        if let Some(blocks) = &mut *lock(&self.changed_blocks) {
            blocks.grow(size);
        }
    }
}
