//! Conversions between all modes, with and without snapshots, and by libploop in between.

use std::fs;

use ploop::image::{Disk, DiskWriter, OfflineImage, check, tracking_bitmaps};
use ploop::{ErrorKind, FormatVersion, ImageMode, MergeParam, MergeTarget, Size};

use super::filled_image::{FilledImage, read_whole};
use super::written_bitmap::{Bitmap, append};

const MODES: [ImageMode; 3] = [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw];

fn offline(filled: &FilledImage) -> OfflineImage {
    OfflineImage::open(filled.xml()).unwrap()
}

#[test]
fn every_mode_becomes_every_other() {
    for from in MODES {
        for to in MODES {
            for snapshots in [0, 2] {
                let (mut filled, _) = FilledImage::chain(from, FormatVersion::V1, snapshots);
                let names = filled.names();
                let mut last = None;
                offline(&filled)
                    .convert(to, |progress| last = Some(progress))
                    .unwrap();
                assert!(last.is_none_or(|last| last.copied == last.total));
                assert_eq!(filled.descriptor().mode, to);
                assert_eq!(filled.names(), names);
                filled.verify();
                // libploop goes on from there.
                filled.write([(3, 77), (20, 78)]);
                if filled.can_have_deltas() {
                    let guid = filled.snapshot();
                    filled.ploop.delete_snapshot(guid).unwrap();
                    filled.states.remove(&guid);
                }
                filled.verify();
            }
        }
    }
}

#[test]
fn zeros_of_a_raw_disk_take_no_space() {
    let mut filled = FilledImage::new(ImageMode::Raw);
    filled.write([(2, 5), (9, 6)]);
    offline(&filled)
        .convert(ImageMode::Expanded, |_| {})
        .unwrap();
    let base = filled.descriptor().base().unwrap().file.clone();
    let clusters = fs::metadata(base).unwrap().len() / filled.cluster.bytes();
    // The table, and the two.
    assert_eq!(clusters, 3);
    filled.verify();
    // And all of it when every cluster is wanted.
    offline(&filled)
        .convert(ImageMode::Preallocated, |_| {})
        .unwrap();
    let base = filled.descriptor().base().unwrap().file.clone();
    let clusters = fs::metadata(base).unwrap().len() / filled.cluster.bytes();
    assert_eq!(clusters, 1 + FilledImage::CLUSTERS);
    filled.verify();
}

#[test]
fn a_raw_disk_that_is_no_whole_clusters_gets_larger() {
    let filled = FilledImage::new(ImageMode::Raw);
    let base = filled.descriptor().base().unwrap().file.clone();
    let file = fs::File::options().write(true).open(&base).unwrap();
    let len = file.metadata().unwrap().len() - 4096;
    file.set_len(len).unwrap();
    let text = fs::read_to_string(filled.xml()).unwrap();
    let sectors = Size::from_bytes(len).sectors().to_string();
    let whole = (len + 4096) / 512;
    fs::write(filled.xml(), text.replace(&whole.to_string(), &sectors)).unwrap();
    assert_eq!(filled.descriptor().size.bytes(), len);
    let mut disk = DiskWriter::open(filled.xml()).unwrap();
    disk.write_at(b"at the end", len - 10).unwrap();
    disk.close().unwrap();
    offline(&filled)
        .convert(ImageMode::Expanded, |_| {})
        .unwrap();
    assert_eq!(filled.descriptor().size.bytes(), len + 4096);
    let bytes = read_whole(&Disk::open(filled.xml()).unwrap());
    assert_eq!(&bytes[len as usize - 10..len as usize], b"at the end");
    assert!(bytes[len as usize..].iter().all(|byte| *byte == 0));
    assert!(check(filled.xml()).is_clean());
}

#[test]
fn a_disk_that_would_look_like_a_delta_is_not_made_raw() {
    let filled = FilledImage::new(ImageMode::Expanded);
    let delta = fs::read(filled.descriptor().base().unwrap().file.clone()).unwrap();
    let mut disk = DiskWriter::open(filled.xml()).unwrap();
    disk.write_at(&delta[..4096], 0).unwrap();
    disk.close().unwrap();
    let names = filled.names();
    let before = fs::read(filled.xml()).unwrap();
    let error = offline(&filled)
        .convert(ImageMode::Raw, |_| {})
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(
        (filled.names(), fs::read(filled.xml()).unwrap()),
        (names, before)
    );
}

#[test]
fn the_name_of_the_new_base_must_be_free() {
    let filled = FilledImage::new(ImageMode::Expanded);
    fs::write(filled.path("root.hds.tmp"), "somebody's").unwrap();
    let error = offline(&filled)
        .convert(ImageMode::Raw, |_| {})
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.path(), Some(&*filled.path("root.hds.tmp")));
    let left = fs::read(filled.path("root.hds.tmp")).unwrap();
    assert_eq!(left, b"somebody's");
}

#[test]
fn dirty_bitmaps_are_not_dropped_unasked() {
    for of_base in [true, false] {
        let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V2, 1);
        let descriptor = filled.descriptor();
        let delta = match of_base {
            true => descriptor.base(),
            false => descriptor.top_image(),
        };
        let delta = delta.unwrap().file.clone();
        let bitmap = Bitmap {
            id: [7; 16],
            sectors: FilledImage::CLUSTERS * filled.cluster.bytes() / 512,
            granularity: 128,
            bits: vec![true, false, true],
        };
        append(&delta, filled.cluster.bytes(), &[bitmap]);
        let before = fs::read(&delta).unwrap();
        let bitmaps = tracking_bitmaps(&delta).unwrap();
        assert_eq!(bitmaps.len(), 1);
        let refused = |done: ploop::Result<()>| {
            let error = done.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert_eq!(error.path(), Some(&*delta));
            assert!(error.to_string().contains("dirty bitmaps"), "{error}");
        };
        let mut image = offline(&filled);
        refused(image.merge(&MergeParam::new(MergeTarget::Top), |_| {}));
        let merged = filled.path("merged.hds");
        let param = MergeParam::new(MergeTarget::Top).new_delta(&merged);
        refused(image.merge(&param, |_| {}));
        assert!(!merged.exists());
        if of_base {
            refused(image.convert(ImageMode::Raw, |_| {}));
            assert_eq!(filled.descriptor().mode, ImageMode::Expanded);
        }
        assert!(fs::read(&delta).unwrap() == before);
        assert_eq!(tracking_bitmaps(&delta).unwrap(), bitmaps);
        filled.verify_contents();
    }
}
