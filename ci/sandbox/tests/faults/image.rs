//! An image whose file system holds files of known bytes. What is known is kept outside of it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ploop::image::{Issue, check};
use ploop::{CreateParam, MountParam, Ploop, Size};

use super::sandbox::{run, tool};
use fastrand::Rng;

/// The size of the images: libploop makes a journal of 128 MiB.
pub(crate) const SIZE: Size = Size::from_mib(384);

/// Files by their names: the seed of their bytes, and how many there are.
pub(crate) type Files = BTreeMap<String, (u64, usize)>;

/// Each sector repeats a number of its own: disks lose and misplace whole sectors, and gigabytes are made quickly.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    const SECTOR: usize = 512;
    let mut random = Rng::with_seed(seed);
    let mut bytes = Vec::with_capacity(len + SECTOR);
    while bytes.len() < len {
        let number = random.u64(..).to_le_bytes();
        bytes.extend_from_slice(&number.repeat(SECTOR / number.len()));
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file and brings it, and its name, to the disk.
pub(crate) fn write_synced(directory: &Path, name: &str, seed: u64, len: usize) -> io::Result<()> {
    let mut file = File::create(directory.join(name))?;
    file.write_all(&content(seed, len))?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// The files that are not there as they should be, byte by byte.
pub(crate) fn differences(directory: &Path, files: &Files) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, (seed, len)) in files {
        match fs::read(directory.join(name)) {
            Ok(bytes) if bytes == content(*seed, *len) => {}
            Ok(bytes) => differences.push(format!("{name} differs, with {} bytes", bytes.len())),
            Err(error) => differences.push(format!("{name}: {error}")),
        }
    }
    differences
}

/// An image in a directory of its own.
pub(crate) struct Image {
    pub(crate) directory: PathBuf,
    pub(crate) files: Arc<Mutex<Files>>,
}

impl Image {
    /// The image that is in this directory, with nothing known about it.
    pub(crate) fn at(directory: &Path) -> Image {
        Image {
            directory: directory.to_owned(),
            files: Arc::default(),
        }
    }

    /// A new one.
    pub(crate) fn create(directory: &Path) -> Image {
        fs::create_dir_all(directory.join("mnt")).unwrap();
        Ploop::create(&CreateParam::new(directory.join("root.hdd"), SIZE)).unwrap();
        Image::at(directory)
    }

    /// A copy in another directory, while it is not attached. Without holes: the driver cannot write
    /// to them.
    pub(crate) fn copy(&self, directory: &Path) -> Image {
        let (from, to) = (self.directory.to_str(), directory.to_str());
        tool("cp", &["-a", "--sparse=never", from.unwrap(), to.unwrap()]);
        Image {
            directory: directory.to_owned(),
            files: Arc::new(Mutex::new(self.files.lock().unwrap().clone())),
        }
    }

    pub(crate) fn descriptor(&self) -> PathBuf {
        self.directory.join("DiskDescriptor.xml")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    pub(crate) fn open(&self) -> Ploop {
        Ploop::open(self.descriptor()).unwrap()
    }

    pub(crate) fn param(&self) -> MountParam {
        MountParam::new().target(self.target())
    }

    pub(crate) fn mount(&self) {
        self.open().mount(&self.param()).unwrap();
    }

    /// Writes a file to the mounted file system; its seed comes from its name.
    pub(crate) fn write(&self, name: &str, len: usize) {
        let seed = name
            .bytes()
            .fold(7u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        write_synced(&self.target(), name, seed, len).unwrap();
        self.files
            .lock()
            .unwrap()
            .insert(name.to_owned(), (seed, len));
    }

    /// Asserts that the mounted file system has all files that were synced.
    #[track_caller]
    pub(crate) fn verify(&self, what: &str) {
        let wrong = differences(&self.target(), &self.files.lock().unwrap());
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
    }

    /// Keeps writing files until it is told to stop, or a write fails.
    pub(crate) fn keep_writing(&self, seed: u64) -> Writer {
        let (target, files) = (self.target(), Arc::clone(&self.files));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut random = Rng::with_seed(seed);
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A hundred names, so that some are written again.
                let name = format!("written.{}", number % 100);
                let (seed, len) = (random.u64(..), 1 + random.usize(..96 << 10));
                // From here on neither the old nor the new bytes are certain.
                files.lock().unwrap().remove(&name);
                if write_synced(&target, &name, seed, len).is_err() {
                    break;
                }
                files.lock().unwrap().insert(name, (seed, len));
                thread::sleep(Duration::from_millis(1));
            }
            let _ = sender.send(());
        });
        Writer {
            stop,
            ended: receiver,
        }
    }

    /// Does what a user does after the fault. Then the image must be unmounted and sound, its file system in order, and every
    /// file as it was when it was synced.
    #[track_caller]
    pub(crate) fn recover(&self, what: &str) {
        let mut image = self.open();
        let mut mounted = image.is_mounted();
        // Killed between two steps, it left a device that does not run.
        let stopped = |error: &ploop::Error| error.message().contains("stopped ploop device");
        if mounted.as_ref().is_err_and(stopped) {
            image
                .umount()
                .unwrap_or_else(|error| panic!("{what}: the device is not given free: {error}"));
            mounted = image.is_mounted();
        }
        if mounted.unwrap_or_else(|error| panic!("{what}: {error}")) {
            // One that was frozen for a copy stays frozen.
            let _ = run("fsfreeze", &["-u", self.target().to_str().unwrap()]);
            image
                .umount()
                .unwrap_or_else(|error| panic!("{what}: the image is not unmounted: {error}"));
        }
        self.verify_detached(what);
    }

    /// As [`recover`](Image::recover), of an image that is not attached.
    #[track_caller]
    pub(crate) fn verify_detached(&self, what: &str) {
        let report = check(self.descriptor());
        assert!(report.is_sound(), "{what}: {report}");
        let mut image = self.open();
        image
            .descriptor()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let attached = image
            .mount(&MountParam::new())
            .unwrap_or_else(|error| panic!("{what}: the image is not attached: {error}"));
        let partition = format!("{}p1", attached.device.display());
        // Replays the journal.
        let (code, text) = run("e2fsck", &["-p", &partition]);
        assert!(
            matches!(code, Some(0 | 1)),
            "{what}: e2fsck -p: {code:?}: {text}"
        );
        let (code, text) = run("e2fsck", &["-f", "-n", &partition]);
        assert_eq!(code, Some(0), "{what}: e2fsck -f: {text}");
        image
            .umount()
            .unwrap_or_else(|error| panic!("{what}: {error}"));

        let guard = image
            .mount_guard(&self.param())
            .unwrap_or_else(|error| panic!("{what}: the image is not mounted: {error}"));
        self.verify(what);
        guard
            .umount()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let report = check(self.descriptor());
        assert!(
            report.is_sound() && !report.has(Issue::InUse),
            "{what}: {report}"
        );
    }
}

/// A thread that writes.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    ended: mpsc::Receiver<()>,
}

impl Writer {
    /// Ends it. It may be in the middle of a write, but not for long.
    #[track_caller]
    pub(crate) fn stop(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.ended.recv_timeout(Duration::from_secs(30));
        assert_ne!(
            ended,
            Err(RecvTimeoutError::Timeout),
            "{what}: a write hangs"
        );
    }
}
