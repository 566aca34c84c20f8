//! GUIDs and the snapshot tree.

use std::fs;
use std::path::Path;

use ploop::image::Header;
use ploop::{ErrorKind, Guid, MergeParam, MergeTarget, Ploop, Size, SwitchFlag, sys};

use crate::fixture::child::child;
use crate::fixture::directory::Contents;
use crate::fixture::disk::{self, Immutable};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::descriptor_text;
use crate::fixture::raw;
use crate::fixture::refused::refused;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[Need::Root] =>
            h0_14_h4_28_the_top_in_upper_case,
            h0_14_h4_28_a_descriptor_in_upper_case,
            h0_15_h4_27_two_deltas_are_the_top,
            h0_10_a_failure_leaves_no_temporary_files,
            ha_9_a_failed_merge_leaves_the_delta_in_use,
            ha_25_a_file_is_named_twice,
            ha_55_two_images_have_one_base;
        &[Need::Root, Need::ImmutableFiles] =>
            ha_20_a_delta_that_cannot_be_removed;
    ]
}

/// "Is this the top?" is asked with regard to case, and look-ups without: switching to the top in
/// upper case deletes it. The crate's GUIDs have one spelling.
fn h0_14_h4_28_the_top_in_upper_case() {
    child("raw", |dir| {
        let (image, _) = disk::with_snapshots(dir, 1);
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
            let error = refused(
                image.switch_snapshot_with(upper, flags),
                ErrorKind::InvalidInput,
            );
            assert!(error.message().contains("top"), "{error}");
        }
        before.assert_unchanged("switch to the top");
    })
    .succeeded();
}

/// As above, where the descriptor has the other spelling: the crate rewrites it first.
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
            let written = fs::read(disk::descriptor(&dir)).unwrap();
            assert_eq!(image.descriptor().unwrap().top, Guid::TOP);
            image.image_info().unwrap();
            assert_eq!(fs::read(disk::descriptor(&dir)).unwrap(), written);
            // Whatever libploop compares, it finds one spelling.
            image.switch_snapshot(guids[0]).unwrap();
            let text = fs::read_to_string(disk::descriptor(&dir)).unwrap();
            assert_eq!(descriptor_text(&image.descriptor().unwrap(), &dir), text);
            assert!(
                !text.contains(&guid.to_uppercase()) && !text.contains(&disk::TOP.to_uppercase())
            );
            image.delete_snapshot(guids[0]).unwrap();
            assert_eq!(image.descriptor().unwrap().images.len(), 1);
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
        refused(
            image.switch_snapshot_with(guids[0], both),
            ErrorKind::InvalidInput,
        );
    })
    .succeeded();
}

/// An image whose top delta names a cluster far beyond its file, which libploop finds when it merges.
fn break_table(dir: &Path) -> (Ploop, Guid) {
    let (image, guids) = disk::with_snapshots(dir, 1);
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
/// or mounted. The crate finds the fault before anything is marked.
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
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(!Header::read(dir.join("root.hds")).unwrap().in_use);
        }
        image.switch_snapshot(guid).unwrap();
    })
    .succeeded();
}

/// Where the kernel refuses to remove a delta, here since it is immutable, libploop has written the
/// descriptor without it already; after a switch it returns 0. The crate puts the descriptor back.
fn ha_20_a_delta_that_cannot_be_removed() {
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "DiskDescriptor.xml.lck")
            .collect();
        names.sort();
        names
    };
    child("raw", |dir| {
        let calls: [fn(&raw::Handle, &str) -> i32; 3] = [
            |handle, _| handle.delete(disk::TOP),
            |handle, guid| handle.switch(guid, 0),
            |handle, guid| handle.switch(guid, sys::PLOOP_SNAP_SKIP_TOPDELTA_CREATE),
        ];
        for (number, call) in calls.into_iter().enumerate() {
            let dir = dir.join(number.to_string());
            fs::create_dir(&dir).unwrap();
            let (image, guids) = disk::with_snapshots(&dir, 1);
            let top = image.top_delta_file().unwrap();
            let _held = Immutable::make(&top).unwrap();
            let code = call(
                &raw::Handle::open(&disk::descriptor(&dir)),
                &guids[0].to_string(),
            );
            assert_eq!(code, if number == 0 { sys::SYSEXIT_UNLINK } else { 0 });
            assert!(top.exists());
            let images = image.descriptor().unwrap().images;
            assert!(images.iter().all(|image| image.file != top), "{number}");
        }
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guids) = disk::with_snapshots(dir, 2);
        let top = image.top_delta_file().unwrap();
        disk::write_first_cluster(&top, 7);
        let held = Immutable::make(&top).unwrap();
        let descriptor = fs::read(disk::descriptor(dir)).unwrap();
        let before = names(dir);
        for (error, code) in [
            (image.delete_top_delta(), Some(sys::SYSEXIT_UNLINK)),
            (image.delete_snapshot(Guid::TOP), Some(sys::SYSEXIT_UNLINK)),
            (image.switch_snapshot(guids[0]), None),
            (
                image
                    .switch_snapshot_with(guids[1], SwitchFlag::SKIP_CREATE)
                    .map(drop),
                None,
            ),
        ] {
            let error = refused(error, ErrorKind::PermissionDenied);
            assert_eq!(error.code(), code, "{error}");
            assert_eq!(error.path(), Some(top.as_path()));
            assert!(error.message().contains("as it was"), "{error}");
            assert_eq!(fs::read(disk::descriptor(dir)).unwrap(), descriptor);
            assert_eq!(names(dir), before);
        }
        assert_eq!(image.top_delta_file().unwrap(), top);
        assert_eq!(disk::first_byte(&top), Some(7));
        drop(held);
        image.switch_snapshot(guids[0]).unwrap();
        assert!(!top.exists());
        let new = image.top_delta_file().unwrap();
        let snapshots = image.descriptor().unwrap().snapshots.len();
        // A leaf that is not the top: the snapshot that was switched away from.
        let leaf = image
            .descriptor()
            .unwrap()
            .image(guids[1])
            .unwrap()
            .file
            .clone();
        let held = Immutable::make(&leaf).unwrap();
        let descriptor = fs::read(disk::descriptor(dir)).unwrap();
        refused(image.delete_snapshot(guids[1]), ErrorKind::PermissionDenied);
        assert_eq!(fs::read(disk::descriptor(dir)).unwrap(), descriptor);
        drop(held);
        image.delete_snapshot(guids[1]).unwrap();
        assert_eq!(image.descriptor().unwrap().snapshots.len(), snapshots - 1);
        assert!(new.exists() && !leaf.exists());
    })
    .succeeded();
}

/// A merge reads one and writes to the other, and removes the first; removing the top leaves the base. Both
/// are the same file here, by one name or by two. The crate compares files.
fn ha_25_a_file_is_named_twice() {
    let twice = |dir: &Path, name: &str| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        let top = image.top_delta_file().unwrap();
        fs::remove_file(&top).unwrap();
        match name {
            "a hard link" => fs::hard_link(dir.join("root.hds"), &top).unwrap(),
            "a symbolic link" => std::os::unix::fs::symlink("root.hds", &top).unwrap(),
            _ => disk::edit(dir, |text| {
                let top = top.file_name().unwrap().to_str().unwrap().to_owned();
                text.replace(&top, "root.hds")
            }),
        }
        (image, guids[0])
    };
    child("raw", |dir| {
        twice(dir, "one name");
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.delete(disk::TOP), 0);
        assert!(!dir.join("root.hds").exists());
    })
    .succeeded();
    child("safe", |dir| {
        for name in ["one name", "a hard link", "a symbolic link"] {
            let dir = dir.join(name.replace(' ', "-"));
            fs::create_dir(&dir).unwrap();
            let (mut image, base) = twice(&dir, name);
            let before = Contents::of(&dir);
            let refused = [
                image.delete_top_delta().err(),
                image.delete_snapshot(base).err(),
                image.merge(&MergeParam::new(MergeTarget::Top)).err(),
                image.merge(&MergeParam::new(MergeTarget::All)).err(),
                image.switch_snapshot(base).err(),
                image.snapshot().err(),
                image.convert(ploop::ImageMode::Raw).err(),
                image.set_max_delta_size(Size::from_sectors(1 << 30)).err(),
            ];
            for error in refused {
                let error = error.unwrap_or_else(|| panic!("{name}: a success"));
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
                assert!(error.message().contains("one file"), "{name}: {error}");
            }
            before.assert_unchanged(name);
        }
    })
    .succeeded();
}

/// By hard links, as of a linked clone. A merge into the base changes what the other image reads. It is refused
/// as long as the file has two names; what does not write to it is done.
fn ha_55_two_images_have_one_base() {
    let two = |dir: &Path| {
        let (one, other) = (dir.join("one"), dir.join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let (image, guids) = disk::with_snapshots(&one, 1);
        let base = one.join("root.hds");
        disk::write_first_cluster(&base, 1);
        for entry in fs::read_dir(&one).unwrap() {
            let entry = entry.unwrap();
            if entry.path() != base {
                fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
            }
        }
        fs::hard_link(&base, other.join("root.hds")).unwrap();
        disk::write_first_cluster(&image.top_delta_file().unwrap(), 2);
        (image, guids[0], other)
    };
    child("raw", |dir| {
        let (_, base, other) = two(dir);
        let handle = raw::Handle::open(&disk::descriptor(&dir.join("one")));
        assert_eq!(handle.delete(&base.to_string()), 0);
        assert_eq!(disk::first_byte(&other.join("root.hds")), Some(2));
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, base, other) = two(dir);
        let before = Contents::of(&other);
        for error in [
            image.delete_snapshot(base).err(),
            image.merge(&MergeParam::new(MergeTarget::Top)).err(),
            image.merge(&MergeParam::new(MergeTarget::All)).err(),
        ] {
            let error = error.unwrap();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("2 names"), "{error}");
        }
        let second = image.snapshot().unwrap();
        image.delete_snapshot(second).unwrap();
        let new = MergeParam::new(MergeTarget::All).new_delta(dir.join("one/new.hds"));
        image.merge(&new).unwrap();
        assert_eq!(disk::first_byte(&dir.join("one/new.hds")), Some(2));
        before.assert_unchanged("the other image");
    })
    .succeeded();
}
