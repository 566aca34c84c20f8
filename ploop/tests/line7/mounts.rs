//! Mounting with a file system check of the caller's choice, and without reading the partition table.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ploop::{Code, ErrorKind, FsckFlags, ImageMode, MountParam, Ploop};

use crate::container::{Container, SIZE, assert_detached, debugfs, partition, refused, tool};
use crate::filled_image::FilledImage;
use crate::fixture::directory::Contents;
use crate::fixture::harness::Test;
use crate::{MOUNTS, MOUNTS_OF_LINE_7, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => checks_that_contradict_themselves_are_refused;
        MOUNTS => a_file_system_is_checked_as_told;
        MOUNTS_OF_LINE_7 =>
            a_file_system_is_mended_whatever_it_takes,
            partitions_are_there_without_a_probe;
    ]
}

fn checks_that_contradict_themselves_are_refused() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let before = Contents::of(filled.dir.path());
    let (preen, force) = (FsckFlags::PREEN, FsckFlags::FORCE);
    let (repair, ro) = (FsckFlags::FORCE_REPAIR, FsckFlags::RO);
    let mut refused = |param: &MountParam, kind: ErrorKind| {
        let error = filled.ploop.mount(param).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        before.assert_unchanged("a mount that was refused");
    };
    for flags in [
        force,
        preen | repair,
        preen | ro,
        repair | ro,
        // One argument more than libploop has room for.
        preen | force | ro,
        preen | force | repair | ro,
    ] {
        let kind = match is_line_7() {
            true => ErrorKind::InvalidInput,
            false => ErrorKind::Unsupported,
        };
        refused(&MountParam::new().fsck_flags(flags), kind);
    }
    let unknown = FsckFlags::from_bits_retain(64);
    refused(
        &MountParam::new().fsck_flags(unknown | preen),
        ErrorKind::Unsupported,
    );
    if !is_line_7() {
        for flags in [preen | force, repair, ro] {
            refused(&MountParam::new().fsck_flags(flags), ErrorKind::Unsupported);
        }
        refused(&MountParam::new().no_probe(true), ErrorKind::Unsupported);
    }
}

/// A file system that is damaged, and whose superblock says that it is clean.
fn damage(image: &mut Ploop) {
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    let device = guard.mounted().device.clone();
    debugfs(&device, "set_inode_field /file links_count 9");
    guard.umount().unwrap();
}

/// What `debugfs` has of a file.
fn links(image: &mut Ploop) -> String {
    let guard = image
        .mount_guard(&MountParam::new().read_only(true))
        .unwrap();
    let partition = partition(&guard.mounted().device);
    let stat = tool(
        "debugfs",
        &["-R", "stat /file", partition.to_str().unwrap()],
    );
    guard.umount().unwrap();
    let line = stat.lines().find(|line| line.starts_with("Links:"));
    let links = line.unwrap().split_whitespace().nth(1).unwrap();
    links.to_owned()
}

fn a_file_system_is_checked_as_told() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    damage(&mut image);
    // It says that it is clean, and nothing is looked at.
    for flags in [FsckFlags::PREEN, FsckFlags::empty()] {
        let mounted = image
            .mount(&container.param().fsck(true).fsck_flags(flags))
            .unwrap();
        assert_eq!(mounted.fsck, (!flags.is_empty()).then_some(0));
        image.umount().unwrap();
        assert_eq!(links(&mut image), "9");
    }
    if !is_line_7() {
        return;
    }
    // Looked at, and left alone.
    let look = FsckFlags::RO | FsckFlags::FORCE;
    refused(
        image.mount(&container.param().fsck_flags(look)),
        ErrorKind::Corrupt,
        Code::FSCK,
    );
    assert_detached(&mut image);
    assert_eq!(links(&mut image), "9");
    // Looked at, and mended.
    let mend = FsckFlags::PREEN | FsckFlags::FORCE;
    let mounted = image.mount(&container.param().fsck_flags(mend)).unwrap();
    assert_eq!(mounted.fsck, Some(1));
    container.verify(&["file"]);
    image.umount().unwrap();
    assert_eq!(links(&mut image), "1");
    let mounted = image.mount(&container.param().fsck_flags(look)).unwrap();
    assert_eq!(mounted.fsck, Some(0));
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_file_system_is_mended_whatever_it_takes() {
    let (mut container, mut image) = Container::new(SIZE);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    container.write("lost", 1 << 20);
    guard.umount().unwrap();
    let guard = image.mount_guard(&MountParam::new()).unwrap();
    let device = guard.mounted().device.clone();
    // Without its map the file is lost, which is more than what is mended without a question.
    debugfs(&device, "set_inode_field /lost block[0] 0x1234");
    debugfs(&device, "set_super_value state 2");
    guard.umount().unwrap();
    refused(
        image.mount(&container.param().fsck_flags(FsckFlags::PREEN)),
        ErrorKind::Corrupt,
        Code::FSCK,
    );
    let repair = FsckFlags::FORCE_REPAIR;
    let mounted = image.mount(&container.param().fsck_flags(repair)).unwrap();
    assert_eq!(mounted.fsck, Some(1));
    container.verify(&["file"]);
    image.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn partitions_are_there_without_a_probe() {
    let (mut container, mut image) = Container::new(SIZE);
    let param = container.param().no_probe(true);
    let guard = image.mount_guard(&param).unwrap();
    container.write("file", 1 << 20);
    let partition = File::open(partition(&guard.mounted().device)).unwrap();
    // The magic number of ext4.
    let mut magic = [0; 2];
    partition.read_exact_at(&mut magic, 1024 + 56).unwrap();
    assert_eq!(u16::from_le_bytes(magic), 0xef53);
    drop(partition);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
