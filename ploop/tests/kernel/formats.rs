//! Images of format v1 stay as they are, whatever attaches them, until somebody asks for v2. libploop 7 rewrites them with
//! each mount that can write, if it is not told otherwise.

use ploop::image::Header;
use ploop::{
    ClusterSize, Code, DiscardParam, ErrorKind, FormatVersion, FsckFlags, MountParam, Ploop,
    ResizeMode, Size, SwitchFlag, fs_info,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, assert_detached, refused};
use crate::fixture::harness::Test;
use crate::fixture::line::rewrites_v1;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            nothing_is_rewritten_by_the_way,
            what_is_asked_for_is_rewritten,
            a_mount_that_fails_has_rewritten_nothing,
            what_would_be_rewritten_in_part_is_refused;
    ]
}

const V1: FormatVersion = FormatVersion::V1;

/// An image of format v1 with a snapshot, detached.
fn image() -> (Container, Ploop) {
    let (mut container, mut image) = Container::made(SIZE, |param| param.format(V1));
    assert_eq!(versions(&image), [V1]);
    image.mount(&container.param()).unwrap();
    container.write("0", 3 << 20);
    image.snapshot().unwrap();
    container.write("1", 2 << 20);
    image.umount().unwrap();
    (container, image)
}

/// Those of all deltas.
fn versions(image: &Ploop) -> Vec<FormatVersion> {
    let images = image.descriptor().unwrap().images;
    let headers = images
        .iter()
        .map(|image| Header::read(&image.file).unwrap());
    headers.map(|header| header.version).collect()
}

fn nothing_is_rewritten_by_the_way() {
    type Attaches = fn(&Container, &mut Ploop);
    let operations: [(&str, Attaches); 7] = [
        ("a mount", |container, image| {
            image.mount(&container.param()).unwrap();
            image.umount().unwrap();
        }),
        ("a check", |_, image| {
            image.mount(&MountParam::new().fsck(true)).unwrap();
            image.umount().unwrap();
        }),
        ("a look at the file system", |container, image| {
            let _ = std::fs::remove_file(container.path(".statfs"));
            let info = fs_info(image.path()).unwrap();
            assert_eq!(info.block_size, 4096);
            // And again, from what was stored.
            assert_eq!(fs_info(image.path()).unwrap(), info);
        }),
        ("growing", |_, image| {
            let size = Size::from_mib(300);
            image.resize(size, ResizeMode::Offline).unwrap();
            assert_eq!(image.descriptor().unwrap().size, size);
        }),
        ("growing online", |_, image| {
            let size = Size::from_mib(320);
            image.resize(size, ResizeMode::Online).unwrap();
            assert_eq!(image.descriptor().unwrap().size, size);
        }),
        ("shrinking", |_, image| {
            image
                .resize(Size::from_mib(310), ResizeMode::Offline)
                .unwrap();
        }),
        ("a discard", |_, image| {
            image.discard(&DiscardParam::new().automount(true)).unwrap();
        }),
    ];
    let (container, mut image) = image();
    for (name, attach) in operations {
        attach(&container, &mut image);
        assert_detached(&mut image);
        assert_eq!(versions(&image), [V1, V1], "{name}");
        container.verify_image(&mut image, &["0", "1"]);
        let beside = container.beside();
        let others = beside.iter().filter(|name| !name.starts_with("root.hdd."));
        let others = others.filter(|name| *name != ".statfs").count();
        assert_eq!(others, 2, "{name}: {beside:?}");
        assert!(!beside.iter().any(|file| file.ends_with(".mnt")), "{name}");
    }
}

fn what_is_asked_for_is_rewritten() {
    let (mut container, mut image) = image();
    let param = container.param().upgrade_format(true).fsck(true);
    if !rewrites_v1() {
        refused(image.mount(&param), ErrorKind::Unsupported, None);
        assert_detached(&mut image);
        assert_eq!(versions(&image), [V1, V1]);
        container.verify_image(&mut image, &["0", "1"]);
        return;
    }
    let mounted = image.mount(&param).unwrap();
    assert_eq!(mounted.fsck, Some(0));
    container.write("2", 2 << 20);
    container.verify(&["0", "1", "2"]);
    image.umount().unwrap();
    assert_eq!(versions(&image), [FormatVersion::V2, FormatVersion::V2]);
    container.verify_image(&mut image, &["0", "1", "2"]);
    assert!(ploop::image::check(image.path()).is_sound());
    // There is nothing left to do.
    image.mount(&param.fsck_flags(FsckFlags::PREEN)).unwrap();
    image.umount().unwrap();
    container.verify_image(&mut image, &["0", "1", "2"]);
}

fn a_mount_that_fails_has_rewritten_nothing() {
    let (container, mut image) = image();
    for upgrade in [false, true] {
        let param = container.param().data("no_such_option=1");
        let error = image.mount(&param.upgrade_format(upgrade)).unwrap_err();
        if rewrites_v1() || !upgrade {
            assert_eq!(error.code(), Some(Code::MOUNT.get()), "{error}");
        }
        assert_detached(&mut image);
        assert_eq!(versions(&image), [V1, V1], "{error}");
    }
    container.verify_image(&mut image, &["0", "1"]);
}

fn what_would_be_rewritten_in_part_is_refused() {
    let (container, mut image) = image();
    let base = image.snapshots().unwrap()[0].guid;
    let upgrade = || container.param().upgrade_format(true);
    for param in [
        upgrade().read_only(true),
        upgrade().snapshot(base).read_only(true),
        upgrade().component("a".parse().unwrap()),
    ] {
        refused(image.mount(&param), ErrorKind::Unsupported, None);
    }
    // Another branch stands on the base.
    let kept = image.switch_snapshot_with(base, SwitchFlag::SKIP_DESTROY);
    let kept = kept.unwrap().unwrap();
    let error = image.mount(&upgrade()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(
        rewrites_v1(),
        error.message().contains(&kept.to_string()),
        "{error}"
    );
    assert_eq!(versions(&image), [V1; 3]);
    assert_detached(&mut image);
    // Smaller clusters are no other matter.
    let (container, mut image) = Container::made(SIZE, |param| {
        let cluster = ClusterSize::from_bytes(64 << 10).unwrap();
        param.format(V1).cluster(cluster)
    });
    image.mount(&container.param()).unwrap();
    image.umount().unwrap();
    assert_eq!(versions(&image), [V1]);
}
