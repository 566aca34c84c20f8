//! Snapshots that a merge has partly overwritten.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::ffi::LINE;
use crate::image::recovery::merge::{MergeRecord, mark_lost_snapshots, merged};
use crate::{
    CreateParam, Descriptor, Guid, ImageMode, MergeParam, MergeTarget, Ploop, Size, SwitchFlag,
    paths,
};

/// An image with two snapshots, and the descriptor that an operation on it would have put in place.
fn cut_before_rename(change: impl Fn(&mut Ploop, [Guid; 2])) -> (tempfile::TempDir, Descriptor) {
    cut_before_rename_of(ImageMode::Expanded, change)
}

fn cut_before_rename_of(
    mode: ImageMode,
    change: impl Fn(&mut Ploop, [Guid; 2]),
) -> (tempfile::TempDir, Descriptor) {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("root.hds");
    let param = CreateParam::new(&base, Size::from_mib(10)).fs(None);
    let mut image = Ploop::create(&param.mode(mode)).unwrap();
    let guids = [(); 2].map(|()| image.snapshot().unwrap());
    let before = image.descriptor().unwrap();
    let files: Vec<_> = before.images.iter().map(|image| &image.file).collect();
    let kept: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let text = fs::read(image.path()).unwrap();
    change(&mut image, guids);
    fs::rename(image.path(), paths::staged(image.path())).unwrap();
    fs::write(image.path(), text).unwrap();
    for (file, bytes) in files.iter().zip(kept) {
        fs::write(file, bytes).unwrap();
        set_times(file, SystemTime::now() - Duration::from_secs(10));
    }
    (directory, before)
}

fn set_times(file: &Path, time: SystemTime) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(time).unwrap();
}

fn mark_lost_snapshots_in(directory: &Path, before: &Descriptor) -> (bool, Descriptor) {
    let path = directory.join("DiskDescriptor.xml");
    let marked = mark_lost_snapshots(&[], "test", &path, before, &LINE.descriptor).unwrap();
    assert_eq!(paths::staged(&path).exists(), !marked);
    assert!(!paths::merge_record(&path).exists());
    (marked, Descriptor::open(&path).unwrap())
}

#[test]
fn a_snapshot_that_was_merged_into_is_temporary() {
    for evidence in ["record", "mark", "time"] {
        let (directory, before) = cut_before_rename(|image, [guid, _]| {
            image.delete_snapshot(guid).unwrap();
        });
        let base = &before.base().unwrap().file;
        // Before anything was written, it is as it was.
        assert_eq!(
            mark_lost_snapshots_in(directory.path(), &before),
            (false, before.clone())
        );
        match evidence {
            "record" => {
                let path = directory.path().join("DiskDescriptor.xml");
                let base = [before.base().unwrap().guid];
                MergeRecord::make("test", &path, &before, &base).unwrap();
                let base = &before.base().unwrap().file;
                // Written to afterwards.
                set_times(base, SystemTime::now() - Duration::from_secs(10));
            }
            "mark" => {
                let file = File::options().write(true).open(base).unwrap();
                let mark = 0x746F_6E59u32.to_le_bytes();
                file.write_all_at(&mark, 44).unwrap();
                set_times(base, SystemTime::now() - Duration::from_secs(10));
            }
            _ => set_times(base, SystemTime::now() + Duration::from_secs(10)),
        }
        let (marked, now) = mark_lost_snapshots_in(directory.path(), &before);
        let mut expected = before.clone();
        expected.snapshots[0].temporary = true;
        assert!(marked);
        assert_eq!(now, expected);
    }
}

#[test]
fn a_delta_that_was_not_written_to_keeps_its_state() {
    let (directory, before) = cut_before_rename(|image, [guid, _]| {
        image.delete_snapshot(guid).unwrap();
    });
    let base = [before.base().unwrap().guid];
    let path = directory.path().join("DiskDescriptor.xml");
    // Times come and go by steps of some milliseconds.
    std::thread::sleep(Duration::from_millis(150));
    MergeRecord::make("test", &path, &before, &base).unwrap();
    let record = fs::read_to_string(paths::merge_record(&path)).unwrap();
    assert_eq!(record.split(' ').count(), 2, "{record:?}");
    assert_eq!(
        mark_lost_snapshots_in(directory.path(), &before),
        (false, before.clone())
    );
    // As after another start of the system, or another mount: then nothing proves it.
    let staged = fs::read(paths::staged(&path)).unwrap();
    for (old, new) in [(&record[..1], "x"), (" ", "0 ")] {
        let other = record.replacen(old, new, 1);
        fs::write(paths::merge_record(&path), other).unwrap();
        fs::write(paths::staged(&path), &staged).unwrap();
        assert!(mark_lost_snapshots_in(directory.path(), &before).0);
    }
}

/// libploop fails before it stages the new descriptor, so it has not written to the delta.
#[test]
fn a_merge_that_failed_at_once_has_written_nothing() {
    let (directory, before) = cut_before_rename(|image, [guid, _]| {
        image.delete_snapshot(guid).unwrap();
    });
    let path = directory.path().join("DiskDescriptor.xml");
    let base = before.base().unwrap();
    fs::remove_file(paths::staged(&path)).unwrap();
    set_times(&base.file, SystemTime::now());
    MergeRecord::make("test", &path, &before, &[base.guid]).unwrap();
    assert!(!mark_lost_snapshots(&[], "test", &path, &before, &LINE.descriptor).unwrap());
    assert_eq!(Descriptor::open(&path).unwrap(), before);
}

/// A raw base is written to without a sync: its data may be on the disk, and neither its time nor the name of the
/// staged descriptor.
#[test]
fn a_power_cut_may_leave_the_record_alone() {
    for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
        for levels in [1, 2] {
            let (directory, before) = cut_before_rename_of(mode, |_, _| {});
            let path = directory.path().join("DiskDescriptor.xml");
            fs::rename(paths::staged(&path), paths::being_staged(&path)).unwrap();
            let chain = before.chain(before.top);
            let chain: Vec<Guid> = chain.iter().map(|image| image.guid).collect();
            MergeRecord::make("test", &path, &before, &chain[..levels]).unwrap();
            let record = fs::read_to_string(paths::merge_record(&path)).unwrap();
            fs::write(paths::merge_record(&path), format!("x{record}")).unwrap();
            assert!(mark_lost_snapshots_in(directory.path(), &before).0);
            let mut expected = before.clone();
            for snapshot in &mut expected.snapshots {
                snapshot.temporary = chain[..levels].contains(&snapshot.guid);
            }
            assert_eq!(Descriptor::open(&path).unwrap(), expected);
            // The next change finishes the merge.
            let mut image = Ploop::open(&path).unwrap();
            let added = image.snapshot().unwrap();
            let now = image.descriptor().unwrap();
            let left: Vec<Guid> = now.chain(added).iter().map(|it| it.guid).collect();
            assert!(
                chain[..levels].iter().all(|guid| !left.contains(guid)),
                "{mode} {levels}"
            );
        }
    }
}

#[test]
fn a_record_that_is_not_complete_or_no_longer_true_is_removed() {
    let (directory, before) = cut_before_rename(|_, _| {});
    let path = directory.path().join("DiskDescriptor.xml");
    fs::remove_file(paths::staged(&path)).unwrap();
    let base = before.base().unwrap().guid;
    let (top, gone) = (before.top, Guid::generate());
    for text in [
        String::new(),
        "x:1 ".into(),
        format!("x:1 \n{}", &base.to_string()[..20]),
        format!("x:1 \n{gone}\n"),
        format!("x:1 \n{top}\n"),
    ] {
        fs::write(paths::merge_record(&path), &text).unwrap();
        assert!(
            !mark_lost_snapshots(&[], "test", &path, &before, &LINE.descriptor).unwrap(),
            "{text}"
        );
        assert!(!paths::merge_record(&path).exists());
    }
    assert_eq!(Descriptor::open(&path).unwrap(), before);
}

/// What is between reads through the lowest.
#[test]
fn all_that_a_merge_would_have_removed_are_temporary() {
    let (directory, before) = cut_before_rename(|image, _| {
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
    });
    let path = directory.path().join("DiskDescriptor.xml");
    let all = before.chain(before.top);
    let below: Vec<Guid> = all[..all.len() - 1].iter().map(|it| it.guid).collect();
    MergeRecord::make("test", &path, &before, &below).unwrap();
    set_times(&all[0].file, SystemTime::now());
    let (marked, now) = mark_lost_snapshots_in(directory.path(), &before);
    assert!(marked);
    let temporary = now.snapshots.iter().filter(|it| it.temporary);
    let temporary: Vec<Guid> = temporary.map(|it| it.guid).collect();
    assert_eq!((temporary.len(), temporary), (2, below));
}

#[test]
fn going_back_to_a_snapshot_is_no_merge() {
    let (directory, before) = cut_before_rename(|image, [_, guid]| {
        let flags = SwitchFlag::SKIP_CREATE;
        image.switch_snapshot_with(guid, flags).unwrap();
    });
    let new = paths::staged(&directory.path().join("DiskDescriptor.xml"));
    let new = Descriptor::open(new).unwrap();
    let below = before.parent(before.top).unwrap();
    assert_eq!(merged(&before, &new), [before.image(below).unwrap()]);
    assert_eq!(
        mark_lost_snapshots_in(directory.path(), &before),
        (false, before)
    );
}
