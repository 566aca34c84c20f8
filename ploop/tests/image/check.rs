//! What the check reports, and in which words.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ploop::image::{Issue, Report, Severity, check, check_image};
use ploop::{FormatVersion, Guid};

use crate::written_image::{Delta, describe, entry_offset, snapshot};

const K: u64 = 1 << 10;
const CLUSTER: u64 = 32 * K;
const SIZE: u64 = 64 * CLUSTER;

fn delta(version: FormatVersion, clusters: &[u32]) -> Delta {
    Delta {
        clusters: clusters.iter().map(|number| (*number, 1)).collect(),
        ..Delta::new(version, CLUSTER, SIZE)
    }
}

/// A base with three clusters, a snapshot with two and a top with one.
fn image(dir: &Path) -> PathBuf {
    let v2 = FormatVersion::V2;
    delta(v2, &[0, 9, 63]).write(&dir.join("base"));
    delta(v2, &[9, 10]).write(&dir.join("middle"));
    delta(v2, &[1]).write(&dir.join("top"));
    describe(dir, &["base", "middle", "top"], SIZE, CLUSTER, false)
}

/// The only finding, as (severity, issue, offset).
fn only(report: &Report) -> (Severity, Issue, Option<u64>) {
    let [finding] = &report.findings[..] else {
        panic!("{report}");
    };
    (finding.severity, finding.issue, finding.offset)
}

#[test]
fn a_good_image() {
    let dir = tempfile::tempdir().unwrap();
    let report = check(image(dir.path()));
    assert!(report.findings.is_empty(), "{report}");
    assert!(report.is_clean() && report.is_sound());
    assert_eq!(report.worst(), None);
    let allocated: Vec<u64> = report
        .deltas
        .iter()
        .map(|delta| delta.allocated.bytes() / CLUSTER)
        .collect();
    assert_eq!(allocated, [3, 2, 1]);
    // Deleting a snapshot copies what its only child has; the top has none.
    let copies: Vec<_> = report
        .snapshots
        .iter()
        .map(|shot| shot.delete_copies.unwrap().bytes() / CLUSTER)
        .collect();
    assert_eq!(copies, [2, 1, 0]);
    let dir = dir.path().canonicalize().unwrap();
    assert_eq!(
        report.to_string(),
        format!(
            "{0}/base: v2, clusters of 32 KiB, disk of 2 MiB, 96 KiB allocated\n\
             {0}/middle: v2, clusters of 32 KiB, disk of 2 MiB, 64 KiB allocated\n\
             {0}/top: v2, clusters of 32 KiB, disk of 2 MiB, 32 KiB allocated\n\
             {1}: deleting it would copy 64 KiB\n\
             {2}: deleting it would copy 32 KiB\n\
             The image is sound.",
            dir.display(),
            snapshot(0),
            snapshot(1)
        )
    );
}

#[test]
fn what_does_not_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let xml = fs::read_to_string(&path).unwrap();
    let describe = |from: &str, to: &str| {
        assert!(xml.contains(from));
        fs::write(&path, xml.replace(from, to)).unwrap();
        check(&path)
    };
    let top = Guid::TOP.to_string();
    let old = describe(&top, "{11111111-2222-3333-4444-555555555555}");
    assert_eq!(only(&old), (Severity::Warning, Issue::OldTop, None));
    let geometry = describe("<Heads>16</Heads>", "");
    assert_eq!(only(&geometry), (Severity::Warning, Issue::Geometry, None));
    let temporary = describe(
        "</ParentGUID></Shot><Shot>",
        "</ParentGUID><Temporary/></Shot><Shot>",
    );
    assert!(temporary.is_clean());
    assert_eq!(temporary.worst(), Some(Severity::Note));
    assert!(temporary.has(Issue::Temporary));
    let size = describe("<Disk_size>4096", "<Disk_size>8192");
    assert_eq!(only(&size), (Severity::Warning, Issue::Size, None));
    let encrypted = describe(
        "<StorageData>",
        "<Encryption><KeyId>1</KeyId></Encryption><StorageData>",
    );
    assert_eq!(only(&encrypted), (Severity::Error, Issue::Encrypted, None));
    let same = describe("<File>middle", "<File>top");
    assert!(same.has(Issue::SameFile) && !same.is_sound());
    let none = describe("<Storage>", "<Storage");
    assert_eq!(only(&none).1, Issue::Descriptor);
    assert_eq!(none.findings[0].file.as_deref(), Some(&*path));

    fs::write(&path, &xml).unwrap();
    fs::remove_file(dir.path().join("middle")).unwrap();
    let missing = check(&path);
    assert_eq!(only(&missing), (Severity::Error, Issue::Missing, None));
    assert_eq!(missing.deltas.len(), 2);
    assert_eq!(missing.snapshots[0].delete_copies, None);
    fs::create_dir(dir.path().join("middle")).unwrap();
    assert_eq!(only(&check(&path)).1, Issue::Unreadable);
    fs::remove_dir(dir.path().join("middle")).unwrap();

    delta(FormatVersion::V1, &[9]).write(&dir.path().join("middle"));
    assert_eq!(
        only(&check(&path)),
        (Severity::Error, Issue::MixedVersions, Some(0))
    );
    let mut other = delta(FormatVersion::V2, &[9]);
    other.cluster *= 2;
    other.write(&dir.path().join("middle"));
    assert_eq!(
        only(&check(&path)),
        (Severity::Error, Issue::ClusterSize, Some(28))
    );
    let mut small = delta(FormatVersion::V2, &[9]);
    small.size /= 2;
    small.write(&dir.path().join("middle"));
    assert_eq!(
        only(&check(&path)),
        (Severity::Error, Issue::Size, Some(36))
    );
    let mut odd = delta(FormatVersion::V2, &[9]);
    odd.size -= 512;
    odd.write(&dir.path().join("base"));
    delta(FormatVersion::V2, &[9]).write(&dir.path().join("middle"));
    assert_eq!(
        only(&check(&path)),
        (Severity::Error, Issue::Size, Some(36))
    );
}

/// What is put where in a file with three clusters of 32 KiB and a table of one, and what that is.
#[test]
fn what_is_wrong_in_a_delta() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let entry = |number: u32| entry_offset(number);
    let cases: &[(u64, u32, Severity, Issue, u64)] = &[
        (44, 1, Severity::Warning, Issue::InUse, 44),
        (52, 2, Severity::Error, Issue::Unsupported, 52),
        (52, 1, Severity::Note, Issue::EmptyFlag, 52),
        (56, 1, Severity::Note, Issue::Extension, 56),
        (32, 65, Severity::Error, Issue::Size, 32),
        (32, 63, Severity::Error, Issue::Size, 32),
        (48, 0, Severity::Error, Issue::Header, 48),
        (48, 4 * 64 + 64, Severity::Error, Issue::Header, 48),
        (entry(5), 4, Severity::Error, Issue::BadEntry, entry(5)),
        (entry(5), 1, Severity::Error, Issue::SharedCluster, entry(9)),
        (entry(63), 7, Severity::Error, Issue::BadEntry, entry(63)),
        (
            entry(64),
            7,
            Severity::Warning,
            Issue::EntryBeyondDisk,
            entry(64),
        ),
        (
            CLUSTER - 4,
            7,
            Severity::Warning,
            Issue::EntryBeyondDisk,
            CLUSTER - 4,
        ),
    ];
    for (at, value, severity, issue, offset) in cases {
        let file = delta(FormatVersion::V2, &[9, 0, 1]).write(&path);
        file.write_all_at(&value.to_le_bytes(), *at).unwrap();
        let report = check_image(&path);
        let expected = (*severity, *issue, Some(*offset));
        assert_eq!(only(&report), expected, "{at}: {report}");
        assert_eq!(report.findings[0].file.as_deref(), Some(&*path));
    }
    // An entry that goes leaves a cluster that nothing leads to.
    let file = delta(FormatVersion::V2, &[9, 0, 1]).write(&path);
    file.write_all_at(&[0; 4], entry(0)).unwrap();
    let report = check_image(&path);
    assert_eq!(
        only(&report),
        (Severity::Warning, Issue::LostClusters, None)
    );
    assert_eq!(report.deltas[0].lost.bytes(), CLUSTER);
    // Half a cluster more.
    let file = delta(FormatVersion::V2, &[9, 0, 1]).write(&path);
    file.write_all_at(&[1; 1000], 4 * CLUSTER).unwrap();
    let expected = (Severity::Warning, Issue::UnalignedTail, Some(4 * CLUSTER));
    assert_eq!(only(&check_image(&path)), expected);
    // A cluster that was never written.
    let file = delta(FormatVersion::V2, &[9, 0]).write(&path);
    file.set_len(4 * CLUSTER).unwrap();
    file.write_all_at(&3u32.to_le_bytes(), entry(1)).unwrap();
    assert_eq!(
        only(&check_image(&path)),
        (Severity::Warning, Issue::Sparse, None)
    );
}

/// libploop 7 leaves such files when it has merged.
#[test]
fn holes_where_no_cluster_is_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let file = delta(FormatVersion::V2, &[9, 0, 1]).write(&path);
    let data = [7; CLUSTER as usize];
    file.write_all_at(&9u32.to_le_bytes(), entry_offset(20))
        .unwrap();
    file.write_all_at(&data, 9 * CLUSTER).unwrap();
    let report = check_image(&path);
    let found = |report: &Report| -> Vec<_> {
        let findings = report.findings.iter();
        findings
            .map(|finding| (finding.severity, finding.issue))
            .collect()
    };
    let notes = [
        (Severity::Note, Issue::Sparse),
        (Severity::Note, Issue::LostClusters),
    ];
    assert_eq!(found(&report), notes, "{report}");
    assert!(report.is_clean());
    let delta = &report.deltas[0];
    assert_eq!(
        (delta.lost.bytes(), delta.allocated.bytes()),
        (0, 4 * CLUSTER)
    );
    // One of them has data after all.
    file.write_all_at(&data, 6 * CLUSTER).unwrap();
    let report = check_image(&path);
    assert_eq!(
        found(&report),
        [
            (Severity::Note, Issue::Sparse),
            (Severity::Warning, Issue::LostClusters),
        ],
        "{report}"
    );
    assert_eq!(report.deltas[0].lost.bytes(), CLUSTER);
    // A hole in a cluster that is in use.
    file.write_all_at(&7u32.to_le_bytes(), entry_offset(20))
        .unwrap();
    let report = check_image(&path);
    assert_eq!(
        found(&report),
        [
            (Severity::Warning, Issue::Sparse),
            (Severity::Warning, Issue::LostClusters),
        ],
        "{report}"
    );
}

#[test]
fn a_thousand_wrong_entries_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let file = Delta::new(FormatVersion::V2, CLUSTER, 4000 * CLUSTER).write(&path);
    for number in 0..1000 {
        file.write_all_at(&[0xff; 4], entry_offset(3 * number))
            .unwrap();
    }
    let report = check_image(&path);
    let bad = report
        .findings
        .iter()
        .filter(|finding| finding.issue == Issue::BadEntry);
    let messages: Vec<&str> = bad.map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages.len(), 17);
    assert_eq!(messages[16], "there are 984 more of these");
}

#[test]
fn what_lies_about_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let dir = dir.path().canonicalize().unwrap();
    let orphan = dir.join("base.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
    for name in ["base.tmp", "other", "top.bak", "DiskDescriptor.xml.lck"] {
        fs::write(dir.join(name), "x").unwrap();
    }
    fs::write(&orphan, "x").unwrap();
    fs::create_dir(dir.join("base.mnt")).unwrap();
    let report = check(&path);
    assert_eq!(report.orphans, [dir.join("base.tmp"), orphan.clone()]);
    assert!(report.is_sound() && !report.is_clean());
    // Another descriptor names one of them.
    let xml = fs::read_to_string(&path).unwrap();
    let name = orphan.file_name().unwrap().to_str().unwrap();
    let other = xml.replace("<File>top", &format!("<File>{name}"));
    fs::write(dir.join("Other.xml"), other).unwrap();
    assert_eq!(check(&path).orphans, [dir.join("base.tmp")]);
}

#[test]
#[cfg(feature = "serde")]
fn reports_go_through_serde() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    fs::remove_file(dir.path().join("top")).unwrap();
    let report = check(&path);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains("\"issue\":\"missing\""), "{json}");
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);

    let descriptor = ploop::Descriptor::open(&path).unwrap();
    let json = serde_json::to_string(&descriptor).unwrap();
    let back: ploop::Descriptor = serde_json::from_str(&json).unwrap();
    assert_eq!(back, descriptor);
    assert_eq!(back.size, ploop::Size::from_bytes(SIZE));
}

#[test]
fn a_finding_has_the_reason_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let descriptor = image(dir.path());
    let base = dir.path().join("base");
    fs::remove_file(&base).unwrap();
    std::os::unix::fs::symlink("base", &base).unwrap();
    let report = check(descriptor);
    let finding = &report.findings[0];
    assert_eq!(finding.issue, Issue::Unreadable, "{report}");
    let reason = std::io::Error::from(rustix::io::Errno::LOOP).to_string();
    assert!(finding.message.ends_with(&reason), "{report}");
}

/// The cluster is lost, and that is all there is to say.
#[test]
fn a_delta_whose_only_cluster_is_not_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base");
    let v2 = FormatVersion::V2;
    delta(v2, &[3]).write(&path);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4], entry_offset(3)).unwrap();
    let report = check_image(&path);
    assert_eq!(only(&report).1, Issue::LostClusters, "{report}");
}
