//! Temporary snapshots, as for a backup.

use std::fs;
use std::io::Read;

use ploop::{
    Code, ComponentName, ErrorKind, Guid, Size, TemporarySnapshot, TemporarySnapshotParam, device,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, refused};
use crate::fixture::harness::Test;
use crate::fixture::line::by_line;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            it_goes_with_its_holder,
            it_is_mounted_where_it_is_asked_for,
            without_holder_it_stays_while_it_is_attached_or_until_the_next_change,
            it_cannot_be_attached,
            a_name_with_no_room;
    ]
}

fn param() -> TemporarySnapshotParam {
    TemporarySnapshotParam::new(ComponentName::new("backup").unwrap())
}

fn it_goes_with_its_holder() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 5 << 20);
    let TemporarySnapshot {
        guid,
        device,
        holder,
        ..
    } = guard.temporary_snapshot(&param()).unwrap();
    let descriptor = guard.descriptor().unwrap();
    assert!(descriptor.snapshot(guid).unwrap().temporary);
    assert_eq!(
        device::find(
            container.base(),
            Some(&ComponentName::new("backup").unwrap())
        )
        .unwrap(),
        Some(device.clone())
    );
    container.write("new", 5 << 20);
    // It reads as it was: a backup of the disk.
    let mut disk = vec![];
    fs::File::open(&device)
        .unwrap()
        .read_to_end(&mut disk)
        .unwrap();
    assert_eq!(disk.len() as u64, SIZE.bytes());
    refused(guard.delete_snapshot(guid), ErrorKind::Busy, Code::EBUSY);
    // While it is held, other snapshots leave it.
    let snapshot = guard.snapshot().unwrap();
    assert!(guard.descriptor().unwrap().snapshot(guid).is_some());
    container.write("newer", 1 << 20);
    drop(holder.unwrap());
    // The next operation of the kind merges it and detaches the device.
    guard.delete_snapshot(snapshot).unwrap();
    assert_eq!(guard.descriptor().unwrap().snapshot(guid), None);
    assert_eq!(guard.devices().unwrap(), [guard.mounted().device.clone()]);
    container.verify(&["new", "newer", "old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "newer", "old"]);

    // The backup is an image.
    let (other, _) = restored(&disk);
    let mut restored = ploop::Ploop::open(other.descriptor()).unwrap();
    if other.is_refused_as_raw(&mut restored) {
        return;
    }
    let guard = restored
        .mount_guard(&other.param().read_only(true))
        .unwrap();
    container.verify_at(&other.target(), &["old"]);
    guard.umount().unwrap();
}

/// A raw image of these bytes.
fn restored(disk: &[u8]) -> (Container, ploop::Ploop) {
    let (container, image) = Container::made(Size::from_bytes(disk.len() as u64), |param| {
        param.fs(None).mode(ploop::ImageMode::Raw)
    });
    fs::write(container.base(), disk).unwrap();
    (container, image)
}

fn it_is_mounted_where_it_is_asked_for() {
    let (mut container, mut image) = Container::new(SIZE);
    let (view, elsewhere) = (container.view(), container.path("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 2 << 20);
    let guid = Guid::generate();
    let asked = param().guid(guid).target(&view).directory(&elsewhere);
    let temporary = guard.temporary_snapshot(&asked).unwrap();
    assert_eq!(temporary.guid, guid);
    assert_eq!(guard.top_delta_file().unwrap().parent(), Some(&*elsewhere));
    container.write("new", 2 << 20);
    container.verify_at(&view, &["old"]);
    container.verify(&["new", "old"]);
    let mounted_at = device::mount_point(&temporary.device).unwrap();
    assert_eq!(mounted_at.as_ref(), Some(&view));
    refused(guard.delete_snapshot(guid), ErrorKind::Busy, Code::EBUSY);
    container.verify_at(&view, &["old"]);
    // The mount alone does not keep it: it is unmounted as well.
    drop(temporary.holder);
    guard.delete_snapshot(guid).unwrap();
    assert_eq!(guard.devices().unwrap().len(), 1);
    assert_eq!(guard.descriptor().unwrap().images.len(), 1);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    container.verify(&["new", "old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "old"]);
}

fn without_holder_it_stays_while_it_is_attached_or_until_the_next_change() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 2 << 20);
    let temporary = guard.temporary_snapshot(&param().hold(false)).unwrap();
    assert!(temporary.holder.is_none());
    container.write("new", 2 << 20);
    let snapshot = guard.snapshot().unwrap();
    guard.delete_snapshot(snapshot).unwrap();
    let descriptor = guard.descriptor().unwrap();
    // libploop 7 detaches and merges it with the next change.
    let stays = descriptor.snapshot(temporary.guid).is_some();
    assert_eq!(stays, by_line(true, false));
    assert_eq!(guard.devices().unwrap().len(), by_line(2, 1));
    if stays {
        device::umount(&temporary.device).unwrap();
    }
    guard.snapshot().unwrap();
    assert_eq!(guard.descriptor().unwrap().snapshot(temporary.guid), None);
    container.verify(&["new", "old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "old"]);
    // Of an image that does not run, too; mounting it clears it away.
    let temporary = image.temporary_snapshot(&param()).unwrap();
    assert_eq!(image.devices().unwrap(), [temporary.device]);
    drop(temporary.holder);
    let guard = image.mount_guard(&container.param()).unwrap();
    assert_eq!(guard.descriptor().unwrap().snapshot(temporary.guid), None);
    container.verify(&["new", "old"]);
    guard.umount().unwrap();
    assert_detached(&mut image);
    container.verify_image(&mut image, &["new", "old"]);
}

/// The snapshot is merged again where it cannot be mounted.
fn it_cannot_be_attached() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 2 << 20);
    refused(
        guard.temporary_snapshot(&param().target(container.path("missing"))),
        ErrorKind::NotFound,
        None,
    );
    refused(
        guard.temporary_snapshot(&param().guid(Guid::TOP)),
        ErrorKind::AlreadyExists,
        Code::PARAM,
    );
    assert_eq!(guard.descriptor().unwrap().images.len(), 1);
    container.write("new", 2 << 20);
    container.verify(&["new", "old"]);
    assert_eq!(guard.devices().unwrap().len(), 1);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["new", "old"]);
}

fn a_name_with_no_room() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 1 << 20);
    let longest = ComponentName::new("x".repeat(ComponentName::MAX_LEN)).unwrap();
    let asked = TemporarySnapshotParam::new(longest.clone());
    refused(
        guard.temporary_snapshot(&asked.clone().hold(false)),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    let temporary = guard.temporary_snapshot(&asked).unwrap();
    assert_eq!(
        device::find(container.base(), Some(&longest)).unwrap(),
        Some(temporary.device)
    );
    drop(temporary.holder);
    guard.delete_snapshot(temporary.guid).unwrap();
    container.verify(&["old"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["old"]);
}
