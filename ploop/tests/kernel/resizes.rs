//! Growing and shrinking, mounted and not.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use ploop::{
    Code, DiscardStat, ErrorKind, ImageMode, MountParam, Ploop, ResizeMode, ResizeParam, Size,
    fs_info,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, debugfs, partition, refused, tool};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::{self, by_line};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            a_mounted_image_grows_and_shrinks,
            an_image_that_is_not_mounted_is_mounted_for_the_time,
            an_attached_image_is_mounted_for_the_time,
            an_image_grows_and_shrinks_offline,
            as_small_as_possible,
            too_small_for_what_is_in_it,
            sizes_no_image_can_have,
            a_chain_grows,
            a_raw_image_grows_and_shrinks,
            a_file_system_that_is_mounted_without_its_balloon,
            a_file_system_that_has_no_balloon;
        &[Need::Driver, Need::Root, Need::Mounts, Need::OnlineResize] =>
            a_mount_of_another_namespace;
    ]
}

const LESS: Size = Size::from_mib(200);
const MORE: Size = Size::from_mib(400);

fn balloon(image: &mut Ploop) -> Size {
    let DiscardStat { balloon_size, .. } = image.discard_stat().unwrap();
    balloon_size
}

fn a_mounted_image_grows_and_shrinks() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    assert_eq!(balloon(&mut guard), Size::ZERO);
    let full = container.free_mib();

    guard.resize(LESS, ResizeMode::Online).unwrap();
    let less = container.free_mib();
    assert!(
        (less + 70..less + 100).contains(&full),
        "{full} became {less}"
    );
    let size = balloon(&mut guard);
    assert!(
        size > Size::from_mib(70) && size < Size::from_mib(100),
        "{size}"
    );
    // The device and the descriptor keep their size.
    assert_eq!(guard.descriptor().unwrap().size, SIZE);
    assert_eq!(guard.image_info().unwrap().size(), SIZE);
    container.verify(&["a"]);
    container.write("b", 5 << 20);

    guard.resize(MORE, ResizeMode::Online).unwrap();
    let more = container.free_mib();
    assert!(more > full + 90, "{full} became {more}");
    assert_eq!(balloon(&mut guard), Size::ZERO);
    assert_eq!(guard.descriptor().unwrap().size, MORE);
    assert_eq!(guard.image_info().unwrap().size(), MORE);
    container.verify(&["a", "b"]);
    // As much as was not there before.
    container.write("c", 150 << 20);
    container.verify(&["a", "b", "c"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b", "c"]);
    assert_large(&image);
}

/// The file system has what is its share of [`MORE`]. That of libploop 7 is prepared for larger disks, which takes some
/// space.
#[track_caller]
fn assert_large(image: &Ploop) {
    let size = fs_info(image.path()).unwrap().size();
    let least = Size::from_mib(by_line(240, 230));
    assert!(size > least, "{size}");
}

fn an_image_that_is_not_mounted_is_mounted_for_the_time() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    guard.umount().unwrap();
    for (size, balloon_of) in [(LESS, 70..100), (MORE, 0..1)] {
        image.resize(size, ResizeMode::Online).unwrap();
        assert_detached(&mut image);
        assert!(!container.path("root.hdd.mnt").exists());
        let mut guard = image.mount_guard(&container.param()).unwrap();
        let mib = balloon(&mut guard).bytes() >> 20;
        assert!(balloon_of.contains(&mib), "{size}: {mib}");
        container.verify(&["a"]);
        guard.umount().unwrap();
    }
    assert_eq!(image.descriptor().unwrap().size, MORE);
    container.verify_image(&mut image, &["a"]);
}

fn an_attached_image_is_mounted_for_the_time() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    guard.umount().unwrap();
    let mut guard = image.mount_guard(&MountParam::new()).unwrap();
    guard.resize(MORE, ResizeMode::Online).unwrap();
    let device = guard.mounted().device.clone();
    assert_eq!(ploop::device::mount_point(&device).unwrap(), None);
    assert_eq!(guard.image_info().unwrap().size(), MORE);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
    assert_large(&image);
}

fn an_image_grows_and_shrinks_offline() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    container.write("gone", 60 << 20);
    container.remove("gone");
    guard.umount().unwrap();
    for (size, device) in [(LESS, SIZE), (MORE, MORE), (LESS, MORE)] {
        let before = fs_info(image.path()).unwrap().size();
        image.resize(size, ResizeMode::Offline).unwrap();
        assert_detached(&mut image);
        assert!(!container.path("root.hdd.mnt").exists());
        // Shrinking leaves the device as large as it was.
        assert_eq!(image.descriptor().unwrap().size, device);
        assert_eq!(image.image_info().unwrap().size(), device);
        container.verify_image(&mut image, &["a"]);
        let after = fs_info(image.path()).unwrap().size();
        assert_eq!(after < before, size == LESS, "{before} became {after}");
        let guard = image.mount_guard(&container.param()).unwrap();
        let name = format!("after-{size}").replace(' ', "");
        container.write(&name, 1 << 20);
        container.remove(&name);
        guard.umount().unwrap();
    }
}

fn as_small_as_possible() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    let free = |image: &mut Ploop| fs_info(image.path()).unwrap().free();
    let before = free(&mut guard);
    guard
        .resize_with(&ResizeParam::to_minimum(ResizeMode::Online))
        .unwrap();
    let (after, size) = (free(&mut guard), balloon(&mut guard));
    assert!(after < Size::from_mib(20), "{before} became {after}");
    assert!(size.bytes() + (20 << 20) > before.bytes(), "{size}");
    container.verify(&["a"]);
    // Once more, and offline it is the same: there may be nothing left to take.
    let once_more = |image: &mut Ploop, mode| {
        if let Err(error) = image.resize_with(&ResizeParam::to_minimum(mode)) {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        }
    };
    once_more(&mut guard, ResizeMode::Online);
    container.verify(&["a"]);
    guard.umount().unwrap();
    once_more(&mut image, ResizeMode::Offline);
    assert_detached(&mut image);
    container.verify_image(&mut image, &["a"]);
    image.resize(MORE, ResizeMode::Offline).unwrap();
    let mut guard = image.mount_guard(&container.param()).unwrap();
    assert_eq!(balloon(&mut guard), Size::ZERO);
    container.write("b", 150 << 20);
    container.verify(&["a", "b"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b"]);
}

fn too_small_for_what_is_in_it() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 50 << 20);
    let (size, free) = (Size::from_mib(40), container.free_mib());
    let error = refused(
        guard.resize(size, ResizeMode::Online),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    assert!(error.message().contains("minimal size"), "{error}");
    assert_eq!(container.free_mib(), free);
    assert_eq!(balloon(&mut guard), Size::ZERO);
    container.verify(&["a"]);
    guard.umount().unwrap();
    refused(
        image.resize(size, ResizeMode::Online),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    assert_detached(&mut image);
    refused(
        image.resize(size, ResizeMode::Offline),
        ErrorKind::Tool,
        Code::RESIZE_FS,
    );
    assert_detached(&mut image);
    assert!(!container.path("root.hdd.mnt").exists());
    assert_eq!(image.descriptor().unwrap().size, SIZE);
    container.verify_image(&mut image, &["a"]);
}

fn sizes_no_image_can_have() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 1 << 20);
    for size in [
        Size::ZERO,
        Size::from_mib(4),
        Size::from_gib(20 << 10),
        Size::MAX,
    ] {
        for mode in [ResizeMode::Online, ResizeMode::Offline] {
            let result = guard.resize(size, mode);
            refused(result, ErrorKind::InvalidInput, Code::PARAM);
        }
    }
    container.verify(&["a"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
}

/// The deltas below keep their size until they are merged with a larger one, running or not.
fn a_chain_grows() {
    for online in [true, false] {
        let (mut container, mut image) = Container::new(SIZE);
        let mut guard = image.mount_guard(&container.param()).unwrap();
        container.write("base", 20 << 20);
        let snapshot = guard.snapshot().unwrap();
        guard.resize(MORE, ResizeMode::Online).unwrap();
        container.write("top", 150 << 20);
        container.verify(&["base", "top"]);
        if online {
            guard.delete_snapshot(snapshot).unwrap();
            container.verify(&["base", "top"]);
            container.write("more", 20 << 20);
            guard.umount().unwrap();
        } else {
            container.write("more", 20 << 20);
            guard.umount().unwrap();
            container.verify_image(&mut image, &["base", "more", "top"]);
            image.delete_snapshot(snapshot).unwrap();
        }
        assert_eq!(image.descriptor().unwrap().images.len(), 1);
        assert_eq!(image.image_info().unwrap().size(), MORE);
        container.verify_image(&mut image, &["base", "more", "top"]);
    }
}

/// It does not shrink (A17) until there is a delta above it.
fn a_raw_image_grows_and_shrinks() {
    let (mut container, mut image) = Container::made(SIZE, |param| param.mode(ImageMode::Raw));
    if container.is_refused_as_raw(&mut image) {
        return;
    }
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    guard.umount().unwrap();
    let len = |container: &Container| fs::metadata(container.base()).unwrap().len();
    for mode in [ResizeMode::Online, ResizeMode::Offline] {
        for param in [
            ResizeParam::to(LESS, mode),
            ResizeParam::to(SIZE, mode),
            ResizeParam::to_minimum(mode),
        ] {
            refused(image.resize_with(&param), ErrorKind::Unsupported, None);
        }
    }
    assert_eq!(len(&container), SIZE.bytes());
    container.verify_image(&mut image, &["a"]);
    let most = Size::from_mib(420);
    for (size, mode) in [(MORE, ResizeMode::Online), (most, ResizeMode::Offline)] {
        image.resize(size, mode).unwrap();
        assert_detached(&mut image);
        assert_eq!(len(&container), size.bytes());
        container.verify_image(&mut image, &["a"]);
    }
    image.snapshot().unwrap();
    for mode in [ResizeMode::Online, ResizeMode::Offline] {
        image.resize(LESS, mode).unwrap();
        assert_eq!(len(&container), most.bytes());
        container.verify_image(&mut image, &["a"]);
    }
}

/// A shell that has the file system mounted in a namespace of its own, until its input ends.
struct Elsewhere(Child);

impl Elsewhere {
    fn mount(device: &std::path::Path, target: &std::path::Path) -> Elsewhere {
        use std::io::BufRead;
        // libploop 7 takes for granted that whoever mounted it has named the balloon.
        let balloon = if line::is_7() {
            "mount -o remount,balloon_ino=$(stat -c %i \"$1/$2\") \"$0\" \"$1\" &&"
        } else {
            ""
        };
        let script = format!("mount -t ext4 \"$0\" \"$1\" && {balloon} echo mounted && read line");
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg(partition(device))
            .arg(target)
            .arg(BALLOON)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.as_mut().unwrap();
        std::io::BufReader::new(output)
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "mounted\n");
        Elsewhere(shell)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn a_mount_of_another_namespace() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 5 << 20);
    guard.umount().unwrap();
    let mut guard = image.mount_guard(&MountParam::new()).unwrap();
    let other = Elsewhere::mount(&guard.mounted().device, &container.target());
    let param = ResizeParam::to(MORE, ResizeMode::Online);
    guard
        .resize_with(&param.mount_namespace(other.0.id()))
        .unwrap();
    assert_eq!(guard.image_info().unwrap().size(), MORE);
    for pid in [0, u32::MAX] {
        let result = guard.resize_with(&param.mount_namespace(pid));
        refused(result, ErrorKind::InvalidInput, Code::PARAM);
    }
    other.end();
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
    assert_large(&image);
}

/// libploop's name for it.
const BALLOON: &str = ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

/// That everything that needs the balloon says that there is none, and what to do.
#[track_caller]
fn lacks_balloon(image: &mut Ploop) {
    for result in [
        image.discard_stat().map(drop),
        image.resize(LESS, ResizeMode::Online),
        image.resize(MORE, ResizeMode::Online),
    ] {
        let error = refused(result, ErrorKind::Unsupported, Code::DEVIOC);
        for words in ["balloon_ino=", "let libploop mount it", BALLOON] {
            assert!(
                error.advice().unwrap_or_default().contains(words),
                "{error}"
            );
        }
    }
}

fn a_file_system_that_is_mounted_without_its_balloon() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&MountParam::new()).unwrap();
    let device = partition(&guard.mounted().device);
    let target = container.target();
    let arguments = [device.to_str().unwrap(), target.to_str().unwrap()];
    tool("mount", &["-t", "ext4", arguments[0], arguments[1]]);
    container.write("a", 5 << 20);
    lacks_balloon(&mut guard);
    // It is a file like others.
    assert!(container.target().join(BALLOON).exists());
    tool("umount", &arguments[1..]);
    guard.umount().unwrap();
    // As the message says.
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.verify(&["a"]);
    guard.resize(LESS, ResizeMode::Online).unwrap();
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
}

fn a_file_system_that_has_no_balloon() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    debugfs(&guard.mounted().device, &format!("rm {BALLOON}"));
    guard.umount().unwrap();
    if line::is_7() {
        // It mounts no such file system.
        let mounted = image.mount(&container.param().fsck(true));
        refused(mounted, ErrorKind::NotFound, Code::MOUNT);
        assert_detached(&mut image);
        let guard = image.mount_guard(&MountParam::new()).unwrap();
        let device = partition(&guard.mounted().device);
        let target = container.target();
        let target = target.to_str().unwrap();
        tool("mount", &["-t", "ext4", device.to_str().unwrap(), target]);
        container.write("a", 5 << 20);
        File::create_new(container.target().join(BALLOON)).unwrap();
        tool("umount", &[target]);
        guard.umount().unwrap();
    } else {
        let mut guard = image.mount_guard(&container.param().fsck(true)).unwrap();
        container.write("a", 5 << 20);
        lacks_balloon(&mut guard);
        // As the message says.
        File::create_new(container.target().join(BALLOON)).unwrap();
        guard.umount().unwrap();
    }
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.verify(&["a"]);
    guard.resize(LESS, ResizeMode::Online).unwrap();
    assert!(balloon(&mut guard) > Size::ZERO);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
}
