//! The block device behind ploopN: loop device, nodes, FUSE file, partition.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ploop_sandbox_wire as wire;
use rustix::io::Errno;

use crate::data::{self, Data, DataFileSystem};
use crate::ioctl::{self, PartitionChange};
use crate::loop_device::{self, LoopDevice};
use crate::mounts::{self, Mount};
use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, partition};

pub(crate) use crate::partition::Partition;

/// Minor numbers a device has: one of its own and one for each partition.
pub(crate) const MINORS: u32 = 16;

/// The number of the one partition that a ploop device has.
const FIRST: u32 = 1;

/// The block device behind ploopN. Dropping it removes all of it.
pub(crate) struct Block {
    index: u32,
    sandbox: SandboxDirectory,
    device: LoopDevice,
    data: Weak<dyn Data>,
    partition: Mutex<Seen>,
    file: Option<fuse::Mounted>,
}

/// What is known of the partition.
#[derive(Default)]
struct Seen {
    /// As last seen; the kernel's view counts while the device is attached.
    partition: Option<Partition>,
    /// The device was attached, and nobody has opened it or asked for the table to be read since.
    unread: bool,
}

impl Block {
    /// Makes the device, unbound. [`io::ErrorKind::AlreadyExists`] where the loop device of that
    /// number is somebody else's. The block does not keep `data` alive.
    pub(crate) fn create(
        index: u32,
        sandbox: &SandboxDirectory,
        data: Arc<dyn Data>,
    ) -> io::Result<Block> {
        let device = LoopDevice::new(index, &sandbox.real_virtual());
        if device.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        sandbox.note_loop(index)?;
        if let Err(error) = device.add() {
            sandbox.forget_loop(index);
            return Err(error);
        }
        // From here on, dropping removes what there is.
        let mut block = Block {
            index,
            sandbox: sandbox.clone(),
            device,
            data: Arc::downgrade(&data),
            partition: Mutex::default(),
            file: None,
        };
        let directory = sandbox.data(index);
        fs::create_dir(&directory)?;
        let file_system = DataFileSystem::new(&data);
        block.file = Some(fuse::mount(file_system, &directory, data::THREADS)?);
        loop_device::make_node(&block.node(), block.device.number()?)?;
        Ok(block)
    }

    /// START: binds the device to the data. As in the driver, a partition that has stayed from before is there at once;
    /// another one is found by the first who opens the device.
    pub(crate) fn attach(&self, read_only: bool) -> io::Result<()> {
        let path = self.sandbox.data(self.index).join(data::FILE);
        let file = File::options().read(true).write(!read_only).open(&path)?;
        let device = loop_device::open(&self.node(), !read_only, false)?;
        let name = path.as_os_str().as_bytes();
        ioctl::loop_configure(&device, file.as_fd(), name, read_only)?;
        let stayed = {
            let mut seen = self.lock_partition();
            seen.unread = seen.partition.is_none();
            !seen.unread
        };
        if !stayed {
            return Ok(());
        }
        if let Err(error) = self.set_partition(&device, false) {
            // Without its partition a device is of no use.
            let _ = ioctl::loop_clear(&device);
            return Err(error);
        }
        Ok(())
    }

    /// STOP. EBUSY if anybody has the device or its partition open, claimed or mounted.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let device = loop_device::open(&self.node(), false, true)?;
        if is_unbound(ioctl::loop_status(&device).err()) {
            return Ok(());
        }
        // Once unbound, what is still in the page cache has nowhere to go. Where it cannot be written
        // either, the device is none the less let go of.
        if let Err(error) = device.sync_all() {
            eprintln!(
                "ploop-sandbox: ploop{} is stopped without what was last written: {error}",
                self.index
            );
        }
        self.partition();
        ioctl::loop_clear(&device)?;
        if let Ok(status) = ioctl::loop_status(&device) {
            // Somebody else has it open: it would be unbound when they leave.
            ioctl::loop_set_status(&device, status.without_autoclear())?;
            return Err(Errno::BUSY.into());
        }
        let mut seen = self.lock_partition();
        seen.unread = false;
        if self.device.partition(FIRST).is_some() {
            let change = PartitionChange::Delete;
            // First, for the number may soon be another device's. Where there can be no such node, there is none.
            if seen.partition.is_none() || self.make_dead_node().is_err() {
                let _ = fs::remove_file(self.partition_node());
            }
            loop_device::change_partition(&device, change, FIRST, (0, 0))?;
        }
        Ok(())
    }

    /// After [`Data::size`] changed.
    pub(crate) fn resized(&self) -> io::Result<()> {
        // The kernel takes the size from what it last heard of the file.
        fs::metadata(self.sandbox.data(self.index).join(data::FILE))?;
        ioctl::loop_set_capacity(loop_device::open(&self.node(), false, false)?)
    }

    /// BLKRRPART: tells the kernel of what the partition table on the device says. EBUSY if the partition is open or
    /// mounted.
    pub(crate) fn reread_partitions(&self) -> io::Result<()> {
        let device = loop_device::open(&self.node(), false, false)?;
        // Whoever wrote the table may have left it in the page cache.
        device.sync_all()?;
        self.set_partition(&device, true)
    }

    /// Whether [`Block::opened`] has something to do that the device must not be stopped meanwhile for.
    pub(crate) fn is_unread(&self) -> bool {
        self.lock_partition().unread
    }

    /// A program has opened the whole device. The first to do so after START finds the partition; where the device is
    /// empty, the one of before is gone.
    pub(crate) fn opened(&self) -> io::Result<()> {
        if self.device.backing_file().is_none() {
            let mut seen = self.lock_partition();
            seen.partition = None;
            return self.put_node(&seen);
        }
        if !self.is_unread() {
            return Ok(());
        }
        let device = loop_device::open(&self.node(), false, false)?;
        self.set_partition(&device, false)
    }

    /// `anew`: even if it is the same, so that it must not be in use.
    fn set_partition(&self, device: &File, anew: bool) -> io::Result<()> {
        let data = self.data.upgrade().ok_or(Errno::NODEV)?;
        let wanted = partition::find(FIRST, data.size(), |buffer, at| data.read(buffer, at));
        let mut seen = self.lock_partition();
        let change = |change, partition: Partition| {
            let range = (partition.start, partition.size);
            loop_device::change_partition(device, change, FIRST, range)
        };
        // The node does not lead to a partition that is gone: its number may soon be another device's.
        let delete = |seen: &Seen, there| {
            self.make_dead_node()?;
            change(PartitionChange::Delete, there).inspect_err(|_| {
                let _ = self.put_node(seen);
            })
        };
        match (self.kernel_partition(), wanted) {
            (Some(there), Some(wanted)) if !anew && there == wanted => {}
            (Some(there), Some(wanted)) if !anew && there.start == wanted.start => {
                change(PartitionChange::Resize, wanted)?;
            }
            (there, wanted) => {
                if let Some(there) = there {
                    delete(&seen, there)?;
                }
                if let Some(wanted) = wanted {
                    change(PartitionChange::Add, wanted)?;
                }
            }
        }
        seen.partition = wanted;
        seen.unread = false;
        self.put_node(&seen)
    }

    /// The partition as sysfs shows it: it outlives [`Block::detach`], until the next attach.
    pub(crate) fn partition(&self) -> Option<Partition> {
        let mut seen = self.lock_partition();
        // libploop and parted change partitions by themselves.
        if self.device.backing_file().is_some() {
            seen.partition = self.kernel_partition();
        }
        seen.partition
    }

    fn kernel_partition(&self) -> Option<Partition> {
        let (start, size) = self.device.partition(FIRST)?;
        Some(Partition { start, size })
    }

    /// How often the device and its partition are open: by descriptors and mounts.
    pub(crate) fn openers(&self) -> u32 {
        let (whole, first) = (self.node(), self.partition_node());
        let own = std::process::id().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let descriptors = processes
            .filter(|process| {
                let name = process.file_name();
                name.as_bytes()[0].is_ascii_digit() && name.as_bytes() != own.as_bytes()
            })
            .flat_map(|process| {
                fs::read_dir(process.path().join("fd"))
                    .into_iter()
                    .flatten()
            })
            .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
            .filter(|to| *to == whole || *to == first)
            .count();
        // A file system opens its device once, wherever it is mounted.
        let mounted: HashSet<_> = self.mount_lines().into_iter().map(|m| m.device).collect();
        (descriptors + mounted.len()) as u32
    }

    /// Which real devices stand behind the nodes. Its balloon's inode is not known here.
    pub(crate) fn alias(&self) -> wire::Alias {
        let partition = self.device.partition_number(FIRST);
        // parted makes the partition anew: the node follows. A node that cannot be made is missed
        // by whoever opens it.
        let _ = self.put_node(&self.lock_partition());
        wire::Alias {
            device: self.index,
            whole: self.device.number().unwrap_or_default(),
            partition,
            balloon_inode: None,
        }
    }

    /// Where the device or its partition is mounted.
    fn mount_lines(&self) -> Vec<Mount> {
        let whole = self.device.number().ok();
        let first = self.device.partition_number(FIRST);
        let mut lines = mounts::current().unwrap_or_default();
        lines.retain(|mount| Some(mount.device) == whole || Some(mount.device) == first);
        lines
    }

    /// Freezes every file system mounted from the device, until the result is dropped. No lock
    /// that reading or writing takes may be held.
    pub(crate) fn freeze(&self) -> io::Result<Frozen> {
        let mut frozen = Frozen(Vec::new());
        let mut done = Vec::new();
        for mount in self.mount_lines() {
            if done.contains(&mount.device) {
                continue;
            }
            let directory = File::open(&mount.point)?;
            let (major, minor) = mount.device;
            if directory.metadata()?.dev() != rustix::fs::makedev(major, minor) {
                // Something else is mounted over it.
                continue;
            }
            match ioctl::freeze(&directory) {
                Ok(()) => frozen.0.push(directory),
                // Frozen already, read-only, or a file system that cannot.
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::BUSY | Errno::INVAL | Errno::OPNOTSUPP)
                    ) => {}
                Err(error) => return Err(error),
            }
            done.push(mount.device);
        }
        Ok(frozen)
    }

    fn node(&self) -> PathBuf {
        Path::new("/dev").join(format!("ploop{}", self.index))
    }

    fn partition_node(&self) -> PathBuf {
        Path::new("/dev").join(format!("ploop{}p{FIRST}", self.index))
    }

    /// Has the partition's node be what the partition is: of the kernel's, if it has it; else one that leads nowhere,
    /// if sysfs shows a partition that has stayed; else none.
    fn put_node(&self, seen: &Seen) -> io::Result<()> {
        let node = self.partition_node();
        let there = fs::symlink_metadata(&node).ok();
        let number = match (self.device.partition_number(FIRST), seen.partition) {
            (Some(number), _) => number,
            (None, Some(_)) => self.dead_number(),
            (None, None) if there.is_some() => return fs::remove_file(&node),
            (None, None) => return Ok(()),
        };
        let device = rustix::fs::makedev(number.0, number.1);
        let is_right = there
            .is_some_and(|there| there.file_type().is_block_device() && there.rdev() == device);
        if is_right {
            return Ok(());
        }
        loop_device::make_node(&node, number)
    }

    /// Opening it gives ENXIO, as with an empty device of the driver's.
    fn make_dead_node(&self) -> io::Result<()> {
        loop_device::make_node(&self.partition_node(), self.dead_number())
    }

    /// The partition's number in the driver, which this kernel has not got.
    fn dead_number(&self) -> (u32, u32) {
        (wire::MAJOR, self.index * MINORS + FIRST)
    }

    fn lock_partition(&self) -> MutexGuard<'_, Seen> {
        self.partition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.device.backing_file().is_some() {
            // Whoever has it open keeps it; the launcher removes what is left.
            let _ = loop_device::open(&self.node(), false, false).and_then(ioctl::loop_clear);
        }
        drop(self.file.take());
        let _ = fs::remove_dir(self.sandbox.data(self.index));
        let _ = fs::remove_file(self.partition_node());
        let _ = fs::remove_file(self.node());
        if self.device.remove(Duration::from_secs(2)).is_ok() {
            self.sandbox.forget_loop(self.index);
        }
    }
}

/// Whether that is what an ioctl of a loop device says that has no file.
fn is_unbound(error: Option<io::Error>) -> bool {
    error.is_some_and(|error| Errno::from_io_error(&error) == Some(Errno::NXIO))
}

/// File systems that are frozen. Dropping it thaws them.
pub(crate) struct Frozen(Vec<File>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Thawed by somebody else is thawed.
            let _ = ioctl::thaw(directory);
        }
    }
}
