//! [`check`] and [`check_image`]: what is wrong with an image. Nothing is changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::describing;
use super::descriptor::{Descriptor, Storage};
use super::disk::{Disk, OpenOptions, RAW_WITH_HEADER};
use super::file;
use super::header::{Header, HeaderFlags, at};
use super::layout::Layout;
use super::orphans::{self, Orphans};
use super::partition::Partition;
use super::report::{DeltaReport, Issue, Report, Severity};
use super::state::State;
use crate::{Error, Result, Size};
use descriptor::{check_agreement, check_descriptor, snapshots};
use findings::Findings;

mod descriptor;
mod findings;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod required;
mod table;

#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(super) use required::require_sound_delta;
#[cfg(feature = "image-write")]
pub(super) use table::EntryFault;
pub(super) use table::TableCheck;

const OPERATION: &str = "check image";

/// Checks an image: its descriptor, each of its deltas, how they fit together, and what lies beside
/// them.
///
/// Reads headers, tables and the partition table, no other data, and changes nothing. Whatever is wrong is in the report:
/// that the descriptor cannot be read, too; then the deltas beside it are checked. An image that is written to meanwhile may seem damaged.
///
/// ```no_run
/// let report = ploop::image::check("/vz/private/101/root.hdd/DiskDescriptor.xml");
/// println!("{report}");
/// assert!(report.is_sound());
/// ```
#[must_use]
pub fn check(descriptor: impl AsRef<Path>) -> Report {
    let path = descriptor.as_ref();
    let mut findings = Findings::default();
    let descriptor = match Descriptor::open(path) {
        Ok(descriptor) => descriptor,
        Err(error) => {
            findings.add_error(Issue::Descriptor, &error);
            let deltas = check_deltas_beside(path, &mut findings);
            return Report {
                findings: findings.finish(),
                deltas,
                ..Report::default()
            };
        }
    };
    check_descriptor(&descriptor, path, &mut findings);

    let storages = descriptor.storages();
    let mut checked: Vec<Vec<DeltaReport>> = storages
        .iter()
        .enumerate()
        .map(|(number, storage)| check_storage(&descriptor, storage, number, &mut findings))
        .collect();
    if descriptor.stands_upon().is_some() {
        check_images_below(&descriptor, path, &mut checked, &mut findings);
    }
    for (storage, deltas) in storages.iter().zip(&checked) {
        check_agreement(&descriptor, storage, path, deltas, &mut findings);
    }
    let deltas: Vec<DeltaReport> = checked.into_iter().flatten().collect();

    let orphans = orphans::orphans(&descriptor, path).unwrap_or_else(|error| {
        let what = format!(
            "whether deltas are left over cannot be told: {}",
            error.message()
        );
        findings.add(
            Severity::Warning,
            Issue::Unreadable,
            error.path(),
            None,
            what,
        );
        Orphans::default()
    });
    if let Some(other) = &orphans.hidden_by {
        let what = "whether deltas are left over cannot be told: this may be a damaged descriptor, which names what looks left over; move it elsewhere if it is none";
        findings.add(Severity::Note, Issue::Unreadable, Some(other), None, what);
    }
    let orphans = orphans.files;
    for orphan in &orphans {
        findings.add(
            Severity::Warning,
            Issue::Orphan,
            Some(orphan),
            None,
            "no descriptor in its directory names this delta; if it is no other image's, it can be removed; repair with the choice remove-orphans does it where it lies beside the descriptor",
        );
    }
    let snapshots = snapshots(&descriptor, &deltas);
    let opened = OpenOptions::new()
        .allow_in_use(true)
        .open_descriptor(&descriptor, descriptor.top);
    let partitions = check_partitions(opened, path, &mut findings);
    Report {
        findings: findings.finish(),
        deltas,
        snapshots,
        orphans,
        partitions,
    }
}

/// How many deltas beside a descriptor that cannot be read are checked.
const MAX_BESIDE: usize = 256;

/// Checks the deltas in the directory of a descriptor that does not say which are its own.
fn check_deltas_beside(path: &Path, findings: &mut Findings) -> Vec<DeltaReport> {
    let real = path.canonicalize();
    let entries = real.ok().and_then(|real| fs::read_dir(real.parent()?).ok());
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.is_file() && Header::has_signature(file))
        .take(MAX_BESIDE)
        .collect();
    files.sort();
    let mut deltas = Vec::new();
    for file in files {
        match check_file(&file, false, findings) {
            Ok(delta) => deltas.push(delta),
            Err(error) => findings.add_unreadable(&error),
        }
    }
    deltas
}

/// The partitions of a disk, and what is wrong with their table. A disk that cannot be opened is a finding as well, if
/// nothing was found that says why.
fn check_partitions(opened: Result<Disk>, path: &Path, findings: &mut Findings) -> Vec<Partition> {
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => {
            if !findings.has_errors() {
                findings.add_unreadable(&error);
            }
            return Vec::new();
        }
    };
    let mut add = |message| {
        let file = Some(path);
        findings.add(Severity::Note, Issue::Partitions, file, None, message);
    };
    match disk.partition_table() {
        Ok(table) => {
            table.faults.into_iter().for_each(add);
            table.partitions
        }
        Err(error) => {
            add(format!(
                "the partition table cannot be read: {}",
                error.reason()
            ));
            Vec::new()
        }
    }
}

/// Checks one delta file by itself, as [`check`] does.
#[must_use]
pub fn check_image(file: impl AsRef<Path>) -> Report {
    let file = file.as_ref();
    let mut findings = Findings::default();
    let mut deltas = Vec::new();
    match check_file(file, false, &mut findings) {
        Ok(delta) => deltas.push(delta),
        Err(error) => findings.add_unreadable(&error),
    }
    if let Some(message) = describing::what_others_say(file) {
        findings.add(
            Severity::Note,
            Issue::PartOfImage,
            Some(file),
            None,
            message,
        );
    }
    let opened = OpenOptions::new().allow_in_use(true).open_image(file);
    let partitions = check_partitions(opened, file, &mut findings);
    Report {
        findings: findings.finish(),
        deltas,
        partitions,
        ..Report::default()
    }
}

/// Checks the deltas of a storage.
fn check_storage(
    descriptor: &Descriptor,
    storage: &Storage,
    number: usize,
    findings: &mut Findings,
) -> Vec<DeltaReport> {
    let base = descriptor.base().map(|image| image.guid);
    let mut deltas = Vec::new();
    for image in &storage.images {
        let raw = storage.is_raw() && Some(image.guid) == base;
        match check_file(&image.file, raw, findings) {
            Ok(mut delta) => {
                delta.guid = Some(image.guid);
                delta.storage = number;
                deltas.push(delta);
            }
            Err(error) => findings.add_unreadable(&error),
        }
    }
    deltas
}

/// Checks the deltas in the directories of other images upon which this one stands.
fn check_images_below(
    descriptor: &Descriptor,
    path: &Path,
    checked: &mut [Vec<DeltaReport>],
    findings: &mut Findings,
) {
    let state = match State::of(descriptor, Some(path), descriptor.top, None) {
        Ok(state) => state,
        Err(error) => return findings.add_unreadable(&error),
    };
    for (number, (storage, deltas)) in state.storages.iter().zip(checked).enumerate() {
        let others = storage.files.iter();
        let others = others.filter(|file| descriptor.image(file.guid).is_none());
        for file in others {
            match check_file(&file.path, file.raw, findings) {
                Ok(mut delta) => {
                    delta.guid = Some(file.guid);
                    delta.storage = number;
                    deltas.push(delta);
                }
                Err(error) => findings.add_unreadable(&error),
            }
        }
    }
}

/// Checks one file.
fn check_file(path: &Path, raw: bool, findings: &mut Findings) -> Result<DeltaReport> {
    let run = || -> Result<_> {
        let (file, len) = file::open(OPERATION, path)?;
        let has_header = raw && Header::is_in(&file);
        let layout = (!raw || has_header)
            .then(|| Layout::read_from(&file, len))
            .transpose()?;
        let stored = file
            .metadata()
            .map_err(|error| Error::io(OPERATION, "the file cannot be examined", error))?
            .blocks()
            .saturating_mul(512);
        Ok((file, len, layout, stored))
    };
    let (file, len, layout, stored) = run().map_err(|error| error.with_path(path))?;
    if raw && layout.is_some() {
        findings.add(
            Severity::Error,
            Issue::Header,
            Some(path),
            Some(0),
            RAW_WITH_HEADER,
        );
    }
    // A block device has no holes.
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let missing = if is_file {
        len.saturating_sub(stored)
    } else {
        0
    };
    let mut delta = DeltaReport {
        guid: None,
        storage: 0,
        file: path.to_owned(),
        header: None,
        layout: None,
        len: Size::from_bytes(len),
        allocated: Size::from_bytes(len),
        lost: Size::ZERO,
    };
    let Some(layout) = layout else {
        add_sparse(missing, 0, path, findings);
        return Ok(delta);
    };
    delta.header = Header::read_from(&file, len).ok();
    check_layout(&layout, path, findings);
    if let Some(header) = &delta.header {
        check_entry_count(header, path, findings);
    }
    let check = TableCheck {
        path,
        file: &file,
        layout: &layout,
        len,
    };
    let used = check.entries(findings);
    if let Err(error) = check.entries_beyond_disk(findings) {
        findings.add_error(Issue::Unreadable, &error.with_path(path));
    }
    let says_empty = layout.flags.contains(HeaderFlags::EMPTY);
    // One that still has clusters which are not in use need not say so.
    let is_empty = used.len() == 0 && (says_empty || len <= layout.data_start);
    if says_empty != is_empty {
        let message = if is_empty {
            "the header does not say that the delta is empty"
        } else {
            "the header says that the delta is empty"
        };
        let issue = Issue::EmptyFlag;
        findings.add(Severity::Note, issue, Some(path), Some(52), message);
    }
    let cluster = layout.cluster.bytes();
    delta.allocated = Size::from_bytes(used.len() * cluster);
    let others = check.extension_clusters(findings);
    let holes = match missing {
        0 => 0,
        _ => check.unused_holes(&used),
    };
    add_sparse(missing, holes * cluster, path, findings);
    let lost = check.lost_clusters(used.len() + others, holes, findings);
    delta.lost = Size::from_bytes(lost * cluster);
    delta.layout = Some(layout);
    Ok(delta)
}

/// Reports holes of a file. Those of clusters that are not in use, `unused`, do no harm: `libploop` 7 punches them.
fn add_sparse(missing: u64, unused: u64, path: &Path, findings: &mut Findings) {
    let mut add = |severity, message: String| {
        findings.add(severity, Issue::Sparse, Some(path), None, message);
    };
    let elsewhere = missing.saturating_sub(unused);
    if elsewhere != 0 {
        add(
            Severity::Warning,
            format!(
                "the file has holes, of {} or more, as after a sparse copy; libploop refuses it on \
                 ext4, or fills them",
                Size::from_bytes(elsewhere)
            ),
        );
    } else if missing != 0 {
        add(
            Severity::Note,
            format!(
                "the file has holes, of {} or more, where no cluster is in use; libploop 1 fills them",
                Size::from_bytes(missing)
            ),
        );
    }
}

fn check_layout(header: &Layout, path: &Path, findings: &mut Findings) {
    let mut add = |severity, issue, offset, message: String| {
        findings.add(severity, issue, Some(path), Some(offset), message);
    };
    if header.in_use {
        add(
            Severity::Warning,
            Issue::InUse,
            44,
            "the delta is marked as in use: it is mounted, or a mount or an operation was cut short; the next mount clears the mark, and without one OfflineImage::clear_in_use_marks or repair do (ploop-image repair), once no program has it"
                .into(),
        );
    }
    if header.flags.contains(HeaderFlags::CONVERTING) {
        add(
            Severity::Error,
            Issue::Unsupported,
            52,
            "a change of the format version was interrupted; libploop can finish it".into(),
        );
    }
    if !header.is_ploop {
        add(
            Severity::Note,
            Issue::OldLayout,
            28,
            format!(
                "the layout is one of old Parallels versions, with clusters of {} sectors and data from sector {} on; libploop and the driver do not know it",
                header.cluster.sectors(),
                header.data_start / 512
            ),
        );
    }
}

fn check_entry_count(header: &Header, path: &Path, findings: &mut Findings) {
    let mut add = |severity, message| {
        findings.add(
            severity,
            Issue::Size,
            Some(path),
            Some(at::ENTRIES as u64),
            message,
        );
    };
    if let Some(contradiction) = header.contradiction() {
        add(Severity::Error, contradiction);
    } else if header.stored_entries != header.entries() {
        add(
            Severity::Warning,
            format!(
                "the header counts {} clusters, without the last one, which is not whole",
                header.stored_entries
            ),
        );
    }
}
