//! One device: its state, which function answers which ioctl ([`Device::ioctl`]), and the reads and writes of its block
//! device.

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
use ploop_sandbox_wire::{Alias, BLKRRPART, Reply, number};
use rustix::io::Errno;

use super::attached::Attachment;
use super::changed_blocks::ChangedBlocks;
use super::contents::Contents;
use super::contents_lock::ContentsLock;
use super::discard_queue::DiscardQueue;
use super::errors::{host_errno, into_io};
use super::generation::GenerationChoice;
use super::maintenance::Maintenance;
use super::request::Ioctl;
use super::stack::Stack;
use crate::block::{BlockDevice, Frozen};
use crate::lock::lock;
use crate::virtual_disk::{Completion, SendPlan, VirtualDisk};

/// A device. Its locks are taken in the order of the fields. `contents` is never held during a system call that may
/// read or write the device; `maintenance` may be.
pub(super) struct Device {
    pub(super) index: u32,
    generation: Arc<GenerationChoice>,
    block_device: OnceLock<BlockDevice>,
    /// Held during an ioctl, so that only one runs at a time. Those that wait let go of it.
    pub(super) maintenance: Mutex<Maintenance>,
    /// Notified when the thread that moves the clusters of a merge has ended.
    pub(super) merge_progressed: Condvar,
    /// The sandbox is ending.
    pub(super) ending: AtomicBool,
    /// The image had an error, and is not written to any more.
    pub(super) aborted: AtomicBool,
    pub(super) contents: ContentsLock<Contents>,
    /// Notified when a discard comes or has ended.
    pub(super) discarded: Condvar,
    /// The deltas, and what else sysfs shows.
    pub(super) state: Mutex<DeviceState>,
    /// The size of the block device in bytes.
    size: AtomicU64,
    /// One for each read of `pstate/event` that waits.
    stop_callbacks: Mutex<Vec<StopCallback>>,
    balloon_inode: Mutex<Option<u64>>,
    /// The blocks that were written to, while they are tracked. Locked for moments only.
    pub(super) changed_blocks: Mutex<Option<ChangedBlocks>>,
    /// Whether they are tracked, so that other writes need not lock.
    pub(super) tracks_blocks: AtomicBool,
    /// The file systems that `PLOOP_IOC_FREEZE` has frozen. Locked for moments only.
    pub(super) frozen: Mutex<Option<Frozen>>,
}

/// Called with the text of `pstate/event` when the device stops.
type StopCallback = Box<dyn FnOnce(&str) + Send>;

/// What a read looks up: where its data is.
enum ReadSource {
    Plan(ReadPlan),
    /// A read-only disk, which does not change.
    Disk(Box<Disk>),
}

/// One delta.
pub(super) struct Level {
    pub(super) file: File,
    pub(super) raw: bool,
    pub(super) read_only: bool,
    /// The file's name in its directory when it was added.
    pub(super) name: OsString,
    pub(super) _attachment: Attachment,
}

impl Level {
    /// The current path of the file, which may have been renamed. Where its mount is gone, only its name.
    pub(super) fn path(&self) -> String {
        let mut name = path_of(&self.file).into_os_string();
        if name == "/" {
            name.clone_from(&self.name);
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

/// The deltas of a device, and what else sysfs shows.
pub(super) struct DeviceState {
    pub(super) levels: Vec<Level>,
    pub(super) running: bool,
    pub(super) read_only: bool,
    pub(super) cookie: Vec<u8>,
    pub(super) cluster_log: u32,
    pub(super) version: u32,
    /// In bytes; 0 for a device that never ran.
    pub(super) discard_granularity: u32,
}

impl Device {
    pub(super) fn new(index: u32, generation: Arc<GenerationChoice>) -> Device {
        Device {
            index,
            generation,
            block_device: OnceLock::new(),
            maintenance: Mutex::new(Maintenance::default()),
            merge_progressed: Condvar::new(),
            ending: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            contents: ContentsLock::new(Contents {
                disk: Stack::None,
                discards: DiscardQueue::default(),
            }),
            discarded: Condvar::new(),
            state: Mutex::new(DeviceState {
                levels: Vec::new(),
                running: false,
                read_only: false,
                cookie: Vec::new(),
                cluster_log: 0,
                version: 0,
                discard_granularity: 0,
            }),
            size: AtomicU64::new(0),
            stop_callbacks: Mutex::new(Vec::new()),
            balloon_inode: Mutex::new(None),
            changed_blocks: Mutex::new(None),
            tracks_blocks: AtomicBool::new(false),
            frozen: Mutex::new(None),
        }
    }

    /// Whether this is a device of Virtuozzo 7's driver.
    pub(super) fn is_of_virtuozzo_7(&self) -> bool {
        self.generation.is_virtuozzo_7()
    }

    pub(super) fn name(&self) -> String {
        format!("ploop{}", self.index)
    }

    pub(super) fn set_block_device(&self, block: BlockDevice) {
        // Called once, before the device is in the driver's list.
        let _ = self.block_device.set(block);
    }

    pub(super) fn block_device(&self) -> Option<&BlockDevice> {
        self.block_device.get()
    }

    /// The block device, for an ioctl that works on it.
    pub(super) fn require_block_device(&self) -> Result<&BlockDevice, Errno> {
        self.block_device().ok_or(Errno::NODEV)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
        self.note_size(size);
    }

    /// Whether the device has no deltas, so that a program can be given it.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).levels.is_empty()
    }

    pub(super) fn alias(&self) -> Option<Alias> {
        let mut alias = self.block_device()?.alias();
        alias.balloon_inode = *lock(&self.balloon_inode);
        Some(alias)
    }

    pub(super) fn set_balloon_inode(&self, number: Option<u64>) {
        *lock(&self.balloon_inode) = number;
    }

    /// Calls back when the device stops, or at once if it does not run.
    pub(super) fn when_stopped(&self, callback: StopCallback) {
        // `stop` clears `running` before it takes the list, so that no callback is lost.
        let mut callbacks = lock(&self.stop_callbacks);
        if lock(&self.state).running {
            callbacks.push(callback);
        } else {
            drop(callbacks);
            callback(STOPPED);
        }
    }

    pub(super) fn tell_stopped(&self) {
        let callbacks = std::mem::take(&mut *lock(&self.stop_callbacks));
        for callback in callbacks {
            callback(STOPPED);
        }
    }

    /// Answers an ioctl: one of the driver's, `PLOOP_IOC_*`, or `BLKRRPART`.
    pub(super) fn ioctl(self: &Arc<Self>, mut ioctl: Ioctl<'_>) -> Result<Reply, Errno> {
        if ioctl.of_ploop() == Some(number::STOP) {
            // The caller's descriptor of the device was sent along, and must not count as another opener.
            ioctl.descriptors.clear();
        }
        let ioctl = &ioctl;
        if ioctl.number == BLKRRPART {
            return self.reread_partitions();
        }
        if let Some(which) = ioctl.of_changed_blocks() {
            return self.track_blocks(which, ioctl);
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
                // The lowest minor that no device has: devices are numbered from 10000 on.
                payload: vec![0; 8],
            }),
            _ if !self.is_of_virtuozzo_7() => Err(Errno::INVAL),
            number::FREEZE => self.freeze(ioctl).map(done),
            number::THAW => self.thaw().map(done),
            number::DUMP_CACHED_BAT => self.dump_cached_table(ioctl),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Marks the device as aborted for an error of the image, unless the host is full. Returns the error.
    pub(super) fn abort(&self, error: ploop::Error) -> ploop::Error {
        if error.kind() != ErrorKind::NoSpace {
            self.aborted.store(true, Ordering::Relaxed);
        }
        error
    }

    /// A program has opened the node of the whole device.
    pub(super) fn opened(&self) -> Result<(), Errno> {
        let block = self.require_block_device()?;
        // An open that finds nothing to do waits for no ioctl.
        let _maintenance = block.is_unread().then(|| lock(&self.maintenance));
        block.opened().map_err(|error| host_errno(&error))
    }

    fn reread_partitions(&self) -> Result<Reply, Errno> {
        self.require_block_device()?
            .reread_partitions()
            .map(|()| Reply::of(0))
            .map_err(|error| host_errno(&error))
    }

    /// Stops and clears the device, if nothing uses it any more.
    pub(super) fn shut_down(&self) {
        let ioctl = Ioctl {
            number: 0,
            partition: false,
            argument: 0,
            payload: &[],
            descriptors: Vec::new(),
            caller_gone: &|| true,
        };
        // A frozen file system cannot be written out.
        let frozen = lock(&self.frozen).take();
        drop(frozen);
        self.end_merge();
        // Held discards would keep the file system from being unmounted.
        let _ = self.discard_finish();
        let _ = self.track_stop(true);
        let stopped = match self.stop(&ioctl) {
            // It did not run.
            Err(Errno::INVAL) => Ok(()),
            stopped => stopped,
        };
        if let Err(error) = stopped.and_then(|()| self.clear(&ioctl)) {
            eprintln!("ploop-sandbox: cannot stop {}: {error}", self.name());
        }
    }
}

/// `pstate/event` of a device that is not running.
const STOPPED: &str = "2\n";

impl VirtualDisk for Device {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buffer.len();
        let (source, _in_flight) = self
            .contents
            .begin_read(|contents| match &mut contents.disk {
                Stack::Writable(disk) => Some(disk.plan_read(offset, len).map(ReadSource::Plan)),
                Stack::ReadOnly(disk) => Some(Ok(ReadSource::Disk(disk.clone()))),
                Stack::None => None,
            });
        let source = source.ok_or(io::ErrorKind::NotConnected)?;
        let read = source.and_then(|source| match source {
            ReadSource::Plan(plan) => plan.read(buffer).map(|()| plan.len()),
            ReadSource::Disk(disk) => disk.read_at(buffer, offset),
        });
        let read = read.map_err(|error| into_io(self.abort(error)))?;
        if read < buffer.len() {
            // The device has a whole number of clusters; a raw file may end before.
            buffer[read..].fill(0);
        }
        Ok(())
    }

    fn pass_on(&self, offset: u64, len: usize, send: &mut SendPlan<'_>) -> io::Result<bool> {
        let (plan, _in_flight) = self
            .contents
            .begin_read(|contents| match &mut contents.disk {
                Stack::Writable(disk) => disk.plan_read(offset, len).ok(),
                Stack::ReadOnly(_) | Stack::None => None,
            });
        match plan {
            Some(plan) if plan.len() == len => send(&plan),
            _ => Ok(false),
        }
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.is_aborted() {
            return Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
        }
        self.note_written(offset, data.len() as u64);
        let mut contents = self.contents.lock_during_reads();
        let written = if contents.discards.free.is_empty() {
            contents.write(data, offset)
        } else {
            // The write may take the slot of a free cluster.
            drop(contents);
            self.contents.lock().write(data, offset)
        };
        match written {
            Some(written) => written.map_err(|error| into_io(self.abort(error))),
            None => Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error())),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut contents = self.contents.lock_during_reads();
        match &mut contents.disk {
            Stack::Writable(disk) => disk.flush().map_err(|error| into_io(self.abort(error))),
            Stack::ReadOnly(_) | Stack::None => Ok(()),
        }
    }

    fn punch(&self, offset: u64, len: u64, completion: Completion) {
        self.zero(offset, len, completion);
    }
}
