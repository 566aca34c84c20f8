//! Merges by libploop (`ploop_merge_snapshot`, `ploop_delete_snapshot`) that failed or were interrupted after they had
//! written to the lowest delta: the snapshots that they have overwritten are marked temporary.
//!
//! libploop stages the new descriptor, copies the data of the upper deltas to the lowest one, and then renames the
//! descriptor. Before the rename, the uppermost delta still reads right. But the lowest delta is that of a snapshot
//! whose state is partly overwritten, and the snapshots in between read through it. So that nobody can go back to
//! these, they are marked temporary. libploop merges temporary snapshots in the next change or mount that can.
//!
//! A switch under `SKIP_CREATE` stages the same descriptor, and does not write to the delta. How can the two be told
//! apart? A merge marks the delta as in use, unless it is raw, and clears the mark before it renames. And after a power
//! cut, its data may be on the disk while the new modification time is not. So this crate makes a record of each merge
//! (`.ploop-merge`), which stays until the merge has succeeded or the snapshots are marked.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::detached::clear_unused_mark;
use crate::canonical;
use crate::identity::Identity;
use crate::image::descriptor::DescriptorFile;
use crate::image::{Header, Image};
use crate::sysfs::Device;
use crate::{Descriptor, Error, Guid, Result, paths};

/// The record of a merge: a file that is there while libploop merges. It holds a stamp of the lowest delta, which shows
/// later whether that was written to.
pub(crate) struct MergeRecord(PathBuf);

impl MergeRecord {
    /// Makes the record, before C. libploop syncs the new descriptor before it merges, and with it this file's name.
    pub(crate) fn make(operation: &'static str, path: &Path, lowest: &Path) -> Result<MergeRecord> {
        let record = paths::merge_record(path);
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(&record)
            .and_then(|mut file| file.write_all(stamp(lowest).unwrap_or_default().as_bytes()))
            .map_err(|error| {
                let _ = fs::remove_file(&record);
                let why = "the record that shows after an interruption that there was a merge cannot be made";
                Error::io(operation, why, error).with_path(&record)
            })?;
        Ok(MergeRecord(record))
    }

    /// After the merge has succeeded. After a failure, the recovery reads the record and removes it.
    pub(crate) fn remove(self) {
        // If it stays, it has no effect: there is no staged descriptor.
        let _ = fs::remove_file(self.0);
    }
}

/// A stamp that stays the same until somebody writes to the file, or the system starts anew. `None` where the file was
/// written to just now: the next write may get the same time.
fn stamp(file: &Path) -> Option<String> {
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

/// Marks the snapshots that a merge has overwritten, and returns whether there were any. The image's lock is held, and
/// `old` is the descriptor in place.
pub(super) fn mark_lost_snapshots(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
) -> Result<bool> {
    let record = paths::merge_record(path);
    let recorded =
        paths::is_regular_file(&record).then(|| fs::read_to_string(&record).unwrap_or_default());
    let staged = paths::staged(path);
    let new = super::staged_descriptor(&staged);
    let merged = new.as_ref().map_or(Vec::new(), |new| merged(old, new));
    let written = |lowest: &Image| match &recorded {
        Some(recorded) => stamp(&lowest.file).as_ref() != Some(recorded),
        None => was_written(lowest, &staged),
    };
    let lowest = merged.first().copied().filter(|lowest| written(lowest));
    if let Some(lowest) = lowest {
        // A device on one of these snapshots is in use. libploop would detach it from a temporary snapshot.
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
        // The mark is that of the merge: a device that runs has the delta below its top, and does not mark it.
        clear_unused_mark(operation, old, lowest)?;
        // It is that of the merge, which was not done.
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
        let why = "a merge was interrupted, and the snapshots that it has overwritten cannot be marked temporary";
        Error::io(operation, why, error).with_path(path)
    })
}

/// The deltas that the new descriptor merges, the lowest first, without the uppermost: there, the file of the lowest
/// has the GUID of the uppermost.
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

/// Whether a merge without a record has written to the delta. Such a merge is one of a program that uses libploop
/// without this crate, or one to a new file, which writes to no other.
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

    fn mark_lost_snapshots_in(directory: &Path, before: &Descriptor) -> (bool, Descriptor) {
        let path = directory.join("DiskDescriptor.xml");
        let marked = mark_lost_snapshots(&[], "test", &path, before).unwrap();
        assert_eq!(paths::staged(&path).exists(), !marked);
        assert!(!paths::merge_record(&path).exists());
        (marked, Descriptor::open(&path).unwrap())
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
                mark_lost_snapshots_in(directory.path(), &before),
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
            let (marked, now) = mark_lost_snapshots_in(directory.path(), &before);
            let mut expected = before.clone();
            expected.snapshots[0].temporary = true;
            assert!(marked);
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
            mark_lost_snapshots_in(directory.path(), &before),
            (false, before.clone())
        );
        // As after another start of the system: then nothing proves it.
        let other = record.replacen(|c: char| c.is_ascii_hexdigit(), "x", 1);
        fs::write(paths::merge_record(&path), other).unwrap();
        assert!(mark_lost_snapshots_in(directory.path(), &before).0);
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
        let (marked, now) = mark_lost_snapshots_in(directory.path(), &before);
        assert!(marked);
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
        assert_eq!(
            mark_lost_snapshots_in(directory.path(), &before),
            (false, before)
        );
    }
}
