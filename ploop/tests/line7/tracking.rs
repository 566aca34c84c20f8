//! Changed-block tracking on images that are not attached: what a snapshot stores, what other operations do to it, and
//! how it ends.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ploop::image::{Disk, Header, Issue, Severity, check, tracking_bitmaps};
use ploop::{
    Code, ErrorKind, Guid, ImageMode, MergeParam, MergeTarget, Ploop, Size, SnapshotParam,
};

use crate::filled_image::{FilledImage, cluster_bytes};
use crate::fixture::directory::Contents;
use crate::fixture::harness::{Need, Test};
use crate::written_bitmap::{Bitmap, EXTENSION, append};
use crate::{REAL, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            a_bitmap_is_no_obstacle,
            what_is_dropped_is_gone,
            what_cannot_be_cut_off_is_lost_space,
            used_clusters_are_those_of_one_delta;
        REAL => a_snapshot_begins_to_track, a_raw_base_keeps_no_bitmap;
        &[Need::LineSeven, Need::RealLibrary] => the_bitmap_goes_with_the_top;
    ]
}

fn tracking(id: Guid) -> SnapshotParam {
    SnapshotParam::new().tracking(id)
}

fn assert_not_tracked(image: &Ploop, guid: Guid) {
    let error = image.tracking_bitmap(guid).unwrap_err();
    let found = (error.kind(), error.libploop_code());
    assert_eq!(found, (ErrorKind::NotTracked, Some(Code::NOCBT)), "{error}");
}

fn a_snapshot_begins_to_track() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 1);
    let id = Guid::generate();
    if !is_line_7() {
        let before = Contents::of(filled.dir.path());
        let error = filled.ploop.snapshot_with(&tracking(id)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("7.0.95"), "{error}");
        before.assert_unchanged("a snapshot that was refused");
        assert_not_tracked(&filled.ploop, Guid::TOP);
        return;
    }
    let nothing = tracking(Guid::NONE);
    let error = filled.ploop.snapshot_with(&nothing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let snapshot = filled.ploop.snapshot_with(&tracking(id)).unwrap();
    filled.took(snapshot);
    filled.verify_contents();
    assert_not_tracked(&filled.ploop, snapshot);
    let bitmap = filled.ploop.tracking_bitmap(Guid::TOP).unwrap();
    assert_eq!(bitmap.id, id);
    assert_eq!(bitmap.size, filled.descriptor().size);
    assert_eq!(bitmap.granularity, 64 << 10);
    assert_eq!(bitmap.extents().count(), 0);
    let error = filled.ploop.tracking_bitmap(Guid::generate()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSnapshot, "{error}");
}

/// A bitmap of this image with every second granule set.
fn every_second(filled: &FilledImage, id: u8) -> Bitmap {
    let sectors = filled.descriptor().size.sectors();
    let granularity = 128;
    Bitmap {
        id: [id; 16],
        sectors,
        granularity,
        bits: (0..sectors.div_ceil(granularity.into()))
            .map(|at| at % 2 == 0)
            .collect(),
    }
}

fn append_to(delta: &Path, filled: &FilledImage, bitmap: Bitmap) {
    append(delta, filled.cluster.bytes(), &[bitmap]);
}

/// A snapshot without tracking, and the merge of it, carry the bitmap of the top along.
fn the_bitmap_goes_with_the_top() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 1);
    let top = filled.file_of(Guid::TOP);
    append_to(&top, &filled, every_second(&filled, 7));
    let before = filled.ploop.tracking_bitmap(Guid::TOP).unwrap();
    assert!(before.extents().count() > 4);
    let snapshot = filled.snapshot();
    filled.verify_contents();
    assert_eq!(filled.ploop.tracking_bitmap(Guid::TOP).unwrap(), before);
    // The next one begins anew, and keeps what was.
    let id = Guid::generate();
    let second = filled.ploop.snapshot_with(&tracking(id)).unwrap();
    filled.took(second);
    filled.verify_contents();
    assert_eq!(filled.ploop.tracking_bitmap(second).unwrap(), before);
    let new = filled.ploop.tracking_bitmap(Guid::TOP).unwrap();
    assert_eq!((new.id, new.changed()), (id, Size::ZERO));
    // Merged into a delta, the bitmap of the upper one is that of the result.
    filled
        .ploop
        .merge(&MergeParam::new(MergeTarget::Top))
        .unwrap();
    filled.states.remove(&second);
    filled.verify_contents();
    assert_eq!(filled.ploop.tracking_bitmap(Guid::TOP).unwrap().id, id);
    filled.ploop.delete_snapshot(snapshot).unwrap();
    filled.states.remove(&snapshot);
    filled.verify_contents();
    assert_eq!(filled.ploop.tracking_bitmap(Guid::TOP).unwrap().id, id);
}

fn a_bitmap_is_no_obstacle() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 1);
    let top = filled.file_of(Guid::TOP);
    append_to(&top, &filled, every_second(&filled, 7));
    if !is_line_7() {
        let before = Contents::of(filled.dir.path());
        let error = filled.ploop.snapshot().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("Ploop::drop_tracking"), "{error}");
        before.assert_unchanged("a change that was refused");
        filled.ploop.drop_tracking(Guid::TOP).unwrap();
    }
    let snapshot = filled.snapshot();
    filled.write([(3, 77)]);
    filled.verify_contents();
    filled.switch(snapshot);
    filled.verify_contents();
    filled.write([(5, 78)]);
    filled.ploop.convert(ImageMode::Preallocated).unwrap();
    filled.verify_contents();
}

fn len(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

fn what_is_dropped_is_gone() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 1);
    let top = filled.file_of(Guid::TOP);
    let before = (len(&top), filled.names());
    // Nothing to drop.
    filled.ploop.drop_tracking(Guid::TOP).unwrap();
    append_to(&top, &filled, every_second(&filled, 7));
    assert!(len(&top) > before.0);
    filled.ploop.tracking_bitmap(Guid::TOP).unwrap();
    filled.ploop.drop_tracking(Guid::TOP).unwrap();
    assert_not_tracked(&filled.ploop, Guid::TOP);
    assert_eq!((len(&top), filled.names()), before);
    let header = Header::read(&top).unwrap();
    assert!(header.extension_sector == 0 && !header.marked_closed);
    filled.verify();
    let report = check(filled.xml());
    assert!(
        !report.has(Issue::Extension) && report.is_clean(),
        "{report}"
    );

    // A snapshot's, which is that of no device.
    let base = filled.descriptor().base().unwrap().clone();
    append_to(&base.file, &filled, every_second(&filled, 8));
    filled.ploop.drop_tracking(base.guid).unwrap();
    assert_eq!(tracking_bitmaps(&base.file).unwrap(), []);
    filled.snapshot();
    filled.verify();
    let error = filled.ploop.drop_tracking(Guid::generate()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSnapshot, "{error}");
}

/// What is left of a bitmap is space that nobody uses, and no more.
fn what_cannot_be_cut_off_is_lost_space() {
    type Damage = fn(&mut FilledImage, &Path);
    let damages: [Damage; 2] = [
        // Data lies behind it.
        |filled, _| filled.write([(9, 99)]),
        |_, top| {
            let file = File::options().write(true).open(top).unwrap();
            let nowhere = u64::MAX.to_le_bytes();
            file.write_all_at(&nowhere, EXTENSION).unwrap();
        },
    ];
    for damage in damages {
        let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 1);
        let top = filled.file_of(Guid::TOP);
        append_to(&top, &filled, every_second(&filled, 7));
        damage(&mut filled, &top);
        let end = len(&top);
        filled.ploop.drop_tracking(Guid::TOP).unwrap();
        assert_not_tracked(&filled.ploop, Guid::TOP);
        assert_eq!(len(&top), end);
        let header = Header::read(&top).unwrap();
        assert!(header.extension_sector == 0 && !header.marked_closed);
        let report = check(filled.xml());
        let worse = |it: &&ploop::image::Finding| it.severity > Severity::Note;
        let found: Vec<Issue> = report
            .findings
            .iter()
            .filter(worse)
            .map(|it| it.issue)
            .collect();
        assert_eq!(found, [Issue::LostClusters], "{report}");
        assert_eq!(report.deltas[1].lost.bytes(), 2 * filled.cluster.bytes());
        let mut read = vec![0; filled.cluster.bytes() as usize];
        let disk = Disk::open(filled.xml()).unwrap();
        for (number, seed) in &filled.states[&Guid::TOP] {
            disk.read_at(&mut read, number * filled.cluster.bytes())
                .unwrap();
            assert_eq!(read, cluster_bytes(*seed, filled.cluster.bytes()));
        }
    }
}

fn a_raw_base_keeps_no_bitmap() {
    let mut filled = FilledImage::new(ImageMode::Raw);
    filled.write([(1, 2)]);
    let before = Contents::of(filled.dir.path());
    for result in [
        filled
            .ploop
            .snapshot_with(&tracking(Guid::generate()))
            .map(drop),
        filled.ploop.tracking_bitmap(Guid::TOP).map(drop),
        filled.ploop.used_bitmap(Guid::TOP).map(drop),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    filled.ploop.drop_tracking(Guid::TOP).unwrap();
    before.assert_unchanged("all of that");
    // The delta on it does.
    filled.snapshot();
    if is_line_7() {
        let id = Guid::generate();
        let snapshot = filled.ploop.snapshot_with(&tracking(id)).unwrap();
        filled.took(snapshot);
        assert_eq!(filled.ploop.tracking_bitmap(Guid::TOP).unwrap().id, id);
    }
    filled.verify_contents();
}

fn used_clusters_are_those_of_one_delta() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 2);
    let cluster = filled.cluster.bytes();
    for guid in [guids[0], guids[1], Guid::TOP] {
        let used = filled.ploop.used_bitmap(guid).unwrap();
        let mut found = Vec::new();
        for extent in used.extents() {
            assert_eq!((extent.offset % cluster, extent.len % cluster), (0, 0));
            found.extend(extent.offset / cluster..(extent.offset + extent.len) / cluster);
        }
        let delta = crate::filled_image::Delta::open(&filled.file_of(guid));
        let expected: Vec<u64> = delta.allocated(filled.clusters).into_iter().collect();
        assert_eq!(found, expected);
    }
}
