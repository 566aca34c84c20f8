//! Images as people have them: of other programs, renamed, cut short, half converted.

use std::fs;
use std::io::Read;
use std::path::Path;

use ploop::image::{Disk, Issue, Report, Severity, check, check_image};
use ploop::{Error, ErrorKind, FormatVersion};

use crate::written_image::{Delta, contents, describe, pattern};

const M: u64 = 1 << 20;

/// A delta of 4 MiB with two clusters, and what its disk holds.
fn delta(path: &Path) -> Vec<u8> {
    let mut delta = Delta::new(FormatVersion::V2, M, 4 * M);
    delta.clusters = vec![(2, 7), (0, 5)];
    delta.write(path);
    contents(&[delta], false)
}

fn read(mut disk: Disk) -> Vec<u8> {
    let mut all = Vec::new();
    disk.read_to_end(&mut all).unwrap();
    all
}

/// Why an image cannot be opened.
fn refused(descriptor: &Path) -> Error {
    Disk::open(descriptor).map(drop).unwrap_err()
}

/// The only finding of an error.
fn only_error(report: &Report) -> (Issue, &str) {
    let mut errors = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error);
    let error = errors.next().unwrap();
    assert_eq!(errors.next(), None, "{report}");
    (error.issue, &error.message)
}

/// A conversion that was killed leaves a delta under a descriptor of a plain disk. Its header and table are no disk.
#[test]
fn a_delta_that_is_called_plain() {
    let dir = tempfile::tempdir().unwrap();
    delta(&dir.path().join("root.hds"));
    let path = describe(dir.path(), &["root.hds"], 4 * M, M, true);
    let error = refused(&path);
    let message =
        "the descriptor says that this is a raw base, and it begins with the header of a delta";
    assert_eq!(
        (error.kind(), error.offset()),
        (ErrorKind::Corrupt, Some(0))
    );
    assert_eq!(error.message(), message);
    assert!(error.path().unwrap().ends_with("root.hds"));
    assert_eq!(only_error(&check(&path)), (Issue::Header, message));
}

#[test]
fn a_plain_disk_that_is_called_a_delta() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = vec![0; 4 << 20];
    for (at, bytes, what) in [
        (510, &b"\x55\xaa"[..], "a plain disk with a partition table"),
        (1080, b"\x53\xef", "a plain disk with an ext file system"),
    ] {
        disk[..2048].fill(0);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(dir.path().join("root.hds"), &disk).unwrap();
        let path = describe(dir.path(), &["root.hds"], 4 * M, M, false);
        let error = refused(&path);
        let message = format!("the signature is not that of a ploop image: this is {what}");
        assert_eq!(error.message(), message);
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::Corrupt, Some(0))
        );
        assert_eq!(only_error(&check(&path)), (Issue::Header, &*message));
    }
}

#[test]
fn a_plain_disk_that_was_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let whole = pattern(3, 0, 4 * M);
    fs::write(&base, &whole[..2 << 20]).unwrap();
    let path = describe(dir.path(), &["root.hds"], 4 * M, M, true);
    let error = refused(&path);
    let message = "the plain disk has 2 MiB, and 4 MiB by its descriptor: it was cut short";
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.message(), message);
    assert_eq!(only_error(&check(&path)), (Issue::Size, message));

    // Whole, or longer than it should be, it is read; a delta upon it may be of a disk that has grown.
    for len in [4, 5] {
        fs::write(&base, pattern(3, 0, len * M)).unwrap();
        assert!(read(Disk::open(&path).unwrap()) == pattern(3, 0, len * M));
        assert!(check(&path).is_sound());
    }
    fs::write(&base, &whole[..2 << 20]).unwrap();
    delta(&dir.path().join("top"));
    let path = describe(dir.path(), &["root.hds", "top"], 4 * M, M, true);
    let found = read(Disk::open(&path).unwrap());
    assert!(found[1 << 20..2 << 20] == whole[1 << 20..2 << 20]);
    assert!(found[2 << 20..3 << 20] == pattern(7, 2 * M, M));
    assert!(found[3 << 20..].iter().all(|byte| *byte == 0));
    assert!(check(&path).is_sound());
}

#[test]
fn files_of_other_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.hdd");
    for (start, name) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "a qcow2 image"),
        (b"KDMV\x01\0\0\0", "a VMDK image"),
        (b"\xfd7zXZ\0\0\x04", "compressed with xz"),
        (b"<?xml version='1.0'?>", "XML"),
    ] {
        for len in [start.len(), 64, 4096] {
            let mut bytes = start.to_vec();
            bytes.resize(len.max(start.len()), 0);
            fs::write(&path, bytes).unwrap();
            let error = Disk::open_image(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            if len >= 64 {
                let said = format!("the signature is not that of a ploop image: this is {name}");
                assert!(error.message().starts_with(&said), "{error}");
            }
            assert_eq!(check_image(&path).findings[0].message, error.message());
        }
    }
}

/// Parallels puts the GUID before the extension.
#[test]
fn orphans_of_parallels() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let name = |guid: &str| format!("data.hdd.0.{{{guid}}}.hds");
    let top = name("5fbaabe3-6958-40ff-92a7-860e329aab41");
    let orphan = dir.join(name("a1a1a1a1-1111-4111-8111-000000000001"));
    delta(&dir.join(&top));
    delta(&orphan);
    for other in ["data.hdd", "data.hdd.drh"] {
        fs::write(dir.join(other), "").unwrap();
    }
    let path = describe(&dir, &[&top], 4 * M, M, false);
    let report = check(&path);
    assert_eq!(report.orphans, [orphan]);
    assert!(report.is_sound() && !report.is_clean());
}
