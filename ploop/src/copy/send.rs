//! Sending a copy without libploop, by the driver's change tracking.
//!
//! One thread asks the driver and reads the file of the top delta; another one, in [`writer`], writes what was read.
//!
//! 1. `PLOOP_IOC_TRACK_INIT`. Then the file from its begin to its end, with `PLOOP_IOC_TRACK_SETPOS` before each part.
//! 2. What has changed meanwhile (`PLOOP_IOC_TRACK_READ`), until nothing has, or it does not become less.
//! 3. The receiver syncs.
//! 4. `syncfs`, `FIFREEZE`, `PLOOP_IOC_SYNC`. What has changed, and the header of a delta that is not in use.
//!    `PLOOP_IOC_TRACK_STOP`, `FITHAW`.
//! 5. The receiver syncs, and gets the end mark.

mod writer;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use super::SEND;
use super::stream::SYNC;
use crate::error::LOAD_DRIVER;
use crate::ffi::{self, CleanupProcess, FrozenFileSystem, Tracking};
use crate::image::Header;
use crate::lock::CopyLock;
use crate::sysfs::{self, TopDelta};
use crate::{Code, Error, ErrorKind, Result, device};
use writer::{Answer, Buffer, Order, Output, State, Writer};

/// At most so much is read and sent at once.
const MAX_PART: u64 = 1 << 20;

/// One is read, one waits, and one is written.
const BUFFERS: usize = 3;

/// How often what has changed is sent before the file system is frozen.
const PASSES: u32 = 10;

/// The same while it is frozen, when nothing should change but what was on its way.
const FROZEN_PASSES: u32 = 2;

/// How long a receiver without feedback gets to sync, as from libploop.
const WITHOUT_FEEDBACK: Duration = Duration::from_secs(5);

pub(super) fn send(
    path: &Path,
    output: BorrowedFd<'_>,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let output = Output::new(output, feedback).map_err(|error| error.with_path(path))?;
    let device = File::open(path).map_err(|error| no_device(path, error))?;
    let mount_point = open_mount_point(path)?;
    let lock = CopyLock::acquire(SEND, path)?;
    let cleanup = CleanupProcess::start(&device, &mount_point, lock.file()).map_err(|error| {
        let what = "the process cannot be started that thaws the file system if this one is killed";
        failed(path, what, error, Code::SYS)
    })?;
    let (tracking, end) = begin_tracking(path, &device)?;
    // From here on, a change of the top would end the tracking.
    let (file, top) = open_top_delta(path)?;

    let state = State::default();
    thread::scope(|scope| {
        let (orders, ordered) = sync_channel(1);
        let (answer, answers) = channel();
        let writer = Writer::new(path, &output, &state);
        let writer = thread::Builder::new()
            .name("ploop-copy".into())
            .spawn_scoped(scope, move || writer.follow(&ordered, &answer))
            .map_err(|error| failed(path, "no thread can be started", error, Code::SYS))?;
        let part = top.cluster.min(MAX_PART);
        let transfer = Transfer {
            path,
            file: &file,
            is_raw: top.is_raw,
            tracking,
            mount_point: &mount_point,
            cleanup: &cleanup,
            state: &state,
            orders,
            answers,
            part,
            end,
            tracked: 0,
            first_bytes: [0; SYNC],
            buffers: (0..BUFFERS).map(|_| Buffer::new(part as usize)).collect(),
        };
        let transferred = transfer.run(output.is_confirmed());
        if transferred.is_err() {
            state.cancel();
        }
        let written = writer.join().unwrap_or_else(|panic| resume_unwind(panic));
        match transferred {
            Ok(()) | Err(Stop::WriterEnded) => written,
            Err(Stop::Failed(error)) => Err(error),
        }
    })
}

fn failed(path: &Path, what: &str, error: impl Into<io::Error>, code: Code) -> Error {
    Error::io(SEND, what, error)
        .with_path(path)
        .with_code(code.get())
}

fn refused(path: &Path, kind: ErrorKind, message: impl Into<String>, code: Code) -> Error {
    Error::new(kind, SEND, message)
        .with_path(path)
        .with_code(code.get())
}

fn no_device(path: &Path, error: io::Error) -> Error {
    let is_missing = error.kind() == io::ErrorKind::NotFound;
    let error = failed(path, "the device cannot be opened", error, Code::DEVICE);
    if !is_missing {
        return error;
    }
    let message = error.message().to_owned();
    let error = error.meaning(ErrorKind::NoDriver, message);
    match ffi::is_driver_present() {
        true => error,
        false => error.with_advice(LOAD_DRIVER),
    }
}

/// Opens the root of the file system that is on the device.
fn open_mount_point(path: &Path) -> Result<File> {
    let target = device::mount_point(path)
        .map_err(|error| error.during(SEND))?
        .ok_or_else(|| {
            let message = "no file system of the device is mounted that could be frozen for the end of the copy";
            refused(path, Code::OPEN.kind(), message, Code::OPEN)
        })?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(&target)
        .map_err(|error| {
            failed(
                &target,
                "the mount point cannot be opened",
                error,
                Code::OPEN,
            )
        })?;
    match device::has_file(path, &file) {
        Ok(true) => Ok(file),
        Ok(false) => {
            let message = format!(
                "something else is mounted on top of the file system of {}, and would be frozen instead; unmount it first",
                path.display()
            );
            Err(refused(&target, ErrorKind::Busy, message, Code::OPEN))
        }
        Err(error) => Err(failed(
            &target,
            "the mount point cannot be examined",
            error,
            Code::OPEN,
        )),
    }
}

fn begin_tracking<'a>(path: &Path, device: &'a File) -> Result<(Tracking<'a>, u64)> {
    Tracking::begin(device).map_err(|error| {
        let is_busy = error.raw_os_error() == Some(libc::EBUSY);
        let error = failed(path, "the driver cannot track changes", error, Code::DEVIOC);
        match is_busy {
            true => error.with_advice(
                "it is in another operation on this device, such as a discard, a merge or a resize; unless a program is at work, the next change of the image or its unmount ends that",
            ),
            false => error,
        }
    })
}

/// Opens the file of the top delta for direct reads: in the page cache, parts of an attached file may be out of date.
fn open_top_delta(path: &Path) -> Result<(File, TopDelta)> {
    let top = sysfs::top_delta(path.file_name().unwrap_or_default())
        .map_err(|error| failed(path, "the top delta cannot be found", error, Code::SYSFS))?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::DIRECT | OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32)
        .open(&top.path)
        .map_err(|error| {
            failed(
                &top.path,
                "the top delta cannot be opened",
                error,
                Code::OPEN,
            )
        })?;
    let is_cluster = top.cluster.is_power_of_two() && top.cluster >= Buffer::ALIGNMENT as u64;
    if is_cluster && file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok((file, top));
    }
    let message = "this is no top delta as the driver has them";
    Err(refused(
        &top.path,
        ErrorKind::Unsupported,
        message,
        Code::SYSFS,
    ))
}

/// Why the thread that reads has stopped.
enum Stop {
    Failed(Error),
    /// The other thread has the error.
    WriterEnded,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// The thread that asks the driver and reads the file.
struct Transfer<'a> {
    path: &'a Path,
    file: &'a File,
    is_raw: bool,
    tracking: Tracking<'a>,
    mount_point: &'a File,
    cleanup: &'a CleanupProcess,
    state: &'a State,
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
    /// How much is read and sent at once, in bytes.
    part: u64,
    /// The length of the file that has data.
    end: u64,
    /// The driver notes changes up to here.
    tracked: u64,
    /// Of the file. A receiver that knows no sync writes them once more.
    first_bytes: [u8; SYNC],
    buffers: Vec<Buffer>,
}

impl Transfer<'_> {
    fn run(mut self, is_confirmed: bool) -> Result<(), Stop> {
        self.send_file()?;
        self.send_changes()?;
        self.order(Order::Sync(self.first_bytes))?;
        self.wait_for_sync()?;
        if !is_confirmed {
            thread::sleep(WITHOUT_FEEDBACK);
        }
        self.send_rest()?;
        self.wait_for_sync()?;
        self.order(Order::End)
    }

    /// The whole file.
    fn send_file(&mut self) -> Result<(), Stop> {
        let mut position = 0;
        while position < self.end {
            let len = self.send(position, self.part)?;
            if len == 0 {
                break;
            }
            position += len;
        }
        Ok(())
    }

    /// What has changed since, while more changes.
    fn send_changes(&mut self) -> Result<(), Stop> {
        let (mut passes, mut last, mut sent) = (1, 0, 0);
        while let Some(range) = self.next_change()? {
            if range.start < last {
                passes += 1;
            }
            last = range.end;
            sent += range.end - range.start;
            self.send_range(range)?;
            if passes > PASSES || passes > 1 && sent > self.end {
                break;
            }
        }
        Ok(())
    }

    /// What has changed when the file system is frozen.
    fn send_rest(&mut self) -> Result<(), Stop> {
        let path = self.path;
        let failed = |what, error, code| failed(path, what, error, code);
        rustix::fs::syncfs(self.mount_point).map_err(|error| {
            failed(
                "the file system cannot be synced",
                io::Error::from(error),
                Code::FSYNC,
            )
        })?;
        self.state.set_frozen(true);
        let frozen = FrozenFileSystem::freeze(self.mount_point, self.cleanup)
            .map_err(|error| failed("the file system cannot be frozen", error, Code::DEVIOC))?;
        self.tracking
            .sync()
            .map_err(|error| failed("the driver cannot sync the image", error, Code::DEVIOC))?;
        let (mut passes, mut last) = (1, 0);
        while let Some(range) = self.next_change()? {
            if range.start < last {
                passes += 1;
            }
            last = range.end;
            self.send_range(range)?;
            if passes > FROZEN_PASSES {
                let message =
                    "the device was written to again and again while its file system was frozen";
                return Err(refused(path, ErrorKind::Busy, message, Code::LOOP).into());
            }
        }
        if !self.is_raw {
            self.send_closed_header()?;
        }
        self.order(Order::Sync(self.first_bytes))?;
        self.tracking.stop().map_err(|error| {
            let what = match error.raw_os_error() {
                Some(libc::EBUSY) => "the device was written to while its file system was frozen",
                _ => "the driver cannot end the tracking",
            };
            failed(what, error, Code::DEVIOC)
        })?;
        frozen.thaw().map_err(|error| {
            let what =
                "another program has thawed the file system, and the copy may be inconsistent";
            failed(what, error, Code::DEVIOC)
        })?;
        self.state.set_frozen(false);
        Ok(())
    }

    fn next_change(&mut self) -> Result<Option<Range<u64>>> {
        let range = self.tracking.next_change();
        let range = range.map_err(|error| self.not_tracked(error))?;
        if let Some(range) = &range {
            self.end = self.end.max(range.end);
        }
        Ok(range)
    }

    fn not_tracked(&self, error: io::Error) -> Error {
        if error.raw_os_error() != Some(libc::EINVAL) {
            return failed(
                self.path,
                "the driver cannot track changes",
                error,
                Code::DEVIOC,
            );
        }
        let message = "another operation on the image, such as a snapshot, has ended the tracking of changes; copy again";
        refused(self.path, ErrorKind::Busy, message, Code::DEVIOC)
    }

    fn send_range(&mut self, range: Range<u64>) -> Result<(), Stop> {
        let mut position = range.start;
        while position < range.end {
            let len = self.send(position, self.part.min(range.end - position))?;
            if len == 0 {
                // A cluster that is allocated, and is not written yet: it changes once more.
                break;
            }
            position += len;
        }
        Ok(())
    }

    /// Sends a part, after the driver was told to note its changes from now on. Returns how long it is: less than `len`
    /// at the end of the file.
    fn send(&mut self, position: u64, len: u64) -> Result<u64, Stop> {
        if position + len > self.tracked {
            self.tracked = position + len;
            let noted = self.tracking.set_position(self.tracked);
            noted.map_err(|error| self.not_tracked(error))?;
        }
        let buffer = self.read(position, len)?;
        let read = buffer.bytes().len() as u64;
        if position == 0 {
            if let Some(first) = buffer.bytes().first_chunk() {
                self.first_bytes = *first;
            }
        }
        match read {
            0 => self.buffers.push(buffer),
            _ => self.order(Order::Block(buffer, position))?,
        }
        Ok(read)
    }

    /// The first sector, as that of a delta that nobody uses.
    fn send_closed_header(&mut self) -> Result<(), Stop> {
        const SECTOR: usize = 512;
        let mut buffer = self.read(0, Buffer::ALIGNMENT as u64)?;
        let len = buffer.bytes().len();
        let header = buffer.bytes_mut().first_chunk_mut();
        let Some(header) = header.filter(|_| len >= SECTOR) else {
            let message = "the file ends in its first sector";
            return Err(refused(self.path, ErrorKind::Corrupt, message, Code::READ).into());
        };
        // What an extension has of changed blocks is not copied.
        Header::forget_extension(header);
        buffer.truncate(SECTOR);
        self.order(Order::Block(buffer, 0))
    }

    fn read(&mut self, position: u64, len: u64) -> Result<Buffer, Stop> {
        let mut buffer = self.free_buffer()?;
        buffer
            .fill(self.file, position, len as usize)
            .map_err(|error| {
                failed(self.path, "the top delta cannot be read", error, Code::READ)
            })?;
        Ok(buffer)
    }

    fn free_buffer(&mut self) -> Result<Buffer, Stop> {
        loop {
            if let Some(buffer) = self.buffers.pop() {
                return Ok(buffer);
            }
            self.take_answer()?;
        }
    }

    fn order(&self, order: Order) -> Result<(), Stop> {
        self.orders.send(order).map_err(|_| Stop::WriterEnded)
    }

    fn wait_for_sync(&mut self) -> Result<(), Stop> {
        while !self.take_answer()? {}
        Ok(())
    }

    /// Whether the answer is that of a sync.
    fn take_answer(&mut self) -> Result<bool, Stop> {
        match self.answers.recv().map_err(|_| Stop::WriterEnded)? {
            Answer::Synced => Ok(true),
            Answer::Written(buffer) => {
                self.buffers.push(buffer);
                Ok(false)
            }
        }
    }
}
