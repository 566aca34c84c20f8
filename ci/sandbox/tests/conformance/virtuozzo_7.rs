//! What the driver of Virtuozzo 7 has that OpenVZ 6's has not. All of it is as **read** in the sources of libploop 7 and
//! of a Virtuozzo 7 kernel: nobody has run these tests on one yet.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ploop::FormatVersion;

use crate::discard::discard;
use crate::driver::{self, Device, Mode};
use crate::harness::{Need, Test};
use crate::image::{Scratch, table};
use crate::ioctl::{self, Balloon, TableDump, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Virtuozzo7] =>
            pstate_and_ptune_have_more_files,
            image_info_tells_which_file_it_is,
            discards_go_through_discard_init_or_make_holes,
            the_discard_granularity_is_a_cluster_while_running,
            the_discard_granularity_can_be_a_block_of_the_host,
            freeze_and_thaw_need_a_running_device,
            a_frozen_device_does_not_stop,
            the_table_of_the_top_is_in_memory,
            in_format_1_an_entry_is_a_sector,
            keep_intact_2_changes_nothing;
        &[Need::Virtuozzo7, Need::Tool] =>
            freeze_holds_writes_until_thaw,
            freeze_is_about_the_node_of_the_call;
    ]
}

fn names(device: &Device, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(driver::sysfs(device.index, directory)).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn pstate_and_ptune_have_more_files() {
    let device = Device::new();
    for (directory, files) in [
        (
            "pstate",
            &[
                "blockable_reqs",
                "blocked_bios",
                "discard_inflight_bios",
                "discard_mode",
                "event",
                "free_qmax",
                "free_reqs",
                "freeze_state",
                "push_backup_uuid",
                "top",
            ][..],
        ),
        (
            "ptune",
            &[
                "check_zeros",
                "discard_alignment",
                "discard_granularity",
                "discard_zeroes_data",
                "push_backup_timeout",
                "trusted",
            ],
        ),
    ] {
        let there = names(&device, directory);
        for file in files {
            assert!(there.iter().any(|name| name == file), "{file}: {there:?}");
        }
    }
    assert_eq!(device.attribute("pstate/freeze_state"), "0");
    // No newline: it is empty without a backup.
    let uuid = driver::sysfs(device.index, "pstate/push_backup_uuid");
    assert_eq!(fs::read_to_string(uuid).unwrap(), "");
    assert_eq!(device.attribute("ptune/push_backup_timeout"), "42");
}

/// libploop 7 finds devices by it, whatever the path is.
fn image_info_tells_which_file_it_is() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base, &top]);
    for (level, file) in [("pdelta/0", base), ("pdelta/1", top)] {
        assert!(names(&device, level).contains(&"image_info".to_owned()));
        let of_file = fs::metadata(file).unwrap();
        let (inode, device_of_file) = (of_file.ino(), of_file.dev());
        let (major, minor) = (
            rustix::fs::major(device_of_file),
            rustix::fs::minor(device_of_file),
        );
        assert_eq!(
            device.attribute(&format!("{level}/image_info")),
            format!("ino:{inode}\nsdev:{major}:{minor}")
        );
    }
}

fn discards_go_through_discard_init_or_make_holes() {
    let mode = Device::new().number("pstate/discard_mode");
    assert!((1..=2).contains(&mode), "{mode}");
}

/// Writes to `ptune/discard_granularity` as libploop does.
fn set_granularity(device: &Device, bytes: u64) -> io::Result<()> {
    use std::io::Write;
    let path = driver::sysfs(device.index, "ptune/discard_granularity");
    File::create(path)?.write_all(bytes.to_string().as_bytes())
}

#[track_caller]
fn refused(result: io::Result<()>, number: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(number));
}

fn the_discard_granularity_is_a_cluster_while_running() {
    let scratch = Scratch::new();
    let device = Device::new();
    if device.number("pstate/block_size") == 1 {
        refused(set_granularity(&device, 4096), libc::ENODEV);
    }
    let image = scratch.delta_of("base", FormatVersion::V2, 10, 16);
    let added = device.add_with(&image, Mode::Writable, |control| control.cluster_log = 10);
    added.unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.number("ptune/discard_granularity"), 512 << 10);
    for bytes in [4096, 512 << 10] {
        refused(set_granularity(&device, bytes), libc::EBUSY);
    }
    device.stop().unwrap();
    assert_eq!(device.number("ptune/discard_granularity"), 512 << 10);
}

fn the_discard_granularity_can_be_a_block_of_the_host() {
    let scratch = Scratch::new();
    let device = Device::new();
    let image = scratch.delta("base", 16);
    device.add(&image, Mode::Writable).unwrap();
    let block = rustix::fs::statfs(&image).unwrap().f_bsize as u64;
    set_granularity(&device, 1 << 20).unwrap();
    set_granularity(&device, block).unwrap();
    assert_eq!(device.number("ptune/discard_granularity"), block);
    for bytes in [0, 512, 1000, 2 << 20] {
        refused(set_granularity(&device, bytes), libc::EINVAL);
    }
    assert_eq!(device.number("ptune/discard_granularity"), block);
    // With direct I/O, START takes the size of a cluster again.
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.number("ptune/discard_granularity"), 1 << 20);
}

fn freeze_and_thaw_need_a_running_device() {
    let scratch = Scratch::new();
    let device = Device::new();
    let node = device.node();
    assert_eq!(ioctl::freeze(node), error(libc::EINVAL));
    assert_eq!(ioctl::thaw(node), error(libc::EINVAL));
    device
        .add(&scratch.delta("base", 16), Mode::Writable)
        .unwrap();
    assert_eq!(ioctl::freeze(node), error(libc::EINVAL));
    ioctl::start(node).unwrap();
    assert_eq!(ioctl::thaw(node), Ok(0));
}

fn a_frozen_device_does_not_stop() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let node = device.node();
    // There is no file system, and twice is as good as once.
    for _ in 0..2 {
        assert_eq!(ioctl::freeze(node), Ok(0));
        assert_eq!(device.attribute("pstate/freeze_state"), "1");
    }
    assert_eq!(ioctl::stop(node), error(libc::EBUSY));
    for _ in 0..2 {
        assert_eq!(ioctl::thaw(node), Ok(0));
        assert_eq!(device.attribute("pstate/freeze_state"), "0");
    }
    device.stop().unwrap();
}

/// A running device with a mounted file system, which is unmounted in the end.
struct Mounted {
    device: Device,
    target: std::path::PathBuf,
    _scratch: Scratch,
}

impl Mounted {
    fn new() -> Mounted {
        let scratch = Scratch::new();
        let device = Device::running(&[&scratch.partitioned("root.hds")]);
        ioctl::reread_partitions(device.node()).unwrap();
        let target = scratch.path("mnt");
        fs::create_dir(&target).unwrap();
        ioctl::mount(&device.partition(), &target, "ext4", 0, "").unwrap();
        Mounted {
            device,
            target,
            _scratch: scratch,
        }
    }

    /// Writes a file in a thread of its own.
    fn write(&self, name: &'static str) -> mpsc::Receiver<io::Result<()>> {
        let path = self.target.join(name);
        let (send, receive) = mpsc::channel();
        thread::spawn(move || send.send(fs::write(path, name)));
        receive
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for node in [self.device.partition(), self.device.path()] {
            let _ = File::open(node).map(|node| ioctl::thaw(&node));
        }
        if let Err(error) = ioctl::unmount(&self.target, 0) {
            eprintln!("conformance: {:?}: {error:?}", self.target);
        }
    }
}

const SOON: Duration = Duration::from_secs(10);

fn freeze_holds_writes_until_thaw() {
    let mounted = Mounted::new();
    mounted.write("before").recv_timeout(SOON).unwrap().unwrap();
    let partition = File::open(mounted.device.partition()).unwrap();
    assert_eq!(ioctl::freeze(&partition), Ok(0));
    let written = mounted.write("meanwhile");
    assert!(written.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(
        fs::read_to_string(mounted.target.join("before")).unwrap(),
        "before"
    );
    // Through the other node, as libploop may have closed this one.
    assert_eq!(ioctl::thaw(mounted.device.node()), Ok(0));
    written.recv_timeout(SOON).expect("it is held").unwrap();
}

fn freeze_is_about_the_node_of_the_call() {
    let mounted = Mounted::new();
    // Nothing is mounted from the whole device.
    assert_eq!(ioctl::freeze(mounted.device.node()), Ok(0));
    let written = mounted.write("meanwhile").recv_timeout(SOON);
    written.expect("it is held").unwrap();
    // And frozen is frozen.
    let partition = File::open(mounted.device.partition()).unwrap();
    assert_eq!(ioctl::freeze(&partition), Ok(0));
    let written = mounted.write("later").recv_timeout(SOON);
    written.expect("it is held").unwrap();
}

/// Entries that the driver does not have in memory.
const UNCACHED: u32 = u32::MAX;

fn dump(device: &Device, level: u32, first: u32, count: u32) -> ioctl::Result<Vec<u32>> {
    let mut dump = TableDump {
        level,
        first,
        count,
        entries: [7; 29],
    };
    ioctl::dump_table(device.node(), &mut dump)?;
    assert!(dump.entries[count as usize..].iter().all(|it| *it == 7));
    Ok(dump.entries[..count as usize].to_vec())
}

fn the_table_of_the_top_is_in_memory() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    device.write(3 << 20, 4096, 1);
    device.snapshot(&top).unwrap();
    for cluster in [9, 2, 15] {
        device.write(cluster << 20, 4096, 2);
    }
    let entries = dump(&device, 1, 0, 16).unwrap();
    let used = |entries: &[u32]| {
        let used = (0..).zip(entries).filter(|(_, entry)| **entry != 0);
        used.map(|(cluster, _)| cluster).collect::<Vec<u32>>()
    };
    assert_eq!(used(&entries), [2, 9, 15]);
    assert_eq!(table(&top, 16), entries);
    assert_eq!(dump(&device, 1, 9, 2).unwrap(), entries[9..11]);
    // What is not known of a delta may be told, and what is told is right.
    let below = dump(&device, 0, 0, 16).unwrap();
    for (told, stored) in below.iter().zip(table(&base, 16)) {
        assert!([UNCACHED, stored].contains(told), "{below:?}");
    }
    assert_eq!(
        dump(&device, 2, 0, 1),
        Err(ioctl::Errno(libc::ENOENT)),
        "there is no such level"
    );
    for (first, count) in [(16, 1), (10, 7), (u32::MAX, 2)] {
        assert_eq!(
            dump(&device, 1, first, count),
            Err(ioctl::Errno(libc::EINVAL))
        );
    }
}

fn in_format_1_an_entry_is_a_sector() {
    let scratch = Scratch::new();
    let image = scratch.delta_of("base", FormatVersion::V1, 11, 16);
    let device = Device::running(&[&image]);
    device.write(5 << 20, 4096, 1);
    let entries = dump(&device, 0, 0, 16).unwrap();
    assert_eq!(entries[5], 1 << 11);
    assert_eq!(table(&image, 16), entries);
}

/// `keep_intact` of 1 takes over the discard that waits; with 2 the state is told and nothing else happens.
fn keep_intact_2_changes_nothing() {
    const DISCARD: u32 = 5;
    const FREE_BLOCKS: u32 = 2;
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let node = device.node();
    device.write(0, 4 << 20, 1);
    ioctl::discard_init(node).unwrap();
    let discarded = discard(&device, 0, 2 << 20);
    assert_eq!(ioctl::discard_wait(node), Ok(1));
    let kind = |keep| {
        let mut balloon = Balloon {
            keep,
            ..Balloon::default()
        };
        ioctl::balloon(node, &mut balloon).unwrap();
        balloon.kind
    };
    assert_eq!([kind(2), kind(2)], [DISCARD; 2]);
    assert_eq!(kind(1), FREE_BLOCKS);
    assert_eq!(kind(2), FREE_BLOCKS);
    assert_eq!(ioctl::drop_free_blocks(node), Ok(0));
    assert_eq!(driver::patiently(|| ioctl::discard_finish(node)), Ok(0));
    let _ = discarded.recv_timeout(SOON).expect("it is not answered");
    let mut both = Balloon {
        inflate: 1,
        keep: 2,
        ..Balloon::default()
    };
    assert_eq!(ioctl::balloon(node, &mut both), error(libc::EINVAL));
}
