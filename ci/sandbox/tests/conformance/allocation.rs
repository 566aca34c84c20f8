//! Where clusters go, what is got ahead, and what is not there.

use std::os::fd::AsRawFd;
use std::path::Path;

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
    let read = ioctl::read_direct(&device.path(), 1 << 20, 4096);
    assert_eq!(read, Err(ioctl::Errno(libc::EIO)));
    assert_eq!(device.attribute("pstate/aborted"), "1");
    for offset in [0, 8 << 20] {
        let written = ioctl::write_direct(&device.path(), offset, 4096, 2);
        assert_eq!(written, Err(ioctl::Errno(libc::EIO)));
    }
    device.detach();
    assert!(in_use(&image));
    assert_eq!(device.add(&image, Mode::Writable), error(libc::EBUSY));
}
