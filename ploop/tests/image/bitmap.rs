//! Used and tracking bitmaps, compared with what was laid out.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ploop::image::{Extent, Issue, Severity, check_image, tracking_bitmaps, used_bitmap};
use ploop::{Error, ErrorKind, FormatVersion, Guid, Size};
use tempfile::TempDir;

use crate::written_bitmap::{
    Bitmap, CHECKSUM, EXTENSION, GRANULARITY, MARK, SECTORS, TABLE, append, sign,
};
use crate::written_image::Delta;

const CLUSTER: u64 = 32 << 10;

fn delta(size: u64, clusters: &[u32]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.hds");
    Delta {
        clusters: clusters.iter().map(|number| (*number, 1)).collect(),
        ..Delta::new(FormatVersion::V2, CLUSTER, size)
    }
    .write(&path);
    (dir, path)
}

fn pairs(extents: impl Iterator<Item = Extent>) -> Vec<(u64, u64)> {
    extents.map(|extent| (extent.offset, extent.len)).collect()
}

#[test]
fn the_clusters_of_a_delta_are_used() {
    // More than a page of the table; the last cluster is half of one.
    let size = 20_000 * CLUSTER - CLUSTER / 2;
    let (_dir, path) = delta(size, &[7, 0, 1, 19_999, 16_383, 16_384]);
    let used = used_bitmap(&path).unwrap();
    assert_eq!((used.size.bytes(), used.cluster.bytes()), (size, CLUSTER));
    assert_eq!(
        pairs(used.extents()),
        [
            (0, 2 * CLUSTER),
            (7 * CLUSTER, CLUSTER),
            (16_383 * CLUSTER, 2 * CLUSTER),
            (19_999 * CLUSTER, CLUSTER / 2),
        ]
    );
    assert_eq!(used.used().bytes(), 5 * CLUSTER + CLUSTER / 2);
    let (_dir, path) = delta(size, &[]);
    assert_eq!(used_bitmap(&path).unwrap().extents().count(), 0);
    let raw = path.with_file_name("raw");
    fs::write(&raw, vec![0; 1 << 20]).unwrap();
    assert_eq!(used_bitmap(&raw).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A bitmap of a disk of this many granules and a bit.
fn bitmap(granularity: u32, bits: Vec<bool>) -> (u64, Bitmap) {
    let sectors = bits.len() as u64 * u64::from(granularity) - u64::from(granularity) / 2;
    let bitmap = Bitmap {
        id: std::array::from_fn(|at| at as u8 + 1),
        sectors,
        granularity,
        bits,
    };
    (sectors * 512, bitmap)
}

fn expected(bits: &[bool], granularity: u64, size: u64) -> Vec<(u64, u64)> {
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for (at, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
        let offset = at as u64 * granularity;
        let len = granularity.min(size - offset);
        match extents.last_mut() {
            Some((last, length)) if *last + *length == offset => *length += len,
            _ => extents.push((offset, len)),
        }
    }
    extents
}

#[test]
fn what_was_written_is_in_the_bitmap() {
    let part = 8 * CLUSTER as usize;
    let mut random = fastrand::Rng::with_seed(7);
    let mut runs = || {
        let mut bits = Vec::new();
        while bits.len() < 3 * part + 777 {
            let run = random.usize(1..3000);
            bits.extend(std::iter::repeat_n(random.bool(), run));
        }
        bits
    };
    let (some, other) = (runs(), runs());
    let mut parts = some.clone();
    parts[..part].fill(true);
    parts[part..2 * part].fill(false);
    for (bits, granularity) in [
        (some, 128),
        (other, 1),
        (parts, 8),
        (vec![true; part + 1], 128),
        (vec![false; 77], 128),
        (vec![true], 2),
    ] {
        let (size, bitmap) = bitmap(granularity, bits.clone());
        let (_dir, path) = delta(size, &[0]);
        append(&path, CLUSTER, &[bitmap]);
        let [found] = &tracking_bitmaps(&path).unwrap()[..] else {
            panic!("not one");
        };
        assert_eq!(found.id.as_uuid().as_bytes()[..3], [1, 2, 3]);
        assert_eq!(found.size, Size::from_bytes(size));
        let granularity = u64::from(granularity) * 512;
        assert_eq!(found.granularity, granularity);
        let expected = expected(&bits, granularity, size);
        assert_eq!(pairs(found.extents()), expected);
        let changed: u64 = expected.iter().map(|(_, len)| len).sum();
        assert_eq!(found.changed().bytes(), changed);
        assert!(check_image(&path).is_sound());
    }
}

#[test]
fn several_bitmaps_are_told_apart() {
    let (size, first) = bitmap(128, vec![true, false, true]);
    let mut second = first.clone();
    second.id = [9; 16];
    second.bits = vec![false, true, true];
    let (_dir, path) = delta(size, &[]);
    append(&path, CLUSTER, &[first.clone(), second.clone()]);
    let found = tracking_bitmaps(&path).unwrap();
    assert_eq!(found.len(), 2);
    for (found, bitmap) in found.iter().zip([first, second]) {
        assert_eq!(*found.id.as_uuid().as_bytes(), bitmap.id);
        let expected = expected(&bitmap.bits, 65_536, size);
        assert_eq!(pairs(found.extents()), expected);
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn a_bitmap_that_is_not_kept_up_is_none() {
    let (size, bitmap) = bitmap(128, vec![true; 9]);
    let (_dir, path) = delta(size, &[0]);
    assert_eq!(tracking_bitmaps(&path).unwrap(), []);
    append(&path, CLUSTER, &[bitmap]);
    // By a writer that does not know of it.
    write(&path, MARK, &[0; 4]);
    assert_eq!(tracking_bitmaps(&path).unwrap(), []);
    let report = check_image(&path);
    let found = report
        .findings
        .iter()
        .find(|it| it.issue == Issue::Extension);
    assert_eq!(found.unwrap().severity, Severity::Note, "{report}");
    // In use: the driver has it, or nobody.
    write(&path, MARK, &0x746f_6e59u32.to_le_bytes());
    let error = tracking_bitmaps(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert_eq!(used_bitmap(&path).unwrap().used().bytes(), CLUSTER);
}

#[test]
fn a_damaged_bitmap_is_an_error() {
    type Damage = fn(&Path, u64);
    const SIGNED: [(&str, Damage); 5] = [
        ("4 sectors", |path, at| {
            write(path, at + SECTORS, &4u64.to_le_bytes())
        }),
        ("stands for nothing", |path, at| {
            write(path, at + GRANULARITY, &[0; 4])
        }),
        ("more parts", |path, at| {
            write(path, at + GRANULARITY, &u32::MAX.to_le_bytes())
        }),
        ("no cluster", |path, at| {
            write(path, at + TABLE, &7u64.to_le_bytes())
        }),
        // Both parts lie in the cluster before the extension.
        ("are one cluster", |path, at| {
            let place = (at - CLUSTER) / 512;
            for entry in [0, 8] {
                write(path, at + TABLE + entry, &place.to_le_bytes());
            }
        }),
    ];
    let mut bits = vec![false; 10 * CLUSTER as usize];
    bits[3] = true;
    bits[9 * CLUSTER as usize] = true;
    let (size, bitmap) = bitmap(128, bits);
    let refused = |path: &Path, words: &str| -> Error {
        let error = tracking_bitmaps(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.path(), Some(path));
        assert!(error.message().contains(words), "{error}");
        error
    };
    for (words, damage) in SIGNED {
        let (_dir, path) = delta(size, &[]);
        let at = append(&path, CLUSTER, std::slice::from_ref(&bitmap));
        damage(&path, at);
        sign(&path, CLUSTER, at);
        refused(&path, words);
    }
    for byte in [24, 24 + 24 + 8, CLUSTER - 1] {
        let (_dir, path) = delta(size, &[]);
        let at = append(&path, CLUSTER, std::slice::from_ref(&bitmap));
        write(&path, at + byte, &[0xff]);
        let error = tracking_bitmaps(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let (_dir, path) = delta(size, &[]);
    let at = append(&path, CLUSTER, std::slice::from_ref(&bitmap));
    write(&path, at + CHECKSUM, &[1, 2, 3]);
    refused(&path, "checksum");
    write(&path, EXTENSION, &u64::MAX.to_le_bytes());
    refused(&path, "does not begin a cluster");
}

/// A part that is a hole of the file.
#[test]
fn holes_are_clean() {
    let bits = vec![false; 8 * CLUSTER as usize];
    let (size, bitmap) = bitmap(128, bits);
    let (_dir, path) = delta(size, &[]);
    let at = append(&path, CLUSTER, &[bitmap]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(at + 2 * CLUSTER).unwrap();
    write(&path, at + TABLE, &((at + CLUSTER) / 512).to_le_bytes());
    sign(&path, CLUSTER, at);
    let [found] = &tracking_bitmaps(&path).unwrap()[..] else {
        panic!("not one");
    };
    assert_eq!(found.extents().count(), 0);
    assert_ne!(found.id, Guid::NONE);
}
