//! Discards: `PLOOP_IOC_DISCARD_INIT`, `_WAIT`, `_FINI`.
//!
//! As in the driver, a discard that comes between INIT and FINI is held until its clusters were freed. Unlike the
//! driver, the sandbox releases it when no request about it comes any more: otherwise a program that dies would hang
//! the file system.

use std::time::Duration;

use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::contents::Contents;
use super::device::Device;
use super::discard_queue::DiscardRequest;
use super::errors::into_io;
use super::maintenance::{Kind, Maintenance};
use super::request::Ioctl;
use super::stack::Stack;
use crate::lock::lock;
use crate::virtual_disk::Completion;

/// How long a discard is held while no request about it comes.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Device {
    /// Makes a part of the disk read as zero: for a discard, and for zeros that are written.
    pub(super) fn zero(&self, offset: u64, len: u64, completion: Completion) {
        self.note_written(offset, len);
        let mut contents = self.contents.lock();
        let Contents { disk, discards } = &mut *contents;
        let Stack::Writable(disk) = disk else {
            completion.complete(Err(std::io::Error::from_raw_os_error(
                Errno::IO.raw_os_error(),
            )));
            return;
        };
        if !discards.active {
            discards.written(offset, len);
            if self.is_aborted() {
                // The dropped completion answers EIO.
                return;
            }
            let zeroed = disk.write_zeroes(offset, len);
            completion.complete(zeroed.map_err(|error| into_io(self.abort(error))));
            return;
        }
        discards.waiting.push_back(DiscardRequest {
            offset,
            len,
            completion,
        });
        if discards.free.is_empty() {
            discards.hold_next(disk);
        }
        drop(contents);
        self.discarded.notify_all();
    }

    /// `PLOOP_IOC_DISCARD_INIT`: discards are held from now on.
    pub(super) fn discard_init(&self) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        let cluster_log = {
            let state = lock(&self.state);
            let top = state.levels.last().ok_or(Errno::INVAL)?;
            if top.raw {
                return Err(Errno::OPNOTSUPP);
            }
            state.cluster_log
        };
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        maintenance.kind = Kind::Discard;
        maintenance.discarding = true;
        let discards = &mut self.contents.lock().discards;
        discards.set_cluster(cluster_log);
        discards.active = true;
        discards.touch();
        Ok(())
    }

    /// `PLOOP_IOC_DISCARD_FINI`: does at once what the held discards ask for, and ends the holding.
    pub(super) fn discard_finish(&self) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        if !std::mem::take(&mut maintenance.discarding) {
            return Ok(());
        }
        {
            let mut contents = self.contents.lock();
            let Contents { disk, discards } = &mut *contents;
            discards.active = false;
            if maintenance.kind == Kind::Discard {
                discards.finish(disk);
            } else {
                // The discard whose clusters are being freed stays; relocation completes it.
                let (held, free) = (discards.held.take(), std::mem::take(&mut discards.free));
                discards.finish(disk);
                (discards.held, discards.free) = (held, free);
            }
        }
        self.discarded.notify_all();
        if maintenance.kind != Kind::Discard {
            return Err(Errno::BUSY);
        }
        maintenance.kind = Kind::Off;
        Ok(())
    }

    /// `PLOOP_IOC_DISCARD_WAIT`: waits for a discard. Returns 1 when one is held, 0 when holding has ended.
    pub(super) fn discard_wait(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        {
            let maintenance = lock(&self.maintenance);
            if !maintenance.discarding {
                return Ok(Reply::of(0));
            }
            match maintenance.kind {
                Kind::FreeBlocksLoaded => return Ok(Reply::of(1)),
                Kind::Discard => {}
                _ => return Err(Errno::INVAL),
            }
        }
        let mut contents = self.contents.lock_during_reads();
        contents.discards.waiters += 1;
        let found = loop {
            if contents.discards.is_held() {
                break Ok(1);
            }
            if !contents.discards.active {
                break Ok(0);
            }
            if (ioctl.caller_gone)() {
                break Err(Errno::INTR);
            }
            let wait = Duration::from_millis(100);
            contents = match self.discarded.wait_timeout(contents, wait) {
                Ok((contents, _)) => contents,
                Err(poisoned) => poisoned.into_inner().0,
            };
        };
        contents.discards.waiters -= 1;
        contents.discards.touch();
        found.map(Reply::of)
    }

    /// Drops the list of free clusters and holds the next discard; `freed`: the clusters of the list were freed.
    pub(super) fn restart_discards(&self, maintenance: &mut Maintenance, freed: bool) {
        let mut contents = self.contents.lock();
        let Contents { disk, discards } = &mut *contents;
        discards.loaded = false;
        if freed {
            discards.free.clear();
            if let Some(request) = discards.held.take() {
                request.completion.complete(Ok(()));
            }
        }
        if maintenance.discarding {
            maintenance.kind = Kind::Discard;
            let waiting = std::mem::take(&mut discards.waiting);
            discards.finish(disk);
            discards.waiting = waiting;
            if let Stack::Writable(disk) = disk {
                discards.hold_next(disk);
            }
        } else {
            discards.finish(disk);
            maintenance.kind = Kind::Off;
        }
        drop(contents);
        self.discarded.notify_all();
    }

    /// Completes held discards about which no request has come for a while.
    pub(super) fn release_abandoned_discards(&self) {
        let mut contents = self.contents.lock();
        let Contents { disk, discards } = &mut *contents;
        let abandoned = discards.held.is_some()
            && discards.waiters == 0
            && discards.touched.elapsed() > TIMEOUT;
        if abandoned {
            discards.finish(disk);
        }
    }
}
