//! Merges that failed or were cut short after they had written to the lowest delta.
//!
//! libploop stages the new descriptor, copies the data of the upper deltas to the lowest one, and renames
//! the descriptor then. Through the uppermost delta everything reads as before. But the lowest one is that
//! of a snapshot, and nobody can say how much is left of the state it had; and what is between reads
//! through it. So that nobody goes back to these, they are marked temporary: libploop's own word for
//! snapshots whose removal has to wait, and which it merges in the next change or mount that can.
//!
//! Going back to a snapshot that loses its GUID has the same new descriptor, and leaves the delta alone. A
//! merge marks the delta first, unless it is a plain one, and takes the mark off before it renames; and
//! what it has written may be on the disk after a power cut, and the time of that not. So this crate
//! makes a record of each merge, which stays until the merge has succeeded or the marks are written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::detached::take_mark_off;
use crate::canonical;
use crate::identity::Identity;
use crate::image::descriptor::DescriptorFile;
use crate::image::{Header, Image};
use crate::sysfs::Device;
use crate::{Descriptor, Error, Guid, Result, paths};

/// A file that is there while libploop merges deltas into the lowest one's file: what tells later whether that
/// was written to.
pub(crate) struct MergeRecord(PathBuf);

impl MergeRecord {
    /// Before C. libploop syncs the new descriptor before it merges, and with it this file's name.
    pub(crate) fn make(operation: &'static str, path: &Path, lowest: &Path) -> Result<MergeRecord> {
        let record = paths::merge_record(path);
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(&record)
            .and_then(|mut file| file.write_all(unwritten(lowest).unwrap_or_default().as_bytes()))
            .map_err(|error| {
                let _ = fs::remove_file(&record);
                let why = "the record of a merge, which says that there was one if it is cut short, cannot be made";
                Error::io(operation, why, error).with_path(&record)
            })?;
        Ok(MergeRecord(record))
    }

    /// The merge has succeeded. Otherwise the record is looked at after the failure, or by the next operation.
    pub(crate) fn remove(self) {
        // What stays of a merge that has succeeded says nothing: there is no staged descriptor.
        let _ = fs::remove_file(self.0);
    }
}

/// What is true of a file for as long as nobody writes to it and the system runs. `None` where it has just been
/// written to: the next time may be the same one.
fn unwritten(file: &Path) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    let changed = SystemTime::UNIX_EPOCH
        + Duration::new(
            u64::try_from(metadata.ctime()).ok()?,
            u32::try_from(metadata.ctime_nsec()).ok()?,
        );
    let age = SystemTime::now().duration_since(changed).ok()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    (age > Duration::from_millis(100)).then(|| {
        format!(
            "{} {}.{:09}\n",
            boot.trim(),
            metadata.ctime(),
            metadata.ctime_nsec()
        )
    })
}

/// Marks the snapshots whose states are gone. The image's lock is held; `old` is what the descriptor says.
/// Whether there were any.
pub(super) fn give_up(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
) -> Result<bool> {
    let record = paths::merge_record(path);
    let is_file = fs::symlink_metadata(&record).is_ok_and(|metadata| metadata.is_file());
    let recorded = is_file.then(|| fs::read_to_string(&record).unwrap_or_default());
    let staged = paths::staged(path);
    let new = super::read(&staged);
    let merged = new.as_ref().map_or(Vec::new(), |new| merged(old, new));
    let written = |lowest: &Image| match &recorded {
        Some(recorded) => unwritten(&lowest.file).as_ref() != Some(recorded),
        None => was_written(lowest, &staged),
    };
    let lowest = merged.first().copied().filter(|lowest| written(lowest));
    if let Some(lowest) = lowest {
        // Somebody is there, and would be detached.
        let is_top = |device: &Device| {
            let top = device.top().and_then(|top| top.identity);
            let is = |image: &&Image| Identity::of(&image.file).ok() == top;
            top.is_some() && merged.iter().any(is)
        };
        if devices.iter().any(is_top) {
            return Ok(false);
        }
        let guids: Vec<Guid> = merged.iter().map(|image| image.guid).collect();
        mark_temporary(operation, path, &guids)?;
        // A device that runs has it below its top, where the driver does not mark it.
        take_mark_off(operation, old, lowest)?;
        // What it says is not so.
        let _ = fs::remove_file(&staged);
    }
    if recorded.is_some() {
        let _ = fs::remove_file(&record);
    }
    Ok(lowest.is_some())
}

fn mark_temporary(operation: &'static str, path: &Path, guids: &[Guid]) -> Result<()> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let mut file = DescriptorFile::read(path).map_err(failed)?;
    for snapshot in &mut file.descriptor.snapshots {
        snapshot.temporary |= guids.contains(&snapshot.guid);
    }
    let directory = paths::directory_of(path);
    let text = file.descriptor.to_xml_with(&file.unknown, directory);
    canonical::replace(path, &text.map_err(failed)?).map_err(|error| {
        let why = "a merge was cut short, and the snapshots whose states are gone cannot be marked temporary";
        Error::io(operation, why, error).with_path(path)
    })
}

/// The deltas that are gone in the new descriptor, from the lowest up, whose file is there under the GUID of the
/// uppermost.
fn merged<'a>(old: &'a Descriptor, new: &Descriptor) -> Vec<&'a Image> {
    for lowest in &old.images {
        let upper = new.images.iter().find(|image| image.file == lowest.file);
        let upper = upper.filter(|upper| upper.guid != lowest.guid);
        let chain = upper.map_or(Vec::new(), |upper| old.chain(upper.guid));
        let at = chain.iter().position(|image| image.guid == lowest.guid);
        if let (Some(at), None) = (at, new.image(lowest.guid)) {
            return chain[at..chain.len() - 1].to_vec();
        }
    }
    Vec::new()
}

/// Of a merge without a record: one by a program that uses libploop alone, or to a new file, which writes to no other.
fn was_written(delta: &Image, staged: &Path) -> bool {
    let written = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let since = match (written(&delta.file), written(staged)) {
        (Ok(delta), Ok(staged)) => delta > staged,
        _ => false,
    };
    since || Header::read(&delta.file).is_ok_and(|header| header.in_use)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{CreateParam, MergeParam, MergeTarget, Ploop, Size, SwitchFlag};

    /// An image with two snapshots, and the descriptor that an operation on it would have put in place.
    fn cut_before_rename(
        change: impl Fn(&mut Ploop, [Guid; 2]),
    ) -> (tempfile::TempDir, Descriptor) {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("root.hds");
        let mut image =
            Ploop::create(&CreateParam::new(&base, Size::from_mib(10)).fs(None)).unwrap();
        let guids = [(); 2].map(|()| image.snapshot().unwrap());
        let before = image.descriptor().unwrap();
        let files: Vec<_> = before.images.iter().map(|image| &image.file).collect();
        let kept: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let text = fs::read(image.path()).unwrap();
        change(&mut image, guids);
        fs::rename(image.path(), paths::staged(image.path())).unwrap();
        fs::write(image.path(), text).unwrap();
        for (file, bytes) in files.iter().zip(kept) {
            fs::write(file, bytes).unwrap();
            set_times(file, SystemTime::now() - Duration::from_secs(10));
        }
        (directory, before)
    }

    fn set_times(file: &Path, time: SystemTime) {
        let file = File::options().write(true).open(file).unwrap();
        file.set_modified(time).unwrap();
    }

    fn give_up_in(directory: &Path, before: &Descriptor) -> (bool, Descriptor) {
        let path = directory.join("DiskDescriptor.xml");
        let given_up = give_up(&[], "test", &path, before).unwrap();
        assert_eq!(paths::staged(&path).exists(), !given_up);
        assert!(!paths::merge_record(&path).exists());
        (given_up, Descriptor::open(&path).unwrap())
    }

    #[test]
    fn a_snapshot_that_was_merged_into_is_temporary() {
        for evidence in ["record", "mark", "time"] {
            let (directory, before) = cut_before_rename(|image, [guid, _]| {
                image.delete_snapshot(guid).unwrap();
            });
            let base = &before.base().unwrap().file;
            // Before anything was written, it is as it was.
            assert_eq!(
                give_up_in(directory.path(), &before),
                (false, before.clone())
            );
            match evidence {
                "record" => {
                    let path = directory.path().join("DiskDescriptor.xml");
                    MergeRecord::make("test", &path, base).unwrap();
                    // Written to afterwards.
                    set_times(base, SystemTime::now() - Duration::from_secs(10));
                }
                "mark" => {
                    let file = File::options().write(true).open(base).unwrap();
                    let mark = 0x746F_6E59u32.to_le_bytes();
                    file.write_all_at(&mark, 44).unwrap();
                    set_times(base, SystemTime::now() - Duration::from_secs(10));
                }
                _ => set_times(base, SystemTime::now() + Duration::from_secs(10)),
            }
            let (given_up, now) = give_up_in(directory.path(), &before);
            let mut expected = before.clone();
            expected.snapshots[0].temporary = true;
            assert!(given_up);
            assert_eq!(now, expected);
        }
    }

    #[test]
    fn a_delta_that_was_not_written_to_keeps_its_state() {
        let (directory, before) = cut_before_rename(|image, [guid, _]| {
            image.delete_snapshot(guid).unwrap();
        });
        let base = &before.base().unwrap().file;
        let path = directory.path().join("DiskDescriptor.xml");
        // Times come and go by steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(150));
        MergeRecord::make("test", &path, base).unwrap();
        let record = fs::read_to_string(paths::merge_record(&path)).unwrap();
        assert_eq!(record.split(' ').count(), 2, "{record:?}");
        assert_eq!(
            give_up_in(directory.path(), &before),
            (false, before.clone())
        );
        // As after another start of the system: then nothing proves it.
        let other = record.replacen(|c: char| c.is_ascii_hexdigit(), "x", 1);
        fs::write(paths::merge_record(&path), other).unwrap();
        assert!(give_up_in(directory.path(), &before).0);
    }

    /// What is between reads through the lowest.
    #[test]
    fn all_that_a_merge_would_have_removed_are_temporary() {
        let (directory, before) = cut_before_rename(|image, _| {
            image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        });
        let path = directory.path().join("DiskDescriptor.xml");
        let base = &before.base().unwrap().file;
        MergeRecord::make("test", &path, base).unwrap();
        set_times(base, SystemTime::now());
        let (given_up, now) = give_up_in(directory.path(), &before);
        assert!(given_up);
        let temporary = now.snapshots.iter().filter(|it| it.temporary);
        let temporary: Vec<Guid> = temporary.map(|it| it.guid).collect();
        let all = before.chain(before.top);
        let below: Vec<Guid> = all[..all.len() - 1].iter().map(|it| it.guid).collect();
        assert_eq!((temporary.len(), temporary), (2, below));
    }

    #[test]
    fn going_back_to_a_snapshot_is_no_merge() {
        let (directory, before) = cut_before_rename(|image, [_, guid]| {
            let flags = SwitchFlag::SKIP_CREATE;
            image.switch_snapshot_with(guid, flags).unwrap();
        });
        let new = paths::staged(&directory.path().join("DiskDescriptor.xml"));
        let new = Descriptor::open(new).unwrap();
        let below = before.parent(before.top).unwrap();
        assert_eq!(merged(&before, &new), [before.image(below).unwrap()]);
        assert_eq!(give_up_in(directory.path(), &before), (false, before));
    }
}
