//! Which devices have the deltas of an image that is to be changed, and whether libploop would find them.
//!
//! libploop looks for a device by the spelling of its base's path, and mostly for one without a component name. If it
//! finds none, it takes the image for one that does not run, and changes the files under the device. Here files are
//! compared, on every level of every device.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Change;
use crate::device::{self, is_top_of};
use crate::identity::Identity;
use crate::image::Header;
use crate::image::recovery::creation;
use crate::sysfs::{self, Device};
use crate::{Code, Error, ErrorKind, Guid, Result};

impl Change<'_> {
    /// Requires that each delta is a file of its own. Otherwise merging one into the other, or removing one, would
    /// remove both.
    pub(crate) fn require_distinct_files(&self) -> Result<()> {
        for (at, (guid, file)) in self.files.iter().enumerate() {
            if let Some((other, _)) = self.files[..at].iter().find(|(_, other)| other == file) {
                let path = self.descriptor.image(*guid).map(|image| &image.file);
                let error = Error::new(
                    ErrorKind::Corrupt,
                    self.operation(),
                    format!("{other} and {guid} are one file, by one name or by two"),
                );
                return Err(error.with_path(path.map_or(self.path(), |path| path)));
            }
        }
        Ok(())
    }

    /// Requires that libploop would find each device that writes to the top delta (A16).
    pub(crate) fn require_writers_found(&self) -> Result<()> {
        let top = self.descriptor.top;
        for device in self.devices_with_top(top) {
            if device.writes() {
                self.require_found_by_libploop(device)?;
            }
        }
        self.require_identified_writer(top)
    }

    /// Requires that the descriptor names the delta to which the running device writes: another descriptor was put back
    /// meanwhile. Snapshots and merges would go by this one, and what the other delta has would be lost (A64).
    pub(crate) fn require_named_top(&self) -> Result<()> {
        let running = self
            .devices
            .iter()
            .filter(|it| it.writes() && self.is_found(it));
        for device in running {
            let top = device
                .top()
                .and_then(|top| Some((&top.path, top.identity?)));
            let Some((path, _)) = top.filter(|(_, file)| self.delta_of_file(*file).is_none())
            else {
                continue;
            };
            return self.refuse(
                ErrorKind::Corrupt,
                format!(
                    "{} has this image, and writes to {}, which the descriptor does not name: it is not the one with which the image was attached; restore that one. After an unmount, what was written since is in that file alone",
                    device.path().display(),
                    path.display()
                ),
            );
        }
        Ok(())
    }

    /// Refuses a delta that is marked as in use while a device writes to a file that cannot be identified: it may be
    /// this one. The driver clears the mark when the device stops. A mark that stays after the host went down is no
    /// reason: then no device runs.
    pub(crate) fn require_identified_writer(&self, guid: Guid) -> Result<()> {
        if self.devices_with(&[guid]).next().is_some() {
            return Ok(());
        }
        let unknown = |device: &&Device| {
            device.writes() && device.top().is_some_and(|top| top.identity.is_none())
        };
        let Some(device) = self.devices.iter().find(unknown) else {
            return Ok(());
        };
        let Some(image) = self.descriptor.image(guid) else {
            return Ok(());
        };
        let may_be_its = match Header::read(&image.file) {
            Ok(header) => header.in_use,
            // A raw base has no mark. Damage is reported elsewhere.
            Err(_) => device.deltas.len() == self.descriptor.chain(guid).len(),
        };
        if !may_be_its {
            return Ok(());
        }
        self.refuse_attached(
            device,
            "no file here has that path, so it cannot be told which file the device writes to, and the delta is marked as in use",
        )
    }

    /// Requires that no device has these deltas, on any level, but the one that libploop finds and works with. The
    /// kernel does not remove a file that a device has, and a read-only device would read what is written to it.
    pub(crate) fn require_unattached(&self, guids: &[Guid]) -> Result<()> {
        for device in self.devices_with(guids) {
            let is_its_own = device.writes() && self.is_found(device);
            if !is_its_own && !self.is_temporary(device) {
                return self
                    .refuse_attached(device, "it has a delta that would be changed or removed")
                    .map_err(|error: Error| error.with_code(Code::EBUSY.get()));
            }
        }
        Ok(())
    }

    /// Requires that the file of a delta into which others are merged has one name. By another name it may belong to
    /// another image (linked clones, backups by hard links), whose data would change.
    pub(crate) fn require_no_hard_links(&self, lower: Guid) -> Result<()> {
        let Some(image) = self.descriptor.image(lower) else {
            return Ok(());
        };
        let names = || fs::metadata(&image.file).map(|metadata| metadata.nlink());
        if names().is_ok_and(|names| names > 1) {
            creation::remove_second_link(&image.file);
        }
        match names() {
            Ok(names) if names > 1 => Err(Error::new(
                ErrorKind::Unsupported,
                self.operation(),
                format!(
                    "this file has {} names (hard links), and merging into it would change its contents under all of them; put a copy of the file in its place, or remove the other names",
                    names
                ),
            )
            .with_path(&image.file)),
            _ => Ok(()),
        }
    }

    /// Whether a device is that of a temporary snapshot, which libploop detaches if it is not in use.
    fn is_temporary(&self, device: &Device) -> bool {
        let top = device.top().and_then(|top| top.identity);
        let snapshot = top
            .and_then(|file| self.delta_of_file(file))
            .and_then(|guid| self.descriptor.snapshot(guid));
        // Without a holder (`~`) the snapshot stays until it is detached.
        snapshot.is_some_and(|snapshot| snapshot.temporary) && !device.component.starts_with(b"~")
    }

    /// Requires that libploop finds this device of the image, by its component name and the spelling of its base's
    /// path.
    pub(crate) fn require_found_by_libploop(&self, device: &Device) -> Result<()> {
        match self.is_found(device) {
            true => Ok(()),
            false => self.refuse_attached(device, "libploop would not look for it there"),
        }
    }

    /// The device that libploop finds.
    pub(crate) fn found_device(&self) -> Option<&Device> {
        self.devices.iter().find(|device| self.is_found(device))
    }

    fn is_found(&self, device: &Device) -> bool {
        let base = match self.parents() {
            Some(parents) => parents.base(),
            None => self.descriptor.base().map(|base| &*base.file),
        };
        let base = base.and_then(|base| fs::canonicalize(base).ok());
        base.is_some_and(|base| device.is_found_by(&base, self.component()))
            && is_top_of(device, &self.descriptor)
    }

    /// The error of an operation that cannot be done while this device has the image.
    pub(crate) fn refuse_attached<T>(&self, device: &Device, why: &str) -> Result<T> {
        self.refuse_while_attached(device, &format!("{why}; unmount it first"))
    }

    /// [`refuse_attached`](Change::refuse_attached), where `why` ends with what else to do.
    pub(crate) fn refuse_while_attached<T>(&self, device: &Device, why: &str) -> Result<T> {
        let name = match device.component.as_slice() {
            b"" => String::new(),
            name => format!(" as component {:?}", String::from_utf8_lossy(name)),
        };
        let path = device.top().map(|top| top.path.display().to_string());
        self.refuse(
            ErrorKind::Busy,
            format!(
                "the image is attached to {}{name} by the path {}: {why}",
                device.path().display(),
                path.unwrap_or_default(),
            ),
        )
    }

    /// The devices that have one of these deltas, on any level.
    pub(crate) fn devices_with(&self, guids: &[Guid]) -> impl Iterator<Item = &Device> {
        let files = self.files.iter();
        let files: Vec<Identity> = files
            .filter(|(guid, _)| guids.contains(guid))
            .map(|(_, file)| *file)
            .collect();
        let has = move |device: &&Device| files.iter().any(|file| device.has(*file));
        self.devices.iter().filter(has)
    }

    /// The devices whose top this delta is: those that may write to it.
    pub(crate) fn devices_with_top(&self, guid: Guid) -> impl Iterator<Item = &Device> {
        let file = self.files.iter().find(|(other, _)| *other == guid);
        let file = file.map(|(_, file)| *file);
        let is_top = move |device: &&Device| {
            file.is_some() && device.top().is_some_and(|top| top.identity == file)
        };
        self.devices.iter().filter(is_top)
    }

    /// A device that has any delta of the image.
    pub(crate) fn any_device(&self) -> Option<&Device> {
        let has = |device: &&Device| self.files.iter().any(|(_, file)| device.has(*file));
        self.devices.iter().find(has)
    }

    /// The delta of the image that is this file.
    pub(crate) fn delta_of_file(&self, file: Identity) -> Option<Guid> {
        let mut files = self.files.iter();
        files
            .find(|(_, other)| *other == file)
            .map(|(guid, _)| *guid)
    }

    /// Whether this file is that delta of the image.
    pub(crate) fn is_delta(&self, file: Identity, guid: Guid) -> bool {
        self.delta_of_file(file) == Some(guid)
    }

    /// A device that has this file, of this image or another.
    pub(crate) fn device_with_file(&self, file: Identity) -> Option<&Device> {
        self.devices.iter().find(|device| device.has(file))
    }
}

/// Detaches the device of an image that libploop has attached for an operation which then failed (A47).
pub(super) fn detach_what_was_left(
    operation: &'static str,
    before: &[Device],
    files: &[(Guid, Identity)],
    component: &[u8],
) {
    let files: Vec<Identity> = files.iter().map(|(_, file)| *file).collect();
    for device in sysfs::devices(operation).unwrap_or_default() {
        if device.component == component && is_left(&device, before, &files) {
            // Should it fail, the error of the operation says more.
            let _ = device::umount(device.path());
        }
    }
}

/// Whether a device has deltas of this image only, and had none of them before. It may have had those of another image:
/// whoever has detached that one meanwhile left its number free.
fn is_left(device: &Device, before: &[Device], files: &[Identity]) -> bool {
    let is_ours = |delta: &sysfs::Delta| delta.identity.is_some_and(|file| files.contains(&file));
    let was_there = |other: &Device| other.name == device.name && other.deltas.iter().any(is_ours);
    !device.deltas.is_empty() && device.deltas.iter().all(is_ours) && !before.iter().any(was_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::Delta;

    #[test]
    fn a_device_is_left_by_an_operation_if_it_had_none_of_the_deltas_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            Identity::of(&path).unwrap()
        };
        let (base, top, other) = (file("base"), file("top"), file("other"));
        let device = |name: &str, files: &[Option<Identity>]| Device {
            name: name.into(),
            runs: true,
            component: Vec::new(),
            deltas: (files.iter())
                .map(|identity| Delta {
                    path: dir.path().to_owned(),
                    identity: *identity,
                    read_only: false,
                })
                .collect(),
        };
        let (base, top, other) = (Some(base), Some(top), Some(other));
        let files = [base.unwrap(), top.unwrap()];
        let found = device("ploop1", &[base]);
        for (before, is_expected) in [
            (vec![], true),
            (vec![device("ploop1", &[])], true),
            (vec![device("ploop1", &[other])], true),
            (vec![device("ploop1", &[None])], true),
            (vec![device("ploop2", &[base, top])], true),
            (vec![device("ploop1", &[base, top])], false),
            (vec![device("ploop1", &[base])], false),
        ] {
            assert_eq!(is_left(&found, &before, &files), is_expected, "{before:?}");
        }
        for deltas in [vec![], vec![other], vec![base, other], vec![base, None]] {
            assert!(
                !is_left(&device("ploop1", &deltas), &[], &files),
                "{deltas:?}"
            );
        }
    }
}
