//! What the driver of Virtuozzo 7 can do in addition: `PLOOP_IOC_FREEZE`, `_THAW`, `_DUMP_CACHED_BAT`.

use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::device::Device;
use super::errors::{host_errno, image_errno};
use super::request::Ioctl;
use super::stack::Stack;
use crate::block::Freeze;
use crate::lock::lock;

/// The bytes of `struct ploop_dump_bat_ctl` before the entries.
const DUMP_HEAD: usize = 12;
/// `PLOOP_DUMP_BAT_UNCACHED_INDEX`.
const UNCACHED: u32 = u32::MAX;

impl Device {
    /// Whether `PLOOP_IOC_FREEZE` has frozen the device.
    pub(super) fn is_frozen(&self) -> bool {
        lock(&self.frozen).is_some()
    }

    /// `PLOOP_IOC_FREEZE`: freezes the file system that is mounted from the node of the call, if there is one.
    pub(super) fn freeze(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let _maintenance = lock(&self.maintenance);
        if !lock(&self.state).running {
            return Err(Errno::INVAL);
        }
        if self.is_frozen() {
            return Ok(());
        }
        let what = if ioctl.partition {
            Freeze::Partition
        } else {
            Freeze::Whole
        };
        let frozen = self.require_block_device()?.freeze(what);
        *lock(&self.frozen) = Some(frozen.map_err(|error| host_errno(&error))?);
        Ok(())
    }

    /// `PLOOP_IOC_THAW`.
    pub(super) fn thaw(&self) -> Result<(), Errno> {
        let _maintenance = lock(&self.maintenance);
        if !lock(&self.state).running {
            return Err(Errno::INVAL);
        }
        let frozen = lock(&self.frozen).take();
        // Thaws.
        drop(frozen);
        Ok(())
    }

    /// `PLOOP_IOC_DUMP_CACHED_BAT`: the entries of a delta's table that are in memory. Those of the top are; of the
    /// deltas below, none.
    pub(super) fn dump_cached_table(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let _maintenance = lock(&self.maintenance);
        let top = u32::from(self.top_level()?);
        let (level, first, count) = (ioctl.word(0)?, ioctl.word(4)?, ioctl.word(8)?);
        if level > top {
            return Err(Errno::NOENT);
        }
        let (version, cluster_log) = {
            let state = lock(&self.state);
            (state.version, state.cluster_log)
        };
        let mut contents = self.contents.lock();
        let clusters = match &contents.disk {
            Stack::Writable(disk) => disk.size().bytes(),
            Stack::ReadOnly(disk) => disk.size().bytes(),
            Stack::None => return Err(Errno::NOENT),
        }
        .div_ceil(512 << cluster_log);
        if u64::from(first) + u64::from(count) > clusters {
            return Err(Errno::INVAL);
        }
        let mut payload = ioctl.payload.get(..DUMP_HEAD).ok_or(Errno::FAULT)?.to_vec();
        payload.reserve(count as usize * 4);
        let is_top = level == top;
        if let (Stack::Writable(disk), true) = (&mut contents.disk, is_top) {
            // The caller compares with the file.
            disk.flush().map_err(|error| image_errno(&error))?;
        }
        for cluster in first..first + count {
            let entry = match &mut contents.disk {
                Stack::Writable(disk) if is_top => {
                    let slot = disk.slot(cluster).map_err(|error| image_errno(&error))?;
                    // In format v1 an entry is a sector.
                    slot.unwrap_or(0) << if version == 1 { cluster_log } else { 0 }
                }
                _ => UNCACHED,
            };
            payload.extend_from_slice(&entry.to_le_bytes());
        }
        Ok(Reply { result: 0, payload })
    }
}
