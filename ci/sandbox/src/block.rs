//! The block device of ploopN: a loop device, its nodes, the FUSE file behind it, its partition.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ploop_sandbox_wire as wire;
use rustix::io::Errno;

use crate::fuse::{Connection, Mounted};
use crate::ioctl::{self, PartitionChange};
use crate::lock::lock;
use crate::loop_device::{self, LoopDevice};
use crate::mounts::{self, Mount};
use crate::sandbox_directory::SandboxDirectory;
use crate::virtual_disk::{self, DiskFileSystem, VirtualDisk};
use crate::{partition, processes};

pub(crate) use crate::partition::Partition;

/// The minor numbers of a device: one for the device and one for each partition.
pub(crate) const MINORS: u32 = 16;

/// The number of the one partition that a ploop device has.
const FIRST: u32 = 1;

/// Where the file of a device begins that is not attached: behind every end, so that the device is empty. A loop device
/// without a file would be given to whoever asks the kernel for a free one (`losetup -f`, `mount -o loop`).
const BEHIND_THE_END: u64 = 1 << 62;

/// The block device of ploopN. Dropping it removes all of it.
pub(crate) struct BlockDevice {
    index: u32,
    sandbox: SandboxDirectory,
    device: LoopDevice,
    data: Weak<dyn VirtualDisk>,
    state: Mutex<State>,
    file: Option<Mounted>,
}

/// What is known about the device and its partition.
#[derive(Default)]
struct State {
    /// Between START and STOP.
    attached: bool,
    /// The partition as it was last seen. While the device is attached, the kernel's view counts.
    partition: Option<Partition>,
    /// The partition table has to be read at the next open of the device.
    unread: bool,
}

impl BlockDevice {
    /// Makes the device, empty. [`io::ErrorKind::AlreadyExists`] if there is a loop device of that number, or it
    /// has become somebody else's. The block does not keep `data` alive.
    pub(crate) fn create(
        index: u32,
        sandbox: &SandboxDirectory,
        data: Arc<dyn VirtualDisk>,
    ) -> io::Result<BlockDevice> {
        let device = LoopDevice::new(index, &sandbox.real_virtual());
        if device.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        sandbox.note_loop(index)?;
        if let Err(error) = device.add() {
            sandbox.forget_loop(index);
            return Err(error);
        }
        // From here on, dropping the block removes what there is.
        let mut block = BlockDevice {
            index,
            sandbox: sandbox.clone(),
            device,
            data: Arc::downgrade(&data),
            state: Mutex::default(),
            file: None,
        };
        let directory = sandbox.data(index);
        fs::create_dir(&directory)?;
        let connection = Connection::open()?;
        let file_system = DiskFileSystem::new(&data, &connection)?;
        let threads = virtual_disk::THREADS;
        block.file = Some(connection.mount(file_system, &directory, threads)?);
        loop_device::make_node(&block.node(), block.device.number()?)?;
        match block.bind_empty() {
            Ok(_) => Ok(block),
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            Err(error) => Err(error),
        }
    }

    /// For `PLOOP_IOC_START`: the loop device shows the FUSE file. As in the driver, a partition that has stayed from
    /// before is there at once; another one is found at the first open of the device.
    pub(crate) fn attach(&self, read_only: bool) -> io::Result<()> {
        let mut device = loop_device::open(&self.node(), false, false)?;
        let mut status = ioctl::loop_status(&device);
        if is_unbound(status.as_ref().err()) {
            // STOP did not get it back.
            device = self.bind_empty()?;
            status = ioctl::loop_status(&device);
        }
        let status = status?;
        if status.lo_offset != BEHIND_THE_END {
            // It has become somebody else's.
            return Err(Errno::BUSY.into());
        }
        ioctl::set_read_only(&device, read_only)?;
        self.refresh_size()?;
        ioctl::loop_set_offset(&device, status, 0)?;
        let unread = {
            let mut state = lock(&self.state);
            state.attached = true;
            state.unread = state.partition.is_none();
            state.unread
        };
        if unread {
            return Ok(());
        }
        if let Err(error) = self.set_partition(&device, false) {
            // A device without its partition is of no use.
            lock(&self.state).attached = false;
            let _ = ioctl::set_read_only(&device, false);
            let _ = ioctl::loop_set_offset(&device, status, BEHIND_THE_END);
            return Err(error);
        }
        Ok(())
    }

    /// Binds the loop device, which has no file, so that it is empty.
    fn bind_empty(&self) -> io::Result<File> {
        let path = self.disk();
        let file = File::options().read(true).write(true).open(&path)?;
        let device = loop_device::open(&self.node(), false, false)?;
        ioctl::set_read_only(&device, false)?;
        drop(device);
        let device = loop_device::open(&self.node(), true, false)?;
        let name = path.as_os_str().as_bytes();
        ioctl::loop_configure(&device, file.as_fd(), name, BEHIND_THE_END)?;
        Ok(device)
    }

    /// For `PLOOP_IOC_STOP`: unbinds the loop device. EBUSY if the device or its partition is open, claimed or mounted.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let device = loop_device::open(&self.node(), false, true)?;
        if !lock(&self.state).attached {
            return Ok(());
        }
        // What is still in the page cache afterwards is lost. A device that cannot be written to is stopped all the
        // same.
        if let Err(error) = device.sync_all() {
            eprintln!(
                "ploop-sandbox: ploop{} is stopped, and what was last written to it is lost: {error}",
                self.index
            );
        }
        self.partition();
        ioctl::loop_clear(&device)?;
        if let Ok(status) = ioctl::loop_status(&device) {
            // Another process has it open. The kernel would unbind it when that process closes it.
            ioctl::loop_stay_bound(&device, status)?;
            return Err(Errno::BUSY.into());
        }
        let mut state = lock(&self.state);
        state.unread = false;
        if self.device.partition(FIRST).is_some() {
            let change = PartitionChange::Delete;
            // Before the partition goes, because another device may get its number. Where no dead node can be made, the
            // node goes.
            if state.partition.is_none() || self.make_dead_node().is_err() {
                let _ = fs::remove_file(self.partition_node());
            }
            loop_device::change_partition(&device, change, FIRST, (0, 0))?;
        }
        state.attached = false;
        // Only now it has no file.
        drop(device);
        if let Err(error) = self.bind_empty() {
            // The next START tries again.
            eprintln!("ploop-sandbox: ploop{} has no file: {error}", self.index);
        }
        Ok(())
    }

    /// Has the kernel take the new [`VirtualDisk::size`].
    pub(crate) fn resized(&self) -> io::Result<()> {
        self.refresh_size()?;
        ioctl::loop_set_capacity(loop_device::open(&self.node(), false, false)?)
    }

    /// The loop driver takes the size from the kernel's inode, which this refreshes.
    fn refresh_size(&self) -> io::Result<()> {
        fs::metadata(self.disk()).map(drop)
    }

    /// `BLKRRPART`: reads the partition table and tells the kernel of the partition. EBUSY if it is open or mounted.
    pub(crate) fn reread_partitions(&self) -> io::Result<()> {
        let device = loop_device::open(&self.node(), false, false)?;
        // The table may still be in the page cache.
        device.sync_all()?;
        self.set_partition(&device, true)
    }

    /// Whether [`BlockDevice::opened`] has to read the table. The device must not be stopped meanwhile.
    pub(crate) fn is_unread(&self) -> bool {
        lock(&self.state).unread
    }

    /// A program has opened the whole device. The first open after START finds the partition. An open of an empty
    /// device removes the partition that has stayed.
    pub(crate) fn opened(&self) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            if !state.attached {
                state.partition = None;
                return self.update_node(&state);
            }
        }
        if !self.is_unread() {
            return Ok(());
        }
        let device = loop_device::open(&self.node(), false, false)?;
        self.set_partition(&device, false)
    }

    /// Reads the table and tells the kernel of the partition. `replace`: also where it has not changed, so that it must
    /// not be in use.
    fn set_partition(&self, device: &File, replace: bool) -> io::Result<()> {
        let data = self.data.upgrade().ok_or(Errno::NODEV)?;
        let wanted = partition::find(FIRST, data.size(), |buffer, at| data.read(buffer, at));
        let mut state = lock(&self.state);
        let change = |change, partition: Partition| {
            let range = (partition.start, partition.size);
            loop_device::change_partition(device, change, FIRST, range)
        };
        // The node must not name a partition that is gone, because another device may get its number.
        let delete = |state: &State, there| {
            self.make_dead_node()?;
            change(PartitionChange::Delete, there).inspect_err(|_| {
                let _ = self.update_node(state);
            })
        };
        match (self.kernel_partition(), wanted) {
            (Some(there), Some(wanted)) if !replace && there == wanted => {}
            (Some(there), Some(wanted)) if !replace && there.start == wanted.start => {
                change(PartitionChange::Resize, wanted)?;
            }
            (there, wanted) => {
                if let Some(there) = there {
                    delete(&state, there)?;
                }
                if let Some(wanted) = wanted {
                    change(PartitionChange::Add, wanted)?;
                }
            }
        }
        state.partition = wanted;
        state.unread = false;
        self.update_node(&state)
    }

    /// The partition as sysfs shows it. It stays after [`BlockDevice::detach`].
    pub(crate) fn partition(&self) -> Option<Partition> {
        let mut state = lock(&self.state);
        // libploop and parted change the kernel's partition themselves.
        if state.attached {
            state.partition = self.kernel_partition();
        }
        state.partition
    }

    fn kernel_partition(&self) -> Option<Partition> {
        let (start, size) = self.device.partition(FIRST)?;
        Some(Partition { start, size })
    }

    /// How often the device and its partition are open, by descriptors and mounts.
    pub(crate) fn openers(&self) -> u32 {
        let (whole, first) = (self.node(), self.partition_node());
        let descriptors = processes::all()
            .filter(|process| *process != std::process::id())
            .flat_map(|process| fs::read_dir(format!("/proc/{process}/fd")))
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
            .filter(|to| *to == whole || *to == first)
            .count();
        // A file system opens its device once, however often it is mounted.
        let mounted: HashSet<_> = self.mount_lines().into_iter().map(|m| m.device).collect();
        (descriptors + mounted.len()) as u32
    }

    /// The real devices behind the nodes. The balloon's inode is not known here.
    pub(crate) fn alias(&self) -> wire::Alias {
        let partition = self.device.partition_number(FIRST);
        // parted gives the partition a new number, so the node may have to be made again. Without it, an open of it
        // fails.
        let _ = self.update_node(&lock(&self.state));
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

    /// Freezes file systems mounted from the device until the result is dropped. The caller must hold no lock that a
    /// read or write takes.
    pub(crate) fn freeze(&self, what: Freeze) -> io::Result<Frozen> {
        let mut frozen = Frozen(Vec::new());
        let mut done = Vec::new();
        let only = match what {
            Freeze::Everything => None,
            Freeze::Whole => Some(self.device.number().ok()),
            Freeze::Partition => Some(self.device.partition_number(FIRST)),
        };
        for mount in self.mount_lines() {
            let is_other = only.is_some_and(|only| only != Some(mount.device));
            if is_other || done.contains(&mount.device) {
                continue;
            }
            let directory = File::open(&mount.point)?;
            let (major, minor) = mount.device;
            if directory.metadata()?.dev() != rustix::fs::makedev(major, minor) {
                // Another file system is mounted over it.
                continue;
            }
            match ioctl::freeze(&directory) {
                Ok(()) => frozen.0.push(directory),
                // It is frozen already, read-only, or cannot be frozen.
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

    /// The FUSE file with the virtual disk.
    fn disk(&self) -> PathBuf {
        self.sandbox.data(self.index).join(virtual_disk::FILE)
    }

    fn node(&self) -> PathBuf {
        Path::new("/dev").join(format!("ploop{}", self.index))
    }

    fn partition_node(&self) -> PathBuf {
        Path::new("/dev").join(format!("ploop{}p{FIRST}", self.index))
    }

    /// Makes the partition's node as it has to be: with the number of the kernel's partition; or a dead one, where only
    /// sysfs shows a partition; or none.
    fn update_node(&self, state: &State) -> io::Result<()> {
        let node = self.partition_node();
        let there = fs::symlink_metadata(&node).ok();
        let number = match (self.device.partition_number(FIRST), state.partition) {
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

    /// Makes a node whose open fails with ENXIO, as with an empty device of the driver.
    fn make_dead_node(&self) -> io::Result<()> {
        loop_device::make_node(&self.partition_node(), self.dead_number())
    }

    /// The partition's number in the driver. This kernel has no driver of that number.
    fn dead_number(&self) -> (u32, u32) {
        (wire::MAJOR, self.index * MINORS + FIRST)
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // Fails where it is in use; the launcher removes it later.
        let _ = loop_device::open(&self.node(), false, false).and_then(|device| {
            let is_empty = ioctl::loop_status(&device)?.lo_offset == BEHIND_THE_END;
            if is_empty || lock(&self.state).attached {
                ioctl::loop_clear(device)?;
            }
            Ok(())
        });
        drop(self.file.take());
        let _ = fs::remove_dir(self.sandbox.data(self.index));
        let _ = fs::remove_file(self.partition_node());
        let _ = fs::remove_file(self.node());
        if self.device.remove(Duration::from_secs(2)).is_ok() {
            self.sandbox.forget_loop(self.index);
        }
    }
}

/// Whether this is the error of a loop device that is not bound to a file.
fn is_unbound(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| Errno::from_io_error(error) == Some(Errno::NXIO))
}

/// Which file systems to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// That of the whole device, and that of its partition.
    Everything,
    Whole,
    Partition,
}

/// File systems that are frozen. Dropping it thaws them.
pub(crate) struct Frozen(Vec<File>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Fails where somebody else has thawed it.
            let _ = ioctl::thaw(directory);
        }
    }
}
