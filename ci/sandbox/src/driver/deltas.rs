//! The stack of deltas: added, started, stopped, snapshotted, merged, replaced and deleted.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use ploop::ClusterSize;
use ploop::image::{DeltaFile, Disk, DiskWriter, header_of};
use rustix::fs::{OFlags, fcntl_getfl, fstatfs};
use rustix::io::Errno;

use super::attached::{self, Attachment, identity};
use super::contents::Contents;
use super::device::{Device, Level, path_of};
use super::errors::{errno, errno_of};
use super::lock::lock;
use super::maintenance::{Kind, Moved};
use super::request::{Control, Ioctl};
use super::stack::Stack;
use super::written::{set_written, written_by};
use crate::ioctl::holes;

const FORMAT_RAW: u32 = 1;
const FORMAT_PLOOP1: u32 = 2;

/// `PLOOP_IO_AUTO`, `_DIRECT` and `_KAIO`. Files on NFS are not special here.
const IO_TYPES: [u32; 3] = [0, 1, 4];

/// Levels count to 127.
const MAX_LEVELS: usize = 128;

/// How far ahead of its data the top delta is given space at most.
const PREALLOCATION: u64 = 128 << 20;

const TMPFS_MAGIC: u32 = 0x0102_1994;

impl Level {
    /// The file for a disk to be made of. The driver reads and writes by the file's extents, so it
    /// matters where it has none.
    fn delta_file(&self) -> std::io::Result<DeltaFile> {
        let file = DeltaFile::new(self.file.try_clone()?, self.path());
        let len = self.file.metadata()?.len();
        // Not every file system tells.
        Ok(file.with_holes(holes(&self.file, len).unwrap_or_default()))
    }
}

/// A delta that was looked at and fits.
struct Candidate {
    level: Level,
    version: u32,
    cluster_log: u32,
}

impl Device {
    /// Looks at the file of a request: whether it can become the delta `at` that level.
    fn candidate(
        &self,
        ioctl: &Ioctl<'_>,
        control: &Control,
        above: bool,
    ) -> Result<Candidate, Errno> {
        let raw = match control.format {
            FORMAT_RAW => true,
            FORMAT_PLOOP1 => false,
            _ => return Err(Errno::INVAL),
        };
        let shown = lock(&self.shown);
        if above && shown.levels.len() >= MAX_LEVELS {
            return Err(Errno::INVAL);
        }
        if above && (control.cluster_log != shown.cluster_log || raw) {
            return Err(Errno::INVAL);
        }
        let (device_version, device_size) = if above {
            (shown.version, self.disk_size())
        } else {
            (0, 0)
        };
        drop(shown);
        if !Control::is_whole_file(ioctl)? {
            return Err(Errno::INVAL);
        }
        let file = ioctl.file()?;
        if !IO_TYPES.contains(&Control::io_type(ioctl)?)
            || fstatfs(&file)?.f_type as u32 == TMPFS_MAGIC
        {
            return Err(Errno::NOTSUP);
        }
        let read_only = control.flags & Control::READ_ONLY != 0;
        let mode = fcntl_getfl(&file)? & OFlags::RWMODE;
        if read_only != (mode == OFlags::RDONLY) {
            return Err(Errno::INVAL);
        }
        // Whatever its mark says: that is in the file, where everybody can write.
        match written_by(&file) {
            Some(by) if read_only && by != self.index => return Err(Errno::TXTBSY),
            Some(_) if !read_only => return Err(Errno::BUSY),
            None if !read_only && attached::is_attached(&file) => return Err(Errno::BUSY),
            _ => {}
        }
        let (size, version) = if raw {
            (file.metadata().map_err(|e| errno(&e))?.len(), 0)
        } else {
            let info = header_of(&file).map_err(|_| Errno::INVAL)?;
            if info.cluster.sectors() != 1 << control.cluster_log {
                return Err(Errno::INVAL);
            }
            if info.in_use {
                return Err(Errno::BUSY);
            }
            (info.size.bytes(), info.version.number())
        };
        if size < device_size || (device_version != 0 && version != device_version) {
            return Err(Errno::INVAL);
        }
        Ok(Candidate {
            level: Level {
                _attachment: Attachment::of(&file),
                called: path_of(&file).file_name().unwrap_or_default().to_owned(),
                file,
                raw,
                read_only,
            },
            version,
            cluster_log: control.cluster_log,
        })
    }

    /// Of the stack, running or not.
    fn disk_size(&self) -> u64 {
        match &lock(&self.data).disk {
            Stack::Writable(disk) => disk.size().bytes(),
            Stack::ReadOnly(disk) => disk.size().bytes(),
            Stack::None => 0,
        }
    }

    pub(super) fn add_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let maintenance = lock(&self.control);
        let levels = {
            let mut shown = lock(&self.shown);
            if control.flags & Control::COOKIE != 0 && shown.cookie.is_empty() {
                shown.cookie = Control::cookie(ioctl)?;
            }
            if shown.running {
                return Err(Errno::BUSY);
            }
            shown.levels.len()
        };
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let candidate = self.candidate(ioctl, &control, levels > 0)?;
        let mut shown = lock(&self.shown);
        if shown.levels.last().is_some_and(|top| !top.read_only) {
            return Err(Errno::INVAL);
        }
        shown.cluster_log = candidate.cluster_log;
        if levels == 0 {
            shown.version = 0;
        }
        if candidate.version != 0 {
            shown.version = candidate.version;
        }
        let written = (!candidate.level.read_only).then_some(self.index);
        let file = candidate.level.file.try_clone();
        shown.levels.push(candidate.level);
        drop(shown);
        // Marks the image as in use, if it is to be written to.
        if let Err(error) = self.assemble() {
            lock(&self.shown).levels.pop();
            // What there was before.
            let _ = self.assemble();
            return Err(error);
        }
        if let (Some(index), Ok(file)) = (written, file) {
            set_written(&file, Some(index));
        }
        Ok(())
    }

    /// Makes one disk of the levels.
    fn assemble(&self) -> Result<(), Errno> {
        let (files, raw, read_only, cluster_log) = {
            let shown = lock(&self.shown);
            let files = shown
                .levels
                .iter()
                .map(Level::delta_file)
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|error| errno(&error))?;
            (
                files,
                shown.levels.first().is_some_and(|base| base.raw),
                shown.levels.last().is_none_or(|top| top.read_only),
                shown.cluster_log,
            )
        };
        let cluster = ClusterSize::from_log2_sectors(cluster_log).map_err(|_| Errno::INVAL)?;
        let disk = if files.is_empty() {
            Stack::None
        } else if read_only {
            let disk = Disk::from_files(files, cluster, raw, true).map_err(|e| errno_of(&e))?;
            Stack::ReadOnly(Box::new(disk))
        } else {
            let mut disk =
                DiskWriter::from_files(files, cluster, raw, true).map_err(|e| errno_of(&e))?;
            disk.set_preallocation(PREALLOCATION);
            // A preallocated image stays one.
            let clusters = disk.size().bytes().div_ceil(cluster.bytes());
            disk.set_keep_clusters(u64::from(disk.allocation_head()) > clusters);
            Stack::Writable(Box::new(disk))
        };
        lock(&self.data).disk = disk;
        Ok(())
    }

    pub(super) fn start(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let _control = lock(&self.control);
        {
            let shown = lock(&self.shown);
            if shown.running {
                return Err(Errno::BUSY);
            }
            if shown.levels.is_empty() {
                return Err(Errno::NOENT);
            }
        }
        if ioctl.partition {
            return Err(Errno::BUSY);
        }
        if let Stack::Writable(disk) = &mut lock(&self.data).disk {
            // It may have been stopped, and be started again.
            disk.set_in_use(true).map_err(|error| errno_of(&error))?;
        }
        let read_only = {
            let mut shown = lock(&self.shown);
            shown.read_only = shown.levels.last().is_none_or(|top| top.read_only);
            shown.running = true;
            shown.read_only
        };
        self.set_size(self.disk_size());
        if let Err(error) = self.require_block()?.attach(read_only) {
            self.set_size(0);
            lock(&self.shown).running = false;
            return Err(errno(&error));
        }
        Ok(())
    }

    pub(super) fn stop(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let maintenance = lock(&self.control);
        if ioctl.partition {
            return Err(Errno::NODEV);
        }
        if !lock(&self.shown).running {
            return Err(Errno::INVAL);
        }
        if maintenance.moved == Moved::Moving {
            return Err(Errno::BUSY);
        }
        self.require_block()?
            .detach()
            .map_err(|error| errno(&error))?;
        lock(&self.shown).running = false;
        self.set_size(0);
        self.set_balloon_inode(None);
        {
            let mut contents = lock(&self.data);
            contents.discards.answer_all();
            // As the driver: the device is stopped in any case, and the image keeps its mark where not
            // everything is on the disk.
            if let Stack::Writable(disk) = &mut contents.disk {
                if self.is_aborted() {
                    eprintln!(
                        "ploop-sandbox: {} was aborted, and its image stays marked as in use",
                        self.name()
                    );
                } else if let Err(error) = disk.set_in_use(false) {
                    eprintln!("ploop-sandbox: {error}");
                }
            }
        }
        self.discarded.notify_all();
        self.tell_stopped();
        Ok(())
    }

    pub(super) fn clear(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let mut maintenance = lock(&self.control);
        let mut shown = lock(&self.shown);
        if shown.running || (ioctl.partition && !shown.levels.is_empty()) {
            return Err(Errno::BUSY);
        }
        if maintenance.kind == Kind::Track || maintenance.moved == Moved::Moving {
            return Err(Errno::BUSY);
        }
        for level in shown.levels.drain(..) {
            if !level.read_only {
                set_written(&level.file, None);
            }
        }
        shown.cookie.clear();
        drop(shown);
        maintenance.reset();
        self.set_size(0);
        let mut contents = lock(&self.data);
        contents.discards.reset();
        let disk = std::mem::replace(&mut contents.disk, Stack::None);
        // What was never started keeps its mark, and so does what was aborted; but not what was got ahead.
        if let Stack::Writable(mut disk) = disk {
            let trimmed = disk.trim();
            if let Err(error) = trimmed.map_err(|error| self.abort(error)) {
                eprintln!("ploop-sandbox: {error}");
            }
        }
        self.aborted.store(false, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn snapshot(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        {
            let shown = lock(&self.shown);
            if shown.levels.is_empty() {
                return Err(Errno::NOENT);
            }
            if !shown.running {
                drop(shown);
                return self.add_delta(ioctl);
            }
        }
        let mut maintenance = lock(&self.control);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let mut candidate = self.candidate(ioctl, &control, true)?;
        candidate.level.read_only = false;
        let new = candidate.level.delta_file().map_err(|e| errno(&e))?;
        let frozen = if control.flags & Control::SYNC_FILE_SYSTEM == 0 {
            None
        } else {
            maintenance.kind = Kind::Snapshot;
            let frozen = self.require_block()?.freeze();
            maintenance.kind = Kind::Off;
            Some(frozen.map_err(|error| errno(&error))?)
        };
        let pushed = match &mut lock(&self.data).disk {
            Stack::Writable(disk) => disk.push_file(new).map_err(|error| errno_of(&error)),
            // The device stays read-only, and has a top that nothing is written to.
            Stack::ReadOnly(_) => Ok(()),
            Stack::None => Err(Errno::INVAL),
        };
        drop(frozen);
        pushed?;
        let was_read_only = {
            let mut shown = lock(&self.shown);
            let was_read_only = shown.levels.last().is_some_and(|top| top.read_only);
            if let Some(top) = shown.levels.last_mut().filter(|top| !top.read_only) {
                top.read_only = true;
                set_written(&top.file, None);
            }
            set_written(&candidate.level.file, Some(self.index));
            shown.levels.push(candidate.level);
            was_read_only
        };
        if was_read_only {
            if let Err(error) = self.assemble() {
                let top = lock(&self.shown).levels.pop();
                if let Some(top) = top {
                    set_written(&top.file, None);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn delete_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let number = ioctl.word(0)? as usize;
        let maintenance = lock(&self.control);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let (running, levels) = {
            let shown = lock(&self.shown);
            (shown.running, shown.levels.len())
        };
        if number == 0 && running {
            return Err(Errno::BUSY);
        }
        if number >= levels {
            return Err(Errno::NOENT);
        }
        let was_top = number + 1 == levels;
        if running && !was_top {
            match &mut lock(&self.data).disk {
                Stack::Writable(disk) => disk.remove_level(number),
                Stack::ReadOnly(disk) => disk.remove_level(number),
                Stack::None => Ok(()),
            }
            .map_err(|error| errno_of(&error))?;
            self.forget(number);
            return Ok(());
        }
        let disk = std::mem::replace(&mut lock(&self.data).disk, Stack::None);
        close(disk)?;
        self.forget(number);
        self.assemble()
    }

    fn forget(&self, number: usize) {
        let mut shown = lock(&self.shown);
        let level = shown.levels.remove(number);
        if !level.read_only {
            set_written(&level.file, None);
        }
        if shown.levels.is_empty() {
            shown.cookie.clear();
        }
    }

    pub(super) fn replace_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let maintenance = lock(&self.control);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let number = usize::from(control.level);
        {
            let shown = lock(&self.shown);
            let old = shown.levels.get(number).ok_or(Errno::NOENT)?;
            let read_only = control.flags & Control::READ_ONLY != 0;
            if old.read_only != read_only || control.cluster_log != shown.cluster_log {
                return Err(Errno::INVAL);
            }
        }
        let candidate = self.candidate(ioctl, &control, false)?;
        let new = candidate.level.delta_file().map_err(|e| errno(&e))?;
        match &mut lock(&self.data).disk {
            Stack::Writable(disk) => disk.replace_level(number, new),
            Stack::ReadOnly(disk) => disk.replace_level(number, new),
            Stack::None => Ok(()),
        }
        .map_err(|error| errno_of(&error))?;
        if let Some(level) = lock(&self.shown).levels.get_mut(number) {
            *level = candidate.level;
        }
        Ok(())
    }

    /// The delta's file is cut, or made longer, to so many clusters, and its table read again.
    pub(super) fn truncate(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let file = ioctl.file()?;
        let clusters = ioctl.word(4)?;
        let number = usize::from(ioctl.word(8)? as u8);
        let _control = lock(&self.control);
        {
            let shown = lock(&self.shown);
            let level = shown.levels.get(number).ok_or(Errno::NOENT)?;
            if !level.read_only {
                return Err(Errno::BUSY);
            }
            if identity(&file) != identity(&level.file) {
                return Err(Errno::INVAL);
            }
            let len = u64::from(clusters) << (shown.cluster_log + 9);
            // However the descriptor was opened.
            File::options()
                .write(true)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .and_then(|file| file.set_len(len))
                .map_err(|error| errno(&error))?;
        }
        self.reload(number)
    }

    /// Clusters of a level are elsewhere in its file now: in memory, for the caller has written the
    /// table.
    pub(super) fn update_index(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let (count, level) = (ioctl.word(0)?, ioctl.word(4)? as u8);
        let _control = lock(&self.control);
        if lock(&self.shown).levels.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut contents = lock(&self.data);
        for at in (8..).step_by(8).take(count as usize) {
            let (cluster, slot) = (ioctl.word(at)?, ioctl.word(at + 4)?);
            let known = match &mut contents.disk {
                Stack::Writable(disk) => disk.set_slot(level.into(), cluster, slot),
                Stack::ReadOnly(disk) => disk.set_slot(level.into(), cluster, slot),
                Stack::None => Ok(()),
            };
            if let Err(error) = known {
                eprintln!("ploop-sandbox: {}: UPDATE_INDEX: {error}", self.name());
            }
        }
        Ok(())
    }

    fn reload(&self, number: usize) -> Result<(), Errno> {
        match &mut lock(&self.data).disk {
            Stack::Writable(disk) => disk.reload_level(number),
            Stack::ReadOnly(disk) => disk.reload_level(number),
            Stack::None => Ok(()),
        }
        .map_err(|error| errno_of(&error))
    }

    pub(super) fn set_max_delta_size(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let _control = lock(&self.control);
        let cluster_log = {
            let shown = lock(&self.shown);
            if shown.levels.is_empty() {
                return Err(Errno::INVAL);
            }
            shown.cluster_log
        };
        // In sectors; the driver counts whole clusters.
        let clusters = ioctl.long()? >> cluster_log;
        let len = clusters.checked_mul(1 << (cluster_log + 9));
        if let Contents {
            disk: Stack::Writable(disk),
            ..
        } = &mut *lock(&self.data)
        {
            disk.set_max_len(len);
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), Errno> {
        let _control = lock(&self.control);
        match &mut lock(&self.data).disk {
            Stack::None => Err(Errno::NOENT),
            Stack::ReadOnly(_) => Ok(()),
            Stack::Writable(disk) => disk.flush().map_err(|error| errno_of(&error)),
        }
    }
}

fn close(disk: Stack) -> Result<(), Errno> {
    match disk {
        Stack::Writable(disk) => disk.close().map_err(|error| {
            eprintln!("ploop-sandbox: {error}");
            errno_of(&error)
        }),
        Stack::ReadOnly(_) | Stack::None => Ok(()),
    }
}
