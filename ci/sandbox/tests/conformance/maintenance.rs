//! What a device is busy with, and for how long; and devices that are attached and do not run.

use crate::driver::{Device, Mode};
use crate::harness::Test;
use crate::image::{self, Scratch, table};
use crate::ioctl::{self, Balloon, FreeBlocks, Relocation, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            tracking_outlives_whoever_began_it,
            discards_outlive_whoever_asked_for_them,
            another_discard_meanwhile_is_ebusy,
            without_start_grow_is_0_and_sets_the_size,
            without_start_track_init_and_sync_are_0,
            tracking_notes_what_changes_before_the_position,
            free_blocks_need_a_balloon_and_the_top_level,
            the_next_new_cluster_takes_the_first_that_is_free,
            fbfilter_is_einval_and_fbdrop_ends_it,
            relocation_moves_with_n_scanned_only,
            a_balloon_in_a_raw_image_is_enotsup,
            getdevice_counts_from_0;
    ]
}

const TRACK: u32 = 4;
const DISCARD: u32 = 5;
const FREE_BLOCKS: u32 = 2;

fn base() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 64)]);
    (scratch, device)
}

/// A second opener, which is gone when this returns, as somebody who was killed.
fn by_somebody_else(device: &mut Device, what: fn(&std::fs::File)) {
    what(device.node());
    device.close();
    device.open();
}

/// "Owner of TRACK_INIT […] killed: type[…] 4 […] stay[s], also over STOP and START; TRACK_STOP […] clears".
fn tracking_outlives_whoever_began_it() {
    let (_scratch, mut device) = base();
    by_somebody_else(&mut device, |node| assert!(ioctl::track_init(node).is_ok()));
    assert_eq!(ioctl::busy_with(device.node()), Ok(TRACK));
    device.stop().unwrap();
    assert_eq!(ioctl::clear(device.node()), error(libc::EBUSY));
    ioctl::start(device.node()).unwrap();
    assert_eq!(ioctl::busy_with(device.node()), Ok(TRACK));
    assert_eq!(device.grow(128 << 11), error(libc::EBUSY));
    assert_eq!(ioctl::track_stop(device.node()), Ok(0));
    assert_eq!(ioctl::busy_with(device.node()), Ok(0));
}

/// "Owner of […] DISCARD_INIT killed: type[…] 5 stay[s], also over STOP and START; […] DISCARD_FINI clears".
fn discards_outlive_whoever_asked_for_them() {
    let (_scratch, mut device) = base();
    by_somebody_else(&mut device, |node| {
        assert_eq!(ioctl::discard_init(node), Ok(0))
    });
    assert_eq!(ioctl::busy_with(device.node()), Ok(DISCARD));
    device.stop().unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(ioctl::busy_with(device.node()), Ok(DISCARD));
    assert_eq!(ioctl::discard_finish(device.node()), Ok(0));
    assert_eq!(ioctl::busy_with(device.node()), Ok(0));
}

/// "Another discard: DISCARD_INIT EBUSY".
fn another_discard_meanwhile_is_ebusy() {
    let (_scratch, mut device) = base();
    by_somebody_else(&mut device, |node| {
        assert_eq!(ioctl::discard_init(node), Ok(0))
    });
    assert_eq!(ioctl::discard_init(device.node()), error(libc::EBUSY));
    assert_eq!(
        ioctl::track_init(device.node()),
        Err(ioctl::Errno(libc::EBUSY))
    );
}

/// "**Attached, not started.** GROW 0, and sets `size`".
fn without_start_grow_is_0_and_sets_the_size() {
    let scratch = Scratch::new();
    let device = Device::new();
    device
        .add(&scratch.delta("base", 16), Mode::Writable)
        .unwrap();
    assert_eq!(device.grow(32 << 11), Ok(0));
    assert_eq!(device.number("size"), 32 << 11);
    ioctl::start(device.node()).unwrap();
    device.write(31 << 20, 4096, 3);
    device.stop().unwrap();
    assert_eq!(device.number("size"), 0);
    assert_eq!(device.grow(48 << 11), Ok(0));
    assert_eq!(device.number("size"), 48 << 11);
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.number("size"), 48 << 11);
    assert!(device.is(31 << 20, 4096, 3) && device.is(47 << 20, 1 << 20, 0));
}

/// "TRACK_INIT, SYNC 0, also after STOP".
fn without_start_track_init_and_sync_are_0() {
    let scratch = Scratch::new();
    let device = Device::new();
    let node = device.node();
    device
        .add(&scratch.delta("base", 16), Mode::Writable)
        .unwrap();
    for started in [false, true] {
        if started {
            ioctl::start(node).unwrap();
            device.stop().unwrap();
        }
        assert_eq!(ioctl::sync(node), Ok(0));
        assert_eq!(ioctl::track_init(node), Ok([0, 1 << 20]));
        assert_eq!(ioctl::busy_with(node), Ok(TRACK));
        assert_eq!(ioctl::track_abort(node), Ok(0));
    }
}

/// What changes behind the position was not copied yet. It is read as what lies between the position and the end, once
/// nothing else has changed *(source)*.
fn tracking_notes_what_changes_before_the_position() {
    const MIB: u64 = 1 << 20;
    let (_scratch, device, _) = eight();
    let node = device.node();
    let again = error(libc::EAGAIN).map(|_| [0; 2]);
    assert_eq!(ioctl::track_init(node), Ok([0, 9 * MIB]));
    device.write(0, 4096, 21);
    assert_eq!(ioctl::track_set_position(node, 3 * MIB), Ok(0));
    device.write(MIB, 4096, 22);
    device.write(2 * MIB, 4096, 23);
    assert_eq!(ioctl::track_set_position(node, 9 * MIB), Ok(0));
    // The second cluster of the disk is the third one of the file.
    assert_eq!(ioctl::track_read(node), Ok([2 * MIB, 3 * MIB]));
    assert_eq!(ioctl::track_read(node), again);
    device.write(20 * MIB, 4096, 24);
    // The table is in the first one.
    assert_eq!(ioctl::track_read(node), Ok([0, MIB]));
    assert_eq!(ioctl::track_read(node), Ok([9 * MIB, 10 * MIB]));
    assert_eq!(
        ioctl::track_set_position(node, 5 * MIB),
        error(libc::EINVAL)
    );
    assert_eq!(ioctl::track_stop(node), Ok(0));
}

/// An image with 8 clusters, of which the second and third are given up.
fn eight() -> (Scratch, Device, FreeBlocks) {
    let (scratch, device) = base();
    for cluster in 0..8 {
        device.write(cluster << 20, 1 << 20, 1 + cluster as u8);
    }
    let mut blocks = FreeBlocks {
        count: 1,
        ..FreeBlocks::default()
    };
    // The cluster, its place in the file, how many.
    blocks.extents[0] = [1, 2, 2, 0];
    (scratch, device, blocks)
}

fn inflate(device: &Device) {
    let mut balloon = Balloon {
        inflate: 1,
        ..Balloon::default()
    };
    ioctl::balloon(device.node(), &mut balloon).unwrap();
}

/// "Without BALLOON inflate EINVAL, wrong level EINVAL, twice EBUSY. Afterwards type 2, head 9 (8 clusters written)."
fn free_blocks_need_a_balloon_and_the_top_level() {
    let (_scratch, device, mut blocks) = eight();
    let node = device.node();
    assert_eq!(
        ioctl::load_free_blocks(node, &mut blocks),
        error(libc::EINVAL)
    );
    inflate(&device);
    let mut wrong = FreeBlocks { level: 1, ..blocks };
    assert_eq!(
        ioctl::load_free_blocks(node, &mut wrong),
        error(libc::EINVAL)
    );
    assert_eq!(ioctl::load_free_blocks(node, &mut blocks), Ok(0));
    assert_eq!(blocks.head, 9);
    assert_eq!(
        ioctl::load_free_blocks(node, &mut blocks),
        error(libc::EBUSY)
    );
    let mut balloon = Balloon {
        keep: 1,
        ..Balloon::default()
    };
    ioctl::balloon(node, &mut balloon).unwrap();
    assert_eq!((balloon.kind, balloon.head), (FREE_BLOCKS, 9));
    assert_eq!(ioctl::drop_free_blocks(node), Ok(0));
}

/// "The next new cluster takes the first freed slot, and the freed cluster's entry becomes 0".
fn the_next_new_cluster_takes_the_first_that_is_free() {
    let (scratch, device, mut blocks) = eight();
    inflate(&device);
    ioctl::load_free_blocks(device.node(), &mut blocks).unwrap();
    device.write(20 << 20, 1 << 20, 20);
    device.write(21 << 20, 4096, 21);
    device.write(22 << 20, 1 << 20, 22);
    ioctl::drop_free_blocks(device.node()).unwrap();
    assert!(device.is(20 << 20, 1 << 20, 20));
    assert!(device.is(21 << 20, 4096, 21) && device.is((21 << 20) + 4096, (1 << 20) - 4096, 0));
    assert!(device.is(22 << 20, 1 << 20, 22));
    assert!(device.is(1 << 20, 2 << 20, 0));
    assert!(device.is(3 << 20, 1 << 20, 4));
    device.detach();
    let entries = table(&scratch.path("base"), 24);
    assert_eq!(entries[..8], [1, 0, 0, 4, 5, 6, 7, 8]);
    assert_eq!(entries[20..], [2, 3, 9, 0]);
}

/// "FBFILTER then EINVAL; FBDROP ends it."
fn fbfilter_is_einval_and_fbdrop_ends_it() {
    let (_scratch, device, mut blocks) = eight();
    let node = device.node();
    inflate(&device);
    ioctl::load_free_blocks(node, &mut blocks).unwrap();
    assert_eq!(ioctl::filter_free_blocks(node, 1), error(libc::EINVAL));
    assert_eq!(ioctl::busy_with(node), Ok(FREE_BLOCKS));
    assert_eq!(ioctl::drop_free_blocks(node), Ok(0));
    assert_eq!(ioctl::busy_with(node), Ok(0));
    for cluster in 0..8 {
        assert!(device.is(cluster << 20, 1 << 20, 1 + cluster as u8));
    }
}

/// "RELOCBLKS moves only with `n_scanned` set: 9 → 7 MiB."
fn relocation_moves_with_n_scanned_only() {
    for (scanned, mib) in [(0, 9), (8, 7)] {
        let (scratch, device, mut blocks) = eight();
        let node = device.node();
        inflate(&device);
        ioctl::load_free_blocks(node, &mut blocks).unwrap();
        let mut relocation = Relocation {
            scanned,
            head: blocks.head,
            count: 1,
            ..Relocation::default()
        };
        // From the last two clusters to what is free.
        relocation.extents[0] = [6, 7, 2, 0];
        assert_eq!(ioctl::relocate(node, &mut relocation), Ok(0), "{scanned}");
        assert_eq!(ioctl::busy_with(node), Ok(0));
        for cluster in [0, 3, 4, 5, 6, 7] {
            assert!(device.is(cluster << 20, 1 << 20, 1 + cluster as u8));
        }
        device.detach();
        assert_eq!(image::len(&scratch.path("base")), mib << 20, "{scanned}");
    }
}

/// "BALLOON inflate on raw: ENOTSUP."
fn a_balloon_in_a_raw_image_is_enotsup() {
    let scratch = Scratch::new();
    let device = Device::new();
    let raw = scratch.raw("base", 16);
    device
        .add_with(&raw, Mode::Writable, |control| {
            control.format = ioctl::Control::RAW;
        })
        .unwrap();
    ioctl::start(device.node()).unwrap();
    let mut balloon = Balloon {
        inflate: 1,
        ..Balloon::default()
    };
    assert_eq!(
        ioctl::balloon(device.node(), &mut balloon),
        error(libc::EOPNOTSUPP)
    );
}

/// "**GETDEVICE.** Counts from 0: minor 0 while devices are numbered from 10000 on."
fn getdevice_counts_from_0() {
    let device = Device::new();
    let mut answer = [7];
    assert_eq!(ioctl::get_device(device.node(), &mut answer), Ok(0));
    assert_eq!(answer[0] as u32, 0);
}
