//! [`check`] and [`check_image`]: what is wrong with an image. Nothing is changed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::clusters::Clusters;
use super::descriptor::{Descriptor, Image, Storage};
use super::disk::{RAW_WITH_HEADER, cut_short};
use super::extension;
use super::file;
use super::header::{Header, HeaderFlags};
use super::layout::Layout;
use super::orphans;
use super::report::{DeltaReport, Finding, Issue, Report, Severity, SnapshotReport};
use super::state::{State, padded};
use super::table::{self, PAGE, Page, Table};
use crate::{Error, ErrorKind, Guid, Result, Size};

const OPERATION: &str = "check image";

/// How many findings of one kind about one file are listed. The rest is counted.
const LISTED: u64 = 16;

/// Checks an image: its descriptor, each of its deltas, how they fit together, and what lies beside
/// them.
///
/// Reads headers and tables, not data, and changes nothing. Whatever is wrong is in the report: that
/// the descriptor cannot be read, too. An image that is written to meanwhile may seem damaged.
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
            return Report {
                findings: findings.finish(),
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
        findings.add_error(Issue::Unreadable, &error);
        Vec::new()
    });
    for orphan in &orphans {
        findings.add(
            Severity::Warning,
            Issue::Orphan,
            Some(orphan),
            None,
            "no descriptor in its directory names this delta; if it is no other image's, it can be removed, as Ploop::remove_leftovers does where it lies beside the descriptor",
        );
    }
    let snapshots = snapshots(&descriptor, &deltas);
    Report {
        findings: findings.finish(),
        deltas,
        snapshots,
        orphans,
    }
}

/// Checks one delta file by itself, as [`check`] does.
#[must_use]
pub fn check_image(file: impl AsRef<Path>) -> Report {
    let mut findings = Findings::default();
    let mut deltas = Vec::new();
    match check_file(file.as_ref(), false, &mut findings) {
        Ok(delta) => deltas.push(delta),
        Err(error) => findings.add_unreadable(&error),
    }
    Report {
        findings: findings.finish(),
        deltas,
        ..Report::default()
    }
}

/// Requires that the caller accepts the header of a delta, and that its table is sound: each entry leads to a cluster
/// of its own, inside the file and behind the table. Reads the whole table, four bytes for each cluster of the disk,
/// but not its holes. Returns the header and the open file.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(super) fn require_sound_delta(
    operation: &'static str,
    path: &Path,
    accept: impl FnOnce(&Header) -> Result<()>,
) -> Result<(Header, File)> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let (file, len) = file::open(OPERATION, path).map_err(failed)?;
    let header = Header::read_from(&file, len).map_err(failed)?;
    accept(&header)?;
    let mut findings = Findings::default();
    let layout = Layout::from(&header);
    check_layout(&layout, path, &mut findings);
    check_entry_count(&header, path, &mut findings);
    let check = TableCheck {
        path,
        file: &file,
        layout: &layout,
        len,
    };
    check.entries(&mut findings).map_err(failed)?;
    let damage = findings
        .list
        .into_iter()
        .find(|finding| finding.severity == Severity::Error);
    let Some(damage) = damage else {
        return Ok((header, file));
    };
    let kind = match damage.issue {
        Issue::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    };
    let error = Error::new(kind, operation, damage.message).with_path(path);
    Err(match damage.offset {
        Some(offset) => error.with_offset(offset),
        None => error,
    })
}

/// Findings. There may be as many as a table has entries, so a limited number of each kind is listed.
#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    counts: HashMap<(Issue, Option<PathBuf>), (Severity, u64)>,
}

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        issue: Issue,
        file: Option<&Path>,
        offset: Option<u64>,
        message: impl Into<String>,
    ) {
        let file = file.map(Path::to_owned);
        let (_, count) = self
            .counts
            .entry((issue, file.clone()))
            .or_insert((severity, 0));
        *count += 1;
        if *count <= LISTED {
            self.list.push(Finding {
                severity,
                issue,
                file,
                offset,
                message: message.into(),
            });
        }
    }

    fn add_error(&mut self, issue: Issue, error: &Error) {
        self.add(
            Severity::Error,
            issue,
            error.path(),
            error.offset(),
            error.reason(),
        );
    }

    fn add_unreadable(&mut self, error: &Error) {
        let issue = match error.kind() {
            ErrorKind::NotFound => Issue::Missing,
            ErrorKind::Corrupt => Issue::Header,
            _ => Issue::Unreadable,
        };
        self.add_error(issue, error);
    }

    fn finish(mut self) -> Vec<Finding> {
        let more: BTreeMap<_, _> = self
            .counts
            .into_iter()
            .filter(|(_, (_, count))| *count > LISTED)
            .map(|((issue, file), more)| ((file, format!("{issue:?}")), (issue, more)))
            .collect();
        for ((file, _), (issue, (severity, count))) in more {
            self.list.push(Finding {
                severity,
                issue,
                file,
                offset: None,
                message: format!("there are {} more of these", count - LISTED),
            });
        }
        self.list
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

fn check_descriptor(descriptor: &Descriptor, path: &Path, findings: &mut Findings) {
    let mut add = |severity, issue, message: String| {
        findings.add(severity, issue, Some(path), None, message);
    };
    if descriptor.top != Guid::TOP && descriptor.volume.is_none() {
        add(
            Severity::Warning,
            Issue::OldTop,
            format!(
                "the top is {}, as in descriptors of old versions; libploop makes no snapshots of such an image",
                descriptor.top
            ),
        );
    }
    if let Some(child) = descriptor.children(descriptor.top).next() {
        add(
            Severity::Warning,
            Issue::TopWithChild,
            format!(
                "the top is the parent of the snapshot {child}, which changes with each write to the top; make a snapshot, and the image has a new top"
            ),
        );
    }
    let geometry = descriptor.geometry;
    if geometry.cylinders.wrapping_mul(geometry.heads) == 0 {
        add(
            Severity::Warning,
            Issue::Geometry,
            "cylinders or heads are missing; libploop crashes when it writes the descriptor".into(),
        );
    }
    if descriptor.padding != 0 {
        let message = padded(descriptor.padding);
        add(Severity::Error, Issue::Unsupported, message);
    }
    if descriptor.encryption.is_some() {
        add(
            Severity::Error,
            Issue::Encrypted,
            "the image is encrypted".into(),
        );
    }
    for shot in &descriptor.snapshots {
        if shot.temporary {
            add(
                Severity::Note,
                Issue::Temporary,
                format!("snapshot {} is temporary", shot.guid),
            );
        }
    }
    let mut files: HashMap<&Path, &Image> = HashMap::new();
    for image in descriptor.all_images() {
        if let Some(other) = files.insert(&image.file, image) {
            add(
                Severity::Error,
                Issue::SameFile,
                format!(
                    "{} and {} have the same file {}",
                    other.guid,
                    image.guid,
                    image.file.display()
                ),
            );
        }
    }
}

/// Whether the deltas agree with the descriptor and with each other: cluster size, size, format version.
fn check_agreement(
    descriptor: &Descriptor,
    storage: &Storage,
    path: &Path,
    deltas: &[DeltaReport],
    findings: &mut Findings,
) {
    let said = storage.end - storage.start;
    let size = |delta: &DeltaReport| match &delta.layout {
        Some(layout) => layout.size,
        None => Size::from_sectors(delta.len.sectors()),
    };
    let by_guid: HashMap<Guid, &DeltaReport> = deltas
        .iter()
        .filter_map(|delta| Some((delta.guid?, delta)))
        .collect();
    for delta in deltas {
        if let Some(layout) = &delta.layout {
            if layout.cluster != storage.cluster {
                findings.add(
                    Severity::Error,
                    Issue::ClusterSize,
                    Some(&delta.file),
                    Some(28),
                    format!(
                        "the delta has clusters of {}, the descriptor says {}",
                        layout.cluster, storage.cluster
                    ),
                );
            }
        }
        let parent = delta.guid.and_then(|guid| descriptor.parent(guid));
        if let Some(parent) = parent.and_then(|parent| by_guid.get(&parent)) {
            if size(parent) > size(delta) {
                findings.add(
                    Severity::Warning,
                    Issue::Size,
                    Some(&delta.file),
                    Some(36),
                    format!(
                        "the disk has {} in this delta, and {} in the one below: the rest cannot be read",
                        size(delta),
                        size(parent)
                    ),
                );
            }
        }
    }
    let mut versions = deltas
        .iter()
        .filter_map(|delta| Some((delta, delta.layout.as_ref()?.version)));
    if let Some((_, first)) = versions.next() {
        for (delta, version) in versions.filter(|(_, version)| *version != first) {
            findings.add(
                Severity::Error,
                Issue::MixedVersions,
                Some(&delta.file),
                Some(0),
                format!("the delta is of format {version}, others of {first}"),
            );
        }
    }
    if let Some(top) = by_guid.get(&descriptor.top) {
        if top.layout.is_none() && size(top) < said {
            findings.add(
                Severity::Error,
                Issue::Size,
                Some(&top.file),
                None,
                cut_short(top.len.bytes(), said),
            );
        } else if size(top) != said {
            findings.add(
                Severity::Warning,
                Issue::Size,
                Some(path),
                None,
                format!(
                    "the disk has {} sectors here, and {} in the top delta",
                    said.sectors(),
                    size(top).sectors()
                ),
            );
        }
    }
}

fn snapshots(descriptor: &Descriptor, deltas: &[DeltaReport]) -> Vec<SnapshotReport> {
    let allocated: HashMap<Guid, Size> = deltas
        .iter()
        .filter_map(|delta| Some((delta.guid?, delta.allocated)))
        .collect();
    let mut children: HashMap<Guid, Vec<Guid>> = HashMap::new();
    for shot in &descriptor.snapshots {
        children.entry(shot.parent).or_default().push(shot.guid);
    }
    descriptor
        .snapshots
        .iter()
        .map(|shot| {
            let children = children.get(&shot.guid).map_or(&[][..], Vec::as_slice);
            SnapshotReport {
                guid: shot.guid,
                parent: shot.parent,
                temporary: shot.temporary,
                children: children.len(),
                delete_copies: match children {
                    [child] => allocated.get(child).copied(),
                    _ => Some(Size::ZERO),
                },
            }
        })
        .collect()
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
    let used = check
        .entries(findings)
        .and_then(|used| check.entries_beyond_disk(findings).map(|()| used))
        .map_err(|error| error.with_path(path))?;
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
            "the delta is marked as in use: it is mounted, or a mount or an operation was cut short; the next mount or change clears the mark"
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
    if header.stored_entries != header.entries() {
        findings.add(
            Severity::Warning,
            Issue::Size,
            Some(path),
            Some(32),
            format!(
                "the header counts {} clusters, but the size is that of {}",
                header.stored_entries,
                header.entries()
            ),
        );
    }
}

/// The check of one delta's table.
struct TableCheck<'a> {
    path: &'a Path,
    file: &'a File,
    layout: &'a Layout,
    len: u64,
}

impl TableCheck<'_> {
    /// Checks each entry, and returns the clusters that are in use, by their number behind the table.
    fn entries(&self, findings: &mut Findings) -> Result<Clusters> {
        let entries = self.layout.entries;
        let table = Table::new(entries);
        let mut clusters = Clusters::default();
        for number in 0..entries.div_ceil(PAGE) {
            let Page::Entries(page) = table.page_uncached(self.file, number)? else {
                continue;
            };
            for (cluster, entry) in (number * PAGE..).zip(page) {
                if entry != 0 {
                    self.entry(cluster, entry, &mut clusters, findings);
                }
            }
        }
        Ok(clusters)
    }

    fn entry(&self, number: u32, entry: u32, clusters: &mut Clusters, findings: &mut Findings) {
        let layout = self.layout;
        let offset = layout.cluster_offset(entry);
        let mut bad = |issue, what: &str| {
            findings.add(
                Severity::Error,
                issue,
                Some(self.path),
                Some(table::entry_offset(number)),
                format!("the table puts cluster {number} at {entry}, which {what}"),
            );
        };
        if let Some(what) = layout.misplaced(offset, |end| self.is_beyond(end)) {
            bad(Issue::BadEntry, what);
            return;
        }
        // No entry leads so far that the number does not fit.
        let slot = (offset - layout.data_start) / layout.cluster.bytes();
        if !clusters.insert(slot as u32) {
            bad(Issue::SharedCluster, "another cluster uses, too");
        }
    }

    /// Whether an offset is behind the end of the file. A delta in use grows meanwhile.
    fn is_beyond(&self, end: u64) -> bool {
        end > self.len && self.file.metadata().map_or(true, |now| end > now.len())
    }

    /// How many clusters the format extension has.
    fn extension_clusters(&self, findings: &mut Findings) -> u64 {
        if !self.layout.has_extension() {
            if self.layout.extension_sector != 0 && !self.layout.in_use {
                findings.add(
                    Severity::Note,
                    Issue::Extension,
                    Some(self.path),
                    Some(56),
                    "the header names a format extension that was not kept up, and is ignored",
                );
            }
            return 0;
        }
        match extension::clusters(self.file, self.layout, self.len) {
            Ok(clusters) => {
                findings.add(
                    Severity::Note,
                    Issue::Extension,
                    Some(self.path),
                    Some(56),
                    "the image has a format extension; with libploop 1, which would cut it off, changes and mounts are refused",
                );
                clusters.len() as u64
            }
            Err(error) => {
                let at = error.offset();
                let file = Some(self.path);
                findings.add(
                    Severity::Warning,
                    Issue::Extension,
                    file,
                    at,
                    error.message(),
                );
                0
            }
        }
    }

    /// Checks that the table is zero behind the entries of the disk, up to the first cluster of data.
    fn entries_beyond_disk(&self, findings: &mut Findings) -> Result<()> {
        let mut at = table::entry_offset(self.layout.entries);
        let end = self.layout.data_start;
        let mut buffer = vec![0; 64 << 10];
        while at < end {
            let Some((start, len)) = super::holes::data(self.file, at, end - at).next() else {
                break;
            };
            // To the beginning of an entry.
            at = start - start % 4;
            let part = (start + len - at).min(buffer.len() as u64) as usize;
            self.file
                .read_exact_at(&mut buffer[..part], at)
                .map_err(|error| {
                    Error::io("read block table", "the file cannot be read", error).with_offset(at)
                })?;
            if super::holes::is_zero(&buffer[..part]) {
                at += part as u64;
                continue;
            }
            for (index, entry) in (0u64..).zip(buffer[..part].chunks(4)) {
                if entry.iter().any(|byte| *byte != 0) {
                    findings.add(
                        Severity::Warning,
                        Issue::EntryBeyondDisk,
                        Some(self.path),
                        Some(at + 4 * index),
                        "the table has an entry for a cluster behind the end of the disk",
                    );
                }
            }
            at += part as u64;
        }
        Ok(())
    }

    /// How many clusters of the file are holes, and not in use.
    fn unused_holes(&self, used: &Clusters) -> u64 {
        let (cluster, data_start) = (self.layout.cluster.bytes(), self.layout.data_start);
        let (mut at, end) = (data_start, self.len - (self.len - data_start) % cluster);
        let mut holes = 0;
        let mut add = |from: u64, to: u64| {
            let (first, last) = (
                (from - data_start).div_ceil(cluster),
                (to - data_start) / cluster,
            );
            if let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) {
                holes += u64::from(last.saturating_sub(first)) - used.count(first..last);
            }
        };
        for (start, len) in super::holes::data(self.file, at, end.saturating_sub(at)) {
            add(at, start);
            at = start + len;
        }
        add(at, end);
        holes
    }

    /// How many clusters of the file have no entry that leads to them, and take space: `holes` of them take none.
    fn lost_clusters(&self, used: u64, holes: u64, findings: &mut Findings) -> u64 {
        let cluster = self.layout.cluster.bytes();
        let tail = (self.len - self.layout.data_start) % cluster;
        if tail != 0 {
            findings.add(
                Severity::Warning,
                Issue::UnalignedTail,
                Some(self.path),
                Some(self.len - tail),
                format!("the file ends with {tail} bytes that are not a whole cluster"),
            );
        }
        let clusters = (self.len - self.layout.data_start) / cluster;
        let unused = clusters.saturating_sub(used);
        let lost = unused.saturating_sub(holes);
        if unused != 0 {
            let mut message = format!("{unused} of the file's {clusters} clusters are not in use");
            let severity = match lost {
                0 => {
                    message += "; they are holes, and take no space";
                    Severity::Note
                }
                _ => Severity::Warning,
            };
            findings.add(
                severity,
                Issue::LostClusters,
                Some(self.path),
                None,
                message,
            );
        }
        lost
    }
}
