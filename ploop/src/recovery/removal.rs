//! Deltas that libploop was to remove and could not.
//!
//! To delete the top delta or a leaf of the snapshot tree, and to switch away from the top, libploop
//! writes a descriptor without the delta first and calls `unlink` then. The kernel refuses that
//! (`EPERM`) where a device has the file, and where it is immutable. The file stays, the descriptor
//! has lost it, and libploop returns 35 after a delete and 0 after a switch (28). Where a device
//! writes to the delta, all that it writes is lost with the next unmount. So the descriptor is kept
//! under another name until the delta is gone, and put back otherwise: at once, or where the program
//! was killed, by the next operation.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::detached::may_have;
use crate::ffi::LockedImage;
use crate::image::Image;
use crate::image::descriptor::DescriptorFile;
use crate::sysfs::Device;
use crate::{Descriptor, Error, Result, paths};

/// A delta that is about to be removed, and the descriptor that names it.
pub(crate) struct Removal<'d> {
    delta: &'d Path,
    before: &'d Descriptor,
    /// Where the descriptor is kept.
    kept: PathBuf,
}

impl<'d> Removal<'d> {
    /// Before C: of a delta of the descriptor that is in place.
    pub(crate) fn of(
        locked: &LockedImage<'_>,
        before: &'d Descriptor,
        delta: &'d Image,
    ) -> Result<Removal<'d>> {
        let kept = paths::before_removal(locked.path());
        keep(locked.path(), &kept).map_err(|error| {
            let what = "the descriptor cannot be kept until the delta is removed";
            Error::io(locked.operation(), what, error).with_path(&kept)
        })?;
        Ok(Removal {
            delta: &delta.file,
            before,
            kept,
        })
    }

    /// After C: `result` is what it said. If the delta is there and the descriptor has lost it, it is
    /// removed after all, or named again.
    pub(crate) fn finish(self, locked: &LockedImage<'_>, result: Result<()>) -> Result<()> {
        let Ok(now) = locked.descriptor_file() else {
            return result;
        };
        let mut images = now.descriptor.images.iter();
        let is_named = images.any(|image| image.file == self.delta);
        if is_named || fs::symlink_metadata(self.delta).is_err() {
            return result;
        }
        // libploop does not always say why it failed. Should the reason be gone, so is the delta.
        let refused = match fs::remove_file(self.delta) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        let put_back = self.put_back(locked, &now);
        let what = match &put_back {
            Ok(()) => {
                "the delta cannot be removed: a device has it, or it is immutable. The image is as it was; unmount it, or see lsattr(1)".to_owned()
            }
            Err(error) => format!(
                "the delta cannot be removed, and the descriptor, which has lost it, cannot be put back ({error}). While the delta is attached, nothing written to it survives an unmount; restore the descriptor first"
            ),
        };
        let error = Error::io(locked.operation(), what, refused).with_path(self.delta);
        Err(match result.err().and_then(|error| error.code()) {
            Some(code) => error.with_code(code),
            None => error,
        })
    }

    /// Puts the descriptor back, if nobody but libploop has changed it. `now` is what libploop made of
    /// it.
    fn put_back(&self, locked: &LockedImage<'_>, now: &DescriptorFile) -> io::Result<()> {
        let path = locked.path();
        let Some((_, new)) = difference(self.before, &now.descriptor) else {
            return Err(io::Error::other("another program has changed it"));
        };
        let mut done = Err(io::ErrorKind::WouldBlock.into());
        locked.lock_guard().try_with_libploop_lock(|| {
            done = match fs::read(path) {
                Ok(found) if found == now.text => restore(&self.kept, path),
                Ok(_) => Err(io::Error::other("another program has changed it")),
                Err(error) => Err(error),
            };
            if done.is_ok() {
                if let Some(delta) = new {
                    // The top that a switch has made, still empty. Should it stay, it only takes room.
                    let _ = fs::remove_file(&delta.file);
                }
            }
        });
        done
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // Put back, or not needed any more. What stays is looked at by the next operation.
        let _ = fs::remove_file(&self.kept);
    }
}

/// What libploop's descriptor lacks and what it has instead, if it is what libploop makes in a removal.
fn difference<'d>(
    before: &'d Descriptor,
    now: &'d Descriptor,
) -> Option<(&'d Image, Option<&'d Image>)> {
    let lacks = |descriptor: &Descriptor, image: &Image| {
        let mut files = descriptor.images.iter().map(|other| &other.file);
        files.all(|file| *file != image.file)
    };
    let mut lost = before.images.iter().filter(|image| lacks(now, image));
    let mut new = now.images.iter().filter(|image| lacks(before, image));
    let found = (lost.next()?, new.next());
    (lost.next().is_none() && new.next().is_none()).then_some(found)
}

/// Puts the descriptor back from which a program that was killed had a delta removed that a device has.
/// Whether there was one.
pub(super) fn finish(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    now: &Descriptor,
) -> Result<bool> {
    let kept = paths::before_removal(path);
    if !fs::symlink_metadata(&kept).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(false);
    }
    if let Ok(before) = Descriptor::open(&kept) {
        let lost = difference(&before, now).map(|(lost, _)| lost);
        let is_there = |image: &&Image| fs::symlink_metadata(&image.file).is_ok();
        if lost
            .filter(is_there)
            .is_some_and(|lost| may_have(devices, [lost]))
        {
            restore(&kept, path).map_err(|error| {
                let what = "an earlier operation was interrupted, and its descriptor, which lacks a delta that a device has, cannot be put back";
                Error::io(operation, what, error).with_path(path)
            })?;
            return Ok(true);
        }
    }
    // The delta, if it is there still, is left over, and nobody writes to it.
    let _ = fs::remove_file(&kept);
    Ok(false)
}

/// Under a second name, for libploop puts another file in the place of the first. It need not survive a
/// power cut: then no device has the delta.
fn keep(path: &Path, kept: &Path) -> io::Result<()> {
    // Of a program that was killed, and looked at by now.
    match fs::remove_file(kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not every file system has links, nor may everybody make one of a file of others.
    fs::hard_link(path, kept).or_else(|_| fs::copy(path, kept).map(drop))
}

fn restore(kept: &Path, path: &Path) -> io::Result<()> {
    let file = File::open(kept)?;
    file.sync_all()?;
    fs::rename(kept, path)?;
    // The new name, too. On the disk or not, the descriptor is the right one.
    let _ = file.sync_all();
    let _ = File::open(paths::directory_of(path)).and_then(|directory| directory.sync_all());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::sysfs::Delta;
    use crate::{CreateParam, Ploop, Size};

    fn device(delta: &Path, identity: Option<Identity>) -> Device {
        Device {
            name: "ploop1".into(),
            runs: true,
            component: Vec::new(),
            deltas: vec![Delta {
                path: delta.to_owned(),
                identity,
                read_only: false,
            }],
        }
    }

    #[test]
    fn a_switch_that_was_killed_before_the_old_top_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("root.hds");
        let param = CreateParam::new(base, Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        let snapshot = image.snapshot().unwrap();
        let path = image.path().to_owned();
        let before = fs::read(&path).unwrap();
        let top = image.top_delta_file().unwrap();
        let other = directory.path().join("other");
        fs::hard_link(&top, &other).unwrap();
        image.switch_snapshot(snapshot).unwrap();
        let after = fs::read(&path).unwrap();
        let kept = paths::before_removal(&path);
        assert!(!kept.exists());
        fs::rename(&other, &top).unwrap();
        let identity = Identity::of(&top).ok();
        let finish_with = |device| {
            let now = Descriptor::open(&path).unwrap();
            finish(&[device], "test", &path, &now).unwrap()
        };
        for (device, put_back) in [
            // By its own name, by another, by one that leads nowhere; and others.
            (device(&top, identity), true),
            (device(Path::new("/elsewhere"), identity), true),
            (device(Path::new(top.file_name().unwrap()), None), true),
            (device(&top, Identity::of(&path).ok()), false),
        ] {
            fs::write(&path, &after).unwrap();
            fs::write(&kept, &before).unwrap();
            assert_eq!(finish_with(device), put_back);
            let expected = if put_back { &before } else { &after };
            assert_eq!(fs::read(&path).unwrap(), *expected);
            assert!(!kept.exists());
        }
        // It was removed.
        fs::rename(&top, &other).unwrap();
        fs::write(&kept, &before).unwrap();
        let unknown = device(Path::new(top.file_name().unwrap()), None);
        assert!(!finish_with(unknown));
        assert_eq!(fs::read(&path).unwrap(), after);
        fs::rename(&other, &top).unwrap();
        // What was kept is not complete.
        fs::write(&kept, &before[..before.len() / 2]).unwrap();
        assert!(!finish_with(device(&top, identity)));
        assert_eq!(fs::read(&path).unwrap(), after);
        assert!(!kept.exists());
    }
}
