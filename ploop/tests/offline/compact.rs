//! Compaction: how much is found, and that all states read as before.

use std::fs;

use ploop::image::{CompactOptions, CompactReport, Disk, OfflineImage};
use ploop::{ErrorKind, FormatVersion, ImageMode, Size};

use super::filled_image::{FilledImage, read_whole};

fn compact(filled: &FilledImage, options: &CompactOptions) -> CompactReport {
    let mut last = None;
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let report = image.compact(options, |progress| last = Some(progress));
    assert!(last.is_some_and(|last| last.copied == last.total));
    report.unwrap()
}

fn len(filled: &FilledImage) -> u64 {
    let images = filled.descriptor().images;
    let files = images.iter().map(|it| fs::metadata(&it.file).unwrap());
    files.map(|file| file.len()).sum()
}

/// zeros, same, free and lost of each delta, in clusters.
fn found(filled: &FilledImage, report: &CompactReport) -> Vec<[u64; 4]> {
    let clusters = |size: Size| size.bytes() / filled.cluster.bytes();
    let deltas = report.deltas.iter();
    deltas
        .map(|it| [it.zeros, it.same, it.free, it.lost].map(clusters))
        .collect()
}

#[test]
fn what_nobody_needs_is_freed() {
    for format in [FormatVersion::V1, FormatVersion::V2] {
        let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 0);
        // Two of zeros, and one that a merge or a crash has lost.
        filled.write([(10, 0), (11, 0), (12, 5), (13, 6)]);
        filled.snapshot();
        // One as before, one of zeros over data, one of zeros over a free one, and one new.
        filled.write([(12, 5), (13, 0), (10, 0), (14, 7)]);
        if format == FormatVersion::V2 {
            filled.make_v2();
        }
        for image in &filled.descriptor().images {
            let file = fs::File::options().append(true).open(&image.file).unwrap();
            std::io::Write::write_all(&mut &file, &vec![9; filled.cluster.bytes() as usize])
                .unwrap();
        }
        let before = len(&filled);
        let dry = compact(&filled, &CompactOptions::new().dry_run(true));
        assert_eq!(len(&filled), before);
        let done = compact(&filled, &CompactOptions::new());
        // The fill has one of zeros itself.
        assert_eq!(found(&filled, &done), [[3, 0, 0, 1], [1, 1, 0, 1]]);
        // Before the base is compact, zeros over zeros count as equal.
        assert_eq!(found(&filled, &dry), [[3, 0, 0, 1], [0, 2, 0, 1]]);
        assert_eq!(done.freed(), dry.freed());
        assert_eq!(len(&filled), before - done.freed().bytes());
        filled.verify();
        let again = compact(&filled, &CompactOptions::new());
        assert!(again.freed().is_zero(), "{again:?}");
        filled.verify();
    }
}

/// What the file system does not use is removed from the top, where nothing is below.
#[test]
fn free_space_of_the_file_system() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 1), (3, 2), (4, 3), (5, 4)]);
    let snapshot = filled.snapshot();
    filled.write([(4, 5), (8, 6), (9, 7), (10, 8)]);
    let cluster = filled.cluster.bytes();
    // All of 8, half of 9, and 4, which the snapshot has.
    let free = vec![
        4 * cluster..5 * cluster,
        8 * cluster..9 * cluster + cluster / 2,
    ];
    let report = compact(&filled, &CompactOptions::new().free(free));
    assert_eq!(found(&filled, &report), [[0; 4], [0, 0, 1, 0]]);
    filled.states.get_mut(&ploop::Guid::TOP).unwrap().remove(&8);
    filled.verify();
    let disk = Disk::open_snapshot(filled.xml(), snapshot).unwrap();
    assert!(read_whole(&disk).iter().any(|byte| *byte != 0));
}

#[test]
fn bases_that_are_whole_stay_so() {
    for mode in [ImageMode::Preallocated, ImageMode::Raw] {
        let (mut filled, _) = FilledImage::chain(mode, FormatVersion::V1, 1);
        let base = filled.descriptor().base().unwrap().file.clone();
        let before = fs::read(&base).unwrap();
        // Equal to what is in the base.
        filled.write([(20, 0)]);
        let report = compact(&filled, &CompactOptions::new());
        assert_eq!(report.deltas.len(), 1);
        assert!(!report.freed().is_zero());
        assert!(fs::read(&base).unwrap() == before);
        filled.verify();
    }
}

#[test]
fn a_file_with_two_names_is_only_looked_at() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 0)]);
    let base = filled.descriptor().base().unwrap().file.clone();
    fs::hard_link(&base, filled.path("clone")).unwrap();
    let dry = compact(&filled, &CompactOptions::new().dry_run(true));
    assert_eq!(dry.freed().bytes(), filled.cluster.bytes());
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let error = image.compact(&CompactOptions::new(), |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
