//! Damage of tables, and of the clusters of a file.

use std::fs;
use std::path::Path;

use ploop::ErrorKind;
use ploop::FormatVersion::{V1, V2};
use ploop::image::{Issue, RepairChoice, RepairOptions, check};

use crate::damaged_image::{
    CLUSTER, DamagedImage, SIZE, assert_repaired, is_left, is_repaired, repair_by_choice,
};
use crate::written_image::{entry_offset, pattern};

#[test]
fn an_image_that_is_sound_stays_as_it_is() {
    for version in [V1, V2] {
        let image = DamagedImage::new(version);
        let before = image.files();
        let report = image.repair(&RepairChoice::ALL);
        assert!(
            report.items.is_empty() && report.is_complete(),
            "{report:?}"
        );
        assert!(image.files() == before);
    }
}

#[test]
fn marks_of_a_crash_are_cleared() {
    let image = DamagedImage::new(V2);
    for name in ["base.hds", "top.hds"] {
        image.write(name, 44, &0x746f_6e59u32.to_le_bytes());
    }
    let report = image.repair(&[]);
    assert_repaired(&report, Issue::InUse);
    image.assert_whole();
}

#[test]
fn a_mark_stays_while_the_delta_is_damaged() {
    let image = DamagedImage::new(V2);
    image.write("top.hds", 44, &0x746f_6e59u32.to_le_bytes());
    image.set_entry("top.hds", 40, 1000);
    let report = image.repair(&[]);
    assert!(is_left(&report, Issue::InUse), "{report:?}");
    let report = image.repair(&[RepairChoice::ClearEntries]);
    assert_repaired(&report, Issue::InUse);
    image.assert_whole();
}

#[test]
fn a_damaged_delta_below_that_is_marked_does_not_stand_in_the_way() {
    let image = DamagedImage::new(V2);
    image.write("middle.hds", 44, &0x746f_6e59u32.to_le_bytes());
    image.set_entry("middle.hds", 40, 1000);
    let report = image.repair(&[RepairChoice::ClearEntries]);
    assert_repaired(&report, Issue::InUse);
    image.assert_whole();
}

#[test]
fn entries_that_lead_nowhere_are_cleared_by_choice() {
    for version in [V1, V2] {
        for (name, number, entry) in [
            ("top.hds", 40, 1000 * 64),
            ("base.hds", 0, 0xffff_ffff),
            ("middle.hds", 10, 0x8000_0000),
        ] {
            let image = DamagedImage::new(version);
            image.set_entry(name, number, entry);
            let report = repair_by_choice(&image, Issue::BadEntry, RepairChoice::ClearEntries);
            assert!(report.is_complete(), "{report:?}");
            image.assert_sound();
            // It is that of a cluster which is read below, or of none.
            let read = image.read();
            let top = &read[&ploop::Guid::TOP];
            let expected = image.contents(2);
            for (at, cluster) in top.iter().enumerate() {
                let part = &expected[at * CLUSTER as usize..][..CLUSTER as usize];
                let is_lost = at == number as usize && name == "base.hds";
                match is_lost {
                    true => assert!(cluster.as_ref().unwrap().iter().all(|byte| *byte == 0)),
                    false => assert!(cluster.as_deref() == Some(part), "{name} {at}"),
                }
            }
        }
    }
    // In version 1, entries may lead between two clusters.
    let image = DamagedImage::new(V1);
    image.set_entry("top.hds", 40, 65);
    repair_by_choice(&image, Issue::BadEntry, RepairChoice::ClearEntries);
    image.assert_whole();
}

/// A cluster that no entry leads to may be that of an entry which leads nowhere.
#[test]
fn lost_clusters_stay_while_an_entry_is_damaged() {
    let image = DamagedImage::new(V2);
    image.set_entry("top.hds", 60, 1000);
    let len = image.len("top.hds");
    let report = image.repair(&[]);
    assert!(is_left(&report, Issue::LostClusters), "{report:?}");
    assert_eq!(image.len("top.hds"), len);
    let report = image.repair(&[RepairChoice::ClearEntries]);
    assert!(is_repaired(&report, Issue::LostClusters), "{report:?}");
    assert_eq!(image.len("top.hds"), len - CLUSTER);
    image.assert_sound();
}

#[test]
fn shared_clusters_get_copies_by_choice() {
    for version in [V1, V2] {
        let image = DamagedImage::new(version);
        let of_60 = image.deltas[2].entry(CLUSTER * 4);
        // Cluster 100 now is the same as cluster 60, whose place is the fourth.
        image.set_entry("top.hds", 100, of_60);
        let len = image.len("top.hds");
        let report = repair_by_choice(&image, Issue::SharedCluster, RepairChoice::CopyShared);
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(image.len("top.hds"), len + CLUSTER);
        image.assert_sound();
        let read = image.read();
        let top = &read[&ploop::Guid::TOP];
        assert!(top[100] == top[60]);
        assert!(top[60].as_deref() == Some(&pattern(24, 60 * CLUSTER, CLUSTER)[..]));
    }
}

/// An entry that was overwritten by that of another cluster has lost its own, in which the copy goes.
#[test]
fn a_copy_takes_the_place_of_a_lost_cluster() {
    let image = DamagedImage::new(V2);
    image.set_entry("top.hds", 61, 4);
    let len = image.len("top.hds");
    let report = image.repair(&[]);
    assert!(is_left(&report, Issue::LostClusters), "{report:?}");
    let report = image.repair(&[RepairChoice::CopyShared]);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(image.len("top.hds"), len);
    image.assert_sound();
    let read = image.read();
    let top = &read[&ploop::Guid::TOP];
    assert!(top[61].as_deref() == Some(&pattern(24, 60 * CLUSTER, CLUSTER)[..]));
}

/// Without the choice for entries that lead nowhere, the file must not grow under them.
#[test]
fn no_copies_while_entries_lead_behind_the_end() {
    let image = DamagedImage::new(V2);
    image.set_entry("top.hds", 100, 4);
    image.set_entry("top.hds", 101, 6);
    let report = image.repair(&[RepairChoice::CopyShared]);
    assert!(is_left(&report, Issue::SharedCluster), "{report:?}");
    let report = image.repair(&[RepairChoice::CopyShared, RepairChoice::ClearEntries]);
    assert!(report.is_complete(), "{report:?}");
    image.assert_sound();
}

#[test]
fn lost_clusters_are_freed() {
    for version in [V1, V2] {
        // At the end of the file, and in the middle.
        for lost in [vec![61], vec![1], vec![1, 60], vec![1, 10, 130, 60, 61]] {
            let image = DamagedImage::new(version);
            for number in &lost {
                image.set_entry("top.hds", *number, 0);
            }
            let len = image.len("top.hds");
            assert!(check(&image.xml).has(Issue::LostClusters));
            let report = image.repair(&[]);
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(image.len("top.hds"), len - lost.len() as u64 * CLUSTER);
            image.assert_sound();
            let read = image.read();
            let top = &read[&ploop::Guid::TOP];
            for (number, seed) in [(1, 21), (10, 22), (130, 23), (60, 24), (61, 25)] {
                if !lost.contains(&number) {
                    let at = u64::from(number);
                    let expected = pattern(seed, at * CLUSTER, CLUSTER);
                    assert!(top[number as usize].as_deref() == Some(&expected[..]));
                }
            }
        }
    }
}

#[test]
fn space_that_was_preallocated_before_a_crash_is_freed() {
    let image = DamagedImage::new(V2);
    let len = image.len("top.hds");
    image.write("top.hds", len, &vec![7; 3 * CLUSTER as usize + 1000]);
    let report = image.repair(&[]);
    assert!(is_repaired(&report, Issue::LostClusters), "{report:?}");
    assert!(is_repaired(&report, Issue::UnalignedTail), "{report:?}");
    assert_eq!(image.len("top.hds"), len);
    image.assert_whole();
}

#[test]
fn a_file_that_was_cut_short_gets_its_last_cluster_back_by_choice() {
    let image = DamagedImage::new(V2);
    let len = image.len("top.hds");
    image.set_len("top.hds", len - 1000);
    let report = repair_by_choice(&image, Issue::BadEntry, RepairChoice::ClearEntries);
    assert!(is_repaired(&report, Issue::UnalignedTail), "{report:?}");
    assert_eq!(image.len("top.hds"), len);
    image.assert_sound();
    let read = image.read();
    let mut expected = pattern(25, 61 * CLUSTER, CLUSTER);
    expected[CLUSTER as usize - 1000..].fill(0);
    assert!(read[&ploop::Guid::TOP][61].as_deref() == Some(&expected[..]));
}

#[test]
fn entries_behind_the_disk_are_cleared() {
    let image = DamagedImage::new(V2);
    image.set_entry("top.hds", 200, 4);
    image.write("top.hds", CLUSTER - 4, &9u32.to_le_bytes());
    let report = image.repair(&[]);
    assert!(is_repaired(&report, Issue::EntryBeyondDisk), "{report:?}");
    image.assert_whole();
}

/// They may be right, and the size wrong.
#[test]
fn entries_behind_the_disk_stay_where_the_descriptor_has_a_larger_one() {
    let image = DamagedImage::new(V2);
    image.set_entry("top.hds", 200, 6);
    image.set_len("top.hds", 7 * CLUSTER);
    let size = SIZE / 512;
    image.replace_in_descriptor(
        &format!("<Disk_size>{size}"),
        &format!("<Disk_size>{}", size + 64),
    );
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::EntryBeyondDisk), "{report:?}");
    assert!(is_left(&report, Issue::Size), "{report:?}");
    assert!(image.files() == before);
}

#[test]
fn the_flag_of_an_empty_delta() {
    let image = DamagedImage::new(V2);
    image.write("top.hds", 52, &1u32.to_le_bytes());
    let report = image.repair(&[]);
    assert!(is_repaired(&report, Issue::EmptyFlag), "{report:?}");
    image.assert_whole();
}

#[test]
fn holes_are_filled_by_choice() {
    let image = DamagedImage::new(V2);
    let path = image.file("top.hds");
    let bytes = fs::read(&path).unwrap();
    // A sparse copy, in which the table and a cluster of zeros are holes.
    let file = fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..4096], 0).unwrap();
    let start = CLUSTER as usize;
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[start..], CLUSTER).unwrap();
    file.sync_all().unwrap();
    let report = repair_by_choice(&image, Issue::Sparse, RepairChoice::FillHoles);
    assert!(report.is_complete(), "{report:?}");
    image.assert_whole();
    let stored = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) * 512;
    assert!(stored >= bytes.len() as u64);
}

#[test]
fn orphans_go_by_choice_and_come_back() {
    let image = DamagedImage::new(V2);
    let orphan = image.file("top.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
    fs::copy(image.file("top.hds"), &orphan).unwrap();
    fs::write(image.file("middle.hds.tmp"), "half").unwrap();
    let report = repair_by_choice(&image, Issue::Orphan, RepairChoice::RemoveOrphans);
    assert!(report.is_complete(), "{report:?}");
    assert!(!orphan.exists() && !image.file("middle.hds.tmp").exists());
    image.assert_whole();
}

/// It would be the next one's orphan.
#[test]
fn an_undo_file_is_not_called_like_a_delta() {
    let image = DamagedImage::new(V2);
    let orphan = image.file("top.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
    fs::copy(image.file("top.hds"), &orphan).unwrap();
    let mut open = image.open();
    let options = RepairOptions::new().allow(RepairChoice::RemoveOrphans);
    for name in ["base.hds.{01234567-89ab-4cde-8f01-23456789abcd}", "top.hds"] {
        let options = options.clone().undo(image.file(name));
        let error = open.repair(&options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(orphan.exists());
    }
    let undo = image.file("undo");
    open.repair(&options.undo(&undo), |_| {}).unwrap();
    assert!(!orphan.exists());
    open.undo_repair(&undo).unwrap();
    assert!(fs::read(&orphan).unwrap() == fs::read(image.file("top.hds")).unwrap());
}

/// A descriptor that is damaged may be the one that names it.
#[test]
fn what_a_damaged_descriptor_may_name_is_no_orphan() {
    let image = DamagedImage::new(V2);
    let orphan = image.file("top.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
    fs::copy(image.file("top.hds"), &orphan).unwrap();
    let whole = fs::read(&image.xml).unwrap();
    let utf_32 = |text: &[u8]| text.iter().flat_map(|it| [*it, 0, 0, 0]).collect();
    let name = orphan.file_name().unwrap().as_encoded_bytes();
    let mentioned = [b"<a>", name].concat();
    let texts: [Vec<u8>; 9] = [
        whole[..90].to_vec(),
        mentioned.clone(),
        utf_32(&whole[..90]),
        utf_32(&mentioned),
        whole[..30].to_vec(),
        utf_32(&whole[..10]),
        Vec::new(),
        vec![0; whole.len()],
        b"\x1f\x8b\x08\0\0\0\0\0".to_vec(),
    ];
    let assert_kept = |what: &str| {
        assert!(!check(&image.xml).has(Issue::Orphan), "{what}");
        image.repair(&[RepairChoice::RemoveOrphans]);
        assert!(orphan.exists(), "{what}");
    };
    for text in texts {
        for name in ["copy.xml", "COPY.XML", "copy.xml.bak", "copy.xml~"] {
            fs::write(image.file(name), &text).unwrap();
            assert_kept(&format!("{name}: {}", text.escape_ascii()));
            fs::remove_file(image.file(name)).unwrap();
        }
    }
    // By a sparse file.
    let large = fs::File::create(image.file("copy.xml")).unwrap();
    large.set_len((16 << 20) + 1).unwrap();
    assert_kept("more than a descriptor can be");
    // What is no descriptor names nothing.
    for (name, text) in [("copy.xml", "<a/>"), ("notes", ""), ("copy.xml.lck", "")] {
        fs::write(image.file(name), text).unwrap();
        assert!(check(&image.xml).has(Issue::Orphan), "{name}");
    }
    // A read of it is an error, for everybody.
    std::os::unix::fs::symlink("/proc/self/mem", image.file("unknown.xml")).unwrap();
    let report = check(&image.xml);
    assert!(
        report.has(Issue::Unreadable) && report.is_sound(),
        "{report:?}"
    );
    assert!(report.orphans.is_empty());
}

/// Whatever a descriptor is called, and by whatever path it names a delta.
#[test]
fn what_a_descriptor_beside_names_is_no_orphan() {
    let image = DamagedImage::new(V2);
    let orphan = image.file("top.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
    fs::copy(image.file("top.hds"), &orphan).unwrap();
    let whole = fs::read_to_string(&image.xml).unwrap();
    let names = |file: &str| whole.replace(">top.hds<", &format!(">{file}<"));
    let own = names(orphan.file_name().unwrap().to_str().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("elsewhere"), &own).unwrap();
    let link = |target: &Path, name: &str| {
        std::os::unix::fs::symlink(target, image.file(name)).unwrap();
    };
    link(&orphan, "top-by-a-link");
    let by_a_link = names("top-by-a-link");
    for name in ["clone", "CLONE.XML", "clone.xml.bak", "clone.xml"] {
        for text in [&own, &by_a_link] {
            fs::write(image.file(name), text).unwrap();
            assert!(!check(&image.xml).has(Issue::Orphan), "{name}");
            image.repair(&[RepairChoice::RemoveOrphans]);
            assert!(orphan.exists(), "{name}");
            fs::remove_file(image.file(name)).unwrap();
        }
    }
    link(&elsewhere.path().join("elsewhere"), "link.xml");
    assert!(!check(&image.xml).has(Issue::Orphan));
    image.repair(&[RepairChoice::RemoveOrphans]);
    assert!(orphan.exists());
    fs::remove_file(image.file("link.xml")).unwrap();
    assert!(check(&image.xml).has(Issue::Orphan));
    // Its own, too.
    fs::write(&image.xml, by_a_link).unwrap();
    fs::remove_file(image.file("top.hds")).unwrap();
    assert!(!check(&image.xml).has(Issue::Orphan));
}

#[test]
fn an_extension_is_dropped_by_choice() {
    // Clusters that no entry leads to, and that are an extension's.
    let image = DamagedImage::new(V2);
    let len = image.len("top.hds");
    image.write("top.hds", len, &vec![0; CLUSTER as usize]);
    image.write("top.hds", 44, &0x312e_3276u32.to_le_bytes());
    image.write("top.hds", 56, &(len / 512).to_le_bytes());
    // It has no magic number.
    let report = repair_by_choice(&image, Issue::Extension, RepairChoice::DropExtensions);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(image.len("top.hds"), len);
    image.assert_whole();

    // A sound one, with no bitmap in it.
    let image = DamagedImage::new(V2);
    let mut extension = vec![0; CLUSTER as usize];
    extension[..8].copy_from_slice(&0xab23_4cef_23dc_ea87u64.to_le_bytes());
    image.write("top.hds", len, &extension);
    image.write("top.hds", 44, &0x312e_3276u32.to_le_bytes());
    image.write("top.hds", 56, &(len / 512).to_le_bytes());
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(report.items.is_empty(), "{report:?}");
    assert!(image.files() == before);
    // The table has to be changed, and the bitmaps would not know of it.
    image.set_entry("top.hds", 100, 1000);
    let report = image.repair(&[RepairChoice::DropExtensions]);
    assert_eq!(report.choices(), [RepairChoice::ClearEntries]);
    let report = image.repair(&[RepairChoice::ClearEntries]);
    assert_eq!(report.choices(), [RepairChoice::DropExtensions]);
    let report = image.repair(&[RepairChoice::DropExtensions, RepairChoice::ClearEntries]);
    assert!(report.is_complete(), "{report:?}");
    image.assert_whole();
}

#[test]
fn a_file_with_two_names_is_left() {
    let image = DamagedImage::new(V2);
    fs::hard_link(image.file("top.hds"), image.file("clone")).unwrap();
    assert!(image.repair(&[]).is_complete());
    image.set_entry("top.hds", 61, 0);
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::LostClusters), "{report:?}");
    assert!(image.files() == before);
}

#[test]
fn the_first_entry_is_behind_the_header() {
    assert_eq!(entry_offset(0), 64);
}
