//! Images with a labelled file system, and raw ones without space for what was not written.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ploop::image::Disk;
use ploop::{CreateFlags, CreateParam, ErrorKind, FormatVersion, ImageMode, Ploop, Size};

use crate::container::{Container, SIZE, tool};
use crate::fixture::directory::Contents;
use crate::fixture::harness::Test;
use crate::{MOUNTS_OF_LINE_7, REAL, is_line_7, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => what_libploop_would_ignore_is_refused;
        REAL => a_sparse_raw_image_takes_no_space;
        MOUNTS_OF_LINE_7 => a_file_system_has_its_label, a_sparse_raw_image_is_mounted;
    ]
}

fn what_libploop_would_ignore_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let before = Contents::of(dir.path());
    let param = CreateParam::new(dir.path().join("root.hds"), SIZE).format(FormatVersion::V1);
    let bare = param.clone().fs(None);
    let sparse = bare.clone().flags(CreateFlags::SPARSE);
    for wrong in [
        sparse.clone(),
        sparse.mode(ImageMode::Preallocated),
        bare.clone().fs_label("data"),
        param.clone().fs_label(""),
        param.clone().fs_label("seventeen bytes !"),
        param.fs_label("two\nlines"),
        bare.encryption_key("key"),
    ] {
        let error = Ploop::create(&wrong).unwrap_err();
        let expected = match is_line_7() {
            true => ErrorKind::InvalidInput,
            false => ErrorKind::Unsupported,
        };
        assert_eq!(error.kind(), expected, "{error}");
        before.assert_unchanged("a creation that was refused");
    }
}

fn a_sparse_raw_image_takes_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root.hds");
    let param = CreateParam::new(&file, Size::from_mib(64))
        .mode(ImageMode::Raw)
        .format(FormatVersion::V1)
        .fs(None);
    let made = Ploop::create(&param.clone().flags(CreateFlags::SPARSE));
    if !is_line_7() {
        assert_eq!(made.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    let mut image = made.unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (64 << 20, 0));
    assert_eq!(image.descriptor().unwrap().mode, ImageMode::Raw);
    assert_eq!(image.image_info().unwrap().size(), Size::from_mib(64));
    // It is a raw image like any other.
    fs::write(&file, [7; 512]).unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_len(64 << 20))
        .unwrap();
    image.snapshot().unwrap();
    let mut sector = [0; 513];
    let disk = Disk::open(image.path()).unwrap();
    disk.read_at(&mut sector, 0).unwrap();
    assert_eq!((sector[0], sector[511], sector[512]), (7, 7, 0));
    fs::remove_file(image.path()).unwrap();
    for name in fs::read_dir(dir.path()).unwrap() {
        fs::remove_file(name.unwrap().path()).unwrap();
    }
    // Without the flag, the space is there.
    Ploop::create(&param).unwrap();
    assert!(fs::metadata(&file).unwrap().blocks() * 512 >= 64 << 20);
}

fn a_file_system_has_its_label() {
    let (mut container, mut image) =
        Container::made(SIZE, |param| param.fs_label("-sixteen bytes-!"));
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    let partition = ploop::device::partition_by_mount_point(container.target())
        .unwrap()
        .unwrap();
    let label = tool("e2label", &[partition.to_str().unwrap()]);
    assert_eq!(label.trim_end(), "-sixteen bytes-!");
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}

fn a_sparse_raw_image_is_mounted() {
    let sparse = |param: CreateParam| param.mode(ImageMode::Raw).flags(CreateFlags::SPARSE);
    let (mut container, mut image) = Container::made(SIZE, sparse);
    let len = fs::metadata(container.base()).unwrap().len();
    assert_eq!(len, SIZE.bytes());
    let guard = image.mount_guard(&container.param()).unwrap();
    container.write("file", 1 << 20);
    guard.umount().unwrap();
    container.verify_image(&mut image, &["file"]);
}
