//! Repairs without libploop (`OfflineImage`) of an image that a device has: refused.

use std::fs;

use ploop::ErrorKind;
use ploop::image::{OfflineImage, RepairChoice, RepairOptions};

use crate::NEEDS;
use crate::container::{Container, SIZE};
use crate::fixture::harness::Test;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            a_running_image_is_not_repaired;
    ]
}

fn a_running_image_is_not_repaired() {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("a", 1 << 20);
    let all = || {
        let choices = RepairChoice::ALL.into_iter();
        choices.fold(RepairOptions::new(), RepairOptions::allow)
    };
    let xml = fs::read(image.path()).unwrap();
    let mut offline = OfflineImage::open(image.path()).unwrap();
    let aside = tempfile::tempdir().unwrap();
    let undo = aside.path().join("undo");
    for options in [all(), all().dry_run(true), all().undo(&undo)] {
        let error = offline.repair(&options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    assert!(!undo.exists());
    assert!(fs::read(image.path()).unwrap() == xml);
    container.verify(&["a"]);
    image.umount().unwrap();

    // A repair that was undone after a mount would take back what was written since.
    let top = image.top_delta_file().unwrap();
    let len = fs::metadata(&top).unwrap().len();
    let file = fs::File::options().write(true).open(&top).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 1 << 20], len).unwrap();
    drop(file);
    let report = offline.repair(&all().undo(&undo), |_| {}).unwrap();
    assert!(report.is_complete(), "{report:?}");
    image.mount(&container.param()).unwrap();
    let error = offline.undo_repair(&undo).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    container.verify(&["a"]);
    container.write("b", 4 << 20);
    image.umount().unwrap();
    let error = offline.undo_repair(&undo).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    image.mount(&container.param()).unwrap();
    container.verify(&["a", "b"]);
    image.umount().unwrap();
}
