//! What ioctls answer: of devices without deltas, and ADD_DELTA.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use ploop::FormatVersion;

use crate::driver::{Device, Mode};
use crate::harness::Test;
use crate::image::Scratch;
use crate::ioctl::{self, Control, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            without_deltas_start_is_enoent,
            without_deltas_merge_is_enoent,
            without_deltas_sync_is_enoent,
            without_deltas_del_delta_is_enoent,
            without_deltas_snapshot_is_enoent,
            without_deltas_balloon_is_enoent,
            without_deltas_grow_is_enoent,
            without_deltas_fbdrop_is_enoent,
            without_deltas_stop_is_einval,
            without_deltas_discard_init_is_einval,
            an_unknown_ioctl_is_einval,
            without_deltas_clear_is_0_again_and_again,
            without_deltas_track_stop_is_0,
            without_deltas_discard_fini_is_0,
            without_deltas_discard_wait_is_0,
            an_unknown_format_is_einval,
            other_than_one_chunk_is_einval,
            a_wrong_cluster_log_is_einval,
            a_bad_magic_is_einval,
            writable_with_a_read_only_descriptor_is_einval,
            read_only_with_a_writable_descriptor_is_einval,
            a_chunk_that_is_not_the_whole_file_is_einval,
            anything_above_a_writable_top_is_einval,
            mixed_versions_are_einval,
            a_top_smaller_than_its_base_is_einval,
            a_larger_top_gives_the_device_its_size,
            a_bad_descriptor_is_ebadf,
            an_unknown_io_type_is_enotsup,
            an_image_on_tmpfs_is_enotsup,
            add_delta_to_a_running_device_is_ebusy,
            an_image_in_use_is_ebusy_read_write,
            an_image_in_use_is_ebusy_read_only,
            an_image_attached_elsewhere_read_write_is_etxtbsy,
            pctl_level_is_ignored;
    ]
}

/// "**Device without deltas.** START, MERGE, SYNC, DEL_DELTA, SNAPSHOT, BALLOON, GROW, FBDROP: ENOENT. STOP,
/// DISCARD_INIT, unknown: EINVAL. CLEAR (repeatable), TRACK_STOP, DISCARD_FINI, DISCARD_WAIT: 0."
macro_rules! without_deltas {
    ($($name:ident: $call:expr => $result:expr;)+) => {
        $(fn $name() {
            let device = Device::new();
            let call: fn(&Device) -> ioctl::Result<i32> = $call;
            assert_eq!(call(&device), $result);
        })+
    };
}

without_deltas! {
    without_deltas_start_is_enoent: |d| ioctl::start(d.node()) => error(libc::ENOENT);
    without_deltas_merge_is_enoent: |d| ioctl::merge(d.node()) => error(libc::ENOENT);
    without_deltas_sync_is_enoent: |d| ioctl::sync(d.node()) => error(libc::ENOENT);
    without_deltas_del_delta_is_enoent: |d| d.delete(0) => error(libc::ENOENT);
    without_deltas_snapshot_is_enoent: |d| d.snapshot(&Scratch::new().delta("top", 16))
        => error(libc::ENOENT);
    without_deltas_balloon_is_enoent: |d| ioctl::balloon(d.node(), &mut ioctl::Balloon::default())
        => error(libc::ENOENT);
    without_deltas_grow_is_enoent: |d| d.grow(1 << 20) => error(libc::ENOENT);
    without_deltas_fbdrop_is_enoent: |d| ioctl::drop_free_blocks(d.node()) => error(libc::ENOENT);
    without_deltas_stop_is_einval: |d| ioctl::stop(d.node()) => error(libc::EINVAL);
    without_deltas_discard_init_is_einval: |d| ioctl::discard_init(d.node())
        => error(libc::EINVAL);
    an_unknown_ioctl_is_einval: |d| ioctl::unknown(d.node()) => error(libc::EINVAL);
    without_deltas_clear_is_0_again_and_again: |d| {
        ioctl::clear(d.node())?;
        ioctl::clear(d.node())
    } => Ok(0);
    without_deltas_track_stop_is_0: |d| ioctl::track_stop(d.node()) => Ok(0);
    without_deltas_discard_fini_is_0: |d| ioctl::discard_finish(d.node()) => Ok(0);
    without_deltas_discard_wait_is_0: |d| ioctl::discard_wait(d.node()) => Ok(0);
}

/// That a device, and the image, are as before.
#[track_caller]
fn refused(device: &Device, levels: usize) {
    assert_eq!(crate::driver::images(device.index).len(), levels);
    assert_eq!(device.attribute("pstate/running"), "0");
}

/// "**ADD_DELTA.** EINVAL: unknown format".
fn an_unknown_format_is_einval() {
    let scratch = Scratch::new();
    let device = Device::new();
    for format in [0, 3, u32::MAX] {
        let image = scratch.delta(&format.to_string(), 16);
        let added = device.add_with(&image, Mode::Writable, |control| control.format = format);
        assert_eq!(added, error(libc::EINVAL), "format {format}");
    }
    refused(&device, 0);
}

/// "EINVAL: […] chunks ≠ 1".
fn other_than_one_chunk_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    for chunks in [0, 2, u16::MAX] {
        let added = device.add_with(&image, Mode::Writable, |control| control.chunks = chunks);
        assert_eq!(added, error(libc::EINVAL), "{chunks} chunks");
    }
    refused(&device, 0);
}

/// "EINVAL: […] wrong cluster log".
fn a_wrong_cluster_log_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    for log in [10, 12] {
        let added = device.add_with(&image, Mode::Writable, |control| control.cluster_log = log);
        assert_eq!(added, error(libc::EINVAL), "2 to the {log}");
    }
    refused(&device, 0);
    // Of a second delta, it is the device's.
    device.add(&image, Mode::ReadOnly).unwrap();
    let other = scratch.delta_of("top", FormatVersion::V2, 10, 16);
    let added = device.add_with(&other, Mode::Writable, |control| control.cluster_log = 10);
    assert_eq!(added, error(libc::EINVAL));
    refused(&device, 1);
}

/// "EINVAL: […] bad magic".
fn a_bad_magic_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(b"w", 0).unwrap();
    file.sync_all().unwrap();
    let device = Device::new();
    for mode in [Mode::Writable, Mode::ReadOnly] {
        assert_eq!(device.add(&image, mode), error(libc::EINVAL));
    }
    refused(&device, 0);
}

/// "EINVAL: […] writable with a read-only fd".
fn writable_with_a_read_only_descriptor_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    let added = device.add_with(&image, Mode::ReadOnly, |control| {
        control.flags &= !Control::READ_ONLY;
    });
    assert_eq!(added, error(libc::EINVAL));
    refused(&device, 0);
}

/// The other way round *(source)*.
fn read_only_with_a_writable_descriptor_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    let added = device.add_with(&image, Mode::Writable, |control| {
        control.flags |= Control::READ_ONLY;
    });
    assert_eq!(added, error(libc::EINVAL));
    refused(&device, 0);
}

/// A chunk has neither offset, start nor length *(source)*.
fn a_chunk_that_is_not_the_whole_file_is_einval() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    let changes: [fn(&mut Control); 3] = [
        |control| control.offset = 1,
        |control| control.start = 512,
        |control| control.len = 1 << 20,
    ];
    for change in changes {
        let added = device.add_with(&image, Mode::Writable, change);
        assert_eq!(added, error(libc::EINVAL));
    }
    refused(&device, 0);
}

/// "EINVAL: […] anything above a writable top".
fn anything_above_a_writable_top_is_einval() {
    let scratch = Scratch::new();
    let device = Device::new();
    device
        .add(&scratch.delta("base", 16), Mode::Writable)
        .unwrap();
    for (name, mode) in [("1", Mode::Writable), ("2", Mode::ReadOnly)] {
        let added = device.add(&scratch.delta(name, 16), mode);
        assert_eq!(added, error(libc::EINVAL));
    }
    refused(&device, 1);
}

/// "EINVAL: […] mixed v1/v2".
fn mixed_versions_are_einval() {
    let scratch = Scratch::new();
    for (lower, upper) in [
        (FormatVersion::V1, FormatVersion::V2),
        (FormatVersion::V2, FormatVersion::V1),
    ] {
        let device = Device::new();
        let base = scratch.delta_of(&format!("{lower:?}-lower"), lower, 11, 16);
        device.add(&base, Mode::ReadOnly).unwrap();
        let top = scratch.delta_of(&format!("{upper:?}-upper"), upper, 11, 16);
        assert_eq!(device.add(&top, Mode::Writable), error(libc::EINVAL));
        refused(&device, 1);
    }
}

/// "EINVAL: […] a top *smaller* than its base".
fn a_top_smaller_than_its_base_is_einval() {
    let scratch = Scratch::new();
    let device = Device::new();
    device
        .add(&scratch.delta("base", 32), Mode::ReadOnly)
        .unwrap();
    let added = device.add(&scratch.delta("top", 16), Mode::Writable);
    assert_eq!(added, error(libc::EINVAL));
    refused(&device, 1);
}

/// "(larger is fine: the device takes the top's size)".
fn a_larger_top_gives_the_device_its_size() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16), &scratch.delta("top", 32)]);
    assert_eq!(device.number("size"), 32 << 11);
    device.write(31 << 20, 4096, 7);
    assert!(device.is(31 << 20, 4096, 7));
    assert!(device.is(15 << 20, 4096, 0));
}

/// "EBADF bad fd."
fn a_bad_descriptor_is_ebadf() {
    let scratch = Scratch::new();
    let device = Device::new();
    for descriptor in [-1, 99_999] {
        let image = scratch.delta(&descriptor.to_string(), 16);
        let added = device.add_with(&image, Mode::Writable, |control| control.file = descriptor);
        assert_eq!(added, error(libc::EBADF), "descriptor {descriptor}");
    }
    refused(&device, 0);
}

/// "ENOTSUP unknown io type".
fn an_unknown_io_type_is_enotsup() {
    let scratch = Scratch::new();
    let device = Device::new();
    for io_type in [5, u32::MAX] {
        let image = scratch.delta(&io_type.to_string(), 16);
        let added = device.add_with(&image, Mode::Writable, |control| control.io_type = io_type);
        assert_eq!(added, error(libc::ENOTSUP), "type {io_type}");
    }
    refused(&device, 0);
}

/// "ENOTSUP […] tmpfs as host."
fn an_image_on_tmpfs_is_enotsup() {
    let scratch = Scratch::new();
    let tmpfs = crate::mounts::Tmpfs::new();
    let image = tmpfs.path().join("base");
    fs::copy(scratch.delta("base", 16), &image).unwrap();
    let device = Device::new();
    assert_eq!(device.add(&image, Mode::Writable), error(libc::ENOTSUP));
    assert_eq!(device.add(&image, Mode::ReadOnly), error(libc::ENOTSUP));
    refused(&device, 0);
}

/// "EBUSY: device running".
fn add_delta_to_a_running_device_is_ebusy() {
    let scratch = Scratch::new();
    let device = Device::running(&[&scratch.delta("base", 16)]);
    let added = device.add(&scratch.delta("top", 16), Mode::Writable);
    assert_eq!(added, error(libc::EBUSY));
    assert_eq!(device.attribute("pstate/top"), "0");
}

/// An image that is marked as in use and attached nowhere.
fn marked(scratch: &Scratch) -> std::path::PathBuf {
    let image = scratch.delta("marked", 16);
    let device = Device::new();
    device.add(&image, Mode::Writable).unwrap();
    ioctl::clear(device.node()).unwrap();
    image
}

/// "EBUSY: […] image in use (read-write […])."
fn an_image_in_use_is_ebusy_read_write() {
    let scratch = Scratch::new();
    let image = marked(&scratch);
    let device = Device::new();
    assert_eq!(device.add(&image, Mode::Writable), error(libc::EBUSY));
    refused(&device, 0);
}

/// "EBUSY: […] image in use ([…] read-only)."
fn an_image_in_use_is_ebusy_read_only() {
    let scratch = Scratch::new();
    let image = marked(&scratch);
    let device = Device::new();
    assert_eq!(device.add(&image, Mode::ReadOnly), error(libc::EBUSY));
    refused(&device, 0);
}

/// "The same image read-only on another device while attached read-write: ETXTBSY."
fn an_image_attached_elsewhere_read_write_is_etxtbsy() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let _first = Device::running(&[&image]);
    let second = Device::new();
    assert_eq!(second.add(&image, Mode::ReadOnly), error(libc::ETXTBSY));
    refused(&second, 0);
}

/// "`pctl_level` is ignored."
fn pctl_level_is_ignored() {
    let scratch = Scratch::new();
    let device = Device::new();
    let base = scratch.delta("base", 16);
    device
        .add_with(&base, Mode::ReadOnly, |control| control.level = 5)
        .unwrap();
    let top = scratch.delta("top", 16);
    device
        .add_with(&top, Mode::Writable, |control| control.level = 0)
        .unwrap();
    assert_eq!(crate::driver::images(device.index), [base, top]);
}
