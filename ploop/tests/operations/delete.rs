//! Deleting snapshots.

use ploop::{ErrorKind, FormatVersion, Guid, ImageMode};

use super::filled_image::FilledImage;

use crate::refused::refused;

const MODES: [(ImageMode, FormatVersion); 4] = [
    (ImageMode::Expanded, FormatVersion::V1),
    (ImageMode::Expanded, FormatVersion::V2),
    (ImageMode::Preallocated, FormatVersion::V1),
    (ImageMode::Raw, FormatVersion::V1),
];

fn delete(known: &mut FilledImage, guid: Guid) {
    known.ploop.delete_snapshot(guid).unwrap();
    known.states.remove(&guid);
    known.verify();
}

#[test]
fn a_leaf_goes_with_its_file() {
    for (mode, format) in MODES {
        let (mut known, guids) = FilledImage::chain(mode, format, 3);
        if !known.can_have_deltas() {
            continue;
        }
        known.switch(guids[0]);
        let leaf = known.file_of(guids[2]);
        delete(&mut known, guids[2]);
        assert!(!leaf.exists());
        // What was below it is a leaf now.
        let leaf = known.file_of(guids[1]);
        delete(&mut known, guids[1]);
        assert!(!leaf.exists());
        assert_eq!(known.names().len(), 3);
    }
}

#[test]
fn one_in_the_middle_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut known, guids) = FilledImage::chain(mode, format, 4);
        let (file, above) = (known.file_of(guids[1]), known.file_of(guids[2]));
        delete(&mut known, guids[1]);
        // The data is in the lower file, under the upper name.
        assert_eq!(known.file_of(guids[2]), file);
        assert!(!above.exists());
        assert_eq!(known.descriptor().parent(guids[2]), Some(guids[0]));
        // And the one right below the top.
        delete(&mut known, guids[3]);
        assert_eq!(known.descriptor().parent(Guid::TOP), Some(guids[2]));
    }
}

#[test]
fn the_base_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut known, guids) = FilledImage::chain(mode, format, 2);
        delete(&mut known, guids[0]);
        assert_eq!(known.file_of(guids[1]), known.path("root.hds"));
        delete(&mut known, guids[1]);
        assert_eq!(known.file_of(Guid::TOP), known.path("root.hds"));
        assert_eq!(known.names(), ["DiskDescriptor.xml", "root.hds"]);
        assert_eq!(known.descriptor().mode, mode);
    }
}

#[test]
fn one_with_two_children_goes_with_the_second_last() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    known.switch(guids[0]);
    known.write([(5, 700)]);
    // guids[0] has the children guids[1] and the top.
    known.ploop.delete_snapshot(guids[0]).unwrap();
    known.verify();
    assert!(known.descriptor().snapshot(guids[0]).unwrap().temporary);
    refused(known.ploop.delete_snapshot(guids[0]), ErrorKind::Busy);
    // libploop would fail, and not say why.
    let error = refused(known.ploop.snapshot(), ErrorKind::Busy);
    assert!(error.message().contains("has 2 children"), "{error}");
    // Nobody can go back to it any more.
    refused(
        known.ploop.switch_snapshot(guids[0]),
        ErrorKind::InvalidInput,
    );
    known.verify();
    delete(&mut known, guids[2]);
    assert!(known.descriptor().snapshot(guids[0]).is_some());
    // One branch is removed, and what is left is merged into the other.
    known.states.remove(&guids[0]);
    delete(&mut known, guids[1]);
    assert_eq!(known.names(), ["DiskDescriptor.xml", "root.hds"]);
}

#[test]
fn the_top_goes_and_what_is_below_is_written_to() {
    for by_name in [false, true] {
        let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let (top, below) = (known.file_of(Guid::TOP), known.file_of(guids[1]));
        if by_name {
            known.ploop.delete_snapshot(Guid::TOP).unwrap();
        } else {
            known.ploop.delete_top_delta().unwrap();
        }
        known.went_back_to(guids[1]);
        known.states.remove(&guids[1]);
        known.verify();
        assert!(!top.exists());
        assert_eq!(known.file_of(Guid::TOP), below);
        known.write([(2, 800)]);
        known.verify();
    }
}

#[test]
fn a_base_without_children_stays() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    known.write([(2, 1)]);
    for result in [
        known.ploop.delete_top_delta(),
        known.ploop.delete_snapshot(Guid::TOP),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let error = refused(
        known.ploop.delete_snapshot(Guid::generate()),
        ErrorKind::NoSnapshot,
    );
    assert_eq!(error.code(), Some(ploop::Code::NOSNAP.get()));
    known.verify();
}
