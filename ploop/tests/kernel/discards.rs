//! Giving back what the file system no longer uses.

use std::fs;
use std::thread;
use std::time::Duration;

use ploop::{
    Code, ComponentName, DiscardParam, DiscardStat, ErrorKind, MountParam, Ploop, ResizeMode, Size,
    StopFlag,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, refused};
use crate::fixture::harness::Test;
use crate::fixture::line;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            what_was_deleted_is_given_back,
            an_image_is_mounted_for_the_time,
            as_much_as_is_asked_for,
            it_is_stopped,
            in_the_top_alone,
            under_a_name,
            what_cannot_be_discarded,
            statistics,
            on_an_old_kernel;
    ]
}

/// A mounted image in which 100 MiB were deleted.
fn full_of_air() -> (Container, Ploop) {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("kept", 8 << 20);
    container.write("deleted", 100 << 20);
    container.write("also kept", 8 << 20);
    container.remove("deleted");
    (container, image)
}

const KEPT: [&str; 2] = ["also kept", "kept"];

fn size_of(image: &mut Ploop) -> u64 {
    let file = image.top_delta_file().unwrap();
    fs::metadata(file).unwrap().len()
}

/// At least that much was given back. It may be more by what the driver had got ahead of an attached
/// image, up to as much again as its file has; but what is kept needs its place.
#[track_caller]
fn assert_freed(before: u64, after: u64, mib: u64) {
    let freed = before.saturating_sub(after) >> 20;
    assert!(freed >= mib, "{freed} MiB: {before} became {after}");
    assert!(after > 16 << 20, "{before} became {after}");
}

fn what_was_deleted_is_given_back() {
    let (mut container, mut image) = full_of_air();
    let before = image.discard_stat().unwrap();
    image.discard(&DiscardParam::new()).unwrap();
    let after = image.discard_stat().unwrap();
    assert_freed(before.image_size.bytes(), after.image_size.bytes(), 80);
    container.verify(&KEPT);
    // The device is in order: more of it, and a snapshot.
    image.discard(&DiscardParam::new()).unwrap();
    container.write("more", 20 << 20);
    image.snapshot().unwrap();
    container.write("newest", 2 << 20);
    let all = ["also kept", "kept", "more", "newest"];
    container.verify(&all);
    image.umount().unwrap();
    container.verify_image(&mut image, &all);
}

fn an_image_is_mounted_for_the_time() {
    let (container, mut image) = full_of_air();
    image.umount().unwrap();
    let before = size_of(&mut image);
    refused(
        image.discard(&DiscardParam::new()),
        ErrorKind::NotMounted,
        Code::PARAM,
    );
    assert_eq!(size_of(&mut image), before);
    let param = DiscardParam::new().automount(true).defrag(true);
    image.discard(&param).unwrap();
    assert_detached(&mut image);
    assert!(!container.path("root.hdd.mnt").exists());
    assert_freed(before, size_of(&mut image), 80);
    container.verify_image(&mut image, &KEPT);
}

fn as_much_as_is_asked_for() {
    let (container, mut image) = full_of_air();
    let before = size_of(&mut image);
    // Extents this long there are none; a group of blocks has 128 MiB.
    let param = DiscardParam::new().min_length(Size::from_mib(127));
    image.discard(&param).unwrap();
    assert_eq!(size_of(&mut image), before);
    container.verify(&KEPT);
    let param = DiscardParam::new().min_length(Size::from_gib(1));
    // Longer than a group is an error of the kernel's, which libploop takes for nothing to do since 7.0.229.
    assert_eq!(image.discard(&param).is_ok(), line::is_since([7, 0, 229]));
    assert_eq!(size_of(&mut image), before);
    container.verify(&KEPT);
    let param = DiscardParam::new().to_free(Size::from_mib(1));
    image.discard(&param).unwrap();
    let less = size_of(&mut image);
    assert!(less < before, "{less}");
    container.verify(&KEPT);
    image.discard(&DiscardParam::new()).unwrap();
    assert_freed(before, size_of(&mut image), 80);
    container.verify(&KEPT);
    image.umount().unwrap();
    container.verify_image(&mut image, &KEPT);
}

fn it_is_stopped() {
    let (container, mut image) = full_of_air();
    let before = size_of(&mut image);
    let stop = StopFlag::new();
    stop.stop();
    // One round is worked through.
    image.discard(&DiscardParam::new().stop(&stop)).unwrap();
    assert!(size_of(&mut image) <= before);
    container.verify(&KEPT);
    let stop = StopFlag::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            stop.stop();
        });
        image.discard(&DiscardParam::new().stop(&stop)).unwrap();
    });
    assert!(stop.is_stopped());
    container.verify(&KEPT);
    image.discard(&DiscardParam::new()).unwrap();
    assert_freed(before, size_of(&mut image), 80);
    image.umount().unwrap();
    container.verify_image(&mut image, &KEPT);
}

/// Snapshots keep what they have.
fn in_the_top_alone() {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    for name in KEPT {
        container.write(name, 8 << 20);
    }
    let snapshot = image.snapshot().unwrap();
    let base = fs::read(container.base()).unwrap();
    container.write("passing", 60 << 20);
    container.remove("passing");
    let top = size_of(&mut image);
    image.discard(&DiscardParam::new()).unwrap();
    let now = size_of(&mut image);
    assert!(top - now >= 40 << 20, "{top} became {now}");
    container.verify(&KEPT);
    assert!(fs::read(container.base()).unwrap() == base);
    crate::snapshots::verify_snapshot(&container, snapshot, &KEPT);
    image.umount().unwrap();
    container.verify_image(&mut image, &KEPT);
}

fn under_a_name() {
    let (container, mut image) = full_of_air();
    image.umount().unwrap();
    let before = size_of(&mut image);
    let name = ComponentName::new("name").unwrap();
    let param = container.param().component(name);
    let mut guard = image.mount_guard(&param).unwrap();
    if line::is_7() {
        refused(
            guard.discard(&DiscardParam::new().automount(true)),
            ErrorKind::Busy,
            Code::PARAM,
        );
        refused(guard.discard_stat(), ErrorKind::Unsupported, None);
        container.verify(&KEPT);
        guard.umount().unwrap();
        assert_detached(&mut image);
        container.verify_image(&mut image, &KEPT);
        // What is attached for the time of the discard has the name, too.
        image.discard(&DiscardParam::new().automount(true)).unwrap();
        assert_detached(&mut image);
        image.set_component(None);
        assert_freed(before, size_of(&mut image), 80);
        container.verify_image(&mut image, &KEPT);
        return;
    }
    guard.discard(&DiscardParam::new()).unwrap();
    assert!(guard.discard_stat().unwrap().image_size.bytes() < before);
    container.verify(&KEPT);
    guard.umount().unwrap();
    image.set_component(None);
    assert_freed(before, size_of(&mut image), 80);
    container.verify_image(&mut image, &KEPT);
}

fn what_cannot_be_discarded() {
    let (container, mut image) = full_of_air();
    let before = size_of(&mut image);
    refused(
        image.discard(&DiscardParam::new().to_free(Size::from_kib(1023))),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    assert_eq!(size_of(&mut image), before);
    container.verify(&KEPT);
    image.umount().unwrap();
    refused(image.discard_stat(), ErrorKind::NotMounted, None);
    // Attached without its file system, there is nothing to ask.
    let mut guard = image.mount_guard(&MountParam::new()).unwrap();
    for automount in [false, true] {
        let param = DiscardParam::new().automount(automount);
        refused(guard.discard(&param), ErrorKind::InvalidInput, Code::PARAM);
    }
    refused(guard.discard_stat(), ErrorKind::InvalidInput, Code::PARAM);
    assert!(!container.path("root.hdd.mnt").exists());
    guard.umount().unwrap();
    container.verify_image(&mut image, &KEPT);
}

fn statistics() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    let empty = guard.discard_stat().unwrap();
    assert_eq!((empty.ploop_size, empty.balloon_size), (SIZE, Size::ZERO));
    container.write("file", 50 << 20);
    let full = guard.discard_stat().unwrap();
    let grown = |of: fn(&DiscardStat) -> Size| {
        of(&full)
            .checked_sub(of(&empty))
            .unwrap_or_default()
            .bytes()
            >> 20
    };
    assert!((50..52).contains(&grown(|stat| stat.data_size)), "{full:?}");
    assert!(
        (40..90).contains(&grown(|stat| stat.image_size)),
        "{full:?}"
    );
    guard
        .resize(Size::from_mib(220), ResizeMode::Online)
        .unwrap();
    let shrunk = guard.discard_stat().unwrap();
    assert!(shrunk.balloon_size > Size::from_mib(50), "{shrunk:?}");
    assert_eq!(
        shrunk.ploop_size.checked_add(shrunk.balloon_size),
        Some(SIZE)
    );
    assert!(shrunk.data_size <= full.data_size, "{shrunk:?}");
    container.verify(&["file"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

/// Without system call filters, in a process namespace.
fn on_an_old_kernel() {
    crate::old_kernel::run_again(&["discards::"]);
}
