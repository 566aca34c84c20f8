//! Volumes of libploop 7 in a directory, and what is in each. What libploop makes is made by its own functions; on a stub,
//! which makes nothing, by this crate.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ploop::image::{Disk, check};
use ploop::volume::{Volume, VolumePlace};
use ploop::{ClusterSize, CreateParam, Descriptor, Guid, Ploop, Size};
use tempfile::TempDir;

use crate::filled_image::{Contents, Delta, cluster_bytes, read_whole};
use crate::fixture::harness::is_stub;
use crate::line;

/// The functions of libploop for volumes.
#[cfg(libploop_line = "7")]
pub(crate) mod c {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr;

    use ploop::{Guid, sys};

    fn text(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    /// The directory of the descriptor, and that of the images, where that is another one.
    fn with_data(
        place: &Path,
        images: Option<&Path>,
        c: impl FnOnce(&mut sys::ploop_volume_data) -> i32,
    ) -> i32 {
        let (place, images) = (text(place), images.map(text));
        c(&mut sys::ploop_volume_data {
            m_path: place.as_ptr(),
            i_path: images
                .as_ref()
                .map_or(ptr::null(), |images| images.as_ptr()),
        })
    }

    /// `image` is the base. Without `fs` the volume is bare, with clusters of 32 KiB.
    pub(crate) fn create(place: &Path, image: Option<&Path>, sectors: u64, fs: bool) -> i32 {
        let mut param = sys::ploop_create_param {
            size: sectors,
            blocksize: if fs { 2048 } else { 64 },
            fstype: if fs {
                c"ext4".as_ptr().cast_mut()
            } else {
                ptr::null_mut()
            },
            ..Default::default()
        };
        // SAFETY: the texts are terminated, and outlive the call.
        with_data(place, image, |data| unsafe {
            sys::ploop_volume_create(data, &mut param)
        })
    }

    pub(crate) fn snapshot(volume: &Path, place: &Path) -> i32 {
        let volume = text(volume);
        // SAFETY: the texts are terminated, and outlive the call.
        with_data(place, None, |data| unsafe {
            sys::ploop_volume_snapshot(volume.as_ptr(), data)
        })
    }

    /// `images` is the directory of the new delta.
    pub(crate) fn clone(volume: &Path, place: &Path, images: Option<&Path>) -> i32 {
        let volume = text(volume);
        // SAFETY: the texts are terminated, and outlive the call.
        with_data(place, images, |data| unsafe {
            sys::ploop_volume_clone(volume.as_ptr(), data)
        })
    }

    pub(crate) fn delete(volume: &Path) -> i32 {
        let volume = text(volume);
        // SAFETY: the text is terminated.
        unsafe { sys::ploop_volume_delete(volume.as_ptr()) }
    }

    pub(crate) fn switch(volume: &Path, to: &Path) -> i32 {
        let (volume, to) = (text(volume), text(to));
        // SAFETY: the texts are terminated.
        unsafe { sys::ploop_volume_switch(volume.as_ptr(), to.as_ptr()) }
    }

    /// `ploop_delete_snapshot`.
    pub(crate) fn delete_snapshot(descriptor: &Path, guid: Guid) -> i32 {
        let (path, guid) = (text(descriptor), CString::new(guid.to_string()).unwrap());
        let mut handle = ptr::null_mut();
        // SAFETY: the texts are terminated. The handle is used only where it was made, and closed once.
        unsafe {
            match sys::ploop_open_dd(&mut handle, path.as_ptr()) {
                0 => {
                    let code = sys::ploop_delete_snapshot(handle, guid.as_ptr());
                    sys::ploop_close_dd(handle);
                    code
                }
                code => code,
            }
        }
    }

    /// The length of the top's file.
    pub(crate) fn size(volume: &Path) -> u64 {
        let volume = text(volume);
        let mut info = sys::ploop_volume_info::default();
        let len = size_of_val(&info) as i32;
        // SAFETY: the text is terminated, and the length is that of the structure.
        let code = unsafe { sys::ploop_volume_get_info(volume.as_ptr(), &mut info, len) };
        assert_eq!(code, 0);
        info.size as u64
    }
}

/// Line 1 has none of them. A test of them needs line 7, and is listed as ignored there.
#[cfg(not(libploop_line = "7"))]
pub(crate) mod c {
    use std::path::Path;

    pub(crate) fn create(_: &Path, _: Option<&Path>, _: u64, _: bool) -> i32 {
        unreachable!()
    }

    pub(crate) fn snapshot(_: &Path, _: &Path) -> i32 {
        unreachable!()
    }

    pub(crate) fn clone(_: &Path, _: &Path, _: Option<&Path>) -> i32 {
        unreachable!()
    }

    pub(crate) fn delete(_: &Path) -> i32 {
        unreachable!()
    }

    pub(crate) fn switch(_: &Path, _: &Path) -> i32 {
        unreachable!()
    }

    pub(crate) fn delete_snapshot(_: &Path, _: ploop::Guid) -> i32 {
        unreachable!()
    }

    pub(crate) fn size(_: &Path) -> u64 {
        unreachable!()
    }
}

/// Volumes, by the names of their directories.
pub(crate) struct Volumes {
    home: PathBuf,
    /// Removed at the end.
    _dir: Option<TempDir>,
    /// What the top of each holds.
    pub(crate) contents: BTreeMap<&'static str, Contents>,
}

impl Volumes {
    const CLUSTERS: u64 = 16;
    const CLUSTER: u64 = ClusterSize::MIN.bytes();

    pub(crate) fn new() -> Volumes {
        let dir = tempfile::tempdir().unwrap();
        let mut volumes = Volumes::at(dir.path());
        volumes._dir = Some(dir);
        volumes
    }

    /// In a directory that somebody else removes.
    pub(crate) fn at(dir: &Path) -> Volumes {
        Volumes {
            home: dir.canonicalize().unwrap(),
            _dir: None,
            contents: BTreeMap::new(),
        }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.home.clone()
    }

    pub(crate) fn path(&self, volume: &str) -> PathBuf {
        self.home().join(volume)
    }

    pub(crate) fn xml(&self, volume: &str) -> PathBuf {
        self.path(volume).join("DiskDescriptor.xml")
    }

    pub(crate) fn descriptor(&self, volume: &str) -> Descriptor {
        Descriptor::open(self.xml(volume)).unwrap()
    }

    pub(crate) fn open(&self, volume: &str) -> Ploop {
        Ploop::open(self.xml(volume)).unwrap()
    }

    /// The delta files that a volume names itself.
    pub(crate) fn files(&self, volume: &str) -> Vec<PathBuf> {
        let images = self.descriptor(volume).images.into_iter();
        images
            .map(|image| image.file.canonicalize().unwrap())
            .collect()
    }

    pub(crate) fn volume(&self, volume: &str) -> Volume {
        Volume::open(self.path(volume)).unwrap()
    }

    pub(crate) fn place(&self, volume: &str) -> VolumePlace {
        VolumePlace::new(self.path(volume))
    }

    pub(crate) fn create(&mut self, volume: &'static str) {
        let size = Size::from_bytes(Self::CLUSTERS * Self::CLUSTER);
        let param = CreateParam::new(self.path(volume).join("image.hds"), size);
        let made = Volume::create(&param.cluster(ClusterSize::MIN).fs(None)).unwrap();
        assert_eq!(made.directory(), self.path(volume));
        self.contents.insert(volume, Contents::new());
    }

    pub(crate) fn snapshot(&mut self, volume: &str, to: &'static str) {
        let mut from = self.volume(volume);
        let made = from.snapshot(&self.place(to)).unwrap();
        assert!(made.is_read_only().unwrap());
        self.contents.insert(to, self.contents[volume].clone());
    }

    pub(crate) fn clone_to(&mut self, volume: &str, to: &'static str) {
        let mut from = self.volume(volume);
        let made = from.clone_to(&self.place(to)).unwrap();
        assert!(!made.is_read_only().unwrap());
        self.contents.insert(to, self.contents[volume].clone());
    }

    pub(crate) fn switch(&mut self, volume: &'static str, to: &str) {
        let other = self.volume(to);
        self.volume(volume).switch_to(&other).unwrap();
        self.contents.insert(volume, self.contents[to].clone());
    }

    pub(crate) fn delete(&mut self, volume: &str) {
        self.volume(volume).delete().unwrap();
        self.contents.remove(volume);
        assert!(!self.xml(volume).exists());
    }

    pub(crate) fn c_create(&mut self, volume: &'static str) {
        if is_stub() {
            return self.create(volume);
        }
        let sectors = Self::CLUSTERS * Self::CLUSTER / 512;
        assert_eq!(c::create(&self.path(volume), None, sectors, false), 0);
        self.contents.insert(volume, Contents::new());
    }

    pub(crate) fn c_snapshot(&mut self, volume: &str, to: &'static str) {
        if is_stub() {
            return self.snapshot(volume, to);
        }
        assert_eq!(c::snapshot(&self.path(volume), &self.path(to)), 0);
        self.contents.insert(to, self.contents[volume].clone());
    }

    pub(crate) fn c_clone(&mut self, volume: &str, to: &'static str) {
        if is_stub() {
            return self.clone_to(volume, to);
        }
        assert_eq!(c::clone(&self.path(volume), &self.path(to), None), 0);
        self.contents.insert(to, self.contents[volume].clone());
    }

    /// Writes clusters as a driver would, into the top.
    pub(crate) fn write(&mut self, volume: &str, clusters: &[(u64, u64)]) {
        let top = self.descriptor(volume).top_image().unwrap().file.clone();
        let contents = self.contents.get_mut(volume).unwrap();
        for (number, seed) in clusters {
            Delta::open(&top).write(*number, *seed);
            contents.insert(*number, *seed);
        }
    }

    pub(crate) fn bytes(contents: &Contents) -> Vec<u8> {
        let mut bytes = vec![0; (Self::CLUSTERS * Self::CLUSTER) as usize];
        for (number, seed) in contents {
            let at = (number * Self::CLUSTER) as usize;
            bytes[at..at + Self::CLUSTER as usize]
                .copy_from_slice(&cluster_bytes(*seed, Self::CLUSTER));
        }
        bytes
    }

    /// What is in a volume.
    #[track_caller]
    pub(crate) fn read(&self, volume: &str) -> Vec<u8> {
        read_whole(&Disk::open(self.xml(volume)).unwrap())
    }

    /// Asserts that each volume reads as it should and is sound.
    #[track_caller]
    pub(crate) fn verify_data(&self) {
        for (volume, contents) in &self.contents {
            let disk = Disk::open(self.xml(volume)).unwrap();
            assert!(
                read_whole(&disk) == Self::bytes(contents),
                "{volume} differs"
            );
            let report = check(self.xml(volume));
            assert!(report.is_sound(), "{volume}: {report}");
        }
    }

    /// [`verify_data`](Volumes::verify_data), and that libploop would have written each descriptor so.
    #[track_caller]
    pub(crate) fn verify(&self) {
        self.verify_data();
        for volume in self.contents.keys() {
            let descriptor = self.descriptor(volume);
            let text = std::fs::read_to_string(self.xml(volume)).unwrap();
            assert_eq!(line::descriptor_text(&descriptor, self.path(volume)), text);
        }
    }

    /// Asserts that a snapshot of a volume reads as this.
    #[track_caller]
    pub(crate) fn verify_snapshot(&self, volume: &str, guid: Guid, contents: &Contents) {
        let disk = Disk::open_snapshot(self.xml(volume), guid).unwrap();
        assert!(
            read_whole(&disk) == Self::bytes(contents),
            "{volume}: {guid} differs"
        );
    }

    /// What is in the delta files of the other volumes.
    pub(crate) fn files_of_others(&self, volume: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let others = self.contents.keys().filter(|other| **other != volume);
        let files = others.flat_map(|other| self.files(other));
        files
            .map(|file| (file.clone(), std::fs::read(file).unwrap()))
            .collect()
    }
}

impl Volumes {
    /// All delta files, and what is in them.
    pub(crate) fn all_deltas(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let directories = std::fs::read_dir(self.home()).unwrap();
        let directories = directories.map(|entry| entry.unwrap().path());
        let entries = directories
            .filter(|path| path.is_dir() && !path.is_symlink())
            .flat_map(|directory| std::fs::read_dir(directory).unwrap());
        let files = entries.map(|entry| entry.unwrap().path());
        let deltas = files.filter(|path| path.to_string_lossy().contains(".hds"));
        deltas
            .map(|file| (file.clone(), std::fs::read(file).unwrap()))
            .collect()
    }
}

/// The names in a directory, without locks.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    crate::filled_image::names_in(directory)
}
