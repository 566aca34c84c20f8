//! The FUSE file that holds a device's virtual disk: what the loop device reads and writes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::fs::FallocateFlags;

/// The name of the file.
pub(crate) const FILE: &str = "disk";
/// Serve a device's requests: enough that a slow one does not hold up the others.
pub(crate) const THREADS: usize = 4;

const MAX_WRITE: u32 = 1 << 20;
/// Of requests that the kernel has under way in the background; direct I/O is, all of it.
const MAX_BACKGROUND: u16 = 128;
const DISK: INodeNo = INodeNo(2);

/// What a device's FUSE file reads and writes.
pub(crate) trait Data: Send + Sync + 'static {
    /// Of the virtual disk, in bytes; 0 when stopped.
    fn size(&self) -> u64;
    /// `buffer` lies within [`Data::size`].
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// `data` lies within [`Data::size`].
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// What was written is on the disk when this returns.
    fn flush(&self) -> io::Result<()>;
    /// A discard, or zeroes to be written; it lies within [`Data::size`]. `done` may be answered
    /// later, by another thread.
    fn punch(&self, offset: u64, len: u64, done: Done);
}

/// The answer that a [`Data::punch`] owes. Dropped without one, it is EIO.
pub(crate) struct Done(Option<Box<dyn FnOnce(io::Result<()>) + Send>>);

impl Done {
    /// Calls `answer` with the result.
    pub(crate) fn new(answer: impl FnOnce(io::Result<()>) + Send + 'static) -> Done {
        Done(Some(Box::new(answer)))
    }

    pub(crate) fn answer(mut self, result: io::Result<()>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(io::Error::other("a discard was dropped")));
        }
    }
}

/// Since when which requests are unanswered, of all devices: what the watchdog asks for.
static UNDER_WAY: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());

/// How long the oldest unanswered request has been so.
pub(crate) fn oldest_request() -> Duration {
    let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    under_way
        .first_key_value()
        .map_or(Duration::ZERO, |(_, since)| since.elapsed())
}

/// A request that is under way until this is dropped.
struct UnderWay(u64);

impl UnderWay {
    fn new() -> UnderWay {
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        // The keys grow, so that the first is the oldest; they start anew when nothing is left.
        let key = under_way.last_key_value().map_or(0, |(key, _)| key + 1);
        under_way.insert(key, Instant::now());
        UnderWay(key)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.0);
    }
}

thread_local! {
    /// What is read is collected here, for FUSE takes an answer as one piece.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system with the one file. It does not keep the device alive.
pub(crate) struct DataFileSystem(Weak<dyn Data>);

impl DataFileSystem {
    pub(crate) fn new(data: &Arc<dyn Data>) -> DataFileSystem {
        DataFileSystem(Arc::downgrade(data))
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_disk = inode == DISK;
        let size = match self.0.upgrade() {
            Some(data) if is_disk => data.size(),
            _ => 0,
        };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_disk {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The device, if all of a range is on it.
    fn within(&self, offset: u64, len: u64) -> Result<Arc<dyn Data>, Errno> {
        let data = self.0.upgrade().ok_or(Errno::EIO)?;
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        if end > data.size() {
            return Err(Errno::EIO);
        }
        Ok(data)
    }
}

impl Filesystem for DataFileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Refused, they are what the library has by itself: slower or larger, not wrong.
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
            // One entry fits.
            let _ = reply.add(DISK, 1, FileType::RegularFile, FILE);
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _under_way = UnderWay::new();
        let Some(data) = self.0.upgrade() else {
            return reply.error(Errno::EIO);
        };
        let len = data.size().saturating_sub(offset).min(u64::from(size)) as usize;
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
        let _under_way = UnderWay::new();
        let result = self
            .within(offset, bytes.len() as u64)
            .and_then(|data| data.write(bytes, offset).map_err(|error| errno(&error)));
        match result {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let _under_way = UnderWay::new();
        let result = self
            .within(0, 0)
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
        match self.within(offset, len) {
            Ok(data) => {
                let under_way = UnderWay::new();
                let done = Done::new(move |result| {
                    match result {
                        Ok(()) => reply.ok(),
                        Err(error) => reply.error(errno(&error)),
                    }
                    drop(under_way);
                });
                data.punch(offset, len, done);
            }
            Err(error) => reply.error(error),
        }
    }
}

/// What the block layer is told: a full disk, or an error.
fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Errno::ENOSPC,
        _ => Errno::EIO,
    }
}
