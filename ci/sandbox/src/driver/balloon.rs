//! `PLOOP_IOC_BALLOON`, the lists of free clusters (`PLOOP_IOC_FREEBLKS`, `_FBGET`, `_FBFILTER`, `_FBDROP`), relocation
//! (`PLOOP_IOC_RELOCBLKS`) and growth (`PLOOP_IOC_GROW`).

use ploop::Size;
use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::contents::Contents;
use super::device::Device;
use super::errors::{host_errno, image_errno};
use super::maintenance::Kind;
use super::request::{Control, Extent, FreeBlocks, Ioctl};
use super::stack::Stack;
use crate::lock::lock;

/// `keep_intact` of `struct ploop_balloon_ctl`: only tell the state.
const LOOK: u8 = 2;

impl Device {
    /// The level of the top delta; an error where there is none.
    pub(super) fn top_level(&self) -> Result<u8, Errno> {
        let levels = lock(&self.state).levels.len();
        levels
            .checked_sub(1)
            .and_then(|level| u8::try_from(level).ok())
            .ok_or(Errno::NOENT)
    }

    fn top_is_raw(&self) -> bool {
        lock(&self.state).levels.last().is_some_and(|top| top.raw)
    }

    /// `PLOOP_IOC_BALLOON`: begins or ends the change of the balloon, and tells the maintenance state.
    pub(super) fn balloon(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.maintenance);
        self.top_level()?;
        let mut payload = ioctl.payload.get(..16).ok_or(Errno::FAULT)?.to_vec();
        let (inflate, keep) = (payload[9] != 0, payload[10] != 0);
        // Virtuozzo 7: a look that changes nothing.
        let look = self.is_of_virtuozzo_7() && payload[10] == LOOK;
        if inflate && keep {
            return Err(Errno::INVAL);
        }
        let mut contents = self.contents.lock();
        let Contents { disk, discards } = &mut *contents;
        discards.touch();
        match maintenance.kind {
            Kind::Discard if discards.is_held() && !look => {
                // The caller is going to read the table in the file.
                discards.head = flush(disk)?;
                discards.loaded = true;
                maintenance.kind = Kind::FreeBlocksLoaded;
            }
            Kind::Off if inflate => {
                if self.top_is_raw() {
                    return Err(Errno::OPNOTSUPP);
                }
                flush(disk)?;
                maintenance.kind = Kind::Balloon;
            }
            Kind::Balloon if !inflate && !keep => maintenance.kind = Kind::Off,
            _ => {}
        }
        if maintenance.kind == Kind::FreeBlocksLoaded {
            payload[4..8].copy_from_slice(&discards.head.to_le_bytes());
            payload[8] = discards.level;
        }
        payload[0..4].copy_from_slice(&(maintenance.kind as u32).to_le_bytes());
        Ok(Reply { result: 0, payload })
    }

    /// `PLOOP_IOC_FREEBLKS`: takes a list of clusters whose contents are not needed any more.
    pub(super) fn free_blocks(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.maintenance);
        let level = self.top_level()?;
        match maintenance.kind {
            Kind::Off => return Err(Errno::INVAL),
            Kind::Balloon => {}
            _ => return Err(Errno::BUSY),
        }
        let blocks = FreeBlocks::parse(ioctl)?;
        if blocks.level != level || blocks.extents.len() != blocks.count as usize {
            return Err(Errno::INVAL);
        }
        let mut extents = blocks.extents;
        extents.retain(|extent| extent.len > 0);
        extents.sort_by_key(|extent| extent.slot);
        let overlap = |pair: &[Extent]| {
            u64::from(pair[0].slot) + u64::from(pair[0].len) > u64::from(pair[1].slot)
        };
        if extents.windows(2).any(overlap) {
            return Err(Errno::INVAL);
        }
        let cluster_log = lock(&self.state).cluster_log;
        let mut contents = self.contents.lock();
        let Contents { disk, discards } = &mut *contents;
        discards.head = flush(disk)?;
        discards.level = level;
        discards.set_cluster(cluster_log);
        discards.free = extents;
        discards.loaded = true;
        maintenance.kind = Kind::FreeBlocksLoaded;
        Ok(Reply {
            result: 0,
            payload: FreeBlocks::reply(ioctl, blocks.count, discards.head, &[]),
        })
    }

    /// Fails unless there is a list of free clusters.
    fn require_free_blocks(&self, kind: Kind) -> Result<(), Errno> {
        self.top_level()?;
        match kind {
            Kind::FreeBlocksLoaded => Ok(()),
            Kind::Discard if self.contents.lock().discards.is_held() => Ok(()),
            _ => Err(Errno::INVAL),
        }
    }

    /// `PLOOP_IOC_FBGET`: replies with the list of free clusters, or their number if the caller has no room.
    pub(super) fn free_blocks_get(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let maintenance = lock(&self.maintenance);
        self.require_free_blocks(maintenance.kind)?;
        let room = ioctl.word(0)?;
        let mut contents = self.contents.lock();
        let discards = &mut contents.discards;
        discards.touch();
        let count = discards.free.len() as u32;
        if room == 0 {
            let payload = FreeBlocks::reply(ioctl, count, 0, &[]);
            return Ok(Reply { result: 0, payload });
        }
        if count > room {
            return Err(Errno::NOSPC);
        }
        let payload = FreeBlocks::reply(ioctl, count, 0, &discards.free);
        Ok(Reply { result: 0, payload })
    }

    /// `PLOOP_IOC_FBFILTER`: drops short extents from the list; returns the number of clusters left.
    pub(super) fn free_blocks_filter(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let maintenance = lock(&self.maintenance);
        let mut contents = self.contents.lock();
        let discards = &mut contents.discards;
        if maintenance.kind != Kind::Discard || !discards.is_held() {
            return Err(Errno::INVAL);
        }
        discards.touch();
        let shortest = ioctl.argument;
        discards
            .free
            .retain(|extent| u64::from(extent.len) >= shortest);
        let left: u64 = discards.free.iter().map(|e| u64::from(e.len)).sum();
        Ok(Reply::of(i32::try_from(left).unwrap_or(i32::MAX)))
    }

    /// `PLOOP_IOC_FBDROP`: drops the list.
    pub(super) fn free_blocks_drop(&self) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        self.require_free_blocks(maintenance.kind)?;
        self.restart_discards(&mut maintenance, false);
        Ok(())
    }

    /// `PLOOP_IOC_RELOCBLKS`: frees the clusters of the list, moves others into their slots and truncates the file.
    pub(super) fn relocate(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        let mut maintenance = lock(&self.maintenance);
        let level = self.top_level()?;
        if maintenance.kind != Kind::FreeBlocksLoaded {
            return Err(Errno::INVAL);
        }
        let mut payload = ioctl.payload.get(..16).ok_or(Errno::FAULT)?.to_vec();
        let removed = {
            let mut contents = self.contents.lock();
            let Contents { disk, discards } = &mut *contents;
            discards.touch();
            if payload[12] != level || discards.level != level || ioctl.word(8)? != discards.head {
                return Err(Errno::INVAL);
            }
            let Stack::Writable(disk) = disk else {
                return Err(Errno::INVAL);
            };
            if ioctl.word(4)? == 0 {
                // The caller has found no clusters that could move.
                Ok(0)
            } else {
                // A cluster that was written to since is not free any more.
                let mut clusters = Vec::new();
                for (cluster, slot) in discards.free.iter().flat_map(|extent| extent.each()) {
                    if disk.slot(cluster).map_err(|e| image_errno(&e))? == Some(slot) {
                        clusters.push(cluster);
                    }
                }
                disk.release(&clusters)
                    .and_then(|()| disk.compact())
                    .map_err(|error| image_errno(&error))
            }
        };
        self.restart_discards(&mut maintenance, removed.is_ok());
        payload[8..12].copy_from_slice(&removed?.to_le_bytes());
        Ok(Reply { result: 0, payload })
    }

    /// `PLOOP_IOC_GROW`: enlarges the disk.
    pub(super) fn grow(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let maintenance = lock(&self.maintenance);
        self.top_level()?;
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let control = Control::parse(ioctl)?;
        let cluster_log = lock(&self.state).cluster_log;
        if control.cluster_log != cluster_log {
            return Err(Errno::INVAL);
        }
        let mut sectors = u64::from(control.size);
        if control.flags & Control::IN_CLUSTERS != 0 {
            sectors <<= cluster_log;
        }
        let now = {
            let mut contents = self.contents.lock();
            let Stack::Writable(disk) = &mut contents.disk else {
                return Err(Errno::INVAL);
            };
            let old = disk.size().sectors();
            if sectors < old || sectors % (1 << cluster_log) != 0 {
                return Err(Errno::INVAL);
            }
            if sectors == old {
                return Ok(());
            }
            disk.grow(Size::from_sectors(sectors))
                .map_err(|error| image_errno(&error))?;
            disk.size().bytes()
        };
        // Also where the device does not run.
        self.set_size(now);
        if lock(&self.state).running {
            self.require_block_device()?
                .resized()
                .map_err(|error| host_errno(&error))?;
        }
        Ok(())
    }
}

/// Writes everything to the file, for callers that read it, and returns its allocation head.
fn flush(disk: &mut Stack) -> Result<u32, Errno> {
    match disk {
        Stack::Writable(disk) => {
            disk.flush().map_err(|error| image_errno(&error))?;
            Ok(disk.allocation_head())
        }
        Stack::ReadOnly(_) | Stack::None => Ok(0),
    }
}
