//! The FUSE file system with what ploop has below `/sys` and `/proc`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, Request,
};

use crate::driver::{Driver, Entry, Reservation};
use crate::sandbox_directory::SandboxDirectory;

/// Enough that a device that is busy does not hold up the others.
pub(crate) const THREADS: usize = 4;

/// Of the kernel module: those that libploop and its users look at, with the driver's defaults.
const PARAMETERS: [(&str, &str, u16); 6] = [
    ("large_disk_support", "1\n", 0o444),
    ("max_extent_map_pages", "16384\n", 0o644),
    ("max_map_pages", "1024\n", 0o644),
    ("min_extent_map_entries", "64\n", 0o644),
    ("root_threshold", "2097152\n", 0o644),
    ("user_threshold", "4194304\n", 0o644),
];
/// What sysfs says of any of its files.
const FILE_SIZE: u64 = 4096;

/// What a path is.
enum Node {
    Directory,
    Link(PathBuf),
    File {
        text: String,
        mode: u16,
    },
    /// Of the device of this number: a read ends when the device stops.
    Event(u32),
    /// Opening it reserves a device.
    Minor,
}

impl Node {
    fn kind(&self) -> FileType {
        match self {
            Node::Directory => FileType::Directory,
            Node::Link(_) => FileType::Symlink,
            _ => FileType::RegularFile,
        }
    }
}

/// What is open.
enum Open {
    File { path: String, text: String },
    Directory(Vec<(INodeNo, FileType, String)>),
    Minor(Reservation),
}

/// The file system.
pub(crate) struct Tree {
    sandbox: Arc<SandboxDirectory>,
    driver: Arc<Driver>,
    inodes: Mutex<Inodes>,
    open: Arc<Mutex<HashMap<u64, Open>>>,
    next_handle: Arc<AtomicU64>,
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

/// The paths that were asked for, each with a number that it keeps.
struct Inodes {
    paths: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Inodes {
    fn number(&mut self, path: &str) -> INodeNo {
        let number = match self.numbers.get(path) {
            Some(number) => *number,
            None => {
                self.paths.push(path.to_owned());
                let number = self.paths.len();
                self.numbers.insert(path.to_owned(), number);
                number
            }
        };
        INodeNo(number as u64)
    }

    fn path(&self, number: INodeNo) -> Option<String> {
        let index = usize::try_from(number.0).ok()?.checked_sub(1)?;
        self.paths.get(index).cloned()
    }
}

/// A read of `event` that is not answered yet. Whoever answers takes the reply.
struct Waiting {
    thread: u32,
    reply: Arc<Mutex<Option<ReplyData>>>,
}

impl Tree {
    pub(crate) fn new(sandbox: Arc<SandboxDirectory>, driver: Arc<Driver>) -> Tree {
        let mut inodes = Inodes {
            paths: Vec::new(),
            numbers: HashMap::new(),
        };
        // The root is number 1.
        inodes.number("");
        Tree {
            sandbox,
            driver,
            inodes: Mutex::new(inodes),
            open: Arc::default(),
            next_handle: Arc::new(AtomicU64::new(1)),
            waiting: Arc::default(),
        }
    }

    fn node(&self, path: &str) -> Option<Node> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match *parts {
            [] | ["block" | "virtual" | "module" | "vz"] => Some(Node::Directory),
            ["block", name] if self.is_device(name) => Some(Node::Link(
                format!("../devices/virtual/block/{name}").into(),
            )),
            ["block", name] => {
                let target = fs::read_link(self.sandbox.real_block().join(name)).ok()?;
                Some(Node::Link(target))
            }
            ["virtual", ref rest @ ..] => match self.driver.entry(rest) {
                Some(Entry::Directory(_)) => Some(Node::Directory),
                Some(Entry::File { text, mode }) => Some(Node::File { text, mode }),
                Some(Entry::Event) => {
                    let index = rest.first()?.strip_prefix("ploop")?.parse().ok()?;
                    Some(Node::Event(index))
                }
                None => match *rest {
                    [name] => real(self.sandbox.real_virtual().join(name)),
                    _ => None,
                },
            },
            ["module", "ploop"] | ["module", "ploop", "parameters"] => Some(Node::Directory),
            ["module", "ploop", "parameters", name] => {
                let (_, text, mode) = PARAMETERS.iter().find(|parameter| parameter.0 == name)?;
                Some(Node::File {
                    text: (*text).to_owned(),
                    mode: *mode,
                })
            }
            ["module", name] => real(self.sandbox.real_module().join(name)),
            ["vz", "ploop_minor"] => Some(Node::Minor),
            _ => None,
        }
    }

    fn names(&self, path: &str) -> Vec<String> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let driver = |path: &[&str]| match self.driver.entry(path) {
            Some(Entry::Directory(names)) => names,
            _ => Vec::new(),
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        match *parts {
            [] => owned(&["block", "virtual", "module", "vz"]),
            ["block"] => [driver(&[]), real_names(self.sandbox.real_block())].concat(),
            ["virtual"] => [driver(&[]), real_names(self.sandbox.real_virtual())].concat(),
            ["virtual", ref rest @ ..] => driver(rest),
            ["module"] => {
                let mut names = real_names(self.sandbox.real_module());
                names.retain(|name| name != "ploop");
                names.push("ploop".to_owned());
                names
            }
            ["module", "ploop"] => owned(&["parameters"]),
            ["module", "ploop", "parameters"] => owned(&PARAMETERS.map(|parameter| parameter.0)),
            ["vz"] => owned(&["ploop_minor"]),
            _ => Vec::new(),
        }
    }

    fn is_device(&self, name: &str) -> bool {
        matches!(self.driver.entry(&[name]), Some(Entry::Directory(_)))
    }

    fn path(&self, inode: INodeNo) -> Result<String, Errno> {
        lock(&self.inodes).path(inode).ok_or(Errno::ESTALE)
    }

    fn find(&self, inode: INodeNo) -> Result<(String, Node), Errno> {
        let path = self.path(inode)?;
        let node = self.node(&path).ok_or(Errno::ENOENT)?;
        Ok((path, node))
    }

    fn attributes(&self, path: &str, node: &Node) -> FileAttr {
        let (perm, size) = match node {
            Node::Directory => (0o755, 0),
            Node::Link(target) => (0o777, target.as_os_str().len() as u64),
            Node::File { mode, .. } => (*mode, FILE_SIZE),
            Node::Event(_) => (0o444, FILE_SIZE),
            Node::Minor => (0o400, 0),
        };
        FileAttr {
            ino: lock(&self.inodes).number(path),
            size,
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: node.kind(),
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn opened(&self, open: Open, reply: ReplyOpen) {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(handle, open);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    /// Holds a read until the device stops, without a thread.
    fn wait(&self, index: u32, thread: u32, reply: ReplyData) {
        let reply = Arc::new(Mutex::new(Some(reply)));
        let answer = Arc::clone(&reply);
        {
            let mut waiting = lock(&self.waiting);
            waiting.push(Waiting { thread, reply });
            if waiting.len() == 1 {
                let waiting = Arc::clone(&self.waiting);
                thread::spawn(move || answer_interrupted(&waiting));
            }
        }
        let when = move |text: &str| {
            if let Some(reply) = lock(&answer).take() {
                reply.data(text.as_bytes());
            }
        };
        self.driver.stopped(index, Box::new(when));
    }
}

/// Ends the reads of threads that have a signal to handle, as long as there are reads.
///
/// The kernel says so with a request of its own, which the FUSE library does not hand on; and
/// without an answer, a process that waits here could not even be killed.
fn answer_interrupted(waiting: &Mutex<Vec<Waiting>>) {
    loop {
        thread::sleep(Duration::from_millis(100));
        let mut waiting = lock(waiting);
        waiting.retain(|read| {
            let mut reply = lock(&read.reply);
            if reply.is_some() && has_signal(read.thread) {
                if let Some(reply) = reply.take() {
                    reply.error(Errno::EINTR);
                }
            }
            reply.is_some()
        });
        if waiting.is_empty() {
            return;
        }
    }
}

/// Whether a thread is gone, or has a signal that it does not block.
fn has_signal(thread: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{thread}/status")) else {
        return true;
    };
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") != 0
}

impl Filesystem for Tree {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.path(parent).and_then(|parent| {
            let name = name.to_str().ok_or(Errno::ENOENT)?;
            let path = join(&parent, name);
            let node = self.node(&path).ok_or(Errno::ENOENT)?;
            Ok(self.attributes(&path, &node))
        });
        match found {
            Ok(attributes) => reply.entry(&Duration::ZERO, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.find(inode) {
            Ok((path, node)) => reply.attr(&Duration::ZERO, &self.attributes(&path, &node)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.find(inode) {
            Ok((_, Node::Link(target))) => reply.data(target.as_os_str().as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EACCES);
        }
        match self.find(inode) {
            Ok((_, Node::Minor)) => {
                // Makes a device where none is free: not with this thread, which others wait for.
                let driver = Arc::clone(&self.driver);
                let (open, next) = (Arc::clone(&self.open), Arc::clone(&self.next_handle));
                thread::spawn(move || match driver.reserve() {
                    Ok(reservation) => {
                        let handle = next.fetch_add(1, Ordering::Relaxed);
                        lock(&open).insert(handle, Open::Minor(reservation));
                        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
                    }
                    Err(error) => reply.error(error.into()),
                });
            }
            Ok((path, _)) => {
                let text = String::new();
                self.opened(Open::File { path, text }, reply);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = match lock(&self.open).get(&handle.0) {
            Some(Open::File { path, .. }) => Some(path.clone()),
            Some(Open::Minor(_)) => None,
            _ => return reply.error(Errno::EBADF),
        };
        // As sysfs does: the start of a file is read anew, the rest is what belongs to it.
        if let (0, Some(path)) = (offset, path) {
            let new = match self.node(&path) {
                Some(Node::File { text, .. }) => text,
                Some(Node::Event(index)) => return self.wait(index, request.pid(), reply),
                _ => return reply.error(Errno::ENODEV),
            };
            if let Some(Open::File { text, .. }) = lock(&self.open).get_mut(&handle.0) {
                *text = new;
            }
        }
        let open = lock(&self.open);
        let text = match open.get(&handle.0) {
            Some(Open::File { text, .. }) => text.clone(),
            Some(Open::Minor(reservation)) => reservation.text(),
            _ => String::new(),
        };
        drop(open);
        let start = text.len().min(offset as usize);
        let end = text.len().min(start + size as usize);
        reply.data(&text.as_bytes()[start..end]);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let open = lock(&self.open).remove(&handle.0);
        // Not under the lock: this is the driver's.
        drop(open);
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let path = match self.path(inode) {
            Ok(path) => path,
            Err(error) => return reply.error(error),
        };
        let mut entries = vec![
            (inode, FileType::Directory, ".".to_owned()),
            (inode, FileType::Directory, "..".to_owned()),
        ];
        for name in self.names(&path) {
            let path = join(&path, &name);
            if let Some(node) = self.node(&path) {
                entries.push((lock(&self.inodes).number(&path), node.kind(), name));
            }
        }
        self.opened(Open::Directory(entries), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Some(Open::Directory(entries)) = lock(&self.open).get(&handle.0) {
            for (next, (inode, kind, name)) in (1..).zip(entries).skip(offset as usize) {
                if reply.add(*inode, next, *kind, name) {
                    break;
                }
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        lock(&self.open).remove(&handle.0);
        reply.ok();
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}

/// A link to something real, if it is there.
fn real(path: PathBuf) -> Option<Node> {
    path.symlink_metadata().is_ok().then_some(Node::Link(path))
}

fn real_names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Nothing here is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
