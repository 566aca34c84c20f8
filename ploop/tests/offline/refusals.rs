//! Images that somebody else has: locked, marked as in use, of another kind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ploop::image::{CompactOptions, Header, OfflineImage};
use ploop::{
    ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, Ploop, Result, Size,
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

fn files(filled: &FilledImage) -> Vec<Vec<u8>> {
    let names = filled.names();
    let files = names.iter().map(|name| fs::read(filled.path(name)));
    files.map(Result::<_, _>::unwrap).collect()
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
    let mut image = OfflineImage::open(filled.xml()).unwrap();
    assert_eq!(image.clear_in_use_marks().unwrap(), [Guid::TOP]);
    assert!(!Header::read(&top).unwrap().in_use);
    assert_eq!(image.clear_in_use_marks().unwrap(), []);
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
