//! Attaching and mounting: names, guards, snapshots, refusals.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;

use ploop::{ComponentName, ErrorKind, MountFlags, MountParam, ResizeMode, Size, device};

use super::container::Container;

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_guard_unmounts() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    {
        let mut guard = image
            .mount_guard(&container.param().flags(MountFlags::NOATIME).fsck(true))
            .unwrap();
        let device = guard.mounted().device.clone();
        assert!(device.metadata().unwrap().file_type().is_block_device());
        assert_eq!(guard.mounted().fsck, Some(0));
        assert_eq!(guard.device().unwrap(), Some(device.clone()));
        assert_eq!(guard.devices().unwrap(), std::slice::from_ref(&device));
        assert_eq!(
            device::mount_point(&device).unwrap(),
            Some(container.target())
        );
        assert_eq!(
            device::by_mount_point(container.target()).unwrap(),
            Some(device.clone())
        );
        let (top, format) = device::top_delta(&device).unwrap();
        assert_eq!(
            (top, format.as_str()),
            (guard.top_delta_file().unwrap(), "ploop1")
        );
        container.write("file", 1 << 20);
    }
    assert!(!image.is_mounted().unwrap());
    container.verify_image(&mut image, &["file"]);
    let kept = image.mount_guard(&container.param()).unwrap().keep();
    assert!(image.is_mounted().unwrap());
    device::umount(&kept.device).unwrap();
    assert!(!image.is_mounted().unwrap());
}

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_mounted_image_is_left_alone() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    assert_eq!(
        guard.mount(&container.param()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert_eq!(
        guard
            .resize(Size::from_mib(64), ResizeMode::Offline)
            .unwrap_err()
            .kind(),
        ErrorKind::Busy
    );
    assert_eq!(
        guard.delete_top_delta().unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert_eq!(
        guard.convert(ploop::ImageMode::Raw).unwrap_err().kind(),
        ErrorKind::Busy
    );
    let open = File::open(container.target().join("file")).unwrap();
    assert_eq!(guard.umount().unwrap_err().kind(), ErrorKind::Busy);
    container.verify(&["file"]);
    drop(open);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_snapshot_is_mounted_beside_the_top() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 1 << 20);
    let snapshot = guard.snapshot().unwrap();
    container.write("new", 1 << 20);

    let view = tempfile::tempdir_in(container.dir.path()).unwrap();
    let mut other = ploop::Ploop::open(guard.path()).unwrap();
    let writable = MountParam::new().snapshot(snapshot).target(view.path());
    assert_eq!(other.mount(&writable).unwrap_err().kind(), ErrorKind::Busy);
    let component = ComponentName::new("view").unwrap();
    let writable = writable.component(component.clone());
    assert_eq!(
        other.mount(&writable).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(other.component(), None);
    let second = other.mount_guard(&writable.read_only(true)).unwrap();
    assert_eq!(second.component(), Some(&component));
    container.verify_at(view.path(), &["old"]);
    container.verify(&["new", "old"]);
    assert_eq!(guard.devices().unwrap().len(), 2);
    assert_eq!(
        guard.delete_snapshot(snapshot).unwrap_err().kind(),
        ErrorKind::Busy
    );
    second.umount().unwrap();
    guard.delete_snapshot(snapshot).unwrap();
    container.verify(&["new", "old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "old"]);
}
