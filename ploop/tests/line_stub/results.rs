//! What becomes of libploop's codes, error texts and output.

use std::path::Path;
use std::time::Duration;

use ploop::{Code, ErrorKind, FormatVersion, MountParam, Ploop, ResizeMode, Size, device};

use crate::fixture::harness::Test;
use crate::stub::{self, NEEDS};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        stub::NEEDS_DEVICE =>
            a_busy_unmount_names_the_programs;
        NEEDS =>
            every_code_of_every_operation,
            the_text_is_that_of_the_call,
            what_is_printed_is_in_the_error,
            after_an_error_the_image_is_unlocked_and_as_it_was,
            look_ups_tell_no_from_failed;
    ]
}

fn image() -> (tempfile::TempDir, Ploop) {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = stub::image(dir.path(), FormatVersion::V2, 2);
    (dir, image)
}

/// An operation that calls this function, and fails if that does.
type Operation = (&'static str, fn(&mut Ploop) -> ploop::Result<()>);

const OPERATIONS: [Operation; 8] = [
    ("ploop_mount_image", |image| {
        image.mount(&MountParam::new()).map(drop)
    }),
    ("ploop_umount_image", Ploop::umount),
    ("ploop_resize_image", |image| {
        image.resize(Size::from_mib(20), ResizeMode::Online)
    }),
    ("ploop_create_snapshot", |image| image.snapshot().map(drop)),
    ("ploop_delete_snapshot", Ploop::delete_top_delta),
    ("ploop_set_max_delta_size", |image| {
        image.set_max_delta_size(Size::from_sectors(9))
    }),
    ("ploop_convert_image", |image| {
        image.convert(ploop::ImageMode::Preallocated)
    }),
    ("ploop_discard", |image| {
        image.discard(&ploop::DiscardParam::new())
    }),
];

fn every_code_of_every_operation() {
    let (_dir, mut image) = image();
    let codes = Code::ALL.iter().map(|code| code.get());
    for code in codes.chain([-1, -2, 99, i32::MAX]) {
        for (function, operation) in OPERATIONS {
            stub::script(&format!("access code 0\n{function} code {code}\n"));
            let error = operation(&mut image).unwrap_err();
            assert_eq!(error.code(), Some(code), "{function}: {error}");
            assert_eq!(stub::call(function).code, Some(code.into()));
            assert!(error.message().contains("no reason"), "{function}: {error}");
            let text =
                format!("access code 0\n{function} code {code}\n{function} error Some words: ä\n");
            stub::script(&text);
            let error = operation(&mut image).unwrap_err();
            assert_eq!(error.code(), Some(code), "{function}: {error}");
            assert_eq!(error.message(), "Some words: ä", "{function}");
        }
    }
}

/// C keeps a text for each thread until the next failure that has one.
fn the_text_is_that_of_the_call() {
    let (_dir, mut image) = image();
    stub::script("ploop_create_snapshot code 4\nploop_create_snapshot error needle\n");
    let error = image.snapshot().unwrap_err();
    assert_eq!(error.message(), "needle");
    stub::script("ploop_create_snapshot code 4\n");
    let error = image.snapshot().unwrap_err();
    assert!(!error.to_string().contains("needle"), "{error}");
    // A text that C leaves where it succeeds is of no interest.
    stub::script("ploop_create_snapshot error needle\n");
    image.snapshot().unwrap();
    stub::script("ploop_create_snapshot code -1\n");
    let error = image.snapshot().unwrap_err();
    assert!(!error.to_string().contains("needle"), "{error}");
}

fn what_is_printed_is_in_the_error() {
    let (_dir, mut image) = image();
    stub::script(
        "ploop_create_snapshot code 24\n\
         ploop_create_snapshot prints printed by a tool\n\
         ploop_create_snapshot warns ä warning\n",
    );
    let error = image.snapshot().unwrap_err();
    let output = error.output().unwrap();
    assert!(output.contains("printed by a tool"), "{output}");
    assert!(output.contains("ä warning"), "{output}");
}

/// Another process can lock it, and another handle work with it at once.
fn after_an_error_the_image_is_unlocked_and_as_it_was() {
    let (dir, mut image) = image();
    let descriptor = image.descriptor().unwrap();
    for (function, operation) in OPERATIONS {
        stub::script(&format!("access code 0\n{function} code 6\n"));
        operation(&mut image).unwrap_err();
        for name in ["DiskDescriptor.xml.lck", "DiskDescriptor.xml.op.lck"] {
            let lock = dir.path().join(name);
            let free = lock.exists().then(|| is_free(&lock));
            assert_ne!(free, Some(false), "{name} after {function}");
        }
        let mut other = Ploop::open(image.path()).unwrap();
        other.set_lock_timeout(Some(Duration::ZERO));
        assert_eq!(other.descriptor().unwrap(), descriptor, "{function}");
    }
    let report = ploop::image::check(image.path());
    assert!(report.is_sound(), "{report}");
}

fn is_free(lock: &Path) -> bool {
    let file = std::fs::File::options().write(true).open(lock).unwrap();
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(file, operation).is_ok()
}

/// 7 has a code of its own for it; its text is what it says of the `lsof` that it ran.
fn a_busy_unmount_names_the_programs() {
    let (_dir, mut image) = image();
    stub::script(
        "ploop_umount_image code 46\n\
         ploop_umount_image error --- lsof finished ---\n\
         ploop_umount_image prints sleep 4711 root cwd DIR 182,1 4096 2 /mnt\n\
         ploop_umount code 46\n\
         ploop_umount error PLOOP_IOC_STOP: Device or resource busy\n",
    );
    let error = image.umount().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Busy, Some(46)),
        "{error}"
    );
    assert!(error.output().unwrap().contains("sleep 4711"), "{error:?}");
    assert!(!error.message().contains("lsof finished"), "{error}");
    stub::with_device(image, |_| {
        let error = device::umount("/dev/ploop7").unwrap_err();
        let found = (error.kind(), error.code());
        assert_eq!(found, (ErrorKind::Busy, Some(46)), "{error}");
    });
}

/// 1 is "not found", and -1 a failure, which 7 has where 1.15 had 1.
fn look_ups_tell_no_from_failed() {
    stub::script("ploop_get_dev_by_mnt code 1\n");
    assert_eq!(device::by_mount_point("/mnt").unwrap(), None);
    stub::script("ploop_get_dev_by_mnt code 3\n");
    let error = device::by_mount_point("/mnt").unwrap_err();
    assert_eq!(error.code(), Some(3), "{error}");
}
