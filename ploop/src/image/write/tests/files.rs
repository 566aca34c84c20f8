//! The files of a writer: adding, replacing, merging and reloading them.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use super::*;
use crate::image::{Header, Issue, check_image, partitions_of};

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_mib(1);
    create_delta(&path, FormatVersion::V1, cluster(), size).unwrap();
    let again = create_delta(&path, FormatVersion::V1, cluster(), size).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let other = dir.path().join("other");
    for (version, size) in [
        (FormatVersion::V1, Size::from_gib(2048)),
        (FormatVersion::V2, Size::MAX),
        (FormatVersion::V2, Size::ZERO),
    ] {
        let error = create_delta(&other, version, cluster(), size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{size}");
    }
    assert!(!other.exists());

    let mut writer = open(std::slice::from_ref(&path), false);
    // Marked from now on.
    assert_eq!(Disk::open_image(&path).unwrap_err().kind(), ErrorKind::Busy);
    for (at, len) in [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1)] {
        let error = writer.write_at(&vec![1; len], at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let error = writer.grow(Size::from_kib(512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        writer.merge_down().unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let error = writer.snapshot(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    writer.write_at(&[5], 0).unwrap();
    drop(writer);
    let error = DiskWriter::open_files(&[&path], cluster(), ChainOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    DiskWriter::open_files(&[&path], cluster(), ChainOptions::new().allow_in_use(true))
        .unwrap()
        .close()
        .unwrap();
    assert!(check_image(&path).is_sound());
}

#[test]
fn deltas_that_are_there_can_be_put_on_top() {
    let dir = tempfile::tempdir().unwrap();
    let (base, upper) = (dir.path().join("base"), dir.path().join("upper"));
    let size = Size::from_mib(1);
    let v2 = FormatVersion::V2;
    create_delta(&base, v2, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&base), false);
    writer.write_at(&[1; 1000], 100).unwrap();
    for (version, cluster, size) in [
        (FormatVersion::V1, cluster(), size),
        (v2, ClusterSize::DEFAULT, size),
        (v2, cluster(), Size::from_mib(2)),
    ] {
        create_delta(&upper, version, cluster, size).unwrap();
        let error = writer.push(&upper).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        std::fs::remove_file(&upper).unwrap();
    }
    create_delta(&upper, v2, cluster(), size).unwrap();
    writer.push(&upper).unwrap();
    // The base is closed; the new top is in use.
    assert!(!check_image(&base).has(Issue::InUse));
    assert!(check_image(&upper).has(Issue::InUse));
    writer.write_at(&[2; 1000], 600).unwrap();
    writer.close().unwrap();
    let disk = Disk::open(descriptor(dir.path(), &[base, upper], size, false)).unwrap();
    let mut expected = vec![0; 1 << 20];
    expected[100..1100].fill(1);
    expected[600..1600].fill(2);
    assert!(contents(&disk) == expected);
}

fn delta_files(paths: &[PathBuf]) -> Vec<DeltaFile> {
    let file = |path: &PathBuf| DeltaFile::new(File::open(path).unwrap(), path);
    paths.iter().map(file).collect()
}

/// A chain of two deltas; the lower one is that of a smaller disk.
fn two(dir: &Path) -> Vec<PathBuf> {
    let files = [dir.join("base"), dir.join("top")];
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&files[0], FormatVersion::V2, cluster(), size).unwrap();
    let mut writer = open(&files[..1], false);
    writer.write_at(&[1; 10 * CLUSTER as usize], 0).unwrap();
    writer.snapshot(&files[1]).unwrap();
    // The table needs another cluster.
    writer.grow(Size::from_bytes(9000 * CLUSTER)).unwrap();
    writer
        .write_at(&[2; 1000], 4 * CLUSTER + CLUSTER / 2)
        .unwrap();
    writer.write_at(&[3; 1000], 8999 * CLUSTER).unwrap();
    writer.close().unwrap();
    files.into()
}

/// It does not matter how they were opened, and what their names are now.
#[test]
fn open_files_make_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let paths = two(dir.path());
    let expected = {
        let disk = Disk::from_files(delta_files(&paths), cluster(), ChainOptions::new()).unwrap();
        contents(&disk)
    };
    let mut files = delta_files(&paths);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&paths[1]);
    // Not every file system supports it.
    if let Ok(direct) = direct {
        assert_eq!(header_of(&direct).unwrap().entries(), 9000);
        files[1] = DeltaFile::new(direct, "a name");
        assert_eq!(files[1].path(), Path::new("a name"));
    }
    let kept: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
    for path in &paths {
        std::fs::remove_file(path).unwrap();
    }
    let mut writer = DiskWriter::from_files(files, cluster(), ChainOptions::new()).unwrap();
    let in_use = || [0, 1].map(|level| header_of(&kept[level]).unwrap().in_use);
    assert_eq!(in_use(), [false, true]);
    let mut now = vec![0; expected.len()];
    writer.read_at(&mut now, 0).unwrap();
    assert!(now == expected);
    // The lower one grows for that.
    writer.merge_down().unwrap();
    assert_eq!(in_use(), [true, false]);
    writer.read_at(&mut now, 0).unwrap();
    assert!(now == expected);
    assert_eq!(writer.levels(), 1);
    assert_eq!(
        writer.merge_down().unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    writer.write_at(&[4; 4], 100).unwrap();
    writer.close().unwrap();
    assert_eq!(in_use(), [false, false]);
}

/// After a merge that failed for lack of space, the disk reads the same, and the merge can be tried again.
#[test]
fn a_merge_without_space_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let paths = two(dir.path());
    let mut writer =
        DiskWriter::from_files(delta_files(&paths), cluster(), ChainOptions::new()).unwrap();
    let mut expected = vec![0; writer.size().bytes() as usize];
    writer.read_at(&mut expected, 0).unwrap();
    let mut now = vec![0; expected.len()];
    for room in [11, 12] {
        writer.set_max_len(Some(room * CLUSTER));
        assert_eq!(writer.merge_down().unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(writer.levels(), 2);
        assert!(!Header::read(&paths[0]).unwrap().in_use);
        writer.read_at(&mut now, 0).unwrap();
        assert!(now == expected);
    }
    writer.set_max_len(None);
    writer.merge_down().unwrap();
    writer.read_at(&mut now, 0).unwrap();
    assert!(now == expected);
    writer.close().unwrap();
    assert!(check_image(&paths[0]).findings.is_empty());
    assert!(contents(&Disk::open_image(&paths[0]).unwrap()) == expected);
}

/// Others write to the deltas below.
#[test]
fn changes_below_are_seen_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let paths = two(dir.path());
    let mut writer =
        DiskWriter::from_files(delta_files(&paths), cluster(), ChainOptions::new()).unwrap();
    let mut disk =
        Disk::from_files(delta_files(&paths[..1]), cluster(), ChainOptions::new()).unwrap();
    let mut byte = [0];
    writer.read_at(&mut byte, 15 * CLUSTER).unwrap();
    disk.read_at(&mut byte, 15 * CLUSTER).unwrap();
    // It is marked as in use, which does not matter, and has grown.
    let mut other = open(&paths[..1], false);
    other.grow(Size::from_bytes(9000 * CLUSTER)).unwrap();
    other.write_at(&[7; 10], 15 * CLUSTER).unwrap();
    other.flush().unwrap();
    writer.reload_level(0).unwrap();
    writer.read_at(&mut byte, 15 * CLUSTER).unwrap();
    assert_eq!(byte, [7]);
    let shared = disk.clone();
    assert_eq!(disk.reload_level(0).unwrap_err().kind(), ErrorKind::Busy);
    drop(shared);
    disk.reload_level(0).unwrap();
    assert_eq!(disk.size(), Size::from_bytes(9000 * CLUSTER));
    disk.read_at(&mut byte, 15 * CLUSTER).unwrap();
    assert_eq!(byte, [7]);
    other.close().unwrap();

    let copy = dir.path().join("copy");
    std::fs::copy(&paths[0], &copy).unwrap();
    let replacement = || DeltaFile::new(File::open(&copy).unwrap(), &copy);
    writer.replace_level(0, replacement()).unwrap();
    disk.replace_level(0, replacement()).unwrap();
    assert_eq!(disk.files().collect::<Vec<_>>(), [&copy]);
    std::fs::remove_file(&paths[0]).unwrap();
    writer.read_at(&mut byte, 15 * CLUSTER).unwrap();
    assert_eq!(byte, [7]);
    for (level, path) in [(0, "raw"), (2, "copy")] {
        let path = dir.path().join(path);
        if level == 0 {
            let size = Size::from_bytes(20 * CLUSTER);
            create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
        }
        let file = DeltaFile::new(File::open(&path).unwrap(), path);
        let error = writer.replace_level(level, file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    for level in [0, 1, 2] {
        let error = writer.remove_level(level).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(
        writer.reload_level(1).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        disk.remove_level(1).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    writer.close().unwrap();
}

#[test]
fn files_in_use_are_refused_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let paths = two(dir.path());
    for level in [0, 1] {
        let mut header = Header::read(&paths[level]).unwrap();
        header.in_use = true;
        let file = WritableDelta::open_file(&paths[level]).unwrap();
        file.write_all_at(&header.to_bytes(), 0).unwrap();
        let error = DiskWriter::from_files(delta_files(&paths), cluster(), ChainOptions::new())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(error.path(), Some(&*paths[level]));
        let error =
            Disk::from_files(delta_files(&paths), cluster(), ChainOptions::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let writer = DiskWriter::from_files(
            delta_files(&paths),
            cluster(),
            ChainOptions::new().allow_in_use(true),
        )
        .unwrap();
        Disk::from_files(
            delta_files(&paths),
            cluster(),
            ChainOptions::new().allow_in_use(true),
        )
        .unwrap();
        writer.close().unwrap();
        header.in_use = false;
        file.write_all_at(&header.to_bytes(), 0).unwrap();
    }
    let error = DiskWriter::from_files(
        Vec::new(),
        cluster(),
        ChainOptions::new().allow_in_use(true),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // A delta with other clusters is not marked.
    let error = DiskWriter::from_files(
        delta_files(&paths[1..]),
        ClusterSize::DEFAULT,
        ChainOptions::new().allow_in_use(true),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(!Header::read(&paths[1]).unwrap().in_use);
}

#[test]
fn a_larger_delta_can_be_put_on_top_as_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (base, upper) = (dir.path().join("base"), dir.path().join("upper"));
    let v2 = FormatVersion::V2;
    create_delta(&base, v2, cluster(), Size::from_mib(1)).unwrap();
    create_delta(&upper, v2, cluster(), Size::from_mib(2)).unwrap();
    let mut writer = open(std::slice::from_ref(&base), false);
    writer.set_preallocation(1 << 20);
    writer.write_at(&[1; 10], 0).unwrap();
    let file = || DeltaFile::new(File::open(&upper).unwrap(), &upper);
    writer.push_file(file()).unwrap();
    assert_eq!(writer.size(), Size::from_mib(2));
    // The old top is cut to what it needs; for the new one, space is preallocated.
    assert_eq!(std::fs::metadata(&base).unwrap().len(), 2 * CLUSTER);
    writer.write_at(&[2; 10], 5).unwrap();
    assert_eq!(std::fs::metadata(&upper).unwrap().len(), 3 * CLUSTER);
    assert_eq!(
        writer.push_file(file()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert!(Header::read(&upper).unwrap().in_use);
    writer.close().unwrap();
    let disk =
        Disk::from_files(delta_files(&[base, upper]), cluster(), ChainOptions::new()).unwrap();
    assert!(contents(&disk)[..16] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0]);
}

#[test]
fn partitions_are_read_through_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    create_delta(&path, FormatVersion::V2, cluster(), Size::from_mib(8)).unwrap();
    let mut writer = open(std::slice::from_ref(&path), false);
    let find = |writer: &mut DiskWriter| {
        partitions_of(writer.size(), |buffer, offset| {
            assert!(offset + buffer.len() as u64 <= writer.size().bytes());
            writer.read_at(buffer, offset)?;
            Ok(())
        })
    };
    assert!(find(&mut writer).unwrap().is_empty());
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..].copy_from_slice(&4096u32.to_le_bytes());
    writer.write_at(&entry, 446).unwrap();
    writer.write_at(&[0x55, 0xaa], 510).unwrap();
    let found = find(&mut writer).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].number, found[0].offset), (1, 2048 * 512));
    assert_eq!(found[0].size, Size::from_sectors(4096));
    let broken = partitions_of(Size::from_mib(8), |_, _| {
        Err(io::ErrorKind::StorageFull.into())
    });
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::NoSpace);
    writer.close().unwrap();
    let disk = Disk::open_image(&path).unwrap();
    assert_eq!(disk.partitions().unwrap(), found);
}
