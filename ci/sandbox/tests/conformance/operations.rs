//! What libploop's operations leave behind, in the order of the table of what it calls.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use ploop::image::{Descriptor, Disk};

use crate::driver::{self, NO_TOP};
use crate::harness::{Need, Test};
use crate::image::{self, Image, Scratch};
use crate::program::ploop;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Tool] =>
            mount_adds_the_deltas_base_first_and_starts,
            mount_makes_a_missing_partition_node,
            init_with_a_file_system_stops_and_clears_the_device,
            unmount_writes_statfs_and_the_next_mount_removes_it,
            a_snapshot_online_has_a_new_top,
            deleting_the_top_merges_it_into_the_one_below,
            deleting_a_middle_delta_renumbers_those_above,
            deleting_the_base_renumbers_those_above,
            merging_all_of_three_leaves_one,
            growing_online_grows_device_and_partition,
            shrinking_online_keeps_the_size_of_the_device,
            shrinking_offline_keeps_the_size_of_the_device,
            discard_gives_space_back,
            a_copy_has_the_same_contents,
            replace_online_changes_the_file_of_a_level;
    ]
}

fn guids(image: &Image) -> usize {
    Descriptor::open(image.descriptor())
        .unwrap()
        .snapshots
        .len()
}

fn no_temporary_file(image: &Image) {
    let names: Vec<PathBuf> = fs::read_dir(image.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tmp"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

/// "mount | open device read-only; ADD_DELTA per level, base first […]; START; BLKRRPART; `mount`; remount with
/// `balloon_ino=N,`."
fn mount_adds_the_deltas_base_first_and_starts() {
    let image = Image::new();
    image.snapshot();
    let files = Descriptor::open(image.descriptor()).unwrap();
    let files: Vec<PathBuf> = files
        .chain(files.top)
        .iter()
        .map(|image| image.file.clone())
        .collect();
    assert_eq!(files.len(), 2);
    let device = image.mount();
    assert_eq!(driver::images(device), files);
    let attribute = |path: &str| driver::attribute(device, path);
    assert_eq!(attribute("pstate/running"), "1");
    assert_eq!(attribute("pstate/top"), "1");
    assert_eq!(
        (attribute("pdelta/0/ro"), attribute("pdelta/1/ro")),
        ("1".into(), "0".into())
    );
    assert_eq!(driver::number(device, "size"), 384 << 11);
    assert_eq!(attribute(&format!("ploop{device}p1/start")), "2048");
}

/// "A missing p1 node is made first (mknod)".
fn mount_makes_a_missing_partition_node() {
    let image = Image::new();
    let device = image.mount();
    let node = driver::partition_node(device);
    assert!(fs::metadata(node).unwrap().file_type().is_block_device());
}

/// "init with a file system | ADD_DELTA, START, BLKRRPART, `parted` (GPT), `mkfs`, […] create the balloon file, […]
/// unmount, BALLOON, STOP, CLEAR".
fn init_with_a_file_system_stops_and_clears_the_device() {
    let scratch = Scratch::new();
    let file = scratch.path("root.hds");
    let before = driver::devices();
    image::init(&file, "384M").expect(0);
    assert_eq!(driver::device_of(&file), None);
    for device in driver::devices() {
        if !before.contains(&device) {
            assert_eq!(driver::attribute(device, "pstate/top"), NO_TOP);
        }
    }
    assert!(!image::in_use(&file));
    let disk = Disk::open(scratch.path("DiskDescriptor.xml")).unwrap();
    let partitions = disk.partitions().unwrap();
    assert_eq!((partitions.len(), partitions[0].offset), (1, 1 << 20));
    let mut magic = [0; 2];
    disk.read_at(&mut magic, partitions[0].offset + 1024 + 56)
        .unwrap();
    assert_eq!(magic, [0x53, 0xef]);
}

/// "unmount | […]; writes `.statfs` beside the image, removed by the next mount".
fn unmount_writes_statfs_and_the_next_mount_removes_it() {
    let image = Image::new();
    let device = image.mount();
    assert!(!image.path(".statfs").exists());
    image.unmount();
    assert!(image.path(".statfs").exists());
    assert_eq!(driver::attribute(device, "pstate/top"), NO_TOP);
    assert!(!image::in_use(&image.base()));
    image.mount();
    assert!(!image.path(".statfs").exists());
}

/// "snapshot | BALLOON; descriptor to a temporary; SNAPSHOT (with the new delta's fd); rename".
fn a_snapshot_online_has_a_new_top() {
    let image = Image::new();
    let device = image.mount();
    image.write("before", 2, 1);
    image.snapshot();
    image.write("after", 2, 2);
    let images = driver::images(device);
    assert_eq!(images.len(), 2);
    assert_eq!(driver::attribute(device, "pstate/top"), "1");
    let descriptor = Descriptor::open(image.descriptor()).unwrap();
    let top = descriptor
        .chain(descriptor.top)
        .last()
        .unwrap()
        .file
        .clone();
    assert_eq!(images, [image.base(), top.clone()]);
    assert!(!image::in_use(&image.base()) && image::in_use(&top));
    no_temporary_file(&image);
    image.verify("before", 2, 1);
    image.verify("after", 2, 2);
}

/// "delete, top | BALLOON, descriptor temporary, MERGE, rename, unlink".
fn deleting_the_top_merges_it_into_the_one_below() {
    let image = Image::new();
    let device = image.mount();
    image.write("before", 2, 1);
    let guid = image.snapshot();
    image.write("after", 2, 2);
    let top = driver::images(device).pop().unwrap();
    // The snapshot is what lies below the top: deleting it merges the two.
    image.delete_snapshot(&guid);
    assert_eq!(driver::images(device).len(), 1);
    assert_eq!(driver::attribute(device, "pstate/top"), "0");
    assert!(!top.exists());
    assert_eq!(guids(&image), 1);
    no_temporary_file(&image);
    image.write("later", 1, 3);
    for (name, mib, byte) in [("before", 2, 1), ("after", 2, 2), ("later", 1, 3)] {
        image.verify(name, mib, byte);
    }
    image.unmount();
    image.mount();
    image.verify("after", 2, 2);
}

/// An image with two snapshots, mounted, and a file of each time.
fn three() -> (Image, u32, [String; 2]) {
    let image = Image::new();
    let device = image.mount();
    image.write("1", 2, 1);
    let first = image.snapshot();
    image.write("2", 2, 2);
    let second = image.snapshot();
    image.write("3", 2, 3);
    assert_eq!(driver::images(device).len(), 3);
    (image, device, [first, second])
}

#[track_caller]
fn all_three_are_there(image: &Image) {
    for (name, byte) in [("1", 1), ("2", 2), ("3", 3)] {
        image.verify(name, 2, byte);
    }
}

/// "delete, middle or base | copy of the clusters by libploop itself into the lower file, then DEL_DELTA (renumbers the
/// levels above)". The upper of two is merged by MERGE, so this is the base.
fn deleting_the_base_renumbers_those_above() {
    let (image, device, [first, _]) = three();
    let images = driver::images(device);
    image.delete_snapshot(&first);
    let left = driver::images(device);
    assert_eq!(left.len(), 2);
    assert_eq!(left[1], images[2]);
    assert_eq!(driver::attribute(device, "pstate/top"), "1");
    assert_eq!(driver::attribute(device, "pdelta/1/level"), "1");
    all_three_are_there(&image);
    image.write("4", 1, 4);
    image.unmount();
    image.mount();
    all_three_are_there(&image);
    image.verify("4", 1, 4);
}

/// The same, with a delta between.
fn deleting_a_middle_delta_renumbers_those_above() {
    let (image, device, [_, second]) = three();
    image.snapshot();
    image.write("4", 2, 4);
    let images = driver::images(device);
    assert_eq!(images.len(), 4);
    image.delete_snapshot(&second);
    let left = driver::images(device);
    assert_eq!(left.len(), 3);
    assert_eq!((&left[0], &left[2]), (&images[0], &images[3]));
    assert_eq!(driver::attribute(device, "pdelta/2/level"), "2");
    all_three_are_there(&image);
    image.unmount();
    image.mount();
    all_three_are_there(&image);
    image.verify("4", 2, 4);
}

/// "merge all of 3 | DEL_DELTA ×2, then MERGE".
fn merging_all_of_three_leaves_one() {
    let (image, device, _) = three();
    ploop(&[&"snapshot-merge", &"-A", &image.descriptor()]).expect(0);
    assert_eq!(driver::images(device).len(), 1);
    assert_eq!(driver::attribute(device, "pstate/top"), "0");
    all_three_are_there(&image);
    image.unmount();
    image.mount();
    all_three_are_there(&image);
}

fn partition_size(device: u32) -> u64 {
    driver::number(device, &format!("ploop{device}p1/size"))
}

fn disk_size(image: &Image) -> u64 {
    Descriptor::open(image.descriptor()).unwrap().size.sectors()
}

/// What `df` says of a mounted image.
fn mib(image: &Image, what: &str) -> u64 {
    let column = format!("--output={what}");
    let output = crate::program::run("df", &[&column, &"-m", &image.target()]);
    output.expect(0);
    let number = output.text.lines().nth(1).unwrap().trim();
    number.parse().unwrap()
}

/// "grow | BALLOON, OPEN_BALLOON, flock, GROW, GPT rewrite, BLKPG resize of the partition, `resize2fs`".
fn growing_online_grows_device_and_partition() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 3, 1);
    let (partition, size) = (partition_size(device), mib(&image, "size"));
    image.resize("512M");
    assert_eq!(driver::number(device, "size"), 512 << 11);
    assert!(partition_size(device) >= partition + (127 << 11));
    assert!(mib(&image, "size") > size + 100);
    assert_eq!(disk_size(&image), 512 << 11);
    image.verify("file", 3, 1);
    image.unmount();
    image.mount();
    image.verify("file", 3, 1);
}

/// "shrink | […]. The device and `Disk_size` keep their size, online".
fn shrinking_online_keeps_the_size_of_the_device() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 3, 1);
    let free = mib(&image, "avail");
    image.resize("256M");
    assert!(mib(&image, "avail") + 100 < free);
    assert_eq!(driver::number(device, "size"), 384 << 11);
    assert_eq!(disk_size(&image), 384 << 11);
    image.verify("file", 3, 1);
}

/// "and offline".
fn shrinking_offline_keeps_the_size_of_the_device() {
    let image = Image::new();
    image.resize("256M");
    assert_eq!(disk_size(&image), 384 << 11);
    assert_eq!(image.device(), None);
    let device = image.mount();
    assert_eq!(driver::number(device, "size"), 384 << 11);
}

/// "discard | DISCARD_INIT, DISCARD_WAIT, FITRIM in a child, FBFILTER […], BALLOON, FBGET ×2, RELOCBLKS, DISCARD_WAIT,
/// DISCARD_FINI".
fn discard_gives_space_back() {
    let image = Image::new();
    image.mount();
    image.write("removed", 20, 1);
    image.write("kept", 5, 2);
    image.unmount();
    let before = image::len(&image.base());
    image.mount();
    fs::remove_file(image.target().join("removed")).unwrap();
    ploop(&[&"balloon", &"discard", &image.descriptor()]).expect(0);
    image.verify("kept", 5, 2);
    image.unmount();
    let after = image::len(&image.base());
    assert!(after + (15 << 20) < before, "{before} and then {after}");
    image.mount();
    image.verify("kept", 5, 2);
}

/// "copy | TRACK_INIT, SETPOS, TRACK_READ until EAGAIN, FIFREEZE, SYNC, TRACK_READ, TRACK_STOP, FITHAW".
fn a_copy_has_the_same_contents() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 5, 1);
    let copy = image.path("copy.hds");
    ploop(&[&"copy", &"-s", &driver::node(device), &"-d", &copy]).expect(0);
    // It was thawed.
    image.write("later", 1, 2);
    image.unmount();
    ploop(&[&"check", &"-f", &copy]);
    fs::rename(&copy, image.base()).unwrap();
    image.mount();
    image.verify("file", 5, 1);
    assert!(!image.target().join("later").exists());
}

/// "replace | FIEMAP of the new file, REPLACE_DELTA".
fn replace_online_changes_the_file_of_a_level() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 3, 1);
    image.snapshot();
    let other = image.path("other.hds");
    fs::copy(image.base(), &other).unwrap();
    ploop(&[
        &"replace",
        &"-o",
        &image.base(),
        &"-i",
        &other,
        &image.descriptor(),
    ])
    .expect(0);
    assert_eq!(driver::images(device)[0], other);
    let output = ploop(&[&"umount", &image.descriptor()]);
    fs::remove_file(image.base()).unwrap();
    output.expect(0);
    ploop(&[&"mount", &"-m", &image.target(), &image.descriptor()]).expect(0);
    image.verify("file", 3, 1);
}
