//! The guards, each with the danger that it is for. The numbers are those of `hazards.md`.

use std::fs;
use std::path::Path;

use ploop::image::Header;
use ploop::{
    CreateParam, ErrorKind, FormatVersion, Guid, MergeParam, MergeTarget, Ploop, ReplaceParam,
    ReplaceTarget, Size, SwitchFlag,
};

use crate::fixture::directory::Contents;
use crate::fixture::disk::SIZE;
use crate::fixture::harness::Test;
use crate::fixture::refused::refused;
use crate::stub::{self, NEEDS};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            h25_success_without_a_descriptor_at_creation,
            h25_success_without_work,
            h25_a_delta_is_gone_that_the_descriptor_names,
            h9_a_failed_merge_leaves_a_mark,
            h10_a6_deltas_that_differ_are_merged_blindly,
            a_replace_takes_any_file,
            a_range_is_merged_in_one_step_only,
            copies_are_empty,
            a72_a_key_is_named_and_nothing_encrypted,
            h0_10_a_failure_leaves_a_temporary_file;
    ]
}

/// An image of format v2 with two snapshots.
fn image() -> (tempfile::TempDir, Ploop, Vec<Guid>) {
    let dir = tempfile::tempdir().unwrap();
    let (image, guids) = stub::image(dir.path(), FormatVersion::V2, 2);
    (dir, image, guids)
}

fn h25_success_without_a_descriptor_at_creation() {
    let dir = tempfile::tempdir().unwrap();
    let before = Contents::of(dir.path());
    let param = CreateParam::new(dir.path().join("root.hds"), SIZE).fs(None);
    let param = param.format(FormatVersion::V1);
    for danger in ["no_descriptor", "nothing"] {
        stub::script(&format!("ploop_create_image does {danger}\n"));
        Ploop::create(&param).unwrap_err();
        assert_eq!(stub::call("ploop_create_image").code, Some(0), "{danger}");
        before.assert_unchanged(danger);
        stub::script(&format!("ploop_create_dd does {danger}\n"));
        Ploop::create_descriptor(dir.path().join("a.xml"), &param).unwrap_err();
        assert_eq!(stub::call("ploop_create_dd").code, Some(0), "{danger}");
        before.assert_unchanged(danger);
    }
}

/// What each change is said to have done has been done, or the crate says that it has not.
fn h25_success_without_work() {
    type Change = fn(&mut Ploop, &[Guid], &Path) -> ploop::Result<()>;
    let changes: [(&str, Change); 9] = [
        ("ploop_create_snapshot", |image, _, _| {
            image.snapshot().map(drop)
        }),
        ("ploop_switch_snapshot_ex", |image, guids, _| {
            image.switch_snapshot(guids[0])
        }),
        ("ploop_switch_snapshot_ex", |image, guids, _| {
            let flags = SwitchFlag::SKIP_DESTROY;
            image.switch_snapshot_with(guids[0], flags).map(drop)
        }),
        ("ploop_delete_snapshot", |image, guids, _| {
            image.delete_snapshot(guids[0])
        }),
        ("ploop_delete_snapshot", |image, _, _| {
            image.delete_top_delta()
        }),
        ("ploop_merge_snapshot", |image, _, _| {
            image.merge(&MergeParam::new(MergeTarget::Top))
        }),
        ("ploop_merge_snapshot", |image, _, dir| {
            image.merge(&MergeParam::new(MergeTarget::Top).new_delta(dir.join("new.hds")))
        }),
        ("ploop_replace_image", |image, guids, dir| {
            fs::copy(dir.join("root.hds.0"), dir.join("copy.hds")).unwrap();
            let target = ReplaceTarget::Guid(guids[0]);
            image.replace(&ReplaceParam::new(dir.join("copy.hds"), target))
        }),
        ("ploop_set_max_delta_size", |image, _, _| {
            image.set_max_delta_size(Size::from_sectors(77))
        }),
    ];
    for (number, (function, change)) in changes.into_iter().enumerate() {
        let (dir, mut image, guids) = image();
        stub::script(&format!("{function} does nothing\n"));
        let result = change(&mut image, &guids, dir.path());
        assert_eq!(stub::call(function).code, Some(0), "{number}");
        let error = result.expect_err(&format!("{number}: {function}"));
        assert_eq!(error.kind(), ErrorKind::Io, "{number} {function}: {error}");
        // All is there as before.
        let descriptor = image.descriptor().unwrap();
        assert_eq!(descriptor.images.len(), 3, "{number} {function}");
        let report = ploop::image::check(image.path());
        assert!(report.is_sound(), "{number} {function}: {report}");
        for (level, delta) in descriptor.images.iter().enumerate() {
            let expected = fs::read(dir.path().join(format!("root.hds.{level}"))).unwrap();
            assert_eq!(
                fs::read(&delta.file).unwrap(),
                expected,
                "{number} {function}"
            );
        }
    }
}

fn h25_a_delta_is_gone_that_the_descriptor_names() {
    let (dir, mut image, _) = image();
    let top = dir.path().join("root.hds.2");
    let before = fs::read(&top).unwrap();
    stub::script("ploop_delete_snapshot does no_descriptor\n");
    let error = refused(image.delete_top_delta(), ErrorKind::Io);
    assert_eq!(stub::call("ploop_delete_snapshot").code, Some(0), "{error}");
    assert_eq!(fs::read(&top).unwrap(), before);
    assert_eq!(image.top_delta_file().unwrap(), top);
}

/// A9, A14: the image could be neither attached nor merged.
fn h9_a_failed_merge_leaves_a_mark() {
    for function in ["ploop_merge_snapshot", "ploop_delete_snapshot"] {
        let (dir, mut image, guids) = image();
        stub::script(&format!("{function} does mark\n{function} fails 6\n"));
        let result = match function {
            "ploop_merge_snapshot" => {
                image.merge(&MergeParam::new(MergeTarget::Snapshot(guids[1])))
            }
            _ => image.delete_snapshot(guids[0]),
        };
        assert_eq!(result.unwrap_err().code(), Some(6));
        let base = dir.path().join("root.hds.0");
        assert!(!Header::read(&base).unwrap().in_use, "{function}");
        let report = ploop::image::check(image.path());
        assert!(report.is_sound(), "{function}: {report}");
    }
}

fn h0_10_a_failure_leaves_a_temporary_file() {
    let (dir, mut image, _) = image();
    stub::script(
        "ploop_create_snapshot does leftover\nploop_create_snapshot does nothing\nploop_create_snapshot fails 6\n",
    );
    let names = || {
        let names = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.retain(|name| !name.to_str().unwrap().ends_with(".lck"));
        names
    };
    let before = names();
    image.snapshot().unwrap_err();
    assert_eq!(names(), before);
}

/// Where the deltas differ, 7 returns 0 and has stored something else: the stub copies as blindly. Nothing of it is called.
fn h10_a6_deltas_that_differ_are_merged_blindly() {
    let other_version = stub::delta(FormatVersion::V1, 2);
    let mut other_clusters = stub::delta(FormatVersion::V2, 2);
    other_clusters.cluster = 1 << 20;
    for (top, why) in [
        (other_version, "version"),
        (other_clusters, "clusters of 1 MiB"),
    ] {
        let (dir, mut image, guids) = image();
        top.write(&dir.path().join("root.hds.2"));
        let before = Contents::of(dir.path());
        stub::script("");
        for result in [
            image.merge(&MergeParam::new(MergeTarget::Top)),
            image.merge(&MergeParam::new(MergeTarget::All)),
            image.delete_snapshot(guids[1]),
        ] {
            let error = refused(result, ErrorKind::Corrupt);
            assert!(error.message().contains(why), "{error}");
        }
        stub::assert_not_called();
        before.assert_unchanged(why);
    }
}

/// 7 compares nothing: the stub puts any file in the place of a delta. The crate compares size and header.
fn a_replace_takes_any_file() {
    let (dir, mut image, guids) = image();
    let new = dir.path().join("new.hds");
    let mut other_size = stub::delta(FormatVersion::V2, 0);
    other_size.size += other_size.cluster;
    for other in [other_size, stub::delta(FormatVersion::V1, 0)] {
        other.write(&new);
        let before = Contents::of(dir.path());
        stub::script("");
        let target = ReplaceTarget::Guid(guids[0]);
        let error = refused(
            image.replace(&ReplaceParam::new(&new, target)),
            ErrorKind::Corrupt,
        );
        assert_eq!(error.path(), Some(&*new), "{error}");
        stub::assert_not_called();
        before.assert_unchanged("replace");
    }
    // A copy is taken.
    fs::copy(dir.path().join("root.hds.0"), &new).unwrap();
    let target = ReplaceTarget::Guid(guids[0]);
    image.replace(&ReplaceParam::new(&new, target)).unwrap();
    assert_eq!(stub::functions(), ["ploop_replace_image"]);
}

/// Each call merges one delta, and ignores the other end. The crate makes as many calls as it takes.
fn a_range_is_merged_in_one_step_only() {
    let expected = |dir: &Path| {
        let mut disk = Vec::new();
        let mut reader = ploop::image::Disk::open(dir.join("DiskDescriptor.xml")).unwrap();
        std::io::Read::read_to_end(&mut reader, &mut disk).unwrap();
        disk
    };
    let (dir, mut image, guids) = image();
    let before = expected(dir.path());
    stub::script("");
    let range = MergeTarget::Range {
        from: Guid::TOP,
        to: guids[0],
    };
    image.merge(&MergeParam::new(range)).unwrap();
    let calls = stub::calls_of("ploop_merge_snapshot");
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert_eq!(image.descriptor().unwrap().images.len(), 1);
    assert_eq!(expected(dir.path()), before);
}

/// The functions of 1.15 are there, and return 38 whatever they are given. The crate calls none of them.
fn copies_are_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = crate::fixture::pipe::pipe();
    drop(output);
    stub::script("");
    let file = dir.path().join("copy");
    let error = ploop::copy::receive(&file, input, None).unwrap_err();
    assert_ne!(error.code(), Some(38), "{error}");
    stub::assert_not_called();
    assert!(!file.exists());
}

/// The stub writes the name of the key, as 7 does. The crate looks whether the disk is encrypted.
fn a72_a_key_is_named_and_nothing_encrypted() {
    let (dir, mut image, _) = image();
    let before = Contents::of(dir.path());
    stub::script("");
    refused(image.set_encryption_key("key"), ErrorKind::InvalidInput);
    stub::assert_not_called();
    before.assert_unchanged("the name of a key");
}
