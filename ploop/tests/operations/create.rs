//! Making images and descriptors.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ploop::image::{Header, ImageKind};
use ploop::{
    ClusterSize, CreateFlags, CreateParam, Descriptor, ErrorKind, FormatVersion, FsType, Guid,
    ImageInfo, ImageMode, Ploop, Size,
};

use super::filled_image::{Delta, FilledImage, names_in, relative};

use crate::refused::refused;

fn cluster(kib: u64) -> ClusterSize {
    ClusterSize::from_bytes(kib << 10).unwrap()
}

#[test]
fn every_mode_in_every_cluster_size() {
    for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
        for kib in [32, 64, 128, 256, 512, 1024, 2048] {
            made(mode, cluster(kib));
        }
    }
    // 24 clusters of each of these are more than a test should allocate.
    for kib in [4096, 8192, 16384, 32768, 65536] {
        made(ImageMode::Expanded, cluster(kib));
    }
}

fn made(mode: ImageMode, cluster: ClusterSize) {
    let mut filled = FilledImage::with(mode, cluster, FormatVersion::V1);
    let size = Size::from_bytes(filled.clusters * cluster.bytes());
    let base = filled.path("root.hds");
    assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
    assert_eq!(filled.ploop.path(), filled.xml());
    assert_eq!(fs::metadata(&base).unwrap().mode() & 0o7777, 0o600);

    let descriptor = filled.ploop.descriptor().unwrap();
    assert_eq!(descriptor, filled.descriptor());
    assert_eq!(descriptor.size, size);
    assert_eq!(descriptor.cluster, cluster);
    assert_eq!(descriptor.mode, mode);
    assert_eq!(descriptor.max_delta_size, None);
    assert_eq!(descriptor.top, Guid::TOP);
    assert_eq!(descriptor.snapshots.len(), 1);
    assert_eq!(descriptor.parent(Guid::TOP), None);
    let [image] = &descriptor.images[..] else {
        panic!("{:?}", descriptor.images)
    };
    assert_eq!(image.file, base);
    let text = fs::read_to_string(filled.xml()).unwrap();
    assert!(text.contains("<File>root.hds</File>"), "{text}");

    let allocated = fs::metadata(&base).unwrap().blocks() * 512;
    match mode {
        ImageMode::Raw => {
            assert_eq!(image.kind, ImageKind::Plain);
            assert_eq!(fs::metadata(&base).unwrap().len(), size.bytes());
        }
        ImageMode::Expanded => {
            assert_eq!(image.kind, ImageKind::Compressed);
            assert!(Delta::open(&base).allocated(filled.clusters).is_empty());
            assert_eq!(fs::metadata(&base).unwrap().len(), cluster.bytes());
        }
        ImageMode::Preallocated => {
            assert_eq!(image.kind, ImageKind::Compressed);
            let all = (0..filled.clusters).collect();
            assert_eq!(Delta::open(&base).allocated(filled.clusters), all);
            assert!(allocated >= size.bytes(), "{allocated}");
        }
    }
    let info = filled.ploop.image_info().unwrap();
    let version = u32::from(mode != ImageMode::Raw);
    let expected = ImageInfo {
        blocks: size.sectors(),
        block_size: cluster.sectors(),
        version,
    };
    assert_eq!(info, expected);
    assert_eq!(info.size(), size);
    assert_eq!(filled.ploop.top_delta_file().unwrap(), base);
    assert_eq!(filled.ploop.base_delta_file().unwrap(), base);
    // Gigabytes of zeroes are not read.
    if cluster.bytes() <= 1 << 20 {
        filled.verify();
        filled.write([(0, 1), (7, 2), (filled.clusters - 1, 3)]);
        filled.verify();
    }
}

#[test]
fn a_size_is_rounded_up_to_whole_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("a"), Size::from_bytes((3 << 20) + 1)).fs(None);
    let ploop = Ploop::create(&param).unwrap();
    assert_eq!(ploop.descriptor().unwrap().size, Size::from_mib(4));
    assert_eq!(
        Header::read(dir.path().join("a")).unwrap().size,
        Size::from_mib(4)
    );
}

/// One sector less than 2 TiB: what version 1 can count.
#[test]
fn the_largest_image_is_as_large_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let max = Size::from_sectors(0xffff_ffff);
    let param = CreateParam::new(dir.path().join("a"), max)
        .fs(None)
        .format(FormatVersion::V1);
    let ploop = Ploop::create(&param).unwrap();
    let size = ploop.descriptor().unwrap().size;
    // The last cluster would pass the limit.
    assert_eq!(max.bytes() - size.bytes(), (1 << 20) - 512);
    assert_eq!(Header::read(dir.path().join("a")).unwrap().size, size);
    assert_eq!(ploop.image_info().unwrap().size(), size);
}

#[test]
fn a_relative_name_starts_at_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::canonicalize(dir.path()).unwrap().join("root.hds");
    let param = CreateParam::new(relative(&file), Size::from_mib(1)).fs(None);
    let ploop = Ploop::create(&param).unwrap();
    assert_eq!(ploop.top_delta_file().unwrap(), file);
    ploop.close();
    let again = Ploop::open(relative(&file.with_file_name("DiskDescriptor.xml"))).unwrap();
    assert_eq!(again.top_delta_file().unwrap(), file);
}

#[test]
fn names_beyond_ascii_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::canonicalize(dir.path()).unwrap().join("диск-ä-磁.hds");
    let mut ploop = Ploop::create(&CreateParam::new(&file, Size::from_mib(1)).fs(None)).unwrap();
    assert_eq!(ploop.top_delta_file().unwrap(), file);
    let guid = ploop.snapshot().unwrap();
    let descriptor = ploop.descriptor().unwrap();
    assert_eq!(descriptor.image(guid).unwrap().file, file);
    for image in &descriptor.images {
        assert!(image.file.is_file(), "{image:?}");
    }
}

/// Version 2, if there is a driver that knows it.
#[test]
fn the_default_version_is_the_driver_s() {
    let expected = match ploop::kernel::is_large_disk_supported() {
        true => FormatVersion::V2,
        false => FormatVersion::V1,
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root.hds");
    let param = CreateParam::new(&file, Size::from_mib(3)).fs(None);
    let mut ploop = Ploop::create(&param).unwrap();
    assert_eq!(Header::read(&file).unwrap().version, expected);
    assert_eq!(ploop.image_info().unwrap().version, expected.number());
    ploop.snapshot().unwrap();
    let top = ploop.top_delta_file().unwrap();
    assert_eq!(Header::read(top).unwrap().version, expected);
}

#[test]
fn version_2_needs_a_driver() {
    if ploop::kernel::is_large_disk_supported() {
        let filled = FilledImage::with(ImageMode::Expanded, ClusterSize::MIN, FormatVersion::V2);
        filled.verify();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("a"), Size::from_mib(1))
        .fs(None)
        .format(FormatVersion::V2);
    refused(Ploop::create(&param), ErrorKind::Unsupported);
    assert!(names_in(dir.path()).is_empty());
}

/// Parameters of a file system are ignored where none is made.
#[test]
fn a_bare_image_ignores_what_is_for_file_systems() {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("a"), Size::from_mib(1))
        .fs(Some(FsType::Ext4))
        .fs(None)
        .fs_block_size(1024)
        .without_partition(true)
        .flags(CreateFlags::NO_LAZY);
    let ploop = Ploop::create(&param).unwrap();
    assert_eq!(ploop.descriptor().unwrap().size, Size::from_mib(1));
}

#[test]
fn a_descriptor_for_a_delta_that_is_there() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(3, 1), (20, 2)]);
    let size = filled.descriptor().size;
    let param = CreateParam::new(filled.path("root.hds"), size)
        .cluster(filled.cluster)
        .fs(None);

    // Beside it, under another name.
    let beside = filled.path("other.xml");
    let ploop = Ploop::create_descriptor(&beside, &param).unwrap();
    assert_eq!(ploop.path(), beside);
    assert_eq!(ploop.top_delta_file().unwrap(), filled.path("root.hds"));
    assert!(
        fs::read_to_string(&beside)
            .unwrap()
            .contains("<File>root.hds</File>")
    );
    assert_eq!(ploop.descriptor().unwrap(), filled.descriptor());

    // In another directory.
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("DiskDescriptor.xml");
    let ploop = Ploop::create_descriptor(&path, &param).unwrap();
    assert_eq!(ploop.descriptor().unwrap(), filled.descriptor());

    // Instead of one that was lost.
    fs::remove_file(filled.xml()).unwrap();
    filled.ploop = Ploop::create_descriptor(filled.xml(), &param).unwrap();
    filled.verify();
    let guid = filled.snapshot();
    filled.write([(3, 9)]);
    filled.verify();
    filled.switch(guid);
    filled.verify();
}

#[test]
fn a_descriptor_for_each_mode() {
    for (mode, kind) in [
        (ImageMode::Expanded, ImageKind::Compressed),
        (ImageMode::Preallocated, ImageKind::Compressed),
        (ImageMode::Raw, ImageKind::Plain),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        // The delta need not be there yet.
        let param = CreateParam::new(dir.join("later.hds"), Size::from_gib(1))
            .mode(mode)
            .cluster(cluster(256))
            .fs(None);
        let path = dir.join("d.xml");
        Ploop::create_descriptor(&path, &param).unwrap();
        let descriptor = Descriptor::open(&path).unwrap();
        assert_eq!(descriptor.mode, mode);
        assert_eq!(descriptor.size, Size::from_gib(1));
        assert_eq!(descriptor.cluster, cluster(256));
        assert_eq!(descriptor.images[0].kind, kind);
        assert_eq!(descriptor.images[0].file, dir.join("later.hds"));
        assert_eq!(names_in(&dir), ["d.xml"]);
    }
}

#[test]
fn flags_that_libploop_does_not_know_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("root.hds");
    let param = CreateParam::new(&file, Size::from_mib(64)).fs(None);
    assert_eq!((param.file(), param.size()), (&*file, Size::from_mib(64)));
    let param = param.flags(CreateFlags::from_bits_retain(0x80) | CreateFlags::NO_LAZY);
    let error = Ploop::create(&param).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().ends_with("the flags 0x80"), "{error}");
    assert!(!file.exists());
}
