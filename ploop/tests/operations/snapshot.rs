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
        let (known, guids) = FilledImage::chain(mode, format, 4);
        let descriptor = known.descriptor();
        assert_eq!(descriptor.chain(Guid::TOP).len(), 5);
        for pair in guids.windows(2) {
            assert_eq!(descriptor.parent(pair[1]), Some(pair[0]));
        }
        assert_eq!(descriptor.base().unwrap().guid, guids[0]);
        assert_eq!(descriptor.base().unwrap().file, known.path("root.hds"));
        assert_eq!(
            known.ploop.base_delta_file().unwrap(),
            known.path("root.hds")
        );
        assert_eq!(
            known.ploop.top_delta_file().unwrap(),
            known.file_of(Guid::TOP)
        );
        assert_eq!(known.names().len(), 6);
        // A new delta has the format of the one below; one on a raw base that which the driver prefers.
        let format = match mode {
            ImageMode::Raw if ploop::kernel::is_large_disk_supported() => FormatVersion::V2,
            _ => format,
        };
        let info = known.ploop.image_info().unwrap();
        assert_eq!(info.version, format.number());
        assert_eq!(info.size(), descriptor.size);
    }
}

#[test]
fn the_guid_and_the_directory_are_the_callers() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    known.write([(2, 1)]);
    let elsewhere = tempfile::tempdir().unwrap();
    let chosen = Guid::generate();
    let param = SnapshotParam::new()
        .guid(chosen)
        .directory(elsewhere.path());
    assert_eq!(known.ploop.snapshot_with(&param).unwrap(), chosen);
    known.took(chosen);
    known.write([(2, 2), (5, 3)]);
    known.verify();
    let top = known.file_of(Guid::TOP);
    assert_eq!(
        top.parent(),
        Some(&*fs::canonicalize(elsewhere.path()).unwrap())
    );
    assert_eq!(names_in(elsewhere.path()).len(), 1);
    assert_eq!(known.names(), ["DiskDescriptor.xml", "root.hds"]);
    // The next delta is beside the base again.
    known.snapshot();
    known.verify();
    assert_eq!(known.names().len(), 3);
    refused(known.ploop.snapshot_with(&param), ErrorKind::AlreadyExists);
    known.verify();
}

#[test]
fn going_back_forgets_what_was_written_since() {
    for (mode, format) in ALL {
        let (mut known, guids) = FilledImage::chain(mode, format, 3);
        for guid in [guids[1], guids[0], guids[2], guids[2]] {
            let old_top = known.file_of(Guid::TOP);
            known.switch(guid);
            assert!(!old_top.exists());
            assert_eq!(known.descriptor().parent(Guid::TOP), Some(guid));
            known.verify();
            known.write([(3, guid.as_uuid().as_u128() as u64 >> 40), (9, 77)]);
            known.verify();
        }
        assert_eq!(known.names().len(), 5);
    }
}

#[test]
fn new_deltas_of_version_2_need_a_driver() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V2, 2);
    assert_eq!(known.ploop.image_info().unwrap().version, 2);
    if known.can_have_deltas() {
        known.snapshot();
        known.switch(guids[0]);
        known.verify();
        return;
    }
    let names = known.names();
    let text = fs::read(known.xml()).unwrap();
    for error in [
        known.ploop.snapshot().unwrap_err(),
        known.ploop.switch_snapshot(guids[0]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(
            error.advice().unwrap_or_default().contains("driver"),
            "{error}"
        );
    }
    assert_eq!(known.names(), names);
    assert_eq!(fs::read(known.xml()).unwrap(), text);
    known.verify();
    // No new delta is needed for this.
    let kept = known
        .ploop
        .switch_snapshot_with(guids[1], SwitchFlag::SKIP_CREATE);
    assert_eq!(kept.unwrap(), None);
    known.went_back_to(guids[1]);
    known.states.remove(&guids[1]);
    known.verify();
}

/// goploop loses the GUID of the delta that is kept.
#[test]
fn the_old_top_can_be_kept_under_a_new_guid() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let old_top = known.file_of(Guid::TOP);
    let kept = known
        .ploop
        .switch_snapshot_with(guids[0], SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .expect("the kept delta has a name");
    known.took(kept);
    known.went_back_to(guids[0]);
    known.verify();
    assert_eq!(known.file_of(kept), old_top);
    assert_eq!(known.descriptor().parent(kept), Some(guids[1]));
    known.write([(4, 900)]);
    let again = known
        .ploop
        .switch_snapshot_with(kept, SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    assert_ne!(again, kept);
    known.took(again);
    known.went_back_to(kept);
    known.verify();
    known.ploop.delete_snapshot(again).unwrap();
    known.states.remove(&again);
    known.verify();
}

#[test]
fn a_snapshot_itself_can_become_the_top() {
    for (mode, format) in ALL {
        let (mut known, guids) = FilledImage::chain(mode, format, 2);
        let old_top = known.file_of(Guid::TOP);
        let file = known.file_of(guids[1]);
        let kept = known
            .ploop
            .switch_snapshot_with(guids[1], SwitchFlag::SKIP_CREATE)
            .unwrap();
        assert_eq!(kept, None);
        known.went_back_to(guids[1]);
        known.states.remove(&guids[1]);
        known.verify();
        assert!(!old_top.exists());
        assert_eq!(known.file_of(Guid::TOP), file);
        known.write([(3, 500)]);
        known.verify();
        // Down to the base, so that nothing else is left.
        known
            .ploop
            .switch_snapshot_with(guids[0], SwitchFlag::SKIP_CREATE)
            .unwrap();
        known.went_back_to(guids[0]);
        known.states.remove(&guids[0]);
        known.verify();
        assert_eq!(known.names(), ["DiskDescriptor.xml", "root.hds"]);
    }
}

/// The pattern of a program that restores several disks together.
#[test]
fn a_switch_can_be_undone() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let before = known.states[&Guid::TOP].clone();
    let kept = known
        .ploop
        .switch_snapshot_with(guids[0], SwitchFlag::SKIP_DESTROY)
        .unwrap()
        .unwrap();
    known.took(kept);
    known.went_back_to(guids[0]);
    known.verify();
    known
        .ploop
        .switch_snapshot_with(kept, SwitchFlag::SKIP_CREATE)
        .unwrap();
    known.went_back_to(kept);
    known.states.remove(&kept);
    assert_eq!(known.states[&Guid::TOP], before);
    known.verify();
}

#[test]
fn flags_that_contradict_each_other_change_nothing() {
    let (mut known, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let text = fs::read(known.xml()).unwrap();
    for flags in [
        SwitchFlag::SKIP_CREATE | SwitchFlag::SKIP_DESTROY,
        SwitchFlag::from_bits_retain(1 << 20),
    ] {
        known
            .ploop
            .switch_snapshot_with(guids[0], flags)
            .unwrap_err();
    }
    // As the top it would change what its other child reads.
    known.switch(guids[0]);
    let side = known.snapshot();
    known.switch(guids[0]);
    refused(
        known
            .ploop
            .switch_snapshot_with(guids[0], SwitchFlag::SKIP_CREATE),
        ErrorKind::InvalidInput,
    );
    known.verify();
    assert_ne!(fs::read(known.xml()).unwrap(), text);
    known.switch(side);
    known.verify();
}

/// Another handle, and another descriptor of the same name, see what happened.
#[test]
fn handles_see_each_others_changes() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    let mut other = Ploop::open(known.xml()).unwrap();
    known.write([(1, 1)]);
    let guid = other.snapshot().unwrap();
    known.took(guid);
    known.verify();
    assert_eq!(
        known.ploop.top_delta_file().unwrap(),
        other.top_delta_file().unwrap()
    );
    assert_eq!(
        known.ploop.descriptor().unwrap(),
        other.descriptor().unwrap()
    );
    known.switch(guid);
    assert_eq!(
        known.ploop.top_delta_file().unwrap(),
        other.top_delta_file().unwrap()
    );
}

#[test]
fn a_switch_removes_the_note_of_the_file_system() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    let guid = known.snapshot();
    fs::write(known.path(".statfs"), [0; 40]).unwrap();
    known.switch(guid);
    assert!(!known.path(".statfs").exists());
}
