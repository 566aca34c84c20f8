//! Attaching and mounting: parameters, names, guards, refusals.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use ploop::image::{Header, check};
use ploop::{
    Code, ComponentName, DiscardParam, ErrorKind, Guid, ImageMode, MountFlags, MountParam,
    OwnedMountGuard, Ploop, ResizeMode, Size, SwitchFlag, device,
};

use tempfile::TempDir;

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, debugfs, partition, refused, tool};
use crate::fixture::directory::Contents;
use crate::fixture::harness::Test;
use crate::fixture::line::{self, by_line};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            a_guard_unmounts,
            a_guard_with_the_handle_in_it,
            a_guard_unmounts_nothing_else,
            a_guard_unmounts_after_a_panic_and_under_its_name,
            without_target_it_is_attached_alone,
            a_read_only_mount_writes_nothing,
            options_reach_the_file_system,
            options_the_kernel_refuses_leave_nothing_attached,
            quota_is_journalled,
            a_damaged_file_system_is_mended,
            a_lost_file_system_is_refused,
            names_tell_attachments_apart,
            a_mounted_image_is_left_alone,
            a_busy_file_system_stays_mounted,
            a_snapshot_is_mounted_beside_the_top,
            a_leaf_is_written_to,
            what_is_not_there_is_not_mounted,
            an_image_left_in_use_by_a_crash_is_mended,
            a_device_is_unmounted_by_its_name,
            no_link_beside_the_image_is_followed,
            no_mount_hides_the_image,
            deltas_by_another_path_are_no_orphans;
    ]
}

fn a_guard_unmounts() {
    let (mut container, mut image) = Container::new(SIZE);
    {
        let guard = image.mount_guard(&container.param().fsck(true)).unwrap();
        let device = guard.mounted().device.clone();
        assert!(device.metadata().unwrap().file_type().is_block_device());
        assert_eq!(guard.mounted().fsck, Some(0));
        assert_eq!(guard.mounted().target, Some(container.target()));
        assert!(Header::read(container.base()).unwrap().in_use);
        assert!(!container.path(".statfs").exists());
        container.write("file", 1 << 20);
        assert!(guard.is_mounted().unwrap());
    }
    assert_detached(&mut image);
    assert!(!Header::read(container.base()).unwrap().in_use);
    assert!(container.path(".statfs").exists());
    container.verify_image(&mut image, &["file"]);
    let kept = image.mount_guard(&container.param()).unwrap().keep();
    assert!(image.is_mounted().unwrap());
    assert_eq!(image.device().unwrap(), Some(kept.device));
    container.verify(&["file"]);
    image.umount().unwrap();
    assert_detached(&mut image);
}

/// In a struct of the program's own, moved to another thread, and given back by a failed unmount.
fn a_guard_with_the_handle_in_it() {
    struct Volume {
        mount: OwnedMountGuard,
    }
    let (mut container, image) = Container::new(SIZE);
    let mount = image.into_mount_guard(&container.param()).unwrap();
    let mut volume = Volume { mount };
    container.write("a", 1 << 20);
    volume.mount.snapshot().unwrap();
    // The image is mounted already: the handle comes back.
    let second = volume.mount.clone();
    let failed = second.into_mount_guard(&container.param()).unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Busy, "{failed}");
    let second = failed.value;
    assert!(second.is_mounted().unwrap());

    let open = File::open(container.target().join("a")).unwrap();
    let failed = std::thread::spawn(move || volume.mount.umount().unwrap_err())
        .join()
        .unwrap();
    assert_eq!(failed.error.kind(), ErrorKind::Busy, "{failed}");
    drop(open);
    container.verify(&["a"]);
    let image = failed.value.umount().unwrap();
    assert!(!image.is_mounted().unwrap());

    // Dropped, and kept.
    let mount = image.into_mount_guard(&container.param()).unwrap();
    drop(mount);
    assert!(!second.is_mounted().unwrap());
    let mount = second.into_mount_guard(&container.param()).unwrap();
    let (mut image, kept) = mount.keep();
    assert_eq!(image.device().unwrap().as_ref(), Some(&kept.device));
    image.umount().unwrap();
    let mount = image.into_mount_guard(&container.param()).unwrap();
    // Nobody's handle is needed to unmount it in the end.
    drop(mount);
    let mut image = Ploop::open(container.descriptor()).unwrap();
    assert!(!image.is_mounted().unwrap());
    container.verify_image(&mut image, &["a"]);
}

/// Neither that of a handle put in the place of its own, nor in a forked child.
fn a_guard_unmounts_nothing_else() {
    let (container, image) = Container::new(SIZE);
    let (other, mut other_image) = Container::new(SIZE);
    other_image.mount(&other.param()).unwrap();
    let mut mount = image.into_mount_guard(&container.param()).unwrap();
    *mount = other_image.clone();
    // SAFETY: the child drops the guard, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(mount);
        // SAFETY: ends this process, and runs nothing of the parent's.
        unsafe { libc::_exit(0) }
    }
    let mut status = 1;
    // SAFETY: the status outlives the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    let image = Ploop::open(container.descriptor()).unwrap();
    assert!(image.is_mounted().unwrap());
    drop(mount);
    assert!(!image.is_mounted().unwrap());
    assert!(other_image.is_mounted().unwrap());
    other_image.umount().unwrap();
}

fn a_guard_unmounts_after_a_panic_and_under_its_name() {
    let (mut container, mut image) = Container::new(SIZE);
    let param = container.param();
    let write = &mut container;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = image.mount_guard(&param).unwrap();
        write.write("file", 1 << 20);
        // Without the message of a panic.
        std::panic::resume_unwind(Box::new("panic"));
    }));
    assert!(panicked.is_err());
    assert_detached(&mut image);
    // The handle's name may change meanwhile.
    let name = ComponentName::new("first").unwrap();
    let mut guard = image
        .mount_guard(&container.param().component(name.clone()))
        .unwrap();
    guard.set_component(Some(ComponentName::new("second").unwrap()));
    assert_eq!(guard.device().unwrap(), None);
    container.verify(&["file"]);
    guard.umount().unwrap();
    assert_eq!(image.component(), Some(&name));
    image.set_component(None);
    assert_detached(&mut image);
    container.verify_image(&mut image, &["file"]);
}

fn without_target_it_is_attached_alone() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    let device = guard.mounted().device.clone();
    assert_eq!(guard.mounted().target, None);
    assert!(guard.is_mounted().unwrap());
    assert_eq!(device::mount_point(&device).unwrap(), None);
    // Ours to read and write, as any block device.
    let disk = File::options().read(true).write(true).open(&device);
    let disk = disk.unwrap();
    let mut sector = [0; 512];
    disk.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(&sector[..8], b"EFI PART");
    // Between the table and the partition.
    disk.write_all_at(&[7; 4096], 512 << 10).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    let mut magic = [0; 2];
    let file_system = File::open(partition(&device)).unwrap();
    file_system.read_exact_at(&mut magic, 1024 + 56).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
    drop(file_system);
    guard.umount().unwrap();
    let disk = ploop::image::Disk::open(container.descriptor()).unwrap();
    let mut written = [0; 4096];
    disk.read_at(&mut written, 512 << 10).unwrap();
    assert_eq!(written, [7; 4096]);
    // fsck works without target.
    let mounted = image.mount(&MountParam::new().fsck(true)).unwrap();
    assert_eq!((mounted.fsck, mounted.target), (Some(0), None));
    image.umount().unwrap();
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    drop(guard);
    container.verify_image(&mut image, &["file"]);
}

fn a_read_only_mount_writes_nothing() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    let before = fs::read(container.base()).unwrap();
    let mut guard = image
        .mount_guard(&container.param().read_only(true))
        .unwrap();
    container.verify(&["file"]);
    assert!(container.mount_options().contains(&"ro".to_owned()));
    let error = fs::write(container.target().join("new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(!Header::read(container.base()).unwrap().in_use);
    let device = guard.mounted().device.clone();
    let name = device.file_name().unwrap().to_str().unwrap();
    let shown = |file: &str| fs::read_to_string(format!("/sys/block/{name}/{file}")).unwrap();
    assert_eq!(shown("ro"), "1\n");
    // A snapshot is taken, and its new top is not written to either.
    guard.snapshot().unwrap();
    assert_eq!(
        ["ro", "pstate/top", "pdelta/0/ro", "pdelta/1/ro"].map(shown),
        ["1\n", "1\n", "1\n", "0\n"]
    );
    let error = fs::write(container.target().join("new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    container.verify(&["file"]);
    let descriptor = guard.descriptor().unwrap();
    assert_eq!(descriptor.images.len(), 2);
    let top = &descriptor.top_image().unwrap().file;
    assert!(Header::read(top).unwrap().in_use);
    guard.umount().unwrap();
    assert!(!Header::read(top).unwrap().in_use);
    assert!(fs::read(container.base()).unwrap() == before);
    container.verify_image(&mut image, &["file"]);
    // From the next mount on it is.
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("new", 1 << 20);
    guard.umount().unwrap();
    assert!(fs::read(container.base()).unwrap() == before);
    container.verify_image(&mut image, &["file", "new"]);
}

fn options_reach_the_file_system() {
    let (mut container, mut image) = Container::new(SIZE);
    let param = container
        .param()
        .flags(MountFlags::NOATIME)
        .data("commit=17,errors=continue");
    let guard = image.mount_guard(&param).unwrap();
    let options = container.mount_options();
    for expected in ["noatime", "commit=17", "errors=continue"] {
        assert!(options.iter().any(|o| o == expected), "{options:?}");
    }
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
    // As long as they may be.
    let long = format!("commit=3{}", ",commit=17".repeat(89));
    let guard = image.mount_guard(&container.param().data(&long)).unwrap();
    assert!(container.mount_options().contains(&"commit=17".to_owned()));
    container.verify(&["file"]);
    guard.umount().unwrap();
}

fn options_the_kernel_refuses_leave_nothing_attached() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    for data in ["no_such_option", "commit=many"] {
        let error = refused(
            image.mount(&container.param().data(data)),
            ErrorKind::Other,
            Code::MOUNT,
        );
        assert!(error.message().contains(data), "{error}");
        assert_detached(&mut image);
        assert!(fs::read_dir(container.target()).unwrap().next().is_none());
    }
    container.verify_image(&mut image, &["file"]);
}

fn quota_is_journalled() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param().quota(true)).unwrap();
    let options = container.mount_options();
    for expected in [
        "usrjquota=aquota.user",
        "grpjquota=aquota.group",
        "jqfmt=vfsv0",
    ] {
        assert!(options.iter().any(|o| o == expected), "{options:?}");
    }
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_damaged_file_system_is_mended() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    let device = guard.mounted().device.clone();
    debugfs(&device, "set_inode_field /file links_count 9");
    debugfs(&device, "set_super_value state 2");
    guard.umount().unwrap();
    let mounted = image.mount(&container.param().fsck(true)).unwrap();
    assert_eq!(mounted.fsck, Some(1));
    container.verify(&["file"]);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_lost_file_system_is_refused() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    // Its superblock, exchanged for zeroes and put back.
    let exchange = |image: &mut Ploop, new: &[u8]| {
        let guard = image.mount_guard(&MountParam::new()).unwrap();
        let partition = partition(&guard.mounted().device);
        let device = File::options().read(true).write(true).open(partition);
        let device = device.unwrap();
        let mut old = vec![0; 4096];
        device.read_exact_at(&mut old, 0).unwrap();
        device.write_all_at(new, 0).unwrap();
        device.sync_all().unwrap();
        drop(device);
        guard.umount().unwrap();
        old
    };
    let old = exchange(&mut image, &[0; 4096]);
    refused(
        image.mount(&container.param().fsck(true)),
        ErrorKind::Corrupt,
        Code::FSCK,
    );
    assert_detached(&mut image);
    refused(
        image.mount(&container.param()),
        ErrorKind::Other,
        Code::MOUNT,
    );
    assert_detached(&mut image);
    refused(
        image.mount(&MountParam::new().fsck(true)),
        ErrorKind::Corrupt,
        Code::FSCK,
    );
    assert_detached(&mut image);
    exchange(&mut image, &old);
    container.verify_image(&mut image, &["file"]);
}

fn names_tell_attachments_apart() {
    let (mut container, mut image) = Container::new(SIZE);
    // The longest there can be.
    let name = ComponentName::new("x".repeat(ComponentName::MAX_LEN)).unwrap();
    let mut guard = image
        .mount_guard(&container.param().component(name.clone()))
        .unwrap();
    let device = guard.mounted().device.clone();
    container.write("file", 1 << 20);
    assert_eq!(guard.device().unwrap(), Some(device.clone()));
    assert_eq!(guard.devices().unwrap(), std::slice::from_ref(&device));
    assert_eq!(
        device::find(container.base(), Some(&name)).unwrap(),
        Some(device)
    );
    // Nobody else's name finds it, and the other attachment is not this one.
    assert_eq!(device::find(container.base(), None).unwrap(), None);
    let other = ComponentName::new("x").unwrap();
    assert_eq!(device::find(container.base(), Some(&other)).unwrap(), None);
    assert!(!guard.is_mounted().unwrap());
    let mut unnamed = Ploop::open(container.descriptor()).unwrap();
    refused(
        unnamed.umount(),
        ErrorKind::NotMounted,
        Code::DEV_NOT_MOUNTED,
    );
    let again = container.param().component(name);
    refused(guard.mount(&again), ErrorKind::Busy, Code::MOUNT);
    container.verify(&["file"]);
    // What is written to under one name is not attached under another.
    for param in [
        MountParam::new(),
        MountParam::new().component(other.clone()),
        MountParam::new().component(other).read_only(true),
    ] {
        let error = unnamed.mount(&param).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(Header::read(container.base()).unwrap().in_use);
        assert_eq!(unnamed.component(), None);
    }
    container.write("more", 1 << 20);
    guard.umount().unwrap();
    assert!(image.component().is_some());
    assert_detached(&mut unnamed);
    container.verify_image(&mut unnamed, &["file", "more"]);
}

fn a_mounted_image_is_left_alone() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    refused(
        guard.mount(&container.param()),
        ErrorKind::Busy,
        Code::MOUNT,
    );
    for error in [
        guard
            .resize(Size::from_mib(400), ResizeMode::Offline)
            .unwrap_err(),
        guard.delete_top_delta().unwrap_err(),
        guard.delete_snapshot(Guid::TOP).unwrap_err(),
        guard.convert(ImageMode::Raw).unwrap_err(),
        guard.convert(ImageMode::Preallocated).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(error.code(), Some(Code::PARAM.get()), "{error}");
    }
    container.verify(&["file"]);
    let snapshot = guard.snapshot().unwrap();
    for flags in [
        SwitchFlag::empty(),
        SwitchFlag::SKIP_CREATE,
        SwitchFlag::SKIP_DESTROY,
    ] {
        let result = guard.switch_snapshot_with(snapshot, flags);
        refused(result, ErrorKind::Busy, Code::PARAM);
        assert!(guard.top_delta_file().unwrap().exists());
    }
    refused(guard.delete_top_delta(), ErrorKind::Busy, Code::PARAM);
    container.write("more", 1 << 20);
    container.verify(&["file", "more"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file", "more"]);
}

fn a_busy_file_system_stays_mounted() {
    let (mut container, mut image) = Container::new(SIZE);
    if line::is_7() {
        // It tries for longer if it is not told.
        let timeout = Some(Duration::from_secs(7));
        image.set_umount_timeout(timeout).unwrap();
    }
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let open = File::open(container.target().join("file")).unwrap();
    let begin = Instant::now();
    let code = by_line(Code::UMOUNT, Code::UMOUNT_BUSY);
    refused(guard.umount(), ErrorKind::Busy, code);
    let waited = begin.elapsed();
    // It tries for some seconds; on a busy machine they take longer.
    assert!(waited >= Duration::from_secs(6), "{waited:?}");
    assert!(image.is_mounted().unwrap());
    container.verify(&["file"]);
    container.write("more", 1 << 20);
    drop(open);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file", "more"]);
}

fn a_snapshot_is_mounted_beside_the_top() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 1 << 20);
    let snapshot = guard.snapshot().unwrap();
    container.write("new", 1 << 20);

    let view = container.view();
    let mut other = Ploop::open(guard.path()).unwrap();
    let writable = MountParam::new().snapshot(snapshot).target(&view);
    // It has children; and without a name it is the image that is mounted.
    refused(other.mount(&writable), ErrorKind::InvalidInput, Code::PARAM);
    let read_only = writable.clone().read_only(true);
    refused(other.mount(&read_only), ErrorKind::Busy, Code::MOUNT);
    let component = ComponentName::new("view").unwrap();
    refused(
        other.mount(&writable.component(component.clone())),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    assert_eq!(other.component(), None);
    let second = other
        .mount_guard(&read_only.component(component.clone()))
        .unwrap();
    assert_eq!(second.component(), Some(&component));
    container.verify_at(&view, &["old"]);
    container.verify(&["new", "old"]);
    assert_eq!(guard.devices().unwrap().len(), 2);
    // A second view of the same.
    let third_view = container.path("third");
    fs::create_dir(&third_view).unwrap();
    let third_name = ComponentName::new("third").unwrap();
    let mut third = Ploop::open(guard.path()).unwrap();
    let third = third
        .mount_guard(
            &MountParam::new()
                .snapshot(snapshot)
                .read_only(true)
                .component(third_name)
                .target(&third_view),
        )
        .unwrap();
    container.verify_at(&third_view, &["old"]);
    third.umount().unwrap();

    refused(
        guard.delete_snapshot(snapshot),
        ErrorKind::Busy,
        Code::EBUSY,
    );
    container.verify_at(&view, &["old"]);
    container.write("newest", 1 << 20);
    second.umount().unwrap();
    guard.delete_snapshot(snapshot).unwrap();
    container.verify(&["new", "newest", "old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "newest", "old"]);
}

/// A snapshot without children can be written to.
fn a_leaf_is_written_to() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("base", 1 << 20);
    guard.umount().unwrap();
    let base = image.snapshot().unwrap();
    let leaf = image
        .switch_snapshot_with(base, SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    let param = container.param().snapshot(leaf);
    let guard = image.mount_guard(&param).unwrap();
    container.write("leaf", 1 << 20);
    container.verify(&["base", "leaf"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["base"]);
    let guard = image.mount_guard(&param.read_only(true)).unwrap();
    container.verify(&["base", "leaf"]);
    guard.umount().unwrap();
    image.switch_snapshot(leaf).unwrap();
    container.verify_image(&mut image, &["base", "leaf"]);
}

fn what_is_not_there_is_not_mounted() {
    let (mut container, mut image) = Container::new(SIZE);
    let unknown = MountParam::new().snapshot(Guid::generate());
    refused(image.mount(&unknown), ErrorKind::NoSnapshot, Code::NOSNAP);
    refused(
        image.mount(&MountParam::new().target(container.path("missing"))),
        ErrorKind::NotFound,
        None,
    );
    refused(
        image.mount(&MountParam::new().target(container.base())),
        ErrorKind::InvalidInput,
        None,
    );
    refused(image.umount(), ErrorKind::NotMounted, Code::DEV_NOT_MOUNTED);
    assert_detached(&mut image);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

/// A copy of the files of a running image is what a power cut leaves.
fn an_image_left_in_use_by_a_crash_is_mended() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 5 << 20);
    let crashed = container.path("crashed");
    fs::create_dir(&crashed).unwrap();
    for name in ["root.hdd", "DiskDescriptor.xml"] {
        fs::copy(container.path(name), crashed.join(name)).unwrap();
    }
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
    let copy = crashed.join("root.hdd");
    assert!(Header::read(&copy).unwrap().in_use);
    let mut image = Ploop::open(crashed.join("DiskDescriptor.xml")).unwrap();
    refused(image.image_info(), ErrorKind::Busy, Code::OPEN);
    let param = container.param().fsck(true);
    let guard = image.mount_guard(&param).unwrap();
    container.verify(&["file"]);
    guard.umount().unwrap();
    assert!(!Header::read(&copy).unwrap().in_use);
    assert_eq!(image.image_info().unwrap().size(), SIZE);
    let report = ploop::image::check(image.path());
    assert!(report.is_sound(), "{report}");
}

fn a_device_is_unmounted_by_its_name() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("file", 1 << 20);
    device::umount(&mounted.device).unwrap();
    assert_detached(&mut image);
    // No note is left. (Once more would be no error, but the device may be another test's by now.)
    assert!(!container.path(".statfs").exists());
    refused(
        device::umount("/dev/ploop999999999"),
        ErrorKind::NoDriver,
        Code::DEVICE,
    );
    refused(device::umount("/dev/null"), ErrorKind::InvalidInput, None);
    container.verify_image(&mut image, &["file"]);
}

/// libploop notes the size of the file system in `.statfs` when it unmounts, and mounts for itself on a
/// directory beside the base.
fn no_link_beside_the_image_is_followed() {
    let (mut container, mut image) = Container::new(SIZE);
    let elsewhere = TempDir::new().unwrap();
    let precious = elsewhere.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let before = Contents::of(elsewhere.path());

    image.mount(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let note = container.path(".statfs");
    symlink(&precious, &note).unwrap();
    let error = image.umount().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(error.path(), Some(&*note), "{error}");
    fs::remove_file(&note).unwrap();
    image.umount().unwrap();

    fs::remove_file(&note).unwrap();
    let mount_point = container.path("root.hdd.mnt");
    symlink(elsewhere.path(), &mount_point).unwrap();
    let by_itself = [
        image.resize(Size::from_mib(400), ResizeMode::Online),
        image.discard(&DiscardParam::new().automount(true)),
        ploop::fs_info(image.path()).map(drop),
    ];
    for result in by_itself {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.path(), Some(&*mount_point), "{error}");
    }
    before.assert_unchanged("links beside the image");
    fs::remove_file(&mount_point).unwrap();
    container.verify_image(&mut image, &["file"]);
}

/// It could not be unmounted any more: its descriptor would lie below the mount.
fn no_mount_hides_the_image() {
    let (mut container, mut image) = Container::new(SIZE);
    let own = container.path("");
    let param = |target: &Path| MountParam::new().target(target);
    let bound = TempDir::new().unwrap();
    let names = [own.to_str().unwrap(), bound.path().to_str().unwrap()];
    tool("mount", &["--bind", names[0], names[1]]);
    let results = [&*own, own.parent().unwrap(), Path::new("/"), bound.path()]
        .map(|target| image.mount(&param(target)));
    tool("umount", &[names[1]]);
    for result in results {
        refused(result, ErrorKind::InvalidInput, None);
    }
    assert_detached(&mut image);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

/// The descriptor names them by the path of the directory, which is read by that of a bind mount.
fn deltas_by_another_path_are_no_orphans() {
    let (mut container, mut image) = Container::new(SIZE);
    image.snapshot().unwrap();
    let own = container.path("");
    let xml = fs::read_to_string(image.path()).unwrap();
    let absolute = xml.replace("<File>", &format!("<File>{}", own.display()));
    fs::write(image.path(), &absolute).unwrap();
    let bound = TempDir::new().unwrap();
    let names = [own.to_str().unwrap(), bound.path().to_str().unwrap()];
    tool("mount", &["--bind", names[0], names[1]]);
    let by_bind = bound.path().join("DiskDescriptor.xml");
    let orphans = check(&by_bind).orphans;
    let mut through = Ploop::open(&by_bind).unwrap();
    let left = [through.leftovers(), through.remove_leftovers()];
    drop(through);
    tool("umount", &[names[1]]);
    assert!(
        absolute.contains(names[0]) && orphans.is_empty(),
        "{orphans:?}"
    );
    for left in left {
        assert!(left.unwrap().is_empty());
    }
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
