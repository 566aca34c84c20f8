//! Deleting snapshots.

use std::fs;

use ploop::image::{self, Issue};
use ploop::{
    ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, Ploop, ReplaceParam,
    ReplaceTarget, SwitchFlag,
};

use super::filled_image::FilledImage;

use crate::directory::Contents;
use crate::refused::refused;

const MODES: [(ImageMode, FormatVersion); 4] = [
    (ImageMode::Expanded, FormatVersion::V1),
    (ImageMode::Expanded, FormatVersion::V2),
    (ImageMode::Preallocated, FormatVersion::V1),
    (ImageMode::Raw, FormatVersion::V1),
];

fn delete(filled: &mut FilledImage, guid: Guid) {
    filled.ploop.delete_snapshot(guid).unwrap();
    filled.states.remove(&guid);
    filled.verify();
}

#[test]
fn a_leaf_goes_with_its_file() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 3);
        if !filled.can_have_deltas() {
            continue;
        }
        filled.switch(guids[0]);
        let leaf = filled.file_of(guids[2]);
        delete(&mut filled, guids[2]);
        assert!(!leaf.exists());
        // What was below it is a leaf now.
        let leaf = filled.file_of(guids[1]);
        delete(&mut filled, guids[1]);
        assert!(!leaf.exists());
        assert_eq!(filled.names().len(), 3);
    }
}

#[test]
fn one_in_the_middle_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 4);
        let (file, above) = (filled.file_of(guids[1]), filled.file_of(guids[2]));
        delete(&mut filled, guids[1]);
        // The data is in the lower file, under the upper name.
        assert_eq!(filled.file_of(guids[2]), file);
        assert!(!above.exists());
        assert_eq!(filled.descriptor().parent(guids[2]), Some(guids[0]));
        // And the one right below the top.
        delete(&mut filled, guids[3]);
        assert_eq!(filled.descriptor().parent(Guid::TOP), Some(guids[2]));
    }
}

#[test]
fn the_base_is_merged_with_the_one_above() {
    for (mode, format) in MODES {
        let (mut filled, guids) = FilledImage::chain(mode, format, 2);
        delete(&mut filled, guids[0]);
        assert_eq!(filled.file_of(guids[1]), filled.path("root.hds"));
        delete(&mut filled, guids[1]);
        assert_eq!(filled.file_of(Guid::TOP), filled.path("root.hds"));
        assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
        assert_eq!(filled.descriptor().mode, mode);
    }
}

#[test]
fn one_with_two_children_goes_with_the_second_last() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    filled.switch(guids[0]);
    filled.write([(5, 700)]);
    // guids[0] has the children guids[1] and the top.
    filled.ploop.delete_snapshot(guids[0]).unwrap();
    filled.verify();
    assert!(filled.descriptor().snapshot(guids[0]).unwrap().temporary);
    refused(filled.ploop.delete_snapshot(guids[0]), ErrorKind::Busy);
    // libploop would fail, and not say why.
    let error = refused(filled.ploop.snapshot(), ErrorKind::Busy);
    assert!(error.message().contains("has 2 children"), "{error}");
    // Nobody can go back to it any more.
    refused(
        filled.ploop.switch_snapshot(guids[0]),
        ErrorKind::InvalidInput,
    );
    filled.verify();
    delete(&mut filled, guids[2]);
    assert!(filled.descriptor().snapshot(guids[0]).is_some());
    // One branch is removed, and what is left is merged into the other.
    filled.states.remove(&guids[0]);
    delete(&mut filled, guids[1]);
    assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
}

/// The snapshots of a descriptor may stand in any order. Removing the top, libploop takes the wrong one of the two away
/// where its parent comes later (A84).
#[test]
fn the_top_goes_in_whatever_order_the_snapshots_are() {
    for rotation in 0..3 {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let xml = fs::read_to_string(filled.xml()).unwrap();
        let (start, end) = (
            xml.find("<Shot>").unwrap(),
            xml.rfind("</Shot>").unwrap() + 7,
        );
        let mut shots: Vec<&str> = xml[start..end].split_inclusive("</Shot>").collect();
        shots.reverse();
        shots.rotate_left(rotation);
        let other = format!("{}{}{}", &xml[..start], shots.concat(), &xml[end..]);
        fs::write(filled.xml(), other).unwrap();
        filled.ploop.delete_top_delta().unwrap();
        filled.went_back_to(guids[1]);
        filled.states.remove(&guids[1]);
        filled.verify();
        let report = ploop::image::check(filled.xml());
        assert!(report.is_sound(), "{report}");
    }
}

#[test]
fn the_top_goes_and_what_is_below_is_written_to() {
    for by_name in [false, true] {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let (top, below) = (filled.file_of(Guid::TOP), filled.file_of(guids[1]));
        if by_name {
            filled.ploop.delete_snapshot(Guid::TOP).unwrap();
        } else {
            filled.ploop.delete_top_delta().unwrap();
        }
        filled.went_back_to(guids[1]);
        filled.states.remove(&guids[1]);
        filled.verify();
        assert!(!top.exists());
        assert_eq!(filled.file_of(Guid::TOP), below);
        filled.write([(2, 800)]);
        filled.verify();
    }
}

/// libploop makes such images, by a switch under `SKIP_CREATE`.
#[test]
fn a_top_with_a_child_stays() {
    let with_child = || {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        let (base, child) = (guids[0], guids[1]);
        // The top and the snapshot below change places.
        let (top, other) = (Guid::TOP.to_string(), child.to_string());
        let text = fs::read_to_string(filled.xml()).unwrap();
        let text = text.replace(&top, "THE TOP").replace(&other, &top);
        let text = text.replace("THE TOP", &other);
        let text = text.replace(&format!("<TopGUID>{other}"), &format!("<TopGUID>{top}"));
        fs::write(filled.xml(), text).unwrap();
        let upper = filled
            .states
            .insert(Guid::TOP, filled.states[&child].clone());
        filled.states.insert(child, upper.unwrap());
        (filled, base, child)
    };
    let (mut filled, base, child) = with_child();
    let report = image::check(filled.xml());
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.findings[0].issue, Issue::TopWithChild, "{report}");
    let (names, text) = (filled.names(), fs::read(filled.xml()).unwrap());
    let new = filled.path("new.hds");
    let ploop = &mut filled.ploop;
    let range = MergeTarget::Range {
        from: child,
        to: Guid::TOP,
    };
    let merge = MergeParam::new(MergeTarget::Snapshot(child));
    for result in [
        ploop.delete_top_delta(),
        ploop.delete_snapshot(Guid::TOP),
        ploop.merge(&merge),
        ploop.merge(&MergeParam::new(range)),
        ploop.merge(&MergeParam::new(MergeTarget::Range {
            from: child,
            to: base,
        })),
        ploop.merge(&merge.new_delta(new)),
        ploop.switch_snapshot(child),
        ploop
            .switch_snapshot_with(base, SwitchFlag::SKIP_CREATE)
            .map(drop),
    ] {
        let error = refused(result, ErrorKind::InvalidInput);
        assert!(error.message().contains("make a snapshot first"), "{error}");
    }
    assert_eq!(filled.names(), names);
    assert_eq!(fs::read(filled.xml()).unwrap(), text);
    // What leaves the top is allowed.
    let ways: [fn(&mut FilledImage, Guid, Guid); 4] = [
        |filled, _, _| {
            filled.snapshot();
        },
        |filled, _, child| {
            filled.ploop.delete_snapshot(child).unwrap();
            filled.states.remove(&child);
        },
        |filled, base, _| {
            filled.ploop.delete_snapshot(base).unwrap();
            filled.states.remove(&base);
            filled.snapshot();
        },
        |filled, _, child| {
            let keep = SwitchFlag::SKIP_DESTROY;
            let kept = filled.ploop.switch_snapshot_with(child, keep).unwrap();
            filled.took(kept.unwrap());
            filled.went_back_to(child);
        },
    ];
    for way in ways {
        let (mut filled, base, child) = with_child();
        way(&mut filled, base, child);
        filled.verify();
    }
}

/// Written to as the top, the snapshot would change under its other child.
#[test]
fn the_top_upon_a_snapshot_with_another_child_stays() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(1, 1)]);
    let lower = filled.snapshot();
    filled.write([(1, 2), (2, 3)]);
    let upper = filled.snapshot();
    filled.switch(lower);
    filled.write([(3, 4)]);
    let text = fs::read(filled.xml()).unwrap();
    for result in [
        filled.ploop.delete_top_delta(),
        filled.ploop.delete_snapshot(Guid::TOP),
    ] {
        let error = refused(result, ErrorKind::InvalidInput);
        assert!(error.message().contains(&upper.to_string()), "{error}");
    }
    assert_eq!(fs::read(filled.xml()).unwrap(), text);
    filled.verify();
    // Without the other child it goes.
    filled.ploop.delete_snapshot(upper).unwrap();
    filled.ploop.delete_top_delta().unwrap();
    assert_eq!(filled.descriptor().images.len(), 1);
}

#[test]
fn a_base_without_children_stays() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(2, 1)]);
    for result in [
        filled.ploop.delete_top_delta(),
        filled.ploop.delete_snapshot(Guid::TOP),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let error = refused(
        filled.ploop.delete_snapshot(Guid::generate()),
        ErrorKind::NoSnapshot,
    );
    assert_eq!(error.code(), Some(ploop::Code::NOSNAP.get()));
    filled.verify();
}

/// A copy of the descriptor in another directory, with absolute names, leaves the deltas to the image they are of.
#[test]
fn deltas_of_another_image_are_left_alone() {
    let (filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let elsewhere = tempfile::tempdir().unwrap();
    let here = filled.path("");
    let xml = fs::read_to_string(filled.xml()).unwrap();
    let copied = xml.replace("<File>root", &format!("<File>{}root", here.display()));
    assert_ne!(copied, xml);
    let copy = elsewhere.path().join("DiskDescriptor.xml");
    fs::write(&copy, copied).unwrap();
    let mut copy = Ploop::open(&copy).unwrap();
    let before = Contents::of(filled.dir.path());
    let new = elsewhere.path().join("new.hds");
    fs::copy(filled.file_of(Guid::TOP), &new).unwrap();
    let merge = MergeParam::new(MergeTarget::All);
    for result in [
        copy.delete_snapshot(guids[0]),
        copy.delete_top_delta(),
        copy.switch_snapshot(guids[0]),
        copy.merge(&merge),
        copy.merge(&merge.clone().new_delta(elsewhere.path().join("merged.hds"))),
        copy.convert(ImageMode::Preallocated),
        copy.replace(&ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP))),
        copy.drop_tracking(Guid::TOP),
    ] {
        let error = refused(result, ErrorKind::Unsupported);
        let named = filled.xml().display().to_string();
        assert!(error.message().contains(&named), "{error}");
    }
    before.assert_unchanged("a copy of the descriptor");
    filled.verify();
    // Where the other descriptor is gone, they are this image's.
    fs::remove_file(filled.xml()).unwrap();
    copy.merge(&merge).unwrap();
    assert_eq!(copy.descriptor().unwrap().images.len(), 1);
}

/// A hard link of the descriptor beside it would keep the old contents.
#[test]
fn a_descriptor_with_two_names_is_not_changed() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    let second = filled.path("second.xml");
    fs::hard_link(filled.xml(), &second).unwrap();
    let before = Contents::of(filled.dir.path());
    let mut other = Ploop::open(&second).unwrap();
    for image in [&mut filled.ploop, &mut other] {
        for result in [
            image.snapshot().map(drop),
            image.delete_snapshot(guids[0]),
            image.switch_snapshot(guids[0]),
            image.merge(&MergeParam::new(MergeTarget::All)),
            image.remove_leftovers().map(drop),
        ] {
            let error = refused(result, ErrorKind::Unsupported);
            assert!(error.message().contains("second"), "{error}");
        }
    }
    before.assert_unchanged("two names");
    fs::remove_file(second).unwrap();
    filled.ploop.snapshot().unwrap();
}
