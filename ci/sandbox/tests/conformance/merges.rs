//! MERGE: what it leaves, and what holds while clusters move.

use std::thread;
use std::time::{Duration, Instant};

use crate::driver::{self, Device, Mode};
use crate::harness::Test;
use crate::image::{Scratch, in_use, table};
use crate::ioctl::{self, Control, Merging, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            a_finished_merge_empties_the_top_and_clears_its_mark,
            after_a_merge_the_old_chain_still_reads_right,
            an_interrupted_merge_goes_on_and_keeps_the_device_busy,
            a_second_merge_finishes_it,
            it_is_read_and_written_while_it_merges,
            merge_works_after_stop_and_start,
            without_a_second_merge_the_top_keeps_its_mark;
    ]
}

const MIB: u64 = 1 << 20;
const MERGE: u32 = 257;

/// A base and a top that share clusters: 0 to 1 are only in the base, 2 to 3 in both, 4 to 5 only in the top.
fn two(scratch: &Scratch) -> Device {
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    device.write(0, 4 << 20, 1);
    device.snapshot(&top).unwrap();
    device.write(2 * MIB, 4 << 20, 2);
    device
}

#[track_caller]
fn verify(device: &Device) {
    for (cluster, byte) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 0)] {
        assert!(device.is(cluster * MIB, 1 << 20, byte), "cluster {cluster}");
    }
}

/// "A finished MERGE zeroes every entry of the top and clears its mark".
fn a_finished_merge_empties_the_top_and_clears_its_mark() {
    let scratch = Scratch::new();
    let device = two(&scratch);
    let (base, top) = (scratch.path("base"), scratch.path("top"));
    assert_eq!(ioctl::merge(device.node()), Ok(0));
    assert_eq!(driver::images(device.index), std::slice::from_ref(&base));
    assert_eq!(table(&top, 16), [0; 16]);
    assert!(!in_use(&top) && in_use(&base));
    assert_eq!(ioctl::busy_with(device.node()), Ok(0));
    assert_eq!(device.attribute("pdelta/0/ro"), "0");
    verify(&device);
    device.detach();
    assert!(!in_use(&base));
    assert_eq!(
        table(&base, 7)[..6]
            .iter()
            .filter(|entry| **entry == 0)
            .count(),
        0
    );
}

/// "the old chain still reads right": also with what was written since.
fn after_a_merge_the_old_chain_still_reads_right() {
    let scratch = Scratch::new();
    let device = two(&scratch);
    ioctl::merge(device.node()).unwrap();
    device.write(7 * MIB, 1 << 20, 7);
    device.write(3 * MIB, 4096, 3);
    device.detach();
    let device = Device::running(&[&scratch.path("base"), &scratch.path("top")]);
    assert!(device.is(2 * MIB, 1 << 20, 2));
    assert!(device.is(3 * MIB, 4096, 3) && device.is(3 * MIB + 4096, (1 << 20) - 4096, 2));
    assert!(device.is(7 * MIB, 1 << 20, 7));
}

/// How many clusters a merge has that is interrupted.
const MANY: u64 = 96;

/// A device whose MERGE was ended by a signal while clusters moved, or had yet to be finished.
fn interrupted(scratch: &Scratch) -> Device {
    for attempt in 0..5 {
        let names = [format!("base{attempt}"), format!("top{attempt}")];
        let [base, top] = names.map(|name| scratch.delta(&name, 128));
        let device = Device::running(&[&base, &top]);
        device.write(0, (MANY as usize) << 20, 5);
        let merging = Merging::start(device.node());
        while ioctl::busy_with(device.node()).unwrap() != MERGE && !merging.has_ended() {
            thread::yield_now();
        }
        match merging.interrupt() {
            Ok(_) => {}
            result => {
                assert_eq!(result, error(libc::EINTR));
                return device;
            }
        }
    }
    panic!("a merge of {MANY} clusters is over too soon to be interrupted");
}

fn images(device: &Device) -> [std::path::PathBuf; 2] {
    driver::images(device.index).try_into().unwrap()
}

/// "MERGE, killed or signalled (EINTR): type stays 257, both levels ro=0 and marked while it works […]; GROW,
/// TRACK_INIT, DISCARD_INIT, DEL_DELTA, SNAPSHOT, ADD_DELTA, REPLACE: EBUSY."
fn an_interrupted_merge_goes_on_and_keeps_the_device_busy() {
    let scratch = Scratch::new();
    let device = interrupted(&scratch);
    let node = device.node();
    let [base, top] = images(&device);
    assert_eq!(ioctl::busy_with(node), Ok(MERGE));
    let levels = ["pdelta/0/ro", "pdelta/1/ro"].map(|name| device.attribute(name));
    assert_eq!(levels, ["0", "0"]);
    assert_eq!(device.attribute("pstate/top"), "1");
    assert!(in_use(&base) && in_use(&top));
    assert_eq!(device.grow(256 << 11), error(libc::EBUSY));
    assert_eq!(ioctl::track_init(node), Err(ioctl::Errno(libc::EBUSY)));
    assert_eq!(ioctl::discard_init(node), error(libc::EBUSY));
    assert_eq!(device.delete(1), error(libc::EBUSY));
    let other = scratch.delta("other", 128);
    assert_eq!(device.snapshot(&other), error(libc::EBUSY));
    assert_eq!(device.add(&other, Mode::Writable), error(libc::EBUSY));
    let file = ioctl::open(&other, true, true).unwrap();
    let mut control = Control::new(Some(&file));
    control.level = 1;
    assert_eq!(ioctl::replace_delta(node, &mut control), error(libc::EBUSY));
    assert_eq!(ioctl::busy_with(node), Ok(MERGE));
    assert_eq!(ioctl::merge(node), Ok(0));
}

/// "A second MERGE returns 0 and finishes."
fn a_second_merge_finishes_it() {
    let scratch = Scratch::new();
    let device = interrupted(&scratch);
    let [base, top] = images(&device);
    assert_eq!(ioctl::merge(device.node()), Ok(0));
    assert_eq!(ioctl::busy_with(device.node()), Ok(0));
    assert_eq!(driver::images(device.index), std::slice::from_ref(&base));
    assert!(in_use(&base) && !in_use(&top));
    assert_eq!(table(&top, 128), [0; 128]);
    assert!(device.is(0, (MANY as usize) << 20, 5));
    assert!(device.is(MANY * MIB, 1 << 20, 0));
}

/// "reads and writes go on". What is written is not lost under a cluster that moves later.
fn it_is_read_and_written_while_it_merges() {
    let scratch = Scratch::new();
    let device = interrupted(&scratch);
    for cluster in (0..MANY).rev() {
        assert!(device.is(cluster * MIB, 4096, 5), "{cluster}");
        device.write(cluster * MIB + 8192, 4096, cluster as u8);
        assert!(device.is(cluster * MIB + 8192, 4096, cluster as u8));
    }
    device.write(MANY * MIB, 1 << 20, 6);
    ioctl::merge(device.node()).unwrap();
    for cluster in 0..MANY {
        assert!(
            device.is(cluster * MIB + 8192, 4096, cluster as u8),
            "{cluster}"
        );
        assert!(device.is(cluster * MIB + 12288, 4096, 5), "{cluster}");
    }
    assert!(device.is(MANY * MIB, 1 << 20, 6));
}

/// Once no cluster moves: "STOP is EBUSY while clusters move, 0 later".
#[track_caller]
fn stop(device: &Device) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match ioctl::stop(device.node()) {
            Ok(_) => return,
            result => assert_eq!(result, error(libc::EBUSY)),
        }
        assert!(Instant::now() < end, "it is busy for too long");
        thread::sleep(Duration::from_millis(5));
    }
}

/// "MERGE works after STOP and START."
fn merge_works_after_stop_and_start() {
    let scratch = Scratch::new();
    let device = interrupted(&scratch);
    let [base, top] = images(&device);
    stop(&device);
    assert_eq!(ioctl::start(device.node()), Ok(0));
    assert_eq!(ioctl::busy_with(device.node()), Ok(MERGE));
    assert_eq!(ioctl::merge(device.node()), Ok(0));
    assert_eq!(driver::images(device.index), std::slice::from_ref(&base));
    assert!(!in_use(&top));
    assert!(device.is(0, (MANY as usize) << 20, 5));
    device.detach();
    assert!(!in_use(&base));
}

/// "After STOP and CLEAR instead, the base is whole and clean, the top keeps its mark."
fn without_a_second_merge_the_top_keeps_its_mark() {
    let scratch = Scratch::new();
    let device = interrupted(&scratch);
    let [base, top] = images(&device);
    stop(&device);
    assert_eq!(ioctl::clear(device.node()), Ok(0));
    assert!(!in_use(&base) && in_use(&top));
    assert_eq!(table(&top, 128), [0; 128]);
    let device = Device::running(&[&base]);
    assert!(device.is(0, (MANY as usize) << 20, 5));
}
