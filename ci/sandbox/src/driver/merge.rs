//! MERGE: a thread moves the top's clusters down, one after another, while the device is read and
//! written. It goes on when the caller of the ioctl is gone, as the driver does, and the device stays
//! in this state until another MERGE finishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use ploop::ErrorKind;
use rustix::io::Errno;

use super::device::Device;
use super::errors::{errno, errno_of};
use super::lock::lock;
use super::maintenance::{Kind, Moved};
use super::request::Ioctl;
use super::stack::Stack;
use super::written::set_written;

/// Between two clusters. The lock of the device is not fair: who waits for it gets it then.
const PAUSE: Duration = Duration::from_micros(200);

impl Device {
    pub(super) fn merge(self: &Arc<Self>, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let mut maintenance = lock(&self.control);
        match maintenance.kind {
            Kind::Off => self.begin_merge()?,
            Kind::Merge => {}
            _ => return Err(Errno::BUSY),
        }
        maintenance.kind = Kind::Merge;
        if matches!(maintenance.moved, Moved::Not | Moved::Failed(_)) {
            let device = Arc::clone(self);
            thread::Builder::new()
                .name("merge".to_owned())
                .spawn(move || device.move_clusters())
                .map_err(|error| errno(&error))?;
            maintenance.moved = Moved::Moving;
        }
        loop {
            match maintenance.moved {
                Moved::Moving if (ioctl.gone)() => return Err(Errno::INTR),
                Moved::Moving => {}
                // Somebody else's MERGE has finished.
                _ if maintenance.kind != Kind::Merge => return Err(Errno::ALREADY),
                Moved::All => break,
                Moved::Not => return Err(Errno::INTR),
                Moved::Failed(errno) => {
                    if self.is_aborted() {
                        maintenance.kind = Kind::Off;
                    }
                    return Err(errno);
                }
            }
            maintenance = match self.moved.wait_timeout(maintenance, PAUSE * 100) {
                Ok((maintenance, _)) => maintenance,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        if let Stack::Writable(disk) = &mut lock(&self.data).disk {
            disk.finish_merge()
                .map_err(|error| errno_of(&self.abort(error)))?;
        }
        maintenance.moved = Moved::Not;
        maintenance.kind = Kind::Off;
        if let Some(top) = lock(&self.shown).levels.pop() {
            set_written(&top.file, None);
        }
        Ok(())
    }

    /// Both levels are written to from now on.
    fn begin_merge(&self) -> Result<(), Errno> {
        if lock(&self.shown).levels.len() < 2 {
            return Err(Errno::NOENT);
        }
        match &mut lock(&self.data).disk {
            Stack::Writable(disk) => disk.begin_merge().map_err(|error| errno_of(&error))?,
            Stack::ReadOnly(_) | Stack::None => return Err(Errno::ROFS),
        }
        let mut shown = lock(&self.shown);
        if let Some(below) = shown.levels.iter_mut().nth_back(1) {
            below.read_only = false;
            set_written(&below.file, Some(self.index));
        }
        Ok(())
    }

    fn move_clusters(&self) {
        let moved = loop {
            if self.ending.load(Ordering::Relaxed) {
                break Moved::Not;
            }
            let next = match &mut lock(&self.data).disk {
                Stack::Writable(disk) => disk.merge_next(),
                Stack::ReadOnly(_) | Stack::None => Ok(false),
            };
            match next {
                Ok(true) => {}
                Ok(false) => break Moved::All,
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    break Moved::Failed(Errno::NOSPC);
                }
                Err(error) => {
                    self.abort(error);
                    break Moved::Failed(Errno::IO);
                }
            }
            thread::sleep(PAUSE);
        };
        lock(&self.control).moved = moved;
        self.moved.notify_all();
    }

    /// Has the clusters that are left stay where they are; the device is about to go.
    pub(super) fn end_merge(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let mut maintenance = lock(&self.control);
        while maintenance.moved == Moved::Moving {
            maintenance = match self.moved.wait(maintenance) {
                Ok(maintenance) => maintenance,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
    }
}
