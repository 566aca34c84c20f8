//! Running devices, and the files of their images.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::driver::{self, Device, Mode};
use crate::harness::{Need, Test};
use crate::image::{self, Image, Scratch};
use crate::ioctl::{self, Control, error};
use crate::program::{ploop, run};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            running_start_is_ebusy,
            running_clear_is_ebusy,
            running_add_delta_is_ebusy,
            running_del_delta_0_is_ebusy,
            merge_at_level_0_is_enoent,
            a_missing_level_is_enoent,
            stop_with_a_second_opener_is_ebusy,
            stop_alone_keeps_the_deltas_and_start_works_again,
            del_delta_of_the_top_is_accepted_and_the_next_write_fails,
            grow_to_the_same_size_is_0,
            grow_to_less_is_einval,
            grow_to_an_unaligned_size_is_einval,
            replace_delta_with_a_different_read_only_state_is_einval,
            a_snapshot_with_a_larger_delta_keeps_the_size,
            the_reserve_has_two_thresholds;
        &[Need::Tool] =>
            stop_with_an_open_partition_is_ebusy,
            stop_with_a_mount_is_ebusy,
            on_the_partition_stop_is_enodev,
            on_the_partition_start_and_clear_are_ebusy,
            a_mounted_image_is_larger_than_after_the_unmount;
        &[Need::Tool, Need::Driver("no space is kept free on the host")] =>
            writes_inside_end_with_enospc_while_the_host_has_59_mb;
    ]
}

fn base() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    (scratch, device)
}

/// "**Running.** START […]: EBUSY."
fn running_start_is_ebusy() {
    let (_scratch, device) = base();
    assert_eq!(ioctl::start(device.node()), error(libc::EBUSY));
}

/// "CLEAR […]: EBUSY."
fn running_clear_is_ebusy() {
    let (_scratch, device) = base();
    assert_eq!(ioctl::clear(device.node()), error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/running"), "1");
}

/// "ADD_DELTA […]: EBUSY."
fn running_add_delta_is_ebusy() {
    let (scratch, device) = base();
    for mode in [Mode::Writable, Mode::ReadOnly] {
        let image = scratch.delta(if mode == Mode::Writable { "1" } else { "2" }, 16);
        assert_eq!(device.add(&image, mode), error(libc::EBUSY));
    }
}

/// "DEL_DELTA 0: EBUSY."
fn running_del_delta_0_is_ebusy() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16), &scratch.delta("top", 16)]);
    assert_eq!(device.delete(0), error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/top"), "1");
}

/// "MERGE at level 0 […]: ENOENT."
fn merge_at_level_0_is_enoent() {
    let (_scratch, device) = base();
    assert_eq!(ioctl::merge(device.node()), error(libc::ENOENT));
}

/// "[…] or a missing level: ENOENT."
fn a_missing_level_is_enoent() {
    let (scratch, device) = base();
    assert_eq!(device.delete(1), error(libc::ENOENT));
    assert_eq!(device.delete(127), error(libc::ENOENT));
    let file = ioctl::open(&scratch.delta("other", 16), true, true).unwrap();
    let mut control = Control::new(Some(&file));
    control.level = 1;
    let replaced = ioctl::replace_delta(device.node(), &mut control);
    assert_eq!(replaced, error(libc::ENOENT));
}

/// "STOP with a second opener […]: EBUSY."
fn stop_with_a_second_opener_is_ebusy() {
    let (_scratch, device) = base();
    let other = File::open(device.path()).unwrap();
    assert_eq!(device.stop(), error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/running"), "1");
    drop(other);
    assert_eq!(device.stop(), Ok(0));
}

fn partitioned() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    (scratch, device)
}

/// "STOP with […] an open partition […]: EBUSY."
fn stop_with_an_open_partition_is_ebusy() {
    let (_scratch, device) = partitioned();
    let partition = File::open(device.partition()).unwrap();
    assert_eq!(device.stop(), error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/running"), "1");
    drop(partition);
    assert_eq!(device.stop(), Ok(0));
}

/// "STOP with […] a mount: EBUSY."
fn stop_with_a_mount_is_ebusy() {
    let (scratch, device) = partitioned();
    let target = scratch.path("mnt");
    fs::create_dir(&target).unwrap();
    ioctl::mount(&device.partition(), &target, "ext4", 0, "").unwrap();
    let stopped = device.stop();
    let mounted = target.join("lost+found").exists();
    driver::patiently(|| ioctl::unmount(&target, 0)).unwrap();
    assert_eq!(stopped, error(libc::EBUSY));
    assert!(mounted);
    assert_eq!(device.stop(), Ok(0));
}

/// "On the partition node: STOP ENODEV".
fn on_the_partition_stop_is_enodev() {
    let (_scratch, device) = partitioned();
    let partition = File::open(device.partition()).unwrap();
    assert_eq!(ioctl::stop(&partition), error(libc::ENODEV));
}

/// "START and CLEAR EBUSY."
fn on_the_partition_start_and_clear_are_ebusy() {
    let (_scratch, device) = partitioned();
    let partition = File::open(device.partition()).unwrap();
    assert_eq!(ioctl::start(&partition), error(libc::EBUSY));
    assert_eq!(ioctl::clear(&partition), error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/running"), "1");
}

/// "STOP alone keeps the deltas, START works again."
fn stop_alone_keeps_the_deltas_and_start_works_again() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base, &top]);
    device.write(1 << 20, 4096, 5);
    device.stop().unwrap();
    assert_eq!(device.attribute("pstate/running"), "0");
    assert_eq!(driver::images(device.index), [base, top]);
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.attribute("pstate/running"), "1");
    assert!(device.is(1 << 20, 4096, 5));
    device.write(1 << 20, 4096, 6);
    assert!(device.is(1 << 20, 4096, 6));
}

/// "DEL_DELTA of the *top* is accepted, and the next write then fails."
fn del_delta_of_the_top_is_accepted_and_the_next_write_fails() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16), &scratch.delta("top", 16)]);
    device.write(0, 4096, 1);
    assert_eq!(device.delete(1), Ok(0));
    assert_eq!(device.attribute("pstate/top"), "0");
    assert!(ioctl::write_direct(&device.path(), 2 << 20, 4096, 2).is_err());
}

/// "GROW: same size 0".
fn grow_to_the_same_size_is_0() {
    let (_scratch, device) = base();
    assert_eq!(device.grow(16 << 11), Ok(0));
    assert_eq!(device.number("size"), 16 << 11);
    // And that it can grow at all.
    assert_eq!(device.grow(24 << 11), Ok(0));
    assert_eq!(device.number("size"), 24 << 11);
    device.write(23 << 20, 4096, 9);
    assert!(device.is(23 << 20, 4096, 9));
}

/// "smaller […] EINVAL."
fn grow_to_less_is_einval() {
    let (_scratch, device) = base();
    assert_eq!(device.grow(15 << 11), error(libc::EINVAL));
    assert_eq!(device.number("size"), 16 << 11);
}

/// "[…] or unaligned EINVAL."
fn grow_to_an_unaligned_size_is_einval() {
    let (_scratch, device) = base();
    assert_eq!(device.grow((16 << 11) + 8), error(libc::EINVAL));
    assert_eq!(device.number("size"), 16 << 11);
}

/// "REPLACE_DELTA with a different read-only state: EINVAL."
fn replace_delta_with_a_different_read_only_state_is_einval() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base, &top]);
    let other = scratch.path("other");
    fs::copy(&base, &other).unwrap();
    let replace = |write: bool, level: u8| {
        let file = ioctl::open(&other, write, true).unwrap();
        let mut control = Control::new(Some(&file));
        control.level = level;
        control.flags = if write { 0 } else { Control::READ_ONLY };
        ioctl::replace_delta(device.node(), &mut control)
    };
    assert_eq!(replace(true, 0), error(libc::EINVAL));
    assert_eq!(replace(false, 1), error(libc::EINVAL));
    assert_eq!(driver::images(device.index), [base, top.clone()]);
    // And that the same state is none.
    assert_eq!(replace(false, 0), Ok(0));
    assert_eq!(driver::images(device.index), [other, top]);
}

/// "SNAPSHOT with a larger delta keeps the device's size."
fn a_snapshot_with_a_larger_delta_keeps_the_size() {
    let (scratch, device) = base();
    assert_eq!(device.snapshot(&scratch.delta("top", 32)), Ok(0));
    assert_eq!(device.number("size"), 16 << 11);
    device.write(0, 4096, 3);
    assert!(device.is(0, 4096, 3));
}

/// "26 MB → 16 MB at unmount".
fn a_mounted_image_is_larger_than_after_the_unmount() {
    let image = Image::new();
    image.mount();
    image.write("file", 5, 1);
    let mounted = image::len(&image.base());
    image.unmount();
    let after = image::len(&image.base());
    assert!(mounted > after, "{mounted} and then {after}");
    ploop(&[&"check", &image.base()]).expect(0);
}

/// "a reserve (module parameters root_threshold 2 GiB, user_threshold 4 GiB)." They count KiB.
fn the_reserve_has_two_thresholds() {
    for (name, gib) in [("root_threshold", 2), ("user_threshold", 4)] {
        let path = Path::new("/sys/module/ploop/parameters").join(name);
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.trim_end().parse::<u64>().unwrap(), gib << 20, "{name}");
    }
}

/// "With only 59 MB free on the host, writes inside got ENOSPC […]: the driver keeps a reserve". It looks after every
/// 1024 blocks only.
fn writes_inside_end_with_enospc_while_the_host_has_59_mb() {
    struct Host(PathBuf);
    impl Drop for Host {
        fn drop(&mut self) {
            let _ = driver::patiently(|| ioctl::unmount(&self.0, 0));
        }
    }
    let scratch = Scratch::new();
    let disk = scratch.raw("disk", 90);
    run("mkfs.ext4", &[&"-q", &"-F", &"-J", &"size=4", &disk]).expect(0);
    let target = scratch.path("host");
    fs::create_dir(&target).unwrap();
    run("mount", &[&"-o", &"loop", &disk, &target]).expect(0);
    let _host = Host(target.clone());
    let image = Image::new_in(&target);
    image.mount();
    let mut file = File::create(image.target().join("file")).unwrap();
    // It looks every 1024 blocks of the file system inside.
    let written = (0..5)
        .try_for_each(|_| file.write_all(&[1; 1 << 20]))
        .and_then(|()| file.sync_all());
    drop(file);
    let error = written.expect_err("it was written");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}
