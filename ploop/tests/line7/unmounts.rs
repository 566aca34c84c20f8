//! Unmounting with a timeout of the caller's, and who is to blame where it is over.

use std::fs::File;
use std::time::{Duration, Instant};

use ploop::{Code, ErrorKind, ImageMode};

use crate::container::{Container, SIZE, refused};
use crate::filled_image::FilledImage;
use crate::fixture::harness::Test;
use crate::{MOUNTS, MOUNTS_OF_LINE_7, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => a_timeout_is_a_time_that_libploop_can_count;
        MOUNTS => a_busy_file_system_is_waited_for_as_told;
        MOUNTS_OF_LINE_7 => a_guard_waits_as_its_handle_was_told;
    ]
}

fn a_timeout_is_a_time_that_libploop_can_count() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let image = &mut filled.ploop;
    let seconds = |n| Some(Duration::from_secs(n));
    if !is_line_7() {
        for timeout in [None, seconds(5)] {
            let error = image.set_umount_timeout(timeout).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("7.0.95"), "{error}");
        }
        return;
    }
    for good in [None, seconds(0), seconds(1800)] {
        image.set_umount_timeout(good).unwrap();
    }
    let a_bit_more = Duration::from_secs(1800) + Duration::from_nanos(1);
    for bad in [Some(a_bit_more), Some(Duration::MAX)] {
        let error = image.set_umount_timeout(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    // Other calls take no notice.
    image.set_umount_timeout(seconds(0)).unwrap();
    filled.snapshot();
    filled.verify();
}

fn a_busy_file_system_is_waited_for_as_told() {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let open = File::open(container.target().join("file")).unwrap();
    let (code, expected) = if is_line_7() {
        image
            .set_umount_timeout(Some(Duration::from_millis(2001)))
            .unwrap();
        (Code::UMOUNT_BUSY, 3..=8)
    } else {
        (Code::UMOUNT, 6..=20)
    };
    let begin = Instant::now();
    let error = refused(image.umount(), ErrorKind::Busy, code);
    let waited = begin.elapsed().as_secs();
    assert!(expected.contains(&waited), "{waited} s");
    // libploop runs lsof.
    let users = error.output().unwrap();
    let this = std::process::id().to_string();
    let names_this = |line: &str| line.split_whitespace().nth(1) == Some(&*this);
    assert!(users.lines().any(names_this), "{users}");
    assert!(!error.message().contains("lsof"), "{error}");

    assert!(image.is_mounted().unwrap());
    container.verify(&["file"]);
    drop(open);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_guard_waits_as_its_handle_was_told() {
    let (mut container, mut image) = Container::new(SIZE);
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let open = File::open(container.target().join("file")).unwrap();
    guard.set_umount_timeout(Some(Duration::ZERO)).unwrap();
    let begin = Instant::now();
    refused(guard.umount(), ErrorKind::Busy, Code::UMOUNT_BUSY);
    // Of two attempts and lsof.
    assert!(begin.elapsed() < Duration::from_secs(10));
    container.verify(&["file"]);
    drop(open);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
