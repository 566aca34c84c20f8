//! Disks against a model of what they hold, and tables that lie.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ploop::image::{Disk, ExportOptions, Extent, OpenOptions};
use ploop::{ErrorKind, FormatVersion, Guid, Size};
use proptest::prelude::*;

use crate::work_done;
use crate::written_image::{Delta, contents, describe, entry_offset, pattern, snapshot};

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

fn chain() -> impl Strategy<Value = Vec<Delta>> {
    let cluster = prop_oneof![Just(32 * K), Just(64 * K), Just(128 * K)];
    cluster.prop_flat_map(|cluster| {
        let size = (1..40 * cluster / 512).prop_map(|sectors| sectors * 512);
        let delta = (
            prop_oneof![Just(FormatVersion::V1), Just(FormatVersion::V2)],
            size,
            proptest::collection::btree_map(0..40u32, 0..=255u8, 0..20),
            any::<u64>(),
        )
            .prop_map(move |(version, size, clusters, order)| {
                let mut clusters: Vec<(u32, u8)> = clusters
                    .into_iter()
                    .filter(|(number, _)| u64::from(*number) * cluster < size)
                    .collect();
                // Some order that is not that of the disk.
                clusters.sort_by_key(|(number, _)| (u64::from(*number) + 1).wrapping_mul(order));
                Delta {
                    version,
                    cluster,
                    size,
                    clusters,
                }
            });
        proptest::collection::vec(delta, 1..6)
    })
}

/// Writes a chain; with `raw`, its base is a plain file.
fn write(dir: &Path, chain: &[Delta], raw: bool) -> PathBuf {
    let names: Vec<String> = (0..chain.len()).map(|level| format!("d{level}")).collect();
    for (level, (name, delta)) in names.iter().zip(chain).enumerate() {
        if raw && level == 0 {
            fs::write(dir.join(name), contents(&chain[..1], true)).unwrap();
        } else {
            delta.write(&dir.join(name));
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let top = chain.last().unwrap();
    describe(dir, &names, top.size, top.cluster, raw)
}

fn extents(disk: &Disk) -> Vec<(u64, u64)> {
    let extent = |extent: Extent| (extent.offset, extent.len);
    disk.extents().map(Result::unwrap).map(extent).collect()
}

/// The parts of a disk of which a delta has a cluster: their offsets and lengths.
fn allocated(chain: &[Delta]) -> Vec<(u64, u64)> {
    let top = chain.last().unwrap();
    let numbers: BTreeSet<u32> = chain
        .iter()
        .flat_map(|delta| delta.clusters.iter().map(|(number, _)| *number))
        .collect();
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        let offset = u64::from(number) * top.cluster;
        if offset >= top.size {
            continue;
        }
        let len = top.cluster.min(top.size - offset);
        match extents.last_mut() {
            Some((last, last_len)) if *last + *last_len == offset => *last_len += len,
            _ => extents.push((offset, len)),
        }
    }
    extents
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn chains_read_as_their_model(
        chain in chain(),
        raw in any::<bool>(),
        reads in proptest::collection::vec((0..6 * M, 0..300_000usize), 8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &chain, raw);
        let mut states: Vec<(Disk, Vec<u8>)> = Vec::new();
        for level in 0..chain.len() {
            let guid = if level + 1 == chain.len() { Guid::TOP } else { snapshot(level) };
            let part = &chain[..=level];
            let expected = contents(part, raw);
            let mut disk = Disk::open_snapshot(&path, guid).unwrap();
            prop_assert_eq!(disk.size().bytes(), expected.len() as u64);
            let mut all = Vec::new();
            disk.read_to_end(&mut all).unwrap();
            prop_assert!(all == expected);

            for (offset, len) in &reads {
                let mut buffer = vec![0xa5; *len];
                let read = disk.read_at(&mut buffer, *offset).unwrap();
                let from = expected.len().min(*offset as usize);
                let to = expected.len().min(*offset as usize + len);
                prop_assert_eq!(read, to - from);
                prop_assert!(buffer[..read] == expected[from..to]);
                prop_assert!(buffer[read..].iter().all(|byte| *byte == 0xa5));
            }
            if !raw {
                prop_assert_eq!(extents(&disk), allocated(part));
            }
            for (offset, _) in &reads {
                let rest = disk.extents_from(*offset).map(|it| it.map(|it| (it.offset, it.len)).unwrap());
                let expected = extents(&disk).into_iter().filter_map(|(start, len)| {
                    let from = start.max(*offset);
                    (start + len).checked_sub(from).filter(|len| *len != 0).map(|len| (from, len))
                });
                prop_assert_eq!(rest.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            }
            let target = dir.path().join("exported");
            let options = ExportOptions::new().overwrite(true).sync(false).threads(2);
            disk.export(&target, &options, |_| {}).unwrap();
            prop_assert!(fs::read(&target).unwrap() == expected);

            let mut streamed = Vec::new();
            disk.stream(&mut streamed, &ExportOptions::new(), |_| {}).unwrap();
            prop_assert!(streamed == expected);
            for (offset, len) in reads.iter().take(2) {
                let mut part = expected.get(*offset as usize..).unwrap_or_default().to_vec();
                part.resize(*len, 0);
                let options = options.clone().part(*offset, Size::from_bytes(*len as u64));
                disk.export(&target, &options, |_| {}).unwrap();
                prop_assert!(fs::read(&target).unwrap() == part);
                let mut streamed = Vec::new();
                disk.stream(&mut streamed, &options, |_| {}).unwrap();
                prop_assert!(streamed == part);
            }
            for (earlier, contents) in &states {
                prop_assert_eq!(changes(&disk, earlier), differences(&expected, contents));
                prop_assert_eq!(changes(earlier, &disk), differences(contents, &expected));
            }
            states.push((disk, expected));
        }
        let is_accepted = !mixed(&chain, raw) && !has_refused_sizes(&chain, raw);
        prop_assert_eq!(ploop::image::check(&path).is_sound(), is_accepted);
    }
}

fn changes(disk: &Disk, earlier: &Disk) -> Vec<(u64, u64)> {
    let changes = disk.changes_since(earlier).map(Result::unwrap);
    changes.map(|extent| (extent.offset, extent.len)).collect()
}

/// The blocks of 4 KiB that differ, byte by byte; the shorter one has zeros behind its end.
fn differences(one: &[u8], other: &[u8]) -> Vec<(u64, u64)> {
    const BLOCK: usize = 4096;
    let len = one.len().max(other.len());
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        bytes
    };
    let (one, other) = (padded(one), padded(other));
    let mut found: Vec<(u64, u64)> = Vec::new();
    for at in (0..len).step_by(BLOCK) {
        if one[at..at + BLOCK] == other[at..at + BLOCK] {
            continue;
        }
        let size = BLOCK.min(len - at) as u64;
        match found.last_mut() {
            Some((last, last_len)) if *last + *last_len == at as u64 => *last_len += size,
            _ => found.push((at as u64, size)),
        }
    }
    found
}

fn mixed(chain: &[Delta], raw: bool) -> bool {
    let chain = &chain[usize::from(raw)..];
    chain.iter().any(|delta| delta.version != chain[0].version)
}

/// Whether the driver refuses the deltas for their sizes: one is larger than that upon it, or ends within a cluster. Where
/// the top does, the disk is one of another program, which is read.
fn has_refused_sizes(chain: &[Delta], raw: bool) -> bool {
    let is_whole = |delta: &Delta| delta.size % delta.cluster == 0;
    let shrinks = chain.windows(2).any(|pair| pair[0].size > pair[1].size);
    let odd = chain[usize::from(raw)..].iter().any(|it| !is_whole(it));
    shrinks || odd && chain.last().is_some_and(is_whole)
}

#[test]
fn reading_and_seeking() {
    let dir = tempfile::tempdir().unwrap();
    let mut delta = Delta::new(FormatVersion::V2, 64 * K, 256 * K);
    delta.clusters = vec![(1, 7)];
    let path = dir.path().join("root.hds");
    delta.write(&path);
    let expected = contents(&[delta], false);
    let mut disk = Disk::open_image(&path).unwrap();
    assert_eq!(disk.files().collect::<Vec<_>>(), [path]);

    let mut two = [0; 2];
    assert_eq!(disk.seek(SeekFrom::End(-2)).unwrap(), 256 * K - 2);
    assert_eq!(disk.read(&mut two).unwrap(), 2);
    assert_eq!(disk.read(&mut two).unwrap(), 0);
    assert_eq!(disk.seek(SeekFrom::Current(-300)).unwrap(), 256 * K - 300);
    assert!(disk.seek(SeekFrom::Current(i64::MIN)).is_err());
    assert!(disk.seek(SeekFrom::End(-300_000)).is_err());
    assert_eq!(disk.stream_position().unwrap(), 256 * K - 300);
    disk.seek(SeekFrom::Start(u64::MAX)).unwrap();
    assert_eq!(disk.read(&mut two).unwrap(), 0);
    assert_eq!(disk.read_at(&mut two, u64::MAX).unwrap(), 0);
    assert_eq!(disk.read_at(&mut [], 0).unwrap(), 0);

    // A clone has a position of its own.
    disk.seek(SeekFrom::Start(64 * K)).unwrap();
    let mut other = disk.clone();
    disk.read_exact(&mut two).unwrap();
    assert_eq!(two, expected[64 << 10..][..2]);
    assert_eq!(other.stream_position().unwrap(), 64 * K);
    other.rewind().unwrap();
    assert_eq!(disk.stream_position().unwrap(), 64 * K + 2);
}

#[test]
fn many_threads_read_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut base = Delta::new(FormatVersion::V1, 32 * K, 8 * M);
    base.clusters = (0..256).rev().step_by(2).map(|n| (n, 3)).collect();
    let mut top = base.clone();
    top.clusters = (0..256).step_by(3).map(|n| (n, 9)).collect();
    let chain = [base, top];
    let disk = Disk::open(write(dir.path(), &chain, false)).unwrap();
    let expected = contents(&chain, false);
    thread::scope(|scope| {
        for seed in 1..=8u64 {
            let (disk, expected) = (&disk, &expected);
            scope.spawn(move || {
                let mut buffer = vec![0; 100_000];
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..500 {
                    let offset = random.u64(..8 * M);
                    let len = disk.read_at(&mut buffer, offset).unwrap();
                    assert!(buffer[..len] == expected[offset as usize..][..len]);
                }
            });
        }
    });
}

#[test]
fn a_plain_base_has_any_length() {
    let dir = tempfile::tempdir().unwrap();
    for len in [1, 511, 512, 70_000, 200_000, 300_001] {
        let plain = pattern(5, 0, len);
        fs::write(dir.path().join("plain"), &plain).unwrap();
        let alone = describe(dir.path(), &["plain"], 512, 64 * K, true);
        let mut disk = Disk::open(&alone).unwrap();
        assert_eq!(disk.size().bytes(), len.next_multiple_of(512));
        let mut all = Vec::new();
        disk.read_to_end(&mut all).unwrap();
        assert!(all[..plain.len()] == plain && all[plain.len()..].iter().all(|byte| *byte == 0));

        let mut top = Delta::new(FormatVersion::V2, 64 * K, 256 * K);
        top.clusters = vec![(3, 8)];
        top.write(&dir.path().join("top"));
        let path = describe(dir.path(), &["plain", "top"], top.size, 64 * K, true);
        let mut all = Vec::new();
        Disk::open(&path).unwrap().read_to_end(&mut all).unwrap();
        let mut expected = vec![0; 256 << 10];
        let shown = plain.len().min(expected.len());
        expected[..shown].copy_from_slice(&plain[..shown]);
        expected[192 << 10..].copy_from_slice(&pattern(8, 192 * K, 64 * K));
        assert!(all == expected, "{len}");
    }
}

#[test]
fn holes_of_a_plain_base_are_no_extents() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("plain")).unwrap();
    file.set_len(64 * M).unwrap();
    file.write_all_at(&[1; 8192], 32 * M).unwrap();
    file.write_all_at(&[1; 8192], 48 * M).unwrap();
    let disk = Disk::open(describe(dir.path(), &["plain"], 64 * M, M, true)).unwrap();
    let extents: Vec<Extent> = disk.extents().map(Result::unwrap).collect();
    assert_eq!(extents.len(), 2, "{extents:?}");
    for (extent, at) in extents.iter().zip([32 * M, 48 * M]) {
        assert!(extent.offset <= at && at + 8192 <= extent.offset + extent.len);
        assert!(extent.len <= M);
    }
}

/// As many clusters as there can be, in two sparse files.
#[test]
fn the_largest_disks_are_passed_through_without_reading_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("plain")).unwrap();
    // The file system may not have files as long.
    let size = [1 << 47, 1 << 43]
        .into_iter()
        .find(|len| file.set_len(len - M).is_ok());
    let size = size.unwrap() - M;
    file.write_all_at(&[1; 4096], size - 4096).unwrap();
    let before = work_done::bytes_read();
    let disk = Disk::open(describe(dir.path(), &["plain"], size, 32 * K, true)).unwrap();
    assert_eq!(disk.extents().map(Result::unwrap).count(), 1);
    assert!(format!("{disk:?}").len() < 4096);

    let delta = Delta::new(FormatVersion::V2, 32 * K, (1 << 47) - M);
    delta.write(&dir.path().join("root.hds"));
    let disk = Disk::open_image(dir.path().join("root.hds")).unwrap();
    assert_eq!(disk.extents().count(), 0);
    assert!(ploop::image::check_image(dir.path().join("root.hds")).is_sound());
    // The holes of the second one's table alone are 16 GiB.
    let read = work_done::bytes_read() - before;
    assert!(read < 64 * M, "{read}");
}

/// A disk of 16 TiB whose file is all holes but for the header and some entries.
#[test]
fn a_disk_of_16_tib_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.hds");
    let mut delta = Delta::new(FormatVersion::V2, M, 16 << 40);
    delta.clusters = vec![((16 << 20) - 1, 4), (9_999_999, 5)];
    delta.write(&path);
    let before = work_done::bytes_read();
    let disk = Disk::open_image(&path).unwrap();
    let mut sector = [0; 512];
    for (number, seed) in &delta.clusters {
        let at = u64::from(*number) * M;
        disk.read_at(&mut sector, at).unwrap();
        assert_eq!(sector[..], pattern(*seed, at, 512));
    }
    let read = work_done::bytes_read() - before;
    assert!(read < M, "{read} bytes for three sectors");
    assert_eq!(extents(&disk), allocated(&[delta]));
    // The table is 64 MiB.
    let read = work_done::bytes_read() - before;
    assert!(read < 2 * M, "{read}");
}

/// A small delta, and what is changed in its file: bytes at an offset.
fn changed(dir: &Path, at: u64, bytes: &[u8]) -> PathBuf {
    let mut delta = Delta::new(FormatVersion::V2, 32 * K, 10_000 * 32 * K);
    // Its table has two clusters.
    delta.clusters = vec![(0, 1), (9_999, 2)];
    let path = dir.join("root.hds");
    delta.write(&path).write_all_at(bytes, at).unwrap();
    path
}

#[test]
fn entries_that_lie_are_found_when_they_matter() {
    let dir = tempfile::tempdir().unwrap();
    for (entry, what) in [
        (1, "lies in the block table"),
        (4, "lies beyond the end of the file"),
        (u32::MAX, "lies beyond the end of the file"),
    ] {
        let path = changed(dir.path(), entry_offset(5), &u32::to_le_bytes(entry));
        let disk = Disk::open_image(&path).unwrap();
        // The neighbours are fine.
        let mut buffer = vec![0; 32 << 10];
        disk.read_at(&mut buffer, 4 * 32 * K).unwrap();
        for error in [
            disk.read_at(&mut buffer, 5 * 32 * K + 1).unwrap_err(),
            disk.extents().find_map(Result::err).unwrap(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!(error.path(), Some(&*path));
            assert_eq!(error.offset(), Some(entry_offset(5)));
            assert_eq!(
                error.message(),
                format!("the table puts cluster 5 at {entry}, which {what}")
            );
        }
        let mut extents = disk.extents().skip_while(Result::is_ok);
        assert!(extents.next().is_some() && extents.next().is_none());

        // The export notices before it makes a file.
        let target = dir.path().join("target");
        let error = disk
            .export(&target, &ExportOptions::new(), |_| {})
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(!target.exists());
    }
    // In version 1, entries count sectors.
    let mut delta = Delta::new(FormatVersion::V1, 32 * K, M);
    delta.clusters = vec![(0, 1)];
    let path = dir.path().join("v1");
    delta
        .write(&path)
        .write_all_at(&65u32.to_le_bytes(), 64)
        .unwrap();
    let error = Disk::open_image(&path)
        .unwrap()
        .read_at(&mut [0], 0)
        .unwrap_err();
    assert!(
        error
            .message()
            .contains("is not the beginning of a cluster"),
        "{error}"
    );
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), 0, &[]);
    let disk = Disk::open_image(&path).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(70_000)
        .unwrap();
    let error = disk.read_at(&mut [0; 32 << 10], 0).unwrap_err();
    assert_eq!(error.path(), Some(&*path));
    assert_eq!(error.offset(), Some(2 * 32 * K));
}

#[test]
fn what_cannot_be_read_for_certain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = |at, bytes: &[u8]| {
        let path = changed(dir.path(), at, bytes);
        let error = Disk::open_image(&path).unwrap_err();
        assert_eq!(error.path(), Some(&*path));
        (error.kind(), error.offset())
    };
    let in_use = 0x746f_6e59u32.to_le_bytes();
    assert_eq!(image(44, &in_use), (ErrorKind::Busy, Some(44)));
    assert_eq!(image(52, &[2]), (ErrorKind::Unsupported, None));
    assert_eq!(image(0, b"raw!"), (ErrorKind::Corrupt, Some(0)));
    // A format extension is no part of the disk, wherever it is said to be.
    for at in [56, 63] {
        Disk::open_image(changed(dir.path(), at, &[1])).unwrap();
    }

    changed(dir.path(), 44, &in_use);
    let size = 10_000 * 32 * K;
    let path = describe(dir.path(), &["root.hds"], size, 32 * K, false);
    assert_eq!(Disk::open(&path).unwrap_err().kind(), ErrorKind::Busy);
    OpenOptions::new().allow_in_use(true).open(&path).unwrap();

    changed(dir.path(), 0, &[]);
    Disk::open(&path).unwrap();
    let unknown = Disk::open_snapshot(&path, Guid::generate()).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NoSnapshot);
    assert_eq!(unknown.path(), Some(&*path));

    let xml = fs::read_to_string(&path).unwrap();
    let encrypted = xml.replace(
        "</Disk_Parameters>",
        "<Encryption><KeyId>k</KeyId></Encryption></Disk_Parameters>",
    );
    fs::write(&path, encrypted).unwrap();
    assert_eq!(
        Disk::open(&path).unwrap_err().kind(),
        ErrorKind::Unsupported
    );

    let path = describe(dir.path(), &["root.hds"], size, 64 * K, false);
    let error = Disk::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.message(),
        "the delta has clusters of 32 KiB, the image of 64 KiB"
    );
    let path = describe(dir.path(), &["gone.hds"], size, 32 * K, false);
    let error = Disk::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.path(),
        Some(&*dir.path().canonicalize().unwrap().join("gone.hds"))
    );
}

fn small(dir: &Path) -> Disk {
    let mut delta = Delta::new(FormatVersion::V2, M, 64 * M);
    delta.clusters = (0..40).map(|n| (n, 1)).collect();
    let path = dir.join("root.hds");
    delta.write(&path);
    Disk::open_image(&path).unwrap()
}

#[test]
fn exports_spare_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let disk = small(dir.path());
    let source = fs::read(dir.path().join("root.hds")).unwrap();
    let options = ExportOptions::new();
    let target = dir.path().join("target");
    fs::write(&target, "precious").unwrap();
    let error = disk.export(&target, &options, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&target).unwrap(), b"precious");

    // The image itself, by any name.
    let link = dir.path().join("link");
    fs::hard_link(dir.path().join("root.hds"), &link).unwrap();
    for own in [dir.path().join("root.hds"), link.clone()] {
        let options = options.clone().overwrite(true);
        let error = disk.export(&own, &options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    fs::remove_file(link).unwrap();
    let error = disk.export(dir.path(), &options.clone().overwrite(true), |_| {});
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
    let nowhere = dir.path().join("no/where");
    let error = disk.export(&nowhere, &options, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let before = target.metadata().unwrap();
    disk.export(&target, &options.clone().overwrite(true), |_| {})
        .unwrap();
    let after = target.metadata().unwrap();
    assert_ne!(before.len(), after.len());
    let mut expected = Vec::new();
    disk.clone().read_to_end(&mut expected).unwrap();
    assert!(fs::read(&target).unwrap() == expected);
    assert!(fs::read(dir.path().join("root.hds")).unwrap() == source);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn exports_end_early_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let disk = small(dir.path());
    let cancel = Arc::new(AtomicBool::new(false));
    let options = ExportOptions::new().threads(1).cancel(cancel.clone());
    let mut calls = 0;
    let error = disk
        .export(dir.path().join("target"), &options, |progress| {
            assert!(progress.total == Size::from_mib(40));
            calls += 1;
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        })
        .unwrap_err();
    assert_eq!(error.message(), "the export was cancelled");
    assert!(calls >= 1);
    let panicked = std::panic::catch_unwind(|| {
        disk.export(dir.path().join("target"), &ExportOptions::new(), |_| {
            panic!("of the caller")
        })
    });
    assert!(panicked.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The export runs in another process, which is this test again, and is killed in the middle.
#[test]
fn a_killed_export_leaves_nothing() {
    const DIR: &str = "PLOOP_TEST_EXPORT_IN";
    if let Some(dir) = std::env::var_os(DIR) {
        let disk = Disk::open_image(Path::new(&dir).join("root.hds")).unwrap();
        let target = Path::new(&dir).join("target");
        let result = disk.export(target, &ExportOptions::new().threads(1), |progress| {
            if !progress.copied.is_zero() {
                println!("under way");
                thread::sleep(Duration::from_secs(60));
            }
        });
        panic!("{result:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    small(dir.path());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "disk::a_killed_export_leaves_nothing",
            "--nocapture",
        ])
        .env(DIR, dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("under way") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn deltas_elsewhere_are_refused_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("secret");
    fs::write(&outside, [7; 512]).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::symlink(&outside, home.join("link")).unwrap();
    fs::write(home.join("plain"), [8; 512]).unwrap();
    for (name, refused) in [("../secret", true), ("link", true), ("plain", false)] {
        let path = describe(&home, &[name], 512, 32 * K, true);
        Disk::open(&path).unwrap();
        let opened = OpenOptions::new().within(&home).open(&path);
        let kind = opened.as_ref().err().map(ploop::Error::kind);
        let expected = refused.then_some(ErrorKind::PermissionDenied);
        assert_eq!(kind, expected, "{name}");
    }
}

#[test]
fn disks_are_shared_between_threads() {
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<Disk>();
}

#[test]
fn exports_have_holes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let mut delta = Delta::new(FormatVersion::V2, M, 512 * M);
    // Of four clusters, two are zero.
    delta.clusters = vec![(3, 1), (300, 0), (301, 7), (511, 0)];
    delta.write(&dir.path().join("root.hds"));
    let disk = Disk::open_image(dir.path().join("root.hds")).unwrap();
    let mut seen = Vec::new();
    let target = dir.path().join("target");
    disk.export(&target, &ExportOptions::new(), |progress| {
        seen.push(progress)
    })
    .unwrap();
    let stored = target.metadata().unwrap().blocks() * 512;
    assert!((2 * M..3 * M).contains(&stored), "{stored}");
    assert_eq!(target.metadata().unwrap().mode() & 0o777, 0o600);
    let (first, last) = (seen.first().unwrap(), seen.last().unwrap());
    assert_eq!(first.copied, Size::ZERO);
    assert_eq!(last.copied, Size::from_mib(4));
    assert!(seen.iter().all(|progress| progress.total == last.copied));

    let options = ExportOptions::new().overwrite(true).find_zeros(false);
    disk.export(&target, &options, |_| {}).unwrap();
    let stored = target.metadata().unwrap().blocks() * 512;
    assert!((4 * M..5 * M).contains(&stored), "{stored}");
}

/// Without holes that can be looked for, and without files that have no name yet. What is skipped is
/// different there: a killed export leaves its file under a hidden name, and holes of files count as data,
/// so that large tables are read.
#[cfg(feature = "libploop")]
#[test]
fn on_an_old_kernel() {
    let different = [
        "a_killed_export_leaves_nothing",
        "holes_of_a_plain_base_are_no_extents",
        "a_disk_of_16_tib_opens_at_once",
        "holes_where_no_cluster_is_do_no_harm",
        "the_largest_disks_are_passed_through_without_reading_them",
    ];
    crate::old_kernel::run_again(&different.map(|name| ["--skip", name]).concat());
}

/// Whoever owns the directory exchanges what a name in it leads to, all the time.
#[test]
fn what_is_checked_is_what_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    let home = dir.path().join("home");
    for place in [&outside, &home.join("a"), &home.join("b")] {
        fs::create_dir_all(place).unwrap();
        let byte = if *place == outside { b'o' } else { b'i' };
        fs::write(place.join("base"), [byte; 4096]).unwrap();
    }
    fs::rename(home.join("a"), home.join("sub")).unwrap();
    std::os::unix::fs::symlink("sub", home.join("a")).unwrap();
    let exchange = |name: &str, to: &Path| {
        let new = home.join("new");
        std::os::unix::fs::symlink(to, &new).unwrap();
        fs::rename(&new, home.join(name)).unwrap();
    };
    let path = describe(&home, &["link/base"], 4096, 32 * K, true);
    let file = describe_in(&home, "file.xml", "file");
    let stop = AtomicBool::new(false);
    exchange("link", &home.join("b"));
    exchange("file", &home.join("b/base"));
    let (mut inside, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for to in [&outside, &home.join("a"), &home.join("b")] {
                    exchange("link", to);
                    exchange("file", &to.join("base"));
                }
            }
        });
        for round in 0..10_000 {
            let path = if round % 2 == 0 { &path } else { &file };
            match OpenOptions::new().within(&home).open(path) {
                Ok(disk) => {
                    let mut byte = [0];
                    disk.read_at(&mut byte, 0).unwrap();
                    assert_eq!(byte, *b"i", "round {round}");
                    inside += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
                    refused += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(inside > 100 && refused > 100, "{inside} {refused}");
}

/// [`describe`]s a plain disk of one file under another name.
fn describe_in(dir: &Path, name: &str, file: &str) -> PathBuf {
    let kept = fs::read(dir.join("DiskDescriptor.xml")).unwrap();
    let path = describe(dir, &[file], 4096, 32 * K, true);
    fs::rename(&path, dir.join(name)).unwrap();
    fs::write(&path, kept).unwrap();
    dir.join(name)
}

/// Files of the image, of all its states, by whatever name, and names that libploop writes to beside them.
#[test]
fn exports_spare_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    for name in ["base", "middle", "top"] {
        Delta::new(FormatVersion::V2, M, 512 * M).write(&home.join(name));
    }
    let path = describe(&home, &["base", "middle", "top"], 512 * M, M, false);
    let elsewhere = dir.path().join("elsewhere");
    std::os::unix::fs::symlink(&home, &elsewhere).unwrap();
    fs::hard_link(home.join("top"), dir.path().join("hard")).unwrap();
    fs::hard_link(&path, dir.path().join("hard.xml")).unwrap();
    fs::write(home.join("DiskDescriptor.xml.lck"), "").unwrap();
    let state = || {
        let mut files: Vec<_> = fs::read_dir(&home).unwrap().map(Result::unwrap).collect();
        files.sort_by_key(fs::DirEntry::file_name);
        files
            .into_iter()
            .map(|file| (file.file_name(), fs::read(file.path()).unwrap()))
            .collect::<Vec<_>>()
    };
    let before = state();
    // The top is no part of this state.
    let disk = Disk::open_snapshot(elsewhere.join("DiskDescriptor.xml"), snapshot(0)).unwrap();
    let mut targets = vec![dir.path().join("hard"), dir.path().join("hard.xml")];
    for name in [
        "base",
        "middle",
        "top",
        "DiskDescriptor.xml",
        "DiskDescriptor.xml.lck",
        "DiskDescriptor.xml.op.lck",
        "DiskDescriptor.xml.tmp",
        "DiskDescriptor.xml.tmp.tmp",
        ".statfs",
        "base.mnt",
        "base.tmp",
        "top.idx",
    ] {
        targets.extend([home.join(name), elsewhere.join(name)]);
    }
    for target in &targets {
        let options = ExportOptions::new().overwrite(true);
        let error = disk.export(target, &options, |_| {}).unwrap_err();
        let target = target.display();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{target}: {error}");
        assert!(state() == before, "{target}");
    }
    disk.export(home.join("new"), &ExportOptions::new(), |_| {})
        .unwrap();
}
