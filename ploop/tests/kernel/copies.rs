//! Live copy: a running image sent, received, and mounted at the other end.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ploop::{Code, CreateParam, ErrorKind, MountParam, Ploop, copy};

use crate::NEEDS;
use crate::container::{Container, SIZE, refused};
use crate::fixture::harness::Test;
use crate::fixture::pipe::pipe;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            over_a_socket_while_it_is_written_to,
            into_a_file,
            of_the_top_alone,
            to_nobody,
            what_cannot_be_sent;
    ]
}

/// Sends while the other end receives.
fn send_and_receive(device: &Path, target: &Path) {
    let (sender, receiver) = UnixStream::pair().unwrap();
    let (answer, question) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let received = scope.spawn(|| copy::receive(target, receiver, Some(answer.as_fd())));
        let sent = copy::send(device, &sender, Some(question.as_fd()));
        drop(sender);
        sent.unwrap();
        received.join().unwrap().unwrap();
    });
}

/// Mounts a copy of the base as an image of its own, and compares.
fn verify_copy(container: &Container, copy: &Path, names: &[&str]) {
    let descriptor = container.path("copy.xml");
    let param = CreateParam::new(copy, SIZE);
    let mut image = Ploop::create_descriptor(&descriptor, &param).unwrap();
    let view = container.view();
    // The file system was mounted while it was copied.
    let param = MountParam::new().target(&view).fsck(true);
    let guard = image.mount_guard(&param).unwrap();
    container.verify_at(&view, names);
    guard.umount().unwrap();
    let report = ploop::image::check(&descriptor);
    assert!(report.is_sound(), "{report}");
    image.close();
    fs::remove_file(descriptor).unwrap();
}

fn over_a_socket_while_it_is_written_to() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    container.write("b", 5 << 20);
    let target = container.path("copy.hdd");
    let scratch = container.target().join("scratch");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let file = File::create(&scratch).unwrap();
                std::io::Write::write_all(&mut &file, &vec![n as u8; 1 << 20]).unwrap();
                file.sync_all().unwrap();
            }
            fs::remove_file(&scratch).unwrap();
        });
        send_and_receive(&mounted.device, &target);
        stop.store(true, Ordering::Relaxed);
    });
    container.verify(&["a", "b"]);
    // The source goes on, and can be sent once more.
    container.write("c", 1 << 20);
    let again = container.path("again.hdd");
    send_and_receive(&mounted.device, &again);
    container.verify(&["a", "b", "c"]);
    image.umount().unwrap();
    container.verify_image(&mut image, &["a", "b", "c"]);
    verify_copy(&container, &again, &["a", "b", "c"]);
    // The first one has the scratch file in whatever state it was.
    let descriptor = container.path("first.xml");
    let param = CreateParam::new(&target, SIZE);
    let mut first = Ploop::create_descriptor(&descriptor, &param).unwrap();
    let param = container.param().fsck(true);
    let guard = first.mount_guard(&param).unwrap();
    let _ = fs::remove_file(&scratch);
    container.verify(&["a", "b"]);
    guard.umount().unwrap();
}

fn into_a_file() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    let target = container.path("copy.hdd");
    let file = File::create_new(&target).unwrap();
    copy::send(&mounted.device, &file, None).unwrap();
    drop(file);
    container.write("b", 1 << 20);
    container.verify(&["a", "b"]);
    image.umount().unwrap();
    verify_copy(&container, &target, &["a"]);
    container.verify_image(&mut image, &["a", "b"]);
}

/// What is sent is the file of the top delta. Those below are files that nobody writes to.
fn of_the_top_alone() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    image.snapshot().unwrap();
    container.write("b", 5 << 20);
    let top = image.top_delta_file().unwrap();
    let target = container.path("copy.hdd");
    send_and_receive(&mounted.device, &target);
    container.verify(&["a", "b"]);
    image.umount().unwrap();
    fs::rename(&target, &top).unwrap();
    let guard = image.mount_guard(&container.param().fsck(true)).unwrap();
    container.verify(&["a", "b"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b"]);
}

/// A receiver that goes away is an error, and the device is as it was.
fn to_nobody() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    for _ in 0..5 {
        let (reader, writer) = pipe();
        drop(reader);
        let error = copy::send(&mounted.device, &writer, None).unwrap_err();
        assert_eq!(error.path(), Some(&*mounted.device), "{error}");
        // libploop goes on in a thread whose stack is gone (4.18); the process that copies may die of it.
        let died = error.message().contains("died");
        assert!(error.code().is_some() || died, "{error}");
        container.verify(&["a"]);
    }
    container.write("b", 1 << 20);
    send_and_receive(&mounted.device, &container.path("copy.hdd"));
    image.snapshot().unwrap();
    container.write("c", 1 << 20);
    image.umount().unwrap();
    container.verify_image(&mut image, &["a", "b", "c"]);
    verify_copy(&container, &container.path("copy.hdd"), &["a", "b"]);
}

fn what_cannot_be_sent() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("a", 1 << 20);
    let device = guard.mounted().device.clone();
    let file = || File::create(container.path("sent")).unwrap();
    // A directory is nothing to write to.
    let directory = File::open(container.target()).unwrap();
    refused(
        copy::send(&device, &directory, None),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    drop(directory);
    // Feedback from a file.
    refused(
        copy::send(&device, file(), Some(file().as_fd())),
        ErrorKind::InvalidInput,
        Code::PARAM,
    );
    refused(
        copy::send("/dev/ploop999999999", file(), None),
        ErrorKind::NoDriver,
        Code::DEVICE,
    );
    refused(
        copy::send("/dev/null", file(), None),
        ErrorKind::InvalidInput,
        None,
    );
    container.verify(&["a"]);
    guard.umount().unwrap();
    // The file system is frozen for the end of it, so there has to be one.
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    let error = copy::send(&guard.mounted().device, file(), None).unwrap_err();
    assert_eq!(error.code(), Some(Code::OPEN.get()), "{error}");
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
}
