//! An image with an ext4 file system, and what is known to be in it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ploop::image::check;
use ploop::{Code, CreateParam, Error, ErrorKind, MountParam, Ploop, Size, device};
use tempfile::TempDir;

use crate::fixture::line;

/// libploop gives each file system a journal of 128 MiB, and no more than half may go into that.
pub(crate) const SIZE: Size = Size::from_mib(288);

pub(crate) struct Container {
    dir: TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Container {
    /// In a directory of its own. The driver refuses tmpfs, so it is made beside what Cargo builds.
    fn empty() -> Container {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Container {
            dir,
            files: BTreeMap::new(),
        }
    }

    pub(crate) fn new(size: Size) -> (Container, Ploop) {
        Container::made(size, |param| param)
    }

    /// With an image as `change` asks for it.
    pub(crate) fn made(
        size: Size,
        change: impl FnOnce(CreateParam) -> CreateParam,
    ) -> (Container, Ploop) {
        let container = Container::empty();
        let image = Ploop::create(&change(container.create_param(size))).unwrap();
        (container, image)
    }

    /// Without an image: creation fails with this.
    pub(crate) fn refused(
        size: Size,
        change: impl FnOnce(CreateParam) -> CreateParam,
    ) -> (Container, Error) {
        let container = Container::empty();
        let error = Ploop::create(&change(container.create_param(size))).unwrap_err();
        (container, error)
    }

    fn create_param(&self, size: Size) -> CreateParam {
        CreateParam::new(self.base(), size)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.path("root.hdd")
    }

    pub(crate) fn descriptor(&self) -> PathBuf {
        self.path("DiskDescriptor.xml")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A second place to mount at.
    pub(crate) fn view(&self) -> PathBuf {
        let view = self.path("view");
        let _ = fs::create_dir(&view);
        view
    }

    pub(crate) fn param(&self) -> MountParam {
        MountParam::new().target(self.target())
    }

    /// Writes a file of `len` bytes that depend on its name, and brings it to the disk.
    pub(crate) fn write(&mut self, name: &str, len: usize) {
        self.write_at(&self.target(), name, len);
    }

    pub(crate) fn write_at(&mut self, target: &Path, name: &str, len: usize) {
        let seed = name
            .bytes()
            .fold(7u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let mut bytes = vec![0; len];
        for (at, word) in (seed..).zip(bytes.chunks_mut(8)) {
            // No two words are alike.
            let number = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            word.copy_from_slice(&number[..word.len()]);
        }
        let mut file = File::create(target.join(name)).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        self.files.insert(name.to_owned(), bytes);
    }

    /// What [`write`](Container::write) has written.
    pub(crate) fn contents(&self, name: &str) -> &[u8] {
        &self.files[name]
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.target().join(name)).unwrap();
        rustix::fs::syncfs(File::open(self.target()).unwrap()).unwrap();
    }

    /// Asserts that the mounted file system holds these files as they were written, and no others.
    #[track_caller]
    pub(crate) fn verify_at(&self, target: &Path, names: &[&str]) {
        let mut found: Vec<String> = fs::read_dir(target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // The balloon is hidden.
            .filter(|name| name != "lost+found")
            .collect();
        found.sort();
        let mut names = names.to_vec();
        names.sort_unstable();
        assert_eq!(found, names);
        for name in names {
            let bytes = fs::read(target.join(name)).unwrap();
            assert!(bytes == self.files[name], "{name} differs");
        }
    }

    #[track_caller]
    pub(crate) fn verify(&self, names: &[&str]) {
        self.verify_at(&self.target(), names);
    }

    /// For an image that is not mounted: asserts that it and its file system are sound, and which files are in it.
    #[track_caller]
    pub(crate) fn verify_image(&self, image: &mut Ploop, names: &[&str]) {
        self.verify_whole();
        let guard = image.mount_guard(&self.param().read_only(true)).unwrap();
        self.verify(names);
        let device = device::partition_by_mount_point(self.target()).unwrap();
        tool("e2fsck", &["-fn", device.unwrap().to_str().unwrap()]);
        guard.umount().unwrap();
        self.verify_whole();
    }

    /// Asserts that every delta of an image that is not attached is as it should be.
    #[track_caller]
    pub(crate) fn verify_whole(&self) {
        let report = check(self.descriptor());
        assert!(report.is_sound(), "{report}");
    }

    /// Whether libploop cannot attach this image, whose base is raw. Asserts that the mount says so then.
    #[track_caller]
    pub(crate) fn is_refused_as_raw(&self, image: &mut Ploop) -> bool {
        let is_refused = line::refuses_raw_bases(&self.path(""));
        if is_refused {
            let error = image.mount(&self.param()).unwrap_err();
            assert_eq!(error.code(), Some(Code::OPEN.get()), "{error}");
            assert_detached(image);
        }
        is_refused
    }

    /// What is free in the mounted file system, in MiB. The balloon takes from it; whether it also makes
    /// the file system smaller is the kernel's choice.
    pub(crate) fn free_mib(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.target()).unwrap();
        (stat.f_bfree * stat.f_frsize) >> 20
    }

    /// The options of the mount, as the kernel lists them.
    pub(crate) fn mount_options(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let target = self.target();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(1) == target.to_str())
            .unwrap_or_else(|| panic!("{} is not mounted", target.display()));
        let options = line.split(' ').nth(3).unwrap();
        options.split(',').map(str::to_owned).collect()
    }

    /// The names beside the image, but for locks and mount points.
    pub(crate) fn beside(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lck") && name != "mnt" && name != "view")
            .collect();
        names.sort();
        names
    }
}

impl Drop for Container {
    /// Unmounts everything, also after a failure.
    fn drop(&mut self) {
        if let Ok(image) = Ploop::open(self.descriptor()) {
            for device in image.devices().unwrap_or_default() {
                let _ = device::umount(device);
            }
        }
    }
}

/// Asserts that an operation was refused, with this kind and code.
#[track_caller]
pub(crate) fn refused<T: Debug>(
    result: ploop::Result<T>,
    kind: ErrorKind,
    code: impl Into<Option<Code>>,
) -> Error {
    let error = result.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (kind, code.into().map(Code::get)),
        "{error}"
    );
    error
}

#[track_caller]
pub(crate) fn assert_detached(image: &mut Ploop) {
    assert_eq!(image.devices().unwrap(), Vec::<PathBuf>::new());
    assert!(!image.is_mounted().unwrap());
}

/// The partition of a device that is attached.
pub(crate) fn partition(device: &Path) -> PathBuf {
    let mut name = device.as_os_str().to_owned();
    name.push("p1");
    name.into()
}

/// Runs a tool and returns what it printed.
#[track_caller]
pub(crate) fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sets fields of the file system on `device`, which is not mounted.
#[track_caller]
pub(crate) fn debugfs(device: &Path, request: &str) {
    tool(
        "debugfs",
        &["-w", "-R", request, partition(device).to_str().unwrap()],
    );
}
