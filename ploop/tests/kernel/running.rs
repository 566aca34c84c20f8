//! Work on a running image: merges, temporary snapshots, discard, copy.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;

use ploop::{
    ComponentName, DiscardParam, MergeParam, MergeTarget, Size, StopFlag, TemporarySnapshotParam,
    copy, image::Disk,
};

use super::container::Container;

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_running_chain_is_merged_and_standard_input_survives() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    let before = rustix::fs::fstat(io::stdin()).unwrap();
    let mut guard = image.mount_guard(&container.param()).unwrap();
    let mut snapshots = Vec::new();
    for name in ["a", "b", "c"] {
        container.write(name, 2 << 20);
        snapshots.push(guard.snapshot().unwrap());
    }
    container.write("d", 2 << 20);
    guard
        .merge(&MergeParam::new(MergeTarget::Snapshot(snapshots[1])))
        .unwrap();
    container.verify(&["a", "b", "c", "d"]);
    guard.merge(&MergeParam::new(MergeTarget::All)).unwrap();
    assert_eq!(guard.descriptor().unwrap().images.len(), 1);
    container.verify(&["a", "b", "c", "d"]);
    let after = rustix::fs::fstat(io::stdin()).unwrap();
    assert_eq!((before.st_dev, before.st_ino), (after.st_dev, after.st_ino));
    guard.umount().unwrap();
    container.verify_image(&mut image, &["a", "b", "c", "d"]);
}

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_temporary_snapshot_goes_with_its_holder() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("old", 1 << 20);
    let param = TemporarySnapshotParam::new(ComponentName::new("backup").unwrap());
    let temporary = guard.temporary_snapshot(&param).unwrap();
    let descriptor = guard.descriptor().unwrap();
    assert!(descriptor.snapshot(temporary.guid).unwrap().temporary);
    container.write("new", 1 << 20);
    assert!(temporary.holder.is_some());
    drop(temporary.holder);
    ploop::device::umount(&temporary.device).unwrap();
    // The next snapshot clears it away.
    guard.snapshot().unwrap();
    assert_eq!(guard.descriptor().unwrap().snapshot(temporary.guid), None);
    container.verify(&["new", "old"]);
    guard.umount().unwrap();
}

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_discard_gives_back_what_was_deleted() {
    let (mut container, mut image) = Container::new(Size::from_mib(256));
    let mut guard = image.mount_guard(&container.param()).unwrap();
    container.write("kept", 8 << 20);
    container.write("large", 100 << 20);
    fs::remove_file(container.target().join("large")).unwrap();
    rustix::fs::syncfs(fs::File::open(container.target()).unwrap()).unwrap();
    let before = guard.discard_stat().unwrap();
    guard
        .discard(&DiscardParam::new().stop(&StopFlag::new()))
        .unwrap();
    let after = guard.discard_stat().unwrap();
    assert!(
        after.image_size.bytes() + (64 << 20) < before.image_size.bytes(),
        "{} is left of {}",
        after.image_size,
        before.image_size
    );
    container.verify(&["kept"]);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["kept"]);
}

#[test]
#[ignore = "needs the ploop kernel driver and root"]
fn a_copy_holds_the_same_disk() {
    let (mut container, mut image) = Container::new(Size::from_mib(128));
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 20 << 20);
    let (sender, receiver) = UnixStream::pair().unwrap();
    let (answer, question) = UnixStream::pair().unwrap();
    let target = container.path("copy");
    std::thread::scope(|scope| {
        let received = scope
            .spawn(|| copy::receive(&target, &receiver, Some(std::os::fd::AsFd::as_fd(&answer))));
        let sent = copy::send(
            &guard.mounted().device,
            &sender,
            Some(std::os::fd::AsFd::as_fd(&question)),
        );
        drop(sender);
        sent.unwrap();
        received.join().unwrap().unwrap();
    });
    guard.umount().unwrap();
    let whole = |file: &std::path::Path| {
        let disk = Disk::open_image(file).unwrap();
        let mut bytes = vec![0; disk.size().bytes() as usize];
        let mut at = 0;
        while at < bytes.len() {
            at += disk.read_at(&mut bytes[at..], at as u64).unwrap();
        }
        bytes
    };
    // The file system was mounted while it was copied, so its superblock tells them apart; the file's
    // clusters do not.
    let (original, copy) = (whole(&image.base_delta_file().unwrap()), whole(&target));
    assert_eq!(original.len(), copy.len());
    let differing = original
        .chunks(4096)
        .zip(copy.chunks(4096))
        .filter(|(a, b)| a != b)
        .count();
    assert!(differing < 64, "{differing} blocks differ");
}
