//! A device of the driver's, by its ioctls and its files in sysfs. What is attached is detached in the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::ioctl::{self, Control, Errno, Result};

pub(crate) const MAJOR: u32 = 182;

/// `pstate/top` of a device without deltas.
pub(crate) const NO_TOP: &str = "4294967295";

/// How a delta is added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    ReadOnly,
    Writable,
}

/// The numbers of all devices, in order.
pub(crate) fn devices() -> Vec<u32> {
    let mut numbers: Vec<u32> = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name();
            name.to_str()?.strip_prefix("ploop")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

pub(crate) fn sysfs(device: u32, path: &str) -> PathBuf {
    Path::new("/sys/block")
        .join(format!("ploop{device}"))
        .join(path)
}

/// What is in a file of a device, without the newline.
#[track_caller]
pub(crate) fn attribute(device: u32, path: &str) -> String {
    let path = sysfs(device, path);
    match fs::read_to_string(&path) {
        Ok(text) => text.strip_suffix('\n').map(str::to_owned).unwrap_or(text),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// A number in such a file.
#[track_caller]
pub(crate) fn number(device: u32, path: &str) -> u64 {
    let text = attribute(device, path);
    text.parse()
        .unwrap_or_else(|_| panic!("{path} is {text:?}"))
}

/// The images of a device, from the base up.
pub(crate) fn images(device: u32) -> Vec<PathBuf> {
    (0..128)
        .map(|level| sysfs(device, &format!("pdelta/{level}/image")))
        .map_while(|path| fs::read_to_string(path).ok())
        .map(|text| PathBuf::from(text.trim_end_matches('\n')))
        .collect()
}

/// The device whose base this is.
pub(crate) fn device_of(base: &Path) -> Option<u32> {
    devices()
        .into_iter()
        .find(|device| images(*device).first().is_some_and(|image| image == base))
}

/// A device that has images of this directory.
pub(crate) fn attached(directory: &Path) -> Option<u32> {
    let directory = directory.canonicalize().ok()?;
    devices().into_iter().find(|device| {
        images(*device)
            .iter()
            .any(|image| image.starts_with(&directory))
    })
}

pub(crate) fn node(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ploop{device}"))
}

pub(crate) fn partition_node(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ploop{device}p1"))
}

/// Asks for a device: it is nobody else's while the file is open.
pub(crate) fn reserve() -> (u32, File) {
    use std::io::Read;
    let mut file = File::open("/proc/vz/ploop_minor").unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let minor: u32 = text.trim_end_matches('\n').parse().unwrap();
    (minor / 16, file)
}

/// A device of our own.
pub(crate) struct Device {
    pub(crate) index: u32,
    node: Option<File>,
    _reservation: File,
}

impl Device {
    /// One without deltas.
    pub(crate) fn new() -> Device {
        let (index, reservation) = reserve();
        // libploop opens it like this, too.
        let node = File::open(node(index)).unwrap();
        Device {
            index,
            node: Some(node),
            _reservation: reservation,
        }
    }

    /// One that runs with these deltas, the base first, the last of them writable.
    #[track_caller]
    pub(crate) fn running(images: &[&Path]) -> Device {
        let device = Device::new();
        let (top, lower) = images.split_last().unwrap();
        for image in lower {
            device.add(image, Mode::ReadOnly).unwrap();
        }
        device.add(top, Mode::Writable).unwrap();
        ioctl::start(device.node()).unwrap();
        device
    }

    pub(crate) fn node(&self) -> &File {
        self.node.as_ref().unwrap()
    }

    /// Closes the node, for somebody else to have it alone.
    pub(crate) fn close(&mut self) {
        self.node = None;
    }

    pub(crate) fn open(&mut self) {
        self.node = Some(File::open(node(self.index)).unwrap());
    }

    pub(crate) fn path(&self) -> PathBuf {
        node(self.index)
    }

    /// Its partition's node. It is made where nobody else does.
    pub(crate) fn partition(&self) -> PathBuf {
        let path = partition_node(self.index);
        if !path.exists() {
            ioctl::make_node(&path, MAJOR, self.index * 16 + 1).unwrap();
        }
        path
    }

    #[track_caller]
    pub(crate) fn attribute(&self, path: &str) -> String {
        attribute(self.index, path)
    }

    #[track_caller]
    pub(crate) fn number(&self, path: &str) -> u64 {
        number(self.index, path)
    }

    pub(crate) fn add(&self, image: &Path, mode: Mode) -> Result<i32> {
        self.add_with(image, mode, |_| ())
    }

    /// `ADD_DELTA` with something changed in its argument.
    pub(crate) fn add_with(
        &self,
        image: &Path,
        mode: Mode,
        change: impl FnOnce(&mut Control),
    ) -> Result<i32> {
        // As libploop opens them, where the file system can.
        let open = |direct| ioctl::open(image, mode == Mode::Writable, direct);
        let file = open(true).or_else(|_| open(false)).unwrap();
        let mut control = Control::new(Some(&file));
        if mode == Mode::ReadOnly {
            control.flags |= Control::READ_ONLY;
        }
        change(&mut control);
        ioctl::add_delta(self.node(), &mut control)
    }

    pub(crate) fn snapshot(&self, image: &Path) -> Result<i32> {
        let file = ioctl::open(image, true, true).unwrap();
        ioctl::snapshot(self.node(), &mut Control::new(Some(&file)))
    }

    /// `GROW` to this many sectors.
    pub(crate) fn grow(&self, sectors: u32) -> Result<i32> {
        let mut control = Control::new(None);
        control.size = sectors;
        ioctl::grow(self.node(), &mut control)
    }

    pub(crate) fn delete(&self, mut level: u32) -> Result<i32> {
        ioctl::delete_delta(self.node(), &mut level)
    }

    /// `STOP`, once nothing that others do to every device (udev) is in the way.
    pub(crate) fn stop(&self) -> Result<i32> {
        patiently(|| ioctl::stop(self.node()))
    }

    /// `STOP` and `CLEAR`.
    #[track_caller]
    pub(crate) fn detach(&self) {
        self.stop().unwrap();
        ioctl::clear(self.node()).unwrap();
    }

    /// Writes pages of this byte.
    #[track_caller]
    pub(crate) fn write(&self, offset: u64, len: usize, byte: u8) {
        ioctl::write_direct(&self.path(), offset, len, byte).unwrap();
    }

    /// Whether all of this part is that byte.
    #[track_caller]
    pub(crate) fn is(&self, offset: u64, len: usize, byte: u8) -> bool {
        let bytes = ioctl::read_direct(&self.path(), offset, len).unwrap();
        bytes == vec![byte; len]
    }
}

/// Tries again for a while where it is busy.
pub(crate) fn patiently(mut call: impl FnMut() -> Result<i32>) -> Result<i32> {
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let result = call();
        if result != Err(Errno(libc::EBUSY)) || Instant::now() > end {
            return result;
        }
        thread::sleep(Duration::from_millis(30));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.node.is_none() {
            match File::open(self.path()) {
                Ok(node) => self.node = Some(node),
                Err(_) => return,
            }
        }
        let node = self.node();
        // In this order: each may keep the next from working.
        let _ = ioctl::thaw(node);
        let _ = ioctl::stop_changed_blocks(node);
        let _ = ioctl::discard_finish(node);
        let _ = ioctl::track_abort(node);
        let _ = ioctl::balloon(node, &mut ioctl::Balloon::default());
        // It is an error for one that does not run.
        let _ = self.stop();
        if let Err(error) = patiently(|| ioctl::clear(node)) {
            eprintln!("conformance: ploop{} stays attached: {error:?}", self.index);
        }
    }
}
