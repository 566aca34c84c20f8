//! Changed block tracking, `BLKCBT*`, of Virtuozzo's block layer; and what the driver does with an image in which
//! libploop 7 has stored such a bitmap. As **read** in the sources of libploop 7 and of Virtuozzo kernels: nobody has run
//! these tests on one yet.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ploop::image::Header;

use crate::driver::{Device, Mode};
use crate::harness::{Need, Test};
use crate::image::{Scratch, in_use};
use crate::ioctl::{self, ChangedBlocks, Errno, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Virtuozzo7] =>
            without_start_there_is_nothing_to_ask,
            a_start_names_uuid_and_block_size,
            what_was_written_is_told,
            what_was_read_is_not,
            a_discard_counts,
            once_told_it_is_forgotten,
            many_extents_are_told_in_parts,
            bits_are_set_and_cleared_under_the_uuid,
            bits_behind_the_end_are_einval,
            tracking_goes_on_over_stop_clear_and_start,
            a_device_that_grows_is_tracked_to_its_new_end,
            a_stored_bitmap_is_not_kept_up_by_the_driver,
            a_read_only_delta_keeps_its_stored_bitmap,
            a_merge_does_not_keep_a_stored_bitmap,
            a_merge_that_is_refused_keeps_a_stored_bitmap;
        &[Need::Virtuozzo7, Need::Tool] =>
            the_partition_has_the_tracking_of_the_device;
    ]
}

const BLOCK: u64 = 64 << 10;

fn start(node: &File, uuid: u8, block_size: u32) -> ioctl::Result<i32> {
    let mut info = ChangedBlocks::new(uuid);
    info.block_size = block_size;
    ioctl::start_changed_blocks(node, &mut info)
}

/// What changed of the whole device.
fn told(node: &File, flags: u32) -> ioctl::Result<ChangedBlocks> {
    let mut info = ChangedBlocks::new(0);
    info.length = u64::MAX;
    info.count = 512;
    info.flags = flags;
    ioctl::changed_blocks(node, &mut info)?;
    Ok(info)
}

/// Its extents as numbers of blocks.
#[track_caller]
fn changed(node: &File) -> Vec<(u64, u64)> {
    extents(&told(node, 0).unwrap())
}

fn extents(info: &ChangedBlocks) -> Vec<(u64, u64)> {
    let mapped = &info.extents[..info.mapped as usize];
    let block = u64::from(info.block_size);
    mapped
        .iter()
        .map(|[start, len, zero]| {
            assert_eq!((start % block, len % block, *zero), (0, 0, 0));
            (start / block, (start + len) / block)
        })
        .collect()
}

fn set(node: &File, uuid: u8, bits: &[(u64, u64)], changed: bool) -> ioctl::Result<i32> {
    let mut info = ChangedBlocks::new(uuid);
    for (extent, (start, end)) in info.extents.iter_mut().zip(bits) {
        *extent = [start * BLOCK, (end - start) * BLOCK, 0];
    }
    info.mapped = bits.len() as u32;
    info.count = info.mapped;
    ioctl::set_changed_blocks(node, &mut info, changed)
}

/// A device of 16 MiB, 256 blocks, that is tracked.
fn tracked() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    assert_eq!(start(device.node(), 1, BLOCK as u32), Ok(0));
    (scratch, device)
}

fn without_start_there_is_nothing_to_ask() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let node = device.node();
    assert_eq!(told(node, 0).map(drop), Err(Errno(libc::EINVAL)));
    assert_eq!(set(node, 1, &[(0, 1)], true), error(libc::EINVAL));
    assert_eq!(ioctl::stop_changed_blocks(node), error(libc::EINVAL));
    start(node, 1, 4096).unwrap();
    assert_eq!(ioctl::stop_changed_blocks(node), Ok(0));
    assert_eq!(told(node, 0).map(drop), Err(Errno(libc::EINVAL)));
}

fn a_start_names_uuid_and_block_size() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let node = device.node();
    for bad in [0, 3, 65535] {
        assert_eq!(start(node, 1, bad), error(libc::EINVAL), "{bad}");
    }
    assert_eq!(start(node, 7, 8192), Ok(0));
    assert_eq!(start(node, 8, 4096), error(libc::EBUSY));
    // A question without room for extents.
    let mut info = ChangedBlocks::new(0);
    assert_eq!(ioctl::changed_blocks(node, &mut info), Ok(0));
    assert_eq!(
        (info.uuid, info.block_size, info.mapped),
        ([7; 16], 8192, 0)
    );
}

fn what_was_written_is_told() {
    let (_scratch, device) = tracked();
    let node = device.node();
    assert_eq!(changed(node), []);
    device.write(5 * BLOCK, 4096, 1);
    device.write(8 * BLOCK - 4096, 8192, 1);
    device.write(255 * BLOCK, BLOCK as usize, 1);
    assert_eq!(changed(node), [(5, 6), (7, 9), (255, 256)]);
    // Asked again, it is the same.
    assert_eq!(changed(node), [(5, 6), (7, 9), (255, 256)]);
    let mut part = ChangedBlocks::new(0);
    (part.start, part.length, part.count) = (8 * BLOCK, 1, 512);
    ioctl::changed_blocks(node, &mut part).unwrap();
    assert_eq!(extents(&part), [(8, 9)]);
    part.start = 257 * BLOCK;
    assert_eq!(
        ioctl::changed_blocks(node, &mut part),
        error(libc::EINVAL),
        "behind the end"
    );
}

fn what_was_read_is_not() {
    let (_scratch, device) = tracked();
    assert!(device.is(0, 1 << 20, 0));
    assert_eq!(changed(device.node()), []);
}

fn a_discard_counts() {
    let (_scratch, device) = tracked();
    let node = ioctl::open(&device.path(), true, false).unwrap();
    assert_eq!(ioctl::discard(&node, 1 << 20, 1 << 20), Ok(0));
    assert_eq!(changed(device.node()), [(16, 32)]);
}

fn once_told_it_is_forgotten() {
    let (_scratch, device) = tracked();
    let node = device.node();
    device.write(3 * BLOCK, 4096, 1);
    let told_once = told(node, ChangedBlocks::ONCE).unwrap();
    assert_eq!(extents(&told_once), [(3, 4)]);
    assert_eq!(changed(node), []);
    device.write(4 * BLOCK, 4096, 1);
    assert_eq!(changed(node), [(4, 5)]);
    let unknown = told(node, 4).map(drop);
    assert_eq!(unknown, Err(Errno(libc::EINVAL)));
}

fn many_extents_are_told_in_parts() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 64)]);
    let node = device.node();
    start(node, 1, 4096).unwrap();
    let mut info = ChangedBlocks::new(1);
    // Every other block.
    for round in 0..4 {
        for (number, extent) in (0..).zip(&mut info.extents) {
            *extent = [8192 * (512 * round + number), 4096, 0];
        }
        (info.mapped, info.count) = (512, 512);
        ioctl::set_changed_blocks(node, &mut info, true).unwrap();
    }
    let mut found = Vec::new();
    let mut ask = ChangedBlocks::new(0);
    (ask.length, ask.count) = (64 << 20, 512);
    loop {
        ioctl::changed_blocks(node, &mut ask).unwrap();
        let mapped = &ask.extents[..ask.mapped as usize];
        found.extend(mapped.iter().map(|extent| extent[0]));
        let Some([start, len, _]) = mapped.last() else {
            break;
        };
        ask.start = start + len;
        ask.length = (64 << 20) - ask.start;
    }
    let expected: Vec<u64> = (0..2048).map(|number| 8192 * number).collect();
    assert_eq!(found, expected);
    for ask in [&mut ask, &mut info] {
        ask.count = 513;
    }
    assert_eq!(ioctl::changed_blocks(node, &mut ask), error(libc::EINVAL));
    let result = ioctl::set_changed_blocks(node, &mut info, true);
    assert_eq!(result, error(libc::EINVAL));
}

fn bits_are_set_and_cleared_under_the_uuid() {
    let (_scratch, device) = tracked();
    let node = device.node();
    assert_eq!(set(node, 1, &[(0, 100), (200, 256)], true), Ok(0));
    assert_eq!(set(node, 1, &[(50, 60), (255, 256)], false), Ok(0));
    assert_eq!(changed(node), [(0, 50), (60, 100), (200, 255)]);
    for changes in [true, false] {
        let other = set(node, 2, &[(0, 1)], changes);
        assert_eq!(other, error(libc::EINVAL), "another UUID");
    }
    let mut new = ChangedBlocks::new(2);
    new.flags = ChangedBlocks::NEW_UUID;
    assert_eq!(ioctl::set_changed_blocks(node, &mut new, true), Ok(0));
    assert_eq!(told(node, 0).unwrap().uuid, [2; 16]);
    assert_eq!(set(node, 2, &[(0, 256)], false), Ok(0));
    assert_eq!(changed(node), []);
    // More extents than there is room for.
    let mut wrong = ChangedBlocks::new(2);
    (wrong.mapped, wrong.count) = (2, 1);
    let result = ioctl::set_changed_blocks(node, &mut wrong, true);
    assert_eq!(result, error(libc::EINVAL));
}

fn bits_behind_the_end_are_einval() {
    let (_scratch, device) = tracked();
    let node = device.node();
    // What comes before the wrong one is done.
    assert_eq!(
        set(node, 1, &[(3, 4), (255, 257), (9, 10)], true),
        error(libc::EINVAL)
    );
    assert_eq!(set(node, 1, &[(5, 5)], true), error(libc::EINVAL));
    assert_eq!(changed(node), [(3, 4)]);
}

/// It belongs to the block device, so libploop can ask for it when the image is gone already.
fn tracking_goes_on_over_stop_clear_and_start() {
    let (scratch, device) = tracked();
    let node = device.node();
    device.write(3 * BLOCK, 4096, 1);
    device.detach();
    assert_eq!(changed(node), [(3, 4)]);
    device.add(&scratch.path("base"), Mode::Writable).unwrap();
    assert_eq!(changed(node), [(3, 4)]);
    ioctl::start(node).unwrap();
    device.write(5 * BLOCK, 4096, 1);
    assert_eq!(changed(node), [(3, 4), (5, 6)]);
    device.detach();
    assert_eq!(ioctl::stop_changed_blocks(node), Ok(0));
}

fn a_device_that_grows_is_tracked_to_its_new_end() {
    let (_scratch, device) = tracked();
    assert_eq!(device.grow(32 << 11), Ok(0));
    device.write(511 * BLOCK, 4096, 1);
    assert_eq!(changed(device.node()), [(511, 512)]);
    assert_eq!(set(device.node(), 1, &[(510, 512)], true), Ok(0));
}

fn the_partition_has_the_tracking_of_the_device() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    start(device.node(), 1, BLOCK as u32).unwrap();
    let partition = device.partition();
    // The partition begins at 1 MiB.
    ioctl::write_direct(&partition, 0, 4096, 1).unwrap();
    assert_eq!(changed(device.node()), [(16, 17)]);
    assert_eq!(changed(&File::open(partition).unwrap()), [(16, 17)]);
}

/// The mark of a closed image whose format extension counts ("v2.1").
const CLOSED: u32 = 0x312e_3276;

/// Appends a cluster to a delta and names it in the header as the format extension, as libploop 7 does.
fn store_bitmap(image: &Path) -> Header {
    let mut header = Header::read(image).unwrap();
    let file = File::options().write(true).open(image).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len + (1 << 20)).unwrap();
    // No hole, in which the driver could not read.
    file.write_all_at(&vec![0xee; 1 << 20], len).unwrap();
    header.extension_sector = len / 512;
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    file.write_all_at(&CLOSED.to_le_bytes(), 44).unwrap();
    file.sync_all().unwrap();
    let header = Header::read(image).unwrap();
    assert!(header.has_extension());
    header
}

/// "Whoever writes to the image takes the mark away."
fn a_stored_bitmap_is_not_kept_up_by_the_driver() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let before = store_bitmap(&image);
    let device = Device::new();
    device.add(&image, Mode::Writable).unwrap();
    assert!(in_use(&image));
    ioctl::start(device.node()).unwrap();
    device.write(0, 4096, 1);
    device.detach();
    assert!(!in_use(&image));
    let after = Header::read(&image).unwrap();
    assert!(!after.has_extension());
    assert_eq!(after.extension_sector, before.extension_sector);
    let stored = ioctl::read_direct(&image, before.extension_sector * 512, 4096).unwrap();
    assert!(stored.iter().all(|byte| *byte == 0xee));
    let device = Device::running(&[&image]);
    assert!(device.is(0, 4096, 1));
}

fn a_read_only_delta_keeps_its_stored_bitmap() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    store_bitmap(&base);
    let device = Device::running(&[&base, &top]);
    device.write(0, 4096, 1);
    device.detach();
    assert!(Header::read(&base).unwrap().has_extension());
}

fn a_merge_does_not_keep_a_stored_bitmap() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    store_bitmap(&base);
    let device = Device::running(&[&base, &top]);
    device.write(3 << 20, 4096, 1);
    assert_eq!(ioctl::merge(device.node()), Ok(0));
    device.detach();
    assert!(!Header::read(&base).unwrap().has_extension());
    let device = Device::running(&[&base]);
    assert!(device.is(3 << 20, 4096, 1));
}

fn a_merge_that_is_refused_keeps_a_stored_bitmap() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    store_bitmap(&base);
    let device = Device::new();
    for image in [&base, &top] {
        device.add(image, Mode::ReadOnly).unwrap();
    }
    ioctl::start(device.node()).unwrap();
    assert_eq!(ioctl::merge(device.node()), error(libc::EROFS));
    device.detach();
    assert!(Header::read(&base).unwrap().has_extension());
}
