//! Look-ups, and settings that are stored in the descriptor.

use std::fs;
use std::path::{Path, PathBuf};

use ploop::image::Header;
use ploop::{
    ClusterSize, ComponentName, Descriptor, ErrorKind, FormatVersion, FsInfo, Guid, ImageMode,
    Ploop, Size, device, fs_info,
};

use super::filled_image::FilledImage;
use crate::line::{is_7, is_since};

#[test]
fn the_limit_of_a_delta_is_stored_and_taken_back() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(3, 1)]);
    let before = filled.descriptor();
    let mut other = Ploop::open(filled.xml()).unwrap();
    for size in [4096, 1, u64::from(u32::MAX) + 1, 12345] {
        filled
            .ploop
            .set_max_delta_size(Size::from_sectors(size))
            .unwrap();
        let mut expected = before.clone();
        expected.max_delta_size = Some(Size::from_sectors(size));
        assert_eq!(filled.descriptor(), expected);
        assert_eq!(other.descriptor().unwrap(), expected);
    }
    // It survives a change by a handle that was opened before it was set.
    let guid = other.snapshot().unwrap();
    filled.took(guid);
    assert_eq!(
        filled.descriptor().max_delta_size,
        Some(Size::from_sectors(12345))
    );
    // Whole sectors are stored; zero is no limit, as in libploop.
    for (limit, stored) in [
        (Some(Size::from_bytes(513)), Some(Size::from_sectors(2))),
        (Some(Size::ZERO), None),
        (Some(Size::MAX), Some(Size::MAX)),
        (None, None),
    ] {
        filled.ploop.set_max_delta_size(limit).unwrap();
        assert_eq!(filled.descriptor().max_delta_size, stored);
    }
    // A handle that still remembers it does not write it back.
    other.switch_snapshot(guid).unwrap();
    filled.went_back_to(guid);
    assert_eq!(filled.descriptor().max_delta_size, None);
    filled.verify();
}

#[test]
fn what_is_no_descriptor_says_what_to_open() {
    let filled = FilledImage::new(ImageMode::Expanded);
    let (xml, base) = (filled.xml(), filled.path("root.hds"));
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
    let mut filled = FilledImage::new(ImageMode::Expanded);
    assert_eq!(filled.ploop.snapshots().unwrap(), []);
    let guids = [filled.snapshot(), filled.snapshot()];
    let listed = filled.ploop.snapshots().unwrap();
    let found: Vec<Guid> = listed.iter().map(|snapshot| snapshot.guid).collect();
    assert_eq!(found, guids);
    assert_eq!(listed[1].parent, guids[0]);
}

/// In one thread a handle can be shared.
#[test]
fn look_ups_need_no_exclusive_handle() {
    let filled = FilledImage::new(ImageMode::Expanded);
    let image: &Ploop = &filled.ploop;
    let other = image.clone();
    assert_eq!(other.path(), image.path());
    for image in [image, &other] {
        assert_eq!(image.descriptor().unwrap(), filled.descriptor());
        assert_eq!(image.top_delta_file().unwrap(), filled.path("root.hds"));
        assert_eq!(image.base_delta_file().unwrap(), filled.path("root.hds"));
        assert_eq!(image.image_info().unwrap().size(), filled.descriptor().size);
        assert_eq!(image.leftovers().unwrap(), [""; 0].map(PathBuf::from));
        assert!(!image.is_mounted().unwrap());
        let error = image.discard_stat().unwrap_err();
        assert!(error.is_not_mounted(), "{error}");
    }
}

#[test]
fn nothing_is_attached() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.snapshot();
    assert!(!filled.ploop.is_mounted().unwrap());
    assert_eq!(filled.ploop.device().unwrap(), None);
    assert!(filled.ploop.devices().unwrap().is_empty());
    let base = filled.path("root.hds");
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
    filled.verify();
}

/// libploop itself answers with what it read when the handle was opened.
#[test]
fn is_mounted_reads_the_descriptor_anew() {
    let filled = FilledImage::new(ImageMode::Expanded);
    assert!(!filled.ploop.is_mounted().unwrap());
    fs::remove_file(filled.xml()).unwrap();
    filled.ploop.is_mounted().unwrap_err();
    filled.ploop.devices().unwrap_err();
}

#[test]
fn a_component_is_the_handles() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let name: ComponentName = "backup".parse().unwrap();
    assert_eq!(filled.ploop.component(), None);
    for component in [
        Some(name.clone()),
        None,
        Some("x".repeat(63).parse().unwrap()),
    ] {
        filled.ploop.set_component(component.clone());
        assert_eq!(filled.ploop.component(), component.as_ref());
        assert_eq!(filled.ploop.device().unwrap(), None);
        assert!(!filled.ploop.is_mounted().unwrap());
        let guid = filled.ploop.snapshot().unwrap();
        filled.took(guid);
    }
    filled.verify();
    // Another handle does not know it.
    filled.ploop.set_component(Some(name));
    assert_eq!(Ploop::open(filled.xml()).unwrap().component(), None);
    let shown = format!("{:?}", filled.ploop);
    assert!(
        shown.contains("backup") && shown.contains("DiskDescriptor.xml"),
        "{shown}"
    );
}

#[test]
fn file_names_follow_the_chain() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    for guid in [guids[0], guids[2], guids[1]] {
        filled.switch(guid);
        assert_eq!(
            filled.ploop.top_delta_file().unwrap(),
            filled.file_of(Guid::TOP)
        );
        assert_eq!(
            filled.ploop.base_delta_file().unwrap(),
            filled.path("root.hds")
        );
    }
}

/// Relative names stay right in an image that is moved; the handle's path does not.
#[test]
fn an_image_can_be_moved() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let place = tempfile::tempdir().unwrap();
    let moved = fs::canonicalize(place.path()).unwrap().join("moved");
    fs::create_dir(&moved).unwrap();
    for name in filled.names() {
        fs::rename(filled.path(&name), moved.join(name)).unwrap();
    }
    filled.ploop.snapshot().unwrap_err();
    let mut ploop = Ploop::open(moved.join("DiskDescriptor.xml")).unwrap();
    assert_eq!(ploop.top_delta_file().unwrap(), moved.join("root.hds"));
    ploop.snapshot().unwrap();
}

#[test]
fn a_descriptor_is_found_through_links() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.xml");
    std::os::unix::fs::symlink(filled.xml(), &link).unwrap();
    let mut ploop = Ploop::open(&link).unwrap();
    assert_eq!(ploop.path(), filled.xml());
    let guid = ploop.snapshot().unwrap();
    filled.took(guid);
    filled.verify();
}

#[test]
fn the_note_of_an_unmount_tells_about_the_file_system() {
    let filled = FilledImage::new(ImageMode::Expanded);
    let numbers: [u64; 5] = [4096, 96_200, 90_001, 24_576, 24_565];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    fs::write(filled.path(".statfs"), &bytes).unwrap();
    let expected = FsInfo {
        block_size: 4096,
        blocks: 96_200,
        blocks_free: 90_001,
        inodes: 24_576,
        inodes_free: 24_565,
    };
    let info = fs_info(filled.xml()).unwrap();
    assert_eq!(info, expected);
    assert_eq!(info.size(), Size::from_bytes(96_200 * 4096));
    assert_eq!(info.free(), Size::from_bytes(90_001 * 4096));
    // A truncated file is ignored: then the image has to be mounted, which takes the driver and a file system. Without a
    // driver libploop's last message is about the file again.
    let driver = ploop::kernel::is_driver_present();
    for len in [0, 39] {
        fs::write(filled.path(".statfs"), &bytes[..len]).unwrap();
        let error = fs_info(filled.xml()).unwrap_err();
        if !driver && is_since([7, 0, 226]) {
            // The crate attaches it first, so that libploop does not rewrite it.
            assert_eq!(error.kind(), ErrorKind::NoDriver, "{error}");
            assert_eq!(
                Header::read(filled.path("root.hds")).unwrap().version,
                FormatVersion::V1
            );
        } else if !driver {
            assert_eq!(error.code(), Some(-1));
            assert!(error.message().contains("statfs"), "{error}");
        }
    }
    // What is behind the numbers does not matter.
    let longer = [&bytes[..], b"x"].concat();
    fs::write(filled.path(".statfs"), longer).unwrap();
    assert_eq!(fs_info(filled.xml()).unwrap(), expected);
    fs::remove_file(filled.path(".statfs")).unwrap();
    let error = fs_info(filled.xml()).unwrap_err();
    assert_eq!(error.kind() == ErrorKind::NoDriver, !driver, "{error}");
}

#[test]
fn the_library_tells_its_limits() {
    let version = ploop::kernel::library_version();
    let line = if is_7() { "7.0." } else { "1." };
    assert!(version.starts_with(line), "{version}");
    let log2 = 6..=17;
    for cluster in log2.map(|log| ClusterSize::from_log2_sectors(log).unwrap()) {
        let max = ploop::kernel::max_size(cluster).unwrap();
        if ploop::kernel::is_large_disk_supported() {
            // 16 TiB, whatever the cluster: ext4 ends there. libploop 7 says 50.
            let terabytes = if is_7() { 50 } else { 16 };
            assert_eq!(max.sectors(), terabytes << 31);
        } else {
            assert_eq!(max.sectors(), 0xffff_ffff);
        }
    }
    assert_eq!(
        ploop::kernel::is_driver_present(),
        Path::new("/proc/vz/ploop_minor").exists()
    );
}
