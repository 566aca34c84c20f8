//! Images that somebody else has: locked, marked as in use, of another kind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ploop::image::{CompactOptions, DiskWriter, Header, Issue, OfflineImage, RepairOptions};
use ploop::{
    ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, Ploop, Result, Size,
    SnapshotParam,
};

use super::filled_image::FilledImage;

/// All operations that change the image, each of which must be refused in the same way.
fn all_are_refused(filled: &FilledImage, kind: ErrorKind) {
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    image.set_lock_timeout(Some(Duration::from_millis(50)));
    let guid = filled.descriptor().base().unwrap().guid;
    let before: Vec<Vec<u8>> = files(filled);
    type Operation = fn(&mut OfflineImage, Guid) -> Result<()>;
    let operations: [Operation; 10] = [
        |image, _| image.snapshot().map(drop),
        |image, guid| image.switch_snapshot(guid),
        |image, guid| image.delete_snapshot(guid, |_| {}),
        |image, _| image.delete_top_delta(),
        |image, _| image.merge(&MergeParam::new(MergeTarget::All), |_| {}),
        |image, _| image.grow(Size::from_gib(1)),
        |image, _| image.convert(ImageMode::Raw, |_| {}),
        |image, _| image.upgrade(),
        |image, _| image.compact(&CompactOptions::new(), |_| {}).map(drop),
        |image, _| {
            let options = CompactOptions::new().dry_run(true);
            image.compact(&options, |_| {}).map(drop)
        },
    ];
    for (number, operation) in operations.iter().enumerate() {
        let error = operation(&mut image, guid).unwrap_err();
        assert_eq!(error.kind(), kind, "{number}: {error}");
    }
    assert!(files(filled) == before);
}

/// The files of an image, in the order of their names.
fn files(filled: &FilledImage) -> Vec<Vec<u8>> {
    let files = names_of_files(filled).into_iter();
    files
        .map(|name| fs::read(filled.path(&name)).unwrap())
        .collect()
}

fn names_of_files(filled: &FilledImage) -> Vec<String> {
    let mut names = filled.names();
    names.retain(|name| filled.path(name).is_file());
    names
}

/// `flock` of util-linux, which holds the lock until it is killed.
struct Holder(Child);

impl Holder {
    fn of(filled: &FilledImage) -> Holder {
        let lock = filled.path("DiskDescriptor.xml.lck");
        File::create(&lock).unwrap();
        let ready = filled.path("ready");
        let child = Command::new("flock")
            .arg("--no-fork")
            .arg(&lock)
            .args([
                "sh",
                "-c",
                &format!("touch {} && exec sleep 60", ready.display()),
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while !ready.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(ready).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_another_program_has_locked() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let mut holder = Command::new("flock");
    holder.arg("--version").stdout(Stdio::null());
    assert!(holder.status().is_ok(), "util-linux is installed");
    let holder = Holder::of(&filled);
    all_are_refused(&filled, ErrorKind::Locked);
    drop(holder);
    OfflineImage::open(filled.xml())
        .unwrap()
        .snapshot()
        .unwrap();
}

#[test]
fn an_image_that_is_marked_as_in_use() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let top = filled.file_of(Guid::TOP);
    let file = File::options().write(true).open(&top).unwrap();
    file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
        .unwrap();
    all_are_refused(&filled, ErrorKind::Busy);
    // What the check and the refusal say of the mark is so: a change does not clear it, and these do.
    let report = ploop::image::check(filled.xml());
    let mut said = report.findings.iter().filter(|it| it.issue == Issue::InUse);
    let said = said.next().unwrap().message.clone();
    let refused = OfflineImage::open(filled.xml()).unwrap().snapshot();
    for said in [said, refused.unwrap_err().message().to_owned()] {
        for way in [
            "OfflineImage::clear_in_use_marks or repair",
            "ploop-image repair",
        ] {
            assert!(said.contains(way), "{said}");
        }
        assert!(!said.contains("change clears"), "{said}");
    }
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    assert_eq!(image.clear_in_use_marks().unwrap(), [Guid::TOP]);
    assert!(!Header::read(&top).unwrap().in_use);
    assert_eq!(image.clear_in_use_marks().unwrap(), []);
    file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
        .unwrap();
    let report = image.repair(&RepairOptions::new(), |_| {}).unwrap();
    assert!(report.is_sound, "{report:?}");
    assert!(!Header::read(&top).unwrap().in_use);
    filled.verify();
    let guid = image.snapshot().unwrap();
    filled.took(guid);
    filled.verify();
}

#[test]
fn a_damaged_delta_keeps_its_mark() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let top = filled.file_of(Guid::TOP);
    let file = File::options().write(true).open(&top).unwrap();
    file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
        .unwrap();
    file.write_all_at(&u32::MAX.to_le_bytes(), 64).unwrap();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let error = image.clear_in_use_marks().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(Header::read(&top).unwrap().in_use);
}

/// The record of a merge of the other type: what it has overwritten becomes temporary, and is merged.
#[test]
fn a_merge_by_libploop_that_was_killed_is_finished() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let base = filled.file_of(guids[0]);
    fs::write(
        filled.path("DiskDescriptor.xml.ploop-merge"),
        format!("another-boot:0 \n{}\n", guids[0]),
    )
    .unwrap();
    let file = File::options().write(true).open(&base).unwrap();
    file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
        .unwrap();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let guid = image.snapshot().unwrap();
    filled.took(guid);
    filled.states.remove(&guids[0]);
    filled.verify();
    let names = filled.names();
    assert_eq!(names.len(), 3, "{names:?}");
    let _: Ploop = Ploop::open(filled.xml()).unwrap();
}

/// Software other than that of Parallels must not open such a disk.
#[test]
fn a_disk_with_padding() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let xml = fs::read_to_string(filled.xml()).unwrap();
    let padded = xml.replace("<Padding>0<", "<Padding>1<");
    assert_ne!(padded, xml);
    fs::write(filled.xml(), padded).unwrap();
    all_are_refused(&filled, ErrorKind::Unsupported);
    let error = Ploop::open(filled.xml()).and_then(|mut image| image.snapshot());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// The descriptor of the image in another directory, with names that lead to its deltas: with `..`, or absolute ones.
fn copy_of_descriptor(
    filled: &FilledImage,
    is_relative: bool,
) -> (tempfile::TempDir, OfflineImage) {
    let here = fs::canonicalize(filled.dir.path()).unwrap();
    // Everybody may write to the directory above.
    let (elsewhere, prefix) = match is_relative {
        true => (tempfile::tempdir_in(&here).unwrap(), ".."),
        false => (tempfile::tempdir().unwrap(), here.to_str().unwrap()),
    };
    let xml = fs::read_to_string(filled.xml()).unwrap();
    let copied = xml.replace("<File>root", &format!("<File>{prefix}/root"));
    assert_ne!(copied, xml);
    let copy = elsewhere.path().join("DiskDescriptor.xml");
    fs::write(&copy, copied).unwrap();
    let image = OfflineImage::open(&copy).unwrap();
    (elsewhere, image)
}

#[test]
fn deltas_of_another_image_are_left_alone() {
    for is_relative in [false, true] {
        let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let (elsewhere, mut copy) = copy_of_descriptor(&filled, is_relative);
        let (names, before) = (names_of_files(&filled), files(&filled));
        let merged = filled.path("merged.hds");
        type Operation<'a> = Box<dyn Fn(&mut OfflineImage) -> Result<()> + 'a>;
        let to_new_file = || MergeParam::new(MergeTarget::All).new_delta(&merged);
        let operations: [Operation<'_>; 12] = [
            Box::new(|image| image.switch_snapshot(guids[0])),
            Box::new(|image| image.delete_snapshot(guids[0], |_| {})),
            Box::new(|image| image.delete_top_delta()),
            Box::new(|image| image.merge(&MergeParam::new(MergeTarget::All), |_| {})),
            Box::new(|image| image.merge(&to_new_file(), |_| {})),
            Box::new(|image| image.grow(Size::from_gib(1))),
            Box::new(|image| image.convert(ImageMode::Raw, |_| {})),
            Box::new(|image| image.convert(ImageMode::Preallocated, |_| {})),
            Box::new(|image| image.upgrade()),
            Box::new(|image| image.compact(&CompactOptions::new(), |_| {}).map(drop)),
            Box::new(|image| image.repair(&RepairOptions::new(), |_| {}).map(drop)),
            Box::new(|image| DiskWriter::open(image.path()).map(drop)),
        ];
        for (number, operation) in operations.iter().enumerate() {
            let error = operation(&mut copy).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{number}: {error}");
            let named = filled.xml().display().to_string();
            assert!(error.message().contains(&named), "{number}: {error}");
        }
        assert!(files(&filled) == before);
        filled.verify();

        // A snapshot writes to no delta that is there. Beside the base, its own would be a leftover of the other image.
        let error = copy.snapshot().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let param = SnapshotParam::new().directory(elsewhere.path());
        let guid = copy.snapshot_with(&param).unwrap();
        let own = copy.descriptor().unwrap().top_image().unwrap().file.clone();
        assert_eq!(own.parent().unwrap(), copy.path().parent().unwrap());
        let refused = [copy.switch_snapshot(guid), copy.delete_top_delta()];
        for error in refused.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
        assert_eq!(copy.descriptor().unwrap().top_image().unwrap().file, own);
        for (name, bytes) in names.iter().zip(&before) {
            assert!(fs::read(filled.path(name)).unwrap() == *bytes, "{name}");
        }

        // Without the other descriptor, these are the deltas of this image, wherever they lie.
        fs::remove_file(filled.xml()).unwrap();
        copy.merge(&MergeParam::new(MergeTarget::All), |_| {})
            .unwrap();
        assert_eq!(copy.descriptor().unwrap().images.len(), 1);
    }
}

/// A hard link of the descriptor is another one: a change gives a new file to one of the two names.
#[test]
fn a_descriptor_with_two_names_changes_through_that_beside_its_deltas() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let here = fs::canonicalize(filled.dir.path()).unwrap();
    let xml = fs::read_to_string(filled.xml()).unwrap();
    let absolute = xml.replace("<File>root", &format!("<File>{}/root", here.display()));
    fs::write(filled.xml(), absolute).unwrap();
    let elsewhere = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
    let link = elsewhere.path().join("DiskDescriptor.xml");
    fs::hard_link(filled.xml(), &link).unwrap();
    let before = files(&filled);
    let mut through = OfflineImage::open(&link).unwrap();
    for refused in [
        through.merge(&MergeParam::new(MergeTarget::All), |_| {}),
        through.delete_top_delta(),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert!(files(&filled) == before);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    image
        .merge(&MergeParam::new(MergeTarget::All), |_| {})
        .unwrap();
}

/// Where no name can be told to be the right one, none changes: the other one would name deltas that are gone.
#[test]
fn a_descriptor_with_two_names_in_one_place_is_not_changed() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let second = filled.path("second.xml");
    fs::hard_link(filled.xml(), &second).unwrap();
    let before = files(&filled);
    let assert_refused = |path: &std::path::Path| {
        let mut image = OfflineImage::open(path).unwrap();
        for result in [
            image.snapshot().map(drop),
            image.delete_top_delta(),
            image.merge(&MergeParam::new(MergeTarget::All), |_| {}),
            image.grow(Size::from_gib(1)),
            image.repair(&RepairOptions::new(), |_| {}).map(drop),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("second"), "{error}");
        }
    };
    assert_refused(&filled.xml());
    assert_refused(&second);
    assert!(files(&filled) == before);
    filled.verify();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let dry = RepairOptions::new().dry_run(true);
    image.repair(&dry, |_| {}).unwrap();
    fs::remove_file(&second).unwrap();
    image
        .merge(&MergeParam::new(MergeTarget::All), |_| {})
        .unwrap();
}

/// Two names of a descriptor, both in other directories than the deltas.
#[test]
fn a_descriptor_with_two_names_away_from_its_deltas_is_not_changed() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let (elsewhere, mut image) = copy_of_descriptor(&filled, false);
    fs::remove_file(filled.xml()).unwrap();
    let link = tempfile::tempdir_in(elsewhere.path()).unwrap();
    let second = link.path().join("DiskDescriptor.xml");
    fs::hard_link(image.path(), &second).unwrap();
    let (names, before) = (names_of_files(&filled), files(&filled));
    let mut other = OfflineImage::open(&second).unwrap();
    for image in [&mut image, &mut other] {
        let param = SnapshotParam::new().directory(elsewhere.path());
        for result in [
            image.merge(&MergeParam::new(MergeTarget::All), |_| {}),
            image.delete_top_delta(),
            image.snapshot_with(&param).map(drop),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("2 names"), "{error}");
        }
    }
    assert!(names_of_files(&filled) == names && files(&filled) == before);
    fs::remove_file(&second).unwrap();
    image
        .merge(&MergeParam::new(MergeTarget::All), |_| {})
        .unwrap();
}

/// Also where the other descriptor is damaged, or cannot be read.
#[test]
fn deltas_of_a_damaged_image_are_left_alone() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let (_elsewhere, mut copy) = copy_of_descriptor(&filled, false);
    let (before, whole) = (files(&filled), fs::read(filled.xml()).unwrap());
    let mut merge = || copy.merge(&MergeParam::new(MergeTarget::All), |_| {});
    // Before the first name, and behind the last.
    for len in [100, whole.len() - 10] {
        fs::write(filled.xml(), &whole[..len]).unwrap();
        assert_eq!(merge().unwrap_err().kind(), ErrorKind::Unsupported);
    }
    // A read of it is an error, for everybody.
    fs::remove_file(filled.xml()).unwrap();
    std::os::unix::fs::symlink("/proc/self/mem", filled.xml()).unwrap();
    assert_eq!(merge().unwrap_err().path(), Some(&*filled.xml()));
    fs::remove_file(filled.xml()).unwrap();
    fs::write(filled.xml(), whole).unwrap();
    assert!(files(&filled) == before);
    filled.verify();
    // A text that has nothing to do with it.
    fs::write(filled.xml(), "<a/>").unwrap();
    merge().unwrap();
}

/// What an interrupted change has left in the deltas of another image is for that one to finish.
#[test]
fn marks_of_another_image_are_left_alone() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let (_elsewhere, mut copy) = copy_of_descriptor(&filled, false);
    let base = filled.file_of(guids[0]);
    let file = File::options().write(true).open(&base).unwrap();
    file.write_all_at(&0x746F_6E59u32.to_le_bytes(), 44)
        .unwrap();
    for result in [
        copy.snapshot().map(drop),
        copy.clear_in_use_marks().map(drop),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert!(Header::read(&base).unwrap().in_use);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    image.snapshot().unwrap();
    assert!(!Header::read(&base).unwrap().in_use);
}

/// A delta in a directory of its own, with a copy of the descriptor beside the descriptor.
#[test]
fn deltas_in_another_directory_are_those_of_the_image() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let param = SnapshotParam::new().directory(elsewhere.path());
    let guid = image.snapshot_with(&param).unwrap();
    filled.took(guid);
    filled.write([(3, 5)]);
    for name in ["DiskDescriptor.xml.Backup", "copy.xml"] {
        fs::copy(filled.xml(), filled.path(name)).unwrap();
    }
    // A link to the descriptor is no other one.
    std::os::unix::fs::symlink(filled.xml(), elsewhere.path().join("DiskDescriptor.xml")).unwrap();
    image.delete_snapshot(guid, |_| {}).unwrap();
    filled.states.remove(&guid);
    filled.verify();
}

/// Its own descriptor and its own deltas are refused for what they are: their locks are held by the merge itself.
#[test]
fn a_merge_to_a_file_of_the_image() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    image.set_lock_timeout(Some(Duration::ZERO));
    let before = files(&filled);
    let merge_to = |image: &mut OfflineImage, file: &std::path::Path| {
        let param = MergeParam::new(MergeTarget::All).new_delta(file);
        image.merge(&param, |_| {}).unwrap_err()
    };
    let deltas = filled.descriptor().images.clone();
    for file in deltas
        .iter()
        .map(|image| image.file.clone())
        .chain([filled.xml()])
    {
        let error = merge_to(&mut image, &file);
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    for suffix in [".lck", ".op.lck", ".tmp", ".ploop-files"] {
        let error = merge_to(
            &mut image,
            &filled.path(&format!("DiskDescriptor.xml{suffix}")),
        );
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(files(&filled) == before);
    filled.verify();
}

#[test]
fn a_chain_that_is_full() {
    let (filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    for _ in 1..126 {
        image.snapshot().unwrap();
    }
    let error = image.snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("126 are the most"), "{error}");
}

/// Nothing can be read through a new delta upon a pipe.
#[test]
fn a_pipe_is_no_delta() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let base = filled.file_of(guids[0]);
    fs::remove_file(&base).unwrap();
    let made = Command::new("mkfifo").arg(&base).status().unwrap();
    assert!(made.success());
    let (names, xml) = (filled.names(), fs::read(filled.xml()).unwrap());
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    for result in [image.snapshot().map(drop), image.switch_snapshot(guids[1])] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.path(), Some(&*base), "{error}");
    }
    assert_eq!(filled.names(), names);
    assert!(fs::read(filled.xml()).unwrap() == xml);
}

/// By the smaller size, clusters seem to be in no use. Nothing that would free them or leave them out is done.
#[test]
fn a_header_that_contradicts_itself_is_repaired_first() {
    for level in 0..3 {
        let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V2, 2);
        let names = [guids[0], guids[1], ploop::Guid::TOP];
        let delta = filled.file_of(names[level]);
        let file = File::options().write(true).open(&delta).unwrap();
        let sectors = Header::read(&delta).unwrap().size.sectors();
        file.write_all_at(&(sectors / 2).to_le_bytes(), 36).unwrap();
        let report = ploop::image::check(filled.xml());
        assert!(!report.is_sound(), "{report}");
        let error = ploop::image::Disk::open(filled.xml()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let damaged = files(&filled);
        let mut image = OfflineImage::open(filled.xml()).unwrap();
        let mut results = vec![
            image.compact(&CompactOptions::new(), |_| {}).map(drop),
            image.merge(&MergeParam::new(MergeTarget::All), |_| {}),
        ];
        if level == 2 {
            results.push(image.snapshot().map(drop));
            results.push(image.delete_top_delta());
            results.push(image.grow(Size::from_gib(1)));
            results.push(image.convert(ImageMode::Preallocated, |_| {}));
        } else {
            results.push(image.delete_snapshot(guids[level], |_| {}));
        }
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{level}: {error}");
            assert_eq!(error.path(), Some(&*delta), "{level}: {error}");
        }
        assert!(files(&filled) == damaged, "{level}");
        let report = image.repair(&RepairOptions::new(), |_| {}).unwrap();
        assert!(report.is_complete(), "{level}: {report:?}");
        assert!(ploop::image::check(filled.xml()).is_sound(), "{level}");
        filled.verify();
    }
}

/// A change that was killed has left one: it is no second name of the descriptor.
#[test]
fn the_descriptor_before_a_removal_is_no_second_name() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let saved = filled.path("DiskDescriptor.xml.ploop-before");
    fs::hard_link(filled.xml(), &saved).unwrap();
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    let guid = image.snapshot().unwrap();
    filled.took(guid);
    assert!(!saved.exists());
    filled.verify();
}

/// What a merge that was killed has left.
#[test]
fn the_next_change_merges_a_temporary_snapshot() {
    type Change = fn(&mut OfflineImage) -> Result<()>;
    let changes: [Change; 6] = [
        |image| image.snapshot().map(drop),
        |image| image.merge(&MergeParam::new(MergeTarget::Top), |_| {}),
        |image| image.grow(Size::from_gib(1)),
        |image| image.convert(ImageMode::Preallocated, |_| {}),
        |image| image.compact(&CompactOptions::new(), |_| {}).map(drop),
        |image| image.upgrade(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
        let temporary = format!("<GUID>{}</GUID><ParentGUID>", guids[1]);
        let xml: String = fs::read_to_string(filled.xml()).unwrap();
        let shot = xml.split("<Shot>").find(|it| {
            let text: String = it.split_whitespace().collect();
            text.starts_with(&temporary)
        });
        let shot = shot.unwrap();
        let marked = shot.replacen("</ParentGUID>", "</ParentGUID><Temporary/>", 1);
        fs::write(filled.xml(), xml.replace(shot, &marked)).unwrap();
        let mut image = OfflineImage::open(filled.xml()).unwrap();
        let dry = CompactOptions::new().dry_run(true);
        image.compact(&dry, |_| {}).unwrap();
        assert!(image.descriptor().unwrap().snapshot(guids[1]).is_some());
        let read = |len: u64| {
            let disk = ploop::image::Disk::open(filled.xml()).unwrap();
            let mut found = vec![0; len as usize];
            disk.read_at(&mut found, 0).unwrap();
            found
        };
        let len = image.descriptor().unwrap().size.bytes();
        let before = read(len);
        change(&mut image).unwrap();
        let now = image.descriptor().unwrap();
        assert!(now.snapshot(guids[1]).is_none(), "{number}");
        assert!(read(len) == before, "{number}");
    }
}

/// The top of a disk of whole clusters ends within one, which is damage until it is repaired.
#[test]
fn a_delta_that_ends_within_a_cluster_is_repaired_first() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let top = filled.file_of(ploop::Guid::TOP);
    let file = File::options().write(true).open(&top).unwrap();
    let sectors = Header::read(&top).unwrap().size.sectors() as u32;
    file.write_all_at(&(sectors + 32).to_le_bytes(), 36)
        .unwrap();
    assert!(!ploop::image::check(filled.xml()).is_sound());
    let damaged = files(&filled);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    for result in [
        image.snapshot().map(drop),
        image.convert(ImageMode::Preallocated, |_| {}),
        image.merge(&MergeParam::new(MergeTarget::Top), |_| {}),
        image.compact(&CompactOptions::new(), |_| {}).map(drop),
        image.grow(Size::from_gib(1)),
        image.delete_top_delta(),
        image.delete_snapshot(guids[0], |_| {}),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(error.path(), Some(&*top), "{error}");
    }
    assert!(files(&filled) == damaged);
    image.repair(&RepairOptions::new(), |_| {}).unwrap();
    assert!(ploop::image::check(filled.xml()).is_sound());
    filled.verify();
}

/// A snapshot whose disk is larger than that of the delta upon it.
#[test]
fn a_delta_that_is_smaller_than_the_one_below_is_not_merged() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let base = filled.file_of(guids[0]);
    let file = File::options().write(true).open(&base).unwrap();
    let header = Header::read(&base).unwrap();
    let sectors = (header.size.sectors() + header.cluster.sectors() as u64) as u32;
    file.write_all_at(&(header.entries() + 1).to_le_bytes(), 32)
        .unwrap();
    file.write_all_at(&sectors.to_le_bytes(), 36).unwrap();
    assert!(!ploop::image::check(filled.xml()).is_sound());
    let damaged = files(&filled);
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    for result in [
        image.merge(&MergeParam::new(MergeTarget::All), |_| {}),
        image.delete_snapshot(guids[1], |_| {}),
        image.compact(&CompactOptions::new(), |_| {}).map(drop),
        image.convert(ImageMode::Preallocated, |_| {}),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert!(files(&filled) == damaged);
}
