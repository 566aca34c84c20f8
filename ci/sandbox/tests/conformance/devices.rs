//! Devices: numbers, nodes, how long they live, partitions.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::driver::{self, Device, MAJOR, Mode, NO_TOP};
use crate::harness::{Need, Test};
use crate::image::Scratch;
use crate::ioctl::{self, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            device_n_is_182_and_n_times_16,
            the_node_is_for_root_alone,
            ploop_minor_reads_as_a_minor,
            opening_ploop_minor_makes_the_device_and_its_node,
            a_new_number_is_from_10000_to_65535,
            a_free_device_is_reused_lowest_first,
            a_second_open_meanwhile_makes_another_device,
            a_device_is_reserved_only_while_the_file_is_open,
            devices_never_disappear,
            sysfs_leads_to_devices_virtual_block,
            the_module_has_parameters_and_knows_large_disks;
        &[Need::Driver("the loop device behind it stays open as long as any process has the descriptor")] =>
            a_descriptor_shared_with_a_child_is_one_opener;
        &[Need::Tool] =>
            the_partition_has_the_next_minor,
            the_partition_starts_at_2048,
            the_partition_stays_with_its_old_size_after_unmount,
            the_partition_comes_back_at_an_open_after_start,
            the_partition_comes_back_at_blkrrpart_after_start,
            the_partition_goes_when_the_device_is_opened_empty,
            there_is_no_partition_between_start_and_an_open,
            blkrrpart_with_an_open_partition_is_ebusy,
            blkrrpart_with_a_mount_is_ebusy,
            a_mount_is_an_opener,
            the_node_stays_after_unmount,
            an_empty_device_reads_as_nothing;
    ]
}

/// "Major 182; device N has minor N×16".
fn device_n_is_182_and_n_times_16() {
    let device = Device::new();
    let minor = device.index * 16;
    assert_eq!(device.attribute("dev"), format!("{MAJOR}:{minor}"));
    let metadata = fs::metadata(device.path()).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!(metadata.rdev(), libc::makedev(MAJOR, minor));
}

/// "Nodes `brw------- root root` `/dev/ploopN`".
fn the_node_is_for_root_alone() {
    let device = Device::new();
    let metadata = fs::metadata(device.path()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
    assert_eq!(metadata.mode() & 0o7777, 0o600);
}

/// "its partition p1 minor N×16+1. Nodes `brw------- root root` […] `/dev/ploopNp1`".
fn the_partition_has_the_next_minor() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    let minor = device.index * 16 + 1;
    let dev = device.attribute(&format!("ploop{}p1/dev", device.index));
    assert_eq!(dev, format!("{MAJOR}:{minor}"));
    let metadata = fs::metadata(device.partition()).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!(metadata.rdev(), libc::makedev(MAJOR, minor));
    assert_eq!(metadata.mode() & 0o7777, 0o600);
}

/// "Reading `/proc/vz/ploop_minor` gives a minor (N×16)."
fn ploop_minor_reads_as_a_minor() {
    let text = fs::read_to_string("/proc/vz/ploop_minor").unwrap();
    let minor: u32 = text.strip_suffix('\n').unwrap().parse().unwrap();
    assert_eq!(minor % 16, 0);
    assert!(driver::devices().contains(&(minor / 16)));
}

/// "*Opening* it creates the device and its node".
fn opening_ploop_minor_makes_the_device_and_its_node() {
    let before = driver::devices();
    let mut files = Vec::new();
    // Free ones come first.
    for _ in 0..=before.len() {
        let (index, file) = driver::reserve();
        assert!(driver::devices().contains(&index));
        assert!(driver::node(index).exists());
        files.push(file);
        if !before.contains(&index) {
            return;
        }
    }
    panic!("{before:?} were all there is");
}

/// "N is random in 10000–65535 *(source)*".
fn a_new_number_is_from_10000_to_65535() {
    let before = driver::devices();
    let mut files = Vec::new();
    for _ in 0..before.len() + 3 {
        let (index, file) = driver::reserve();
        assert!(
            (10_000..=65_535).contains(&index) || before.contains(&index),
            "{index}"
        );
        files.push(file);
    }
}

/// "A free device is reused, lowest index first."
fn a_free_device_is_reused_lowest_first() {
    let three: Vec<_> = (0..3).map(|_| driver::reserve()).collect();
    drop(three);
    let all = driver::devices();
    let free = |device: &u32| driver::attribute(*device, "pstate/top") == NO_TOP;
    let lowest = all.iter().copied().find(free).unwrap();
    let (index, _file) = driver::reserve();
    assert_eq!(index, lowest, "of {all:?}");
    assert_eq!(driver::devices(), all);
}

/// "The choice is reserved only while that file is open: a second open meanwhile makes another device."
fn a_second_open_meanwhile_makes_another_device() {
    let (one, _file) = driver::reserve();
    let (two, _other) = driver::reserve();
    assert_ne!(one, two);
}

/// The other side of the same sentence.
fn a_device_is_reserved_only_while_the_file_is_open() {
    let (one, file) = driver::reserve();
    drop(file);
    let (two, _file) = driver::reserve();
    assert_eq!(one, two);
}

/// "Devices never disappear."
fn devices_never_disappear() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::running(&[&image]);
    let index = device.index;
    device.detach();
    drop(device);
    assert!(driver::devices().contains(&index));
    assert!(driver::node(index).exists());
    assert_eq!(driver::attribute(index, "pstate/top"), NO_TOP);
}

/// "`/sys/block/ploopN -> ../devices/virtual/block/ploopN`."
fn sysfs_leads_to_devices_virtual_block() {
    let device = Device::new();
    let name = format!("ploop{}", device.index);
    let link = fs::read_link(Path::new("/sys/block").join(&name)).unwrap();
    assert_eq!(link, Path::new("../devices/virtual/block").join(&name));
    let real = Path::new("/sys/devices/virtual/block").join(&name);
    assert!(real.is_dir());
    assert_eq!(
        Path::new("/sys/block").join(&name).canonicalize().unwrap(),
        real
    );
}

/// "`/sys/module/ploop/parameters/` exists, with `large_disk_support` (format v2 allowed)."
fn the_module_has_parameters_and_knows_large_disks() {
    let value = fs::read_to_string("/sys/module/ploop/parameters/large_disk_support").unwrap();
    assert_ne!(value.trim_end().parse::<u32>().unwrap(), 0);
    assert!(ploop::kernel::is_large_disk_supported());
}

fn partition(index: u32, file: &str) -> Option<u64> {
    let path = driver::sysfs(index, &format!("ploop{index}p1/{file}"));
    fs::read_to_string(path).ok()?.trim_end().parse().ok()
}

/// "Partition `ploopNp1` (start 2048)".
fn the_partition_starts_at_2048() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    assert_eq!(partition(device.index, "start"), Some(2048));
}

/// "Partition `ploopNp1` […] stays, with its old size, after unmount".
fn the_partition_stays_with_its_old_size_after_unmount() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    let size = partition(device.index, "size");
    assert!(size.is_some_and(|size| size > 0));
    device.detach();
    assert_eq!(device.number("size"), 0);
    assert_eq!(partition(device.index, "size"), size);
}

/// "it goes when the whole device is next opened empty".
fn the_partition_goes_when_the_device_is_opened_empty() {
    let scratch = Scratch::new();
    let mut device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    device.detach();
    assert!(partition(device.index, "size").is_some());
    device.close();
    device.open();
    assert_eq!(partition(device.index, "size"), None);
}

/// "and comes back at an open […] after START."
fn the_partition_comes_back_at_an_open_after_start() {
    let scratch = Scratch::new();
    let image = scratch.partitioned("root.hds");
    let mut device = Device::new();
    device.add(&image, Mode::Writable).unwrap();
    ioctl::start(device.node()).unwrap();
    device.close();
    device.open();
    assert_eq!(partition(device.index, "start"), Some(2048));
}

/// "and comes back at [a] BLKRRPART after START."
fn the_partition_comes_back_at_blkrrpart_after_start() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    let size = partition(device.index, "size");
    device.detach();
    device
        .add(&scratch.partitioned("again.hds"), Mode::Writable)
        .unwrap();
    ioctl::start(device.node()).unwrap();
    ioctl::reread_partitions(device.node()).unwrap();
    assert_eq!(partition(device.index, "start"), Some(2048));
    assert_eq!(partition(device.index, "size"), size);
}

/// "After START there is no partition until any open of the device".
fn there_is_no_partition_between_start_and_an_open() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    assert_eq!(partition(device.index, "start"), None);
    drop(File::open(device.path()).unwrap());
    assert_eq!(partition(device.index, "start"), Some(2048));
    // It stays when the table is asked for again.
    ioctl::reread_partitions(device.node()).unwrap();
    assert_eq!(partition(device.index, "start"), Some(2048));
}

/// A device that runs, with a partition.
fn partitioned() -> (Scratch, Device) {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    (scratch, device)
}

/// "BLKRRPART with p1 open […]: EBUSY."
fn blkrrpart_with_an_open_partition_is_ebusy() {
    let (_scratch, device) = partitioned();
    let mut file = File::open(device.partition()).unwrap();
    assert_eq!(ioctl::reread_partitions(device.node()), error(libc::EBUSY));
    // And nothing has changed.
    assert_eq!(partition(device.index, "start"), Some(2048));
    drop(File::open(device.partition()).unwrap());
    let mut super_block = [0; 2048];
    file.read_exact(&mut super_block).unwrap();
    assert_eq!(super_block[1080..1082], [0x53, 0xef]);
    drop(file);
    driver::patiently(|| ioctl::reread_partitions(device.node())).unwrap();
    assert_eq!(partition(device.index, "start"), Some(2048));
}

/// Calls with the partition mounted, and unmounts it.
fn mounted<T>(scratch: &Scratch, device: &Device, call: impl FnOnce() -> T) -> T {
    let target = scratch.path("mnt");
    fs::create_dir(&target).unwrap();
    ioctl::mount(&device.partition(), &target, "ext4", 0, "").unwrap();
    let result = call();
    driver::patiently(|| ioctl::unmount(&target, 0)).unwrap();
    result
}

/// "BLKRRPART with p1 […] mounted: EBUSY."
fn blkrrpart_with_a_mount_is_ebusy() {
    let (scratch, device) = partitioned();
    let result = mounted(&scratch, &device, || {
        ioctl::reread_partitions(device.node())
    });
    assert_eq!(result, error(libc::EBUSY));
    assert_eq!(partition(device.index, "start"), Some(2048));
}

/// "Mounted: `open_count` 2; STOP, CLEAR, START EBUSY." The other opener is the caller.
fn a_mount_is_an_opener() {
    let (scratch, device) = partitioned();
    assert_eq!(device.number("pstate/open_count"), 1);
    let (count, calls) = mounted(&scratch, &device, || {
        let calls = [ioctl::stop, ioctl::clear, ioctl::start].map(|call| call(device.node()));
        (device.number("pstate/open_count"), calls)
    });
    assert_eq!(count, 2);
    assert_eq!(calls, [(); 3].map(|()| error(libc::EBUSY)));
    assert_eq!(device.stop(), Ok(0));
}

/// "The node stays after umount."
fn the_node_stays_after_unmount() {
    let (_scratch, device) = partitioned();
    let node = device.partition();
    device.detach();
    let metadata = fs::metadata(&node).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!(metadata.rdev(), libc::makedev(MAJOR, device.index * 16 + 1));
}

/// "Empty device: reading p1 gives ENXIO, the whole device 0 bytes."
fn an_empty_device_reads_as_nothing() {
    let (_scratch, device) = partitioned();
    let node = device.partition();
    device.detach();
    // Of the open or of the read.
    let read = File::open(node).and_then(|mut file| file.read(&mut [0; 512]));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ENXIO));
    let mut bytes = Vec::new();
    let read = File::open(device.path()).unwrap().read_to_end(&mut bytes);
    assert_eq!(read.unwrap(), 0);
}

/// "A forked child that shares the descriptor is no second opener: STOP 0."
fn a_descriptor_shared_with_a_child_is_one_opener() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    // A child has a copy of the descriptor, as its standard input.
    let mut child = Command::new("sleep")
        .arg("60")
        .stdin(device.node().try_clone().unwrap())
        .spawn()
        .unwrap();
    let count = device.number("pstate/open_count");
    let stopped = ioctl::stop(device.node());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((count, stopped), (1, Ok(0)));
}
