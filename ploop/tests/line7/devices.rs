//! Devices: their partitions, and freezing them.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::{ErrorKind, MountParam, device};

use crate::container::{Container, SIZE, partition};
use crate::fixture::harness::Test;
use crate::{MOUNTS, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => without_a_device;
        MOUNTS =>
            a_partition_has_the_name_of_its_device,
            a_device_without_partitions_is_its_own,
            writes_wait_until_a_device_is_resumed;
    ]
}

fn without_a_device() {
    for device in ["/dev/ploop999999999", "/dev/null"] {
        let unknown = device == "/dev/null";
        let kind = match unknown {
            true => ErrorKind::InvalidInput,
            false => ErrorKind::NotFound,
        };
        assert_eq!(device::partition(device).unwrap_err().kind(), kind);
        for (error, operation) in [
            (device::suspend(device).unwrap_err(), "suspend device"),
            (device::resume(device).unwrap_err(), "resume device"),
        ] {
            let expected = match is_line_7() || unknown {
                true => kind,
                false => ErrorKind::Unsupported,
            };
            assert_eq!(error.kind(), expected, "{error}");
            assert_eq!(error.operation(), operation);
        }
    }
}

fn a_partition_has_the_name_of_its_device() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let found = device::partition(&mounted.device).unwrap();
    assert_eq!(found, partition(&mounted.device));
    let mounted_from = device::partition_by_mount_point(container.target()).unwrap();
    assert_eq!(Some(found), mounted_from);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_device_without_partitions_is_its_own() {
    let (_container, mut image) = Container::made(SIZE, |param| param.fs(None));
    let mounted = image.mount(&MountParam::new()).unwrap();
    let found = device::partition(&mounted.device).unwrap();
    assert_eq!(found, mounted.device);
    image.umount().unwrap();
}

/// A program that writes to the file system. This one would wait with it.
fn writer(container: &Container) -> Child {
    let to = container.target().join("zeros");
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=3", "conv=fsync"])
        .arg(format!("of={}", to.display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn writes_wait_until_a_device_is_resumed() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let node = &mounted.device;
    if !is_line_7() {
        for error in [device::suspend(node), device::resume(node)] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("7.0.226"), "{error}");
        }
        container.write("file", 1 << 20);
        image.umount().unwrap();
        return;
    }
    device::suspend(node).unwrap();
    let again = device::suspend(node);
    // One is enough for both.
    let mut writing = writer(&container);
    thread::sleep(Duration::from_secs(1));
    let waits = writing.try_wait().unwrap().is_none();
    let resumed = device::resume(node);
    // Nothing is asserted before: a failed test has to unmount.
    again.unwrap();
    assert!(waits);
    resumed.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while writing.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the file system is still frozen");
        thread::sleep(Duration::from_millis(10));
    }
    device::resume(node).unwrap();
    let zeros = std::fs::read(container.target().join("zeros")).unwrap();
    assert!(zeros == vec![0; 3 << 20]);
    std::fs::remove_file(container.target().join("zeros")).unwrap();
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
