//! Discards. As the driver does, one that is asked for between `DISCARD_INIT` and `DISCARD_FINI` is
//! held until its clusters were given back; unlike the driver, only for as long as somebody is at
//! that: a discard that waits for a dead program would hang its file system.

use std::time::Duration;

use ploop_sandbox_wire::Reply;
use rustix::io::Errno;

use super::contents::Contents;
use super::device::Device;
use super::discards::Hole;
use super::errors::into_io;
use super::lock::lock;
use super::maintenance::{Kind, Maintenance};
use super::request::Ioctl;
use super::stack::Stack;
use crate::data::Done;

/// How long a discard is held while nobody asks about it.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Device {
    /// Part of the disk is to read as zero: a discard, or zeros that are written.
    pub(super) fn zero(&self, offset: u64, len: u64, done: Done) {
        let mut contents = lock(&self.data);
        let Contents { disk, discards } = &mut *contents;
        let Stack::Writable(disk) = disk else {
            done.answer(Err(std::io::Error::from_raw_os_error(
                Errno::IO.raw_os_error(),
            )));
            return;
        };
        if !discards.active {
            discards.written(offset, len);
            if self.is_aborted() {
                // As if it were dropped.
                return;
            }
            let zeroed = disk.write_zeroes(offset, len);
            done.answer(zeroed.map_err(|error| into_io(self.abort(error))));
            return;
        }
        discards.waiting.push_back(Hole { offset, len, done });
        if discards.free.is_empty() {
            discards.next(disk);
        }
        drop(contents);
        self.discarded.notify_all();
    }

    pub(super) fn discard_init(&self) -> Result<(), Errno> {
        let mut maintenance = lock(&self.control);
        let cluster_log = {
            let shown = lock(&self.shown);
            let top = shown.levels.last().ok_or(Errno::INVAL)?;
            if top.raw {
                return Err(Errno::OPNOTSUPP);
            }
            shown.cluster_log
        };
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        maintenance.kind = Kind::Discard;
        maintenance.discarding = true;
        let discards = &mut lock(&self.data).discards;
        discards.set_cluster(cluster_log);
        discards.active = true;
        discards.touch();
        Ok(())
    }

    pub(super) fn discard_finish(&self) -> Result<(), Errno> {
        let mut maintenance = lock(&self.control);
        if !std::mem::take(&mut maintenance.discarding) {
            return Ok(());
        }
        {
            let mut contents = lock(&self.data);
            let Contents { disk, discards } = &mut *contents;
            discards.active = false;
            if maintenance.kind == Kind::Discard {
                discards.finish(disk);
            } else {
                // The one whose clusters are being given back is answered after that.
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

    /// Waits for a discard: 1 once there is one, 0 where there will be none.
    pub(super) fn discard_wait(&self, ioctl: &Ioctl<'_>) -> Result<Reply, Errno> {
        {
            let maintenance = lock(&self.control);
            if !maintenance.discarding {
                return Ok(Reply::of(0));
            }
            match maintenance.kind {
                Kind::FreeBlocksLoaded => return Ok(Reply::of(1)),
                Kind::Discard => {}
                _ => return Err(Errno::INVAL),
            }
        }
        let mut contents = self.data.beside_reads();
        contents.discards.watchers += 1;
        let found = loop {
            if contents.discards.is_loaded() {
                break Ok(1);
            }
            if !contents.discards.active {
                break Ok(0);
            }
            if (ioctl.gone)() {
                break Err(Errno::INTR);
            }
            let wait = Duration::from_millis(100);
            contents = match self.discarded.wait_timeout(contents, wait) {
                Ok((contents, _)) => contents,
                Err(poisoned) => poisoned.into_inner().0,
            };
        };
        contents.discards.watchers -= 1;
        contents.discards.touch();
        found.map(Reply::of)
    }

    /// The free clusters are dealt with; `given_back` tells whether their contents are gone.
    pub(super) fn restart_discards(&self, maintenance: &mut Maintenance, given_back: bool) {
        let mut contents = lock(&self.data);
        let Contents { disk, discards } = &mut *contents;
        discards.loaded = false;
        if given_back {
            discards.free.clear();
            if let Some(hole) = discards.held.take() {
                hole.done.answer(Ok(()));
            }
        }
        if maintenance.discarding {
            maintenance.kind = Kind::Discard;
            let waiting = std::mem::take(&mut discards.waiting);
            discards.finish(disk);
            discards.waiting = waiting;
            if let Stack::Writable(disk) = disk {
                discards.next(disk);
            }
        } else {
            discards.finish(disk);
            maintenance.kind = Kind::Off;
        }
        drop(contents);
        self.discarded.notify_all();
    }

    /// Lets go of discards that nobody asks about any more.
    pub(super) fn release_abandoned_discards(&self) {
        let mut contents = lock(&self.data);
        let Contents { disk, discards } = &mut *contents;
        let abandoned = discards.held.is_some()
            && discards.watchers == 0
            && discards.touched.elapsed() > TIMEOUT;
        if abandoned {
            discards.finish(disk);
        }
    }
}
