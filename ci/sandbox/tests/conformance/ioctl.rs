//! The driver's ioctls and a few others, raw: `ploop_if.h` has the numbers and the structures.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_int, c_ulong, c_void};

/// An error number; it prints as its text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    fn last() -> Errno {
        Errno(
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or_default(),
        )
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// What an ioctl without more to say answers.
pub(crate) fn error(number: i32) -> Result<i32> {
    Err(Errno(number))
}

/// A structure of plain numbers, laid out as the kernel has it.
///
/// # Safety
///
/// Any bytes are a value of it.
unsafe trait Plain {}

/// `struct ploop_ctl`, with a chunk, and the cookie behind it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Control {
    pub(crate) format: u32,
    pub(crate) flags: u32,
    pub(crate) cluster_log: u32,
    pub(crate) size: u32,
    pub(crate) chunks: u16,
    pub(crate) level: u8,
    zero: u8,
    zeros: u32,
    pub(crate) file: i32,
    pub(crate) io_type: u32,
    chunk_flags: u32,
    pub(crate) offset: u32,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) cookie: [u8; 64],
}

impl Control {
    pub(crate) const RAW: u32 = 1;
    pub(crate) const PLOOP1: u32 = 2;
    pub(crate) const READ_ONLY: u32 = 1;
    pub(crate) const COOKIE: u32 = 4;

    /// A delta of clusters of 1 MiB.
    pub(crate) fn new(file: Option<&File>) -> Control {
        Control {
            format: Control::PLOOP1,
            flags: 0,
            cluster_log: 11,
            size: 0,
            chunks: 1,
            level: 0,
            zero: 0,
            zeros: 0,
            file: file.map_or(-1, AsRawFd::as_raw_fd),
            io_type: 0,
            chunk_flags: 0,
            offset: 0,
            start: 0,
            len: 0,
            cookie: [0; 64],
        }
    }
}

/// `struct ploop_balloon_ctl`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct Balloon {
    pub(crate) kind: u32,
    pub(crate) head: u32,
    pub(crate) level: u8,
    pub(crate) inflate: u8,
    pub(crate) keep: u8,
    pub(crate) zero: u8,
}

/// `struct ploop_freeblks_ctl` with room for a few extents: cluster, slot, length, padding.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct FreeBlocks {
    pub(crate) count: u32,
    pub(crate) head: u32,
    pub(crate) level: u8,
    /// The extents are aligned to 8.
    pub(crate) zeros: [u8; 7],
    pub(crate) extents: [[u32; 4]; 16],
}

/// `struct ploop_relocblks_ctl` with room for one extent: cluster, slot, length, and how much of it is free.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct Relocation {
    pub(crate) count: u32,
    pub(crate) scanned: u32,
    pub(crate) head: u32,
    pub(crate) level: u8,
    pub(crate) zeros: [u8; 3],
    pub(crate) extents: [[u32; 4]; 1],
}

/// `struct ploop_truncate_ctl`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Truncation {
    pub(crate) file: i32,
    pub(crate) head: u32,
    pub(crate) level: u8,
    pub(crate) zeros: [u8; 3],
}

/// `struct ploop_index_update_ctl` with room for two mappings: cluster and slot.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct IndexUpdate {
    pub(crate) count: u32,
    pub(crate) level: u8,
    pub(crate) zeros: [u8; 3],
    pub(crate) maps: [[u32; 2]; 2],
}

/// `struct ploop_dump_bat_ctl` with room for a few entries, which begin within its padding.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct TableDump {
    pub(crate) level: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) entries: [u32; 29],
}

// SAFETY: numbers only.
unsafe impl Plain for TableDump {}
// SAFETY: numbers only.
unsafe impl Plain for Truncation {}
// SAFETY: numbers only.
unsafe impl Plain for IndexUpdate {}
// SAFETY: numbers only.
unsafe impl Plain for Control {}
// SAFETY: numbers only.
unsafe impl Plain for Balloon {}
// SAFETY: numbers only.
unsafe impl Plain for FreeBlocks {}
// SAFETY: numbers only.
unsafe impl Plain for Relocation {}
// SAFETY: a number.
unsafe impl Plain for u32 {}
// SAFETY: numbers only.
unsafe impl Plain for [u64; 2] {}
// SAFETY: a number.
unsafe impl Plain for [u64; 1] {}

const fn number(direction: c_ulong, kind: u8, number: c_ulong, len: c_ulong) -> c_ulong {
    direction << 30 | len << 16 | (kind as c_ulong) << 8 | number
}

const fn of_ploop(direction: c_ulong, which: c_ulong, len: c_ulong) -> c_ulong {
    number(direction, b'P', which, len)
}

const NONE: c_ulong = 0;
const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

const CONTROL_LEN: c_ulong = 24;

fn call<T: Plain>(file: &File, request: c_ulong, argument: &mut T) -> Result<i32> {
    let argument: *mut c_void = std::ptr::from_mut(argument).cast();
    // SAFETY: the kernel reads and writes what the request stands for there, which is what a T is (and no more than what
    // the counts in it say); any bytes are a T.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

fn plain(file: &File, request: c_ulong, argument: c_ulong) -> Result<i32> {
    // SAFETY: these requests have a number for their argument, or none.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

macro_rules! plain {
    ($($name:ident = $number:expr;)+) => {
        $(pub(crate) fn $name(node: &File) -> Result<i32> {
            plain(node, of_ploop(NONE, $number, 0), 0)
        })+
    };
}

plain! {
    clear = 1;
    stop = 2;
    start = 3;
    track_stop = 7;
    track_abort = 8;
    sync = 11;
    merge = 12;
    discard_init = 23;
    discard_finish = 24;
    discard_wait = 25;
    drop_free_blocks = 26;
    freeze = 32;
    thaw = 33;
    unknown = 99;
}

macro_rules! with_argument {
    ($($name:ident($argument:ty) = $number:expr, $len:expr;)+) => {
        $(pub(crate) fn $name(node: &File, argument: &mut $argument) -> Result<i32> {
            call(node, of_ploop(WRITE, $number, $len), argument)
        })+
    };
}

with_argument! {
    add_delta(Control) = 0, CONTROL_LEN;
    snapshot(Control) = 4, CONTROL_LEN;
    delete_delta(u32) = 5, 4;
    replace_delta(Control) = 13, CONTROL_LEN;
    truncate(Truncation) = 14, 16;
    update_index(IndexUpdate) = 16, 8;
    grow(Control) = 17, CONTROL_LEN;
    free_blocks(FreeBlocks) = 18, 16;
    balloon(Balloon) = 19, 16;
    load_free_blocks(FreeBlocks) = 20, 16;
    relocate(Relocation) = 21, 16;
    get_device([u64; 1]) = 22, 8;
    dump_table(TableDump) = 34, 16;
}

/// `TRACK_INIT`: what has to be copied first, from where to where.
pub(crate) fn track_init(node: &File) -> Result<[u64; 2]> {
    let mut extent = [0; 2];
    call(node, of_ploop(READ, 6, 16), &mut extent).map(|_| extent)
}

/// `TRACK_SETPOS`: up to here everything was copied.
pub(crate) fn track_set_position(node: &File, position: u64) -> Result<i32> {
    call(node, of_ploop(WRITE, 9, 8), &mut [position])
}

/// `TRACK_READ`: the next part that has changed, from where to where.
pub(crate) fn track_read(node: &File) -> Result<[u64; 2]> {
    let mut extent = [0; 2];
    call(node, of_ploop(READ, 10, 16), &mut extent).map(|_| extent)
}

/// What the device is busy with: the driver's number of it.
pub(crate) fn busy_with(node: &File) -> Result<u32> {
    let mut balloon = Balloon {
        keep: 1,
        ..Balloon::default()
    };
    self::balloon(node, &mut balloon)?;
    Ok(balloon.kind)
}

/// `MERGE` in a thread of its own, until it ends or a signal ends it.
pub(crate) struct Merging(std::thread::JoinHandle<Result<i32>>);

extern "C" fn nothing(_: c_int) {}

impl Merging {
    pub(crate) fn start(node: &File) -> Merging {
        let node = node.try_clone().unwrap();
        // SAFETY: the handler does nothing. It is installed without SA_RESTART, so that calls end.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(c_int) as libc::sighandler_t;
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut());
        }
        Merging(std::thread::spawn(move || merge(&node)))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    /// Sends a signal to the thread until the call has ended.
    pub(crate) fn interrupt(self) -> Result<i32> {
        use std::os::unix::thread::JoinHandleExt;
        while !self.0.is_finished() {
            // SAFETY: the thread was not joined yet, and the signal has a handler.
            unsafe { libc::pthread_kill(self.0.as_pthread_t(), libc::SIGUSR2) };
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.0.join().unwrap()
    }
}

/// How many free clusters are left of those in stretches of at least `shortest`.
pub(crate) fn filter_free_blocks(node: &File, shortest: u64) -> Result<i32> {
    plain(node, of_ploop(READ, 27, 8), shortest)
}

/// `struct blk_user_cbt_info` with room for the extents that a call may have: start, length and a zero each, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ChangedBlocks {
    pub(crate) uuid: [u8; 16],
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) block_size: u32,
    pub(crate) flags: u32,
    pub(crate) mapped: u32,
    pub(crate) count: u32,
    pub(crate) reserved: u32,
    pub(crate) padding: u32,
    pub(crate) extents: [[u64; 3]; 512],
}

impl ChangedBlocks {
    pub(crate) const ONCE: u32 = 1;
    pub(crate) const NEW_UUID: u32 = 2;

    pub(crate) fn new(uuid: u8) -> ChangedBlocks {
        ChangedBlocks {
            uuid: [uuid; 16],
            start: 0,
            length: 0,
            block_size: 0,
            flags: 0,
            mapped: 0,
            count: 0,
            reserved: 0,
            padding: 0,
            extents: [[0; 3]; 512],
        }
    }
}

// SAFETY: numbers only.
unsafe impl Plain for ChangedBlocks {}

const fn of_changed_blocks(direction: c_ulong, which: c_ulong) -> c_ulong {
    number(direction, 0x12, which, 56)
}

/// `BLKCBTSTART`.
pub(crate) fn start_changed_blocks(node: &File, info: &mut ChangedBlocks) -> Result<i32> {
    call(node, of_changed_blocks(READ, 200), info)
}

/// `BLKCBTSTOP`.
pub(crate) fn stop_changed_blocks(node: &File) -> Result<i32> {
    plain(node, number(NONE, 0x12, 201, 0), 0)
}

/// `BLKCBTGET`.
pub(crate) fn changed_blocks(node: &File, info: &mut ChangedBlocks) -> Result<i32> {
    call(node, of_changed_blocks(READ | WRITE, 202), info)
}

/// `BLKCBTSET`, or `BLKCBTCLR`.
pub(crate) fn set_changed_blocks(
    node: &File,
    info: &mut ChangedBlocks,
    changed: bool,
) -> Result<i32> {
    let which = if changed { 203 } else { 204 };
    call(node, of_changed_blocks(READ, which), info)
}

/// `BLKRRPART`.
pub(crate) fn reread_partitions(node: &File) -> Result<i32> {
    plain(node, 0x125f, 0)
}

/// `BLKDISCARD`.
pub(crate) fn discard(node: &File, offset: u64, len: u64) -> Result<i32> {
    call(node, 0x1277, &mut [offset, len])
}

/// `EXT4_IOC_OPEN_BALLOON`, of the mount point.
pub(crate) fn open_balloon(mount_point: &File) -> Result<File> {
    let descriptor: c_int = plain(mount_point, number(NONE, b'f', 42, 0), 0)?;
    // SAFETY: it was opened for this process just now.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// `EXT4_IOC_SET_RSV_BLOCKS`, of the balloon.
pub(crate) fn set_reserved_blocks(balloon: &File, blocks: u64) -> Result<i32> {
    let mut argument = [blocks, 0];
    call(balloon, number(WRITE, b'f', 44, 8), &mut argument)
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// `fallocate` of 4096 bytes.
pub(crate) fn fallocate(file: &File, mode: c_int, offset: u64) -> Result<i32> {
    // SAFETY: numbers only.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, 4096) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// `truncate`, by the path.
pub(crate) fn truncate_path(path: &Path, len: u64) -> Result<i32> {
    let path = c_string(path);
    // SAFETY: a C string.
    let result = unsafe { libc::truncate(path.as_ptr(), len as i64) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// Makes a block device's node.
pub(crate) fn make_node(path: &Path, major: u32, minor: u32) -> Result<i32> {
    let name = c_string(path);
    // SAFETY: the name is a C string.
    let result = unsafe {
        libc::mknod(
            name.as_ptr(),
            libc::S_IFBLK | 0o600,
            libc::makedev(major, minor),
        )
    };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// `mount`, with a file system's type.
pub(crate) fn mount(
    source: &Path,
    target: &Path,
    kind: &str,
    flags: c_ulong,
    data: &str,
) -> Result<i32> {
    let (source, target) = (c_string(source), c_string(target));
    let (kind, data) = (CString::new(kind).unwrap(), CString::new(data).unwrap());
    // SAFETY: C strings all of them.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// `umount2`.
pub(crate) fn unmount(target: &Path, flags: c_int) -> Result<i32> {
    let target = c_string(target);
    // SAFETY: a C string.
    let result = unsafe { libc::umount2(target.as_ptr(), flags) };
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

/// What is read and written at once, past the cache.
const AT_ONCE: usize = 64 << 10;

#[repr(C, align(4096))]
struct Pages([u8; AT_ONCE]);

/// Reads `len` bytes, a multiple of 4096, as they are on the disk: past the cache.
pub(crate) fn read_direct(path: &Path, offset: u64, len: usize) -> Result<Vec<u8>> {
    let file = open(path, false, true)?;
    let mut bytes = Vec::with_capacity(len);
    let mut pages = Box::new(Pages([0; AT_ONCE]));
    while bytes.len() < len {
        let (at, part) = (offset + bytes.len() as u64, AT_ONCE.min(len - bytes.len()));
        // SAFETY: the buffer is as long as is said.
        let read = unsafe {
            let buffer = pages.0.as_mut_ptr().cast();
            libc::pread(file.as_raw_fd(), buffer, part, at as i64)
        };
        match read {
            1.. => bytes.extend_from_slice(&pages.0[..read as usize]),
            0 => panic!("{} ends at {at}", path.display()),
            _ => return Err(Errno::last()),
        }
    }
    Ok(bytes)
}

/// Writes pages of this byte past the cache, and brings them to the disk.
pub(crate) fn write_direct(path: &Path, offset: u64, len: usize, byte: u8) -> Result<()> {
    let file = open(path, true, true)?;
    let pages = Box::new(Pages([byte; AT_ONCE]));
    for at in (0..len).step_by(AT_ONCE) {
        let part = AT_ONCE.min(len - at);
        // SAFETY: the buffer is as long as is said.
        let written = unsafe {
            let buffer = pages.0.as_ptr().cast();
            libc::pwrite(file.as_raw_fd(), buffer, part, (offset + at as u64) as i64)
        };
        if written < 0 {
            return Err(Errno::last());
        }
        assert_eq!(written as usize, part);
    }
    file.sync_all()
        .map_err(|error| Errno(error.raw_os_error().unwrap_or_default()))
}

/// Opens a file by its error number.
pub(crate) fn open(path: &Path, write: bool, direct: bool) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .write(write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map_err(|error| Errno(error.raw_os_error().unwrap_or_default()))
}
