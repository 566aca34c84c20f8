//! What can be asked of images, devices and the driver, and settings of running images.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ploop::{
    ClusterSize, Code, ErrorKind, FormatVersion, ImageMode, MountParam, Ploop, Size, device,
    fs_info, kernel,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, partition, refused};
use crate::fixture::harness::Test;
use crate::fixture::line::{is_since, refuses_full_deltas};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            the_driver_is_there,
            the_device_of_an_image,
            the_device_of_a_mount,
            the_file_system,
            a_clone_is_read,
            the_disk,
            a_limit_for_deltas,
            a_conversion;
    ]
}

fn the_driver_is_there() {
    assert!(kernel::is_driver_present());
    assert!(kernel::is_large_disk_supported());
    // What a file system can have, whatever a disk without one could.
    let most = match is_since([7, 0, 120]) {
        true => 50 << 40,
        false => 16 << 40,
    };
    for cluster in [ClusterSize::MIN, ClusterSize::DEFAULT, ClusterSize::MAX] {
        assert_eq!(kernel::max_size(cluster).unwrap().bytes(), most);
    }
    // The modules are loaded or built in; where they are neither, a stand-in is at work.
    if let Err(error) = kernel::load_kernel_modules() {
        let kinds = [ErrorKind::NoDriver, ErrorKind::Tool];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}

fn the_device_of_an_image() {
    let (mut container, mut image) = Container::new(SIZE);
    let base = container.base();
    assert_eq!(image.device().unwrap(), None);
    assert_eq!(device::find(&base, None).unwrap(), None);
    assert_detached(&mut image);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 1 << 20);
    let device = Some(mounted.device.clone());
    assert_eq!(image.device().unwrap(), device);
    assert_eq!(
        image.devices().unwrap(),
        std::slice::from_ref(&mounted.device)
    );
    assert_eq!(device::find(&base, None).unwrap(), device);
    assert!(image.is_mounted().unwrap());
    // Another handle, and the base alone tells: not a delta above.
    image.snapshot().unwrap();
    let mut other = Ploop::open(image.path()).unwrap();
    assert!(other.is_mounted().unwrap());
    assert_eq!(other.device().unwrap(), device);
    assert_eq!(device::find(&base, None).unwrap(), device);
    let top = image.top_delta_file().unwrap();
    assert_eq!(device::find(&top, None).unwrap(), None);
    let running = device::top_delta(&mounted.device).unwrap();
    assert_eq!((running.file, &*running.format), (top, "ploop1"));
    assert_eq!(device::find(container.path("missing"), None).unwrap(), None);
    container.verify(&["a"]);
    image.umount().unwrap();
    assert_eq!(device::find(&base, None).unwrap(), None);
    assert_detached(&mut other);
    // A stopped device has no top, or another image's.
    match device::top_delta(&mounted.device) {
        Ok(other) => assert!(!other.file.starts_with(base.parent().unwrap())),
        Err(error) => assert!(error.code().is_some(), "{error}"),
    }
    container.verify_image(&mut image, &["a"]);
}

fn the_device_of_a_mount() {
    let (mut container, mut image) = Container::new(SIZE);
    let target = container.target();
    let nothing: Option<PathBuf> = None;
    assert_eq!(device::by_mount_point(&target).unwrap(), nothing);
    assert_eq!(device::partition_by_mount_point(&target).unwrap(), nothing);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 1 << 20);
    let device = &mounted.device;
    assert_eq!(
        device::by_mount_point(&target).unwrap().as_ref(),
        Some(device)
    );
    assert_eq!(
        device::partition_by_mount_point(&target).unwrap(),
        Some(partition(device))
    );
    assert_eq!(device::mount_point(device).unwrap(), Some(target.clone()));
    for elsewhere in [Path::new("/"), &container.path("missing")] {
        assert_eq!(device::by_mount_point(elsewhere).unwrap(), nothing);
        assert_eq!(
            device::partition_by_mount_point(elsewhere).unwrap(),
            nothing
        );
    }
    container.verify(&["a"]);
    image.umount().unwrap();
    assert_ne!(device::mount_point(device).unwrap(), Some(target.clone()));
    assert_eq!(device::by_mount_point(&target).unwrap(), nothing);
    device::mount_point("/dev/ploop999999999").unwrap_err();
    device::fs_info("/dev/ploop999999999").unwrap_err();
    container.verify_image(&mut image, &["a"]);
}

fn the_file_system() {
    let (mut container, mut image) = Container::new(SIZE);
    let path = image.path().to_owned();
    let note = container.path(".statfs");
    // A new one is mounted once, which leaves a note.
    assert!(!note.exists());
    let new = fs_info(&path).unwrap();
    assert!(note.exists());
    assert_detached(&mut image);
    assert!(new.size() > Size::from_mib(100) && new.size() < SIZE);
    assert_eq!(new.block_size, 4096);
    assert!(new.inodes > new.inodes_free && new.inodes_free > 10_000);
    // A running one is asked itself.
    let mounted = image.mount(&container.param()).unwrap();
    assert!(!note.exists());
    let before = fs_info(&path).unwrap();
    container.write("a", 20 << 20);
    let after = fs_info(&path).unwrap();
    assert_eq!(before.blocks, after.blocks);
    assert!((5120..5200).contains(&(before.blocks_free - after.blocks_free)));
    assert_eq!(before.inodes_free - 1, after.inodes_free);
    assert_eq!(device::fs_info(&mounted.device).unwrap(), after);
    // One that does not run: by the note, which is the last word even where the image is gone.
    image.umount().unwrap();
    assert_eq!(fs_info(&path).unwrap(), after);
    assert_eq!(fs_info(container.path("missing.xml")).unwrap(), after);
    // Without it, it is mounted once.
    std::fs::remove_file(&note).unwrap();
    assert_eq!(fs_info(&path).unwrap(), after);
    assert!(note.exists());
    assert_detached(&mut image);
    assert!(!container.path("root.hdd.mnt").exists());
    container.verify_image(&mut image, &["a"]);
    // Attached alone, it has none.
    std::fs::remove_file(&note).unwrap();
    let attached = image.mount(&MountParam::new()).unwrap();
    refused(fs_info(&path), ErrorKind::NotMounted, Code::CREAT);
    let error = device::fs_info(&attached.device).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotMounted, "{error}");
    image.umount().unwrap();
    drop(mounted);
    container.verify_image(&mut image, &["a"]);
}

/// While the image runs, and when it does not.
fn a_clone_is_read() {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("a", 1 << 20);
    let guid = image.snapshot().unwrap();
    container.write("b", 1 << 20);
    let elsewhere = tempfile::tempdir().unwrap();
    let mut clone = image.clone_descriptor(guid, elsewhere.path()).unwrap();
    image.umount().unwrap();
    let before = std::fs::read(image.base_delta_file().unwrap()).unwrap();
    let view = container.view();
    let read_only = MountParam::new().target(&view).read_only(true);
    let guard = clone.mount_guard(&read_only).unwrap();
    container.verify_at(&view, &["a"]);
    guard.umount().unwrap();
    let error = clone.mount(&MountParam::new().target(&view)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(std::fs::read(image.base_delta_file().unwrap()).unwrap() == before);
    container.verify_image(&mut image, &["a", "b"]);
}

fn the_disk() {
    let (mut container, mut image) = Container::made(SIZE, |param| {
        param.format(FormatVersion::V1).cluster(ClusterSize::MIN)
    });
    let before = image.image_info().unwrap();
    assert_eq!(
        (before.size(), before.block_size, before.version),
        (SIZE, 64, 1)
    );
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 1 << 20);
    assert_eq!(guard.image_info().unwrap(), before);
    guard.snapshot().unwrap();
    assert_eq!(guard.image_info().unwrap(), before);
    container.verify(&["a"]);
    guard.umount().unwrap();
    assert_eq!(image.image_info().unwrap(), before);
    container.verify_image(&mut image, &["a"]);
}

fn a_limit_for_deltas() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 1 << 20);
    // As the descriptor has it, and the driver too: sectors.
    let limit = Size::from_gib(1);
    guard.set_max_delta_size(limit).unwrap();
    let stored = guard.descriptor().unwrap().max_delta_size;
    assert_eq!(stored, Some(limit));
    container.write("b", 20 << 20);
    container.verify(&["a", "b"]);
    // None at all is none at all to the driver (A18).
    let error = refused(guard.set_max_delta_size(None), ErrorKind::Busy, Code::PARAM);
    assert!(error.message().contains("/dev/ploop"), "{error}");
    container.write("c", 20 << 20);
    guard.umount().unwrap();
    // Passed on at the next mount.
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("d", 1 << 20);
    guard.snapshot().unwrap();
    container.write("e", 1 << 20);
    let all = ["a", "b", "c", "d", "e"];
    container.verify(&all);
    guard.umount().unwrap();
    image.set_max_delta_size(None).unwrap();
    assert_eq!(image.descriptor().unwrap().max_delta_size, None);
    container.verify_image(&mut image, &all);
    // One that is reached fails what is written.
    let mut guard = image.mount_guard(&container.param()).unwrap();
    guard.set_max_delta_size(Size::from_mib(10)).unwrap();
    let file = File::create(container.target().join("f")).unwrap();
    let written = (&file)
        .write_all(&[7; 30 << 20])
        .and_then(|()| file.sync_all());
    written.unwrap_err();
    drop(file);
    guard.umount().unwrap();
    image.set_max_delta_size(None).unwrap();
    container.verify_whole();
    // What was there before is whole.
    let guard = image.mount_guard(&container.param().fsck(true)).unwrap();
    let _ = std::fs::remove_file(container.target().join("f"));
    container.verify(&all);
    guard.umount().unwrap();
}

/// Of an image with a file system: refused while it runs, and the same files afterwards.
fn a_conversion() {
    for mode in [ImageMode::Preallocated, ImageMode::Raw] {
        let (mut container, mut image) = Container::new(SIZE);
        let mut guard = image.mount_guard(&container.param()).unwrap();
        container.write("a", 5 << 20);
        refused(guard.convert(mode), ErrorKind::Busy, Code::PARAM);
        container.verify(&["a"]);
        guard.snapshot().unwrap();
        container.write("b", 5 << 20);
        guard.umount().unwrap();
        image.convert(mode).unwrap();
        assert_eq!(image.descriptor().unwrap().mode, mode);
        if mode == ImageMode::Raw && container.is_refused_as_raw(&mut image) {
            continue;
        }
        if mode == ImageMode::Preallocated && refuses_full_deltas(&container.path("")) {
            let error = image.mount(&container.param()).unwrap_err();
            assert_eq!(error.code(), Some(Code::PLOOPFMT.get()), "{error}");
            container.verify_whole();
            continue;
        }
        container.verify_image(&mut image, &["a", "b"]);
        let guard = image.mount_guard(&container.param()).unwrap();
        container.write("c", 5 << 20);
        guard.umount().unwrap();
        container.verify_image(&mut image, &["a", "b", "c"]);
    }
}
