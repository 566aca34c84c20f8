//! TRUNCATE and UPDATE_INDEX: files and tables that programs change under a device.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::driver::{Device, Mode};
use crate::harness::Test;
use crate::image::{self, Scratch, table};
use crate::ioctl::{self, IndexUpdate, Truncation, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            truncate_without_a_file_is_ebadf,
            truncate_of_what_is_not_there_or_written_or_another_file,
            truncate_sets_the_length_by_a_read_only_descriptor,
            what_truncate_cuts_off_aborts_the_device,
            update_index_of_nothing_is_0,
            update_index_changes_a_mapping_in_memory_only,
            update_index_of_a_lone_delta_works_at_level_0,
            update_index_to_wrong_places_is_0,
            a_bad_slot_aborts_the_device_when_it_is_read;
    ]
}

fn truncate(device: &Device, file: Option<&File>, level: u8, head: u32) -> ioctl::Result<i32> {
    let mut control = Truncation {
        file: file.map_or(-1, AsRawFd::as_raw_fd),
        head,
        level,
        zeros: [0; 3],
    };
    ioctl::truncate(device.node(), &mut control)
}

fn update(device: &Device, level: u8, maps: &[[u32; 2]]) -> ioctl::Result<i32> {
    let mut control = IndexUpdate {
        count: maps.len() as u32,
        level,
        ..IndexUpdate::default()
    };
    control.maps[..maps.len()].copy_from_slice(maps);
    ioctl::update_index(device.node(), &mut control)
}

/// A base with clusters of ones, twos and threes, and a top without any.
fn two() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    for cluster in 0..3 {
        device.write(cluster << 20, 1 << 20, 1 + cluster as u8);
    }
    device.snapshot(&top).unwrap();
    (scratch, device)
}

fn open(scratch: &Scratch, name: &str, write: bool) -> File {
    ioctl::open(&scratch.path(name), write, false).unwrap()
}

/// "**TRUNCATE.** fd −1: EBADF, also without deltas".
fn truncate_without_a_file_is_ebadf() {
    let device = Device::new();
    assert_eq!(truncate(&device, None, 0, 1), error(libc::EBADF));
    let (_scratch, device) = two();
    for level in [0, 1, 5] {
        assert_eq!(truncate(&device, None, level, 4), error(libc::EBADF));
    }
}

/// "Missing level ENOENT, writable level EBUSY, another file EINVAL."
fn truncate_of_what_is_not_there_or_written_or_another_file() {
    let (scratch, device) = two();
    let (base, top) = (open(&scratch, "base", true), open(&scratch, "top", true));
    assert_eq!(truncate(&device, Some(&base), 2, 4), error(libc::ENOENT));
    assert_eq!(truncate(&device, Some(&top), 1, 4), error(libc::EBUSY));
    assert_eq!(truncate(&device, Some(&top), 0, 4), error(libc::EINVAL));
    assert_eq!(image::len(&scratch.path("base")), 4 << 20);
    let empty = Device::new();
    assert_eq!(truncate(&empty, Some(&base), 0, 4), error(libc::ENOENT));
}

/// "A read-only fd is enough: 0. Larger and smaller heads: 0, size = head × cluster."
fn truncate_sets_the_length_by_a_read_only_descriptor() {
    let (scratch, device) = two();
    let base = open(&scratch, "base", false);
    for head in [9, 6, 4] {
        assert_eq!(truncate(&device, Some(&base), 0, head), Ok(0));
        assert_eq!(image::len(&scratch.path("base")), u64::from(head) << 20);
    }
    for cluster in 0..3 {
        assert!(device.is(cluster << 20, 1 << 20, 1 + cluster as u8));
    }
}

/// "Mapped clusters cut off: EIO, `aborted` 1."
fn what_truncate_cuts_off_aborts_the_device() {
    let (scratch, device) = two();
    let base = open(&scratch, "base", false);
    assert_eq!(truncate(&device, Some(&base), 0, 3), Ok(0));
    assert!(device.is(1 << 20, 1 << 20, 2));
    assert_eq!(device.attribute("pstate/aborted"), "0");
    let read = ioctl::read_direct(&device.path(), 2 << 20, 4096);
    assert_eq!(read, Err(ioctl::Errno(libc::EIO)));
    assert_eq!(device.attribute("pstate/aborted"), "1");
}

/// "**UPDATE_INDEX.** n = 0 gives 0."
fn update_index_of_nothing_is_0() {
    let (_scratch, device) = two();
    assert_eq!(update(&device, 0, &[]), Ok(0));
    assert_eq!(update(&device, 9, &[]), Ok(0));
    let empty = Device::new();
    assert_eq!(update(&empty, 0, &[]), error(libc::ENOENT));
}

/// "A loaded mapping changes at once, in memory only […], not on disk."
fn update_index_changes_a_mapping_in_memory_only() {
    let (scratch, device) = two();
    // So that it is loaded.
    assert!(device.is(0, 4096, 1) && device.is(1 << 20, 4096, 2));
    let before = table(&scratch.path("base"), 16);
    assert_eq!(before[..4], [1, 2, 3, 0]);
    assert_eq!(update(&device, 0, &[[0, 3], [1, 1]]), Ok(0));
    assert!(device.is(0, 1 << 20, 3) && device.is(1 << 20, 1 << 20, 1));
    assert_eq!(table(&scratch.path("base"), 16), before);
    device.detach();
    let device = Device::running(&[&scratch.path("base")]);
    assert!(device.is(0, 1 << 20, 1) && device.is(1 << 20, 1 << 20, 2));
}

/// "(level 0 of a lone delta: yes)".
fn update_index_of_a_lone_delta_works_at_level_0() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    device.write(0, 1 << 20, 1);
    device.write(1 << 20, 1 << 20, 2);
    assert!(device.is(0, 4096, 1));
    assert_eq!(update(&device, 0, &[[0, 2]]), Ok(0));
    assert!(device.is(0, 1 << 20, 2));
}

/// "Wrong level or slot, cluster out of range: 0 and a kernel message".
fn update_index_to_wrong_places_is_0() {
    let (_scratch, device) = two();
    assert!(device.is(0, 4096, 1));
    for (level, map) in [
        (1, [0, 3]),
        (9, [0, 3]),
        (0, [16, 3]),
        (0, [u32::MAX, 3]),
        (0, [5, 3]),
    ] {
        assert_eq!(update(&device, level, &[map]), Ok(0), "{level} {map:?}");
    }
    assert!(device.is(0, 1 << 20, 1));
    assert_eq!(device.attribute("pstate/aborted"), "0");
}

/// "a bad slot gives EIO and abort when it is read".
fn a_bad_slot_aborts_the_device_when_it_is_read() {
    let (scratch, device) = two();
    assert!(device.is(0, 4096, 1));
    assert_eq!(update(&device, 0, &[[0, 1000]]), Ok(0));
    assert!(device.is(1 << 20, 4096, 2));
    assert_eq!(device.attribute("pstate/aborted"), "0");
    let read = ioctl::read_direct(&device.path(), 0, 4096);
    assert_eq!(read, Err(ioctl::Errno(libc::EIO)));
    assert_eq!(device.attribute("pstate/aborted"), "1");
    device.detach();
    assert_eq!(
        device.add(&scratch.path("top"), Mode::Writable),
        error(libc::EBUSY)
    );
}
