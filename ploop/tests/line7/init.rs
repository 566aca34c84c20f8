//! File systems in images that were made without, and on devices.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ploop::{
    CreateFlags, CreateParam, ErrorKind, FormatVersion, InitParam, MountParam, Ploop, Size, device,
    init_device,
};

use crate::container::{Container, SIZE, partition, tool};
use crate::fixture::directory::Contents;
use crate::fixture::harness::Test;
use crate::{MOUNTS_OF_LINE_7, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => what_cannot_be_made_is_refused;
        MOUNTS_OF_LINE_7 =>
            a_bare_image_gets_a_file_system,
            an_image_of_format_v1_stays_one,
            a_device_gets_a_file_system,
            data_is_not_overwritten;
    ]
}

fn bare(param: CreateParam) -> CreateParam {
    param.fs(None)
}

fn what_cannot_be_made_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let param = |name: &str, size| {
        let directory = dir.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        CreateParam::new(directory.join("root.hds"), size)
            .format(FormatVersion::V1)
            .fs(None)
    };
    let mut small = Ploop::create(&param("small", Size::from_mib(200))).unwrap();
    let mut image = Ploop::create(&param("image", SIZE)).unwrap();
    let before = Contents::of(dir.path());
    let new = InitParam::new;
    let refuse = |image: &mut Ploop, wrong: &InitParam| {
        let error = image.init(wrong).unwrap_err();
        let expected = match is_line_7() {
            true => ErrorKind::InvalidInput,
            false => ErrorKind::Unsupported,
        };
        assert_eq!(error.kind(), expected, "{error}");
    };
    refuse(&mut small, &new());
    for wrong in [
        new().fs_label("seventeen bytes !"),
        new().fs_block_size(512),
        new().flags(CreateFlags::SPARSE),
        new().encryption_key(""),
    ] {
        refuse(&mut image, &wrong);
    }
    let error = init_device("/dev/null", &new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = init_device("/dev/ploop999999999", &new()).unwrap_err();
    let expected = match is_line_7() {
        true => ErrorKind::NotFound,
        false => ErrorKind::Unsupported,
    };
    assert_eq!(error.kind(), expected, "{error}");
    before.assert_unchanged("a file system that was refused");
}

fn a_bare_image_gets_a_file_system() {
    for without_partition in [false, true] {
        let (mut container, mut image) = Container::made(SIZE, bare);
        let param = InitParam::new()
            .without_partition(without_partition)
            .fs_label("data");
        image.init(&param).unwrap();
        assert!(!image.is_mounted().unwrap());
        let guard = image.mount_guard(&container.param()).unwrap();
        container.write("file", 1 << 20);
        let mounted = device::partition_by_mount_point(container.target()).unwrap();
        let mounted = mounted.unwrap();
        assert_eq!(mounted == guard.mounted().device, without_partition);
        let label = tool("e2label", &[mounted.to_str().unwrap()]);
        assert_eq!(label.trim_end(), "data");
        guard.umount().unwrap();
        container.verify_image(&mut image, &["file"]);
        assert!(!container.path("root.hdd.mnt").exists());
    }
}

/// libploop rewrites one when it attaches it.
fn an_image_of_format_v1_stays_one() {
    let (mut container, mut image) =
        Container::made(SIZE, |param| bare(param).format(FormatVersion::V1));
    image.snapshot().unwrap();
    image.init(&InitParam::new()).unwrap();
    assert_eq!(image.image_info().unwrap().version, 1);
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_device_gets_a_file_system() {
    let (mut container, mut image) = Container::made(SIZE, bare);
    let mounted = image.mount(&MountParam::new()).unwrap();
    init_device(&mounted.device, &InitParam::new().fs_label("data")).unwrap();
    let found = device::partition(&mounted.device).unwrap();
    assert_eq!(found, partition(&mounted.device));
    let label = tool("e2label", &[found.to_str().unwrap()]);
    assert_eq!(label.trim_end(), "data");
    let again = init_device(&mounted.device, &InitParam::new()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    // libploop mounts none without a balloon.
    let target = container.target();
    tool(
        "mount",
        &[found.to_str().unwrap(), target.to_str().unwrap()],
    );
    container.write("file", 1 << 20);
    let busy = init_device(&mounted.device, &InitParam::new()).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    container.verify(&["file"]);
    tool("umount", &[target.to_str().unwrap()]);
    tool("e2fsck", &["-fn", found.to_str().unwrap()]);
    image.umount().unwrap();
    let stopped = init_device(&mounted.device, &InitParam::new()).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::NotMounted, "{stopped}");
    container.verify_whole();
}

/// Whether it is at the beginning of the disk or at its end.
fn data_is_not_overwritten() {
    for offset in [(1 << 20) - 1, SIZE.bytes() - 512] {
        let (container, mut image) = Container::made(SIZE, bare);
        let mounted = image.mount(&MountParam::new()).unwrap();
        let file = File::options().write(true).open(&mounted.device).unwrap();
        file.write_all_at(&[7], offset).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let error = init_device(&mounted.device, &InitParam::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        let busy = image.init(&InitParam::new()).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
        image.umount().unwrap();
        let before = std::fs::read(container.base()).unwrap();
        let error = image.init(&InitParam::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        let offset = format!("offset {offset},");
        assert!(error.message().contains(&offset), "{error}");
        assert!(std::fs::read(container.base()).unwrap() == before);
    }
}
