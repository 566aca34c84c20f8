//! Loop devices, the kernel's block devices behind ploop's nodes: made, bound, opened, removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};

use crate::ioctl::{self, PartitionChange};
use crate::mounts::number;

const CONTROL: &str = "/dev/loop-control";

/// A loop device, by its number.
#[derive(Debug, Clone)]
pub(crate) struct LoopDevice {
    index: u32,
    /// Its directory in the real sysfs.
    sysfs: PathBuf,
}

impl LoopDevice {
    /// `sysfs` is the real `/sys/devices/virtual/block`.
    pub(crate) fn new(index: u32, sysfs: &Path) -> LoopDevice {
        LoopDevice {
            index,
            sysfs: sysfs.join(format!("loop{index}")),
        }
    }

    /// Makes it. [`io::ErrorKind::AlreadyExists`] if it is there.
    pub(crate) fn add(&self) -> io::Result<()> {
        ioctl::loop_add(control()?, self.index)
    }

    pub(crate) fn exists(&self) -> bool {
        self.sysfs.exists()
    }

    /// Removes it. Tries for some time, because udev may have it open.
    pub(crate) fn remove(&self, timeout: Duration) -> io::Result<()> {
        let control = control()?;
        let until = Instant::now() + timeout;
        loop {
            match ioctl::loop_remove(&control, self.index) {
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) =>
                {
                    return Ok(());
                }
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    /// Its device number.
    pub(crate) fn number(&self) -> io::Result<(u32, u32)> {
        read_number(&self.sysfs.join("dev"))
    }

    /// The numbers of the device and its first partition, where they are there.
    pub(crate) fn numbers(&self) -> Vec<(u32, u32)> {
        let whole = self.number().ok();
        whole.into_iter().chain(self.partition_number(1)).collect()
    }

    /// The device number of a partition that the kernel knows.
    pub(crate) fn partition_number(&self, partition: u32) -> Option<(u32, u32)> {
        read_number(&self.partition_directory(partition).join("dev")).ok()
    }

    /// Start and size of a partition that the kernel knows, in sectors.
    pub(crate) fn partition(&self, partition: u32) -> Option<(u64, u64)> {
        let directory = self.partition_directory(partition);
        let read = |name| {
            fs::read_to_string(directory.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Some((read("start")?, read("size")?))
    }

    fn partition_directory(&self, partition: u32) -> PathBuf {
        self.sysfs.join(format!("loop{}p{partition}", self.index))
    }

    /// The file that it is bound to.
    pub(crate) fn backing_file(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.sysfs.join("loop/backing_file")).ok()?;
        Some(PathBuf::from(text.trim_end_matches('\n')))
    }

    /// Opens the device by a temporary node, where `/dev` may have none for it.
    pub(crate) fn open_without_node(&self) -> io::Result<File> {
        let node = Path::new("/dev").join(format!(".ploop-sandbox-{}", self.index));
        make_node(&node, self.number()?)?;
        let file = File::open(&node);
        fs::remove_file(&node)?;
        file
    }
}

/// Makes the node of a block device, for root only; replaces what is there.
pub(crate) fn make_node(path: &Path, (major, minor): (u32, u32)) -> io::Result<()> {
    if let Err(error) = fs::remove_file(path) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::BlockDevice, mode, device)?;
    Ok(())
}

/// Opens a device for ioctls; `exclusive` fails with EBUSY where it is mounted or claimed.
pub(crate) fn open(node: &Path, writable: bool, exclusive: bool) -> io::Result<File> {
    let flags = if exclusive {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    File::options()
        .read(true)
        .write(writable)
        .custom_flags(flags.bits() as i32)
        .open(node)
}

/// Adds, deletes or resizes a partition; start and size in sectors.
pub(crate) fn change_partition(
    device: &File,
    change: PartitionChange,
    number: u32,
    (start, size): (u64, u64),
) -> io::Result<()> {
    let bytes = |sectors: u64| {
        sectors
            .checked_mul(512)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    ioctl::change_partition(device, change, number, bytes(start)?, bytes(size)?)
}

fn control() -> io::Result<File> {
    File::options().read(true).write(true).open(CONTROL)
}

fn read_number(file: &Path) -> io::Result<(u32, u32)> {
    number(&fs::read_to_string(file)?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} holds no device number", file.display()),
        )
    })
}
