//! What the descriptor should say, and the raw base, which has nothing but its length.

use std::ops::Range;
use std::path::Path;

use super::delta::FileChange;
use super::header::OpenDelta;
use super::options::{RepairChoice, RepairOptions};
use super::report::{Decisions, RepairOutcome};
use crate::image::descriptor::{Descriptor, DescriptorFile};
use crate::image::header::Header;
use crate::image::holes;
use crate::image::report::{Issue, Severity};
use crate::side_files::directory_of;
use crate::{ClusterSize, Guid, Size};

/// The text of the descriptor that is right. `None` where it stays as it is. `found` is what the deltas say.
pub(super) fn plan(
    path: &Path,
    file: &DescriptorFile,
    mended: &[String],
    found: (ClusterSize, Option<Size>),
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> Option<String> {
    let (cluster, size) = found;
    let old = &file.descriptor;
    let mut new = old.clone();
    let mut own = Decisions::default();
    let mut changed = cluster != old.cluster;
    new.cluster = cluster;
    let mut add = |severity, issue, file: &Path, message: &str, outcome| {
        own.add(severity, issue, file, None, message, outcome);
    };
    if !mended.is_empty() {
        changed = true;
        add(
            Severity::Error,
            Issue::Descriptor,
            path,
            "the descriptor contradicts itself",
            RepairOutcome::repaired(mended.join("; ")),
        );
    }
    if old.top != Guid::TOP && old.volume.is_none() {
        changed = true;
        add(
            Severity::Warning,
            Issue::OldTop,
            path,
            "the top has another GUID than today",
            RepairOutcome::repaired(format!("the top is {}", Guid::TOP)),
        );
    }
    if old.geometry.cylinders.wrapping_mul(old.geometry.heads) == 0 {
        changed = true;
        add(
            Severity::Warning,
            Issue::Geometry,
            path,
            "cylinders or heads are missing",
            RepairOutcome::repaired("they are made up from the size, as libploop does it"),
        );
    }
    let message = "the size of the disk differs from that in the top delta";
    match size {
        None => add(
            Severity::Warning,
            Issue::Size,
            path,
            "",
            RepairOutcome::left("what is known of the top delta does not tell which size is right"),
        ),
        Some(size) if size != old.size => {
            changed = true;
            new.size = size;
            add(
                Severity::Warning,
                Issue::Size,
                path,
                message,
                RepairOutcome::repaired(format!(
                    "size and number of entries of the top delta say {size}, and so does the descriptor"
                )),
            );
        }
        Some(size) if top_size(old).is_some_and(|top| top != size) => add(
            Severity::Warning,
            Issue::Size,
            path,
            message,
            RepairOutcome::repaired("the header of the top delta says so now"),
        ),
        Some(_) => {}
    }
    changed |= drop_missing(&mut new, options, &mut own);

    let text = changed.then(|| new.to_xml_with(&file.unknown, directory_of(path)));
    let text = match text {
        Some(Err(error)) => {
            let reason = format!("the descriptor cannot be written: {}", error.reason());
            for decision in &mut own.0 {
                decision.outcome = RepairOutcome::left(reason.clone());
            }
            None
        }
        Some(Ok(text)) => Some(text),
        None => None,
    };
    decisions.0.append(&mut own.0);
    text
}

/// The size of the disk by the header of the top, as it is.
fn top_size(descriptor: &Descriptor) -> Option<Size> {
    Some(Header::read(&descriptor.top_image()?.file).ok()?.size)
}

/// Drops snapshots whose delta is missing, as long as nothing stands upon them. Returns whether there were any.
fn drop_missing(
    descriptor: &mut Descriptor,
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> bool {
    let is_missing = |descriptor: &Descriptor, guid: Guid| {
        descriptor.image(guid).is_some_and(|image| {
            std::fs::metadata(&image.file)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        })
    };
    // What would go, whether it is allowed or not.
    let mut rest = descriptor.clone();
    loop {
        let leaf = rest.snapshots.iter().map(|shot| shot.guid).find(|guid| {
            *guid != rest.top && rest.children(*guid).next().is_none() && is_missing(&rest, *guid)
        });
        let Some(leaf) = leaf else {
            break;
        };
        if let Some(image) = rest.image(leaf) {
            let effect = format!("the snapshot {leaf} is removed from the descriptor");
            let outcome = match options.allows(RepairChoice::DropMissing) {
                true => RepairOutcome::repaired(effect),
                false => RepairOutcome::choice(RepairChoice::DropMissing, effect),
            };
            decisions.add(
                Severity::Error,
                Issue::Missing,
                &image.file,
                None,
                "the delta is missing",
                outcome,
            );
        }
        rest = rest.without(leaf);
    }
    let changed = rest.images.len() < descriptor.images.len();
    if changed && options.allows(RepairChoice::DropMissing) {
        *descriptor = rest;
        return true;
    }
    false
}

/// The changes of a raw base. `size_of` tells the size of the disk in a delta, as the repair leaves it.
pub(super) fn plan_raw(
    base: &OpenDelta,
    descriptor: &Descriptor,
    size_of: &dyn Fn(Guid) -> Option<Size>,
    options: &RepairOptions,
    decisions: &mut Decisions,
) -> Option<FileChange> {
    let is_top = base.guid == descriptor.top;
    // Below a snapshot, the disk has the size that it had then.
    let above = descriptor.children(base.guid).filter_map(size_of);
    let size = match is_top {
        true => Some(descriptor.size),
        false => above.min(),
    };
    let size = size.map_or(base.len, Size::bytes);
    let missing = base.len.saturating_sub(base.stored);
    let is_short = base.len < size;
    // A disk that was made larger since has such a base, too.
    let severity = match (is_top, base.len % 512) {
        (true, _) => Severity::Error,
        (false, 0) => Severity::Note,
        (false, _) => Severity::Warning,
    };
    let mut add = |severity, issue, message: &str, outcome| {
        decisions.add(severity, issue, &base.path, None, message, outcome);
    };
    if Header::parse(&base.bytes).is_ok_and(|header| header.check_len(base.len).is_ok()) {
        return None;
    }
    if base.names > 1 {
        let left = || RepairOutcome::left("the file has several names (hard links)");
        add(Severity::Error, Issue::Size, "", left());
        add(Severity::Warning, Issue::Sparse, "", left());
        return None;
    }
    let mut change = FileChange::new(base, descriptor.cluster.bytes(), 0);
    if is_short {
        let effect = format!(
            "the file gets {} of zeros for what is missing",
            Size::from_bytes(size - base.len)
        );
        let outcome = if options.allows(RepairChoice::PadRaw) {
            change.new_len = size;
            change.longest = size;
            RepairOutcome::repaired(effect)
        } else {
            RepairOutcome::choice(RepairChoice::PadRaw, effect)
        };
        add(severity, Issue::Size, "", outcome);
    } else if is_top && base.len.next_multiple_of(512) > size {
        decisions.add(
            Severity::Warning,
            Issue::Size,
            &base.path,
            None,
            "",
            RepairOutcome::left(
                "the raw base is longer than the disk, and which is right is not known",
            ),
        );
    }
    if missing != 0 {
        let allowed = options.allows(RepairChoice::FillHoles);
        let outcome = if allowed {
            change.fills = gaps(base);
            RepairOutcome::repaired("they have space now")
        } else {
            RepairOutcome::choice(
                RepairChoice::FillHoles,
                format!("they get space, {} or more", Size::from_bytes(missing)),
            )
        };
        decisions.add(
            Severity::Warning,
            Issue::Sparse,
            &base.path,
            None,
            "the file has holes",
            outcome,
        );
    }
    (!change.is_nothing()).then_some(change)
}

/// The holes of a file.
fn gaps(base: &OpenDelta) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for (start, len) in holes::data(&base.file, 0, base.len).chain([(base.len, 0)]) {
        if at < start {
            gaps.push(at..start);
        }
        at = start + len;
    }
    gaps
}
