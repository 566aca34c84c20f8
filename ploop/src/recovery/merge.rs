//! Merges by libploop (`ploop_merge_snapshot`, `ploop_delete_snapshot`) that failed or were interrupted after they had
//! written to the lowest delta: the snapshots that they have overwritten are marked temporary.
//!
//! libploop stages the new descriptor, copies the data of the upper deltas to the lowest one, and then renames the
//! descriptor. Before the rename, the uppermost delta still reads right. But the lowest delta is that of a snapshot
//! whose state is partly overwritten, and the snapshots in between read through it. So that nobody can go back to
//! these, they are marked temporary. libploop merges temporary snapshots in the next change or mount that can.
//!
//! What libploop leaves does not show after a power cut that there was a merge: data that a raw base got may be on the
//! disk while neither its modification time nor the name of the staged descriptor is. So this crate makes a record
//! (`.ploop-merge`) of each merge and syncs it before it calls C. It names the snapshots, and stays until the merge has
//! succeeded or they are marked.
//!
//! A merge by another program has no record. It marks the lowest delta as in use, unless that is raw. That and the
//! modification time tell it from a switch under `SKIP_CREATE`, which stages the same descriptor.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::detached::clear_unused_mark;
use crate::identity::Identity;
use crate::image::descriptor::DescriptorFile;
use crate::image::{Header, Image};
use crate::sysfs::Device;
use crate::{Descriptor, Error, Guid, Result, canonical, durability, paths};

/// The record of a merge.
pub(crate) struct MergeRecord {
    uptime_id: String,
    /// That of the lowest delta. Empty where it had just been written to.
    change_time: String,
    snapshots: Vec<Guid>,
}

impl MergeRecord {
    /// Makes the record of a merge that removes these snapshots, the lowest first. Syncs it in any case: without it the
    /// image would not stay whole.
    pub(crate) fn make(
        operation: &'static str,
        path: &Path,
        descriptor: &Descriptor,
        snapshots: &[Guid],
    ) -> Result<()> {
        let lowest = snapshots.first().and_then(|guid| descriptor.image(*guid));
        let lowest = lowest.map(|image| &*image.file);
        let uptime_id = lowest.and_then(uptime_id).unwrap_or_default();
        let change_time = lowest.and_then(change_time).unwrap_or_default();
        let mut text = format!("{uptime_id} {change_time}\n");
        for guid in snapshots {
            text += &format!("{guid}\n");
        }
        let record = paths::merge_record(path);
        canonical::write(&record, text.as_bytes(), None)
            .and_then(|()| durability::sync_directory(paths::directory_of(path)))
            .map_err(|error| {
                MergeRecord::remove(path);
                let why = "the record that shows after an interruption that there was a merge cannot be made";
                Error::io(operation, why, error).with_path(&record)
            })
    }

    /// After the merge has succeeded and is synced. After a failure, the recovery reads the record and removes it.
    pub(crate) fn remove(path: &Path) {
        // If it stays, it has no effect: its snapshots are gone.
        let _ = fs::remove_file(paths::merge_record(path));
    }

    /// `None` where there is none, or one that is not complete: then C had not been called.
    fn read(operation: &'static str, path: &Path) -> Result<Option<MergeRecord>> {
        let record = paths::merge_record(path);
        if !paths::is_regular_file(&record) {
            return Ok(None);
        }
        let text = fs::read(&record).map_err(|error| {
            let why = "the record of a merge that was interrupted cannot be read";
            Error::io(operation, why, error).with_path(&record)
        })?;
        Ok(String::from_utf8(text)
            .ok()
            .and_then(|text| MergeRecord::parse(&text)))
    }

    fn parse(text: &str) -> Option<MergeRecord> {
        let mut lines = text.lines();
        let (uptime_id, change_time) = lines.next()?.split_once(' ')?;
        Some(MergeRecord {
            uptime_id: uptime_id.to_owned(),
            change_time: change_time.to_owned(),
            snapshots: lines.map(|line| line.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// Whether the merge has, or may have, written to the lowest delta.
    fn was_written(&self, lowest: &Path, is_staged: bool) -> bool {
        // Without a power cut since, libploop has staged the descriptor first, and the time is that of the last write.
        uptime_id(lowest).as_ref() != Some(&self.uptime_id)
            || match &*self.change_time {
                "" => is_staged,
                before => change_time(lowest).as_deref() != Some(before),
            }
    }
}

/// Stays the same for as long as the system runs and the file system is mounted: until then no write is lost.
fn uptime_id(file: &Path) -> Option<String> {
    /// `STATX_MNT_ID_UNIQUE`, of Linux 6.8 and later. Older systems give a number that is used again, or 0.
    const MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let mount = statx(CWD, file, AtFlags::empty(), MOUNT_ID).map_or(0, |found| found.stx_mnt_id);
    Some(format!("{}:{mount}", boot.trim()))
}

/// The time of the last change. `None` where that was just now: the next one may get the same time.
fn change_time(file: &Path) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    let since_epoch = Duration::new(
        u64::try_from(seconds).ok()?,
        u32::try_from(nanoseconds).ok()?,
    );
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since_epoch);
    (age.ok()? > Duration::from_millis(100)).then(|| format!("{seconds}.{nanoseconds:09}"))
}

/// Marks the snapshots that a merge has overwritten, and returns whether there were any. The image's lock is held, and
/// `old` is the descriptor in place.
pub(super) fn mark_lost_snapshots(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
) -> Result<bool> {
    let record = MergeRecord::read(operation, path)?;
    let staged = paths::staged(path);
    let new = super::staged_descriptor(&staged);
    let merged = match (&record, &new) {
        (Some(record), _) => recorded(old, record),
        (None, Some(new)) => merged(old, new),
        (None, None) => Vec::new(),
    };
    let written = |lowest: &Image| match &record {
        Some(record) => record.was_written(&lowest.file, new.is_some()),
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
    MergeRecord::remove(path);
    Ok(lowest.is_some())
}

/// The deltas of a recorded merge that are still there.
fn recorded<'a>(old: &'a Descriptor, record: &MergeRecord) -> Vec<&'a Image> {
    let images = record.snapshots.iter().filter_map(|guid| old.image(*guid));
    images.filter(|image| image.guid != old.top).collect()
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

    use super::*;
    use crate::{CreateParam, ImageMode, MergeParam, MergeTarget, Ploop, Size, SwitchFlag};

    /// An image with two snapshots, and the descriptor that an operation on it would have put in place.
    fn cut_before_rename(
        change: impl Fn(&mut Ploop, [Guid; 2]),
    ) -> (tempfile::TempDir, Descriptor) {
        cut_before_rename_of(ImageMode::Expanded, change)
    }

    fn cut_before_rename_of(
        mode: ImageMode,
        change: impl Fn(&mut Ploop, [Guid; 2]),
    ) -> (tempfile::TempDir, Descriptor) {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("root.hds");
        let param = CreateParam::new(&base, Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param.mode(mode)).unwrap();
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
                    let base = [before.base().unwrap().guid];
                    MergeRecord::make("test", &path, &before, &base).unwrap();
                    let base = &before.base().unwrap().file;
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
        let base = [before.base().unwrap().guid];
        let path = directory.path().join("DiskDescriptor.xml");
        // Times come and go by steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(150));
        MergeRecord::make("test", &path, &before, &base).unwrap();
        let record = fs::read_to_string(paths::merge_record(&path)).unwrap();
        assert_eq!(record.split(' ').count(), 2, "{record:?}");
        assert_eq!(
            mark_lost_snapshots_in(directory.path(), &before),
            (false, before.clone())
        );
        // As after another start of the system, or another mount: then nothing proves it.
        let staged = fs::read(paths::staged(&path)).unwrap();
        for (old, new) in [(&record[..1], "x"), (" ", "0 ")] {
            let other = record.replacen(old, new, 1);
            fs::write(paths::merge_record(&path), other).unwrap();
            fs::write(paths::staged(&path), &staged).unwrap();
            assert!(mark_lost_snapshots_in(directory.path(), &before).0);
        }
    }

    /// libploop fails before it stages the new descriptor, so it has not written to the delta.
    #[test]
    fn a_merge_that_failed_at_once_has_written_nothing() {
        let (directory, before) = cut_before_rename(|image, [guid, _]| {
            image.delete_snapshot(guid).unwrap();
        });
        let path = directory.path().join("DiskDescriptor.xml");
        let base = before.base().unwrap();
        fs::remove_file(paths::staged(&path)).unwrap();
        set_times(&base.file, SystemTime::now());
        MergeRecord::make("test", &path, &before, &[base.guid]).unwrap();
        assert!(!mark_lost_snapshots(&[], "test", &path, &before).unwrap());
        assert_eq!(Descriptor::open(&path).unwrap(), before);
    }

    /// A raw base is written to without a sync: its data may be on the disk, and neither its time nor the name of the
    /// staged descriptor.
    #[test]
    fn a_power_cut_may_leave_the_record_alone() {
        for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
            for levels in [1, 2] {
                let (directory, before) = cut_before_rename_of(mode, |_, _| {});
                let path = directory.path().join("DiskDescriptor.xml");
                fs::rename(paths::staged(&path), paths::being_staged(&path)).unwrap();
                let chain = before.chain(before.top);
                let chain: Vec<Guid> = chain.iter().map(|image| image.guid).collect();
                MergeRecord::make("test", &path, &before, &chain[..levels]).unwrap();
                let record = fs::read_to_string(paths::merge_record(&path)).unwrap();
                fs::write(paths::merge_record(&path), format!("x{record}")).unwrap();
                assert!(mark_lost_snapshots_in(directory.path(), &before).0);
                let mut expected = before.clone();
                for snapshot in &mut expected.snapshots {
                    snapshot.temporary = chain[..levels].contains(&snapshot.guid);
                }
                assert_eq!(Descriptor::open(&path).unwrap(), expected);
                // The next change finishes the merge.
                let mut image = Ploop::open(&path).unwrap();
                let added = image.snapshot().unwrap();
                let now = image.descriptor().unwrap();
                let left: Vec<Guid> = now.chain(added).iter().map(|it| it.guid).collect();
                assert!(
                    chain[..levels].iter().all(|guid| !left.contains(guid)),
                    "{mode} {levels}"
                );
            }
        }
    }

    #[test]
    fn a_record_that_is_not_complete_or_no_longer_true_is_removed() {
        let (directory, before) = cut_before_rename(|_, _| {});
        let path = directory.path().join("DiskDescriptor.xml");
        fs::remove_file(paths::staged(&path)).unwrap();
        let base = before.base().unwrap().guid;
        let (top, gone) = (before.top, Guid::generate());
        for text in [
            String::new(),
            "x:1 ".into(),
            format!("x:1 \n{}", &base.to_string()[..20]),
            format!("x:1 \n{gone}\n"),
            format!("x:1 \n{top}\n"),
        ] {
            fs::write(paths::merge_record(&path), &text).unwrap();
            assert!(
                !mark_lost_snapshots(&[], "test", &path, &before).unwrap(),
                "{text}"
            );
            assert!(!paths::merge_record(&path).exists());
        }
        assert_eq!(Descriptor::open(&path).unwrap(), before);
    }

    /// What is between reads through the lowest.
    #[test]
    fn all_that_a_merge_would_have_removed_are_temporary() {
        let (directory, before) = cut_before_rename(|image, _| {
            image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        });
        let path = directory.path().join("DiskDescriptor.xml");
        let all = before.chain(before.top);
        let below: Vec<Guid> = all[..all.len() - 1].iter().map(|it| it.guid).collect();
        MergeRecord::make("test", &path, &before, &below).unwrap();
        set_times(&all[0].file, SystemTime::now());
        let (marked, now) = mark_lost_snapshots_in(directory.path(), &before);
        assert!(marked);
        let temporary = now.snapshots.iter().filter(|it| it.temporary);
        let temporary: Vec<Guid> = temporary.map(|it| it.guid).collect();
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
