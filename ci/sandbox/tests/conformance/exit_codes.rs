//! The exit codes of the `ploop` tool of libploop 1.15.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::driver::{self, Device, NO_TOP};
use crate::harness::{Need, Test};
use crate::image::{self, Image, Scratch};
use crate::ioctl;
use crate::mounts::Tmpfs;
use crate::program::ploop;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Tool] =>
            init_of_256_mib_with_the_default_journal_is_24,
            init_on_tmpfs_is_1,
            mount_when_already_mounted_is_21,
            a_busy_unmount_is_22_after_6_retries,
            unmount_when_not_mounted_is_40,
            unmount_of_a_directory_that_is_no_mount_is_38,
            unmount_of_a_stopped_device_by_name_is_0,
            unmount_of_a_device_that_does_not_exist_is_2,
            a_missing_descriptor_is_39,
            an_unknown_guid_is_43_to_delete,
            an_unknown_guid_is_43_to_mount,
            an_unknown_guid_is_38_to_switch,
            switch_while_running_is_38,
            shrink_below_the_minimum_is_26,
            shrink_below_the_minimum_online_is_38,
            a_mount_option_the_kernel_refuses_is_21,
            after_a_failed_mount_the_device_is_detached,
            replace_with_keep_name_onto_a_taken_name_rolls_back_and_is_0;
    ]
}

const UNKNOWN: &str = "{01234567-89ab-cdef-0123-456789abcdef}";

/// "init 256 MiB with the default journal 24".
fn init_of_256_mib_with_the_default_journal_is_24() {
    let scratch = Scratch::new();
    let file = scratch.path("root.hds");
    image::init(&file, "256M").expect(24);
    assert_eq!(driver::attached(&scratch.path("")), None);
}

/// "init on tmpfs 1": it cannot be opened past the cache. Where it can, the driver refuses it, and that is 3.
fn init_on_tmpfs_is_1() {
    let tmpfs = Tmpfs::new();
    let probe = tmpfs.path().join("probe");
    File::create(&probe).unwrap();
    let code = if ioctl::open(&probe, true, true).is_ok() {
        3
    } else {
        1
    };
    image::init(&tmpfs.path().join("root.hds"), "384M").expect(code);
    assert_eq!(driver::attached(&tmpfs.path()), None);
}

/// "mount when already mounted 21".
fn mount_when_already_mounted_is_21() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 1, 1);
    image.try_mount().expect(21);
    assert_eq!(image.device(), Some(device));
    image.verify("file", 1, 1);
}

/// "busy unmount 22 after 6 retries".
fn a_busy_unmount_is_22_after_6_retries() {
    let image = Image::new();
    let device = image.mount();
    let open = File::create(image.target().join("file")).unwrap();
    let begin = Instant::now();
    image.try_unmount().expect(22);
    // A second before each.
    assert!(begin.elapsed() >= Duration::from_secs(5));
    assert_eq!(driver::attribute(device, "pstate/running"), "1");
    drop(open);
    image.unmount();
    assert_eq!(driver::attribute(device, "pstate/top"), NO_TOP);
}

/// "unmount when not mounted 40".
fn unmount_when_not_mounted_is_40() {
    Image::new().try_unmount().expect(40);
}

/// "unmount of a directory that is no mount 38".
fn unmount_of_a_directory_that_is_no_mount_is_38() {
    ploop(&[&"umount", &"-m", &Image::new().target()]).expect(38);
}

/// "unmount of a stopped device by name 0".
fn unmount_of_a_stopped_device_by_name_is_0() {
    let mut device = Device::new();
    device.close();
    ploop(&[&"umount", &"-d", &device.path()]).expect(0);
}

/// "of a device that does not exist 2".
fn unmount_of_a_device_that_does_not_exist_is_2() {
    let device = (1..).find(|n| !driver::node(*n).exists()).unwrap();
    ploop(&[&"umount", &"-d", &driver::node(device)]).expect(2);
}

/// "missing descriptor 39".
fn a_missing_descriptor_is_39() {
    let scratch = Scratch::new();
    let (missing, target) = (scratch.path("DiskDescriptor.xml"), scratch.path("mnt"));
    fs::create_dir(&target).unwrap();
    ploop(&[&"mount", &"-m", &target, &missing]).expect(39);
    ploop(&[&"umount", &missing]).expect(39);
}

/// "unknown GUID: delete […] 43".
fn an_unknown_guid_is_43_to_delete() {
    let image = Image::new();
    ploop(&[&"snapshot-delete", &"-u", &UNKNOWN, &image.descriptor()]).expect(43);
}

/// "unknown GUID: […] mount 43".
fn an_unknown_guid_is_43_to_mount() {
    let image = Image::new();
    let arguments: &[&dyn AsRef<std::ffi::OsStr>] = &[
        &"mount",
        &"-m",
        &image.target(),
        &"-u",
        &UNKNOWN,
        &image.descriptor(),
    ];
    ploop(arguments).expect(43);
    assert_eq!(image.device(), None);
}

/// "unknown GUID: […] switch 38".
fn an_unknown_guid_is_38_to_switch() {
    let image = Image::new();
    ploop(&[&"snapshot-switch", &"-u", &UNKNOWN, &image.descriptor()]).expect(38);
}

/// "switch while running 38".
fn switch_while_running_is_38() {
    let image = Image::new();
    let device = image.mount();
    let guid = image.snapshot();
    ploop(&[&"snapshot-switch", &"-u", &guid, &image.descriptor()]).expect(38);
    assert_eq!(driver::attribute(device, "pstate/running"), "1");
    assert_eq!(driver::attribute(device, "pstate/top"), "1");
}

/// "shrink below the minimum 26".
fn shrink_below_the_minimum_is_26() {
    let image = Image::new();
    image.mount();
    image.write("file", 20, 1);
    image.unmount();
    ploop(&[&"resize", &"-s", &"10M", &image.descriptor()]).expect(26);
    assert_eq!(image.device(), None);
    image.mount();
    image.verify("file", 20, 1);
}

/// Online, it does not come as far as to `resize2fs`.
fn shrink_below_the_minimum_online_is_38() {
    let image = Image::new();
    image.mount();
    image.write("file", 20, 1);
    ploop(&[&"resize", &"-s", &"10M", &image.descriptor()]).expect(38);
    image.verify("file", 20, 1);
}

/// "mount option the kernel refuses 21."
fn a_mount_option_the_kernel_refuses_is_21() {
    let image = Image::new();
    refused_mount(&image);
}

fn refused_mount(image: &Image) {
    let arguments: &[&dyn AsRef<std::ffi::OsStr>] = &[
        &"mount",
        &"-m",
        &image.target(),
        &"-o",
        &"nosuchoption=1",
        &image.descriptor(),
    ];
    ploop(arguments).expect(21);
}

/// "After a failed mount of the file system the device is already detached."
fn after_a_failed_mount_the_device_is_detached() {
    let image = Image::new();
    refused_mount(&image);
    assert_eq!(image.device(), None);
    assert!(!image::in_use(&image.base()));
    image.mount();
}

/// "Online replace with KEEP_NAME onto a taken name prints an error, rolls back, and returns **0**."
fn replace_with_keep_name_onto_a_taken_name_rolls_back_and_is_0() {
    /// Something is mounted upon a file, so nothing can be renamed to it.
    struct Taken(std::path::PathBuf);
    impl Drop for Taken {
        fn drop(&mut self) {
            let _ = ioctl::unmount(&self.0, libc::MNT_DETACH);
        }
    }
    let image = Image::new();
    let device = image.mount();
    image.write("file", 2, 1);
    image.snapshot();
    let new = image.path("new.hds");
    fs::copy(image.base(), &new).unwrap();
    // With one link it fails earlier, whatever the name: libploop links to a name that it has just made.
    fs::hard_link(&new, image.path("link.hds")).unwrap();
    ioctl::mount(&image.base(), &image.base(), "none", libc::MS_BIND, "").unwrap();
    let taken = Taken(image.base());
    let arguments: &[&dyn AsRef<std::ffi::OsStr>] = &[
        &"replace",
        &"-k",
        &"-o",
        &image.base(),
        &"-i",
        &new,
        &image.descriptor(),
    ];
    let output = ploop(arguments);
    drop(taken);
    output.expect(0);
    assert!(output.text.contains("Can't rename"), "{}", output.text);
    // "`image` in sysfs reads the name without the mount point": that was upon the file, and is gone.
    assert_eq!(driver::images(device)[0], Path::new("root.hds"));
    assert!(new.exists());
    image.verify("file", 2, 1);
}
