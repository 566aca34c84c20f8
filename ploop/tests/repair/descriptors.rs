//! Damage of descriptors, and of raw bases.

use std::fs;

use ploop::image::{ImageKind, Issue, OfflineImage, RepairChoice, RepairOptions, check};
use ploop::{Descriptor, ErrorKind, FormatVersion, Guid};

use crate::damaged_image::{
    CLUSTER, DamagedImage, SIZE, is_left, is_repaired, outcome, repair_by_choice,
};
use crate::written_image::{describe, snapshot};

fn image() -> DamagedImage {
    DamagedImage::new(FormatVersion::V2)
}

#[test]
fn what_libploop_trips_over_is_written_anew() {
    let other = "{11111111-2222-3333-4444-555555555555}";
    let top = Guid::TOP.to_string();
    for (from, to, issue) in [
        ("<Heads>16</Heads>", "", Issue::Geometry),
        ("<Cylinders>1<", "<Cylinders>0<", Issue::Geometry),
        (&*top, other, Issue::OldTop),
    ] {
        let image = image();
        image.replace_in_descriptor(from, to);
        assert!(check(&image.xml).has(issue));
        let report = image.repair(&[]);
        assert!(
            is_repaired(&report, issue) && report.is_complete(),
            "{report:?}"
        );
        image.assert_whole();
    }
}

#[test]
fn contradictions_with_one_right_answer() {
    let (one, two) = (snapshot(0).to_string(), snapshot(1).to_string());
    let top = Guid::TOP.to_string();
    let gone = "{11111111-2222-3333-4444-555555555555}";
    let shot = format!("<Shot><GUID>{two}</GUID><ParentGUID>{one}</ParentGUID></Shot>");
    let extra =
        |parent: &str| format!("<Shot><GUID>{gone}</GUID><ParentGUID>{parent}</ParentGUID></Shot>");
    let file = format!("<Image><GUID>{gone}</GUID><File>gone.hds</File></Image>");
    for (from, to) in [
        // Twice the same.
        (shot.clone(), shot.clone() + &shot),
        // A snapshot without a file, and two upon each other.
        (shot.clone(), shot.clone() + &extra(&one)),
        // A file in no snapshot.
        ("</Storage>".to_owned(), file + "</Storage>"),
        // The top.
        (format!("<TopGUID>{top}</TopGUID>"), String::new()),
        (
            format!("<TopGUID>{top}</TopGUID>"),
            format!("<TopGUID>{gone}</TopGUID>"),
        ),
        (
            format!("<GUID>{top}</GUID><ParentGUID>{two}</ParentGUID>"),
            format!("<GUID>{top}</GUID><ParentGUID>{two}</ParentGUID><Temporary/>"),
        ),
    ] {
        let image = image();
        image.replace_in_descriptor(&from, &to);
        if Descriptor::open(&image.xml).is_err() {
            assert!(check(&image.xml).has(Issue::Descriptor));
            let report = image.repair(&[]);
            assert!(is_repaired(&report, Issue::Descriptor), "{to}: {report:?}");
            assert!(report.is_complete(), "{to}: {report:?}");
        }
        image.assert_whole();
    }
}

#[test]
fn contradictions_with_more_answers_are_left() {
    let (one, two) = (snapshot(0).to_string(), snapshot(1).to_string());
    let gone = "{11111111-2222-3333-4444-555555555555}";
    for (from, to) in [
        // The snapshot is another one than the file's.
        (format!("<Shot><GUID>{two}"), format!("<Shot><GUID>{gone}")),
        // Its parent is none.
        (format!("<ParentGUID>{one}"), format!("<ParentGUID>{gone}")),
        // No file for a snapshot upon which others stand.
        (
            format!(
                "<Image><GUID>{two}</GUID><Type>Compressed</Type><File>middle.hds</File></Image>"
            ),
            String::new(),
        ),
        ("<Snapshots>".to_owned(), "<Snapshots".to_owned()),
    ] {
        let image = image();
        image.replace_in_descriptor(&from, &to);
        let before = image.files();
        let report = image.repair(&RepairChoice::ALL);
        assert!(is_left(&report, Issue::Descriptor), "{to}: {report:?}");
        assert!(!report.is_complete() && image.files() == before);
    }
    let image = image();
    fs::write(&image.xml, vec![0; 1000]).unwrap();
    let report = image.repair(&[]);
    assert!(is_left(&report, Issue::Descriptor), "{report:?}");
    fs::remove_file(&image.xml).unwrap();
    let error = OfflineImage::open(&image.xml).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// What is unknown to libploop stays in the descriptor.
#[test]
fn unknown_elements_are_kept() {
    let image = image();
    image.replace_in_descriptor("<Heads>16</Heads>", "<Name>a disk</Name>");
    assert!(image.repair(&[]).is_complete());
    let text = fs::read_to_string(&image.xml).unwrap();
    assert!(text.contains("<Name>a disk</Name>"), "{text}");
    image.assert_whole();
}

#[test]
fn missing_deltas() {
    // The middle is needed.
    let image = image();
    fs::remove_file(image.file("middle.hds")).unwrap();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::Missing), "{report:?}");

    // Nothing stands upon this one.
    let image = self::image();
    let gone = "{11111111-2222-3333-4444-555555555555}";
    image.replace_in_descriptor(
        "</Storage>",
        &format!("<Image><GUID>{gone}</GUID><File>gone.hds</File></Image></Storage>"),
    );
    image.replace_in_descriptor(
        "</Snapshots>",
        &format!(
            "<Shot><GUID>{gone}</GUID><ParentGUID>{}</ParentGUID></Shot></Snapshots>",
            snapshot(0)
        ),
    );
    repair_by_choice(&image, Issue::Missing, RepairChoice::DropMissing);
    image.assert_whole();
}

#[test]
fn two_snapshots_with_one_file_are_left() {
    let image = image();
    image.replace_in_descriptor("<File>middle.hds", "<File>top.hds");
    image.set_entry("top.hds", 61, 0);
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::SameFile), "{report:?}");
    assert!(is_left(&report, Issue::LostClusters), "{report:?}");
    assert!(image.files() == before);
}

#[test]
fn the_parent_of_a_snapshot_as_the_top_is_left() {
    let image = image();
    image.replace_in_descriptor(
        &format!("<TopGUID>{}", Guid::TOP),
        &format!("<TopGUID>{}", snapshot(1)),
    );
    let report = image.repair(&[]);
    assert!(is_left(&report, Issue::TopWithChild), "{report:?}");
}

#[test]
fn encrypted_images_are_refused() {
    let image = image();
    image.replace_in_descriptor(
        "<StorageData>",
        "<Encryption><KeyId>1</KeyId></Encryption><StorageData>",
    );
    let before = image.files();
    let error = image.open().repair(&RepairOptions::new(), |_| {});
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(image.files() == before);
}

#[test]
fn a_raw_base_that_was_cut_short_gets_zeros_by_choice() {
    let image = image();
    for name in ["base.hds", "middle.hds", "top.hds"] {
        fs::remove_file(image.file(name)).unwrap();
    }
    let data = vec![7; SIZE as usize - 5000];
    fs::write(image.file("raw"), &data).unwrap();
    describe(image.xml.parent().unwrap(), &["raw"], SIZE, CLUSTER, true);
    let descriptor = Descriptor::open(&image.xml).unwrap();
    assert_eq!(descriptor.images[0].kind, ImageKind::Plain);
    repair_by_choice(&image, Issue::Size, RepairChoice::PadRaw);
    let mut expected = data;
    expected.resize(SIZE as usize, 0);
    assert!(fs::read(image.file("raw")).unwrap() == expected);
    assert!(check(&image.xml).is_clean());
    // One that is longer may be the right one.
    expected.resize(SIZE as usize + 512, 0);
    fs::write(image.file("raw"), &expected).unwrap();
    let report = image.repair(&RepairChoice::ALL);
    assert!(
        is_left(&report, Issue::Size),
        "{}",
        outcome(&report, Issue::Size)
    );
}

/// What a change was that was cut short is finished first.
#[test]
fn an_interrupted_operation_is_finished() {
    let image = image();
    let orphan = image.file("left.hds");
    fs::copy(image.file("top.hds"), &orphan).unwrap();
    fs::write(image.file("DiskDescriptor.xml.ploop-files"), "left.hds\n").unwrap();
    let mut open = image.open();
    let dry = open.repair(&RepairOptions::new().dry_run(true), |_| {});
    assert!(dry.unwrap().recovered && orphan.exists());
    let report = open.repair(&RepairOptions::new(), |_| {}).unwrap();
    assert!(report.recovered && report.is_complete(), "{report:?}");
    assert!(!orphan.exists());
    let again = open.repair(&RepairOptions::new(), |_| {}).unwrap();
    assert!(!again.recovered);
    image.assert_whole();
}
