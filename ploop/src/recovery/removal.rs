//! Deltas that libploop cannot remove in `ploop_delete_snapshot` and `ploop_switch_snapshot_ex`: they get back into the
//! descriptor.
//!
//! To delete the top or a snapshot without children, and to switch away from the top, libploop first writes a
//! descriptor without the delta, and then calls `unlink`. The kernel refuses that (`EPERM`) where a device has the file,
//! and where the file is immutable. The file stays, the descriptor no longer has it, and libploop returns 35 after a
//! delete and 0 after a switch (28). If a device writes to the delta, all that it writes is lost with the next unmount.
//! So this crate saves the descriptor (`.ploop-before`) until the delta is gone. If it is not, the descriptor is put
//! back: at once, or if the program was killed, by the next operation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::ffi::LockedImage;
use crate::image::Image;
use crate::image::descriptor::DescriptorFile;
use crate::image::recovery::removal::{difference, restore};
use crate::{Descriptor, Error, Result, paths};

/// A delta that libploop is to remove, and the descriptor that still has it.
pub(crate) struct Removal<'d> {
    delta: &'d Path,
    before: &'d Descriptor,
    /// The file in which the descriptor is saved.
    saved: PathBuf,
}

impl<'d> Removal<'d> {
    /// Saves the descriptor, before C.
    pub(crate) fn begin(
        locked: &LockedImage<'_>,
        before: &'d Descriptor,
        delta: &'d Image,
    ) -> Result<Removal<'d>> {
        let saved = paths::before_removal(locked.path());
        save_descriptor(locked.path(), &saved).map_err(|error| {
            let what = "the descriptor cannot be saved for the time until the delta is removed";
            Error::io(locked.operation(), what, error).with_path(&saved)
        })?;
        Ok(Removal {
            delta: &delta.file,
            before,
            saved,
        })
    }

    /// After C, whose result this is. If the delta is still there and the descriptor no longer has it, the delta is
    /// removed, or else the descriptor is put back.
    pub(crate) fn finish(self, locked: &LockedImage<'_>, result: Result<()>) -> Result<()> {
        let Ok(now) = locked.descriptor_file() else {
            return result;
        };
        let mut images = now.descriptor.images.iter();
        let is_named = images.any(|image| image.file == self.delta);
        if is_named || fs::symlink_metadata(self.delta).is_err() {
            return result;
        }
        // libploop does not always say why it failed. If the reason is gone by now, this succeeds.
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
                "the delta cannot be removed, and the old descriptor, which still has it, cannot be put back ({error}). If the image is attached, what is written to it is lost with the next unmount; restore the descriptor first"
            ),
        };
        let error = Error::io(locked.operation(), what, refused).with_path(self.delta);
        Err(match result.err().and_then(|error| error.code()) {
            Some(code) => error.with_code(code),
            None => error,
        })
    }

    /// Puts the saved descriptor back, if only libploop has changed the one in place, which is `now`.
    fn put_back(&self, locked: &LockedImage<'_>, now: &DescriptorFile) -> io::Result<()> {
        let path = locked.path();
        let Some((_, new)) = difference(self.before, &now.descriptor) else {
            return Err(io::Error::other("another program has changed it"));
        };
        let mut done = Err(io::ErrorKind::WouldBlock.into());
        locked.lock_guard().try_with_libploop_lock(|| {
            done = match fs::read(path) {
                Ok(found) if found == now.text => restore(&self.saved, path),
                Ok(_) => Err(io::Error::other("another program has changed it")),
                Err(error) => Err(error),
            };
            if done.is_ok() {
                if let Some(delta) = new {
                    // The empty top that a switch has made. If it stays, it only takes space.
                    let _ = fs::remove_file(&delta.file);
                }
            }
        });
        done
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // It was put back, or is not needed any more. If it stays, the next operation looks at it.
        let _ = fs::remove_file(&self.saved);
    }
}

/// Saves the descriptor by a second link: libploop replaces the first one by another file. It need not survive a power
/// cut, after which no device has the delta.
fn save_descriptor(path: &Path, saved: &Path) -> io::Result<()> {
    // A program that was killed may have left one. The recovery has looked at it.
    match fs::remove_file(saved) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not every file system has links, and not everybody may link a file of another user.
    fs::hard_link(path, saved).or_else(|_| fs::copy(path, saved).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::descriptor_form;
    use crate::identity::Identity;
    use crate::image::recovery::removal::finish;
    use crate::sysfs::{Delta, Device};
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
        let saved = paths::before_removal(&path);
        assert!(!saved.exists());
        fs::rename(&other, &top).unwrap();
        let identity = Identity::of(&top).ok();
        let finish_with = |device| {
            let now = Descriptor::open(&path).unwrap();
            finish(&[device], "test", &path, &now, descriptor_form()).unwrap()
        };
        for (device, put_back) in [
            // By its own name, by another, by one that leads nowhere; and others.
            (device(&top, identity), true),
            (device(Path::new("/elsewhere"), identity), true),
            (device(Path::new(top.file_name().unwrap()), None), true),
            (device(&top, Identity::of(&path).ok()), false),
        ] {
            fs::write(&path, &after).unwrap();
            fs::write(&saved, &before).unwrap();
            assert_eq!(finish_with(device), put_back);
            let expected = if put_back { &before } else { &after };
            assert_eq!(fs::read(&path).unwrap(), *expected);
            assert!(!saved.exists());
        }
        // It was removed.
        fs::rename(&top, &other).unwrap();
        fs::write(&saved, &before).unwrap();
        let unknown = device(Path::new(top.file_name().unwrap()), None);
        assert!(!finish_with(unknown));
        assert_eq!(fs::read(&path).unwrap(), after);
        fs::rename(&other, &top).unwrap();
        // The saved descriptor is not complete.
        fs::write(&saved, &before[..before.len() / 2]).unwrap();
        assert!(!finish_with(device(&top, identity)));
        assert_eq!(fs::read(&path).unwrap(), after);
        assert!(!saved.exists());
    }
}
