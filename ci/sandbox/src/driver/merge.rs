//! `PLOOP_IOC_MERGE`: a thread moves the clusters of the top delta into the delta below, one after another, while the
//! device is read and written. As in the driver, it goes on when the caller of the ioctl is gone, and the device stays
//! in this state until another MERGE finishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use ploop::ErrorKind;
use rustix::io::Errno;

use super::attached::set_writer;
use super::device::Device;
use super::errors::{host_errno, image_errno};
use super::maintenance::{Kind, MergeProgress};
use super::request::Ioctl;
use super::stack::Stack;
use crate::lock::lock;

/// The pause between two clusters. The device's lock is not fair: those who wait for it get it in the pause.
const PAUSE: Duration = Duration::from_micros(200);

impl Device {
    /// `PLOOP_IOC_MERGE`: merges the top delta into the one below.
    pub(super) fn merge(self: &Arc<Self>, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        match maintenance.kind {
            Kind::Off => self.begin_merge()?,
            Kind::Merge => {}
            _ => return Err(Errno::BUSY),
        }
        maintenance.kind = Kind::Merge;
        if matches!(
            maintenance.merge,
            MergeProgress::Stopped | MergeProgress::Failed(_)
        ) {
            let device = Arc::clone(self);
            thread::Builder::new()
                .name("merge".to_owned())
                .spawn(move || device.move_clusters())
                .map_err(|error| host_errno(&error))?;
            maintenance.merge = MergeProgress::Moving;
        }
        loop {
            match maintenance.merge {
                MergeProgress::Moving if (ioctl.caller_gone)() => return Err(Errno::INTR),
                MergeProgress::Moving => {}
                // Another MERGE has finished it.
                _ if maintenance.kind != Kind::Merge => return Err(Errno::ALREADY),
                MergeProgress::Complete => break,
                MergeProgress::Stopped => return Err(Errno::INTR),
                MergeProgress::Failed(errno) => {
                    if self.is_aborted() {
                        maintenance.kind = Kind::Off;
                    }
                    return Err(errno);
                }
            }
            maintenance = match self.merge_progressed.wait_timeout(maintenance, PAUSE * 100) {
                Ok((maintenance, _)) => maintenance,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        if let Stack::Writable(disk) = &mut self.contents.lock().disk {
            disk.finish_merge()
                .map_err(|error| image_errno(&self.abort(error)))?;
        }
        maintenance.merge = MergeProgress::Stopped;
        maintenance.kind = Kind::Off;
        if let Some(top) = lock(&self.state).levels.pop() {
            set_writer(&top.file, None);
        }
        Ok(())
    }

    /// Makes the level below the top writable, too.
    fn begin_merge(&self) -> Result<(), Errno> {
        if lock(&self.state).levels.len() < 2 {
            return Err(Errno::NOENT);
        }
        // First, for the next step writes to the file.
        if !matches!(self.contents.lock().disk, Stack::Writable(_)) {
            return Err(Errno::ROFS);
        }
        if let Some(below) = lock(&self.state).levels.iter().nth_back(1) {
            let forgotten = below.forget_extension();
            forgotten.map_err(|error| host_errno(&error))?;
        }
        match &mut self.contents.lock().disk {
            Stack::Writable(disk) => disk.begin_merge().map_err(|error| image_errno(&error))?,
            Stack::ReadOnly(_) | Stack::None => return Err(Errno::ROFS),
        }
        let mut state = lock(&self.state);
        if let Some(below) = state.levels.iter_mut().nth_back(1) {
            below.read_only = false;
            set_writer(&below.file, Some(self.index));
        }
        Ok(())
    }

    /// The thread of a merge.
    fn move_clusters(&self) {
        let progress = loop {
            if self.ending.load(Ordering::Relaxed) {
                break MergeProgress::Stopped;
            }
            let next = match &mut self.contents.lock().disk {
                Stack::Writable(disk) => disk.merge_next(),
                Stack::ReadOnly(_) | Stack::None => Ok(false),
            };
            match next {
                Ok(true) => {}
                Ok(false) => break MergeProgress::Complete,
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    break MergeProgress::Failed(Errno::NOSPC);
                }
                Err(error) => {
                    self.abort(error);
                    break MergeProgress::Failed(Errno::IO);
                }
            }
            thread::sleep(PAUSE);
        };
        lock(&self.maintenance).merge = progress;
        self.merge_progressed.notify_all();
    }

    /// Stops the thread of a merge before its end, because the sandbox ends.
    pub(super) fn end_merge(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let mut maintenance = lock(&self.maintenance);
        while maintenance.merge == MergeProgress::Moving {
            maintenance = match self.merge_progressed.wait(maintenance) {
                Ok(maintenance) => maintenance,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
    }
}
