//! Descriptors in other directories for readers of a snapshot.

use std::fs;
use std::path::Path;

use ploop::image::Disk;
use ploop::{ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, SnapshotParam};
use tempfile::TempDir;

use crate::directory::Contents;
use crate::filled_image::{Delta, FilledImage, cluster_bytes, names_in, read_whole};
use crate::refused::refused;

fn chain(mode: ImageMode) -> (FilledImage, Vec<Guid>) {
    FilledImage::chain(mode, FormatVersion::V1, 3)
}

fn as_of(filled: &FilledImage, guid: Guid) -> Vec<u8> {
    read_whole(&Disk::open_snapshot(filled.xml(), guid).unwrap())
}

#[test]
fn a_clone_reads_as_its_snapshot() {
    for mode in [ImageMode::Expanded, ImageMode::Raw] {
        let (mut filled, guids) = chain(mode);
        for (at, guid) in guids.iter().enumerate() {
            let elsewhere = TempDir::new().unwrap();
            let before = Contents::of(filled.dir.path());
            let clone = filled
                .ploop
                .clone_descriptor(*guid, elsewhere.path())
                .unwrap();
            before.assert_unchanged("a clone");
            assert_eq!(names_in(elsewhere.path()), ["DiskDescriptor.xml"]);
            let descriptor = clone.descriptor().unwrap();
            let deltas: Vec<&Path> = (descriptor.chain(descriptor.top).iter())
                .map(|image| image.file.as_path())
                .collect();
            let of_image = filled.descriptor();
            let expected: Vec<&Path> = (of_image.chain(*guid).iter())
                .map(|image| image.file.as_path())
                .collect();
            assert_eq!(deltas, expected);
            assert_eq!(descriptor.images.len(), at + 1, "none above the snapshot");
            assert_eq!(
                clone.image_info().unwrap().size(),
                filled.ploop.image_info().unwrap().size()
            );
            let read = read_whole(&Disk::open(clone.path()).unwrap());
            assert_eq!(read, as_of(&filled, *guid));
            // What the image writes, and its later snapshots, are not in the clone.
            filled.write([(1, 1000 + at as u64)]);
            filled.snapshot();
            assert_eq!(read_whole(&Disk::open(clone.path()).unwrap()), read);
        }
        filled.verify();
    }
}

#[test]
fn nothing_is_written_through_a_clone() {
    let (filled, guids) = chain(ImageMode::Expanded);
    let elsewhere = TempDir::new().unwrap();
    let mut clone = (filled.ploop)
        .clone_descriptor(guids[1], elsewhere.path())
        .unwrap();
    let before = Contents::of(filled.dir.path());
    let descriptor = fs::read(clone.path()).unwrap();
    let unsupported = ErrorKind::Unsupported;
    refused(clone.merge(&MergeParam::new(MergeTarget::All)), unsupported);
    refused(clone.delete_snapshot(guids[0]), unsupported);
    refused(clone.delete_top_delta(), unsupported);
    refused(clone.switch_snapshot(guids[0]), unsupported);
    refused(clone.convert(ImageMode::Preallocated), unsupported);
    before.assert_unchanged("changes through a clone");
    assert_eq!(fs::read(clone.path()).unwrap(), descriptor);
    filled.verify();
}

/// Beside the base, where libploop puts a new delta, it would be a leftover of the image.
#[test]
fn a_snapshot_of_a_clone_needs_a_directory() {
    let (mut filled, guids) = chain(ImageMode::Expanded);
    let elsewhere = TempDir::new().unwrap();
    let mut clone = (filled.ploop)
        .clone_descriptor(guids[1], elsewhere.path())
        .unwrap();
    let before = Contents::of(filled.dir.path());
    let error = refused(clone.snapshot(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("with a directory"), "{error}");
    let param = SnapshotParam::new().directory(elsewhere.path());
    clone.snapshot_with(&param).unwrap();
    before.assert_unchanged("a snapshot of a clone");
    // The clone has a delta of its own now, and is not of the image any more when that writes.
    let read = read_whole(&Disk::open(clone.path()).unwrap());
    assert_eq!(read, as_of(&filled, guids[1]));
    let own = clone.top_delta_file().unwrap();
    assert_eq!(
        own.parent().unwrap(),
        fs::canonicalize(elsewhere.path()).unwrap()
    );
    Delta::open(&own).write(7, 4711);
    let written = read_whole(&Disk::open(clone.path()).unwrap());
    let cluster = filled.descriptor().cluster.bytes();
    let expected = cluster_bytes(4711, cluster);
    assert_eq!(
        written[(7 * cluster) as usize..][..cluster as usize],
        expected
    );
    before.assert_unchanged("writes to a clone");
    refused(clone.switch_snapshot(guids[0]), ErrorKind::Unsupported);
    filled.ploop.remove_leftovers().unwrap();
    before.assert_unchanged("what is left over");
    filled.verify();
}

#[test]
fn a_clone_of_what_cannot_be_one_is_refused() {
    let (filled, guids) = chain(ImageMode::Expanded);
    let elsewhere = TempDir::new().unwrap();
    let clone = |guid, directory: &Path| filled.ploop.clone_descriptor(guid, directory).map(drop);
    let before = Contents::of(filled.dir.path());
    refused(clone(Guid::TOP, elsewhere.path()), ErrorKind::InvalidInput);
    refused(
        clone(Guid::generate(), elsewhere.path()),
        ErrorKind::NoSnapshot,
    );
    refused(clone(Guid::NONE, elsewhere.path()), ErrorKind::NoSnapshot);
    let inside = filled.dir.path().join(".");
    refused(clone(guids[0], &inside), ErrorKind::InvalidInput);
    let missing = elsewhere.path().join("missing");
    refused(clone(guids[0], &missing), ErrorKind::NotFound);
    before.assert_unchanged("refused clones");
    assert_eq!(names_in(elsewhere.path()), [""; 0]);
    clone(guids[0], elsewhere.path()).unwrap();
    let made = Contents::of(elsewhere.path());
    let again = refused(clone(guids[1], elsewhere.path()), ErrorKind::AlreadyExists);
    let there = fs::canonicalize(elsewhere.path()).unwrap();
    assert_eq!(again.path(), Some(&*there.join("DiskDescriptor.xml")));
    made.assert_unchanged("a second clone");
}

/// A backup has a temporary snapshot, which libploop merges when it can. As the top of a clone it is none.
#[test]
fn a_temporary_snapshot_can_be_cloned() {
    let (filled, guids) = chain(ImageMode::Expanded);
    let text = fs::read_to_string(filled.xml()).unwrap();
    let (images, shots) = text.split_once("<Snapshots>").unwrap();
    let (before, shot) = shots
        .split_once(&format!("<GUID>{}</GUID>", guids[2]))
        .unwrap();
    let shot = shot.replacen("</ParentGUID>", "</ParentGUID><Temporary/>", 1);
    let text = format!("{images}<Snapshots>{before}<GUID>{}</GUID>{shot}", guids[2]);
    fs::write(filled.xml(), text).unwrap();
    assert!(filled.descriptor().snapshot(guids[2]).unwrap().temporary);
    let elsewhere = TempDir::new().unwrap();
    let clone = (filled.ploop)
        .clone_descriptor(guids[2], elsewhere.path())
        .unwrap();
    assert!(filled.descriptor().snapshot(guids[2]).unwrap().temporary);
    let descriptor = clone.descriptor().unwrap();
    assert!(!descriptor.snapshots.iter().any(|shot| shot.temporary));
    let read = read_whole(&Disk::open(clone.path()).unwrap());
    assert_eq!(read, as_of(&filled, guids[2]));
}
