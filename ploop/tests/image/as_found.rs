//! Images as people have them: of other programs, renamed, cut short, half converted.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ploop::image::{
    Descriptor, Disk, ExportOptions, Header, Issue, Layout, Report, Severity, check, check_image,
};
use ploop::{Error, ErrorKind, FormatVersion};

use crate::written_image::{Delta, OldDelta, contents, describe, entry_offset, pattern, snapshot};

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

/// Layouts of the first versions of Parallels, which libploop and the driver do not know.
fn old_deltas() -> Vec<OldDelta> {
    let mut deltas = Vec::new();
    for (cluster_sectors, said_first) in [(63, 0), (504, 0), (512, 0), (2048, 1), (63, 2), (1, 0)] {
        let entries = 40;
        deltas.push(OldDelta {
            version: FormatVersion::V1,
            cluster_sectors,
            // The last cluster is not whole.
            sectors: entries * cluster_sectors - cluster_sectors / 2,
            said_first,
            clusters: vec![(7, 3), (0, 5), (39, 9), (38, 1)],
        });
    }
    let v2 = OldDelta {
        version: FormatVersion::V2,
        said_first: 63,
        ..deltas[0].clone()
    };
    deltas.push(v2);
    deltas
}

#[test]
fn old_layouts_of_parallels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.hdd");
    for delta in old_deltas() {
        delta.write(&path);
        let disk = Disk::open_image(&path).unwrap();
        assert_eq!(disk.cluster_size().bytes(), delta.cluster(), "{delta:?}");
        assert!(disk.cluster().bytes() >= delta.cluster());
        assert!(read(disk.clone()) == delta.contents(), "{delta:?}");
        let mut part = vec![0; 40_000];
        let len = disk.read_at(&mut part, 12_345).unwrap();
        assert!(part[..len] == delta.contents()[12_345..][..len]);
        let mapped: u64 = disk.mappings().map(|it| it.unwrap().len).sum();
        let last = disk.size().bytes() - 39 * delta.cluster();
        assert_eq!(mapped, 3 * delta.cluster() + last);
        let target = dir.path().join("raw");
        disk.export(&target, &ExportOptions::new().overwrite(true), |_| ())
            .unwrap();
        assert!(fs::read(&target).unwrap() == delta.contents());

        let layout = Layout::read(&path).unwrap();
        assert!(!layout.is_ploop);
        assert_eq!((layout.data_start, layout.entries), (delta.first(), 40));
        let report = check_image(&path);
        assert!(
            report.is_clean() && report.has(Issue::OldLayout),
            "{report}"
        );
        assert_eq!(report.deltas[0].layout.as_ref(), Some(&layout));
        assert_eq!(report.deltas[0].allocated.bytes(), 4 * delta.cluster());
        // What libploop would be given.
        let error = Header::read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.message().contains("old Parallels versions"),
            "{error}"
        );
    }
}

/// An entry of such a table must not lead anywhere, and two must not lead to the same place.
#[test]
fn old_layouts_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.hdd");
    let delta = &old_deltas()[4];
    let clean = |entry: u32, value: u32| {
        let file = delta.write(&path);
        file.write_all_at(&value.to_le_bytes(), entry_offset(entry))
            .unwrap();
        let report = check_image(&path);
        let disk = Disk::open_image(&path).unwrap();
        let mut bytes = vec![0; 512];
        let read = disk.read_at(&mut bytes, u64::from(entry) * delta.cluster());
        let issues: Vec<_> = report
            .findings
            .iter()
            .filter(|it| it.severity != Severity::Note && it.issue != Issue::LostClusters)
            .map(|it| (it.severity, it.issue, it.offset))
            .collect();
        assert_eq!(
            report.is_sound(),
            issues.iter().all(|it| it.0 != Severity::Error)
        );
        (read.map(|_| bytes).map_err(|error| error.offset()), issues)
    };
    let first = u32::try_from(delta.first() / 512).unwrap();
    let at = Some(entry_offset(5));
    assert_eq!(clean(5, 0), (Ok(vec![0; 512]), vec![]));
    // In the table, behind the end, as cluster 7, and between two clusters.
    let error = |issue| vec![(Severity::Error, issue, at)];
    assert_eq!(clean(5, first - 1), (Err(at), error(Issue::BadEntry)));
    assert_eq!(clean(5, u32::MAX), (Err(at), error(Issue::BadEntry)));
    let last = first + 3 * 63;
    assert_eq!(clean(5, last + 1), (Err(at), error(Issue::BadEntry)));
    let (read, issues) = clean(5, first);
    assert_eq!(read.unwrap(), pattern(3, 7 * delta.cluster(), 512));
    // The entry that comes later in the table is the one that is said.
    let shared = (Severity::Error, Issue::SharedCluster, Some(entry_offset(7)));
    assert_eq!(issues, [shared]);
    assert_eq!(clean(5, first + 1), (Err(at), error(Issue::BadEntry)));
}

/// A chain of old deltas under a descriptor, whose `Blocksize` is no power of two either.
#[test]
fn chains_of_old_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let base = old_deltas()[0].clone();
    let top = OldDelta {
        clusters: vec![(7, 0xaa), (1, 0xbb)],
        ..base.clone()
    };
    base.write(&dir.path().join("base"));
    top.write(&dir.path().join("top"));
    let size = u64::from(base.sectors) * 512;
    let path = describe(dir.path(), &["base", "top"], size, base.cluster(), false);
    let mut expected = base.contents();
    for (number, seed) in &top.clusters {
        let start = u64::from(*number) * base.cluster();
        expected[start as usize..][..base.cluster() as usize].copy_from_slice(&pattern(
            *seed,
            start,
            base.cluster(),
        ));
    }
    assert!(read(Disk::open(&path).unwrap()) == expected);
    assert!(read(Disk::open_snapshot(&path, snapshot(0)).unwrap()) == base.contents());
    let descriptor = Descriptor::open(&path).unwrap();
    assert_eq!(descriptor.cluster_size().bytes(), 63 * 512);
    assert_eq!(descriptor.cluster.sectors(), 64);
    assert!(check(&path).is_sound());
    let error = descriptor.to_xml(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    let other = describe(dir.path(), &["base", "top"], size, 64 * 512, false);
    let error = refused(&other);
    assert_eq!(
        error.message(),
        "the delta has clusters of 31.5 KiB, the image of 32 KiB"
    );
    assert!(check(&other).has(Issue::ClusterSize));
}

/// A delta by itself shows a disk, but not the one that its image has.
#[test]
fn a_delta_that_is_one_of_several() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["root.hds", "top", "other"] {
        delta(&dir.path().join(name));
    }
    describe(dir.path(), &["root.hds", "top"], 4 * M, M, false);
    for (name, says) in [
        ("top", Some("this is a delta upon")),
        ("root.hds", Some("is a delta upon this file")),
        ("other", None),
    ] {
        let report = check_image(dir.path().join(name));
        assert!(report.is_clean(), "{report}");
        let notes: Vec<_> = report
            .findings
            .iter()
            .filter(|it| it.issue == Issue::PartOfImage)
            .map(|it| &it.message)
            .collect();
        assert_eq!(notes.len(), usize::from(says.is_some()), "{report}");
        assert!(
            notes.iter().all(|note| note.contains(says.unwrap())),
            "{report}"
        );
    }
    describe(dir.path(), &["root.hds"], 4 * M, M, false);
    assert!(check_image(dir.path().join("root.hds")).findings.is_empty());
}

/// The check says what it can, whatever is wrong.
#[test]
fn a_check_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    delta(&base);
    let path = describe(dir.path(), &["root.hds"], 4 * M, M, false);
    let good = fs::read_to_string(&path).unwrap();
    // No descriptor at all, and one that contradicts itself.
    for bad in ["<", &good.replace("<TopGUID>{5", "<TopGUID>{6")] {
        fs::write(&path, bad).unwrap();
        let report = check(&path);
        assert_eq!(only_error(&report).0, Issue::Descriptor);
        assert_eq!(report.deltas.len(), 1, "{report}");
        assert_eq!(report.deltas[0].allocated.bytes(), 2 * M);
    }
    fs::write(&path, &good).unwrap();
    // The cluster with the partition table leads nowhere.
    let file = fs::File::options().write(true).open(&base).unwrap();
    file.write_all_at(&9u32.to_le_bytes(), entry_offset(0))
        .unwrap();
    for report in [check(&path), check_image(&base)] {
        assert_eq!(only_error(&report).0, Issue::BadEntry);
        let note = report
            .findings
            .iter()
            .find(|it| it.issue == Issue::Partitions);
        let note = note.unwrap();
        assert_eq!(note.severity, Severity::Note);
        assert!(
            note.message
                .starts_with("the partition table cannot be read: "),
            "{report}"
        );
        assert_eq!(report.deltas.len(), 1);
    }
    // It is there, and one partition ends behind the disk.
    delta(&base);
    let mut record = vec![0; 512];
    for (at, first, sectors) in [(446, 2048u32, 2048u32), (462, 4096, 1 << 20)] {
        record[at + 4] = 0x83;
        record[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        record[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    let data = 2 * M;
    let file = fs::File::options().write(true).open(&base).unwrap();
    file.write_all_at(&record, data).unwrap();
    for report in [check(&path), check_image(&base)] {
        assert!(report.is_clean(), "{report}");
        let sizes: Vec<_> = report.partitions.iter().map(|it| it.size.bytes()).collect();
        assert_eq!(sizes, [M, 2 * M]);
        let notes: Vec<_> = report
            .findings
            .iter()
            .map(|it| (it.issue, &*it.message))
            .collect();
        let message = "partition 2 ends at 514 MiB, and the disk has 4 MiB";
        assert_eq!(notes, [(Issue::Partitions, message)]);
    }
}
