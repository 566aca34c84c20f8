//! What a descriptor says, and whether its deltas agree with it and with each other.

use std::collections::HashMap;
use std::path::Path;

use super::findings::Findings;
use crate::image::descriptor::{Descriptor, Image, Storage, padded};
use crate::image::disk::cut_short;
use crate::image::header::at;
use crate::image::report::{DeltaReport, Issue, Severity, SnapshotReport};
use crate::{Guid, Size};

pub(super) fn check_descriptor(descriptor: &Descriptor, path: &Path, findings: &mut Findings) {
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
pub(super) fn check_agreement(
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
        let is_whole = |size: Size| size.bytes() % storage.cluster.bytes() == 0;
        if let Some(layout) = delta.layout.as_ref().filter(|layout| layout.is_ploop) {
            if !is_whole(layout.size) && is_whole(said) {
                findings.add(
                    Severity::Error,
                    Issue::Size,
                    Some(&delta.file),
                    Some(at::SIZE as u64),
                    format!(
                        "the disk has {} sectors in this delta, no whole number of clusters, which the driver refuses; the descriptor has {}",
                        layout.size.sectors(),
                        said.sectors()
                    ),
                );
            }
        }
        if delta.layout.is_none() && delta.guid != Some(descriptor.top) {
            let above = delta.guid.into_iter();
            let above = above.flat_map(|guid| descriptor.children(guid));
            let above = above.filter_map(|guid| by_guid.get(&guid).copied());
            if let Some(above) = above.map(size).min() {
                check_raw_below(delta, above, findings);
            }
        }
        let parent = delta.guid.and_then(|guid| descriptor.parent(guid));
        if let Some(parent) = parent.and_then(|parent| by_guid.get(&parent)) {
            if size(parent) > size(delta) {
                findings.add(
                    Severity::Error,
                    Issue::Size,
                    Some(&delta.file),
                    Some(36),
                    format!(
                        "the disk has {} in this delta, and {} in the one below: the rest cannot be read, and the driver refuses it",
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

/// Checks the length of a raw base, of which a delta `above` says a size.
fn check_raw_below(base: &DeltaReport, above: Size, findings: &mut Findings) {
    let mut add = |severity, message| {
        findings.add(severity, Issue::Size, Some(&base.file), None, message);
    };
    if base.len.bytes() % 512 != 0 {
        add(
            Severity::Warning,
            format!(
                "the plain disk has {} bytes, which are no whole sectors: it was cut short, and the rest reads as zeros",
                base.len.bytes()
            ),
        );
    } else if base.len < above {
        add(
            Severity::Note,
            format!(
                "the plain disk has {}, and {above} in the delta above: the disk was made larger since, or the plain disk was cut short",
                base.len
            ),
        );
    }
}

pub(super) fn snapshots(descriptor: &Descriptor, deltas: &[DeltaReport]) -> Vec<SnapshotReport> {
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
