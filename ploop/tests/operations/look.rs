//! Look-ups, and settings that are stored in the descriptor.

use std::fs;
use std::path::{Path, PathBuf};

use ploop::{
    ClusterSize, ComponentName, Descriptor, ErrorKind, FormatVersion, FsInfo, Guid, ImageMode,
    Ploop, Size, device, fs_info,
};

use super::filled_image::FilledImage;

#[test]
fn the_limit_of_a_delta_is_stored_and_taken_back() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    known.write([(3, 1)]);
    let before = known.descriptor();
    let mut other = Ploop::open(known.xml()).unwrap();
    for size in [4096, 1, u64::from(u32::MAX) + 1, 12345] {
        known
            .ploop
            .set_max_delta_size(Size::from_sectors(size))
            .unwrap();
        let mut expected = before.clone();
        expected.max_delta_size = Some(Size::from_sectors(size));
        assert_eq!(known.descriptor(), expected);
        assert_eq!(other.descriptor().unwrap(), expected);
    }
    // It survives a change by a handle that was opened before it was set.
    let guid = other.snapshot().unwrap();
    known.took(guid);
    assert_eq!(
        known.descriptor().max_delta_size,
        Some(Size::from_sectors(12345))
    );
    // Whole sectors are stored; zero is no limit, as in libploop.
    for (limit, stored) in [
        (Some(Size::from_bytes(513)), Some(Size::from_sectors(2))),
        (Some(Size::ZERO), None),
        (Some(Size::MAX), Some(Size::MAX)),
        (None, None),
    ] {
        known.ploop.set_max_delta_size(limit).unwrap();
        assert_eq!(known.descriptor().max_delta_size, stored);
    }
    // A handle that still remembers it does not write it back.
    other.switch_snapshot(guid).unwrap();
    known.went_back_to(guid);
    assert_eq!(known.descriptor().max_delta_size, None);
    known.verify();
}

#[test]
fn what_is_no_descriptor_says_what_to_open() {
    let known = FilledImage::new(ImageMode::Expanded);
    let (xml, base) = (known.xml(), known.path("root.hds"));
    let directory = xml.parent().unwrap();
    let open = [
        (base.as_path(), "this is a delta, not a descriptor; open "),
        (directory, "this is a directory, not a descriptor; open "),
    ];
    for (path, words) in open {
        let errors = [
            Ploop::open(path).unwrap_err(),
            Descriptor::open(path).unwrap_err(),
            fs_info(path).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.path(), Some(path));
            assert!(error.message().starts_with(words), "{error}");
            assert!(error.message().ends_with("/DiskDescriptor.xml"), "{error}");
        }
    }
    let empty = tempfile::tempdir().unwrap();
    let error = Ploop::open(empty.path()).unwrap_err();
    assert!(error.message().contains("there is no "), "{error}");
}

#[test]
fn snapshots_are_listed_without_the_top() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    assert_eq!(known.ploop.snapshots().unwrap(), []);
    let guids = [known.snapshot(), known.snapshot()];
    let listed = known.ploop.snapshots().unwrap();
    let found: Vec<Guid> = listed.iter().map(|snapshot| snapshot.guid).collect();
    assert_eq!(found, guids);
    assert_eq!(listed[1].parent, guids[0]);
}

/// In one thread a handle can be shared.
#[test]
fn look_ups_need_no_exclusive_handle() {
    let known = FilledImage::new(ImageMode::Expanded);
    let image: &Ploop = &known.ploop;
    let other = image.clone();
    assert_eq!(other.path(), image.path());
    for image in [image, &other] {
        assert_eq!(image.descriptor().unwrap(), known.descriptor());
        assert_eq!(image.top_delta_file().unwrap(), known.path("root.hds"));
        assert_eq!(image.base_delta_file().unwrap(), known.path("root.hds"));
        assert_eq!(image.image_info().unwrap().size(), known.descriptor().size);
        assert_eq!(image.leftovers().unwrap(), [""; 0].map(PathBuf::from));
        assert!(!image.is_mounted().unwrap());
        let error = image.discard_stat().unwrap_err();
        assert!(error.is_not_mounted(), "{error}");
    }
}

#[test]
fn nothing_is_attached() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    known.snapshot();
    assert!(!known.ploop.is_mounted().unwrap());
    assert_eq!(known.ploop.device().unwrap(), None);
    assert!(known.ploop.devices().unwrap().is_empty());
    let base = known.path("root.hds");
    let name: ComponentName = "backup".parse().unwrap();
    assert_eq!(device::find(&base, None).unwrap(), None);
    assert_eq!(device::find(&base, Some(&name)).unwrap(), None);
    assert_eq!(device::find("/no/such/file", None).unwrap(), None);
    for place in ["/", "/proc", "/no/such/place"] {
        assert_eq!(device::by_mount_point(place).unwrap(), None);
        assert_eq!(device::partition_by_mount_point(place).unwrap(), None);
    }
    // No machine has so many.
    assert!(device::mount_point("/dev/ploop999999").is_err());
    assert!(device::top_delta("/dev/ploop999999").is_err());
    known.verify();
}

/// libploop itself answers with what it read when the handle was opened.
#[test]
fn is_mounted_reads_the_descriptor_anew() {
    let known = FilledImage::new(ImageMode::Expanded);
    assert!(!known.ploop.is_mounted().unwrap());
    fs::remove_file(known.xml()).unwrap();
    known.ploop.is_mounted().unwrap_err();
    known.ploop.devices().unwrap_err();
}

#[test]
fn a_component_is_the_handles() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    let name: ComponentName = "backup".parse().unwrap();
    assert_eq!(known.ploop.component(), None);
    for component in [
        Some(name.clone()),
        None,
        Some("x".repeat(63).parse().unwrap()),
    ] {
        known.ploop.set_component(component.clone());
        assert_eq!(known.ploop.component(), component.as_ref());
        assert_eq!(known.ploop.device().unwrap(), None);
        assert!(!known.ploop.is_mounted().unwrap());
        let guid = known.ploop.snapshot().unwrap();
        known.took(guid);
    }
    known.verify();
    // Another handle does not know it.
    known.ploop.set_component(Some(name));
    assert_eq!(Ploop::open(known.xml()).unwrap().component(), None);
    let shown = format!("{:?}", known.ploop);
    assert!(
        shown.contains("backup") && shown.contains("DiskDescriptor.xml"),
        "{shown}"
    );
}

#[test]
fn file_names_follow_the_chain() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    for guid in [guids[0], guids[2], guids[1]] {
        known.switch(guid);
        assert_eq!(
            known.ploop.top_delta_file().unwrap(),
            known.file_of(Guid::TOP)
        );
        assert_eq!(
            known.ploop.base_delta_file().unwrap(),
            known.path("root.hds")
        );
    }
}

/// Relative names stay right in an image that is moved; the handle's path does not.
#[test]
fn an_image_can_be_moved() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    let place = tempfile::tempdir().unwrap();
    let moved = fs::canonicalize(place.path()).unwrap().join("moved");
    fs::create_dir(&moved).unwrap();
    for name in known.names() {
        fs::rename(known.path(&name), moved.join(name)).unwrap();
    }
    known.ploop.snapshot().unwrap_err();
    let mut ploop = Ploop::open(moved.join("DiskDescriptor.xml")).unwrap();
    assert_eq!(ploop.top_delta_file().unwrap(), moved.join("root.hds"));
    ploop.snapshot().unwrap();
}

#[test]
fn a_descriptor_is_found_through_links() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.xml");
    std::os::unix::fs::symlink(known.xml(), &link).unwrap();
    let mut ploop = Ploop::open(&link).unwrap();
    assert_eq!(ploop.path(), known.xml());
    let guid = ploop.snapshot().unwrap();
    known.took(guid);
    known.verify();
}

#[test]
fn the_note_of_an_unmount_tells_about_the_file_system() {
    let known = FilledImage::new(ImageMode::Expanded);
    let numbers: [u64; 5] = [4096, 96_200, 90_001, 24_576, 24_565];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    fs::write(known.path(".statfs"), &bytes).unwrap();
    let expected = FsInfo {
        block_size: 4096,
        blocks: 96_200,
        blocks_free: 90_001,
        inodes: 24_576,
        inodes_free: 24_565,
    };
    let info = fs_info(known.xml()).unwrap();
    assert_eq!(info, expected);
    assert_eq!(info.size(), Size::from_bytes(96_200 * 4096));
    assert_eq!(info.free(), Size::from_bytes(90_001 * 4096));
    // A truncated file is ignored: then the image has to be mounted, which takes the driver and a file system. Without a
    // driver libploop's last message is about the file again.
    let driver = ploop::kernel::is_driver_present();
    for len in [0, 39] {
        fs::write(known.path(".statfs"), &bytes[..len]).unwrap();
        let error = fs_info(known.xml()).unwrap_err();
        if !driver {
            assert_eq!(error.code(), Some(-1));
            assert!(error.message().contains("statfs"), "{error}");
        }
    }
    // What is behind the numbers does not matter.
    let longer = [&bytes[..], b"x"].concat();
    fs::write(known.path(".statfs"), longer).unwrap();
    assert_eq!(fs_info(known.xml()).unwrap(), expected);
    fs::remove_file(known.path(".statfs")).unwrap();
    let error = fs_info(known.xml()).unwrap_err();
    assert_eq!(error.kind() == ErrorKind::NoDriver, !driver, "{error}");
}

#[test]
fn the_library_tells_its_limits() {
    let version = ploop::kernel::library_version();
    assert!(version.starts_with("1."), "{version}");
    let log2 = 6..=17;
    for cluster in log2.map(|log| ClusterSize::from_log2_sectors(log).unwrap()) {
        let max = ploop::kernel::max_size(cluster).unwrap();
        if ploop::kernel::is_large_disk_supported() {
            // 16 TiB, whatever the cluster: ext4 ends there.
            assert_eq!(max.sectors(), 1 << 35);
        } else {
            assert_eq!(max.sectors(), 0xffff_ffff);
        }
    }
    assert_eq!(
        ploop::kernel::is_driver_present(),
        Path::new("/proc/vz/ploop_minor").exists()
    );
}
