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
use crate::image::descriptor::{self, DescriptorFile, DescriptorForm};
use crate::image::{Header, Image};
use crate::sysfs::Device;
use crate::{Descriptor, Error, Guid, Result, durability, side_files};

/// The record of a merge.
pub(crate) struct MergeRecord {
    uptime_id: String,
    /// That of the lowest delta. Empty where it had just been written to.
    change_time: String,
    /// The first delta goes to a new file. The old ones are not written to.
    to_new_file: bool,
    /// Whether each was temporary before the merge.
    snapshots: Vec<(Guid, bool)>,
}

impl MergeRecord {
    /// Makes the record of a merge that removes these snapshots, the lowest first. Syncs it in any case: without it the
    /// image would not stay whole.
    pub(crate) fn make(
        operation: &'static str,
        path: &Path,
        descriptor: &Descriptor,
        snapshots: &[Guid],
        to_new_file: bool,
    ) -> Result<()> {
        let lowest = snapshots.first().and_then(|guid| descriptor.image(*guid));
        let lowest = lowest.map(|image| &*image.file);
        let uptime_id = lowest.and_then(uptime_id).unwrap_or_default();
        let change_time = lowest.and_then(change_time).unwrap_or_default();
        let to = if to_new_file { " new" } else { "" };
        let mut text = format!("{uptime_id} {change_time}{to}\n");
        for guid in snapshots {
            let was_temporary = descriptor
                .snapshot(*guid)
                .is_some_and(|snapshot| snapshot.temporary);
            let suffix = if was_temporary { TEMPORARY } else { "" };
            text += &format!("{guid}{suffix}\n");
        }
        let record = side_files::merge_record(path);
        descriptor::write(&record, text.as_bytes(), None)
            .and_then(|()| durability::sync_directory(side_files::directory_of(path)))
            .map_err(|error| {
                MergeRecord::remove(path);
                let why = "the record that shows after an interruption that there was a merge cannot be made";
                Error::io(operation, why, error).with_path(&record)
            })
    }

    /// After the merge has succeeded and is synced. After a failure, the recovery reads the record and removes it.
    pub(crate) fn remove(path: &Path) {
        // If it stays, it has no effect: its snapshots are gone.
        let _ = fs::remove_file(side_files::merge_record(path));
    }

    /// `None` where there is none, or one that is not complete: then C had not been called.
    fn read(operation: &'static str, path: &Path) -> Result<Option<MergeRecord>> {
        let record = side_files::merge_record(path);
        if !side_files::is_regular_file(&record) {
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
        if !text.ends_with('\n') {
            return None;
        }
        let mut lines = text.lines();
        let mut first = lines.next()?.split(' ');
        let (uptime_id, change_time) = (first.next()?, first.next()?);
        let snapshot = |line: &str| {
            let guid = line.strip_suffix(TEMPORARY);
            Some((guid.unwrap_or(line).parse().ok()?, guid.is_some()))
        };
        Some(MergeRecord {
            uptime_id: uptime_id.to_owned(),
            change_time: change_time.to_owned(),
            to_new_file: first.next().is_some(),
            snapshots: lines.map(snapshot).collect::<Option<_>>()?,
        })
    }

    /// Whether the merge has, or may have, written to the lowest delta that is left.
    fn was_written(&self, lowest: &Image, is_staged: bool) -> bool {
        // Where libploop merges one delta at a time, the one that was the lowest may be gone.
        let is_first = self.snapshots.first().map(|first| first.0) == Some(lowest.guid);
        if !is_first || self.to_new_file {
            return !is_first;
        }
        let lowest = &lowest.file;
        // Without a power cut since, libploop has staged the descriptor first, and the time is that of the last write.
        uptime_id(lowest).as_ref() != Some(&self.uptime_id)
            || match &*self.change_time {
                "" => is_staged,
                before => change_time(lowest).as_deref() != Some(before),
            }
    }
}

/// Follows the GUID of a snapshot that was temporary before the merge.
const TEMPORARY: &str = " temporary";

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
pub(crate) fn mark_lost_snapshots(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    let record = MergeRecord::read(operation, path)?;
    let staged = side_files::staged(path);
    let new = super::staged_descriptor(&staged, form);
    let merged = match (&record, &new) {
        (Some(record), _) => recorded(old, record),
        (None, Some(new)) => merged(old, new),
        (None, None) => Vec::new(),
    };
    let written = |lowest: &Image| match &record {
        Some(record) => record.was_written(lowest, new.is_some()),
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
        mark_temporary(operation, path, &guids, true, form)?;
        // The mark is that of the merge: a device that runs has the delta below its top, and does not mark it.
        clear_unused_mark(operation, old, lowest)?;
        // It is that of the merge, which was not done.
        let _ = fs::remove_file(&staged);
    }
    let unmarked = match (&record, lowest) {
        (Some(record), None) => unmark_whole_snapshots(operation, path, old, record, form)?,
        _ => false,
    };
    MergeRecord::remove(path);
    Ok(lowest.is_some() || unmarked)
}

/// Some lines of libploop mark a snapshot temporary before they write to it. Takes the marks of a merge off that has
/// written nothing, and returns whether there were any.
fn unmark_whole_snapshots(
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    record: &MergeRecord,
    form: &DescriptorForm,
) -> Result<bool> {
    let is_marked = |guid: &Guid| old.snapshot(*guid).is_some_and(|it| it.temporary);
    let marked = record.snapshots.iter().filter(|(_, before)| !before);
    let marked: Vec<Guid> = marked.map(|(guid, _)| *guid).filter(is_marked).collect();
    if !marked.is_empty() {
        mark_temporary(operation, path, &marked, false, form)?;
    }
    Ok(!marked.is_empty())
}

/// The deltas of a recorded merge that are still there.
fn recorded<'a>(old: &'a Descriptor, record: &MergeRecord) -> Vec<&'a Image> {
    let guids = record.snapshots.iter().map(|(guid, _)| *guid);
    let images = guids.filter_map(|guid| old.image(guid));
    images.filter(|image| image.guid != old.top).collect()
}

fn mark_temporary(
    operation: &'static str,
    path: &Path,
    guids: &[Guid],
    temporary: bool,
    form: &DescriptorForm,
) -> Result<()> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let mut file = DescriptorFile::read_as(path, form).map_err(failed)?;
    for snapshot in &mut file.descriptor.snapshots {
        if guids.contains(&snapshot.guid) {
            snapshot.temporary = temporary;
        }
    }
    let directory = side_files::directory_of(path);
    let text = file.descriptor.to_xml_with(&file.unknown, directory);
    descriptor::replace(path, &text.map_err(failed)?).map_err(|error| {
        let why = match temporary {
            true => "a merge was interrupted, and the snapshots that it has overwritten cannot be marked temporary",
            false => "a merge was interrupted, and snapshots that it has not overwritten are marked temporary, which cannot be undone",
        };
        Error::io(operation, why, error).with_path(path)
    })
}

/// The deltas that the new descriptor merges, the lowest first, without the uppermost: there, the file of the lowest
/// has the GUID of the uppermost.
pub(crate) fn merged<'a>(old: &'a Descriptor, new: &Descriptor) -> Vec<&'a Image> {
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
