//! How mounts appear, and what only OpenVZ's ext4 knows.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::driver::{self, Device};
use crate::files;
use crate::harness::{Need, Test};
use crate::image::{Image, Scratch};
use crate::ioctl::{self, Errno, error};
use crate::program::run;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Tool] =>
            proc_mounts_has_the_partition_and_balloon_ino,
            mountinfo_has_the_drivers_number_and_balloon_ino,
            balloon_ino_is_a_mount_option,
            a_mount_option_that_ext4_does_not_know_is_refused,
            an_ioctl_opens_the_balloon,
            one_more_mount_has_the_balloon_of_the_first,
            the_balloon_is_in_no_directory,
            what_names_the_balloon_is_eperm,
            without_the_option_the_balloon_is_a_file_like_others,
            a_balloon_that_is_a_directory_is_ignored;
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

/// libploop's name for the balloon.
const BALLOON: &str = ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

/// The inode of the balloon of a mounted image, as it is on the disk: the file system hides it.
fn balloon_inode(device: u32) -> u64 {
    let request = format!("stat /{BALLOON}");
    let output = run(
        "debugfs",
        &[&"-R", &request, &driver::partition_node(device)],
    );
    let inode = output
        .text
        .split("Inode: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let inode = inode.and_then(|text| text.parse().ok());
    inode.unwrap_or_else(|| panic!("there is no balloon: {}", output.text))
}

fn has(options: &str, option: &str) -> bool {
    options.split(',').any(|found| found == option)
}

/// "`/proc/mounts`: `/dev/ploop59915p1 <dir> ext4 rw,relatime,[…],balloon_ino=12 0 0`".
fn proc_mounts_has_the_partition_and_balloon_ino() {
    let image = Image::new();
    let device = image.mount();
    assert_eq!(balloon_inode(device), 12);
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

/// Mounts it, and once more with this option.
fn mount_and_remount(image: &Image, option: &str) -> ioctl::Result<i32> {
    let partition = driver::partition_node(image.mount());
    let target = image.target();
    ioctl::mount(&partition, &target, "ext4", libc::MS_REMOUNT, option)
}

/// "`balloon_ino=` is a mount option only OpenVZ's ext4 knows".
fn balloon_ino_is_a_mount_option() {
    let image = Image::new();
    // As libploop does it.
    let remounted = mount_and_remount(&image, "balloon_ino=12,");
    assert_eq!(remounted, Ok(0));
    let line = line("/proc/mounts", &image.target()).unwrap();
    assert!(has(&line[3], "balloon_ino=12"), "{line:?}");
}

/// That the one above is not accepted for whatever it is.
fn a_mount_option_that_ext4_does_not_know_is_refused() {
    let remounted = mount_and_remount(&Image::new(), "balloon=12");
    assert_eq!(remounted, error(libc::EINVAL));
}

/// "so is the ioctl that opens the balloon inode (`EXT4_IOC_OPEN_BALLOON`)".
fn an_ioctl_opens_the_balloon() {
    let image = Image::new();
    let device = image.mount();
    let balloon = ioctl::open_balloon(&File::open(image.target()).unwrap()).unwrap();
    assert_eq!(balloon.metadata().unwrap().ino(), balloon_inode(device));
}

/// A file system has its options once, however often it is mounted.
fn one_more_mount_has_the_balloon_of_the_first() {
    let image = Image::new();
    let device = image.mount();
    let inode = balloon_inode(device);
    let again = image.path("again");
    fs::create_dir(&again).unwrap();
    let node = driver::partition_node(device);
    ioctl::mount(&node, &again, "ext4", 0, "").unwrap();
    let opened = ioctl::open_balloon(&File::open(&again).unwrap());
    let opened = opened.map(|balloon| balloon.metadata().unwrap().ino());
    ioctl::unmount(&again, 0).unwrap();
    assert_eq!(opened, Ok(inode));
    // And the next first mount has none.
    image.unmount();
    let device = Device::running(&[&image.base()]);
    ioctl::reread_partitions(device.node()).unwrap();
    ioctl::mount(&device.partition(), &again, "ext4", 0, "").unwrap();
    let opened = ioctl::open_balloon(&File::open(&again).unwrap()).map(drop);
    ioctl::unmount(&again, 0).unwrap();
    assert_eq!(opened, Err(Errno(libc::ENOENT)));
}

/// "With `balloon_ino=` the balloon is not in readdir".
fn the_balloon_is_in_no_directory() {
    let image = Image::new();
    image.mount();
    image.write("file", 1, 1);
    let mut names: Vec<_> = fs::read_dir(image.target())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["file", "lost+found"]);
    // Other programs do not see it either.
    let listed = run("ls", &[&"-A", &image.target()]);
    assert_eq!(listed.text, "file\nlost+found\n");
}

/// "stat, open, unlink, create and rename onto it: EPERM."
fn what_names_the_balloon_is_eperm() {
    let image = Image::new();
    let device = image.mount();
    image.write("file", 1, 1);
    let (balloon, file) = (image.target().join(BALLOON), image.target().join("file"));
    files::fails(fs::metadata(&balloon), libc::EPERM);
    files::fails(fs::symlink_metadata(&balloon), libc::EPERM);
    files::fails(File::open(&balloon), libc::EPERM);
    files::fails(fs::remove_file(&balloon), libc::EPERM);
    files::fails(File::create(&balloon), libc::EPERM);
    files::fails(File::create_new(&balloon), libc::EPERM);
    files::fails(fs::rename(&file, &balloon), libc::EPERM);
    image.verify("file", 1, 1);
    assert_eq!(balloon_inode(device), 12);
}

/// A device whose partition is mounted, not by libploop.
struct Mounted {
    scratch: Scratch,
    device: Device,
}

impl Mounted {
    fn new() -> Mounted {
        let scratch = Scratch::new();
        let device = Device::running(&[&scratch.partitioned("root.hds")]);
        ioctl::reread_partitions(device.node()).unwrap();
        fs::create_dir(scratch.path("mnt")).unwrap();
        let mounted = Mounted { scratch, device };
        mounted.mount(0, "").unwrap();
        mounted
    }

    fn target(&self) -> PathBuf {
        self.scratch.path("mnt")
    }

    fn mount(&self, flags: libc::c_ulong, options: &str) -> ioctl::Result<i32> {
        ioctl::mount(
            &self.device.partition(),
            &self.target(),
            "ext4",
            flags,
            options,
        )
    }

    fn open_balloon(&self) -> ioctl::Result<File> {
        ioctl::open_balloon(&File::open(self.target()).unwrap())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = driver::patiently(|| ioctl::unmount(&self.target(), 0));
    }
}

/// "OPEN_BALLOON without the option: ENOENT".
fn without_the_option_the_balloon_is_a_file_like_others() {
    let mounted = Mounted::new();
    let none = |opened: ioctl::Result<File>| assert_eq!(opened.err(), Some(Errno(libc::ENOENT)));
    none(mounted.open_balloon());
    let balloon = mounted.target().join(BALLOON);
    assert_eq!(fs::metadata(&balloon).unwrap().ino(), 12);
    mounted.mount(libc::MS_REMOUNT, "balloon_ino=12").unwrap();
    assert_eq!(
        mounted.open_balloon().unwrap().metadata().unwrap().ino(),
        12
    );
    files::fails(fs::metadata(&balloon), libc::EPERM);
    // A remount without it keeps it, and a new mount has none.
    mounted.mount(libc::MS_REMOUNT, "").unwrap();
    files::fails(fs::metadata(&balloon), libc::EPERM);
    driver::patiently(|| ioctl::unmount(&mounted.target(), 0)).unwrap();
    mounted.mount(0, "").unwrap();
    none(mounted.open_balloon());
    assert_eq!(fs::metadata(&balloon).unwrap().ino(), 12);
}

/// "`balloon_ino=11` (a directory) mounts, and is ignored."
fn a_balloon_that_is_a_directory_is_ignored() {
    let mounted = Mounted::new();
    let inode = fs::metadata(mounted.target().join("lost+found"))
        .unwrap()
        .ino();
    assert_eq!(inode, 11);
    driver::patiently(|| ioctl::unmount(&mounted.target(), 0)).unwrap();
    mounted.mount(0, "balloon_ino=11").unwrap();
    assert_eq!(mounted.open_balloon().err(), Some(Errno(libc::ENOENT)));
    assert!(mounted.target().join("lost+found").is_dir());
    let line = line("/proc/mounts", &mounted.target()).unwrap();
    assert!(!line[3].contains("balloon_ino"), "{line:?}");
}

/// "and the one that sets reserved blocks (`EXT4_IOC_SET_RSV_BLOCKS`)."
fn an_ioctl_sets_reserved_blocks() {
    let image = Image::new();
    image.mount();
    let balloon = ioctl::open_balloon(&File::open(image.target()).unwrap()).unwrap();
    assert_eq!(ioctl::set_reserved_blocks(&balloon, 0), Ok(0));
}
