//! Undo files, and images that are not to be repaired.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ploop::image::{DiskWriter, OfflineImage, RepairChoice, RepairOptions, check};
use ploop::{ErrorKind, FormatVersion};

use crate::damaged_image::{CLUSTER, DamagedImage, assert_same};

/// An image with damage of several kinds, repaired. The undo file is in the directory.
fn repaired() -> (DamagedImage, tempfile::TempDir, OfflineImage) {
    let image = DamagedImage::new(FormatVersion::V2);
    image.write("top.hds", 44, &0x746f_6e59u32.to_le_bytes());
    image.set_entry("top.hds", 1, 0);
    image.set_entry("top.hds", 100, 4);
    image.set_entry("base.hds", 5, 1000);
    image.write("middle.hds", 32, &7u32.to_le_bytes());
    image.replace_in_descriptor("<Heads>16</Heads>", "");
    let directory = tempfile::tempdir().unwrap();
    let mut open = image.open();
    let options = RepairOptions::new()
        .allow(RepairChoice::ClearEntries)
        .allow(RepairChoice::CopyShared)
        .undo(directory.path().join("undo"));
    let report = open.repair(&options, |_| {}).unwrap();
    assert!(report.is_complete(), "{report:?}");
    image.assert_sound();
    (image, directory, open)
}

#[test]
fn an_image_that_was_written_to_since_is_not_undone() {
    let (image, directory, mut open) = repaired();
    let undo = directory.path().join("undo");
    let mut disk = DiskWriter::open(&image.xml).unwrap();
    disk.write_at(&[1; 512], 150 * CLUSTER).unwrap();
    disk.close().unwrap();
    let before = image.files();
    let error = open.undo_repair(&undo).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_same(&image.files(), &before);

    // In a cluster that the repair has copied.
    let (image, directory, mut open) = repaired();
    let undo = directory.path().join("undo");
    let mut disk = DiskWriter::open(&image.xml).unwrap();
    disk.write_at(&[1; 512], 100 * CLUSTER).unwrap();
    disk.close().unwrap();
    let error = open.undo_repair(&undo).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    // In one that was there before, nothing is in the way, and it stays.
    let (image, directory, mut open) = repaired();
    let undo = directory.path().join("undo");
    let mut disk = DiskWriter::open(&image.xml).unwrap();
    disk.write_at(&[1; 512], 130 * CLUSTER).unwrap();
    disk.close().unwrap();
    open.undo_repair(&undo).unwrap();
    let top = &image.read()[&ploop::Guid::TOP];
    assert!(top[130].as_ref().unwrap()[..512] == [1; 512]);
    assert!(!check(&image.xml).is_sound());
}

#[test]
fn an_image_with_another_history_is_not_undone() {
    let (image, directory, mut open) = repaired();
    open.snapshot().unwrap();
    let before = image.files();
    let error = open.undo_repair(directory.path().join("undo")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_same(&image.files(), &before);
}

#[test]
fn a_copy_of_the_file_is_another_file() {
    let (image, directory, mut open) = repaired();
    let top = image.file("top.hds");
    fs::copy(&top, image.file("copy")).unwrap();
    fs::rename(image.file("copy"), &top).unwrap();
    let error = open.undo_repair(directory.path().join("undo")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_foreign_or_damaged_undo_file_changes_nothing() {
    let (_, directory, _) = repaired();
    let undo = directory.path().join("undo");
    let other = DamagedImage::new(FormatVersion::V2);
    let before = other.files();
    let error = other.open().undo_repair(&undo).unwrap_err();
    assert!(
        [ErrorKind::InvalidInput, ErrorKind::Unsupported].contains(&error.kind()),
        "{error}"
    );
    let bytes = fs::read(&undo).unwrap();
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 50) {
        fs::write(&undo, &bytes[..cut]).unwrap();
        let error = other.open().undo_repair(&undo).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    assert_same(&other.files(), &before);
}

#[test]
fn an_undo_file_is_never_overwritten() {
    let image = DamagedImage::new(FormatVersion::V2);
    image.set_entry("top.hds", 61, 0);
    let directory = tempfile::tempdir().unwrap();
    let undo = directory.path().join("undo");
    fs::write(&undo, "precious").unwrap();
    let before = image.files();
    let error = image
        .open()
        .repair(&RepairOptions::new().undo(&undo), |_| {});
    assert_eq!(error.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&undo).unwrap(), b"precious");
    assert_same(&image.files(), &before);
    let none = directory.path().join("none/undo");
    let error = image
        .open()
        .repair(&RepairOptions::new().undo(none), |_| {});
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    assert_same(&image.files(), &before);
}

#[test]
fn an_image_that_is_locked_is_refused() {
    let image = DamagedImage::new(FormatVersion::V2);
    image.set_entry("top.hds", 61, 0);
    let lock = File::create(image.file("DiskDescriptor.xml.lck")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = image.files();
    let mut open = image.open();
    open.set_lock_timeout(Some(Duration::from_millis(50)));
    for options in [RepairOptions::new(), RepairOptions::new().dry_run(true)] {
        let error = open.repair(&options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    }
    let error = open.undo_repair("/none").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert_same(&image.files(), &before);
    drop(lock);
    assert!(
        open.repair(&RepairOptions::new(), |_| {})
            .unwrap()
            .is_complete()
    );
}

/// Lost clusters and orphans are in the undo file, in pieces.
#[test]
fn large_contents_come_back() {
    let image = DamagedImage::new(FormatVersion::V2);
    let len = image.len("top.hds");
    let file = File::options()
        .write(true)
        .open(image.file("top.hds"))
        .unwrap();
    let bytes: Vec<u8> = (0..3u32 << 20).map(|at| (at >> 8) as u8).collect();
    file.write_all_at(&bytes, len).unwrap();
    file.set_len(len + (8 << 20)).unwrap();
    file.write_all_at(&bytes, len + (5 << 20)).unwrap();
    file.sync_all().unwrap();
    let mut all = (0, 0);
    let damaged = image.files();
    let directory = tempfile::tempdir().unwrap();
    let undo = directory.path().join("undo");
    let mut open = image.open();
    let options = RepairOptions::new().undo(&undo);
    let report = open.repair(&options, |progress| {
        assert!(progress.copied.bytes() >= all.0);
        all = (progress.copied.bytes(), progress.total.bytes());
    });
    assert!(report.unwrap().is_complete());
    assert_eq!(all, (6 << 20, 8 << 20));
    image.assert_whole();
    open.undo_repair(&undo).unwrap();
    assert_same(&image.files(), &damaged);
}

#[test]
fn a_cancelled_repair_is_no_worse_and_goes_on() {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let image = DamagedImage::new(FormatVersion::V2);
    image.set_entry("top.hds", 1, 0);
    let before = image.read();
    let mut open = image.open();
    open.set_cancel(Some(Arc::new(AtomicBool::new(true))));
    let error = open.repair(&RepairOptions::new(), |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(image.read() == before);
    open.set_cancel(None);
    assert!(
        open.repair(&RepairOptions::new(), |_| {})
            .unwrap()
            .is_complete()
    );
    assert!(image.read() == before);
}

#[test]
#[cfg(feature = "serde")]
fn reports_go_through_serde() {
    use ploop::image::RepairReport;
    let image = DamagedImage::new(FormatVersion::V2);
    image.set_entry("top.hds", 1, 0);
    image.set_entry("middle.hds", 100, 1000);
    std::fs::remove_file(image.file("base.hds")).unwrap();
    let report = image.open().repair(&RepairOptions::new(), |_| {}).unwrap();
    let json = serde_json::to_string(&report).unwrap();
    for expected in [
        "\"outcome\":{\"repaired\":{\"how\":",
        "\"outcome\":{\"needs_choice\":{\"choice\":\"clear_entries\",",
        "\"outcome\":{\"left\":{\"reason\":",
    ] {
        assert!(json.contains(expected), "{json}");
    }
    assert_eq!(serde_json::from_str::<RepairReport>(&json).unwrap(), report);
    for choice in RepairChoice::ALL {
        let name = serde_json::to_value(choice).unwrap();
        assert_eq!(name, choice.name().replace('-', "_"));
    }
}
