//! Disks that become larger.

use std::fs;

use ploop::image::{self, CreateOptions, Disk, DiskWriter, Header, OfflineImage, check};
use ploop::{ClusterSize, ErrorKind, FormatVersion, Guid, ImageMode, Ploop, Size, SwitchFlag};

use super::filled_image::read_whole;

const CLUSTER: u64 = 32 << 10;

#[test]
fn all_kinds_grow() {
    for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
        for version in [FormatVersion::V1, FormatVersion::V2] {
            let dir = tempfile::tempdir().unwrap();
            let options = CreateOptions::new()
                .mode(mode)
                .format(version)
                .cluster(ClusterSize::MIN);
            let base = dir.path().join("root.hds");
            let size = Size::from_bytes(40 * CLUSTER);
            let mut made = image::create(&base, size, &options).unwrap();
            let mut disk = DiskWriter::open(made.path()).unwrap();
            let data: Vec<u8> = (0..size.bytes()).map(|at| (at / 512 % 251) as u8).collect();
            disk.write_at(&data, 0).unwrap();
            disk.close().unwrap();
            let snapshot = made.snapshot().unwrap();
            // Back to one delta that is grown, and then a delta upon one.
            made.delete_snapshot(snapshot, |_| {}).unwrap();
            // The table takes two clusters more, which have to be moved.
            let first = 20_000 * CLUSTER;
            made.grow(Size::from_bytes(first - 100)).unwrap();
            let mut expected = data.clone();
            let state = |image: &OfflineImage, len: u64| {
                let report = check(image.path());
                assert!(report.is_clean(), "{report}");
                let disk = Disk::open(image.path()).unwrap();
                assert_eq!(disk.size().bytes(), len);
                assert_eq!(image.descriptor().unwrap().size.bytes(), len);
                let mut bytes = vec![0; data.len() + 1000];
                disk.read_at(&mut bytes, 0).unwrap();
                bytes
            };
            expected.resize(data.len() + 1000, 0);
            assert!(state(&made, first) == expected, "{mode} {version}");
            let before = made.snapshot().unwrap();
            let second = 30_000 * CLUSTER;
            made.grow(Size::from_bytes(second)).unwrap();
            assert!(state(&made, second) == expected, "{mode} {version}");
            let old = Disk::open_snapshot(made.path(), before).unwrap();
            assert_eq!(old.size().bytes(), first);
            // No change, and no shrinking.
            let bytes = fs::read(made.path()).unwrap();
            made.grow(Size::from_bytes(second)).unwrap();
            assert_eq!(fs::read(made.path()).unwrap(), bytes);
            let error = made.grow(Size::from_bytes(first)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            // Merged into the smaller disk, by both.
            let mut write = DiskWriter::open(made.path()).unwrap();
            write.write_at(b"end", second - 3).unwrap();
            write.close().unwrap();
            if mode == ImageMode::Expanded && version == FormatVersion::V1 {
                let mut ploop = Ploop::open(made.path()).unwrap();
                ploop.delete_snapshot(before).unwrap();
            } else {
                made.delete_snapshot(before, |_| {}).unwrap();
            }
            assert!(state(&made, second) == expected, "{mode} {version}");
            let mut end = [0; 3];
            let disk = Disk::open(made.path()).unwrap();
            disk.read_at(&mut end, second - 3).unwrap();
            assert_eq!(&end, b"end");
        }
    }
}

#[test]
fn a_snapshot_that_is_smaller_is_gone_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let mut made = image::create(&base, Size::from_mib(4), &CreateOptions::new()).unwrap();
    let small = made.snapshot().unwrap();
    made.grow(Size::from_mib(10)).unwrap();
    made.switch_snapshot(small).unwrap();
    let descriptor = made.descriptor().unwrap();
    assert_eq!(descriptor.size, Size::from_mib(4));
    let top = descriptor.top_image().unwrap();
    assert_eq!(Header::read(&top.file).unwrap().size, Size::from_mib(4));
    assert!(check(made.path()).is_clean());
    assert!(read_whole(&Disk::open(made.path()).unwrap()).len() == 4 << 20);
}

/// libploop leaves the size of the state that was left (A63).
#[test]
fn libploop_goes_back_to_a_snapshot_that_is_smaller() {
    type Way = fn(&mut Ploop, Guid) -> ploop::Result<()>;
    let ways: [Way; 3] = [
        |image, small| image.switch_snapshot(small),
        |image, _| image.delete_top_delta(),
        |image, small| {
            image
                .switch_snapshot_with(small, SwitchFlag::SKIP_CREATE)
                .map(|_| ())
        },
    ];
    for mode in [ImageMode::Expanded, ImageMode::Raw] {
        for way in ways {
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().join("root.hds");
            let options = CreateOptions::new().mode(mode).format(FormatVersion::V1);
            let mut made = image::create(&base, Size::from_mib(4), &options).unwrap();
            let small = made.snapshot().unwrap();
            made.grow(Size::from_mib(10)).unwrap();
            let statistics = dir.path().join(".statfs");
            fs::write(&statistics, [1; 40]).unwrap();
            let mut image = Ploop::open(made.path()).unwrap();
            way(&mut image, small).unwrap();
            assert_eq!(image.descriptor().unwrap().size, Size::from_mib(4));
            assert_eq!(image.image_info().unwrap().size(), Size::from_mib(4));
            let report = check(made.path());
            assert!(report.is_clean(), "{report}");
            assert_eq!(read_whole(&Disk::open(made.path()).unwrap()).len(), 4 << 20);
            // Those of the state that is gone.
            assert!(!statistics.exists());
        }
    }
}

/// Of an image that libploop left so without this crate.
#[test]
fn a_change_by_libploop_mends_the_size_first() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let options = CreateOptions::new().format(FormatVersion::V1);
    let made = image::create(&base, Size::from_mib(4), &options).unwrap();
    let text = fs::read_to_string(made.path()).unwrap();
    let stale = text.replace("<Disk_size>8192<", "<Disk_size>20480<");
    assert_ne!(text, stale);
    fs::write(made.path(), stale).unwrap();
    assert!(!check(made.path()).is_clean());
    let mut image = Ploop::open(made.path()).unwrap();
    image.snapshot().unwrap();
    assert_eq!(image.descriptor().unwrap().size, Size::from_mib(4));
    let report = check(made.path());
    assert!(report.is_clean(), "{report}");
}

/// Killed after the delta was grown.
#[test]
fn the_size_of_the_top_is_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let mut made = image::create(&base, Size::from_mib(4), &CreateOptions::new()).unwrap();
    let before = fs::read(made.path()).unwrap();
    made.grow(Size::from_mib(10)).unwrap();
    fs::write(made.path(), before).unwrap();
    assert!(!check(made.path()).is_clean());
    made.snapshot().unwrap();
    assert_eq!(made.descriptor().unwrap().size, Size::from_mib(10));
    assert!(check(made.path()).is_clean());
}

/// Of a raw disk, only the descriptor that is staged says how large it was to be.
#[test]
fn a_raw_disk_is_grown_or_is_not() {
    for (len, expected) in [(4, 4), (7, 4), (10, 10)] {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("root.hds");
        let options = CreateOptions::new().mode(ImageMode::Raw);
        let mut made = image::create(&base, Size::from_mib(4), &options).unwrap();
        let before = fs::read(made.path()).unwrap();
        made.grow(Size::from_mib(10)).unwrap();
        let staged = dir.path().join("DiskDescriptor.xml.tmp");
        fs::rename(made.path(), &staged).unwrap();
        fs::write(made.path(), before).unwrap();
        let file = fs::File::options().write(true).open(&base).unwrap();
        file.set_len(len << 20).unwrap();
        made.snapshot().unwrap();
        assert_eq!(made.descriptor().unwrap().size, Size::from_mib(expected));
        assert_eq!(fs::metadata(&base).unwrap().len(), expected << 20);
        assert!(!staged.exists());
        assert!(check(made.path()).is_clean());
    }
}
