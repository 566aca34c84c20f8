//! Repair of an image that is not attached: [`OfflineImage::repair`] and [`OfflineImage::undo_repair`].
//!
//! * [`geometry`]: which headers are right.
//! * [`header`]: a delta as it is.
//! * [`delta`]: what is to be changed in a delta.
//! * [`descriptor`]: what the descriptor should say.
//! * [`steps`]: the writes, in an order that leaves nothing worse at any moment.
//! * [`undo`]: what is overwritten is saved before, and put back on demand.

mod delta;
mod descriptor;
mod geometry;
mod header;
mod options;
mod report;
mod steps;
#[cfg(test)]
mod tests;
mod undo;
#[allow(
    unreachable_pub,
    reason = "the fuzz target has this file as a module of its own"
)]
mod undo_format;

pub use options::{RepairChoice, RepairGeometry, RepairOptions};
pub use report::{RepairItem, RepairOutcome, RepairReport};

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::OfflineImage;
use super::change::{FORM, cancelled, require_changeable, require_distinct_files, saved_fields};
use crate::image::check::check;
use crate::image::descriptor::{DescriptorFile, Image, directory, text};
use crate::image::header::{Header, HeaderFlags};
use crate::image::orphans::is_called_like_delta;
use crate::image::other_image::{require_no_second_name, require_of_no_other_image};
use crate::image::progress::{Progress, counted};
use crate::image::recovery;
use crate::image::report::{Finding, Issue, Report, Severity};
use crate::lock::Purpose;
use crate::sysfs::Device;
use crate::{Error, ErrorKind, Guid, Result, Size, side_files, sysfs};
use header::OpenDelta;
use report::Decisions;
use steps::Changes;

const OPERATION: &str = "repair image";

impl OfflineImage {
    /// Repairs what [`check`](crate::image::check()) finds, as far as there is one right answer, and by
    /// [choice](RepairChoice) what has several or loses something. What is left is in the report, with the reason.
    ///
    /// The descriptor may contradict itself; one that is no XML, or is missing, is made anew by
    /// [`restore_descriptor`](crate::image::restore_descriptor). An operation that was interrupted is finished or taken
    /// back first, as by every change, even where that is all there is to do.
    ///
    /// `progress` is called on this thread, where clusters are copied or saved.
    ///
    /// | finding ([`Issue`]) | what is done |
    /// |---|---|
    /// | `Descriptor` | entries that are listed twice, snapshots without a file on which nothing stands, files in no snapshot, a top that is not listed or is temporary: corrected, where only one way is possible; the files stay. All else: left |
    /// | `OldTop`, `Geometry` | the descriptor is written anew |
    /// | `TopWithChild` | left: a snapshot gives the image a new top |
    /// | `SameFile`, `Unreadable` | left, and so are all files of an image with `SameFile` |
    /// | `Missing` | by [`DropMissing`](RepairChoice::DropMissing), where nothing stands upon the snapshot; else left |
    /// | `Header` | the field that all else contradicts is corrected (see below); where the signature is gone, by [`RebuildHeaders`](RepairChoice::RebuildHeaders). A raw base that begins with a header: left |
    /// | `ClusterSize`, `MixedVersions` | likewise, in the headers or the descriptor |
    /// | `InUse` | the mark is cleared if the delta is sound then. It could be that of a program on another host |
    /// | `Unsupported` | left, but an interrupted change of the format version is taken back |
    /// | `Extension` | a damaged one by [`DropExtensions`](RepairChoice::DropExtensions); a sound one, too, where the table has to be changed |
    /// | `Size` | likewise. A delta with less than the one below, or a raw base that is longer: left. A raw base that is shorter, also one below a snapshot: by [`PadRaw`](RepairChoice::PadRaw) |
    /// | `BadEntry` | by [`ClearEntries`](RepairChoice::ClearEntries), unless a field of the header is the reason: that is corrected |
    /// | `SharedCluster` | by [`CopyShared`](RepairChoice::CopyShared) |
    /// | `EntryBeyondDisk` | the entries are cleared |
    /// | `EmptyFlag` | set or cleared |
    /// | `LostClusters` | freed: clusters from the end of the file move there, and the file is cut. Not while the table has other damage, to which they may belong |
    /// | `UnalignedTail` | cut off, unless an entry leads there: then by `ClearEntries` |
    /// | `Sparse` | by [`FillHoles`](RepairChoice::FillHoles) |
    /// | `Orphan` | by [`RemoveOrphans`](RepairChoice::RemoveOrphans), if it is beside the descriptor |
    /// | `Temporary`, `OldLayout`, `Partitions` | nothing: the image itself is none the worse for them |
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use ploop::image::{self, CreateOptions};
    /// # let base = dir.path().join("root.hds");
    /// # let mut image = image::create(base, ploop::Size::from_mib(64), &CreateOptions::new())?;
    /// # let undo = dir.path().join("undo");
    /// use ploop::image::RepairOptions;
    ///
    /// let report = image.repair(&RepairOptions::new().undo(undo), |_| {})?;
    /// for item in &report.items {
    ///     println!("{}: {}", item.message, item.outcome);
    /// }
    /// assert!(report.is_complete());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # The geometry
    ///
    /// By a wrong cluster size, format version or first block, whole clusters seem to be in no use. So the geometry of each
    /// delta is decided first, by all that headers, descriptor, tables and the lengths of the files say. What only one field
    /// contradicts is right, and the field is corrected; nothing else is changed in that repair, and the next one goes on.
    /// Where more than one geometry is possible, nothing of the delta is written: the report says what contradicts what,
    /// and nobody but a person who looks at the disk by each can tell, and [choose](RepairOptions::geometry) one.
    ///
    /// # After a failure, a kill or a power cut
    ///
    /// At each moment the image is no worse than before, and reads at least what it has read; the next repair goes on. With an
    /// [undo file](RepairOptions::undo), [`undo_repair`](OfflineImage::undo_repair) takes a repair back that was killed, too. What
    /// finishes an interrupted operation is not in that file.
    ///
    /// # Errors
    ///
    /// Where nothing can be repaired: those that [all operations](OfflineImage#what-is-refused) have, but for that of
    /// a marked top; [`Unsupported`](ErrorKind::Unsupported) for split disks and volumes that share deltas;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where the undo file is there; [`Io`](ErrorKind::Io) and
    /// [`NoSpace`](ErrorKind::NoSpace) of the system; [`Cancelled`](ErrorKind::Cancelled) after
    /// [`set_cancel`](OfflineImage::set_cancel). Damage is no error: it is in the report.
    pub fn repair(
        &mut self,
        options: &RepairOptions,
        progress: impl FnMut(Progress),
    ) -> Result<RepairReport> {
        let _lock = self
            .lock
            .acquire(OPERATION, Purpose::Change, false, self.timeout())?;
        let path = self.path();
        let prepared = match Prepared::new(path, options)? {
            Ok(prepared) => prepared,
            Err(report) => return Ok(report),
        };
        let Plan {
            changes, mut items, ..
        } = prepared.plan(path, options);
        let done = |items: Vec<RepairItem>, is_sound| RepairReport {
            dry_run: options.is_dry_run(),
            items,
            recovered: prepared.recovered,
            is_sound,
        };
        if options.is_dry_run() {
            return Ok(done(items, prepared.before.is_sound()));
        }
        if !changes.is_empty() {
            let mut report = counted(total(&changes, options.undo_file().is_some()), progress);
            if let Some(file) = options.undo_file() {
                if is_called_like_delta(&prepared.file.descriptor, file) {
                    let why = "this undo file would be called like a delta of the image, and be taken for an orphan; choose another name";
                    let error = Error::new(ErrorKind::InvalidInput, OPERATION, why);
                    return Err(error.with_path(file));
                }
                undo::write(OPERATION, file, &changes, &mut report)?;
            }
            changes.run(OPERATION, path, |change, step| {
                if let Some(flag) = &self.cancel {
                    if flag.load(Ordering::Relaxed) {
                        return Err(cancelled(OPERATION));
                    }
                }
                if let steps::Step::Copy(_) = step {
                    report(change.cluster);
                }
                Ok(())
            })?;
        }
        if prepared.is_pending {
            // What could not be finished because of the damage.
            if let Ok(file) = DescriptorFile::read_as(path, &FORM) {
                let devices = &prepared.devices;
                match recovery::finish_but_marks(devices, OPERATION, path, &file.descriptor, &FORM)
                {
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                    _ => {}
                }
            }
        }
        let after = check(path);
        compare(&mut items, &after);
        Ok(done(items, after.is_sound()))
    }
}

/// An image that may be repaired.
struct Prepared {
    devices: Vec<Device>,
    text: Vec<u8>,
    file: DescriptorFile,
    /// How the descriptor was mended, which contradicts itself.
    mended: Vec<String>,
    recovered: bool,
    /// Whether an interrupted operation could not be finished because of the damage.
    is_pending: bool,
    before: Report,
}

/// What is to be done, and what becomes of each finding.
struct Plan {
    changes: Changes,
    items: Vec<RepairItem>,
}

impl Prepared {
    /// Reads the descriptor, and finishes or takes back what was interrupted. The inner error is the report of an image of
    /// which nothing can be repaired.
    fn new(
        path: &Path,
        options: &RepairOptions,
    ) -> Result<std::result::Result<Prepared, RepairReport>> {
        let (text_now, mut file, mended) = match read(path)? {
            Ok(found) => found,
            Err(reason) => return Ok(Err(nothing(path, options, &reason))),
        };
        require_changeable(OPERATION, path, &file)?;
        let deltas = file.descriptor.images.iter().map(|image| &*image.file);
        let devices = sysfs::require_unattached(OPERATION, path, deltas)?;
        if let Err(error) = require_distinct_files(OPERATION, &file.descriptor) {
            let reason = format!(
                "{}: nobody can tell what belongs to which; put a copy of the right file in the place of each",
                error.message()
            );
            return Ok(Err(nothing(path, options, &reason)));
        }
        for image in &file.descriptor.images {
            require_of_no_other_image(OPERATION, path, &image.file)?;
        }
        if !options.is_dry_run() {
            require_no_second_name(OPERATION, path, &file.descriptor)?;
        }
        let (mut recovered, mut is_pending) = (is_interrupted(path, &file), false);
        let mut text_now = text_now;
        if !options.is_dry_run() {
            match recovery::finish_but_marks(&devices, OPERATION, path, &file.descriptor, &FORM) {
                Ok(changed) => recovered |= changed,
                Err(error) if error.kind() == ErrorKind::Corrupt => is_pending = true,
                Err(error) => return Err(error),
            }
            if mended.is_empty() {
                text_now = text(path).map_err(|error| error.during(OPERATION).with_path(path))?;
                file = DescriptorFile::read_as(path, &FORM)
                    .map_err(|error| error.during(OPERATION).with_path(path))?;
            }
        }
        if let Some(saved) = saved_fields(path).filter(|_| !file.unknown.is_dropped()) {
            file.unknown = saved;
        }
        Ok(Ok(Prepared {
            devices,
            text: text_now,
            file,
            mended,
            recovered,
            is_pending,
            before: check(path),
        }))
    }

    fn plan(&self, path: &Path, options: &RepairOptions) -> Plan {
        let mut decisions = Decisions::default();
        let mut changes = Changes {
            old_descriptor: self.text.clone(),
            ..Changes::default()
        };
        let descriptor = &self.file.descriptor;
        let (mut deltas, mut raw) = (Vec::new(), None);
        for image in &descriptor.images {
            let Ok(Some(open)) = OpenDelta::open(image) else {
                // It is a finding of the check, if that could read the descriptor.
                if !self.mended.is_empty() {
                    decisions.add(
                        Severity::Error,
                        Issue::Unreadable,
                        &image.file,
                        None,
                        "the delta cannot be read",
                        RepairOutcome::left("put the file back from a backup"),
                    );
                }
                continue;
            };
            match descriptor.is_raw_base(image.guid) {
                true => raw = Some(open),
                false => deltas.push(open),
            }
        }
        let right = geometry::decide(&deltas, descriptor, options, &mut decisions);
        let size_of = |guid: Guid| {
            let place = deltas.iter().position(|it| it.guid == guid)?;
            let right = right.headers[place].and_then(|header| Header::parse(&header).ok());
            let now = || Header::read(&deltas[place].path).ok();
            right.or_else(now).map(|header| header.size)
        };
        if let Some(base) = &raw {
            let change = descriptor::plan_raw(base, descriptor, &size_of, options, &mut decisions);
            changes.files.extend(change);
        }
        for (open, header) in deltas.iter().zip(&right.headers) {
            if let Some(header) = header {
                let change = delta::plan(open, header, right.hold(), options, &mut decisions);
                changes.files.extend(change);
            }
        }
        if right.is_corrected {
            for (open, header) in deltas.iter().zip(&right.headers) {
                let is_changed =
                    header.is_some_and(|header| geometry::is_other(&open.bytes, &header));
                follow(open, is_changed, &mut decisions);
            }
        }
        changes.new_descriptor = descriptor::plan(
            path,
            &self.file,
            &self.mended,
            (right.cluster, right.size),
            options,
            &mut decisions,
        )
        .filter(|new| new.as_bytes() != self.text);
        changes.removed = self.orphans(path, options, &mut decisions);
        Plan {
            items: items(&self.before, decisions),
            changes,
        }
    }

    /// The orphans that are to be removed.
    fn orphans(
        &self,
        path: &Path,
        options: &RepairOptions,
        decisions: &mut Decisions,
    ) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        for orphan in &self.before.orphans {
            let is_beside = orphan.parent() == Some(side_files::directory_of(path));
            let is_free = || {
                let identity = crate::identity::Identity::of(orphan).ok();
                side_files::is_regular_file(orphan)
                    && identity
                        .is_some_and(|identity| !self.devices.iter().any(|it| it.has(identity)))
                    && fs::metadata(orphan)
                        .is_ok_and(|it| std::os::unix::fs::MetadataExt::nlink(&it) == 1)
            };
            let outcome = if !is_beside {
                RepairOutcome::left(
                    "it is not in the directory of the descriptor: another image may have it",
                )
            } else if !is_free() {
                RepairOutcome::left("a device has it, or it has several names")
            } else if options.allows(RepairChoice::RemoveOrphans) {
                removed.push(orphan.clone());
                RepairOutcome::repaired("it is removed")
            } else {
                RepairOutcome::choice(RepairChoice::RemoveOrphans, "it is removed")
            };
            decisions.add(
                Severity::Warning,
                Issue::Orphan,
                orphan,
                None,
                String::new(),
                outcome,
            );
        }
        removed
    }
}

/// Decides about findings that a wrong header was the reason of, its own or that of another delta.
fn follow(open: &OpenDelta, is_changed: bool, decisions: &mut Decisions) {
    let how = "it was so because of a header, which is right now";
    let mut add = |issue, offset| {
        decisions.add(
            Severity::Error,
            issue,
            &open.path,
            offset,
            String::new(),
            RepairOutcome::repaired(how),
        );
    };
    add(Issue::Size, Some(36));
    add(Issue::MixedVersions, None);
    add(Issue::ClusterSize, None);
    if is_changed {
        for issue in [
            Issue::Header,
            Issue::BadEntry,
            Issue::SharedCluster,
            Issue::EntryBeyondDisk,
            Issue::LostClusters,
            Issue::UnalignedTail,
            Issue::EmptyFlag,
            Issue::Size,
            Issue::OldLayout,
        ] {
            add(issue, None);
        }
    }
}

/// What was read of a descriptor: its text, what it says, and how it was mended.
type FoundDescriptor = (Vec<u8>, DescriptorFile, Vec<String>);

/// Reads a descriptor, and mends one that contradicts itself; or why that cannot be done.
fn read(path: &Path) -> Result<std::result::Result<FoundDescriptor, String>> {
    let failed = |error: Error| error.during(OPERATION).with_path(path);
    let error = match DescriptorFile::read_as(path, &FORM) {
        Ok(file) => return Ok(Ok((text(path).map_err(failed)?, file, Vec::new()))),
        Err(error) if error.kind() == ErrorKind::Corrupt => error,
        Err(error) => return Err(failed(error)),
    };
    let bytes = match text(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Err(error.reason())),
        Err(error) => return Err(failed(error)),
    };
    match DescriptorFile::mend(bytes.clone(), directory(path), &FORM) {
        Ok((file, mended)) => Ok(Ok((bytes, file, mended))),
        Err(_) => Ok(Err(format!(
            "{}; put the descriptor back from a backup, or make it anew of the deltas: ploop-image restore-descriptor, or image::restore_descriptor",
            error.reason()
        ))),
    }
}

/// The report of an image of which nothing can be repaired.
fn nothing(path: &Path, options: &RepairOptions, reason: &str) -> RepairReport {
    let before = check(path);
    let items = before
        .findings
        .iter()
        .filter(|finding| finding.severity > Severity::Note);
    RepairReport {
        dry_run: options.is_dry_run(),
        items: items
            .map(|finding| item(finding, RepairOutcome::left(reason)))
            .collect(),
        recovered: false,
        is_sound: before.is_sound(),
    }
}

/// Whether there are signs of an operation that was interrupted.
fn is_interrupted(path: &Path, file: &DescriptorFile) -> bool {
    let signs = [
        side_files::staged(path),
        side_files::before_removal(path),
        side_files::merge_record(path),
        side_files::file_record(path),
    ];
    let is_converting = |image: &Image| {
        let header = Header::read(&image.file);
        header.is_ok_and(|header| header.flags.contains(HeaderFlags::CONVERTING))
    };
    signs.iter().any(|sign| side_files::is_regular_file(sign))
        || file.descriptor.images.iter().any(is_converting)
}

/// How much is copied and saved.
fn total(changes: &Changes, with_undo: bool) -> Size {
    let of_file = |change: &delta::FileChange| {
        let copies = change.copies.len() as u64 * change.cluster;
        let cut = change.old_len.saturating_sub(change.new_len);
        match with_undo {
            true => 2 * copies + cut,
            false => copies,
        }
    };
    let files: u64 = changes.files.iter().map(of_file).sum();
    let removed = changes.removed.iter().filter(|_| with_undo);
    let removed: u64 = removed
        .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
        .sum();
    Size::from_bytes(files + removed)
}

fn item(finding: &Finding, outcome: RepairOutcome) -> RepairItem {
    RepairItem {
        severity: finding.severity,
        issue: finding.issue,
        file: finding.file.clone(),
        offset: finding.offset,
        message: finding.message.clone(),
        outcome,
    }
}

/// What becomes of each finding.
fn items(before: &Report, decisions: Decisions) -> Vec<RepairItem> {
    let mut decisions: Vec<(report::Decision, bool)> =
        decisions.0.into_iter().map(|it| (it, false)).collect();
    let mut items = Vec::new();
    for finding in &before.findings {
        let is_about = |decision: &report::Decision| {
            decision.issue == finding.issue && Some(&decision.file) == finding.file.as_ref()
        };
        let exact = decisions
            .iter()
            .position(|(it, _)| is_about(it) && it.offset == finding.offset);
        let found = exact.or_else(|| {
            decisions
                .iter()
                .position(|(it, _)| is_about(it) && it.offset.is_none())
        });
        match found.map(|at| &mut decisions[at]) {
            Some((decision, used)) => {
                *used = true;
                let is_repaired = matches!(decision.outcome, RepairOutcome::Repaired { .. });
                if finding.severity > Severity::Note || is_repaired {
                    items.push(item(finding, decision.outcome.clone()));
                }
            }
            None if finding.severity > Severity::Note => {
                items.push(item(finding, RepairOutcome::left(why_left(finding))));
            }
            None => {}
        }
    }
    let rest = decisions.into_iter().filter(|(_, used)| !used);
    items.extend(
        rest.map(|(it, _)| it)
            .filter(|it| !it.message.is_empty())
            .map(|decision| RepairItem {
                severity: decision.severity,
                issue: decision.issue,
                file: Some(decision.file),
                offset: decision.offset,
                message: decision.message,
                outcome: decision.outcome,
            }),
    );
    items
}

/// Why a finding about which nothing was decided is left.
fn why_left(finding: &Finding) -> &'static str {
    match finding.issue {
        Issue::TopWithChild => "make a snapshot: the image has a new top then",
        Issue::Missing => {
            "put the file back from a backup; what stands upon it cannot be read without"
        }
        Issue::Unreadable => {
            "the system cannot read it: look at its kind and permissions, and copy it from a failing disk"
        }
        Issue::Size => {
            "which of the two is right is not known; the disk can be made larger: ploop-image resize"
        }
        Issue::Header => "nothing tells what the header should be",
        Issue::Unsupported => "this library does not know how it is meant",
        Issue::Orphan => "another image may have it",
        Issue::Extension => "it is that of another program",
        _ => "it depends on other damage of the image, which is left",
    }
}

/// Looks whether what was repaired is gone, and adds what was found only now.
fn compare(items: &mut Vec<RepairItem>, after: &Report) {
    for item in items.iter_mut() {
        let is_there = after.findings.iter().any(|finding| {
            finding.issue == item.issue
                && finding.file == item.file
                && finding.severity >= item.severity
                && (finding.offset == item.offset || finding.offset.is_none())
        });
        if item.is_repaired() && is_there {
            item.outcome = RepairOutcome::left("it is still there after the repair");
        }
    }
    let is_known = |finding: &Finding| {
        let mut known = items.iter();
        known.any(|item| item.issue == finding.issue && item.file == finding.file)
    };
    let new: Vec<RepairItem> = after
        .findings
        .iter()
        .filter(|finding| finding.severity > Severity::Note && !is_known(finding))
        .map(|finding| {
            let reason = "it was found only after the repair: repair the image again";
            item(finding, RepairOutcome::left(reason))
        })
        .collect();
    items.extend(new);
}
