//! What is read of damaged images, and what is said to be lost.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ploop::image::{Disk, ExportOptions, LossReason, OpenOptions};
use ploop::{ErrorKind, FormatVersion};
use proptest::prelude::*;

use crate::written_image::{Delta, contents, describe, entry_offset, pattern};

const K: u64 = 1 << 10;
const CLUSTER: u64 = 32 * K;

fn salvage() -> OpenOptions {
    OpenOptions::new().salvage(true)
}

fn read(disk: &Disk) -> Vec<u8> {
    let mut all = Vec::new();
    disk.clone().read_to_end(&mut all).unwrap();
    all
}

/// The lost parts: offset, length, reason, and the name of the file.
fn lost(disk: &Disk) -> Vec<(u64, u64, LossReason, String)> {
    disk.lost()
        .into_iter()
        .map(|it| {
            let name = it.file.file_name().unwrap().to_str().unwrap().to_owned();
            (it.offset, it.len, it.reason, name)
        })
        .collect()
}

/// What is exported, which must be what is read.
fn export(disk: &Disk, dir: &Path) -> Vec<u8> {
    let target = dir.join("exported");
    disk.export(&target, &ExportOptions::new().overwrite(true), |_| ())
        .unwrap();
    let mut streamed = Vec::new();
    disk.stream(&mut streamed, &ExportOptions::new(), |_| ())
        .unwrap();
    let exported = fs::read(target).unwrap();
    assert!(exported == streamed);
    exported
}

/// A delta of ten clusters, of which five are in the file.
fn delta() -> Delta {
    let mut delta = Delta::new(FormatVersion::V2, CLUSTER, 10 * CLUSTER);
    delta.clusters = vec![(4, 4), (0, 5), (9, 6), (5, 7), (2, 8)];
    delta
}

#[test]
fn entries_that_lead_nowhere_read_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    for (entry, reason) in [
        (100u32, LossReason::Missing),
        (6, LossReason::Missing),
        (u32::MAX, LossReason::Table),
    ] {
        let file = delta().write(&path);
        for cluster in [4, 5] {
            file.write_all_at(&entry.to_le_bytes(), entry_offset(cluster))
                .unwrap();
        }
        assert!(
            Disk::open_image(&path)
                .unwrap()
                .extents()
                .any(|it| it.is_err())
        );
        let disk = salvage().open_image(&path).unwrap();
        let mut expected = contents(&[delta()], false);
        expected[4 * CLUSTER as usize..6 * CLUSTER as usize].fill(0);
        assert!(read(&disk) == expected);
        assert!(export(&disk, dir.path()) == expected);
        assert_eq!(
            lost(&disk),
            [(4 * CLUSTER, 2 * CLUSTER, reason, "delta".into())]
        );
        let extents: Vec<_> = disk
            .extents()
            .map(|it| it.unwrap().offset / CLUSTER)
            .collect();
        assert_eq!(extents, [0, 2, 9]);
    }
}

/// The older state of a delta below is not what was there.
#[test]
fn what_a_delta_has_lost_is_not_looked_for_below() {
    let dir = tempfile::tempdir().unwrap();
    delta().write(&dir.path().join("base"));
    let mut top = Delta::new(FormatVersion::V2, CLUSTER, 10 * CLUSTER);
    top.clusters = vec![(1, 1), (4, 2)];
    let file = top.write(&dir.path().join("top"));
    file.set_len(CLUSTER + CLUSTER + CLUSTER / 2).unwrap();
    let path = describe(dir.path(), &["base", "top"], 10 * CLUSTER, CLUSTER, false);
    let disk = salvage().open(&path).unwrap();
    let mut expected = contents(&[delta(), top], false);
    let half = 4 * CLUSTER + CLUSTER / 2;
    expected[half as usize..5 * CLUSTER as usize].fill(0);
    assert!(read(&disk) == expected);
    assert!(export(&disk, dir.path()) == expected);
    assert_eq!(
        lost(&disk),
        [(half, CLUSTER / 2, LossReason::Missing, "top".into())]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..Default::default() })]

    /// What is not lost is as it was, what is lost is zero, and nothing that is not there is said to be.
    #[test]
    fn files_cut_short(len in 64..6 * CLUSTER, version in prop_oneof![Just(FormatVersion::V1), Just(FormatVersion::V2)]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("delta");
        let delta = Delta { version, ..delta() };
        let whole = contents(std::slice::from_ref(&delta), false);
        delta.write(&path).set_len(len).unwrap();
        let disk = salvage().open_image(&path).unwrap();
        let found = read(&disk);
        prop_assert!(export(&disk, dir.path()) == found);
        let mut expected = whole.clone();
        let mut sum = 0;
        for (offset, len, _, _) in lost(&disk) {
            expected[offset as usize..][..len as usize].fill(0);
            sum += len;
        }
        prop_assert!(found == expected);
        // Of the clusters in the file, what is behind its new end; and of the table, what cannot be known.
        let data: u64 = (0..5).map(|n| (CLUSTER * (n + 2)).saturating_sub(len).min(CLUSTER)).sum();
        if len >= entry_offset(10) {
            prop_assert_eq!(sum, data);
        } else {
            prop_assert!(sum >= data);
        }
    }
}

#[test]
fn a_table_that_is_not_there_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    // The largest table there is, of which the file has no more than the header.
    let header = Delta::new(FormatVersion::V2, CLUSTER, CLUSTER * ((1 << 32) - 1)).header();
    fs::write(&path, header.to_bytes()).unwrap();
    assert_eq!(
        Disk::open_image(&path).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let disk = salvage().open_image(&path).unwrap();
    let mut sector = [1; 512];
    disk.read_at(&mut sector, disk.size().bytes() / 2).unwrap();
    assert_eq!(sector, [0; 512]);
    // All at once, and nothing is allocated.
    let all = (
        0,
        disk.size().bytes(),
        LossReason::Table,
        "delta".to_owned(),
    );
    assert_eq!(lost(&disk), [all]);
    assert_eq!(disk.extents().count(), 0);

    // A whole table, and a first block that cannot be.
    for first in [0xffff_ffffu32, 1, 0, 100 * 64] {
        let file = delta().write(&path);
        file.write_all_at(&first.to_le_bytes(), 48).unwrap();
        file.write_all_at(&0x746f_6e59u32.to_le_bytes(), 44)
            .unwrap();
        assert!(
            OpenOptions::new()
                .allow_in_use(true)
                .open_image(&path)
                .is_err()
        );
        let disk = salvage().open_image(&path).unwrap();
        assert!(read(&disk) == contents(&[delta()], false), "{first}");
        assert_eq!(lost(&disk), []);
    }
    // Nobody can tell what this is.
    fs::write(&path, vec![0; 4096]).unwrap();
    assert_eq!(
        salvage().open_image(&path).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn a_plain_disk_that_was_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("plain");
    fs::write(&base, pattern(3, 0, 100_000)).unwrap();
    let path = describe(dir.path(), &["plain"], 10 * CLUSTER, CLUSTER, true);
    assert!(Disk::open(&path).is_err());
    let disk = salvage().open(&path).unwrap();
    let mut expected = pattern(3, 0, 100_000);
    expected.resize(10 * CLUSTER as usize, 0);
    assert!(read(&disk) == expected);
    assert!(export(&disk, dir.path()) == expected);
    let rest = 10 * CLUSTER - 100_000;
    assert_eq!(
        lost(&disk),
        [(100_000, rest, LossReason::Missing, "plain".into())]
    );
}

/// As a disk with bad sectors, the file has less than it had when it was opened.
#[test]
fn what_the_system_cannot_read_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let file = delta().write(&path);
    let (disk, strict) = (
        salvage().open_image(&path).unwrap(),
        Disk::open_image(&path).unwrap(),
    );
    assert_eq!(lost(&disk), []);
    // Of cluster 5, the fourth in the file, 8 KiB are left.
    file.set_len(4 * CLUSTER + 8 * K).unwrap();
    let mut part = vec![1; 24 << 10];
    strict.read_at(&mut part, 5 * CLUSTER).unwrap_err();
    disk.read_at(&mut part, 5 * CLUSTER).unwrap();
    assert!(part[..8 << 10] == pattern(7, 5 * CLUSTER, 8 * K));
    assert!(part[8 << 10..].iter().all(|byte| *byte == 0));
    let first = (
        5 * CLUSTER + 8 * K,
        16 * K,
        LossReason::Unreadable,
        "delta".to_owned(),
    );
    assert_eq!(lost(&disk), [first]);

    let mut expected = contents(&[delta()], false);
    expected[(5 * CLUSTER + 8 * K) as usize..6 * CLUSTER as usize].fill(0);
    expected[2 * CLUSTER as usize..3 * CLUSTER as usize].fill(0);
    assert!(read(&disk) == expected);
    assert!(export(&disk, dir.path()) == expected);
    let all: Vec<_> = lost(&disk).into_iter().map(|it| (it.0, it.1)).collect();
    assert_eq!(all, [(2 * CLUSTER, CLUSTER), (5 * CLUSTER + 8 * K, 24 * K)]);
    assert_eq!(strict.lost(), []);
}

/// A size that the header contradicts itself is that of the descriptor, and by itself the one that the table can hold.
#[test]
fn a_damaged_size_is_not_followed() {
    const SECTORS: u64 = 10 * CLUSTER / 512;
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let expected = contents(&[delta()], false);
    // More clusters than the format can have, more than the table has, and fewer.
    for sectors in [SECTORS | 1 << 62, SECTORS | 1 << 40, 3 * CLUSTER / 512] {
        let file = delta().write(&base);
        file.write_all_at(&sectors.to_le_bytes(), 36).unwrap();
        let path = describe(dir.path(), &["base"], 10 * CLUSTER, CLUSTER, false);
        let disk = salvage().open(&path).unwrap();
        assert_eq!(disk.size().bytes(), 10 * CLUSTER, "{sectors}");
        assert!(read(&disk) == expected);
        assert!(export(&disk, dir.path()) == expected);
        assert_eq!(lost(&disk), []);
        let disk = salvage().open_image(&base).unwrap();
        let size = sectors.min(SECTORS) * 512;
        assert_eq!(disk.size().bytes(), size, "{sectors}");
        assert!(read(&disk) == expected[..size as usize]);
    }
    // The size of the header is that of the disk where nothing speaks against it.
    delta().write(&base);
    let path = describe(dir.path(), &["base"], 20 * CLUSTER, CLUSTER, false);
    let disk = salvage().open(&path).unwrap();
    assert_eq!(disk.size().bytes(), 10 * CLUSTER);
}
