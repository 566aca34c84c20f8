//! The stack of deltas: `PLOOP_IOC_ADD_DELTA`, `_START`, `_STOP`, `_CLEAR`, `_SNAPSHOT`, `_DEL_DELTA`,
//! `_REPLACE_DELTA`, `_TRUNCATE`, `_UPDATE_INDEX`, `_MAX_DELTA_SIZE`, `_SYNC`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use ploop::ClusterSize;
use ploop::image::{ChainOptions, DeltaFile, Disk, DiskWriter, header_of};
use rustix::fs::{OFlags, fcntl_getfl, fstatfs};
use rustix::io::Errno;

use super::attached::{self, Attachment, identity, set_writer, writer_of};
use super::contents::Contents;
use super::device::{Device, Level, path_of};
use super::errors::{host_errno, image_errno};
use super::maintenance::{Kind, MergeProgress};
use super::request::{Control, Ioctl};
use super::stack::Stack;
use crate::block::Freeze;
use crate::ioctl::holes;
use crate::lock::lock;

/// `PLOOP_FMT_RAW`.
const FORMAT_RAW: u32 = 1;
/// `PLOOP_FMT_PLOOP1`.
const FORMAT_PLOOP1: u32 = 2;

/// `PLOOP_IO_AUTO`, `_DIRECT` and `_KAIO`.
const IO_TYPES: [u32; 3] = [0, 1, 4];

/// The highest level is 127.
const MAX_LEVELS: usize = 128;

/// The most space that is preallocated for the top delta.
const PREALLOCATION: u64 = 128 << 20;

const TMPFS_MAGIC: u32 = 0x0102_1994;

impl Level {
    /// As the driver, which knows of no format extensions: whoever writes to the image clears the mark that tells that
    /// the extension fits the data.
    pub(super) fn forget_extension(&self) -> std::io::Result<()> {
        if self.raw {
            return Ok(());
        }
        let mut header = header_of(&self.file).map_err(std::io::Error::other)?;
        if !std::mem::take(&mut header.marked_closed) {
            return Ok(());
        }
        // The caller's descriptor may be read-only or for direct I/O.
        let file = File::options()
            .write(true)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        file.write_all_at(&header.to_bytes(), 0)
    }

    /// The delta's file and its holes. The driver reads and writes by the file's extents, so a cluster in a hole is an
    /// error.
    fn delta_file(&self) -> std::io::Result<DeltaFile> {
        let file = DeltaFile::new(self.file.try_clone()?, self.path());
        let len = self.file.metadata()?.len();
        // Not every file system tells its extents.
        Ok(file.with_holes(holes(&self.file, len).unwrap_or_default()))
    }
}

/// A delta that was checked and fits, but is not part of the stack yet.
struct Candidate {
    level: Level,
    version: u32,
    cluster_log: u32,
}

impl Device {
    /// Checks whether the file of a request can become a delta of this device; `above`: on top of the others.
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
        let state = lock(&self.state);
        if above && state.levels.len() >= MAX_LEVELS {
            return Err(Errno::INVAL);
        }
        if above && (control.cluster_log != state.cluster_log || raw) {
            return Err(Errno::INVAL);
        }
        let (device_version, device_size) = if above {
            (state.version, self.disk_size())
        } else {
            (0, 0)
        };
        drop(state);
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
        // The in-use mark does not count here: everybody can write it to the file.
        match writer_of(&file) {
            Some(by) if read_only && by != self.index => return Err(Errno::TXTBSY),
            Some(_) if !read_only => return Err(Errno::BUSY),
            None if !read_only && attached::is_attached(&file) => return Err(Errno::BUSY),
            _ => {}
        }
        let (size, version) = if raw {
            (file.metadata().map_err(|e| host_errno(&e))?.len(), 0)
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
                name: path_of(&file).file_name().unwrap_or_default().to_owned(),
                file,
                raw,
                read_only,
            },
            version,
            cluster_log: control.cluster_log,
        })
    }

    /// The size of the virtual disk in bytes, whether the device runs or not.
    fn disk_size(&self) -> u64 {
        match &self.contents.lock().disk {
            Stack::Writable(disk) => disk.size().bytes(),
            Stack::ReadOnly(disk) => disk.size().bytes(),
            Stack::None => 0,
        }
    }

    /// `PLOOP_IOC_ADD_DELTA`: adds a delta on top. A writable one gets the in-use mark.
    pub(super) fn add_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let maintenance = lock(&self.maintenance);
        let levels = {
            let mut state = lock(&self.state);
            if control.flags & Control::COOKIE != 0 && state.cookie.is_empty() {
                state.cookie = Control::cookie(ioctl)?;
            }
            if state.running {
                return Err(Errno::BUSY);
            }
            state.levels.len()
        };
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let candidate = self.candidate(ioctl, &control, levels > 0)?;
        let mut state = lock(&self.state);
        if state.levels.last().is_some_and(|top| !top.read_only) {
            return Err(Errno::INVAL);
        }
        state.cluster_log = candidate.cluster_log;
        if levels == 0 {
            state.version = 0;
        }
        if candidate.version != 0 {
            state.version = candidate.version;
        }
        if !candidate.level.read_only {
            let forgotten = candidate.level.forget_extension();
            forgotten.map_err(|error| host_errno(&error))?;
        }
        let writer = (!candidate.level.read_only).then_some(self.index);
        let file = candidate.level.file.try_clone();
        state.levels.push(candidate.level);
        drop(state);
        // Sets the in-use mark of a writable delta.
        if let Err(error) = self.assemble() {
            lock(&self.state).levels.pop();
            // Restores the disk of before.
            let _ = self.assemble();
            return Err(error);
        }
        if let (Some(index), Ok(file)) = (writer, file) {
            set_writer(&file, Some(index));
        }
        Ok(())
    }

    /// Makes one disk of all levels.
    fn assemble(&self) -> Result<(), Errno> {
        let (files, raw, read_only, cluster_log) = {
            let state = lock(&self.state);
            let files = state
                .levels
                .iter()
                .map(Level::delta_file)
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|error| host_errno(&error))?;
            (
                files,
                state.levels.first().is_some_and(|base| base.raw),
                state.levels.last().is_none_or(|top| top.read_only),
                state.cluster_log,
            )
        };
        let cluster = ClusterSize::from_log2_sectors(cluster_log).map_err(|_| Errno::INVAL)?;
        let options = ChainOptions::new().raw_base(raw).allow_in_use(true);
        let disk = if files.is_empty() {
            Stack::None
        } else if read_only {
            let disk = Disk::from_files(files, cluster, options).map_err(|e| image_errno(&e))?;
            Stack::ReadOnly(Box::new(disk))
        } else {
            let mut disk =
                DiskWriter::from_files(files, cluster, options).map_err(|e| image_errno(&e))?;
            disk.set_preallocation(PREALLOCATION);
            // A preallocated image keeps its clusters.
            let clusters = disk.size().bytes().div_ceil(cluster.bytes());
            disk.set_keep_clusters(u64::from(disk.allocation_head()) > clusters);
            Stack::Writable(Box::new(disk))
        };
        self.contents.lock().disk = disk;
        Ok(())
    }

    /// `PLOOP_IOC_START`.
    pub(super) fn start(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let _maintenance = lock(&self.maintenance);
        {
            let state = lock(&self.state);
            if state.running {
                return Err(Errno::BUSY);
            }
            if state.levels.is_empty() {
                return Err(Errno::NOENT);
            }
        }
        if ioctl.partition {
            return Err(Errno::BUSY);
        }
        if let Stack::Writable(disk) = &mut self.contents.lock().disk {
            // STOP has cleared the mark.
            disk.set_in_use(true).map_err(|error| image_errno(&error))?;
        }
        let read_only = {
            let mut state = lock(&self.state);
            state.read_only = state.levels.last().is_none_or(|top| top.read_only);
            state.running = true;
            // As in the driver, what was written before is not kept.
            state.discard_granularity = 512 << state.cluster_log;
            state.read_only
        };
        self.set_size(self.disk_size());
        if let Err(error) = self.require_block_device()?.attach(read_only) {
            self.set_size(0);
            lock(&self.state).running = false;
            return Err(host_errno(&error));
        }
        Ok(())
    }

    /// `PLOOP_IOC_STOP`: detaches the block device; the deltas stay.
    pub(super) fn stop(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let maintenance = lock(&self.maintenance);
        if ioctl.partition {
            return Err(Errno::NODEV);
        }
        if !lock(&self.state).running {
            return Err(Errno::INVAL);
        }
        if maintenance.merge == MergeProgress::Moving || self.is_frozen() {
            return Err(Errno::BUSY);
        }
        self.require_block_device()?
            .detach()
            .map_err(|error| host_errno(&error))?;
        lock(&self.state).running = false;
        self.set_size(0);
        self.set_balloon_inode(None);
        {
            let mut contents = self.contents.lock();
            contents.discards.answer_all();
            // As in the driver, the device stops in any case; the image keeps its in-use mark where something was not
            // written.
            if let Stack::Writable(disk) = &mut contents.disk {
                if self.is_aborted() {
                    eprintln!(
                        "ploop-sandbox: {} was aborted; its image keeps the in-use mark",
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

    /// `PLOOP_IOC_CLEAR`: removes all deltas from the device.
    pub(super) fn clear(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let mut maintenance = lock(&self.maintenance);
        let mut state = lock(&self.state);
        if state.running || (ioctl.partition && !state.levels.is_empty()) {
            return Err(Errno::BUSY);
        }
        if maintenance.kind == Kind::Track || maintenance.merge == MergeProgress::Moving {
            return Err(Errno::BUSY);
        }
        for level in state.levels.drain(..) {
            if !level.read_only {
                set_writer(&level.file, None);
            }
        }
        state.cookie.clear();
        drop(state);
        maintenance.reset();
        self.set_size(0);
        let mut contents = self.contents.lock();
        contents.discards.reset();
        let disk = std::mem::replace(&mut contents.disk, Stack::None);
        // A device that was never started, or was aborted, keeps the in-use mark. Preallocated space goes in any case.
        if let Stack::Writable(mut disk) = disk {
            let trimmed = disk.trim();
            if let Err(error) = trimmed.map_err(|error| self.abort(error)) {
                eprintln!("ploop-sandbox: {error}");
            }
        }
        self.aborted.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// `PLOOP_IOC_SNAPSHOT`: puts a new delta on top, and clears the in-use mark of the old one.
    pub(super) fn snapshot(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        {
            let state = lock(&self.state);
            if state.levels.is_empty() {
                return Err(Errno::NOENT);
            }
            if !state.running {
                drop(state);
                return self.add_delta(ioctl);
            }
        }
        let mut maintenance = lock(&self.maintenance);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let mut candidate = self.candidate(ioctl, &control, true)?;
        candidate.level.read_only = false;
        let new = candidate.level.delta_file().map_err(|e| host_errno(&e))?;
        let frozen = if control.flags & Control::SYNC_FILE_SYSTEM == 0 {
            None
        } else {
            maintenance.kind = Kind::Snapshot;
            let frozen = self.require_block_device()?.freeze(Freeze::Everything);
            maintenance.kind = Kind::Off;
            Some(frozen.map_err(|error| host_errno(&error))?)
        };
        let pushed = match &mut self.contents.lock().disk {
            Stack::Writable(disk) => disk.push_file(new).map_err(|error| image_errno(&error)),
            // As in the driver, the device stays read-only, and nothing is written to the new top.
            Stack::ReadOnly(_) => Ok(()),
            Stack::None => Err(Errno::INVAL),
        };
        drop(frozen);
        pushed?;
        let was_read_only = {
            let mut state = lock(&self.state);
            let was_read_only = state.levels.last().is_some_and(|top| top.read_only);
            if let Some(top) = state.levels.last_mut().filter(|top| !top.read_only) {
                top.read_only = true;
                set_writer(&top.file, None);
            }
            set_writer(&candidate.level.file, Some(self.index));
            state.levels.push(candidate.level);
            was_read_only
        };
        if was_read_only {
            if let Err(error) = self.assemble() {
                let top = lock(&self.state).levels.pop();
                if let Some(top) = top {
                    set_writer(&top.file, None);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// `PLOOP_IOC_DEL_DELTA`.
    pub(super) fn delete_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let number = ioctl.word(0)? as usize;
        let maintenance = lock(&self.maintenance);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let (running, levels) = {
            let state = lock(&self.state);
            (state.running, state.levels.len())
        };
        if number == 0 && running {
            return Err(Errno::BUSY);
        }
        if number >= levels {
            return Err(Errno::NOENT);
        }
        let was_top = number + 1 == levels;
        if running && !was_top {
            match &mut self.contents.lock().disk {
                Stack::Writable(disk) => disk.remove_level(number),
                Stack::ReadOnly(disk) => disk.remove_level(number),
                Stack::None => Ok(()),
            }
            .map_err(|error| image_errno(&error))?;
            self.remove_level(number);
            return Ok(());
        }
        let disk = std::mem::replace(&mut self.contents.lock().disk, Stack::None);
        close(disk)?;
        self.remove_level(number);
        self.assemble()
    }

    fn remove_level(&self, number: usize) {
        let mut state = lock(&self.state);
        let level = state.levels.remove(number);
        if !level.read_only {
            set_writer(&level.file, None);
        }
        if state.levels.is_empty() {
            state.cookie.clear();
        }
    }

    /// `PLOOP_IOC_REPLACE_DELTA`: replaces the file of one level.
    pub(super) fn replace_delta(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let control = Control::parse(ioctl)?;
        if control.chunks != 1 {
            return Err(Errno::INVAL);
        }
        let maintenance = lock(&self.maintenance);
        if maintenance.kind != Kind::Off {
            return Err(Errno::BUSY);
        }
        let number = usize::from(control.level);
        {
            let state = lock(&self.state);
            let old = state.levels.get(number).ok_or(Errno::NOENT)?;
            let read_only = control.flags & Control::READ_ONLY != 0;
            if old.read_only != read_only || control.cluster_log != state.cluster_log {
                return Err(Errno::INVAL);
            }
        }
        let candidate = self.candidate(ioctl, &control, false)?;
        let new = candidate.level.delta_file().map_err(|e| host_errno(&e))?;
        match &mut self.contents.lock().disk {
            Stack::Writable(disk) => disk.replace_level(number, new),
            Stack::ReadOnly(disk) => disk.replace_level(number, new),
            Stack::None => Ok(()),
        }
        .map_err(|error| image_errno(&error))?;
        if let Some(level) = lock(&self.state).levels.get_mut(number) {
            *level = candidate.level;
        }
        Ok(())
    }

    /// `PLOOP_IOC_TRUNCATE`: sets the length of a delta's file to a number of clusters, and reads its table again.
    pub(super) fn truncate(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let file = ioctl.file()?;
        let clusters = ioctl.word(4)?;
        let number = usize::from(ioctl.word(8)? as u8);
        let _maintenance = lock(&self.maintenance);
        {
            let state = lock(&self.state);
            let level = state.levels.get(number).ok_or(Errno::NOENT)?;
            if !level.read_only {
                return Err(Errno::BUSY);
            }
            if identity(&file) != identity(&level.file) {
                return Err(Errno::INVAL);
            }
            let len = u64::from(clusters) << (state.cluster_log + 9);
            // The caller's descriptor may be read-only.
            File::options()
                .write(true)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .and_then(|file| file.set_len(len))
                .map_err(|error| host_errno(&error))?;
        }
        self.reload(number)
    }

    /// `PLOOP_IOC_UPDATE_INDEX`: the caller has moved clusters of a level within its file and has written the table;
    /// here the table in memory is changed.
    pub(super) fn update_index(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let (count, level) = (ioctl.word(0)?, ioctl.word(4)? as u8);
        let _maintenance = lock(&self.maintenance);
        if lock(&self.state).levels.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut contents = self.contents.lock();
        for at in (8..).step_by(8).take(count as usize) {
            let (cluster, slot) = (ioctl.word(at)?, ioctl.word(at + 4)?);
            let changed = match &mut contents.disk {
                Stack::Writable(disk) => disk.set_slot(level.into(), cluster, slot),
                Stack::ReadOnly(disk) => disk.set_slot(level.into(), cluster, slot),
                Stack::None => Ok(()),
            };
            if let Err(error) = changed {
                eprintln!(
                    "ploop-sandbox: {}: PLOOP_IOC_UPDATE_INDEX: {error}",
                    self.name()
                );
            }
        }
        Ok(())
    }

    /// Reads the table of a level again.
    fn reload(&self, number: usize) -> Result<(), Errno> {
        match &mut self.contents.lock().disk {
            Stack::Writable(disk) => disk.reload_level(number),
            Stack::ReadOnly(disk) => disk.reload_level(number),
            Stack::None => Ok(()),
        }
        .map_err(|error| image_errno(&error))
    }

    /// `PLOOP_IOC_MAX_DELTA_SIZE`.
    pub(super) fn set_max_delta_size(&self, ioctl: &Ioctl<'_>) -> Result<(), Errno> {
        let _maintenance = lock(&self.maintenance);
        let cluster_log = {
            let state = lock(&self.state);
            if state.levels.is_empty() {
                return Err(Errno::INVAL);
            }
            state.cluster_log
        };
        // In sectors; the driver counts whole clusters.
        let clusters = ioctl.long()? >> cluster_log;
        let len = clusters.checked_mul(1 << (cluster_log + 9));
        if let Contents {
            disk: Stack::Writable(disk),
            ..
        } = &mut *self.contents.lock()
        {
            disk.set_max_len(len);
        }
        Ok(())
    }

    /// `PLOOP_IOC_SYNC`.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        let _maintenance = lock(&self.maintenance);
        match &mut self.contents.lock().disk {
            Stack::None => Err(Errno::NOENT),
            Stack::ReadOnly(_) => Ok(()),
            Stack::Writable(disk) => disk.flush().map_err(|error| image_errno(&error)),
        }
    }
}

fn close(disk: Stack) -> Result<(), Errno> {
    match disk {
        Stack::Writable(disk) => disk.close().map_err(|error| {
            eprintln!("ploop-sandbox: {error}");
            image_errno(&error)
        }),
        Stack::ReadOnly(_) | Stack::None => Ok(()),
    }
}
