//! GUIDs and the snapshot tree.

use std::fs;
use std::path::Path;

use ploop::image::Header;
use ploop::{ErrorKind, Guid, MergeParam, MergeTarget, Ploop, SwitchFlag, sys};

use crate::fixture::child::child;
use crate::fixture::directory::Contents;
use crate::fixture::disk;
use crate::fixture::harness::{Need, Test};
use crate::fixture::raw;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Root] =>
            h0_14_h4_28_the_top_in_upper_case,
            h0_14_h4_28_a_descriptor_in_upper_case,
            h0_15_h4_27_two_deltas_are_the_top,
            h0_10_a_failure_leaves_no_temporary_files,
            ha_9_a_failed_merge_leaves_the_delta_in_use;
    ]
}

/// "Is this the top?" is asked with regard to case, and look-ups without: switching to the top in
/// upper case deletes it. The crate's GUIDs have one spelling.
fn h0_14_h4_28_the_top_in_upper_case() {
    child("raw", |dir| {
        let (mut image, _) = disk::with_snapshots(dir, 1);
        let top = image.top_delta_file().unwrap();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.switch(&disk::TOP.to_uppercase(), 0), 0);
        assert!(!top.exists());
        image.descriptor().unwrap_err();
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, _) = disk::with_snapshots(dir, 1);
        let upper: Guid = disk::TOP.to_uppercase().parse().unwrap();
        assert_eq!(upper, Guid::TOP);
        assert_eq!(upper.to_string(), disk::TOP);
        let before = Contents::of(dir);
        for flags in [
            SwitchFlag::empty(),
            SwitchFlag::SKIP_CREATE,
            SwitchFlag::SKIP_DESTROY,
        ] {
            let error = image.switch_snapshot_with(upper, flags).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.message().contains("top"), "{error}");
        }
        before.assert_unchanged("switch to the top");
    })
    .succeeded();
}

/// As above, where the descriptor has the other spelling. The crate does not change such an image.
fn h0_14_h4_28_a_descriptor_in_upper_case() {
    child("safe", |dir| {
        for in_tree_alone in [false, true] {
            let dir = dir.join(in_tree_alone.to_string());
            fs::create_dir(&dir).unwrap();
            let (mut image, guids) = disk::with_snapshots(&dir, 1);
            let guid = guids[0].to_string();
            disk::edit(&dir, |text| match in_tree_alone {
                true => text.replace(
                    &format!("<ParentGUID>{guid}"),
                    &format!("<ParentGUID>{}", guid.to_uppercase()),
                ),
                false => text.replace(disk::TOP, &disk::TOP.to_uppercase()),
            });
            let before = Contents::of(&dir);
            for error in [
                image.switch_snapshot(guids[0]).unwrap_err(),
                image.delete_top_delta().unwrap_err(),
                image.delete_snapshot(guids[0]).unwrap_err(),
                image.snapshot().unwrap_err(),
                image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.message().contains("lower case"), "{error}");
            }
            before.assert_unchanged("changes");
            // It can be read.
            assert_eq!(image.descriptor().unwrap().top, Guid::TOP);
        }
    })
    .succeeded();
}

/// Keeping the old top without a name for it leaves two entries with the top's GUID. The crate always
/// gives it one, and returns it.
fn h0_15_h4_27_two_deltas_are_the_top() {
    child("raw", |dir| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        image.close();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let flags = sys::PLOOP_SNAP_SKIP_TOPDELTA_DESTROY;
        assert_eq!(handle.switch(&guids[0].to_string(), flags), 0);
        let text = fs::read_to_string(disk::descriptor(dir)).unwrap();
        let entries = text.matches(&format!("<GUID>{}</GUID>", disk::TOP)).count();
        assert_eq!(entries, 4, "two images and two shots: {text}");
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guids) = disk::with_snapshots(dir, 1);
        let old_top = image.top_delta_file().unwrap();
        disk::write_first_cluster(&old_top, 7);
        let kept = image
            .switch_snapshot_with(guids[0], SwitchFlag::SKIP_DESTROY)
            .unwrap()
            .unwrap();
        let descriptor = image.descriptor().unwrap();
        assert_eq!(descriptor.image(kept).unwrap().file, old_top);
        assert_eq!(disk::first_byte(&old_top), Some(7));
        assert_eq!(descriptor.snapshots.len(), 3);
        assert_ne!(image.top_delta_file().unwrap(), old_top);
        // Without the flag nothing is kept.
        let (mut image, guids) = {
            let dir = dir.join("other");
            fs::create_dir(&dir).unwrap();
            disk::with_snapshots(&dir, 1)
        };
        let nothing = image.switch_snapshot_with(guids[0], SwitchFlag::empty());
        assert_eq!(nothing.unwrap(), None);
        // Both flags contradict each other; C would destroy.
        let both = SwitchFlag::SKIP_DESTROY | SwitchFlag::SKIP_CREATE;
        let error = image.switch_snapshot_with(guids[0], both).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    })
    .succeeded();
}

/// An image whose top delta names a cluster far beyond its file, which libploop finds when it merges.
fn break_table(dir: &Path) -> (Ploop, Guid) {
    let (mut image, guids) = disk::with_snapshots(dir, 1);
    let top = image.top_delta_file().unwrap();
    disk::write_first_cluster(&top, 7);
    disk::write_header(&top, 64, 128 * 4000);
    (image, guids[0])
}

/// A merge that fails leaves its temporary descriptor behind. The crate removes what was not there
/// before.
fn h0_10_a_failure_leaves_no_temporary_files() {
    child("raw", |dir| {
        break_table(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_ne!(handle.merge(None, None, None), 0);
        assert!(dir.join("DiskDescriptor.xml.tmp").exists());
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guid) = break_table(dir);
        let new = dir.join("new.hds");
        let before = Contents::of(dir);
        image
            .merge(&MergeParam::new(MergeTarget::Top).new_delta(&new))
            .unwrap_err();
        before.assert_unchanged("merge to a new delta");
        image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err();
        image.delete_snapshot(guid).unwrap_err();
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| name.ends_with(".tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(image.descriptor().unwrap().snapshots.len(), 2);
    })
    .succeeded();
}

/// A merge that fails leaves the lower delta marked as in use, and the image can no longer be switched
/// or mounted. The crate takes the mark off.
fn ha_9_a_failed_merge_leaves_the_delta_in_use() {
    child("raw", |dir| {
        let (_, guid) = break_table(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_ne!(handle.merge(None, None, None), 0);
        assert!(Header::read(dir.join("root.hds")).unwrap().in_use);
        assert_ne!(handle.switch(&guid.to_string(), 0), 0);
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guid) = break_table(dir);
        for error in [
            image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
            image.delete_snapshot(guid).unwrap_err(),
        ] {
            assert!(error.code().is_some(), "{error}");
            assert!(!Header::read(dir.join("root.hds")).unwrap().in_use);
        }
        image.switch_snapshot(guid).unwrap();
    })
    .succeeded();
}
