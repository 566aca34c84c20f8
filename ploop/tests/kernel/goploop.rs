//! What goploop's own suite does, in its order, on one image.

use std::fs;
use std::process::Command;

use ploop::{
    Code, ErrorKind, Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, ResizeMode, Size, fs_info,
};

use crate::NEEDS;
use crate::container::{Container, refused};
use crate::fixture::harness::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![NEEDS => the_whole_suite;]
}

/// Copies the base and puts the copy in its place under the same name.
fn replace_base(container: &Container, image: &mut Ploop) {
    let (base, new) = (container.path("root.hdd"), container.path("root.hdd.new"));
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&base)
        .arg(&new)
        .status()
        .unwrap();
    assert!(copied.success());
    let param =
        ReplaceParam::new(&new, ReplaceTarget::File(base.clone())).flags(ReplaceFlag::KEEP_NAME);
    image.replace(&param).unwrap();
    assert!(base.exists() && !new.exists());
}

fn the_whole_suite() {
    let (mut container, image) = Container::new(Size::from_mib(384));
    image.close();

    let mut image = Ploop::open(container.path("DiskDescriptor.xml")).unwrap();
    let mounted = image.mount(&container.param()).unwrap();
    assert!(mounted.device.to_str().unwrap().starts_with("/dev/ploop"));
    assert_eq!(mounted.fsck, None);
    container.write("first", 10 << 20);

    let full = container.free_mib();
    image
        .resize(Size::from_mib(256), ResizeMode::Online)
        .unwrap();
    assert!(container.free_mib() < full);
    container.verify(&["first"]);
    image
        .resize(Size::from_mib(512), ResizeMode::Online)
        .unwrap();
    assert!(container.free_mib() > full);
    container.verify(&["first"]);
    container.write("second", 5 << 20);

    let base = image.top_delta_file().unwrap();
    assert_eq!(base, container.path("root.hdd").canonicalize().unwrap());
    let snapshot = image.snapshot().unwrap();
    let top = image.top_delta_file().unwrap();
    assert_ne!(top, base);
    container.write("third", 3 << 20);
    container.verify(&["first", "second", "third"]);

    replace_base(&container, &mut image);
    container.verify(&["first", "second", "third"]);

    refused(
        image.switch_snapshot(snapshot),
        ErrorKind::Busy,
        Code::PARAM,
    );
    container.verify(&["first", "second", "third"]);

    image.delete_snapshot(snapshot).unwrap();
    assert!(!top.exists());
    assert_eq!(image.descriptor().unwrap().images.len(), 1);
    container.verify(&["first", "second", "third"]);

    assert!(image.is_mounted().unwrap());
    image.umount().unwrap();
    assert!(!image.is_mounted().unwrap());
    assert!(fs::read_dir(container.target()).unwrap().next().is_none());
    let error = refused(image.umount(), ErrorKind::NotMounted, Code::DEV_NOT_MOUNTED);
    assert!(error.is_not_mounted());

    for mib in [256, 512, 256] {
        image
            .resize(Size::from_mib(mib), ResizeMode::Offline)
            .unwrap();
        container.verify_image(&mut image, &["first", "second", "third"]);
    }

    let snapshot = image.snapshot().unwrap();
    replace_base(&container, &mut image);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("fourth", 1 << 20);
    container.verify(&["first", "second", "third", "fourth"]);
    guard.umount().unwrap();
    image.switch_snapshot(snapshot).unwrap();
    container.verify_image(&mut image, &["first", "second", "third"]);

    let info = fs_info(image.path()).unwrap();
    assert_eq!(info.block_size, 4096);
    assert!(info.blocks > info.blocks_free && info.inodes > info.inodes_free);
    assert!(info.free().bytes() > 0);
    let info = image.image_info().unwrap();
    assert_eq!(info.block_size, 2048);
    assert!(info.blocks > 0 && [1, 2].contains(&info.version));
}
