//! Which of two descriptors the deltas show to be right.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::ffi::descriptor_form;
use crate::image::Header;
use crate::image::recovery::detached::finish;
use crate::{CreateParam, Descriptor, ErrorKind, ImageMode, Ploop, Size, paths};

const CLUSTER: u64 = 1 << 20;

struct Fixture {
    directory: tempfile::TempDir,
    path: PathBuf,
}

/// An image of one delta after `change`, whose descriptor did not get into its place.
fn cut_after(change: impl Fn(&mut Ploop)) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("root.hds");
    let param = CreateParam::new(base, Size::from_mib(10)).fs(None);
    let mut image = Ploop::create(&param).unwrap();
    let path = image.path().to_owned();
    let before = fs::read(&path).unwrap();
    change(&mut image);
    fs::rename(&path, paths::staged(&path)).unwrap();
    fs::write(&path, before).unwrap();
    Fixture { directory, path }
}

impl Fixture {
    fn finish(&self) -> bool {
        finish(
            &[],
            "test",
            &self.path,
            &self.descriptor(),
            descriptor_form(),
        )
        .unwrap()
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor::open(&self.path).unwrap()
    }

    fn mark(&self, delta: &Path, marked: bool) {
        let mark = if marked { 0x746F_6E59u32 } else { 0 };
        let file = File::options().write(true).open(delta).unwrap();
        file.write_all_at(&mark.to_le_bytes(), 44).unwrap();
    }

    /// As a device that has written the disk's first cluster.
    fn write(&self, delta: &Path) {
        let file = File::options().write(true).open(delta).unwrap();
        file.write_all_at(&[1; CLUSTER as usize], CLUSTER).unwrap();
        let entry: u32 = match Header::read(delta).unwrap().version {
            crate::FormatVersion::V1 => 2048,
            crate::FormatVersion::V2 => 1,
        };
        file.write_all_at(&entry.to_le_bytes(), 64).unwrap();
    }
}

#[test]
fn a_base_without_header_is_raw() {
    let convert = |image: &mut Ploop| image.convert(ImageMode::Raw).unwrap();
    let fixture = cut_after(convert);
    assert!(fixture.finish());
    assert_eq!(fixture.descriptor().mode, ImageMode::Raw);
    assert!(!fixture.finish());

    // The base was not exchanged yet.
    let fixture = cut_after(convert);
    let base = fixture.descriptor().base().unwrap().file.clone();
    let param = CreateParam::new(fixture.directory.path().join("b"), Size::from_mib(10));
    fs::remove_file(&base).unwrap();
    fs::rename(&fixture.path, fixture.directory.path().join("kept")).unwrap();
    drop(Ploop::create(&param.fs(None)).unwrap());
    fs::rename(fixture.directory.path().join("b"), &base).unwrap();
    fs::rename(fixture.directory.path().join("kept"), &fixture.path).unwrap();
    assert!(!fixture.finish());
    assert_eq!(fixture.descriptor().mode, ImageMode::Expanded);
}

#[test]
fn what_was_written_after_a_snapshot_is_found_again() {
    let snapshot = |image: &mut Ploop| assert!(image.snapshot().is_ok());
    // Each but the first is a reason not to.
    for case in [
        "written",
        "empty",
        "detached",
        "old top marked",
        "old top written",
        "unmounted",
        "torn",
    ] {
        let fixture = cut_after(snapshot);
        let staged = paths::staged(&fixture.path);
        let old_top = fixture.descriptor().top_image().unwrap().file.clone();
        let new = Descriptor::open(&staged).unwrap();
        let new_top = &new.top_image().unwrap().file;
        // The driver leaves the old top before it writes to the new one.
        fixture.mark(&old_top, case == "old top marked");
        if case != "empty" {
            fixture.write(new_top);
        }
        fixture.mark(new_top, case != "detached");
        let later = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            let later = SystemTime::now() + Duration::from_secs(10);
            file.unwrap().set_modified(later).unwrap();
        };
        match case {
            "old top written" => later(&old_top),
            "unmounted" => later(&fixture.directory.path().join(paths::STATFS_NAME)),
            "torn" => fs::write(&staged, "<?xml").unwrap(),
            _ => {}
        }
        let found = fixture.finish();
        let expected = if case == "written" { 2 } else { 1 };
        assert_eq!(found, case == "written", "{case}");
        assert_eq!(fixture.descriptor().images.len(), expected, "{case}");
    }
}

#[test]
fn a_damaged_delta_keeps_its_mark_and_is_named() {
    let fixture = cut_after(|image| assert!(image.snapshot().is_ok()));
    fs::rename(paths::staged(&fixture.path), &fixture.path).unwrap();
    let base = fixture.descriptor().base().unwrap().file.clone();
    fixture.mark(&base, true);
    let file = File::options().write(true).open(&base).unwrap();
    file.write_all_at(&u32::MAX.to_le_bytes(), 64).unwrap();
    let error = finish(
        &[],
        "test",
        &fixture.path,
        &fixture.descriptor(),
        descriptor_form(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.path(), Some(&*base));
    file.write_all_at(&[0; 4], 64).unwrap();
    assert!(fixture.finish());
    assert!(!Header::read(&base).unwrap().in_use);
}
