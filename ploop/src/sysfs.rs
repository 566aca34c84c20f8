//! The driver's devices and their deltas, read from sysfs: `/sys/block/ploop12345/{pstate,pdelta}`.
//!
//! Everything is read in bytes: paths of deltas need not be UTF-8. Deltas are compared by [`Identity`]: the driver may
//! have another path for a file, through a bind mount or a link.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::identity::Identity;
use crate::{Error, ErrorKind, Result};

const BLOCK: &str = "/sys/block";

/// A file that is there where the driver knows format version 2.
pub(crate) const LARGE_DISK_SUPPORT: &str = "/sys/module/ploop/parameters/large_disk_support";

/// `pstate/top` of a device without deltas.
const NO_DELTA: &[u8] = b"4294967295";

/// A device of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// `ploop12345`.
    pub(crate) name: OsString,
    /// `pstate/running`. `false` while it is attached or detached, and where the program that did so has died.
    pub(crate) runs: bool,
    /// `pstate/cookie`: the component name, or empty.
    pub(crate) component: Vec<u8>,
    /// The base first.
    pub(crate) deltas: Vec<Delta>,
}

/// A delta of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    /// The driver's path for the file.
    pub(crate) path: PathBuf,
    /// `None` where no file has the path: it was unlinked, its mount is gone, or the path is that of another mount
    /// namespace.
    pub(crate) identity: Option<Identity>,
    pub(crate) read_only: bool,
}

impl Device {
    /// `/dev/ploop12345`.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    pub(crate) fn base(&self) -> Option<&Delta> {
        self.deltas.first()
    }

    pub(crate) fn top(&self) -> Option<&Delta> {
        self.deltas.last()
    }

    pub(crate) fn writes(&self) -> bool {
        self.top().is_some_and(|top| !top.read_only)
    }

    /// Whether the top is being merged into the delta below: during a merge, that one is writable, too.
    pub(crate) fn is_merging(&self) -> bool {
        match self.deltas.as_slice() {
            [.., below, top] => !top.read_only && !below.read_only,
            _ => false,
        }
    }

    /// Whether libploop finds the device for this spelling of the base's path and this component name.
    pub(crate) fn is_found_by(&self, base: &Path, component: &[u8]) -> bool {
        self.base().is_some_and(|delta| delta.path == base) && self.component == component
    }

    /// Whether it has this file, at any level.
    pub(crate) fn has(&self, file: Identity) -> bool {
        self.deltas.iter().any(|delta| delta.identity == Some(file))
    }

    /// Whether one of its deltas cannot be identified.
    pub(crate) fn is_unknown(&self) -> bool {
        self.deltas.iter().any(|delta| delta.identity.is_none())
    }
}

/// Whether the driver knows format version 2.
#[cfg(feature = "image-write")]
pub(crate) fn is_large_disk_supported() -> bool {
    Path::new(LARGE_DISK_SUPPORT).exists()
}

/// Requires that the driver's devices can be seen, if it may have any: where sysfs is not mounted, an image that runs
/// looks like one that no device has (A65).
fn require_visible(operation: &'static str) -> Result<()> {
    match Path::new(BLOCK).is_dir() || !is_driver_registered(Path::new("/proc/devices")) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            "sysfs is not mounted on /sys, so it cannot be told whether a device has the image; mount it",
        )),
    }
}

/// Whether the kernel has the driver, as far as can be told.
fn is_driver_registered(devices: &Path) -> bool {
    let is_driver = |line: &str| line.split_whitespace().nth(1) == Some("ploop");
    fs::read_to_string(devices).map_or(true, |text| text.lines().any(is_driver))
}

/// All devices, as they are now. Without the driver there are none.
///
/// What cannot be read is an error, however it comes: an image that runs would look like one that no device has.
pub(crate) fn devices(operation: &'static str) -> Result<Vec<Device>> {
    require_visible(operation)?;
    devices_in(operation, Path::new(BLOCK))
}

/// A device that has one of these files, at any level, or may have one: it has a file that cannot be identified.
pub(crate) fn device_with<'d, 'f>(
    devices: &'d [Device],
    files: impl IntoIterator<Item = &'f Path>,
) -> Option<&'d Device> {
    if devices.iter().all(|device| device.deltas.is_empty()) {
        return None;
    }
    let files: Vec<Identity> = files
        .into_iter()
        .filter_map(|file| Identity::of(file).ok())
        .collect();
    devices
        .iter()
        .find(|device| device.is_unknown() || files.iter().any(|file| device.has(*file)))
}

/// Requires that no device has one of these files, or may have one. Returns the devices that there are.
#[cfg(feature = "image-write")]
pub(crate) fn require_unattached<'f>(
    operation: &'static str,
    path: &Path,
    files: impl IntoIterator<Item = &'f Path>,
) -> Result<Vec<Device>> {
    let devices = devices(operation)?;
    match device_with(&devices, files) {
        None => Ok(devices),
        Some(device) => {
            let why = format!(
                "{} has it, or may have: it has a file that is not found under its path; unmount it first",
                device.path().display()
            );
            Err(Error::new(ErrorKind::Busy, operation, why).with_path(path))
        }
    }
}

pub(crate) fn devices_in(operation: &'static str, block: &Path) -> Result<Vec<Device>> {
    each_device(operation, block, |directory| {
        // Another program may attach or merge meanwhile; then what is read does not fit together.
        for _ in 0..3 {
            if let Some(device) = device(&directory)? {
                return Ok(Some(device));
            }
        }
        Ok(None)
    })
}

/// Reserves a free device, as libploop does to attach an image. No other program is given the device until the file is
/// closed.
pub(crate) fn reserve_device() -> io::Result<(PathBuf, fs::File)> {
    const MINORS_OF_A_DEVICE: u64 = 16;
    let mut reservation = fs::File::open("/proc/vz/ploop_minor")?;
    let mut text = Vec::new();
    reservation.read_to_end(&mut text)?;
    let minor = number(&text).ok_or(io::ErrorKind::InvalidData)?;
    let device = format!("/dev/ploop{}", minor / MINORS_OF_A_DEVICE);
    Ok((PathBuf::from(device), reservation))
}

/// What `read` makes of each device that there is.
fn each_device<T>(
    operation: &'static str,
    block: &Path,
    read: impl Fn(DeviceDirectory) -> Result<Option<T>, Errno>,
) -> Result<Vec<T>> {
    let failed = |error: io::Error| {
        Error::io(operation, "the driver's devices cannot be read", error).with_path(block)
    };
    let entries = match fs::read_dir(block) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name.as_bytes().starts_with(b"ploop") {
            let directory = DeviceDirectory::open(block, &name);
            let device = unless_gone(directory).and_then(|it| it.map_or(Ok(None), &read));
            found.extend(device.map_err(|error| failed(error.into()))?);
        }
    }
    Ok(found)
}

/// A device, delta or attribute that is gone by now is no error.
fn unless_gone<T>(read: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match read {
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Ok(None),
        read => read.map(Some),
    }
}

/// The directory of a device in sysfs. Attributes are opened relative to it: the path to it is long and has a link,
/// and so is walked once.
#[derive(Debug)]
struct DeviceDirectory {
    name: OsString,
    directory: OwnedFd,
}

impl DeviceDirectory {
    fn open(block: &Path, name: &OsStr) -> Result<DeviceDirectory, Errno> {
        // Kernels before 2.6.39 open the directory for reading.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(DeviceDirectory {
            name: name.to_owned(),
            directory: rustix::fs::open(block.join(name), flags, Mode::empty())?,
        })
    }

    /// The text of an attribute, without the end of the line.
    fn attribute(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty())?;
        // The first read gets all of it, which is a page at most.
        let mut text = vec![0; 4096];
        let len = retry_on_intr(|| rustix::io::read(&file, &mut text))?;
        text.truncate(len);
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        Ok(text)
    }
}

/// A device that was found as libploop finds it, by the spelling of its base's path.
#[derive(Debug)]
pub(crate) struct FoundDevice {
    directory: DeviceDirectory,
    pub(crate) runs: bool,
    pub(crate) component: Vec<u8>,
}

/// The devices with this base, in the order in which libploop finds them. Reads only the attributes that this takes.
pub(crate) fn find_by_base(operation: &'static str, base: &Path) -> Result<Vec<FoundDevice>> {
    require_visible(operation)?;
    find_by_base_in(operation, Path::new(BLOCK), base)
}

fn find_by_base_in(operation: &'static str, block: &Path, base: &Path) -> Result<Vec<FoundDevice>> {
    each_device(operation, block, |directory| {
        let found = unless_gone(directory.attribute("pdelta/0/image"))?;
        if found.is_none_or(|found| found != base.as_os_str().as_bytes()) {
            return Ok(None);
        }
        let component = unless_gone(directory.attribute("pstate/cookie"))?;
        let running = unless_gone(directory.attribute("pstate/running"))?;
        let (Some(component), Some(running)) = (component, running) else {
            return Ok(None);
        };
        Ok(Some(FoundDevice {
            directory,
            runs: running == b"1",
            component,
        }))
    })
}

impl FoundDevice {
    /// `/dev/ploop12345`.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.directory.name)
    }

    /// The file that it writes to, or reads last.
    pub(crate) fn top(&self) -> Option<Identity> {
        let level = self.number("pstate/top")?;
        let path = self
            .directory
            .attribute(&format!("pdelta/{level}/image"))
            .ok()?;
        Identity::of(Path::new(&OsString::from_vec(path))).ok()
    }

    /// In sectors.
    pub(crate) fn size(&self) -> Option<u64> {
        self.number("size")
    }

    /// In sectors.
    pub(crate) fn cluster(&self) -> Option<u64> {
        self.number("pstate/block_size")
    }

    /// Drivers that know version 1 only have no such attribute.
    pub(crate) fn format_version(&self) -> Option<u64> {
        match self.directory.attribute("pstate/fmt_version") {
            Err(Errno::NOENT) => Some(1),
            text => number(&text.ok()?),
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        number(&self.directory.attribute(name).ok()?)
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The top delta of a device, as the driver has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TopDelta {
    /// The driver's path for the file.
    pub(crate) path: PathBuf,
    /// The delta has no header.
    pub(crate) is_raw: bool,
    /// Of the device, in bytes.
    pub(crate) cluster: u64,
}

/// The top delta of the device with this name.
pub(crate) fn top_delta(device: &OsStr) -> io::Result<TopDelta> {
    top_delta_in(Path::new(BLOCK), device)
}

fn top_delta_in(block: &Path, device: &OsStr) -> io::Result<TopDelta> {
    let directory = DeviceDirectory::open(block, device)?;
    let number = |name| number(&directory.attribute(name).ok()?);
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let level = number("pstate/top").ok_or_else(invalid)?;
    let delta = |name| directory.attribute(&format!("pdelta/{level}/{name}"));
    let cluster = number("pstate/block_size").and_then(|sectors| sectors.checked_mul(512));
    Ok(TopDelta {
        path: OsString::from_vec(delta("image")?).into(),
        is_raw: delta("format")? == b"raw",
        cluster: cluster.ok_or_else(invalid)?,
    })
}

/// Whether a device has this partition.
#[cfg(feature = "libploop")]
pub(crate) fn is_partition_of(partition: &Path, device: &Path) -> bool {
    let (device, partition) = (device.file_name(), partition.file_name());
    let directory = Path::new(BLOCK).join(device.unwrap_or_default());
    directory.join(partition.unwrap_or_default()).is_dir()
}

/// The major and minor number of a device. Its first partition has the next minor number.
pub(crate) fn numbers(device: &OsStr) -> io::Result<(u32, u32)> {
    let text = fs::read_to_string(Path::new(BLOCK).join(device).join("dev"))?;
    let numbers = text.trim().split_once(':');
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `None`: it is gone, or what was read does not fit together.
fn device(directory: &DeviceDirectory) -> Result<Option<Device>, Errno> {
    let attribute = |name: &str| unless_gone(directory.attribute(name));
    let Some(top) = attribute("pstate/top")? else {
        return Ok(None);
    };
    let levels = match (top.as_slice(), number(&top)) {
        (NO_DELTA, _) => 0,
        (_, Some(top)) => top.saturating_add(1),
        (_, None) => return Ok(None),
    };
    let running = attribute("pstate/running")?;
    let component = attribute("pstate/cookie")?;
    let mut deltas = Vec::new();
    for level in 0..levels {
        let path = attribute(&format!("pdelta/{level}/image"))?;
        let read_only = attribute(&format!("pdelta/{level}/ro"))?;
        let (Some(path), Some(read_only)) = (path, read_only) else {
            return Ok(None);
        };
        let path = PathBuf::from(OsString::from_vec(path));
        deltas.push(Delta {
            // A relative path is that of a file whose mount is gone.
            identity: match path.is_absolute() {
                true => Identity::of(&path).ok(),
                false => None,
            },
            path,
            read_only: read_only != b"0",
        });
    }
    Ok(Some(Device {
        name: directory.name.clone(),
        runs: running.is_some_and(|running| running == b"1"),
        component: component.unwrap_or_default(),
        deltas,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(entry: &Path, name: &str, contents: &[u8]) {
        let path = entry.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [contents, b"\n"].concat()).unwrap();
    }

    #[test]
    fn devices_are_read_in_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let block = directory.path().join("block");
        let odd = directory.path().join(OsStr::from_bytes(b"\xff\n"));
        fs::write(&odd, "").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&odd, &link).unwrap();

        write(&block.join("sda"), "pstate/top", b"0");
        write(&block.join("ploop1"), "pstate/top", NO_DELTA);
        write(&block.join("ploop1"), "pstate/cookie", b"left");
        let entry = block.join("ploop2");
        write(&entry, "pstate/top", b"2");
        write(&entry, "pstate/running", b"1");
        write(&entry, "pstate/cookie", b"");
        let paths = [odd.as_path(), Path::new("detached"), link.as_path()];
        for (level, path) in paths.iter().enumerate() {
            let image = format!("pdelta/{level}/image");
            write(&entry, &image, path.as_os_str().as_bytes());
            let read_only = if level == 2 { b"0" } else { b"1" };
            write(&entry, &format!("pdelta/{level}/ro"), read_only);
        }
        // One whose levels do not come to an end.
        write(&block.join("ploop3"), "pstate/top", b"1");

        let devices = || devices_in("test", &block).unwrap();
        let mut found = devices();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let [free, device] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(free.deltas.is_empty() && !free.runs);
        assert_eq!(free.component, b"left");
        assert_eq!(device.path(), Path::new("/dev/ploop2"));
        assert!(device.runs && device.writes() && !device.is_merging());
        assert_eq!(device.base().unwrap().path, odd);
        let file = Identity::of(&odd).unwrap();
        assert!(device.has(file));
        assert_eq!(device.top().unwrap().identity, Some(file));
        assert_eq!(device.deltas[1].path, Path::new("detached"));
        assert_eq!(device.deltas[1].identity, None);
        assert!(device.is_unknown() && !free.is_unknown());

        // As a look-up finds it.
        let find = |base| find_by_base_in("test", &block, base).unwrap();
        let found = find(&odd);
        assert_eq!((found.len(), found[0].path()), (1, device.path()));
        assert!(found[0].runs && found[0].component.is_empty());
        assert!(find(&link).is_empty());
        assert_eq!(found[0].size(), None);
        assert_eq!(found[0].format_version(), Some(1));
        for (name, number) in [
            ("size", "204800"),
            ("pstate/block_size", "2048"),
            ("pstate/fmt_version", "2"),
        ] {
            write(&entry, name, number.as_bytes());
        }
        let numbers = (found[0].size(), found[0].cluster());
        assert_eq!(numbers, (Some(204_800), Some(2048)));
        assert_eq!(found[0].format_version(), Some(2));

        write(&entry, "pdelta/2/format", b"ploop1");
        let top = |name: &str| top_delta_in(&block, OsStr::new(name));
        let expected = TopDelta {
            path: link,
            is_raw: false,
            cluster: 1 << 20,
        };
        assert_eq!(top("ploop2").unwrap(), expected);
        write(&entry, "pdelta/2/format", b"raw");
        assert!(top("ploop2").unwrap().is_raw);
        let missing = top("ploop4").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(top("ploop1").is_err() && top("ploop3").is_err());

        write(&entry, "pdelta/1/ro", b"0");
        assert!(devices().iter().any(Device::is_merging));
        assert_eq!(devices_in("test", &block.join("none")).unwrap(), []);
    }

    /// An attribute that cannot be read leaves no device out.
    #[test]
    fn devices_that_cannot_be_read_are_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let block = directory.path();
        let entry = block.join("ploop1");
        write(&entry, "pstate/top", b"0");
        write(&entry, "pdelta/0/image", b"/base");
        for name in ["pstate/running", "pstate/cookie", "pdelta/0/ro"] {
            write(&entry, name, b"0");
        }
        assert_eq!(devices_in("test", block).unwrap().len(), 1);
        for name in ["pstate/top", "pstate/running", "pdelta/0/image"] {
            let attribute = entry.join(name);
            let text = fs::read(&attribute).unwrap();
            fs::remove_file(&attribute).unwrap();
            fs::create_dir(&attribute).unwrap();
            let error = devices_in("test", block).unwrap_err();
            assert_eq!(error.path(), Some(block), "{name}");
            if name != "pstate/top" {
                let found = find_by_base_in("test", block, Path::new("/base"));
                assert!(found.is_err(), "{name}");
            }
            fs::remove_dir(&attribute).unwrap();
            fs::write(&attribute, text).unwrap();
        }
        // A list of devices that is a file.
        assert!(devices_in("test", &entry.join("pstate/top")).is_err());
    }
}
