//! Where clusters go, what is got ahead, and what is not there.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::driver::{Device, Mode};
use crate::harness::Test;
use crate::image::{self, Scratch, in_use, table};
use crate::ioctl::{self, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            the_file_grows_ahead_of_its_clusters,
            stop_keeps_what_was_got_ahead_and_clear_cuts_it,
            a_snapshot_cuts_what_was_got_ahead,
            zeros_for_a_cluster_that_no_delta_has_allocate_nothing,
            zeros_over_a_cluster_of_a_lower_delta_allocate,
            large_reads_are_of_all_levels,
            a_large_read_gets_no_other_cluster_s_data,
            a_hole_under_a_cluster_aborts_the_device;
    ]
}

/// MiB of the file after so many clusters were written.
const LENGTHS: [u64; 14] = [1, 3, 3, 4, 9, 9, 9, 9, 9, 10, 11, 12, 13, 27];

fn mib(image: &Path) -> u64 {
    assert_eq!(image::len(image) % (1 << 20), 0);
    image::len(image) >> 20
}

/// "MiB of the file after n = 0,1,2,… clusters written: 1,3,3,4,9,9,9,9,9,10,11,12,13,27."
fn the_file_grows_ahead_of_its_clusters() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 64);
    let device = Device::running(&[&image]);
    for (cluster, expected) in (0..).zip(LENGTHS) {
        assert_eq!(mib(&image), expected, "after {cluster}");
        device.write(cluster << 20, 1 << 20, 1);
    }
    device.detach();
    assert_eq!(mib(&image), LENGTHS.len() as u64 + 1);
}

/// "STOP keeps it, CLEAR cuts it."
fn stop_keeps_what_was_got_ahead_and_clear_cuts_it() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 64);
    let device = Device::running(&[&image]);
    device.write(0, 4 << 20, 1);
    assert_eq!(mib(&image), 9);
    device.stop().unwrap();
    assert_eq!(mib(&image), 9);
    ioctl::clear(device.node()).unwrap();
    assert_eq!(mib(&image), 5);
}

/// "At a snapshot: n=1 3→2, n=4 9→5, n=5 9→6, n=8 9→9, n=13 27→14."
fn a_snapshot_cuts_what_was_got_ahead() {
    let scratch = Scratch::new();
    for clusters in [1, 4, 5, 8, 13] {
        let image = scratch.delta(&format!("base{clusters}"), 64);
        let device = Device::running(&[&image]);
        for cluster in 0..clusters {
            device.write(cluster << 20, 1 << 20, 1);
        }
        assert_eq!(mib(&image), LENGTHS[clusters as usize]);
        let top = scratch.delta(&format!("top{clusters}"), 64);
        device.snapshot(&top).unwrap();
        assert_eq!(mib(&image), clusters + 1);
    }
}

/// "Zeros for a cluster that no delta has allocate nothing".
fn zeros_for_a_cluster_that_no_delta_has_allocate_nothing() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::running(&[&image]);
    device.write(0, 3 << 20, 0);
    assert_eq!((mib(&image), table(&image, 16)), (1, vec![0; 16]));
    device.write(0, 4096, 1);
    device.write(4096, 4096, 0);
    assert!(device.is(0, 4096, 1) && device.is(4096, 1 << 20, 0));
    device.detach();
    assert_eq!(mib(&image), 2);
}

/// "Zeros over a lower delta's cluster allocate."
fn zeros_over_a_cluster_of_a_lower_delta_allocate() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    device.write(0, 1 << 20, 1);
    device.snapshot(&top).unwrap();
    device.write(0, 1 << 20, 0);
    assert!(device.is(0, 1 << 20, 0));
    device.detach();
    assert_ne!(table(&top, 16)[0], 0);
    assert_eq!(mib(&top), 2);
}

/// One read over clusters of two deltas, and one that neither has.
fn large_reads_are_of_all_levels() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    let mut expected = vec![0; 16 << 20];
    let write = |expected: &mut Vec<u8>, offset: u64, len: usize, byte| {
        device.write(offset, len, byte);
        expected[offset as usize..][..len].fill(byte);
    };
    // In the file, the second comes first.
    write(&mut expected, 3 << 20, 2 << 20, 1);
    write(&mut expected, 1 << 20, 2 << 20, 2);
    write(&mut expected, 8 << 20, 4 << 20, 3);
    device.snapshot(&top).unwrap();
    write(&mut expected, (2 << 20) + 8192, 1 << 20, 4);
    write(&mut expected, 9 << 20, 4096, 5);
    for len in [32 << 10, 512 << 10, 1 << 20, 3 << 20] {
        for offset in [
            0,
            4096,
            1 << 20,
            (2 << 20) - 8192,
            3 << 20,
            (8 << 20) - 4096,
            13 << 20,
        ] {
            let read = ioctl::read_direct(&device.path(), offset, len).unwrap();
            assert!(
                read == expected[offset as usize..][..len],
                "{len} bytes at {offset}"
            );
        }
    }
}

/// One cluster is read while it and another one are discarded and written in turns, so that each gets the place in the
/// file that the other one had.
fn a_large_read_gets_no_other_cluster_s_data() {
    const CLUSTER: u64 = 1 << 20;
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let path = device.path();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let read = ioctl::read_direct(&path, 0, CLUSTER as usize).unwrap();
                    let other = read.iter().find(|&&byte| byte != 0 && byte != 1);
                    assert_eq!(other, None);
                }
            });
        }
        let work = || {
            let node = ioctl::open(&path, true, false).unwrap();
            for round in 0..400 {
                let (one, other) = (round % 2, (round + 1) % 2);
                ioctl::discard(&node, one * CLUSTER, CLUSTER)?;
                // Until then the place is kept for the old table.
                node.sync_all().unwrap();
                let (offset, byte) = (other * CLUSTER, 1 + other as u8);
                ioctl::write_direct(&path, offset, CLUSTER as usize, byte)?;
            }
            Ok(())
        };
        let worked: ioctl::Result<()> = work();
        stop.store(true, Ordering::Relaxed);
        worked.unwrap();
    });
}

/// "A hole under a mapped cluster: EIO, `aborted` 1, then every write EIO; after STOP and CLEAR the mark stays, the
/// next ADD_DELTA EBUSY."
fn a_hole_under_a_cluster_aborts_the_device() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::running(&[&image]);
    device.write(0, 3 << 20, 1);
    device.detach();
    let file = ioctl::open(&image, true, false).unwrap();
    // The place of the second cluster.
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: numbers only.
    let punched = unsafe { libc::fallocate(file.as_raw_fd(), mode, 2 << 20, 1 << 20) };
    assert_eq!(punched, 0);
    file.sync_all().unwrap();
    drop(file);
    let device = Device::running(&[&image]);
    assert_eq!(device.attribute("pstate/aborted"), "0");
    assert!(device.is(0, 1 << 20, 1) && device.is(2 << 20, 1 << 20, 1));
    assert_eq!(device.attribute("pstate/aborted"), "0");
    for len in [4096, 1 << 20] {
        let read = ioctl::read_direct(&device.path(), 1 << 20, len);
        assert_eq!(read, Err(ioctl::Errno(libc::EIO)));
    }
    assert_eq!(device.attribute("pstate/aborted"), "1");
    for offset in [0, 8 << 20] {
        let written = ioctl::write_direct(&device.path(), offset, 4096, 2);
        assert_eq!(written, Err(ioctl::Errno(libc::EIO)));
    }
    device.detach();
    assert!(in_use(&image));
    assert_eq!(device.add(&image, Mode::Writable), error(libc::EBUSY));
}
