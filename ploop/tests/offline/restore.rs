//! Descriptors that were lost.

use std::fs;
use std::path::PathBuf;

use ploop::image::{check, restore_descriptor};
use ploop::{ErrorKind, FormatVersion, Guid, ImageMode};

use super::filled_image::FilledImage;

#[test]
fn a_chain_without_its_descriptor() {
    for snapshots in [0, 3] {
        let (mut filled, guids) =
            FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, snapshots);
        let old = filled.descriptor();
        let files: Vec<PathBuf> = old
            .chain(old.top)
            .iter()
            .map(|it| it.file.clone())
            .collect();
        let error = restore_descriptor(filled.xml(), &files).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        fs::remove_file(filled.xml()).unwrap();
        let image = restore_descriptor(filled.xml(), &files).unwrap();
        let new = image.descriptor().unwrap();
        assert_eq!(
            (new.size, new.cluster, new.mode),
            (old.size, old.cluster, old.mode)
        );
        let chain: Vec<Guid> = new.chain(new.top).iter().map(|it| it.guid).collect();
        for (old, new) in guids.iter().zip(&chain) {
            let contents = filled.states.remove(old).unwrap();
            filled.states.insert(*new, contents);
        }
        let verify = |filled: &FilledImage| {
            let home = fs::canonicalize(filled.xml().parent().unwrap()).unwrap();
            let text = fs::read_to_string(filled.xml()).unwrap();
            assert_eq!(filled.descriptor().to_xml(home).unwrap(), text);
            filled.verify_states();
        };
        verify(&filled);
        assert!(check(filled.xml()).is_clean());
        // libploop goes on from there; the root element stays.
        filled.snapshot();
        verify(&filled);
    }
}

#[test]
fn what_is_no_chain_is_refused() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let base = filled.descriptor().base().unwrap().file.clone();
    fs::remove_file(filled.xml()).unwrap();
    let refused = |files: &[PathBuf]| restore_descriptor(filled.xml(), files).unwrap_err().kind();
    assert_eq!(refused(&[]), ErrorKind::InvalidInput);
    assert_eq!(
        refused(&[base.clone(), base.clone()]),
        ErrorKind::InvalidInput
    );
    assert_eq!(refused(&[filled.path("none")]), ErrorKind::NotFound);
    fs::write(filled.path("text"), vec![7; 4096]).unwrap();
    assert_eq!(refused(&[filled.path("text")]), ErrorKind::Corrupt);
    assert!(!filled.xml().exists());
}

/// With the copy of its table, it is taken back as soon as there is a descriptor.
#[test]
fn a_delta_whose_version_was_being_changed_needs_the_copy_of_its_table() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 0);
    let base = filled.descriptor().base().unwrap().file.clone();
    fs::remove_file(filled.xml()).unwrap();
    let mut bytes = fs::read(&base).unwrap();
    let copy = PathBuf::from(format!("{}.idx", base.display()));
    let saved = bytes.clone();
    bytes[52] |= 2;
    fs::write(&base, &bytes).unwrap();
    let error = restore_descriptor(filled.xml(), &[&base]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(!filled.xml().exists());
    fs::write(&copy, saved).unwrap();
    restore_descriptor(filled.xml(), &[&base]).unwrap();
}
