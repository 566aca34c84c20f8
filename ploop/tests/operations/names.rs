//! Deltas with the names that libploop has for files of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use ploop::{
    CreateParam, ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, Ploop,
    ReplaceParam, ReplaceTarget, Size,
};

use super::directory::Contents;
use super::filled_image::FilledImage;

use crate::refused::refused;

const NAMES: [&str; 6] = [
    "DiskDescriptor.xml.lck",
    "DiskDescriptor.xml.tmp",
    "DiskDescriptor.xml.tmp.tmp",
    ".statfs",
    "root.hds.mnt",
    "root.hds.tmp",
];

#[test]
fn no_delta_is_made_under_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        let file = dir.path().join(name);
        let param = CreateParam::new(&file, Size::from_mib(10)).fs(None);
        refused(Ploop::create(&param), ErrorKind::InvalidInput);
        refused(
            Ploop::create_descriptor(dir.path().join("a.xml"), &param),
            ErrorKind::InvalidInput,
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, ploop::FormatVersion::V1, 2);
    let before = Contents::of(filled.dir.path());
    for name in NAMES {
        let new = filled.path(name);
        if new.exists() {
            // The lock file.
            continue;
        }
        let param = MergeParam::new(MergeTarget::All).new_delta(&new);
        refused(filled.ploop.merge(&param), ErrorKind::InvalidInput);
        before.assert_unchanged(name);
        fs::copy(filled.file_of(Guid::TOP), &new).unwrap();
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
        refused(filled.ploop.replace(&param), ErrorKind::InvalidInput);
        fs::remove_file(&new).unwrap();
        before.assert_unchanged(name);
    }
    filled.verify();
}

/// The base is one of these files, by its name or by a link: nothing is changed, and it can be read.
#[test]
fn a_delta_that_is_under_them_stays_whole() {
    for name in NAMES {
        for link in [false, true] {
            let mut filled = FilledImage::new(ImageMode::Expanded);
            filled.write([(0, 1), (3, 2)]);
            let (base, other) = (filled.path("root.hds"), filled.path(name));
            if link {
                fs::hard_link(&base, &other).unwrap();
            } else {
                fs::rename(&base, &other).unwrap();
                let text = fs::read_to_string(filled.xml()).unwrap();
                let text = text.replace("<File>root.hds<", &format!("<File>{name}<"));
                fs::write(filled.xml(), text).unwrap();
                if name.starts_with("root.hds") {
                    // No other delta has this file.
                    continue;
                }
            }
            let before = Contents::of(filled.dir.path());
            for result in [
                filled.ploop.snapshot().map(drop),
                filled.ploop.set_max_delta_size(Size::from_sectors(4096)),
                filled.ploop.convert(ImageMode::Raw),
                filled.ploop.convert(ImageMode::Preallocated),
            ] {
                let error = result.unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::Unsupported,
                    "{name} {link}: {error}"
                );
                assert!(error.message().contains("rename the delta"), "{error}");
            }
            before.assert_unchanged(name);
            assert_eq!(
                filled.ploop.image_info().unwrap().size(),
                filled.descriptor().size
            );
        }
    }
}

/// libploop would follow a link, wait for a pipe, and fail late at a directory.
#[test]
fn what_is_there_instead_of_them_is_left_alone() {
    for name in NAMES {
        for kind in ["link", "link to nothing", "pipe", "directory"] {
            if name.ends_with(".mnt") && !kind.starts_with("link") {
                // The image is mounted on it, or cannot be.
                continue;
            }
            let mut filled = FilledImage::new(ImageMode::Expanded);
            filled.write([(0, 1), (3, 2)]);
            let elsewhere = tempfile::tempdir().unwrap();
            let target = elsewhere.path().join("precious");
            if kind != "link to nothing" {
                fs::write(&target, "precious").unwrap();
            }
            let other = filled.path(name);
            let _ = fs::remove_file(&other);
            match kind {
                "pipe" => make_pipe(&other),
                "directory" => fs::create_dir(&other).unwrap(),
                _ => symlink(&target, &other).unwrap(),
            }
            let before = (
                Contents::of(filled.dir.path()),
                Contents::of(elsewhere.path()),
            );
            let mut ploop = Ploop::open(filled.xml()).unwrap();
            for result in [
                ploop.snapshot().map(drop),
                ploop.set_max_delta_size(Size::from_sectors(4096)),
                ploop.convert(ImageMode::Raw),
                ploop::fs_info(filled.xml()).map(drop),
            ] {
                let error = result.unwrap_err();
                assert_eq!(error.path(), Some(&*other), "{kind} {name}: {error}");
            }
            before.0.assert_unchanged(name);
            before.1.assert_unchanged(name);
        }
    }
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Nothing can be read through a new delta upon a pipe.
#[test]
fn a_pipe_is_no_delta() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let base = filled.file_of(guids[0]);
    fs::remove_file(&base).unwrap();
    make_pipe(&base);
    let before = Contents::of(filled.dir.path());
    let mut ploop = Ploop::open(filled.xml()).unwrap();
    for result in [ploop.snapshot().map(drop), ploop.switch_snapshot(guids[1])] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.path(), Some(&*base), "{error}");
    }
    before.assert_unchanged("a pipe");
}
