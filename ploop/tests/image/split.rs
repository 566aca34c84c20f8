//! Disks that are split into several storages, as Parallels makes them.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ploop::image::{Descriptor, Disk, ExportOptions, Issue, OpenOptions, check};
use ploop::{ErrorKind, FormatVersion, Guid, Size};
use proptest::prelude::*;

use crate::written_image::{Delta, contents, describe, pattern, snapshot};

const M: u64 = 1 << 20;

/// A storage: where it ends on the disk, its cluster size, and its files, the base first.
struct Part {
    end: u64,
    cluster: u64,
    files: Vec<String>,
    plain: bool,
}

/// A descriptor of a disk with these storages.
fn describe_split(dir: &Path, parts: &[Part]) -> PathBuf {
    let size = parts.last().unwrap().end;
    let names: Vec<&str> = parts[0].files.iter().map(String::as_str).collect();
    let path = describe(dir, &names, size, parts[0].cluster, parts[0].plain);
    let xml = fs::read_to_string(&path).unwrap();
    let (before, rest) = xml.split_once("<Storage>").unwrap();
    let (_, after) = rest.split_once("</Storage>").unwrap();
    let mut storages = String::new();
    let mut start = 0;
    for part in parts {
        write!(
            storages,
            "<Storage><Start>{}</Start><End>{}</End><Blocksize>{}</Blocksize>",
            start / 512,
            part.end / 512,
            part.cluster / 512
        )
        .unwrap();
        for (level, file) in part.files.iter().enumerate() {
            let top = level + 1 == part.files.len();
            let guid = if top { Guid::TOP } else { snapshot(level) };
            let kind = if part.plain { "Plain" } else { "Compressed" };
            write!(
                storages,
                "<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>"
            )
            .unwrap();
        }
        storages += "</Storage>";
        start = part.end;
    }
    fs::write(&path, format!("{before}{storages}{after}")).unwrap();
    path
}

fn read(mut disk: Disk) -> Vec<u8> {
    let mut all = Vec::new();
    disk.read_to_end(&mut all).unwrap();
    all
}

/// Chains of the same length, for storages of any size, with clusters of their own.
fn storages() -> impl Strategy<Value = Vec<(Vec<Delta>, bool)>> {
    (1..4usize, 1..4usize).prop_flat_map(|(count, levels)| {
        let storage =
            (15..18u32, 1..600u64, any::<bool>()).prop_flat_map(move |(log, size, plain)| {
                let (cluster, size) = (1 << log, size * 512);
                let clusters = size.div_ceil(cluster) as u32;
                let delta = prop::collection::btree_map(0..clusters, 1..=255u8, 0..6).prop_map(
                    move |clusters| Delta {
                        clusters: clusters.into_iter().collect(),
                        ..Delta::new(FormatVersion::V2, cluster, size)
                    },
                );
                (prop::collection::vec(delta, levels), Just(plain))
            });
        prop::collection::vec(storage, count + 1)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn split_disks_read_as_their_parts(storages in storages(), reads in prop::collection::vec((0..M, 1..200_000usize), 6)) {
        let dir = tempfile::tempdir().unwrap();
        let levels = storages[0].0.len();
        let mut expected = vec![Vec::new(); levels];
        let mut parts = Vec::new();
        let mut end = 0;
        for (number, (chain, plain)) in storages.iter().enumerate() {
            let files: Vec<_> = (0..levels).map(|level| format!("s{number}.{level}")).collect();
            for (level, (file, delta)) in files.iter().zip(chain).enumerate() {
                if *plain && level == 0 {
                    fs::write(dir.path().join(file), contents(&chain[..1], true)).unwrap();
                } else {
                    delta.write(&dir.path().join(file));
                }
                expected[level].extend(contents(&chain[..=level], *plain));
            }
            end += chain[0].size;
            parts.push(Part { end, cluster: chain[0].cluster, files, plain: *plain });
        }
        let path = describe_split(dir.path(), &parts);
        let descriptor = Descriptor::open(&path).unwrap();
        prop_assert_eq!(descriptor.further_storages.len(), storages.len() - 1);
        prop_assert_eq!(descriptor.all_images().count(), storages.len() * levels);
        for (level, expected) in expected.iter().enumerate() {
            let guid = if level + 1 == levels { Guid::TOP } else { snapshot(level) };
            let disk = Disk::open_snapshot(&path, guid).unwrap();
            prop_assert_eq!(disk.size().bytes(), expected.len() as u64);
            prop_assert_eq!(disk.files().len(), storages.len() * (level + 1));
            prop_assert!(&read(disk.clone()) == expected);
            for (offset, len) in &reads {
                let mut buffer = vec![0xa5; *len];
                let len = disk.read_at(&mut buffer, *offset).unwrap();
                let from = expected.len().min(*offset as usize);
                prop_assert!(buffer[..len] == expected[from..expected.len().min(from + buffer.len())]);
            }
            // Where there is no mapping, there are zeros; and a mapping leads to the bytes of the disk.
            let files: Vec<_> = disk.files().map(Path::to_owned).collect();
            let mut seen = vec![0; expected.len()];
            for mapping in disk.mappings() {
                let mapping = mapping.unwrap();
                let file = fs::read(&files[mapping.level]).unwrap();
                seen[mapping.offset as usize..][..mapping.len as usize]
                    .copy_from_slice(&file[mapping.file_offset as usize..][..mapping.len as usize]);
            }
            prop_assert!(&seen == expected);
            let target = dir.path().join("raw");
            disk.export(&target, &ExportOptions::new().overwrite(true).threads(2), |_| ()).unwrap();
            prop_assert!(&fs::read(&target).unwrap() == expected);
            fs::remove_file(target).unwrap();
        }
        let report = check(&path);
        prop_assert!(report.is_sound(), "{}", report);
        prop_assert_eq!(report.deltas.last().unwrap().storage, storages.len() - 1);
    }
}

/// Two storages of 2 MiB, each with one delta.
fn two(dir: &Path) -> PathBuf {
    for (name, seed) in [("data.0", 5), ("data.1", 7)] {
        let mut delta = Delta::new(FormatVersion::V2, M, 2 * M);
        delta.clusters = vec![(1, seed)];
        delta.write(&dir.join(name));
    }
    let part = |end, name: &str| Part {
        end,
        cluster: M,
        files: vec![name.into()],
        plain: false,
    };
    describe_split(dir, &[part(2 * M, "data.0"), part(4 * M, "data.1")])
}

#[test]
fn storages_that_do_not_make_up_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path());
    let xml = fs::read_to_string(&path).unwrap();
    for (from, to, message) in [
        (
            "<Start>4096",
            "<Start>4097",
            "Storage: one is from sector 4097 to 8192, and the one before ends at 4096",
        ),
        (
            "<End>8192",
            "<End>8000",
            "Storage: the last one ends at sector 8000, and the disk has 8192",
        ),
        (
            "<Start>0",
            "<Start>1",
            "Storage: the first one begins at sector 1",
        ),
        (
            "<Start>4096</Start><End>8192",
            "<Start>4096</Start><End>4096",
            "Storage: one is from sector 4096 to 4096, and the one before ends at 4096",
        ),
        (
            "</Image></Storage></StorageData>",
            "</Image><Image><GUID>{00000000-0000-0000-0000-000000000009}</GUID><File>x</File></Image></Storage></StorageData>",
            "Storage: the one at sector 4096 has not the same images as the first",
        ),
    ] {
        assert!(xml.contains(from), "{from}");
        fs::write(&path, xml.replace(from, to)).unwrap();
        let error = Disk::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.message(), message);
    }
}

#[test]
fn what_is_wrong_in_a_storage() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path());
    assert!(check(&path).is_clean());
    let mut expected = vec![0; 4 << 20];
    expected[1 << 20..2 << 20].copy_from_slice(&pattern(5, M, M));
    expected[3 << 20..].copy_from_slice(&pattern(7, M, M));
    assert!(read(Disk::open(&path).unwrap()) == expected);

    // A delta of another size than its storage.
    let mut small = Delta::new(FormatVersion::V2, M, M);
    small.clusters = vec![(0, 9)];
    small.write(&dir.path().join("data.1"));
    let report = check(&path);
    assert!(report.has(Issue::Size) && report.is_sound(), "{report}");
    expected[2 << 20..3 << 20].copy_from_slice(&pattern(9, 0, M));
    expected[3 << 20..].fill(0);
    let disk = Disk::open(&path).unwrap();
    assert_eq!(disk.size(), Size::from_mib(4));
    assert!(read(disk) == expected);

    fs::remove_file(dir.path().join("data.1")).unwrap();
    let report = check(&path);
    assert!(report.has(Issue::Missing));
    assert_eq!(report.deltas.len(), 1);
    assert_eq!(Disk::open(&path).unwrap_err().kind(), ErrorKind::NotFound);
}

/// The files of all storages are the image's own.
#[test]
fn exports_spare_all_storages() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path());
    let disk = Disk::open(&path).unwrap();
    for name in ["data.0", "data.1"] {
        let options = ExportOptions::new().overwrite(true);
        let error = disk
            .export(dir.path().join(name), &options, |_| ())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let outside = tempfile::tempdir().unwrap();
    let opened = OpenOptions::new().within(outside.path()).open(&path);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::PermissionDenied);
}
