//! Live copy: a running image sent, received, and mounted at the other end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ploop::image::Header;
use ploop::{Code, CreateParam, ErrorKind, MountParam, Ploop, copy, device};
use sha2::{Digest, Sha256};

use crate::NEEDS;
use crate::container::{Container, SIZE, partition, refused, tool};
use crate::fixture::child::child;
use crate::fixture::harness::Test;
use crate::fixture::pipe::pipe;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            over_a_socket_while_it_is_written_to,
            into_a_file,
            of_the_top_alone,
            of_a_raw_image,
            to_nobody,
            what_cannot_be_sent,
            with_and_without_libploop,
            files_that_are_written_meanwhile,
            what_changes_behind_the_copy,
            two_at_once,
            a_snapshot_meanwhile,
            a_sender_that_is_killed,
            a_sender_that_is_killed_while_all_is_frozen,
            what_a_receiver_answers,
            what_must_not_be_written_to,
            what_is_mounted_on_top_is_not_frozen;
    ]
}

type Send = fn(&Path, BorrowedFd<'_>, Option<BorrowedFd<'_>>) -> ploop::Result<()>;
type Receive = fn(&Path, BorrowedFd<'_>, Option<BorrowedFd<'_>>) -> ploop::Result<()>;

/// The usual one, which is libploop's where that has one; and this crate's own.
const SENDERS: [Send; 2] = [
    |device, output, feedback| copy::send(device, output, feedback),
    |device, output, feedback| copy::send_in_rust(device, output, feedback),
];
const RECEIVERS: [Receive; 2] = [
    |file, input, feedback| copy::receive(file, input, feedback),
    |file, input, feedback| copy::receive_in_rust(file, input, feedback),
];

/// Sends while the other end receives.
fn send_and_receive(device: &Path, target: &Path) {
    transfer(SENDERS[0], RECEIVERS[0], device, target);
}

fn transfer(send: Send, receive: Receive, device: &Path, target: &Path) {
    let (sent, received) = try_transfer(send, receive, device, target, |_| {});
    sent.unwrap();
    received.unwrap();
}

/// What both ends say. Between them, `meanwhile` is called after each part, with the length of what has passed so far.
fn try_transfer(
    send: Send,
    receive: Receive,
    device: &Path,
    target: &Path,
    mut meanwhile: impl FnMut(usize) + std::marker::Send,
) -> (ploop::Result<()>, ploop::Result<()>) {
    let (sender, mut relay_in) = UnixStream::pair().unwrap();
    let (mut relay_out, receiver) = UnixStream::pair().unwrap();
    let (answer, question) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            let received = receive(target, receiver.as_fd(), Some(answer.as_fd()));
            drop((receiver, answer));
            received
        });
        scope.spawn(move || {
            let (mut part, mut passed) = (vec![0; 1 << 20], 0);
            loop {
                let len = relay_in.read(&mut part).unwrap();
                if len == 0 || relay_out.write_all(&part[..len]).is_err() {
                    break;
                }
                passed += len;
                meanwhile(passed);
            }
        });
        let sent = send(device, sender.as_fd(), Some(question.as_fd()));
        drop((sender, question));
        (sent, received.join().unwrap())
    })
}

/// Slow enough for the file system to change meanwhile.
fn pause(_passed: usize) {
    thread::sleep(Duration::from_millis(5));
}

/// Mounts a copy of the base as an image of its own, and compares.
fn verify_copy(container: &Container, copy: &Path, names: &[&str]) {
    assert!(!Header::read(copy).unwrap().in_use);
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
    for send in SENDERS {
        let (mut container, mut image) = Container::new(SIZE);
        let mounted = image.mount(&container.param()).unwrap();
        container.write("a", 20 << 20);
        let target = container.path("copy.hdd");
        let file = File::create_new(&target).unwrap();
        send(&mounted.device, file.as_fd(), None).unwrap();
        drop(file);
        container.write("b", 1 << 20);
        container.verify(&["a", "b"]);
        image.umount().unwrap();
        verify_copy(&container, &target, &["a"]);
        container.verify_image(&mut image, &["a", "b"]);
    }
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

/// A base without a header: nothing is marked in it.
fn of_a_raw_image() {
    for send in SENDERS {
        let (mut container, mut image) =
            Container::made(SIZE, |param| param.mode(ploop::ImageMode::Raw));
        if container.is_refused_as_raw(&mut image) {
            continue;
        }
        let mounted = image.mount(&container.param()).unwrap();
        container.write("a", 20 << 20);
        let target = container.path("copy.hdd");
        transfer(send, RECEIVERS[1], &mounted.device, &target);
        image.umount().unwrap();
        fs::rename(&target, container.base()).unwrap();
        let guard = image.mount_guard(&container.param()).unwrap();
        container.verify(&["a"]);
        guard.umount().unwrap();
        container.verify_image(&mut image, &["a"]);
    }
}

/// A receiver that goes away is an error, and the device is as it was.
fn to_nobody() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    for n in 0..6 {
        let (reader, writer) = pipe();
        drop(reader);
        let error = SENDERS[n % 2](&mounted.device, writer.as_fd(), None).unwrap_err();
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
    container_that_cannot_be_sent(&mut container, &mut image);
}

fn container_that_cannot_be_sent(container: &mut Container, image: &mut Ploop) {
    let file = |container: &Container| File::create(container.path("sent")).unwrap();
    for send in SENDERS {
        let guard = image.mount_guard(&container.param()).unwrap();
        container.write("a", 1 << 20);
        let device = guard.mounted().device.clone();
        // A directory is nothing to write to.
        let directory = File::open(container.target()).unwrap();
        refused(
            send(&device, directory.as_fd(), None),
            ErrorKind::InvalidInput,
            Code::PARAM,
        );
        drop(directory);
        // Feedback from a file.
        let output = file(container);
        refused(
            send(&device, output.as_fd(), Some(file(container).as_fd())),
            ErrorKind::InvalidInput,
            Code::PARAM,
        );
        refused(
            send(Path::new("/dev/ploop999999999"), output.as_fd(), None),
            ErrorKind::NoDriver,
            Code::DEVICE,
        );
        refused(
            send(Path::new("/dev/null"), output.as_fd(), None),
            ErrorKind::InvalidInput,
            None,
        );
        container.verify(&["a"]);
        guard.umount().unwrap();
        // The file system is frozen for the end of it, so there has to be one.
        let guard = image.mount_guard(&MountParam::new()).unwrap();
        refused(
            send(&guard.mounted().device, output.as_fd(), None),
            Code::OPEN.kind(),
            Code::OPEN,
        );
        guard.umount().unwrap();
        container.verify_image(image, &["a"]);
    }
}

fn checksum(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).unwrap()))
}

/// Each sender with each receiver. Nobody writes to an image that is mounted read-only, so its copies are equal to it.
fn with_and_without_libploop() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    container.write("b", 5 << 20);
    container.remove("a");
    let mut copies = Vec::new();
    for (send, receive) in SENDERS.into_iter().flat_map(|s| RECEIVERS.map(|r| (s, r))) {
        let target = container.path(&format!("copy{}.hdd", copies.len()));
        transfer(send, receive, &mounted.device, &target);
        copies.push(target);
    }
    image.umount().unwrap();
    for target in copies {
        verify_copy(&container, &target, &["b"]);
    }
    container.verify_image(&mut image, &["b"]);

    let expected = checksum(&container.base());
    let mounted = image.mount(&container.param().read_only(true)).unwrap();
    for (send, receive) in SENDERS.into_iter().flat_map(|s| RECEIVERS.map(|r| (s, r))) {
        let target = container.path("copy.hdd");
        transfer(send, receive, &mounted.device, &target);
        assert_eq!(checksum(&target), expected);
        fs::remove_file(target).unwrap();
    }
    image.umount().unwrap();
    assert_eq!(checksum(&container.base()), expected);
}

/// The contents of the numbered files that [`write_files`] writes.
fn contents(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(64 << 10)
}

/// Writes one file after the other until it is told to stop, and syncs each before the next. Returns how many.
fn write_files(directory: &Path, stop: &AtomicBool, count: &std::sync::atomic::AtomicU32) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // The space of the ones before is used again, and so is changed under the copy.
        if let Some(old) = u32::checked_sub(number, 100) {
            fs::remove_file(directory.join(old.to_string())).unwrap();
        }
        let mut file = File::create(directory.join(number.to_string())).unwrap();
        file.write_all(&contents(number)).unwrap();
        file.sync_all().unwrap();
        count.store(number + 1, Ordering::Relaxed);
    }
}

/// What was on the disk before the copy began is in it, and what was written meanwhile is there up to some file and
/// not beyond.
fn files_that_are_written_meanwhile() {
    for (send, receive) in SENDERS.into_iter().zip(RECEIVERS).rev() {
        let (mut container, mut image) = Container::new(SIZE);
        let mounted = image.mount(&container.param()).unwrap();
        container.write("a", 20 << 20);
        let files = container.target().join("files");
        fs::create_dir(&files).unwrap();
        let target = container.path("copy.hdd");
        let (stop, count) = (AtomicBool::new(false), Default::default());
        let before = thread::scope(|scope| {
            scope.spawn(|| write_files(&files, &stop, &count));
            while count.load(Ordering::Relaxed) < 5 {
                thread::sleep(Duration::from_millis(10));
            }
            let before = count.load(Ordering::Relaxed);
            let ends = try_transfer(send, receive, &mounted.device, &target, pause);
            stop.store(true, Ordering::Relaxed);
            ends.0.unwrap();
            ends.1.unwrap();
            before
        });
        image.umount().unwrap();
        let descriptor = container.path("copy.xml");
        let param = CreateParam::new(&target, SIZE);
        let mut copied = Ploop::create_descriptor(&descriptor, &param).unwrap();
        let guard = copied
            .mount_guard(&container.param().read_only(true))
            .unwrap();
        let node = partition(&guard.mounted().device);
        tool("e2fsck", &["-fn", node.to_str().unwrap()]);
        assert!(fs::read(container.target().join("a")).unwrap() == container.contents("a"));
        let mut numbers: Vec<u32> = fs::read_dir(&files)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.parse().unwrap())
            .collect();
        numbers.sort_unstable();
        let (&first, &last) = (numbers.first().unwrap(), numbers.last().unwrap());
        assert!(last + 1 >= before, "{last} of {before} before");
        assert_eq!(numbers, (first..=last).collect::<Vec<_>>());
        // The last one may have been in the writer's hands.
        for number in first..last {
            let bytes = fs::read(files.join(number.to_string())).unwrap();
            assert!(bytes == contents(number), "{number} of {last} differs");
        }
        guard.umount().unwrap();
    }
}

/// What has been sent, changes once, and is sent again.
fn what_changes_behind_the_copy() {
    for (send, receive) in SENDERS.into_iter().zip(RECEIVERS) {
        let (mut container, mut image) = Container::new(SIZE);
        let mounted = image.mount(&container.param()).unwrap();
        container.write("a", 30 << 20);
        let mut changed = container.contents("a").to_vec();
        changed.reverse();
        let target = container.path("copy.hdd");
        let mut options = File::options();
        let file = options.write(true);
        let mut file = Some(file.open(container.target().join("a")).unwrap());
        let change = |passed| {
            // The sender is a few MiB ahead, and has not come to the end of the file.
            if passed > 15 << 20 {
                if let Some(mut file) = file.take() {
                    file.write_all(&changed).unwrap();
                    file.sync_all().unwrap();
                }
            }
        };
        let (sent, received) = try_transfer(send, receive, &mounted.device, &target, change);
        sent.unwrap();
        received.unwrap();
        image.umount().unwrap();
        let param = CreateParam::new(&target, SIZE);
        let mut copied = Ploop::create_descriptor(container.path("copy.xml"), &param).unwrap();
        let guard = copied.mount_guard(&container.param()).unwrap();
        assert!(fs::read(container.target().join("a")).unwrap() == changed);
        guard.umount().unwrap();
    }
}

/// A driver has one list of changes. Two copies that read it at once would have a part each.
fn two_at_once() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 20 << 20);
    let targets = [container.path("copy0.hdd"), container.path("copy1.hdd")];
    let scratch = container.target().join("scratch");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let copies: Vec<_> = SENDERS
            .into_iter()
            .zip(&targets)
            .map(|(send, target)| {
                let device = &mounted.device;
                scope.spawn(move || try_transfer(send, RECEIVERS[0], device, target, pause))
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(&scratch, vec![7; 2 << 20]).unwrap();
                File::open(&scratch).unwrap().sync_all().unwrap();
            }
        });
        let ends: Vec<_> = copies.into_iter().map(|copy| copy.join()).collect();
        stop.store(true, Ordering::Relaxed);
        for (sent, received) in ends.into_iter().map(Result::unwrap) {
            sent.unwrap();
            received.unwrap();
        }
    });
    fs::remove_file(&scratch).unwrap();
    image.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
    for target in targets {
        let descriptor = container.path("copy.xml");
        let param = CreateParam::new(&target, SIZE);
        let mut copied = Ploop::create_descriptor(&descriptor, &param).unwrap();
        let guard = copied.mount_guard(&container.param()).unwrap();
        let node = partition(&guard.mounted().device);
        tool("e2fsck", &["-fn", node.to_str().unwrap()]);
        let _ = fs::remove_file(&scratch);
        container.verify(&["a"]);
        guard.umount().unwrap();
        copied.close();
        fs::remove_file(descriptor).unwrap();
    }
}

/// It ends the copy, and nothing else. The image is as it should be, and can be copied again.
fn a_snapshot_meanwhile() {
    for (n, send) in SENDERS.into_iter().enumerate() {
        let (mut container, mut image) = Container::new(SIZE);
        let mounted = image.mount(&container.param()).unwrap();
        container.write("a", 20 << 20);
        let (sender, mut receiver) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let sent = send(&mounted.device, sender.as_fd(), None);
                drop(sender);
                sent
            });
            receiver.read_exact(&mut vec![0; 1 << 20]).unwrap();
            image.snapshot().unwrap();
            let top = device::top_delta(&mounted.device).unwrap();
            assert_eq!(top.file, image.top_delta_file().unwrap());
            std::io::copy(&mut receiver, &mut std::io::sink()).unwrap();
            let sent = sending.join().unwrap();
            let error = sent.expect_err(&format!("sender {n}"));
            assert_eq!(error.libploop_code(), Some(Code::DEVIOC), "{error}");
        });
        container.write("b", 1 << 20);
        let top = image.top_delta_file().unwrap();
        let target = container.path("copy.hdd");
        transfer(send, RECEIVERS[0], &mounted.device, &target);
        image.umount().unwrap();
        fs::rename(&target, &top).unwrap();
        container.verify_image(&mut image, &["a", "b"]);
    }
}

/// A running image in `dir`, with a file in it.
pub(crate) fn running(dir: &Path) -> (Ploop, PathBuf) {
    let target = dir.join("mnt");
    fs::create_dir(&target).unwrap();
    let mut image = Ploop::create(&CreateParam::new(dir.join("root.hdd"), SIZE)).unwrap();
    image.mount(&MountParam::new().target(&target)).unwrap();
    fs::write(target.join("file"), vec![3; 20 << 20]).unwrap();
    rustix::fs::syncfs(File::open(&target).unwrap()).unwrap();
    (image, target)
}

pub(crate) fn die() -> ! {
    // SAFETY: a signal to this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!()
}

/// What a killed sender leaves is an image that can be written to, copied and unmounted.
fn verify_left(dir: &Path) {
    let target = dir.join("mnt");
    let mut image = Ploop::open(dir.join("DiskDescriptor.xml")).unwrap();
    // Somebody else's writes, so that this test ends if they wait for ever.
    let mut write = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=5", "conv=fsync"])
        .arg(format!("of={}", target.join("after").display()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while write.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the file system is still frozen");
        thread::sleep(Duration::from_millis(10));
    }
    let node = image.device().unwrap().unwrap();
    let copied = dir.join("copy.hdd");
    transfer(SENDERS[1], RECEIVERS[1], &node, &copied);
    image.umount().unwrap();
    let copied = Ploop::create_descriptor(dir.join("copy.xml"), &CreateParam::new(&copied, SIZE));
    for mut image in [image, copied.unwrap()] {
        let guard = image.mount_guard(&MountParam::new().target(&target).read_only(true));
        let guard = guard.unwrap();
        assert!(fs::read(target.join("file")).unwrap() == vec![3; 20 << 20]);
        assert!(fs::read(target.join("after")).unwrap() == vec![0; 5 << 20]);
        let node = partition(&guard.mounted().device);
        tool("e2fsck", &["-fn", node.to_str().unwrap()]);
        guard.umount().unwrap();
    }
}

fn a_sender_that_is_killed() {
    child("sender", |dir| {
        let (image, target) = running(dir);
        let node = image.device().unwrap().unwrap();
        let (sender, mut receiver) = UnixStream::pair().unwrap();
        thread::spawn(move || copy::send_in_rust(node, sender, None));
        thread::spawn(move || {
            for n in 0.. {
                fs::write(target.join("meanwhile"), vec![n; 1 << 20]).unwrap();
                File::open(&target)
                    .map(rustix::fs::syncfs)
                    .unwrap()
                    .unwrap();
            }
        });
        receiver.read_exact(&mut vec![0; 3 << 20]).unwrap();
        die()
    })
    .died_of(libc::SIGKILL)
    .left(verify_left);
}

/// The kernel leaves a file system frozen when the process that froze it is killed.
fn a_sender_that_is_killed_while_all_is_frozen() {
    child("sender", |dir| {
        let (image, target) = running(dir);
        let node = image.device().unwrap().unwrap();
        let (sender, mut receiver) = UnixStream::pair().unwrap();
        let (mut answers, feedback) = UnixStream::pair().unwrap();
        thread::spawn(move || copy::send_in_rust(node, sender, Some(feedback.as_fd())));
        let (mut header, mut data) = ([0; 16], Vec::new());
        loop {
            receiver.read_exact(&mut header).unwrap();
            let len = u32::from_ne_bytes(header[4..8].try_into().unwrap());
            data.resize(len as usize, 0);
            receiver.read_exact(&mut data).unwrap();
            if len == 4 {
                break;
            }
        }
        // More than fits into the socket, so that the sender is in the middle of it when nobody reads.
        fs::write(target.join("meanwhile"), vec![5; 20 << 20]).unwrap();
        answers.write_all(b"SUCCESS\n").unwrap();
        let (done, is_done) = channel();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let (done, path) = (done.clone(), target.join("probe"));
            thread::spawn(move || {
                File::create(path).unwrap().sync_all().unwrap();
                let _ = done.send(());
            });
            if is_done.recv_timeout(Duration::from_secs(2)).is_err() {
                die()
            }
        }
    })
    .died_of(libc::SIGKILL)
    .left(|dir| {
        assert!(dir.join("mnt/meanwhile").exists());
        verify_left(dir);
    });
}

/// A receiver made by hand, which gives these answers to the requests to sync.
fn answered(device: &Path, answers: &'static [&'static str]) -> ploop::Result<()> {
    let (sender, mut receiver) = UnixStream::pair().unwrap();
    let (mut answer, feedback) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut header, mut data) = ([0; 16], Vec::new());
            let mut answers = answers.iter();
            while receiver.read_exact(&mut header).is_ok() {
                let len = u32::from_ne_bytes(header[4..8].try_into().unwrap());
                data.resize(len as usize, 0);
                receiver.read_exact(&mut data).unwrap();
                if len == 4 {
                    let text = answers.next().copied().unwrap_or_default();
                    answer.write_all(text.as_bytes()).unwrap();
                    if text.len() < 8 {
                        break;
                    }
                }
            }
        });
        let sent = copy::send_in_rust(device, &sender, Some(feedback.as_fd()));
        drop(sender);
        sent
    })
}

/// Only a receiver that has synced everything has a copy.
fn what_a_receiver_answers() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 2 << 20);
    const GOOD: &str = "SUCCESS\n";
    const BAD: &str = "FAILURE\n";
    answered(&mounted.device, &[GOOD, GOOD]).unwrap();
    let bad_receivers: [(&'static [&'static str], _, _); 6] = [
        (&[BAD], ErrorKind::Io, Code::FSYNC),
        (&[GOOD, BAD], ErrorKind::Io, Code::FSYNC),
        (&[], ErrorKind::Io, Code::PROTOCOL),
        (&[GOOD], ErrorKind::Io, Code::PROTOCOL),
        (&["SUCC"], ErrorKind::Io, Code::PROTOCOL),
        (&["HTTP/1.1"], ErrorKind::Corrupt, Code::PROTOCOL),
    ];
    for (answers, kind, code) in bad_receivers {
        refused(answered(&mounted.device, answers), kind, code);
        // It was thawed.
        container.write("b", 1 << 20);
    }
    image.umount().unwrap();
    container.verify_image(&mut image, &["a", "b"]);
}

/// A copy goes to positions in a file that is no part of a running image.
fn what_must_not_be_written_to() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let mut append = File::options();
    append.append(true).create(true);
    let append = append.open(container.path("log")).unwrap();
    let own = File::options().write(true).open(container.base()).unwrap();
    for send in SENDERS {
        let device = &mounted.device;
        refused(
            send(device, append.as_fd(), None),
            ErrorKind::InvalidInput,
            Code::PARAM,
        );
        refused(
            send(device, own.as_fd(), None),
            ErrorKind::Busy,
            Code::PARAM,
        );
    }
    assert_eq!(append.metadata().unwrap().len(), 0);
    drop((own, append));
    container.verify(&["a"]);
    image.umount().unwrap();
    container.verify_image(&mut image, &["a"]);
}

fn what_is_mounted_on_top_is_not_frozen() {
    let (mut container, mut image) = Container::new(SIZE);
    let mounted = image.mount(&container.param()).unwrap();
    container.write("a", 2 << 20);
    let target = container.target();
    tool("mount", &["-t", "tmpfs", "none", target.to_str().unwrap()]);
    let file = File::create(container.path("copy.hdd")).unwrap();
    let error = refused(
        copy::send_in_rust(&mounted.device, &file, None),
        ErrorKind::Busy,
        Code::OPEN,
    );
    assert!(error.message().contains("on top"), "{error}");
    tool("umount", &[target.to_str().unwrap()]);
    copy::send_in_rust(&mounted.device, &file, None).unwrap();
    image.umount().unwrap();
    verify_copy(&container, &container.path("copy.hdd"), &["a"]);
}
