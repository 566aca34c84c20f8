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

fn delete(filled: &mut FilledImage, guid: Guid) {
    filled.ploop.delete_snapshot(guid).unwrap();
    filled.states.remove(&guid);
    filled.verify();
}

#[test]
fn a_leaf_goes_with_its_file() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 3);
        if !filled.can_have_deltas() {
            continue;
        }
        filled.switch(guids[0]);
        let leaf = filled.file_of(guids[2]);
        delete(&mut filled, guids[2]);
        assert!(!leaf.exists());
        // What was below it is a leaf now.
        let leaf = filled.file_of(guids[1]);
        delete(&mut filled, guids[1]);
        assert!(!leaf.exists());
        assert_eq!(filled.names().len(), 3);
    }
}

#[test]
fn one_in_the_middle_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 4);
        let (file, above) = (filled.file_of(guids[1]), filled.file_of(guids[2]));
        delete(&mut filled, guids[1]);
        // The data is in the lower file, under the upper name.
        assert_eq!(filled.file_of(guids[2]), file);
        assert!(!above.exists());
        assert_eq!(filled.descriptor().parent(guids[2]), Some(guids[0]));
        // And the one right below the top.
        delete(&mut filled, guids[3]);
        assert_eq!(filled.descriptor().parent(Guid::TOP), Some(guids[2]));
    }
}

#[test]
fn the_base_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 2);
        delete(&mut filled, guids[0]);
        assert_eq!(filled.file_of(guids[1]), filled.path("root.hds"));
        delete(&mut filled, guids[1]);
        assert_eq!(filled.file_of(Guid::TOP), filled.path("root.hds"));
        assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
        assert_eq!(filled.descriptor().mode, mode);
    }
}

#[test]
fn one_with_two_children_goes_with_the_second_last() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    filled.switch(guids[0]);
    filled.write([(5, 700)]);
    // guids[0] has the children guids[1] and the top.
    filled.ploop.delete_snapshot(guids[0]).unwrap();
    filled.verify();
    assert!(filled.descriptor().snapshot(guids[0]).unwrap().temporary);
    refused(filled.ploop.delete_snapshot(guids[0]), ErrorKind::Busy);
    // libploop would fail, and not say why.
    let error = refused(filled.ploop.snapshot(), ErrorKind::Busy);
    assert!(error.message().contains("has 2 children"), "{error}");
    // Nobody can go back to it any more.
    refused(
        filled.ploop.switch_snapshot(guids[0]),
        ErrorKind::InvalidInput,
    );
    filled.verify();
    delete(&mut filled, guids[2]);
    assert!(filled.descriptor().snapshot(guids[0]).is_some());
    // One branch is removed, and what is left is merged into the other.
    filled.states.remove(&guids[0]);
    delete(&mut filled, guids[1]);
    assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
}

#[test]
fn the_top_goes_and_what_is_below_is_written_to() {
    for by_name in [false, true] {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let (top, below) = (filled.file_of(Guid::TOP), filled.file_of(guids[1]));
        if by_name {
            filled.ploop.delete_snapshot(Guid::TOP).unwrap();
        } else {
            filled.ploop.delete_top_delta().unwrap();
        }
        filled.went_back_to(guids[1]);
        filled.states.remove(&guids[1]);
        filled.verify();
        assert!(!top.exists());
        assert_eq!(filled.file_of(Guid::TOP), below);
        filled.write([(2, 800)]);
        filled.verify();
    }
}

#[test]
fn a_base_without_children_stays() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 1)]);
    for result in [
        filled.ploop.delete_top_delta(),
        filled.ploop.delete_snapshot(Guid::TOP),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let error = refused(
        filled.ploop.delete_snapshot(Guid::generate()),
        ErrorKind::NoSnapshot,
    );
    assert_eq!(error.code(), Some(ploop::Code::NOSNAP.get()));
    filled.verify();
}
