//! Compaction: how much is found, and that all states read as before.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use ploop::image::{CompactOptions, CompactReport, Disk, OfflineImage};
use ploop::{ErrorKind, FormatVersion, Guid, ImageMode, Size};

use super::filled_image::{Delta, FilledImage, read_whole};

fn compact(filled: &FilledImage, options: &CompactOptions) -> CompactReport {
    let mut last = None;
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let report = image.compact(options, |progress| last = Some(progress));
    assert!(last.is_some_and(|last| last.copied == last.total));
    report.unwrap()
}

fn compact_with_free(
    filled: &FilledImage,
    options: &CompactOptions,
    parts: &[Range<u64>],
) -> CompactReport {
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let free = |_: &Disk, free: &mut ploop::image::FreeParts| {
        parts.iter().cloned().for_each(|part| free.add(part));
        Ok(())
    };
    image.compact_with_free(options, free, |_| {}).unwrap()
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

/// What the file system does not use is removed from the top: it reads as what is below, and the snapshot stays as it is.
#[test]
fn free_space_of_the_file_system() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 1), (3, 2), (4, 3), (5, 4)]);
    filled.snapshot();
    filled.write([(4, 5), (8, 6), (9, 7), (10, 8), (11, 0)]);
    let cluster = filled.cluster.bytes();
    // 3, which only the snapshot has, 4, which both have, all of 8, half of 9, and 11, which are zeros.
    let parts = [
        3 * cluster..5 * cluster,
        8 * cluster..9 * cluster + cluster / 2,
        11 * cluster..12 * cluster,
    ];
    let expected = [[0; 4], [0, 0, 3, 0]];
    let before = len(&filled);
    let dry = compact_with_free(&filled, &CompactOptions::new().dry_run(true), &parts);
    assert_eq!(found(&filled, &dry), expected);
    assert_eq!(len(&filled), before);
    filled.verify();
    let done = compact_with_free(&filled, &CompactOptions::new(), &parts);
    assert_eq!(found(&filled, &done), expected);
    assert_eq!(len(&filled), before - 3 * cluster);
    let top = filled.states.get_mut(&Guid::TOP).unwrap();
    top.insert(4, 3);
    top.remove(&8);
    top.remove(&11);
    filled.verify();
}

/// Whatever is said to be free, the rest of the top and all snapshots read as before.
#[test]
fn random_free_parts() {
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mode =
            [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw][random.usize(..3)];
        let format = match random.bool() {
            true => FormatVersion::V1,
            false => FormatVersion::V2,
        };
        let (mut filled, guids) = FilledImage::chain(mode, FormatVersion::V1, random.u64(..4));
        if !guids.is_empty() && random.bool() {
            // A branch: what is below the top has another child.
            filled.switch(guids[random.usize(..guids.len())]);
            filled.fill(9);
        }
        if format == FormatVersion::V2 {
            filled.make_v2();
        }
        let (cluster, count) = (filled.cluster.bytes(), filled.clusters);
        let mut parts = Vec::new();
        let mut at = 0;
        while at < count * cluster {
            let start = at + 512 + random.u64(..3 * cluster) / 512 * 512;
            at = start + random.u64(..5 * cluster) / 512 * 512;
            parts.push(start..at);
        }
        let is_free = |number: &u64| {
            let whole = number * cluster..(number + 1) * cluster;
            parts
                .iter()
                .any(|it| it.start <= whole.start && whole.end <= it.end)
        };
        let descriptor = filled.descriptor();
        let top = descriptor.top_image().unwrap().clone();
        let below = descriptor.parent(top.guid);
        let is_kept = below.is_none() && mode != ImageMode::Expanded;
        let own = match is_kept {
            true => Default::default(),
            false => Delta::open(&top.file).allocated(count),
        };
        let others: Vec<_> = (descriptor.images.iter())
            .filter(|it| it.guid != top.guid)
            .map(|it| it.guid)
            .collect();
        let states = |filled: &FilledImage| -> Vec<Vec<u8>> {
            let disk = |guid| Disk::open_snapshot(filled.xml(), guid).unwrap();
            others.iter().map(|guid| read_whole(&disk(*guid))).collect()
        };
        let before = states(&filled);
        let report = compact_with_free(&filled, &CompactOptions::new(), &parts);
        let expected: Vec<u64> = own.iter().copied().filter(is_free).collect();
        let free: Vec<u64> = found(&filled, &report).iter().map(|it| it[2]).collect();
        assert_eq!(free.iter().sum::<u64>(), expected.len() as u64, "{seed}");
        for (delta, free) in report.deltas.iter().zip(free) {
            assert!(free == 0 || delta.guid == top.guid, "{seed}");
        }
        assert!(states(&filled) == before, "{seed}");
        let base = below.map(|guid| filled.states[&guid].clone());
        let state = filled.states.get_mut(&Guid::TOP).unwrap();
        for number in expected {
            state.remove(&number);
            let below = base.as_ref().and_then(|base| base.get(&number));
            if let Some(seed) = below {
                state.insert(number, *seed);
            }
        }
        filled.verify();
    }
}

/// The answer cannot be older than the lock, and what it is about is the top.
#[test]
fn free_parts_are_asked_for_under_the_lock() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let options = CompactOptions::new();
    let mut asked = 0;
    let result = image.compact_with_free(
        &options,
        |disk, _| {
            asked += 1;
            let mut other = OfflineImage::open(filled.xml()).unwrap();
            other.set_lock_timeout(Some(Duration::ZERO));
            let error = other.snapshot().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Locked);
            let top = Disk::open(filled.xml()).unwrap();
            assert!(read_whole(disk) == read_whole(&top));
            Ok(())
        },
        |_| {},
    );
    result.unwrap();
    assert_eq!(asked, 1);
    filled.verify();
}

#[test]
fn where_nobody_can_tell_what_is_free_nothing_changes() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 0), (3, 1)]);
    let base = filled.descriptor().base().unwrap().file.clone();
    let before = fs::read(&base).unwrap();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let options = CompactOptions::new();
    let error = image
        .compact_with_free(
            &options,
            |disk, free| {
                free.add(0..disk.size().bytes());
                Disk::open(filled.path("none")).map(drop)
            },
            |_| {},
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.operation(), "compact image");
    assert!(fs::read(&base).unwrap() == before);
    filled.verify();
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
