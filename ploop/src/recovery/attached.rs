//! Interrupted operations on an image that a device still has: the device shows which descriptor is right.
//!
//! libploop writes the new descriptor to `.tmp`, has the driver change the running device, and then renames the file. A
//! process that is killed in between leaves a device that does not fit the descriptor. After a snapshot the device
//! writes to a delta that the descriptor does not have; the next mount would go by the descriptor, and what was written
//! since the snapshot would be lost (hazard A13). After a merge the descriptor still has the old top, which is empty
//! and hides nothing. While the device runs, its deltas show which of the two descriptors is right.
//!
//! A process that is killed while the driver merges the top leaves a device that goes on merging, and refuses most
//! requests until another `PLOOP_IOC_MERGE` has finished it. libploop tries to, and corrupts memory (hazard 17); so
//! this crate finishes it.
//!
//! For images that no device has any more, see [`crate::image::recovery`].

use std::io;
use std::path::Path;

use crate::ffi::{descriptor_form, finish_merge};
use crate::identity::Identity;
use crate::image::recovery::detached::{self, put_in_place};
use crate::image::recovery::{merge, removal, staged_descriptor};
use crate::sysfs::{self, Device};
use crate::{Descriptor, Error, Result, paths};

/// The result of a recovery.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether anything was changed, perhaps the descriptor.
    pub(super) changed: bool,
    /// All devices, afterwards.
    pub(super) devices: Vec<Device>,
}

/// Finishes or undoes what was interrupted. The image's lock is held, and `descriptor` is what the file says.
pub(super) fn finish(
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
) -> Result<Outcome> {
    let devices = || sysfs::devices(operation);
    finish_in(&devices, operation, path, descriptor, &|device| {
        finish_merge(&device.path())
    })
}

fn finish_in(
    devices: &dyn Fn() -> Result<Vec<Device>>,
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
    finish_merge: &dyn Fn(&Device) -> io::Result<()>,
) -> Result<Outcome> {
    let mut found = devices()?;
    let merged = finish_merges(&found, operation, path, descriptor, finish_merge)?;
    if merged {
        found = devices()?;
    }
    let form = descriptor_form();
    // From here on devices do not change. Once a descriptor was put in place, nothing is left to do.
    let replaced = removal::finish(&found, operation, path, descriptor, form)?
        || follow_device(&found, operation, path, descriptor)?;
    let marked =
        !replaced && merge::mark_lost_snapshots(&found, operation, path, descriptor, form)?;
    let finished = !replaced && detached::finish(&found, operation, path, descriptor, form)?;
    Ok(Outcome {
        changed: merged || replaced || marked || finished,
        devices: found,
    })
}

/// Finishes merges that the driver has begun, and returns whether there were any. A finished merge does not change
/// what the chain of the descriptor reads, whether or not there is a staged descriptor.
fn finish_merges(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
    finish_merge: &dyn Fn(&Device) -> io::Result<()>,
) -> Result<bool> {
    let merging = || devices.iter().filter(|device| device.is_merging());
    if merging().next().is_none() {
        return Ok(false);
    }
    let Some(chain) = chain(descriptor) else {
        return Ok(false);
    };
    let mut any = false;
    for device in merging() {
        if is_of(device, descriptor, &chain) {
            finish_merge(device).map_err(|error| {
                let what = format!(
                    "a merge on {} was interrupted, and cannot be finished",
                    device.path().display()
                );
                Error::io(operation, &what, error).with_path(path)
            })?;
            any = true;
        }
    }
    Ok(any)
}

/// Puts the staged descriptor in place, if a running device has its chain of deltas.
fn follow_device(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
) -> Result<bool> {
    let staged = paths::staged(path);
    // While it is not complete, libploop has not told the driver anything.
    let Some(new) = staged_descriptor(&staged, descriptor_form()) else {
        return Ok(false);
    };
    let Some(new_chain) = chain(&new) else {
        return Ok(false);
    };
    // Deltas of the old descriptor may be missing: a merge to a new file removes one.
    let is_new = |device: &Device| {
        let same_len = device.deltas.len() == new_chain.len() || new.stands_upon().is_some();
        device.writes() && same_len && ends_with(device, &new_chain)
    };
    if chain(old).as_ref() == Some(&new_chain) || !devices.iter().any(is_new) {
        return Ok(false);
    }
    put_in_place(operation, &staged, path)?;
    Ok(true)
}

/// The files of the top's chain, the base first.
fn chain(descriptor: &Descriptor) -> Option<Vec<Identity>> {
    let chain = descriptor.chain(descriptor.top);
    chain
        .iter()
        .map(|image| Identity::of(&image.file).ok())
        .collect()
}

/// Whether the device is of the image with this chain: it has its base, or all of its deltas upon those of other images.
fn is_of(device: &Device, descriptor: &Descriptor, chain: &[Identity]) -> bool {
    if descriptor.stands_upon().is_some() {
        return ends_with(device, chain);
    }
    let base = device.base().and_then(|base| base.identity);
    base.is_some() && base.as_ref() == chain.first()
}

/// Whether the uppermost deltas of the device are these.
fn ends_with(device: &Device, chain: &[Identity]) -> bool {
    let deltas: Vec<_> = device.deltas.iter().map(|delta| delta.identity).collect();
    let chain: Vec<_> = chain.iter().copied().map(Some).collect();
    deltas.ends_with(&chain)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::*;
    use crate::image::Header;
    use crate::{CreateParam, MergeParam, MergeTarget, Ploop, Size};

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
            self.finish_with(&|device| panic!("{device:?} does not merge"))
        }

        fn finish_with(&self, merge: &dyn Fn(&Device) -> io::Result<()>) -> bool {
            self.try_finish_with(merge).unwrap().changed
        }

        fn try_finish_with(&self, merge: &dyn Fn(&Device) -> io::Result<()>) -> Result<Outcome> {
            let devices = || sysfs::devices_in("test", &self.devices);
            let descriptor = Descriptor::open(self.path()).unwrap();
            finish_in(&devices, "test", &self.path(), &descriptor, merge)
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

    /// With and without the descriptor that libploop would have put in place.
    #[test]
    fn a_merge_that_runs_is_finished_first() {
        for staged in [true, false] {
            let (fixture, base) = merge(None, 1);
            let both = fixture.files(&fixture.path());
            if !staged {
                fs::remove_file(fixture.staged()).unwrap();
            }
            fixture.device(false, &both);
            let below = fixture.devices.join("ploop12345/pdelta/0/ro");
            fs::write(below, "0\n").unwrap();
            let finished = fixture.finish_with(&|device| {
                assert_eq!(device.name, "ploop12345");
                fixture.device(false, std::slice::from_ref(&base));
                Ok(())
            });
            assert!(finished);
            assert!(!fixture.staged().exists());
            let expected = if staged { 1 } else { 2 };
            assert_eq!(fixture.files(&fixture.path()).len(), expected);
            assert!(!fixture.finish());
            // What cannot be finished is no success.
            fixture.device(false, &both);
            let below = fixture.devices.join("ploop12345/pdelta/0/ro");
            fs::write(below, "0\n").unwrap();
            let full = |_: &Device| Err(io::ErrorKind::StorageFull.into());
            let error = fixture.try_finish_with(&full).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::NoSpace);
            assert!(error.message().contains("ploop12345"), "{error}");
        }
    }

    /// Of a merge to a new file, which libploop has given to the device, and then removed an old one.
    #[test]
    fn the_device_says_so_of_a_merge_to_a_new_file() {
        for removed in [false, true] {
            let fixture = Fixture::new();
            let before = fs::read(fixture.path()).unwrap();
            let old = fixture.files(&fixture.path());
            let kept: Vec<Vec<u8>> = old.iter().map(|file| fs::read(file).unwrap()).collect();
            let param = MergeParam::new(MergeTarget::All);
            let param = param.new_delta(fixture.directory.path().join("merged.hds"));
            Ploop::open(fixture.path()).unwrap().merge(&param).unwrap();
            fs::rename(fixture.path(), fixture.staged()).unwrap();
            fs::write(fixture.path(), before).unwrap();
            for (file, bytes) in old.iter().zip(kept).skip(usize::from(removed)) {
                fs::write(file, bytes).unwrap();
            }
            let new = fixture.files(&fixture.staged());
            if !removed {
                fixture.device(false, &old);
                assert!(!fixture.finish());
            }
            fixture.device(false, &new);
            assert!(fixture.finish());
            assert_eq!(fixture.files(&fixture.path()), new);
            assert!(!fixture.staged().exists());
        }
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

    const CLUSTER: u64 = 1 << 20;

    /// Writes the disk's first cluster to a delta.
    fn write_first_cluster(delta: &Path, fill: u8) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(delta)
            .unwrap();
        let end = file.metadata().unwrap().len();
        assert_eq!(end % CLUSTER, 0);
        file.write_all_at(&[fill; CLUSTER as usize], end).unwrap();
        let unit = match Header::read(delta).unwrap().version {
            crate::FormatVersion::V1 => 512,
            crate::FormatVersion::V2 => CLUSTER,
        };
        let entry = u32::try_from(end / unit).unwrap();
        file.write_all_at(&entry.to_le_bytes(), 64).unwrap();
        file.write_all_at(&[0; 4], 52).unwrap();
    }

    /// A merge of the top that was interrupted, with the disk's first cluster in both deltas.
    fn merge(lower: Option<u8>, upper: u8) -> (Fixture, PathBuf) {
        let fixture = Fixture::new();
        let both = fixture.files(&fixture.path());
        let before = fs::read(fixture.path()).unwrap();
        let mut image = Ploop::open(fixture.path()).unwrap();
        let base = image.descriptor().unwrap().base().unwrap().guid;
        let kept = fs::read(&both[1]).unwrap();
        image.delete_snapshot(base).unwrap();
        fs::rename(fixture.path(), fixture.staged()).unwrap();
        fs::write(fixture.path(), before).unwrap();
        fs::write(&both[1], kept).unwrap();
        if let Some(fill) = lower {
            write_first_cluster(&both[0], fill);
        }
        write_first_cluster(&both[1], upper);
        let file = fs::File::options().write(true).open(&both[0]).unwrap();
        file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
            .unwrap();
        (fixture, both[0].clone())
    }

    #[test]
    fn the_mark_of_a_merge_is_taken_off_where_no_device_has_the_delta() {
        for lower in [None, Some(1), Some(2)] {
            for staged in [None, Some(".tmp"), Some(".tmp.tmp")] {
                let (fixture, base) = merge(lower, 1);
                match staged {
                    None => fs::remove_file(fixture.staged()).unwrap(),
                    Some(suffix) => {
                        let name = format!("DiskDescriptor.xml{suffix}");
                        let to = fixture.directory.path().join(name);
                        fs::rename(fixture.staged(), to).unwrap();
                    }
                }
                let is_marked = || Header::read(&base).unwrap().in_use;
                assert!(is_marked());
                fixture.device(true, std::slice::from_ref(&base));
                assert!(!fixture.finish() && is_marked());
                fs::remove_dir_all(fixture.devices.join("ploop12345")).unwrap();
                assert!(fixture.finish());
                assert!(!is_marked());
                assert!(!fixture.staged().exists());
                assert_eq!(fixture.files(&fixture.path()).len(), 2);
                // A descriptor that was not yet staged is of a merge that had not begun.
                let descriptor = Descriptor::open(fixture.path()).unwrap();
                let [snapshot, top] = &descriptor.snapshots[..] else {
                    panic!("{descriptor:?}");
                };
                assert_eq!(snapshot.temporary, staged == Some(".tmp"));
                assert!(!top.temporary && top.guid == descriptor.top);
                assert!(!fixture.finish());
            }
        }
    }
}
