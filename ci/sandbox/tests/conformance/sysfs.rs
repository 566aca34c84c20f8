//! A device's files in sysfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ploop::FormatVersion;

use crate::driver::{self, Device, Mode, NO_TOP};
use crate::harness::{Need, Test};
use crate::image::{Image, Scratch};
use crate::ioctl::{self, Control};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            pstate_has_these_files,
            pstate_files_are_read_only_but_for_aborted,
            without_deltas_top_is_the_largest_number,
            an_empty_cookie_reads_as_a_newline,
            the_first_cookie_stays,
            a_device_never_used_has_block_size_1_and_fmt_version_0,
            a_raw_base_alone_has_fmt_version_0,
            a_running_device_says_so,
            block_size_fmt_version_and_ro_stay_after_unmount,
            size_running_top_and_cookie_are_reset_after_unmount,
            event_blocks_while_running_and_gives_2_once_stopped,
            event_of_a_stopped_device_is_2,
            pdelta_has_these_files,
            pdelta_tells_image_format_io_and_state,
            a_raw_delta_has_format_raw,
            a_stopped_and_cleared_device_has_no_levels,
            pstat_and_ptune_are_there,
            size_ro_and_dev_are_there,
            a_device_is_found_by_its_number_and_by_its_class,
            nothing_holds_a_device;
        &[Need::Tool] =>
            a_partition_is_found_by_its_number_and_by_its_class,
            the_partition_has_start_size_and_dev,
            after_an_unmount_by_libploop_it_is_the_same;
    ]
}

const STATE: [&str; 19] = [
    "aborted",
    "active_reqs",
    "barrier_reqs",
    "block_size",
    "cookie",
    "discard_bios",
    "entry_read_sync_reqs",
    "entry_reqs",
    "event",
    "fastpath_reqs",
    "fmt_version",
    "fsync_reqs",
    "locked",
    "map_pages",
    "open_count",
    "queued_bios",
    "running",
    "top",
    "total_bios",
];

fn names(device: &Device, directory: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(driver::sysfs(device.index, directory))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// "`pstate/`: `aborted active_reqs […] top total_bios`".
fn pstate_has_these_files() {
    let device = Device::new();
    assert_eq!(names(&device, "pstate"), STATE);
    for name in STATE.iter().filter(|name| **name != "event") {
        let text = fs::read_to_string(driver::sysfs(device.index, &format!("pstate/{name}")));
        assert!(text.unwrap().ends_with('\n'), "{name}");
    }
}

/// "(0444; `aborted` 0644)".
fn pstate_files_are_read_only_but_for_aborted() {
    let device = Device::new();
    for name in STATE {
        let path = driver::sysfs(device.index, &format!("pstate/{name}"));
        let expected = if name == "aborted" { 0o644 } else { 0o444 };
        let mode = fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode, expected, "{name}: {mode:o}");
    }
}

/// "No delta: `top` is 4294967295."
fn without_deltas_top_is_the_largest_number() {
    assert_eq!(Device::new().attribute("pstate/top"), NO_TOP);
}

/// "Empty `cookie` reads as one newline."
fn an_empty_cookie_reads_as_a_newline() {
    let device = Device::new();
    let path = driver::sysfs(device.index, "pstate/cookie");
    assert_eq!(fs::read_to_string(path).unwrap(), "\n");
}

/// What the cookie is when there is one.
fn the_first_cookie_stays() {
    let scratch = Scratch::new();
    let device = Device::new();
    for (name, cookie, mode) in [
        ("base", b"first", Mode::ReadOnly),
        ("top", b"other", Mode::Writable),
    ] {
        let added = device.add_with(&scratch.delta(name, 16), mode, |control| {
            control.flags |= Control::COOKIE;
            control.cookie[..5].copy_from_slice(cookie);
        });
        added.unwrap();
        assert_eq!(device.attribute("pstate/cookie"), "first");
    }
}

/// "A device never used: `block_size` 1, `fmt_version` 0".
fn a_device_never_used_has_block_size_1_and_fmt_version_0() {
    let before = driver::devices();
    let mut free = Vec::new();
    for _ in 0..=before.len() {
        let device = Device::new();
        if !before.contains(&device.index) {
            assert_eq!(device.attribute("pstate/block_size"), "1");
            assert_eq!(device.attribute("pstate/fmt_version"), "0");
            return;
        }
        free.push(device);
    }
    panic!("no new device");
}

/// "a raw base alone gives `fmt_version` 0."
fn a_raw_base_alone_has_fmt_version_0() {
    let scratch = Scratch::new();
    let device = Device::new();
    let add = |device: &Device| {
        let raw = scratch.raw("raw", 16);
        device.add_with(&raw, Mode::ReadOnly, |control| {
            control.format = Control::RAW
        })
    };
    add(&device).unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.attribute("pstate/fmt_version"), "0");
    // Not only because it was 0 before.
    device.detach();
    device
        .add(&scratch.delta("base", 16), Mode::ReadOnly)
        .unwrap();
    assert_eq!(device.attribute("pstate/fmt_version"), "2");
    ioctl::clear(device.node()).unwrap();
    add(&device).unwrap();
    assert_eq!(device.attribute("pstate/fmt_version"), "0");
}

/// What is reset and what stays below has these values before.
fn a_running_device_says_so() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16), &scratch.delta("top", 16)]);
    assert_eq!(device.attribute("pstate/running"), "1");
    assert_eq!(device.attribute("pstate/top"), "1");
    assert_eq!(device.attribute("pstate/block_size"), "2048");
    assert_eq!(device.attribute("pstate/fmt_version"), "2");
    assert_eq!(device.attribute("size"), "32768");
    assert_eq!(device.attribute("ro"), "0");
}

/// A device that ran read-only, with a version, cluster size and cookie that are not the usual ones, and was detached.
fn detached() -> Device {
    let scratch = Scratch::new();
    let device = Device::new();
    let image = scratch.delta_of("base", FormatVersion::V1, 10, 16);
    let added = device.add_with(&image, Mode::ReadOnly, |control| {
        control.cluster_log = 10;
        control.flags |= Control::COOKIE;
        control.cookie[..4].copy_from_slice(b"name");
    });
    added.unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.attribute("pstate/block_size"), "1024");
    assert_eq!(device.attribute("pstate/fmt_version"), "1");
    assert_eq!(device.attribute("pstate/cookie"), "name");
    assert_eq!(device.attribute("ro"), "1");
    device.detach();
    device
}

/// "After unmount `block_size`, `fmt_version` and `ro` keep their old values".
fn block_size_fmt_version_and_ro_stay_after_unmount() {
    let device = detached();
    assert_eq!(device.attribute("pstate/block_size"), "1024");
    assert_eq!(device.attribute("pstate/fmt_version"), "1");
    assert_eq!(device.attribute("ro"), "1");
}

/// "`size`, `running`, `top`, `cookie` are reset."
fn size_running_top_and_cookie_are_reset_after_unmount() {
    let device = detached();
    assert_eq!(device.attribute("size"), "0");
    assert_eq!(device.attribute("pstate/running"), "0");
    assert_eq!(device.attribute("pstate/top"), NO_TOP);
    assert_eq!(device.attribute("pstate/cookie"), "");
}

/// Both sentences, as libploop does it.
fn after_an_unmount_by_libploop_it_is_the_same() {
    let image = Image::new();
    let device = image.mount();
    assert_ne!(driver::attribute(device, "pstate/cookie"), "root");
    image.unmount();
    let attribute = |path| driver::attribute(device, path);
    assert_eq!(attribute("pstate/block_size"), "2048");
    assert_eq!(attribute("pstate/fmt_version"), "2");
    assert_eq!(attribute("ro"), "0");
    assert_eq!(attribute("size"), "0");
    assert_eq!(attribute("pstate/running"), "0");
    assert_eq!(attribute("pstate/top"), NO_TOP);
    assert_eq!(attribute("pstate/cookie"), "");
}

/// "Reading `event` blocks while running and gives 2 once stopped."
fn event_blocks_while_running_and_gives_2_once_stopped() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let path = driver::sysfs(device.index, "pstate/event");
    let (send, receive) = mpsc::channel();
    // It ends at the latest when the device is dropped.
    thread::spawn(move || send.send(fs::read_to_string(path)));
    assert!(receive.recv_timeout(Duration::from_millis(500)).is_err());
    device.stop().unwrap();
    let text = receive.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(text.unwrap(), "2\n");
}

/// The other side of the same sentence.
fn event_of_a_stopped_device_is_2() {
    let device = Device::new();
    let path = driver::sysfs(device.index, "pstate/event");
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(fs::read_to_string(path)));
    let text = receive.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(text.unwrap(), "2\n");
}

/// "`pdelta/<level>/`: `dump format image io level ro transparent`."
fn pdelta_has_these_files() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16), &scratch.delta("top", 16)]);
    assert_eq!(names(&device, "pdelta"), ["0", "1"]);
    for level in ["pdelta/0", "pdelta/1"] {
        let files = [
            "dump",
            "format",
            "image",
            "io",
            "level",
            "ro",
            "transparent",
        ];
        assert_eq!(names(&device, level), files);
    }
}

/// "`image` is the absolute path, `format` `ploop1` or `raw`, `io` `direct`."
fn pdelta_tells_image_format_io_and_state() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base, &top]);
    for (level, image, ro) in [("0", &base, "1"), ("1", &top, "0")] {
        let attribute = |name| device.attribute(&format!("pdelta/{level}/{name}"));
        assert_eq!(attribute("image"), image.to_str().unwrap());
        assert_eq!(attribute("format"), "ploop1");
        assert_eq!(attribute("io"), "direct");
        assert_eq!(attribute("level"), level);
        assert_eq!(attribute("ro"), ro);
    }
}

/// The same sentence, of a raw base.
fn a_raw_delta_has_format_raw() {
    let scratch = Scratch::new();
    let device = Device::new();
    let raw = scratch.raw("raw", 16);
    let added = device.add_with(&raw, Mode::ReadOnly, |control| {
        control.format = Control::RAW
    });
    added.unwrap();
    device
        .add(&scratch.delta("top", 16), Mode::Writable)
        .unwrap();
    assert_eq!(device.attribute("pdelta/0/format"), "raw");
    assert_eq!(device.attribute("pdelta/0/image"), raw.to_str().unwrap());
    assert_eq!(device.attribute("pdelta/1/format"), "ploop1");
}

/// "A stopped and cleared device has no levels."
fn a_stopped_and_cleared_device_has_no_levels() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    device.stop().unwrap();
    assert_eq!(names(&device, "pdelta"), ["0"]);
    ioctl::clear(device.node()).unwrap();
    assert!(names(&device, "pdelta").is_empty());
}

/// "also `pstat/` and `ptune/` (16 files)".
fn pstat_and_ptune_are_there() {
    let device = Device::new();
    assert!(!names(&device, "pstat").is_empty());
    let tunables = names(&device, "ptune");
    assert_eq!(tunables.len(), 16, "{tunables:?}");
    for directory in ["pstat", "ptune"] {
        for name in names(&device, directory) {
            device.number(&format!("{directory}/{name}"));
        }
    }
}

/// "`size`, `ro`, `dev`".
fn size_ro_and_dev_are_there() {
    let scratch = Scratch::new();
    let device = Device::new();
    device
        .add(&scratch.delta("base", 16), Mode::ReadOnly)
        .unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.attribute("size"), "32768");
    assert_eq!(device.attribute("ro"), "1");
    assert_eq!(
        device.attribute("dev"),
        format!("182:{}", device.index * 16)
    );
}

/// "`ploopNp1/{start,size,dev}`."
fn the_partition_has_start_size_and_dev() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    let attribute = |name| device.attribute(&format!("ploop{}p1/{name}", device.index));
    assert_eq!(attribute("start"), "2048");
    let size: u64 = attribute("size").parse().unwrap();
    assert!(size > 0 && 2048 + size <= device.number("size"));
    assert_eq!(attribute("dev"), format!("182:{}", device.index * 16 + 1));
}

/// What every kernel shows of a block device: `/sys/dev/block/MAJOR:MINOR` and `/sys/class/block/NAME`.
fn ways_to(name: &str, minor: u32) -> [PathBuf; 2] {
    [
        Path::new("/sys/dev/block").join(format!("182:{minor}")),
        Path::new("/sys/class/block").join(name),
    ]
}

fn a_device_is_found_by_its_number_and_by_its_class() {
    let device = Device::new();
    let directory = driver::sysfs(device.index, "").canonicalize().unwrap();
    let name = format!("ploop{}", device.index);
    for path in ways_to(&name, device.index * 16) {
        assert_eq!(path.canonicalize().unwrap(), directory);
        assert!(!path.join("start").exists());
        let listed = fs::read_dir(path.parent().unwrap()).unwrap();
        assert!(
            listed
                .map(|entry| entry.unwrap().path())
                .any(|it| it == path)
        );
    }
    // Those that are not there.
    for path in ways_to(&format!("{name}p1"), device.index * 16 + 1) {
        assert!(path.symlink_metadata().is_err(), "{path:?}");
    }
}

fn a_partition_is_found_by_its_number_and_by_its_class() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.partitioned("root.hds")]);
    ioctl::reread_partitions(device.node()).unwrap();
    let name = format!("ploop{}p1", device.index);
    let directory = driver::sysfs(device.index, &name).canonicalize().unwrap();
    for path in ways_to(&name, device.index * 16 + 1) {
        assert_eq!(path.canonicalize().unwrap(), directory);
        assert_eq!(fs::read_to_string(path.join("start")).unwrap(), "2048\n");
        assert_eq!(fs::read_dir(path.join("holders")).unwrap().count(), 0);
    }
}

fn nothing_holds_a_device() {
    let device = Device::new();
    assert!(names(&device, "holders").is_empty());
}
