//! From format v1 to v2.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ploop::image::{Header, HeaderFlags, OfflineImage, check};
use ploop::{FormatVersion, ImageMode};

use super::filled_image::FilledImage;

fn versions(filled: &FilledImage) -> Vec<FormatVersion> {
    let descriptor = filled.descriptor();
    let headers = descriptor.images.iter().map(|it| Header::read(&it.file));
    headers.flatten().map(|header| header.version).collect()
}

#[test]
fn all_deltas_get_the_new_version() {
    for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
        for snapshots in [0, 2] {
            let (filled, _) = FilledImage::chain(mode, FormatVersion::V1, snapshots);
            let names = filled.names();
            let descriptor = fs::read(filled.xml()).unwrap();
            let mut image = OfflineImage::open(filled.xml()).unwrap();
            for _ in 0..2 {
                image.upgrade().unwrap();
                filled.verify();
                assert!(versions(&filled).iter().all(|it| *it == FormatVersion::V2));
                assert_eq!(filled.names(), names);
                assert_eq!(fs::read(filled.xml()).unwrap(), descriptor);
            }
        }
    }
}

/// The files of the image, by their names.
fn files(filled: &FilledImage) -> Vec<(PathBuf, Vec<u8>)> {
    let names = filled.names();
    let paths = names.iter().map(|name| filled.path(name));
    paths
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

/// As libploop leaves it: marked and flagged, with copies of the tables, and some tables converted.
#[test]
fn what_was_interrupted_is_taken_back() {
    for converted in 0..=3 {
        let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let before = files(&filled);
        let images = filled.descriptor().images;
        let old: Vec<Vec<u8>> = images
            .iter()
            .map(|it| fs::read(&it.file).unwrap())
            .collect();
        let mut image = OfflineImage::open(filled.xml()).unwrap();
        image.upgrade().unwrap();
        let after = files(&filled);
        let flag = |bytes: &[u8], path: &PathBuf| {
            fs::write(path, bytes).unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
                .unwrap();
            let flags = HeaderFlags::CONVERTING.bits() | u32::from(bytes[52]);
            file.write_all_at(&flags.to_le_bytes(), 52).unwrap();
        };
        for (number, image) in images.iter().enumerate() {
            let mut copy = image.file.clone().into_os_string();
            copy.push(".idx");
            let table = Header::parse(old[number][..64].try_into().unwrap()).unwrap();
            fs::write(copy, &old[number][..table.data_start() as usize]).unwrap();
            let new = after.iter().find(|(path, _)| *path == image.file).unwrap();
            match number < converted {
                true => flag(&new.1, &image.file),
                false => flag(&old[number], &image.file),
            }
        }
        assert!(!check(filled.xml()).is_sound());
        let guid = image.snapshot().unwrap();
        image.delete_snapshot(guid, |_| {}).unwrap();
        // Nothing differs, but what has become of the snapshot.
        filled.verify();
        assert_eq!(files(&filled).len(), before.len());
        assert!(versions(&filled).iter().all(|it| *it == FormatVersion::V1));
    }
}

/// The base is the first that is done with.
#[test]
fn what_was_all_but_done_is_finished() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    image.upgrade().unwrap();
    for image in &filled.descriptor().images[1..] {
        let file = fs::File::options().write(true).open(&image.file).unwrap();
        file.write_all_at(b"WithoutFreeSpace", 0).unwrap();
        file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
            .unwrap();
        let flags = HeaderFlags::CONVERTING.bits();
        file.write_all_at(&flags.to_le_bytes(), 52).unwrap();
    }
    image.upgrade().unwrap();
    filled.verify();
    assert!(versions(&filled).iter().all(|it| *it == FormatVersion::V2));
}
