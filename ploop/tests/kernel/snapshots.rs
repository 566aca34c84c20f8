//! Snapshots of running images, and of images that ran: made, deleted, gone back to.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ploop::{
    Code, ComponentName, ErrorKind, Guid, MountParam, Ploop, Size, SnapshotParam, SwitchFlag,
    device, fs_info,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, refused};
use crate::copies::{die, running};
use crate::fixture::child::child;
use crate::fixture::harness::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            a_snapshot_of_a_running_image,
            a_snapshot_where_it_is_asked_for,
            deleting_while_it_runs,
            a_running_branch,
            going_back,
            keeping_the_old_top,
            the_snapshot_becomes_the_top,
            a_change_after_a_snapshot_that_was_killed;
    ]
}

/// What is in a snapshot, seen beside whatever else is mounted.
pub(crate) fn verify_snapshot(container: &Container, guid: Guid, names: &[&str]) {
    let mut image = Ploop::open(container.descriptor()).unwrap();
    let view = container.view();
    let param = MountParam::new()
        .snapshot(guid)
        .read_only(true)
        .component(ComponentName::new("verify").unwrap())
        .target(&view);
    let guard = image.mount_guard(&param).unwrap();
    container.verify_at(&view, names);
    guard.umount().unwrap();
}

fn files(image: &mut Ploop) -> Vec<PathBuf> {
    let descriptor = image.descriptor().unwrap();
    let chain = descriptor.chain(descriptor.top);
    chain.iter().map(|image| image.file.clone()).collect()
}

fn a_snapshot_of_a_running_image() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    let base = guard.top_delta_file().unwrap();
    assert_eq!(base, container.base());
    let first = guard.snapshot().unwrap();
    let top = guard.top_delta_file().unwrap();
    assert_ne!(top, base);
    assert_eq!(guard.base_delta_file().unwrap(), base);
    assert!(top.to_str().unwrap().starts_with(base.to_str().unwrap()));
    let device = guard.mounted().device.clone();
    assert_eq!(ploop::device::top_delta(&device).unwrap().file, top);
    container.write("b", 5 << 20);
    let guid = Guid::generate();
    let second = guard
        .snapshot_with(&SnapshotParam::new().guid(guid))
        .unwrap();
    assert_eq!(second, guid);
    container.write("c", 5 << 20);
    container.verify(&["a", "b", "c"]);
    verify_snapshot(&container, first, &["a"]);
    verify_snapshot(&container, second, &["a", "b"]);
    let descriptor = guard.descriptor().unwrap();
    assert_eq!(descriptor.parent(second), Some(first));
    assert_eq!(descriptor.parent(descriptor.top), Some(second));
    // The lower ones are not written to any more.
    let before = [fs::read(&base).unwrap(), fs::read(&top).unwrap()];
    container.write("d", 5 << 20);
    guard.umount().unwrap();
    assert!(before == [fs::read(&base).unwrap(), fs::read(&top).unwrap()]);
    container.verify_image(&mut image, &["a", "b", "c", "d"]);
    verify_snapshot(&container, first, &["a"]);
}

fn a_snapshot_where_it_is_asked_for() {
    let (mut container, mut image) = Container::new(SIZE);
    let elsewhere = container.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let param = SnapshotParam::new().directory(&elsewhere);
    let guid = guard.snapshot_with(&param).unwrap();
    let top = guard.top_delta_file().unwrap();
    assert_eq!(top.parent(), Some(&*elsewhere));
    container.write("b", 2 << 20);
    container.verify(&["a", "b"]);
    // Refused ones leave it running.
    for (param, kind, code) in [
        (
            SnapshotParam::new().guid(guid),
            ErrorKind::AlreadyExists,
            Some(Code::PARAM),
        ),
        (
            SnapshotParam::new().guid(Guid::TOP),
            ErrorKind::AlreadyExists,
            Some(Code::PARAM),
        ),
        (
            SnapshotParam::new().guid(Guid::NONE),
            ErrorKind::InvalidInput,
            Some(Code::PARAM),
        ),
        (
            SnapshotParam::new().directory(container.path("missing")),
            ErrorKind::NotFound,
            None,
        ),
    ] {
        refused(guard.snapshot_with(&param), kind, code);
    }
    container.verify(&["a", "b"]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b"]);
    verify_snapshot(&container, guid, &["a"]);
    // Merged down while it runs, and gone from there.
    let mut guard = image.mount_guard(&container.param()).unwrap();
    guard.delete_snapshot(guid).unwrap();
    assert!(!top.exists());
    container.verify(&["a", "b"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b"]);
}

/// The base, one in the middle, the one below the top, each merged with its child.
fn deleting_while_it_runs() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    let mut guids = Vec::new();
    for name in ["0", "1", "2", "3"] {
        container.write(name, 4 << 20);
        guids.push(guard.snapshot().unwrap());
    }
    container.write("4", 4 << 20);
    let all = ["0", "1", "2", "3", "4"];
    let chain = files(&mut guard);
    assert_eq!(chain.len(), 5);

    let unknown = Guid::generate();
    refused(
        guard.delete_snapshot(unknown),
        ErrorKind::NoSnapshot,
        Code::NOSNAP,
    );
    refused(
        guard.delete_snapshot(Guid::TOP),
        ErrorKind::Busy,
        Code::PARAM,
    );
    container.verify(&all);

    // In the middle: the file of the lower one stays, under the GUID of the upper one.
    guard.delete_snapshot(guids[1]).unwrap();
    container.verify(&all);
    verify_snapshot(&container, guids[0], &["0"]);
    verify_snapshot(&container, guids[2], &["0", "1", "2"]);
    assert_eq!(files(&mut guard).len(), 4);
    // The base.
    guard.delete_snapshot(guids[0]).unwrap();
    container.verify(&all);
    verify_snapshot(&container, guids[2], &["0", "1", "2"]);
    assert!(container.base().exists());
    // The one below the top, by the driver itself.
    container.write("5", 4 << 20);
    let all = ["0", "1", "2", "3", "4", "5"];
    guard.delete_snapshot(guids[3]).unwrap();
    container.verify(&all);
    verify_snapshot(&container, guids[2], &["0", "1", "2"]);
    guard.delete_snapshot(guids[2]).unwrap();
    container.verify(&all);
    assert_eq!(files(&mut guard), [container.base()]);
    // What was merged is gone.
    assert_eq!(container.beside(), ["DiskDescriptor.xml", "root.hdd"]);
    container.write("6", 4 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["0", "1", "2", "3", "4", "5", "6"]);
}

/// A snapshot with two children is marked, and goes with the second-last of them.
fn a_running_branch() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("base", 2 << 20);
    guard.umount().unwrap();
    let base = image.snapshot().unwrap();
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("leaf", 2 << 20);
    guard.umount().unwrap();
    let leaf = image
        .switch_snapshot_with(base, SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("top", 2 << 20);
    guard.delete_snapshot(base).unwrap();
    assert!(
        guard
            .descriptor()
            .unwrap()
            .snapshot(base)
            .unwrap()
            .temporary
    );
    refused(guard.delete_snapshot(base), ErrorKind::Busy, Code::PARAM);
    container.verify(&["base", "top"]);
    verify_snapshot(&container, leaf, &["base", "leaf"]);
    guard.delete_snapshot(leaf).unwrap();
    assert_eq!(files(&mut guard), [container.base()]);
    assert_eq!(guard.descriptor().unwrap().images.len(), 1);
    container.verify(&["base", "top"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["base", "top"]);
}

fn going_back() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let snapshot = guard.snapshot().unwrap();
    container.write("b", 2 << 20);
    refused(
        guard.switch_snapshot(snapshot),
        ErrorKind::Busy,
        Code::PARAM,
    );
    container.verify(&["a", "b"]);
    guard.umount().unwrap();
    let noted = fs_info(image.path()).unwrap();
    let unknown = image.switch_snapshot(Guid::generate());
    refused(unknown, ErrorKind::NoSnapshot, Code::NOSNAP);
    container.verify_image(&mut image, &["a", "b"]);
    image.switch_snapshot(snapshot).unwrap();
    // The note is of another state.
    assert!(!container.path(".statfs").exists());
    let now = fs_info(image.path()).unwrap();
    assert!(now.blocks_free > noted.blocks_free);
    container.verify_image(&mut image, &["a"]);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("c", 2 << 20);
    guard.umount().unwrap();
    // Without the top, what the snapshot holds.
    image.delete_top_delta().unwrap();
    assert_eq!(files(&mut image), [container.base()]);
    assert_eq!(image.descriptor().unwrap().snapshot(snapshot), None);
    container.verify_image(&mut image, &["a"]);
}

fn keeping_the_old_top() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let snapshot = guard.snapshot().unwrap();
    container.write("b", 2 << 20);
    guard.umount().unwrap();
    let kept = image
        .switch_snapshot_with(snapshot, SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("c", 2 << 20);
    container.verify(&["a", "c"]);
    verify_snapshot(&container, kept, &["a", "b"]);
    guard.umount().unwrap();
    image.switch_snapshot(kept).unwrap();
    container.verify_image(&mut image, &["a", "b"]);
}

fn the_snapshot_becomes_the_top() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let snapshot = guard.snapshot().unwrap();
    container.write("b", 2 << 20);
    guard.umount().unwrap();
    let nothing = image.switch_snapshot_with(snapshot, SwitchFlag::SKIP_CREATE);
    assert_eq!(nothing.unwrap(), None);
    assert_eq!(files(&mut image), [container.base()]);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.verify(&["a"]);
    container.write("c", 2 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "c"]);
}

/// The driver goes on with what the killed process has begun, and the next change waits for that.
fn a_change_after_a_snapshot_that_was_killed() {
    for delay in [2, 5, 10, 20, 30, 50, 80, 120] {
        child(&format!("after {delay} ms"), |dir| {
            let (mut image, _) = running(dir);
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(delay));
                die()
            });
            loop {
                image.snapshot().unwrap();
            }
        })
        .died_of(libc::SIGKILL)
        .left(|dir| {
            let target = dir.join("mnt");
            let mut image = Ploop::open(dir.join("DiskDescriptor.xml")).unwrap();
            image.set_max_delta_size(Some(Size::from_gib(1))).unwrap();
            let device = image.device().unwrap().unwrap();
            let top = image.top_delta_file().unwrap();
            assert_eq!(device::top_delta(&device).unwrap().file, top);
            // A new delta perhaps, but not that of the device.
            let left = image.remove_leftovers().unwrap();
            assert!(top.exists() && !left.contains(&top));
            fs::write(target.join("after"), vec![7; 1 << 20]).unwrap();
            File::open(&target)
                .map(rustix::fs::syncfs)
                .unwrap()
                .unwrap();
            image.umount().unwrap();
            let param = MountParam::new().target(&target).read_only(true);
            let guard = image.mount_guard(&param).unwrap();
            assert!(fs::read(target.join("file")).unwrap() == vec![3; 20 << 20]);
            assert!(fs::read(target.join("after")).unwrap() == vec![7; 1 << 20]);
            guard.umount().unwrap();
        });
    }
}
