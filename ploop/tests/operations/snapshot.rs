//! Making snapshots and going back to them.

use std::fs;

use ploop::{ErrorKind, FormatVersion, Guid, ImageMode, Ploop, SnapshotParam, SwitchFlag};

use super::filled_image::{FilledImage, names_in};

use crate::refused::refused;

const ALL: [(ImageMode, FormatVersion); 3] = [
    (ImageMode::Expanded, FormatVersion::V1),
    (ImageMode::Preallocated, FormatVersion::V1),
    (ImageMode::Raw, FormatVersion::V1),
];

#[test]
fn a_snapshot_keeps_what_was_there() {
    for (mode, format) in ALL {
        let (filled, guids) = FilledImage::chain(mode, format, 4);
        let descriptor = filled.descriptor();
        assert_eq!(descriptor.chain(Guid::TOP).len(), 5);
        for pair in guids.windows(2) {
            assert_eq!(descriptor.parent(pair[1]), Some(pair[0]));
        }
        assert_eq!(descriptor.base().unwrap().guid, guids[0]);
        assert_eq!(descriptor.base().unwrap().file, filled.path("root.hds"));
        assert_eq!(
            filled.ploop.base_delta_file().unwrap(),
            filled.path("root.hds")
        );
        assert_eq!(
            filled.ploop.top_delta_file().unwrap(),
            filled.file_of(Guid::TOP)
        );
        assert_eq!(filled.names().len(), 6);
        // A new delta has the format of the one below; one on a raw base that which the driver prefers.
        let format = match mode {
            ImageMode::Raw if ploop::kernel::is_large_disk_supported() => FormatVersion::V2,
            _ => format,
        };
        let info = filled.ploop.image_info().unwrap();
        assert_eq!(info.version, format.number());
        assert_eq!(info.size(), descriptor.size);
    }
}

#[test]
fn the_guid_and_the_directory_are_the_callers() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 1)]);
    let elsewhere = tempfile::tempdir().unwrap();
    let chosen = Guid::generate();
    let param = SnapshotParam::new()
        .guid(chosen)
        .directory(elsewhere.path());
    assert_eq!(filled.ploop.snapshot_with(&param).unwrap(), chosen);
    filled.took(chosen);
    filled.write([(2, 2), (5, 3)]);
    filled.verify();
    let top = filled.file_of(Guid::TOP);
    assert_eq!(
        top.parent(),
        Some(&*fs::canonicalize(elsewhere.path()).unwrap())
    );
    assert_eq!(names_in(elsewhere.path()).len(), 1);
    assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
    // The next delta is beside the base again.
    filled.snapshot();
    filled.verify();
    assert_eq!(filled.names().len(), 3);
    refused(filled.ploop.snapshot_with(&param), ErrorKind::AlreadyExists);
    filled.verify();
}

#[test]
fn going_back_forgets_what_was_written_since() {
    for (mode, format) in ALL {
        let (mut filled, guids) = FilledImage::chain(mode, format, 3);
        for guid in [guids[1], guids[0], guids[2], guids[2]] {
            let old_top = filled.file_of(Guid::TOP);
            filled.switch(guid);
            assert!(!old_top.exists());
            assert_eq!(filled.descriptor().parent(Guid::TOP), Some(guid));
            filled.verify();
            filled.write([(3, guid.as_uuid().as_u128() as u64 >> 40), (9, 77)]);
            filled.verify();
        }
        assert_eq!(filled.names().len(), 5);
    }
}

#[test]
fn new_deltas_of_version_2_need_a_driver() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V2, 2);
    assert_eq!(filled.ploop.image_info().unwrap().version, 2);
    if filled.can_have_deltas() {
        filled.snapshot();
        filled.switch(guids[0]);
        filled.verify();
        return;
    }
    let names = filled.names();
    let text = fs::read(filled.xml()).unwrap();
    for error in [
        filled.ploop.snapshot().unwrap_err(),
        filled.ploop.switch_snapshot(guids[0]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(
            error.advice().unwrap_or_default().contains("driver"),
            "{error}"
        );
    }
    assert_eq!(filled.names(), names);
    assert_eq!(fs::read(filled.xml()).unwrap(), text);
    filled.verify();
    // No new delta is needed for this.
    let kept = filled
        .ploop
        .switch_snapshot_with(guids[1], SwitchFlag::SKIP_CREATE);
    assert_eq!(kept.unwrap(), None);
    filled.went_back_to(guids[1]);
    filled.states.remove(&guids[1]);
    filled.verify();
}

/// goploop loses the GUID of the delta that is kept.
#[test]
fn the_old_top_can_be_kept_under_a_new_guid() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let old_top = filled.file_of(Guid::TOP);
    let kept = filled
        .ploop
        .switch_snapshot_with(guids[0], SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .expect("the kept delta has a name");
    filled.took(kept);
    filled.went_back_to(guids[0]);
    filled.verify();
    assert_eq!(filled.file_of(kept), old_top);
    assert_eq!(filled.descriptor().parent(kept), Some(guids[1]));
    filled.write([(4, 900)]);
    let again = filled
        .ploop
        .switch_snapshot_with(kept, SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    assert_ne!(again, kept);
    filled.took(again);
    filled.went_back_to(kept);
    filled.verify();
    filled.ploop.delete_snapshot(again).unwrap();
    filled.states.remove(&again);
    filled.verify();
}

#[test]
fn a_snapshot_itself_can_become_the_top() {
    for (mode, format) in ALL {
        let (mut filled, guids) = FilledImage::chain(mode, format, 2);
        let old_top = filled.file_of(Guid::TOP);
        let file = filled.file_of(guids[1]);
        let kept = filled
            .ploop
            .switch_snapshot_with(guids[1], SwitchFlag::SKIP_CREATE)
            .unwrap();
        assert_eq!(kept, None);
        filled.went_back_to(guids[1]);
        filled.states.remove(&guids[1]);
        filled.verify();
        assert!(!old_top.exists());
        assert_eq!(filled.file_of(Guid::TOP), file);
        filled.write([(3, 500)]);
        filled.verify();
        // Down to the base, so that nothing else is left.
        filled
            .ploop
            .switch_snapshot_with(guids[0], SwitchFlag::SKIP_CREATE)
            .unwrap();
        filled.went_back_to(guids[0]);
        filled.states.remove(&guids[0]);
        filled.verify();
        assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
    }
}

/// The pattern of a program that restores several disks together.
#[test]
fn a_switch_can_be_undone() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let before = filled.states[&Guid::TOP].clone();
    let kept = filled
        .ploop
        .switch_snapshot_with(guids[0], SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    filled.took(kept);
    filled.went_back_to(guids[0]);
    filled.verify();
    filled
        .ploop
        .switch_snapshot_with(kept, SwitchFlag::SKIP_CREATE)
        .unwrap();
    filled.went_back_to(kept);
    filled.states.remove(&kept);
    assert_eq!(filled.states[&Guid::TOP], before);
    filled.verify();
}

#[test]
fn flags_that_contradict_each_other_change_nothing() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let text = fs::read(filled.xml()).unwrap();
    for flags in [
        SwitchFlag::SKIP_CREATE | SwitchFlag::SKIP_DESTROY,
        SwitchFlag::from_bits_retain(1 << 20),
    ] {
        filled
            .ploop
            .switch_snapshot_with(guids[0], flags)
            .unwrap_err();
    }
    // As the top it would change what its other child reads.
    filled.switch(guids[0]);
    let side = filled.snapshot();
    filled.switch(guids[0]);
    refused(
        filled
            .ploop
            .switch_snapshot_with(guids[0], SwitchFlag::SKIP_CREATE),
        ErrorKind::InvalidInput,
    );
    filled.verify();
    assert_ne!(fs::read(filled.xml()).unwrap(), text);
    filled.switch(side);
    filled.verify();
}

/// Another handle, and another descriptor of the same name, see what happened.
#[test]
fn handles_see_each_others_changes() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let mut other = Ploop::open(filled.xml()).unwrap();
    filled.write([(1, 1)]);
    let guid = other.snapshot().unwrap();
    filled.took(guid);
    filled.verify();
    assert_eq!(
        filled.ploop.top_delta_file().unwrap(),
        other.top_delta_file().unwrap()
    );
    assert_eq!(
        filled.ploop.descriptor().unwrap(),
        other.descriptor().unwrap()
    );
    filled.switch(guid);
    assert_eq!(
        filled.ploop.top_delta_file().unwrap(),
        other.top_delta_file().unwrap()
    );
}

#[test]
fn a_switch_removes_the_note_of_the_file_system() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let guid = filled.snapshot();
    fs::write(filled.path(".statfs"), [0; 40]).unwrap();
    filled.switch(guid);
    assert!(!filled.path(".statfs").exists());
}
