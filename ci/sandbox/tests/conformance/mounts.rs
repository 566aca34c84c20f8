//! How mounts appear, and what only OpenVZ's ext4 knows.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::driver;
use crate::harness::{Need, Test};
use crate::image::{Image, Scratch};
use crate::ioctl::{self, error};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Tool] =>
            proc_mounts_has_the_partition_and_balloon_ino,
            mountinfo_has_the_drivers_number_and_balloon_ino,
            balloon_ino_is_a_mount_option,
            a_mount_option_that_ext4_does_not_know_is_refused,
            an_ioctl_opens_the_balloon;
        &[Need::Tool, Need::Driver("other kernels have other defaults")] =>
            proc_mounts_has_exactly_these_options;
        // It has the number of stock ext4's ioctl that sets the UUID, so it may not reach the kernel.
        &[Need::Tool, Need::Driver("it is ENOTTY, and libploop runs tune2fs")] =>
            an_ioctl_sets_reserved_blocks;
    ]
}

/// A file system of memory.
pub(crate) struct Tmpfs(Scratch);

impl Tmpfs {
    pub(crate) fn new() -> Tmpfs {
        let scratch = Scratch::new();
        let target = scratch.path("tmpfs");
        fs::create_dir(&target).unwrap();
        ioctl::mount(Path::new("tmpfs"), &target, "tmpfs", 0, "size=64m").unwrap();
        Tmpfs(scratch)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path("tmpfs")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = ioctl::unmount(&self.path(), libc::MNT_DETACH);
    }
}

/// The line of a list of mounts that has this text as a field.
fn line(list: &str, target: &Path) -> Option<Vec<String>> {
    let target = target.to_str().unwrap();
    let text = fs::read_to_string(list).unwrap();
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    text.lines()
        .map(fields)
        .find(|fields| fields.iter().any(|field| field == target))
}

/// The inode of the balloon of a mounted image, as it is in the file system.
fn balloon_inode(image: &Image) -> u64 {
    let entry = fs::read_dir(image.target())
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(".balloon"))
        });
    entry
        .expect("there is no balloon")
        .metadata()
        .unwrap()
        .ino()
}

fn has(options: &str, option: &str) -> bool {
    options.split(',').any(|found| found == option)
}

/// "`/proc/mounts`: `/dev/ploop59915p1 <dir> ext4 rw,relatime,[…],balloon_ino=12 0 0`".
fn proc_mounts_has_the_partition_and_balloon_ino() {
    let image = Image::new();
    let device = image.mount();
    assert_eq!(balloon_inode(&image), 12);
    let line = line("/proc/mounts", &image.target()).unwrap();
    assert_eq!(line.len(), 6, "{line:?}");
    assert_eq!(line[0], format!("/dev/ploop{device}p1"));
    assert_eq!(Path::new(&line[1]), image.target());
    assert_eq!(line[2], "ext4");
    for option in ["rw", "relatime", "balloon_ino=12"] {
        assert!(has(&line[3], option), "no {option}: {line:?}");
    }
    assert_eq!(line[4..], ["0", "0"]);
}

/// "`rw,relatime,barrier=1,data=ordered,balloon_ino=12`".
fn proc_mounts_has_exactly_these_options() {
    let image = Image::new();
    image.mount();
    let line = line("/proc/mounts", &image.target()).unwrap();
    assert_eq!(line[3], "rw,relatime,barrier=1,data=ordered,balloon_ino=12");
}

/// "`/proc/self/mountinfo`: `… 182:958641 / <dir> rw,relatime - ext4 /dev/ploop59915p1 rw,…,balloon_ino=12`".
fn mountinfo_has_the_drivers_number_and_balloon_ino() {
    let image = Image::new();
    let device = image.mount();
    let line = line("/proc/self/mountinfo", &image.target()).unwrap();
    assert_eq!(line[2], format!("182:{}", device * 16 + 1));
    assert_eq!(line[3], "/");
    assert_eq!(Path::new(&line[4]), image.target());
    assert!(has(&line[5], "rw") && has(&line[5], "relatime"), "{line:?}");
    let dash = line.iter().position(|field| field == "-").unwrap();
    assert_eq!(line[dash + 1], "ext4");
    assert_eq!(line[dash + 2], format!("/dev/ploop{device}p1"));
    assert!(has(&line[dash + 3], "balloon_ino=12"), "{line:?}");
    assert_eq!(
        fs::metadata(image.target()).unwrap().dev(),
        libc::makedev(182, device * 16 + 1)
    );
}

/// "`balloon_ino=` is a mount option only OpenVZ's ext4 knows".
fn balloon_ino_is_a_mount_option() {
    let image = Image::new();
    let device = image.mount();
    let partition = driver::partition_node(device);
    // As libploop does it.
    let remounted = ioctl::mount(
        &partition,
        &image.target(),
        "ext4",
        libc::MS_REMOUNT,
        "balloon_ino=12,",
    );
    assert_eq!(remounted, Ok(0));
    let line = line("/proc/mounts", &image.target()).unwrap();
    assert!(has(&line[3], "balloon_ino=12"), "{line:?}");
}

/// That the one above is not accepted for whatever it is.
fn a_mount_option_that_ext4_does_not_know_is_refused() {
    let image = Image::new();
    let device = image.mount();
    let partition = driver::partition_node(device);
    let remounted = ioctl::mount(
        &partition,
        &image.target(),
        "ext4",
        libc::MS_REMOUNT,
        "balloon=12",
    );
    assert_eq!(remounted, error(libc::EINVAL));
}

/// "so is the ioctl that opens the balloon inode (`EXT4_IOC_OPEN_BALLOON`)".
fn an_ioctl_opens_the_balloon() {
    let image = Image::new();
    image.mount();
    let inode = balloon_inode(&image);
    let balloon = ioctl::open_balloon(&File::open(image.target()).unwrap()).unwrap();
    assert_eq!(balloon.metadata().unwrap().ino(), inode);
}

/// "and the one that sets reserved blocks (`EXT4_IOC_SET_RSV_BLOCKS`)."
fn an_ioctl_sets_reserved_blocks() {
    let image = Image::new();
    image.mount();
    let balloon = ioctl::open_balloon(&File::open(image.target()).unwrap()).unwrap();
    assert_eq!(ioctl::set_reserved_blocks(&balloon, 0), Ok(0));
}
