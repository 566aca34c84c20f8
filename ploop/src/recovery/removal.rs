//! Deltas that libploop was to remove and could not.
//!
//! To delete the top delta or a leaf of the snapshot tree, and to switch away from the top, libploop
//! writes a descriptor without the delta first and calls `unlink` then. The kernel refuses that
//! (`EPERM`) where a device has the file, and where it is immutable. The file stays, the descriptor
//! has lost it, and libploop returns 35 after a delete and 0 after a switch (28). Where a device
//! writes to the delta, all that it writes is lost with the next unmount. So the descriptor is put
//! back.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::ffi::Turn;
use crate::image::Image;
use crate::{Descriptor, Error, Result, paths};

/// A delta that is about to be removed, and the descriptor that names it.
pub(crate) struct Removal {
    delta: PathBuf,
    before: Descriptor,
    text: Vec<u8>,
    permissions: Permissions,
}

impl Removal {
    pub(crate) fn of(turn: &Turn<'_>, delta: &Image) -> Result<Removal> {
        let (before, text) = turn.descriptor_and_text()?;
        let metadata = fs::metadata(turn.path()).map_err(|error| {
            Error::io(turn.operation(), "the descriptor cannot be examined", error)
                .with_path(turn.path())
        })?;
        Ok(Removal {
            delta: delta.file.clone(),
            before,
            text,
            permissions: metadata.permissions(),
        })
    }

    /// After C: `result` is what it said. If the delta is there and the descriptor has lost it, it is
    /// removed after all, or named again.
    pub(crate) fn finish(self, turn: &Turn<'_>, result: Result<()>) -> Result<()> {
        let Ok((now, text)) = turn.descriptor_and_text() else {
            return result;
        };
        let is_named = now.images.iter().any(|image| image.file == self.delta);
        if is_named || fs::symlink_metadata(&self.delta).is_err() {
            return result;
        }
        // libploop does not always say why it failed. Should the reason be gone, so is the delta.
        let refused = match fs::remove_file(&self.delta) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        let put_back = self.put_back(turn, &now, &text);
        let what = match &put_back {
            Ok(()) => {
                "the delta cannot be removed: a device has it, or it is immutable. The image is as it was; unmount it, or see lsattr(1)".to_owned()
            }
            Err(error) => format!(
                "the delta cannot be removed, and the descriptor, which has lost it, cannot be put back ({error}). While the delta is attached, nothing written to it survives an unmount; restore the descriptor first"
            ),
        };
        let error = Error::io(turn.operation(), what, refused).with_path(&self.delta);
        Err(match result.err().and_then(|error| error.code()) {
            Some(code) => error.with_code(code),
            None => error,
        })
    }

    /// Puts the descriptor back, if nobody but libploop has changed it. `now` and `text` are what
    /// libploop made of it.
    fn put_back(&self, turn: &Turn<'_>, now: &Descriptor, text: &[u8]) -> io::Result<()> {
        let path = turn.path();
        let names = |descriptor: &Descriptor, file: &Path| {
            descriptor.images.iter().any(|image| image.file == file)
        };
        let lost = self.before.images.iter();
        if lost.filter(|image| !names(now, &image.file)).count() != 1 {
            return Err(io::Error::other("another program has changed it"));
        }
        let new: Vec<&Path> = now
            .images
            .iter()
            .map(|image| image.file.as_path())
            .filter(|file| !names(&self.before, file))
            .collect();
        let mut done = Err(io::ErrorKind::WouldBlock.into());
        turn.held().if_unlocked(|| {
            done = match fs::read(path) {
                Ok(found) if found == text => self.write(path),
                Ok(_) => Err(io::Error::other("another program has changed it")),
                Err(error) => Err(error),
            };
            if done.is_ok() {
                for delta in new {
                    // The top that a switch has made, still empty. Should it stay, it only takes room.
                    let _ = fs::remove_file(delta);
                }
            }
        });
        done
    }

    /// By the name that libploop has for it: a program that dies before the renaming leaves what the
    /// next operation puts in place while the device runs.
    fn write(&self, path: &Path) -> io::Result<()> {
        let staged = paths::staged(path);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&staged)?;
        let written = file
            .write_all(&self.text)
            .and_then(|()| file.set_permissions(self.permissions.clone()))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&staged, path));
        if let Err(error) = written {
            // It is this function's own.
            let _ = fs::remove_file(&staged);
            return Err(error);
        }
        // The new name, too. On the disk or not, the descriptor is the right one.
        let _ = file.sync_all();
        if let Some(directory) = path.parent() {
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }
}
