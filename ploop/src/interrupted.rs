//! Operations that ended between the driver's part and the descriptor's.
//!
//! libploop writes the new descriptor beside the old one, has the driver change the running device,
//! and then renames. A process that dies in between leaves a device that writes where its descriptor
//! does not look: after a snapshot to a delta it does not name, after a merge of the top below one
//! that it still names. The next mount goes by the descriptor, and what was written since is gone
//! (hazard A13). As long as the device runs, it tells which of the two descriptors is true.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Descriptor, Error, Result};

const DEVICES: &str = "/sys/block";

/// Puts the new descriptor in its place, if the image runs on the deltas it names. Whether it did. The
/// image's lock is held.
pub(crate) fn finish(operation: &'static str, descriptor: &Path) -> Result<bool> {
    finish_in(Path::new(DEVICES), operation, descriptor)
}

fn finish_in(devices: &Path, operation: &'static str, descriptor: &Path) -> Result<bool> {
    let mut staged = OsString::from(descriptor);
    staged.push(".tmp");
    let staged = PathBuf::from(staged);
    if !fs::symlink_metadata(&staged).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(false);
    }
    // One that is not complete was not yet followed by anything.
    let (Ok(old), Ok(new)) = (Descriptor::open(descriptor), Descriptor::open(&staged)) else {
        return Ok(false);
    };
    let (Some(old), Some(new)) = (chain(&old), chain(&new)) else {
        return Ok(false);
    };
    if old == new || !running(devices).any(|levels| levels == new) {
        return Ok(false);
    }
    fs::rename(&staged, descriptor).map_err(|error| {
        Error::io(
            operation,
            "an earlier operation was interrupted, and its descriptor cannot be put in its place",
            error,
        )
        .with_path(staged)
    })?;
    Ok(true)
}

/// A file, whatever its name.
type Identity = (u64, u64);

fn identity(file: &Path) -> Option<Identity> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The deltas of the top, from the base up.
fn chain(descriptor: &Descriptor) -> Option<Vec<Identity>> {
    let chain = descriptor.chain(descriptor.top);
    chain.iter().map(|image| identity(&image.file)).collect()
}

/// The deltas of each device that is written to, from the base up.
fn running(devices: &Path) -> impl Iterator<Item = Vec<Identity>> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"ploop"))
        .filter_map(|entry| levels(&entry.path()))
}

fn levels(device: &Path) -> Option<Vec<Identity>> {
    let text = |name: PathBuf| fs::read_to_string(device.join(name)).ok();
    if text("pstate/running".into())?.trim() != "1" {
        return None;
    }
    let top: usize = text("pstate/top".into())?.trim().parse().ok()?;
    let level = |number: usize| Path::new("pdelta").join(number.to_string());
    if text(level(top).join("ro"))?.trim() != "0" {
        return None;
    }
    (0..=top)
        .map(|number| {
            let name = text(level(number).join("image"))?;
            identity(Path::new(name.strip_suffix('\n').unwrap_or(&name)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateParam, Ploop, Size};

    struct Fixture {
        directory: tempfile::TempDir,
        devices: PathBuf,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let devices = directory.path().join("block");
            fs::create_dir(&devices).unwrap();
            let base = directory.path().join("root.hds");
            let mut image =
                Ploop::create(&CreateParam::new(base, Size::from_mib(10)).fs(None)).unwrap();
            image.snapshot().unwrap();
            Fixture { directory, devices }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("DiskDescriptor.xml")
        }

        fn staged(&self) -> PathBuf {
            self.directory.path().join("DiskDescriptor.xml.tmp")
        }

        /// A device with these deltas, as sysfs shows it.
        fn device(&self, read_only: bool, files: &[PathBuf]) {
            let device = self.devices.join("ploop12345");
            let _ = fs::remove_dir_all(&device);
            let write = |name: &str, text: String| {
                let path = device.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text + "\n").unwrap();
            };
            write("pstate/running", "1".into());
            write("pstate/top", (files.len() - 1).to_string());
            for (number, file) in files.iter().enumerate() {
                let file = fs::canonicalize(file).unwrap();
                write(
                    &format!("pdelta/{number}/image"),
                    file.display().to_string(),
                );
                let last = number + 1 == files.len();
                let read_only = u8::from(read_only || !last);
                write(&format!("pdelta/{number}/ro"), read_only.to_string());
            }
        }

        fn finish(&self) -> bool {
            finish_in(&self.devices, "test", &self.path()).unwrap()
        }

        fn files(&self, of: &Path) -> Vec<PathBuf> {
            let descriptor = Descriptor::open(of).unwrap();
            let chain = descriptor.chain(descriptor.top);
            chain.iter().map(|image| image.file.clone()).collect()
        }
    }

    /// With a descriptor of the base and the top, and a staged one with another delta upon them.
    fn snapshot() -> Fixture {
        let fixture = Fixture::new();
        let before = fs::read(fixture.path()).unwrap();
        Ploop::open(fixture.path()).unwrap().snapshot().unwrap();
        fs::rename(fixture.path(), fixture.staged()).unwrap();
        fs::write(fixture.path(), before).unwrap();
        fixture
    }

    #[test]
    fn the_device_says_which_descriptor_is_true() {
        let fixture = snapshot();
        let (old, new) = (
            fixture.files(&fixture.path()),
            fixture.files(&fixture.staged()),
        );
        assert_eq!((old.len(), new.len()), (2, 3));
        assert!(!fixture.finish());
        fixture.device(false, &old);
        assert!(!fixture.finish());
        fixture.device(true, &new);
        assert!(!fixture.finish());
        fixture.device(false, &new);
        assert!(fixture.finish());
        assert_eq!(fixture.files(&fixture.path()), new);
        assert!(!fixture.staged().exists());
        assert!(!fixture.finish());
    }

    #[test]
    fn a_staged_descriptor_that_is_not_whole_is_left_alone() {
        let fixture = snapshot();
        let new = fixture.files(&fixture.staged());
        fixture.device(false, &new);
        fs::write(fixture.staged(), b"").unwrap();
        assert!(!fixture.finish());
        assert_eq!(fixture.files(&fixture.path()).len(), 2);
    }
}
