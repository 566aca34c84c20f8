//! Snapshots that a merge has partly overwritten.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::ffi::descriptor_form;
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
    let marked = mark_lost_snapshots(&[], "test", &path, before, descriptor_form()).unwrap();
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
                MergeRecord::make("test", &path, &before, &base, false).unwrap();
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
    MergeRecord::make("test", &path, &before, &base, false).unwrap();
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
    MergeRecord::make("test", &path, &before, &[base.guid], false).unwrap();
    assert!(!mark_lost_snapshots(&[], "test", &path, &before, descriptor_form()).unwrap());
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
            MergeRecord::make("test", &path, &before, &chain[..levels], false).unwrap();
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
            !mark_lost_snapshots(&[], "test", &path, &before, descriptor_form()).unwrap(),
            "{text}"
        );
        assert!(!paths::merge_record(&path).exists());
    }
    assert_eq!(Descriptor::open(&path).unwrap(), before);
}

/// Marks these snapshots temporary, as libploop 7 does before it merges.
fn mark(path: &Path, before: &Descriptor, guids: &[Guid]) -> Descriptor {
    let mut marked = before.clone();
    for snapshot in &mut marked.snapshots {
        snapshot.temporary |= guids.contains(&snapshot.guid);
    }
    let text = marked.to_xml(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    marked
}

#[test]
fn a_mark_of_a_merge_that_has_written_nothing_is_taken_off() {
    for (to_new_file, lowest_changes) in [(false, false), (true, false), (true, true)] {
        let (directory, before) = cut_before_rename(|_, _| {});
        let path = directory.path().join("DiskDescriptor.xml");
        fs::remove_file(paths::staged(&path)).unwrap();
        let chain = before.chain(before.top);
        let [lowest, upper] = [chain[0].guid, chain[1].guid];
        // That one was before.
        let before = mark(&path, &before, &[upper]);
        std::thread::sleep(Duration::from_millis(150));
        MergeRecord::make("test", &path, &before, &[lowest, upper], to_new_file).unwrap();
        let now = mark(&path, &before, &[lowest]);
        if lowest_changes {
            set_times(&chain[0].file, SystemTime::now());
        }
        assert!(mark_lost_snapshots(&[], "test", &path, &now, descriptor_form()).unwrap());
        assert_eq!(Descriptor::open(&path).unwrap(), before);
        assert!(!paths::merge_record(&path).exists());
    }
    // A record that was cut in its last line is of a merge that had not begun.
    let (directory, before) = cut_before_rename(|_, _| {});
    let path = directory.path().join("DiskDescriptor.xml");
    let base = before.base().unwrap().guid;
    let before = mark(&path, &before, &[base]);
    fs::write(paths::merge_record(&path), format!("x:1 \n{base}")).unwrap();
    mark_lost_snapshots(&[], "test", &path, &before, descriptor_form()).unwrap();
    assert_eq!(Descriptor::open(&path).unwrap(), before);
}

/// Where libploop has no ranges: the first two of three were merged, and the program was killed.
#[test]
fn what_a_merge_in_steps_has_not_done_is_done_by_the_next_change() {
    for to_new_file in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("root.hds");
        let param = CreateParam::new(&base, Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        let guids = [(); 2].map(|()| image.snapshot().unwrap());
        let kept = image.snapshot().unwrap();
        let before = image.descriptor().unwrap();
        let path = image.path().to_owned();
        let mut step = MergeParam::new(MergeTarget::Snapshot(guids[1]));
        if to_new_file {
            step = step.new_delta(directory.path().join("merged"));
        }
        image.merge(&step).unwrap();
        MergeRecord::make("test", &path, &before, &guids, to_new_file).unwrap();
        let now = image.descriptor().unwrap();
        // The first is gone, and so the second is the lowest.
        assert!(mark_lost_snapshots(&[], "test", &path, &now, descriptor_form()).unwrap());
        let marked = image.descriptor().unwrap();
        let temporary = marked.snapshots.iter().filter(|it| it.temporary);
        assert_eq!(temporary.map(|it| it.guid).collect::<Vec<_>>(), [guids[1]]);
        let top = image.snapshot().unwrap();
        let now = image.descriptor().unwrap();
        let left: Vec<Guid> = now.chain(now.top).iter().map(|it| it.guid).collect();
        assert_eq!(left, [kept, top, now.top]);
        let file = if to_new_file { "merged" } else { "root.hds" };
        assert!(now.image(kept).unwrap().file.ends_with(file));
    }
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
    MergeRecord::make("test", &path, &before, &below, false).unwrap();
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
