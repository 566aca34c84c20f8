//! One device: its state, and what its block device reads and writes.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use ploop::ErrorKind;
use ploop::image::{Disk, ReadPlan};
use ploop_sandbox_wire::{Alias, Reply};
use rustix::io::Errno;

use super::attached::Attachment;
use super::contents::Contents;
use super::contents_lock::ContentsLock;
use super::discards::Discards;
use super::errors::{errno, into_io};
use super::lock::lock;
use super::maintenance::Maintenance;
use super::request::{BLKRRPART, Ioctl, number};
use super::stack::Stack;
use crate::block::Block;
use crate::data::{Data, Done};

/// A device. Its locks are taken in the order of the fields; `data` is never held while the kernel is
/// asked for something that may read or write the device, `control` may be.
pub(super) struct Device {
    pub(super) index: u32,
    block: OnceLock<Block>,
    /// One ioctl at a time, but for those that only wait.
    pub(super) control: Mutex<Maintenance>,
    /// Wakes who waits for the clusters of a merge.
    pub(super) moved: Condvar,
    /// The device is about to go, with the sandbox.
    pub(super) ending: AtomicBool,
    /// Something is wrong with the image, and it is not written to any more.
    pub(super) aborted: AtomicBool,
    pub(super) data: ContentsLock<Contents>,
    /// Wakes who waits for discards.
    pub(super) discarded: Condvar,
    /// What sysfs shows.
    pub(super) shown: Mutex<Shown>,
    /// Of the disk, in bytes; 0 while it is stopped.
    size: AtomicU64,
    /// Who reads `pstate/event`.
    waiting: Mutex<Vec<Waiting>>,
    balloon_inode: Mutex<Option<u64>>,
}

/// Who is told the text of `pstate/event` when the device stops.
type Waiting = Box<dyn FnOnce(&str) + Send>;

/// What a read looks up.
enum Found {
    Planned(ReadPlan),
    /// Its deltas are not written to.
    Disk(Box<Disk>),
}

/// One delta.
pub(super) struct Level {
    pub(super) file: File,
    pub(super) raw: bool,
    pub(super) read_only: bool,
    /// What the file was called last in its directory when it was added.
    pub(super) called: OsString,
    pub(super) _attachment: Attachment,
}

impl Level {
    /// Where the file is now, for it may have been renamed since. One whose mount is gone has its name alone.
    pub(super) fn path(&self) -> String {
        let mut name = path_of(&self.file).into_os_string();
        if name == "/" {
            name.clone_from(&self.called);
        }
        let name = name.into_vec();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(&name).to_vec();
        OsString::from_vec(name).to_string_lossy().into_owned()
    }
}

/// The path of an open file, as the kernel knows it.
pub(super) fn path_of(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).unwrap_or_default()
}

pub(super) struct Shown {
    pub(super) levels: Vec<Level>,
    pub(super) running: bool,
    pub(super) read_only: bool,
    pub(super) cookie: Vec<u8>,
    pub(super) cluster_log: u32,
    pub(super) version: u32,
}

impl Device {
    pub(super) fn new(index: u32) -> Device {
        Device {
            index,
            block: OnceLock::new(),
            control: Mutex::new(Maintenance::default()),
            moved: Condvar::new(),
            ending: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            data: ContentsLock::new(Contents {
                disk: Stack::None,
                discards: Discards::default(),
            }),
            discarded: Condvar::new(),
            shown: Mutex::new(Shown {
                levels: Vec::new(),
                running: false,
                read_only: false,
                cookie: Vec::new(),
                cluster_log: 0,
                version: 0,
            }),
            size: AtomicU64::new(0),
            waiting: Mutex::new(Vec::new()),
            balloon_inode: Mutex::new(None),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("ploop{}", self.index)
    }

    pub(super) fn set_block(&self, block: Block) {
        // Called once, for a device nobody else knows yet.
        let _ = self.block.set(block);
    }

    pub(super) fn block(&self) -> Option<&Block> {
        self.block.get()
    }

    /// The block device, for an ioctl that works on it.
    pub(super) fn require_block(&self) -> Result<&Block, Errno> {
        self.block().ok_or(Errno::NODEV)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Whether it can be given to somebody.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.shown).levels.is_empty()
    }

    pub(super) fn alias(&self) -> Option<Alias> {
        let mut alias = self.block()?.alias();
        alias.balloon_inode = *lock(&self.balloon_inode);
        Some(alias)
    }

    pub(super) fn set_balloon_inode(&self, number: Option<u64>) {
        *lock(&self.balloon_inode) = number;
    }

    pub(super) fn when_stopped(&self, when: Waiting) {
        // Whoever stops the device takes the list after it says so.
        let mut waiting = lock(&self.waiting);
        if lock(&self.shown).running {
            waiting.push(when);
        } else {
            drop(waiting);
            when(STOPPED);
        }
    }

    pub(super) fn tell_stopped(&self) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for when in waiting {
            when(STOPPED);
        }
    }

    pub(super) fn ioctl(self: &Arc<Self>, mut ioctl: Ioctl<'_>) -> Result<Reply, Errno> {
        if ioctl.of_ploop() == Some(number::STOP) {
            // The caller's own reference to the device, which must not count as somebody else's.
            ioctl.descriptors.clear();
        }
        let ioctl = &ioctl;
        if ioctl.number == BLKRRPART {
            return self.reread_partitions();
        }
        let Some(which) = ioctl.of_ploop() else {
            return Err(Errno::INVAL);
        };
        let done = |()| Reply::of(0);
        match which {
            number::ADD_DELTA => self.add_delta(ioctl).map(done),
            number::CLEAR => self.clear(ioctl).map(done),
            number::STOP => self.stop(ioctl).map(done),
            number::START => self.start(ioctl).map(done),
            number::SNAPSHOT => self.snapshot(ioctl).map(done),
            number::DEL_DELTA => self.delete_delta(ioctl).map(done),
            number::MERGE => self.merge(ioctl).map(done),
            number::REPLACE_DELTA => self.replace_delta(ioctl).map(done),
            number::TRUNCATE => self.truncate(ioctl).map(done),
            number::UPDATE_INDEX => self.update_index(ioctl).map(done),
            number::MAX_DELTA_SIZE => self.set_max_delta_size(ioctl).map(done),
            number::SYNC => self.sync().map(done),
            number::GROW => self.grow(ioctl).map(done),
            number::TRACK_INIT => self.track_init(),
            number::TRACK_SETPOS => self.track_set_position(ioctl).map(done),
            number::TRACK_READ => self.track_read(),
            number::TRACK_STOP => self.track_stop(false).map(done),
            number::TRACK_ABORT => self.track_stop(true).map(done),
            number::BALLOON => self.balloon(ioctl),
            number::FREEBLKS => self.free_blocks(ioctl),
            number::FBGET => self.free_blocks_get(ioctl),
            number::FBFILTER => self.free_blocks_filter(ioctl),
            number::FBDROP => self.free_blocks_drop().map(done),
            number::RELOCBLKS => self.relocate(ioctl),
            number::DISCARD_INIT => self.discard_init().map(done),
            number::DISCARD_FINI => self.discard_finish().map(done),
            number::DISCARD_WAIT => self.discard_wait(ioctl),
            number::GETDEVICE => Ok(Reply {
                result: 0,
                // The first minor that no device has: those here are numbered from elsewhere on.
                payload: vec![0; 8],
            }),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// What becomes of an error of the image: unless it is one of space, nothing is written any more.
    pub(super) fn abort(&self, error: ploop::Error) -> ploop::Error {
        if error.kind() != ErrorKind::NoSpace {
            self.aborted.store(true, Ordering::Relaxed);
        }
        error
    }

    /// A program has opened the device's node.
    pub(super) fn opened(&self) -> Result<(), Errno> {
        let block = self.require_block()?;
        // Most opens change nothing, and wait for no ioctl.
        let _control = block.is_unread().then(|| lock(&self.control));
        block.opened().map_err(|error| errno(&error))
    }

    fn reread_partitions(&self) -> Result<Reply, Errno> {
        self.require_block()?
            .reread_partitions()
            .map(|()| Reply::of(0))
            .map_err(|error| errno(&error))
    }

    /// Stops and clears it, if nothing holds it any more.
    pub(super) fn shut_down(&self) {
        let ioctl = Ioctl {
            number: 0,
            partition: false,
            argument: 0,
            payload: &[],
            descriptors: Vec::new(),
            gone: &|| true,
        };
        self.end_merge();
        // Held discards would keep the file system from letting go.
        let _ = self.discard_finish();
        let _ = self.track_stop(true);
        let stopped = match self.stop(&ioctl) {
            // It was not running.
            Err(Errno::INVAL) => Ok(()),
            stopped => stopped,
        };
        if let Err(error) = stopped.and_then(|()| self.clear(&ioctl)) {
            eprintln!(
                "ploop-sandbox: {} could not be stopped: {error}",
                self.name()
            );
        }
    }
}

/// `pstate/event` of a device that is not running.
const STOPPED: &str = "2\n";

impl Data for Device {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buffer.len();
        let (found, _in_flight) = self.data.look_up(|contents| match &mut contents.disk {
            Stack::Writable(disk) => Some(disk.plan_read(offset, len).map(Found::Planned)),
            Stack::ReadOnly(disk) => Some(Ok(Found::Disk(disk.clone()))),
            Stack::None => None,
        });
        let found = found.ok_or(io::ErrorKind::NotConnected)?;
        let read = found.and_then(|found| match found {
            Found::Planned(plan) => plan.read(buffer).map(|()| plan.len()),
            Found::Disk(disk) => disk.read_at(buffer, offset),
        });
        let read = read.map_err(|error| into_io(self.abort(error)))?;
        if read < buffer.len() {
            // The device is a whole number of clusters, a raw file may be less.
            buffer[read..].fill(0);
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.is_aborted() {
            return Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
        }
        let mut contents = self.data.beside_reads();
        let written = if contents.discards.free.is_empty() {
            contents.write(data, offset)
        } else {
            // It may get a place that is about to be given up.
            drop(contents);
            lock(&self.data).write(data, offset)
        };
        match written {
            Some(written) => written.map_err(|error| into_io(self.abort(error))),
            None => Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error())),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut contents = self.data.beside_reads();
        match &mut contents.disk {
            Stack::Writable(disk) => disk.flush().map_err(|error| into_io(self.abort(error))),
            Stack::ReadOnly(_) | Stack::None => Ok(()),
        }
    }

    fn punch(&self, offset: u64, len: u64, done: Done) {
        self.zero(offset, len, done);
    }
}
