//! A disk that remembers the order in which it was written, and what was flushed: a file in a FUSE file
//! system of this process, which a loop device is bound to. From the record any moment of a power cut
//! can be made again, with what was not flushed lost in part.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite,
    Request, Session, SessionACL, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};

use super::random::Random;
use super::sandbox::tool;

/// What the disk was told.
enum Entry {
    Write { offset: u64, data: Box<[u8]> },
    Flush,
}

struct Shared {
    /// What it holds.
    file: File,
    len: u64,
    record: Mutex<Vec<Entry>>,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.record.lock().unwrap()
    }
}

/// The disk.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    /// As it was before the first entry.
    base: PathBuf,
    directory: PathBuf,
    point: PathBuf,
    _session: BackgroundSession,
}

impl Recorder {
    /// A disk that holds what the file `base` does. It stays as it is.
    pub(crate) fn new(directory: &Path, base: &Path) -> Recorder {
        let contents = directory.join("recorded");
        copy(base, &contents);
        let file = File::options().read(true).write(true).open(contents);
        let file = file.unwrap();
        let shared = Arc::new(Shared {
            len: file.metadata().unwrap().len(),
            file,
            record: Mutex::default(),
        });
        let point = directory.join("recorder");
        fs::create_dir(&point).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = CString::new(options).unwrap();
        rustix::mount::mount("recorder", &point, "fuse", flags, &*options).unwrap();
        let disk = Disk(Arc::clone(&shared));
        let config = Config::default();
        let session = Session::from_fd(disk, device.into(), SessionACL::Owner, config).unwrap();
        Recorder {
            shared,
            base: base.to_owned(),
            directory: directory.to_owned(),
            point,
            _session: session.spawn().unwrap(),
        }
    }

    /// The file to bind a loop device to.
    pub(crate) fn disk(&self) -> PathBuf {
        self.point.join(NAME)
    }

    /// How much has been recorded.
    pub(crate) fn position(&self) -> usize {
        self.shared.record().len()
    }

    /// The disk after a power cut at this position: what was flushed, and of the rest what chance has
    /// spared. Says what was lost.
    pub(crate) fn cut(&self, position: usize, random: &mut Random) -> (PathBuf, String) {
        let disk = self.directory.join("cut");
        copy(&self.base, &disk);
        let file = File::options().write(true).open(&disk).unwrap();
        let record = self.shared.record();
        let entries = &record[..position];
        let flushed = entries
            .iter()
            .rposition(|entry| matches!(entry, Entry::Flush))
            .unwrap_or(0);
        // Everything, most of it, half of it, nothing.
        let lost_of_8 = [0, 1, 4, 8][random.below(4) as usize];
        let (mut lost, mut torn) = (0, 0);
        for (number, entry) in entries.iter().enumerate() {
            let Entry::Write { offset, data } = entry else {
                continue;
            };
            if number > flushed && random.below(8) < lost_of_8 {
                lost += 1;
                continue;
            }
            let mut kept = data.len();
            if number > flushed && lost_of_8 > 0 && random.below(8) == 0 {
                // Sectors are written whole.
                kept = 512 * random.below(data.len() as u64 / 512 + 1) as usize;
                torn += usize::from(kept < data.len());
            }
            file.write_all_at(&data[..kept.min(data.len())], *offset)
                .unwrap();
        }
        let unflushed = position - flushed.min(position);
        let what = format!("{lost} lost and {torn} torn of the last {unflushed} writes");
        (disk, what)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

fn copy(from: &Path, to: &Path) {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    tool("cp", &["--sparse=always", from, to]);
}

const NAME: &str = "disk";
const ROOT: INodeNo = INodeNo(1);
const DISK: INodeNo = INodeNo(2);
const VALID: Duration = Duration::from_secs(3600);

/// The file system: one directory, one file.
struct Disk(Arc<Shared>);

impl Disk {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_root = inode == ROOT;
        FileAttr {
            ino: inode,
            size: if is_root { 0 } else { self.0.len },
            blocks: self.0.len / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_root {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if is_root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == ROOT && name == NAME {
            reply.entry(&VALID, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&VALID, &self.attributes(inode));
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
        let len = self.0.len.saturating_sub(offset).min(size.into());
        let mut bytes = vec![0; len as usize];
        match self.0.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut record = self.0.record();
        match self.0.file.write_all_at(data, offset) {
            Ok(()) => {
                record.push(Entry::Write {
                    offset,
                    data: data.into(),
                });
                reply.written(data.len() as u32);
            }
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.record().push(Entry::Flush);
        reply.ok();
    }
}
