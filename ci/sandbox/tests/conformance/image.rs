//! Images to attach.

use std::fs::{self, File};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ploop::image::create_delta;
use ploop::{ClusterSize, FormatVersion, Size};
use tempfile::TempDir;

use crate::driver;
use crate::ioctl;
use crate::program::{Output, ploop};

/// A directory beside what Cargo builds: the driver refuses tmpfs.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn new_in(directory: &Path) -> Scratch {
        Scratch(TempDir::new_in(directory).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        // As sysfs and the lists of mounts have it.
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// An empty delta with clusters of 1 MiB.
    pub(crate) fn delta(&self, name: &str, mib: u64) -> PathBuf {
        self.delta_of(name, FormatVersion::V2, 11, mib)
    }

    pub(crate) fn delta_of(
        &self,
        name: &str,
        version: FormatVersion,
        log: u32,
        mib: u64,
    ) -> PathBuf {
        let path = self.path(name);
        let cluster = ClusterSize::from_log2_sectors(log).unwrap();
        create_delta(&path, version, cluster, Size::from_mib(mib)).unwrap();
        path
    }

    /// A plain file of zeros.
    pub(crate) fn raw(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    }

    /// A delta that holds a partition with an ext4 file system.
    pub(crate) fn partitioned(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(template().join("root.hds"), &path).unwrap();
        path
    }
}

/// The mark of an image that is in use, from the disk.
pub(crate) fn in_use(image: &Path) -> bool {
    const MARK: u32 = 0x746f_6e59;
    let header = ioctl::read_direct(image, 0, 4096).unwrap();
    match u32::from_le_bytes(header[44..48].try_into().unwrap()) {
        0 => false,
        MARK => true,
        other => panic!("the mark is {other:#x}"),
    }
}

/// The table of a delta of clusters of 1 MiB, from the disk.
pub(crate) fn table(image: &Path, entries: usize) -> Vec<u32> {
    let bytes = ioctl::read_direct(image, 0, (64 + 4 * entries).next_multiple_of(4096)).unwrap();
    bytes[64..]
        .chunks_exact(4)
        .take(entries)
        .map(|entry| u32::from_le_bytes(entry.try_into().unwrap()))
        .collect()
}

pub(crate) fn len(image: &Path) -> u64 {
    fs::metadata(image).unwrap().len()
}

/// An image of 384 MiB with ext4 that is made once and copied.
static TEMPLATE: Mutex<Option<TempDir>> = Mutex::new(None);

fn template() -> PathBuf {
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = template.get_or_insert_with(|| {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        init(&dir.path().join("root.hds"), "384M").expect(0);
        dir
    });
    dir.path().to_owned()
}

pub(crate) fn remove_template() {
    TEMPLATE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
}

/// `ploop init` with ext4.
pub(crate) fn init(file: &Path, size: &str) -> Output {
    ploop(&[&"init", &"-s", &size, &"-t", &"ext4", &file])
}

/// An image with a descriptor and an ext4 file system, and a directory to mount it to. It is unmounted in the end.
pub(crate) struct Image {
    scratch: Scratch,
}

impl Image {
    pub(crate) fn new() -> Image {
        Image::of(Scratch::new())
    }

    pub(crate) fn new_in(directory: &Path) -> Image {
        Image::of(Scratch::new_in(directory))
    }

    fn of(scratch: Scratch) -> Image {
        scratch.partitioned("root.hds");
        let descriptor = scratch.path("DiskDescriptor.xml");
        fs::copy(template().join("DiskDescriptor.xml"), descriptor).unwrap();
        fs::create_dir(scratch.path("mnt")).unwrap();
        Image { scratch }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// The base delta.
    pub(crate) fn base(&self) -> PathBuf {
        self.path("root.hds")
    }

    pub(crate) fn descriptor(&self) -> PathBuf {
        self.path("DiskDescriptor.xml")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("mnt")
    }

    pub(crate) fn try_mount(&self) -> Output {
        ploop(&[&"mount", &"-m", &self.target(), &self.descriptor()])
    }

    /// Mounts it; the device's number.
    #[track_caller]
    pub(crate) fn mount(&self) -> u32 {
        self.try_mount().expect(0);
        self.device().unwrap()
    }

    pub(crate) fn try_unmount(&self) -> Output {
        ploop(&[&"umount", &self.descriptor()])
    }

    #[track_caller]
    pub(crate) fn unmount(&self) {
        self.try_unmount().expect(0);
    }

    /// The device it is attached to.
    pub(crate) fn device(&self) -> Option<u32> {
        driver::device_of(&self.base())
    }

    /// A snapshot; its GUID.
    #[track_caller]
    pub(crate) fn snapshot(&self) -> String {
        let guid = format!(
            "{{{}}}",
            ploop::Guid::generate().to_string().trim_matches(['{', '}'])
        );
        ploop(&[&"snapshot", &"-u", &guid, &self.descriptor()]).expect(0);
        guid
    }

    #[track_caller]
    pub(crate) fn delete_snapshot(&self, guid: &str) {
        ploop(&[&"snapshot-delete", &"-u", &guid, &self.descriptor()]).expect(0);
    }

    #[track_caller]
    pub(crate) fn resize(&self, size: &str) {
        ploop(&[&"resize", &"-s", &size, &self.descriptor()]).expect(0);
    }

    /// Writes a file of `mib` times this byte and brings it to the disk.
    pub(crate) fn write(&self, name: &str, mib: usize, byte: u8) {
        use std::io::Write;
        let mut file = File::create(self.target().join(name)).unwrap();
        file.write_all(&vec![byte; mib << 20]).unwrap();
        file.sync_all().unwrap();
    }

    #[track_caller]
    pub(crate) fn verify(&self, name: &str, mib: usize, byte: u8) {
        let bytes = fs::read(self.target().join(name)).unwrap();
        assert!(bytes == vec![byte; mib << 20], "{name} differs");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let Some(device) = driver::attached(self.scratch.0.path()) else {
            return;
        };
        // By its name, for a test may have led libploop astray.
        let node = driver::node(device);
        let output = catch_unwind(|| ploop(&[&"umount", &"-d", &node]));
        if !matches!(output, Ok(Output { code: Some(0), .. })) {
            eprintln!("conformance: {} stays attached", node.display());
        }
    }
}
