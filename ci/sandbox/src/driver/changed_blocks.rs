//! Changed block tracking (CBT), which Virtuozzo's block layer has for every device: `BLKCBTSTART`, `_STOP`, `_GET`,
//! `_SET`, `_CLR`.
//!
//! It belongs to the device, not to the image: it goes on over `PLOOP_IOC_STOP` and `_CLEAR`. libploop 7 stores it in
//! the image in between, and has it begin anew after the next START.

use ploop_sandbox_wire::cbt;
use rustix::io::Errno;

use super::range_set::RangeSet;
use super::request::{Ioctl, long, word};

/// The most extents of a call.
const MAX_EXTENTS: u32 = 512;
/// `CI_FLAG_ONCE`: what is told is forgotten.
const ONCE: u32 = 1;
/// `CI_FLAG_NEW_UUID`: takes the UUID of the call.
const NEW_UUID: u32 = 2;

/// Offsets in `struct blk_user_cbt_info`, behind the UUID.
const START: usize = 16;
const LENGTH: usize = 24;
pub(super) const BLOCK_SIZE: usize = 32;
const FLAGS: usize = 36;
const MAPPED: usize = 40;
const COUNT: usize = 44;

/// The blocks of a device that were written to.
#[derive(Debug)]
pub(super) struct ChangedBlocks {
    uuid: [u8; 16],
    /// The size of a block: 2 to the power of this.
    log: u32,
    /// How many blocks the device has.
    blocks: u64,
    changed: RangeSet,
}

impl ChangedBlocks {
    pub(super) fn new(uuid: [u8; 16], block_size: u32, size: u64) -> Result<ChangedBlocks, Errno> {
        if !block_size.is_power_of_two() {
            return Err(Errno::INVAL);
        }
        let mut blocks = ChangedBlocks {
            uuid,
            log: block_size.trailing_zeros(),
            blocks: 0,
            changed: RangeSet::default(),
        };
        blocks.grow(size);
        Ok(blocks)
    }

    /// The device has become larger. It is never told to have become smaller.
    pub(super) fn grow(&mut self, size: u64) {
        self.blocks = self.blocks.max(size.div_ceil(1 << self.log));
    }

    pub(super) fn written(&mut self, offset: u64, len: u64) {
        let end = (offset + len).div_ceil(1 << self.log);
        self.changed
            .insert(offset >> self.log, end.min(self.blocks));
    }

    /// The changed extents of a range, whole ones, in bytes; no more than `count`.
    fn extents(
        &mut self,
        start: u64,
        len: u64,
        count: u32,
        once: bool,
    ) -> Result<Vec<(u64, u64)>, Errno> {
        let mut at = start >> self.log;
        if at > self.blocks {
            return Err(Errno::INVAL);
        }
        // As in the kernel: the sum may overflow, and the block after the end counts, too.
        let end = (start.wrapping_add(len) >> self.log).min(self.blocks);
        let mut extents = Vec::new();
        while extents.len() < count as usize {
            let Some((first, next)) = self
                .changed
                .next_from(at)
                .filter(|(first, _)| *first <= end)
            else {
                break;
            };
            extents.push((first << self.log, (next - first) << self.log));
            if once {
                self.changed.remove(first, next);
            }
            at = next;
        }
        Ok(extents)
    }

    /// Changes the extents from the first on, up to one that is wrong.
    fn set(&mut self, extents: &[(u64, u64)], changed: bool) -> Result<(), Errno> {
        for (start, len) in extents {
            let (first, blocks) = (start >> self.log, len.div_ceil(1 << self.log));
            let end = first.checked_add(blocks).filter(|end| *end <= self.blocks);
            let end = end.filter(|_| blocks > 0).ok_or(Errno::INVAL)?;
            if changed {
                self.changed.insert(first, end);
            } else {
                self.changed.remove(first, end);
            }
        }
        Ok(())
    }
}

/// `struct blk_user_cbt_info` of a call.
pub(super) fn info<'a>(ioctl: &Ioctl<'a>) -> Result<&'a [u8; cbt::INFO], Errno> {
    ioctl.payload.first_chunk().ok_or(Errno::FAULT)
}

pub(super) fn uuid_of(info: &[u8; cbt::INFO]) -> [u8; 16] {
    std::array::from_fn(|at| info[at])
}

/// `BLKCBTGET`: the structure to reply with, and the extents behind it.
pub(super) fn changed_extents(
    blocks: Option<&mut ChangedBlocks>,
    info: &[u8; cbt::INFO],
) -> Result<Vec<u8>, Errno> {
    let (flags, count) = (word(info, FLAGS)?, word(info, COUNT)?);
    if flags & !ONCE != 0 || count > MAX_EXTENTS {
        return Err(Errno::INVAL);
    }
    let blocks = blocks.ok_or(Errno::INVAL)?;
    let (start, len) = (long(info, START)?, long(info, LENGTH)?);
    let extents = blocks.extents(start, len, count, flags & ONCE != 0)?;
    let mut payload = info.to_vec();
    payload[..START].copy_from_slice(&blocks.uuid);
    let mut put = |at: usize, number: u32| {
        payload[at..at + 4].copy_from_slice(&number.to_le_bytes());
    };
    put(BLOCK_SIZE, 1 << blocks.log);
    put(MAPPED, extents.len() as u32);
    for (start, len) in extents {
        for number in [start, len, 0] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
    }
    Ok(payload)
}

/// `BLKCBTSET` and `BLKCBTCLR`.
pub(super) fn change_extents(
    blocks: Option<&mut ChangedBlocks>,
    ioctl: &Ioctl<'_>,
    changed: bool,
) -> Result<(), Errno> {
    let info = info(ioctl)?;
    let (count, mapped) = (word(info, COUNT)?, word(info, MAPPED)?);
    if count > MAX_EXTENTS || count < mapped {
        return Err(Errno::INVAL);
    }
    let extents = &ioctl.payload[cbt::INFO..];
    let extents: Vec<(u64, u64)> = extents
        .chunks_exact(cbt::EXTENT)
        .map(|extent| Ok((long(extent, 0)?, long(extent, 8)?)))
        .collect::<Result<_, Errno>>()?;
    if extents.len() < mapped as usize {
        return Err(Errno::FAULT);
    }
    let blocks = blocks.ok_or(Errno::INVAL)?;
    if word(info, FLAGS)? & NEW_UUID != 0 {
        blocks.uuid = uuid_of(info);
    } else if blocks.uuid != uuid_of(info) {
        return Err(Errno::INVAL);
    }
    blocks.set(&extents[..mapped as usize], changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_changed_by_a_part_of_it() {
        let mut blocks = ChangedBlocks::new([1; 16], 4096, 10 * 4096 + 1).unwrap();
        blocks.written(4095, 2);
        blocks.written(10 * 4096, 1);
        let all = |blocks: &mut ChangedBlocks| blocks.extents(0, u64::MAX, 9, false).unwrap();
        assert_eq!(all(&mut blocks), [(0, 8192), (40960, 4096)]);
        assert_eq!(blocks.extents(4096, 1, 9, false), Ok(vec![(4096, 4096)]));
        assert_eq!(blocks.extents(12 << 12, 1, 9, false), Err(Errno::INVAL));
        assert_eq!(blocks.extents(0, u64::MAX, 1, true), Ok(vec![(0, 8192)]));
        assert_eq!(all(&mut blocks), [(40960, 4096)]);
    }

    #[test]
    fn what_is_set_lies_on_the_device() {
        let mut blocks = ChangedBlocks::new([1; 16], 1 << 16, 8 << 16).unwrap();
        let wrong = [(0, 1 << 16), (7 << 16, (1 << 16) + 1)];
        assert_eq!(blocks.set(&wrong, true), Err(Errno::INVAL));
        assert_eq!(blocks.set(&[(0, 0)], true), Err(Errno::INVAL));
        assert_eq!(blocks.set(&[(4 << 16, 4 << 16)], true), Ok(()));
        assert_eq!(blocks.set(&[(5 << 16, 1)], false), Ok(()));
        let all = blocks.extents(0, u64::MAX, 9, false).unwrap();
        assert_eq!(all, [(0, 1 << 16), (4 << 16, 1 << 16), (6 << 16, 2 << 16)]);
        blocks.grow(9 << 16);
        blocks.grow(1 << 16);
        assert_eq!(blocks.set(&[(8 << 16, 1)], true), Ok(()));
        for bad in [0, 3] {
            assert_eq!(
                ChangedBlocks::new([1; 16], bad, 1).map(drop),
                Err(Errno::INVAL)
            );
        }
    }
}
