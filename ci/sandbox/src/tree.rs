//! The FUSE file system that takes the place of `/sys/block`, `/sys/class/block`, `/sys/dev/block`,
//! `/sys/devices/virtual/block`, `/sys/module` and `/proc/vz`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use ploop_sandbox_wire as wire;

use crate::block::MINORS;
use crate::driver::{Driver, Reservation, SysfsEntry};
use crate::lock::lock;
use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, processes};

/// Enough that a busy device does not delay the others.
pub(crate) const THREADS: usize = 4;

/// The parameters of the kernel module that libploop and its users read, with the driver's defaults.
const PARAMETERS: [(&str, &str, u16); 6] = [
    ("large_disk_support", "1\n", 0o444),
    ("max_extent_map_pages", "16384\n", 0o644),
    ("max_map_pages", "1024\n", 0o644),
    ("min_extent_map_entries", "64\n", 0o644),
    ("root_threshold", "2097152\n", 0o644),
    ("user_threshold", "4194304\n", 0o644),
];
/// The size that sysfs tells for each file.
const FILE_SIZE: u64 = 4096;
/// How long the kernel keeps what it has looked up and what stays.
const LONG: Duration = Duration::from_secs(1 << 30);

/// A file, directory or link of the tree.
enum Entry {
    Directory,
    Link(PathBuf),
    File {
        text: String,
        mode: u16,
    },
    /// `pstate/event` of the device of this number: a read waits until the device stops.
    Event(u32),
    /// `/proc/vz/ploop_minor`: opening it reserves a device.
    Minor,
}

impl Entry {
    fn kind(&self) -> FileType {
        match self {
            Entry::Directory => FileType::Directory,
            Entry::Link(_) => FileType::Symlink,
            _ => FileType::RegularFile,
        }
    }
}

/// An open file or directory.
enum Handle {
    File { path: String, text: String },
    Directory(Vec<(INodeNo, FileType, String)>),
    Minor(Reservation),
}

/// The file system.
pub(crate) struct Tree {
    sandbox: Arc<SandboxDirectory>,
    driver: Arc<Driver>,
    inodes: Mutex<Inodes>,
    handles: Arc<Mutex<HashMap<u64, Handle>>>,
    next_handle: Arc<AtomicU64>,
    event_reads: Arc<Mutex<Vec<EventRead>>>,
}

/// The paths that were looked up, each with its inode number.
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

/// A read of `pstate/event` that waits. Whoever answers it takes the reply.
struct EventRead {
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
            handles: Arc::default(),
            next_handle: Arc::new(AtomicU64::new(1)),
            event_reads: Arc::default(),
        }
    }

    fn entry(&self, path: &str) -> Option<Entry> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match *parts {
            [] | ["block" | "class" | "dev" | "virtual" | "module" | "vz"] => {
                Some(Entry::Directory)
            }
            ["block", name] if self.is_device(name) => Some(Entry::Link(
                format!("../devices/virtual/block/{name}").into(),
            )),
            ["block", name] => {
                let target = fs::read_link(self.sandbox.real_block().join(name)).ok()?;
                Some(Entry::Link(target))
            }
            ["class", name] => match device_of(name) {
                Some((device, rest)) if self.has(device, rest) => Some(link_to(device, rest)),
                Some(_) => None,
                None => {
                    let target = fs::read_link(self.sandbox.real_class().join(name)).ok()?;
                    Some(Entry::Link(target))
                }
            },
            ["dev", number] => match device_with(number) {
                Some((device, rest)) if self.has(device, rest) => Some(link_to(device, rest)),
                Some(_) => None,
                None => {
                    let target = fs::read_link(self.sandbox.real_numbers().join(number)).ok()?;
                    Some(Entry::Link(target))
                }
            },
            ["virtual", ref rest @ ..] => match self.driver.entry(rest) {
                Some(SysfsEntry::Directory(_)) => Some(Entry::Directory),
                Some(SysfsEntry::File { text, mode }) => Some(Entry::File { text, mode }),
                Some(SysfsEntry::Event) => {
                    let index = rest.first()?.strip_prefix("ploop")?.parse().ok()?;
                    Some(Entry::Event(index))
                }
                None => match *rest {
                    [name] => real(self.sandbox.real_virtual().join(name)),
                    _ => None,
                },
            },
            ["module", "ploop"] | ["module", "ploop", "parameters"] => Some(Entry::Directory),
            ["module", "ploop", "parameters", name] => {
                let (_, text, mode) = PARAMETERS.iter().find(|parameter| parameter.0 == name)?;
                Some(Entry::File {
                    text: (*text).to_owned(),
                    mode: *mode,
                })
            }
            ["module", name] => real(self.sandbox.real_module().join(name)),
            ["vz", "ploop_minor"] => Some(Entry::Minor),
            _ => None,
        }
    }

    fn names(&self, path: &str) -> Vec<String> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let driver = |path: &[&str]| match self.driver.entry(path) {
            Some(SysfsEntry::Directory(names)) => names,
            _ => Vec::new(),
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        match *parts {
            [] => owned(&["block", "class", "dev", "virtual", "module", "vz"]),
            ["block"] => [driver(&[]), real_names(self.sandbox.real_block())].concat(),
            ["class"] => {
                let nodes = self.nodes().map(|(device, is_partition)| {
                    let partition = if is_partition { "p1" } else { "" };
                    format!("ploop{device}{partition}")
                });
                nodes.chain(real_names(self.sandbox.real_class())).collect()
            }
            ["dev"] => {
                let nodes = self.nodes().map(|(device, is_partition)| {
                    let minor = device * MINORS + u32::from(is_partition);
                    format!("{}:{minor}", wire::MAJOR)
                });
                nodes
                    .chain(real_names(self.sandbox.real_numbers()))
                    .collect()
            }
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
        matches!(self.driver.entry(&[name]), Some(SysfsEntry::Directory(_)))
    }

    /// Whether there is this device, and its partition if that is meant.
    fn has(&self, device: u32, is_partition: bool) -> bool {
        let name = format!("ploop{device}");
        let partition = format!("{name}p1");
        let path = [&*name, &*partition];
        let len = 1 + usize::from(is_partition);
        matches!(
            self.driver.entry(&path[..len]),
            Some(SysfsEntry::Directory(_))
        )
    }

    /// The driver's devices and their partitions.
    fn nodes(&self) -> impl Iterator<Item = (u32, bool)> + '_ {
        let names = match self.driver.entry(&[]) {
            Some(SysfsEntry::Directory(names)) => names,
            _ => Vec::new(),
        };
        names
            .into_iter()
            .filter_map(|name| device_of(&name))
            .flat_map(|(device, _)| [(device, false), (device, true)])
            .filter(|(device, is_partition)| self.has(*device, *is_partition))
    }

    fn is_writable(&self, path: &str) -> bool {
        path.strip_prefix("virtual/").is_some_and(|rest| {
            let parts: Vec<&str> = rest.split('/').collect();
            self.driver.is_writable(&parts)
        })
    }

    fn path(&self, inode: INodeNo) -> Result<String, Errno> {
        lock(&self.inodes).path(inode).ok_or(Errno::ESTALE)
    }

    fn find(&self, inode: INodeNo) -> Result<(String, Entry), Errno> {
        let path = self.path(inode)?;
        let entry = self.entry(&path).ok_or(Errno::ENOENT)?;
        Ok((path, entry))
    }

    fn attributes(&self, path: &str, entry: &Entry) -> FileAttr {
        let (perm, size) = match entry {
            Entry::Directory => (0o755, 0),
            Entry::Link(target) => (0o777, target.as_os_str().len() as u64),
            Entry::File { mode, .. } => (*mode, FILE_SIZE),
            Entry::Event(_) => (0o444, FILE_SIZE),
            Entry::Minor => (0o400, 0),
        };
        let inode = lock(&self.inodes).number(path);
        fuse::attributes(inode, entry.kind(), perm, size)
    }

    fn opened(&self, handle: Handle, reply: ReplyOpen) {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.handles).insert(number, handle);
        // A close has nothing to write, and so is no request.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(number), flags);
    }

    /// Answers a read of `pstate/event` when the device stops. No thread waits meanwhile.
    fn read_event(&self, index: u32, thread: u32, reply: ReplyData) {
        let reply = Arc::new(Mutex::new(Some(reply)));
        let answer = Arc::clone(&reply);
        {
            let mut reads = lock(&self.event_reads);
            reads.push(EventRead { thread, reply });
            if reads.len() == 1 {
                let reads = Arc::clone(&self.event_reads);
                thread::spawn(move || answer_interrupted(&reads));
            }
        }
        let callback = move |text: &str| {
            if let Some(reply) = lock(&answer).take() {
                reply.data(text.as_bytes());
            }
        };
        self.driver.when_stopped(index, Box::new(callback));
    }
}

/// Answers EINTR to reads of threads that have a signal to handle, as long as there are reads.
///
/// The kernel tells a signal by a request of its own, which the FUSE library does not pass on. Without an answer, the
/// process that waits here could not even be killed.
fn answer_interrupted(reads: &Mutex<Vec<EventRead>>) {
    loop {
        thread::sleep(Duration::from_millis(100));
        let mut reads = lock(reads);
        reads.retain(|read| {
            let mut reply = lock(&read.reply);
            if reply.is_some() && has_signal(read.thread) {
                if let Some(reply) = reply.take() {
                    reply.error(Errno::EINTR);
                }
            }
            reply.is_some()
        });
        if reads.is_empty() {
            return;
        }
    }
}

/// Whether a thread is gone, or has a signal that it does not block.
fn has_signal(thread: u32) -> bool {
    let names = ["SigPnd:", "ShdPnd:", "SigBlk:"];
    processes::status_masks(&thread.to_string(), names)
        .is_none_or(|[own, shared, blocked]| (own | shared) & !blocked != 0)
}

impl Filesystem for Tree {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.path(parent).and_then(|parent| {
            let name = name.to_str().ok_or(Errno::ENOENT)?;
            let path = join(&parent, name);
            let entry = self.entry(&path).ok_or(Errno::ENOENT)?;
            Ok((self.attributes(&path, &entry), lifetime(&path)))
        });
        match found {
            Ok((attributes, lifetime)) => reply.entry(&lifetime, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.find(inode) {
            Ok((path, entry)) => reply.attr(&lifetime(&path), &self.attributes(&path, &entry)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.find(inode) {
            Ok((_, Entry::Link(target))) => reply.data(target.as_os_str().as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY
            && !self.path(inode).is_ok_and(|path| self.is_writable(&path))
        {
            return reply.error(Errno::EACCES);
        }
        match self.find(inode) {
            Ok((_, Entry::Minor)) => {
                // This may make a device, which takes time: the threads of this file system must not wait.
                let driver = Arc::clone(&self.driver);
                let (handles, next) = (Arc::clone(&self.handles), Arc::clone(&self.next_handle));
                thread::spawn(move || match driver.reserve() {
                    Ok(reservation) => {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        lock(&handles).insert(number, Handle::Minor(reservation));
                        reply.opened(FileHandle(number), FopenFlags::FOPEN_DIRECT_IO);
                    }
                    Err(error) => reply.error(error.into()),
                });
            }
            Ok((path, _)) => {
                let text = String::new();
                self.opened(Handle::File { path, text }, reply);
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
        let path = match lock(&self.handles).get(&handle.0) {
            Some(Handle::File { path, .. }) => Some(path.clone()),
            Some(Handle::Minor(_)) => None,
            _ => return reply.error(Errno::EBADF),
        };
        // As in sysfs, a read at the start makes the text again; later reads get the rest of that text.
        if let (0, Some(path)) = (offset, path) {
            let new = match self.entry(&path) {
                Some(Entry::File { text, .. }) => text,
                Some(Entry::Event(index)) => return self.read_event(index, request.pid(), reply),
                _ => return reply.error(Errno::ENODEV),
            };
            if let Some(Handle::File { text, .. }) = lock(&self.handles).get_mut(&handle.0) {
                *text = new;
            }
        }
        let handles = lock(&self.handles);
        let text = match handles.get(&handle.0) {
            Some(Handle::File { text, .. }) => text.clone(),
            Some(Handle::Minor(reservation)) => reservation.text(),
            _ => String::new(),
        };
        drop(handles);
        let start = text.len().min(offset as usize);
        let end = text.len().min(start + size as usize);
        reply.data(&text.as_bytes()[start..end]);
    }

    /// Each write is a new value, as in sysfs.
    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let stored = self.path(inode).and_then(|path| {
            let parts: Vec<&str> = path.split('/').collect();
            let text = String::from_utf8_lossy(data);
            match *parts {
                ["virtual", ref rest @ ..] => {
                    let stored = self.driver.store(rest, &text);
                    stored.map_err(|error| io::Error::from(error).into())
                }
                _ => Err(Errno::EACCES),
            }
        });
        match stored {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    /// An open that truncates changes nothing.
    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let is_truncation = size.is_some() && mode.is_none() && uid.is_none() && gid.is_none();
        match self.find(inode) {
            Ok((path, entry)) if is_truncation && self.is_writable(&path) => {
                reply.attr(&lifetime(&path), &self.attributes(&path, &entry));
            }
            Ok(_) => reply.error(Errno::EPERM),
            Err(error) => reply.error(error),
        }
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
        let removed = lock(&self.handles).remove(&handle.0);
        // Dropping a reservation takes the driver's lock, so it is done without this one.
        drop(removed);
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
            if let Some(entry) = self.entry(&path) {
                entries.push((lock(&self.inodes).number(&path), entry.kind(), name));
            }
        }
        self.opened(Handle::Directory(entries), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Some(Handle::Directory(entries)) = lock(&self.handles).get(&handle.0) {
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
        lock(&self.handles).remove(&handle.0);
        reply.ok();
    }
}

/// The device of `ploopN` or `ploopNp1`, and whether it is the partition.
fn device_of(name: &str) -> Option<(u32, bool)> {
    let name = name.strip_prefix("ploop")?;
    let (digits, is_partition) = match name.strip_suffix("p1") {
        Some(digits) => (digits, true),
        None => (name, false),
    };
    let device: u32 = digits.parse().ok()?;
    // No other spelling of the number.
    (device.to_string() == digits).then_some((device, is_partition))
}

/// The device of the node with this number, `182:N`, and whether it is the partition. None: it is not the driver's.
fn device_with(number: &str) -> Option<(u32, bool)> {
    let (major, minor) = number.split_once(':')?;
    if major.parse() != Ok(wire::MAJOR) {
        return None;
    }
    let minor: u32 = minor.parse().ok()?;
    (minor % MINORS < 2).then_some((minor / MINORS, minor % MINORS == 1))
}

/// How long what is at this path stays, as real sysfs keeps it in memory, and a path to it costs next to nothing. A device
/// is never removed; its deltas and its partition come and go, as do the host's own devices.
fn lifetime(path: &str) -> Duration {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_device = |found| matches!(found, Some((_, false)));
    let stays = match *parts {
        [] | [_] | ["module", "ploop", ..] => true,
        ["block" | "class", name] => is_device(device_of(name)),
        ["dev", number] => is_device(device_with(number)),
        ["virtual", device, "pdelta", _, ..] if is_device(device_of(device)) => false,
        ["virtual", device, ref rest @ ..] if is_device(device_of(device)) => {
            rest.first().is_none_or(|name| device_of(name).is_none())
        }
        _ => false,
    };
    if stays { LONG } else { Duration::ZERO }
}

/// A link from `/sys/class/block` or `/sys/dev/block` to a device or its partition.
fn link_to(device: u32, is_partition: bool) -> Entry {
    let mut target = PathBuf::from(format!("../../devices/virtual/block/ploop{device}"));
    if is_partition {
        target.push(format!("ploop{device}p1"));
    }
    Entry::Link(target)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}

/// A link to a real directory or file, if it is there.
fn real(path: PathBuf) -> Option<Entry> {
    path.symlink_metadata().is_ok().then_some(Entry::Link(path))
}

fn real_names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
