//! The FUSE file system with the virtual disk of a device, a file that the loop device reads and writes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use ploop::image::ReadPlan;
use rustix::fs::FallocateFlags;

use crate::fuse::{self, Connection};
use crate::lock::lock;
use crate::spliced_answer::SplicedAnswer;

/// The name of the file.
pub(crate) const FILE: &str = "disk";
/// The threads of a device: enough that a slow request does not delay the others.
pub(crate) const THREADS: usize = 4;

const MAX_WRITE: u32 = 1 << 20;
/// The most background requests that the kernel sends before it waits. All direct I/O is in the background.
const MAX_BACKGROUND: u16 = 128;
const DISK: INodeNo = INodeNo(2);

/// The virtual disk behind the file.
pub(crate) trait VirtualDisk: Send + Sync + 'static {
    /// The size in bytes; 0 when the device is stopped.
    fn size(&self) -> u64;
    /// `buffer` lies within [`VirtualDisk::size`].
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Has `send` pass a range on from the files that hold it. Until it returns, nothing else comes into these places.
    /// `false` where nothing was passed on: then [`VirtualDisk::read`] reads it.
    fn pass_on(&self, _offset: u64, _len: usize, _send: &mut SendPlan<'_>) -> io::Result<bool> {
        Ok(false)
    }
    /// `data` lies within [`VirtualDisk::size`].
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything that was written durable.
    fn flush(&self) -> io::Result<()>;
    /// A discard, or zeros to be written; the range lies within [`VirtualDisk::size`]. Another thread may complete it
    /// later.
    fn punch(&self, offset: u64, len: u64, completion: Completion);
}

/// Passes on what a plan names, or returns `false`.
pub(crate) type SendPlan<'a> = dyn FnMut(&ReadPlan) -> io::Result<bool> + 'a;

/// Takes the result of a [`VirtualDisk::punch`]. Dropped before, it answers EIO.
pub(crate) struct Completion(Option<Box<dyn FnOnce(io::Result<()>) + Send>>);

impl Completion {
    /// Calls `answer` with the result.
    pub(crate) fn new(answer: impl FnOnce(io::Result<()>) + Send + 'static) -> Completion {
        Completion(Some(Box::new(answer)))
    }

    pub(crate) fn complete(mut self, result: io::Result<()>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(io::Error::other("a discard was dropped")));
        }
    }
}

/// When the unanswered requests of all devices came, by growing keys. The watchdog asks for the oldest.
static PENDING: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());

/// The age of the oldest unanswered request.
pub(crate) fn oldest_request() -> Duration {
    lock(&PENDING)
        .first_key_value()
        .map_or(Duration::ZERO, |(_, since)| since.elapsed())
}

/// A request is unanswered until this is dropped.
struct PendingRequest(u64);

impl PendingRequest {
    fn new() -> PendingRequest {
        let mut pending = lock(&PENDING);
        let key = pending.last_key_value().map_or(0, |(key, _)| key + 1);
        pending.insert(key, Instant::now());
        PendingRequest(key)
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        lock(&PENDING).remove(&self.0);
    }
}

thread_local! {
    /// The data of a read, which FUSE takes as one piece.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The shortest read whose data is passed on without a copy in this process. For shorter ones, more system calls cost
/// more than a copy.
const SPLICED: usize = 32 << 10;

/// The file system with one file. It does not keep the device alive.
pub(crate) struct DiskFileSystem {
    data: Weak<dyn VirtualDisk>,
    spliced: SplicedAnswer,
}

impl DiskFileSystem {
    /// `connection` is that by which it is going to be mounted.
    pub(crate) fn new(
        data: &Arc<dyn VirtualDisk>,
        connection: &Connection,
    ) -> io::Result<DiskFileSystem> {
        Ok(DiskFileSystem {
            data: Arc::downgrade(data),
            spliced: SplicedAnswer::new(connection)?,
        })
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        if inode != DISK {
            return fuse::attributes(inode, FileType::Directory, 0o700, 0);
        }
        let size = self.data.upgrade().map_or(0, |data| data.size());
        FileAttr {
            blocks: size / 512,
            ..fuse::attributes(inode, FileType::RegularFile, 0o600, size)
        }
    }

    /// The device, if the range lies on its disk.
    fn data_in_range(&self, offset: u64, len: u64) -> Result<Arc<dyn VirtualDisk>, Errno> {
        let data = self.data.upgrade().ok_or(Errno::EIO)?;
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        if end > data.size() {
            return Err(Errno::EIO);
        }
        Ok(data)
    }
}

impl Filesystem for DiskFileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where the kernel refuses one, the default does.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE {
            reply.entry(&Duration::ZERO, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            // There is always room for one entry.
            let _ = reply.add(DISK, 1, FileType::RegularFile, FILE);
        }
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _pending = PendingRequest::new();
        let Some(data) = self.data.upgrade() else {
            return reply.error(Errno::EIO);
        };
        let len = data.size().saturating_sub(offset).min(u64::from(size)) as usize;
        if len >= SPLICED {
            let mut send = |plan: &ReadPlan| self.spliced.send(request.unique(), plan);
            // What has failed fails once more below, and is answered there.
            if let Ok(true) = data.pass_on(offset, len, &mut send) {
                return forget(reply);
            }
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let buffer = &mut buffer[..len];
            match data.read(buffer, offset) {
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _pending = PendingRequest::new();
        let result = self
            .data_in_range(offset, bytes.len() as u64)
            .and_then(|data| data.write(bytes, offset).map_err(|error| errno(&error)));
        match result {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let _pending = PendingRequest::new();
        let result = self
            .data_in_range(0, 0)
            .and_then(|data| data.flush().map_err(|error| errno(&error)));
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let zeroes = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !mode.intersects(zeroes) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        match self.data_in_range(offset, len) {
            Ok(data) => {
                let pending = PendingRequest::new();
                let completion = Completion::new(move |result| {
                    match result {
                        Ok(()) => reply.ok(),
                        Err(error) => reply.error(errno(&error)),
                    }
                    drop(pending);
                });
                data.punch(offset, len, completion);
            }
            Err(error) => reply.error(error),
        }
    }
}

/// Drops the reply to a request that has its answer. `fuser` then sends EIO, which the kernel refuses with ENOENT: it knows
/// the number of an answered request no more, and gives it to no other. `mem::forget` would keep the connection open for
/// ever.
fn forget(reply: ReplyData) {
    drop(reply);
}

/// The `errno` for the block layer: ENOSPC, EOPNOTSUPP or EIO.
fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::ENOSPC,
        io::ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}
