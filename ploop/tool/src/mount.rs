//! `mount`: the disks of an image and their partitions as files (FUSE), so that any program works on them.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyLseek, ReplyOpen, Request, Session, SessionACL,
};
use ploop::Guid;
use ploop::image::Disk;
use signal_hook::iterator::Signals;

use crate::cli::Mount;
use crate::output::{Failure, Output, Result};
use crate::progress::ending_signals;
use crate::source::Source;

/// How long the kernel remembers what it was told: nothing changes.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);
/// The number of the root directory.
const ROOT: u64 = 1;
/// The numbers of a state: that of its directory, and one for each file.
const NUMBERS: u64 = 1 << 16;
const MAX_THREADS: usize = 4;

thread_local! {
    /// What a thread reads: a new buffer for each request takes as long as the rest.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(crate) fn run(mount: &Mount, output: &Output) -> Result {
    let source = Source::find(&mount.source)?;
    let mut states = vec![State::new("top".to_owned(), None)];
    if let Some(descriptor) = source.descriptor()? {
        let snapshots = descriptor.snapshots.iter();
        let guids = snapshots
            .map(|it| it.guid)
            .filter(|it| *it != descriptor.top);
        states.extend(guids.map(|guid| State::new(guid.to_string(), Some(guid))));
    }
    // What cannot be opened is said now, and not when a file is first used.
    let top = Opened::new(source.open(None, mount.in_use)?);
    states[0].opened = OnceLock::from(Some(top));
    let cannot = |error: io::Error| {
        Failure::Request(format!(
            "{} cannot be mounted upon: {error}",
            mount.directory.display()
        ))
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::FSName("ploop-image".to_owned()),
        MountOption::Subtype("ploop".to_owned()),
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    if mount.allow_other {
        config.acl = SessionACL::All;
    }
    let threads = thread::available_parallelism().map_or(1, |it| it.get().min(MAX_THREADS));
    config.n_threads = Some(threads);
    let files = Files {
        source,
        in_use: mount.in_use,
        states,
        user: rustix::process::getuid().as_raw(),
        group: rustix::process::getgid().as_raw(),
    };
    let mut session = Session::new(files, &mount.directory, &config).map_err(cannot)?;
    let mut unmounter = session.unmount_callable();
    let mut signals = Signals::new(ending_signals())?;
    thread::spawn(move || {
        // A file system that is in use stays, and the next signal tries again.
        while signals.forever().next().is_some() && unmounter.unmount().is_err() {}
    });
    if output.shows_progress() {
        output.line(format_args!(
            "{} is mounted; unmount it with Ctrl-C or fusermount3 -u",
            mount.directory.display()
        ))?;
    }
    session.run().map_err(cannot)?;
    Ok(ExitCode::SUCCESS)
}

/// A state of the image: a directory.
struct State {
    name: String,
    snapshot: Option<Guid>,
    opened: OnceLock<Option<Opened>>,
}

impl State {
    fn new(name: String, snapshot: Option<Guid>) -> State {
        State {
            name,
            snapshot,
            opened: OnceLock::new(),
        }
    }
}

struct Opened {
    disk: Disk,
    files: Vec<DiskFile>,
}

impl Opened {
    fn new(disk: Disk) -> Opened {
        let size = disk.size().bytes();
        let mut files = vec![DiskFile {
            name: "disk".to_owned(),
            offset: 0,
            size,
            allocated: OnceLock::new(),
        }];
        // Without a table, or with one that is damaged, there is the disk alone.
        for partition in disk.partitions().unwrap_or_default() {
            files.push(DiskFile {
                name: format!("p{}", partition.number),
                offset: partition.offset.min(size),
                size: partition
                    .size
                    .bytes()
                    .min(size.saturating_sub(partition.offset)),
                allocated: OnceLock::new(),
            });
        }
        Opened { disk, files }
    }
}

/// The disk, or a partition of it.
struct DiskFile {
    name: String,
    offset: u64,
    size: u64,
    allocated: OnceLock<u64>,
}

impl DiskFile {
    /// How much of it has data: programs tell by this whether a file has holes.
    fn allocated(&self, disk: &Disk) -> u64 {
        *self.allocated.get_or_init(|| {
            let end = self.offset + self.size;
            let mut allocated = 0;
            for extent in disk.extents_from(self.offset) {
                let Ok(extent) = extent else {
                    return self.size;
                };
                if extent.offset >= end {
                    break;
                }
                let start = extent.offset.max(self.offset);
                allocated += (extent.offset + extent.len).min(end).saturating_sub(start);
            }
            allocated
        })
    }
}

/// The file system.
struct Files {
    source: Source,
    in_use: bool,
    states: Vec<State>,
    user: u32,
    group: u32,
}

/// What has a number.
enum Node<'a> {
    Root,
    State(usize),
    File(&'a Opened, &'a DiskFile),
}

fn number_of_state(index: usize) -> u64 {
    ROOT + 1 + index as u64 * NUMBERS
}

impl Files {
    fn node(&self, number: INodeNo) -> Option<Node<'_>> {
        let Some(number) = number.0.checked_sub(ROOT + 1) else {
            return Some(Node::Root);
        };
        let index = usize::try_from(number / NUMBERS).ok()?;
        let state = self.states.get(index)?;
        match number % NUMBERS {
            0 => Some(Node::State(index)),
            file => {
                let opened = self.opened(state)?;
                let file = usize::try_from(file - 1).ok()?;
                Some(Node::File(opened, opened.files.get(file)?))
            }
        }
    }

    /// `None` for a state that cannot be read.
    fn opened<'a>(&'a self, state: &'a State) -> Option<&'a Opened> {
        let open = || {
            let disk = self.source.open(state.snapshot, self.in_use).ok()?;
            Some(Opened::new(disk))
        };
        state.opened.get_or_init(open).as_ref()
    }

    fn attributes(&self, number: INodeNo, node: &Node<'_>) -> FileAttr {
        let (kind, perm, size, allocated) = match node {
            Node::Root | Node::State(_) => (FileType::Directory, 0o555, 0, 0),
            Node::File(opened, file) => {
                let allocated = file.allocated(&opened.disk);
                (FileType::RegularFile, 0o444, file.size, allocated)
            }
        };
        FileAttr {
            ino: number,
            size,
            blocks: allocated.div_ceil(512),
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: self.user,
            gid: self.group,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The entries of a directory, with their numbers.
    fn entries(&self, node: &Node<'_>) -> Vec<(u64, FileType, &str)> {
        match node {
            Node::Root => {
                let states = self.states.iter().enumerate();
                states
                    .map(|(index, it)| (number_of_state(index), FileType::Directory, &*it.name))
                    .collect()
            }
            Node::State(index) => {
                let first = number_of_state(*index) + 1;
                let files = self.opened(&self.states[*index]).map(|it| &it.files);
                let files = files.into_iter().flatten();
                (first..)
                    .zip(files)
                    .map(|(number, it)| (number, FileType::RegularFile, &*it.name))
                    .collect()
            }
            Node::File(..) => Vec::new(),
        }
    }

    /// The first data or hole from an offset on, as `lseek` has it.
    fn seek(
        &self,
        opened: &Opened,
        file: &DiskFile,
        offset: i64,
        whence: i32,
    ) -> std::result::Result<i64, Errno> {
        let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        if offset >= file.size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        for extent in opened.disk.extents_from(file.offset + offset) {
            let extent = extent.map_err(|_| Errno::EIO)?;
            let start = extent.offset.saturating_sub(file.offset);
            match whence {
                SEEK_DATA if start < file.size => return Ok(start.max(at) as i64),
                SEEK_HOLE if start <= at => at = start + extent.len,
                SEEK_HOLE => break,
                _ => break,
            }
        }
        match whence {
            SEEK_HOLE => Ok(at.min(file.size) as i64),
            SEEK_DATA => Err(Errno::ENXIO),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.node(parent).and_then(|parent| {
            let entries = self.entries(&parent);
            let (number, ..) = entries.into_iter().find(|(.., it)| *it == name)?;
            let number = INodeNo(number);
            Some(self.attributes(number, &self.node(number)?))
        });
        match found {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(number) {
            Some(node) => reply.attr(&FOR_EVER, &self.attributes(number, &node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        match self.node(number) {
            // What another program may be writing to is read anew each time.
            Some(Node::File(..)) if self.in_use => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Some(Node::File(..)) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Some(_) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Node::File(opened, file)) = self.node(number) else {
            return reply.error(Errno::EISDIR);
        };
        let len = file.size.saturating_sub(offset).min(size.into()) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let buffer = &mut buffer[..len];
            match opened.disk.read_at(buffer, file.offset + offset) {
                Ok(read) => {
                    // A partition may end behind the disk.
                    buffer[read..].fill(0);
                    reply.data(buffer);
                }
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(node) = self.node(number) else {
            return reply.error(Errno::ENOENT);
        };
        let parent = match node {
            Node::Root | Node::State(_) => ROOT,
            Node::File(..) => return reply.error(Errno::ENOTDIR),
        };
        let dots = [
            (number.0, FileType::Directory, "."),
            (parent, FileType::Directory, ".."),
        ];
        let entries = dots.into_iter().chain(self.entries(&node));
        for (next, (number, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn lseek(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(Node::File(opened, file)) = self.node(number) else {
            return reply.error(Errno::EINVAL);
        };
        match self.seek(opened, file, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        }
    }
}
