//! The mark of images that are in use (`m_DiskInUse`, header offset 44).

use crate::driver::{Device, Mode};
use crate::harness::Test;
use crate::image::{Scratch, in_use};
use crate::ioctl::{self, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            a_writable_add_delta_sets_the_mark_before_start,
            a_read_only_add_delta_sets_no_mark,
            stop_then_clear_removes_the_mark,
            clear_without_start_leaves_the_mark_and_the_image_busy,
            a_snapshot_moves_the_mark_to_the_new_top;
    ]
}

/// "Set by a writable ADD_DELTA, before START".
fn a_writable_add_delta_sets_the_mark_before_start() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    assert!(!in_use(&image));
    let device = Device::new();
    device.add(&image, Mode::Writable).unwrap();
    assert!(in_use(&image));
    ioctl::start(device.node()).unwrap();
    assert!(in_use(&image));
}

/// The other side of the same sentence.
fn a_read_only_add_delta_sets_no_mark() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base, &top]);
    assert!(!in_use(&base) && in_use(&top));
    device.detach();
    assert!(!in_use(&base) && !in_use(&top));
}

/// "cleared by STOP then CLEAR."
fn stop_then_clear_removes_the_mark() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::running(&[&image]);
    device.write(0, 4096, 1);
    device.detach();
    assert!(!in_use(&image));
    device.add(&image, Mode::ReadOnly).unwrap();
}

/// "CLEAR without START leaves it set, and the next ADD_DELTA gives EBUSY."
fn clear_without_start_leaves_the_mark_and_the_image_busy() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    device.add(&image, Mode::Writable).unwrap();
    ioctl::clear(device.node()).unwrap();
    assert!(in_use(&image));
    assert_eq!(device.add(&image, Mode::Writable), error(libc::EBUSY));
    assert!(in_use(&image));
}

/// "SNAPSHOT clears it on the old top and sets it on the new one."
fn a_snapshot_moves_the_mark_to_the_new_top() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    device.write(0, 4096, 1);
    device.snapshot(&top).unwrap();
    assert!(!in_use(&base) && in_use(&top));
    device.write(0, 4096, 2);
    assert!(!in_use(&base) && in_use(&top));
    assert_eq!(device.attribute("pdelta/0/ro"), "1");
    assert_eq!(device.attribute("pdelta/1/ro"), "0");
}
