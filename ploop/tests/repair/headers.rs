//! Damage of headers.

use ploop::FormatVersion::{V1, V2};
use ploop::image::{Issue, RepairChoice, check};

use crate::damaged_image::{CLUSTER, DamagedImage, FILES, SIZE, assert_repaired, is_left};

/// Each field by itself, in each delta: the rest of the image tells what it was.
#[test]
fn fields_are_corrected() {
    for version in [V1, V2] {
        for name in FILES {
            for (at, value) in [
                (16, 3u32),        // the type
                (28, 0),           // no cluster size
                (28, 63),          // one of old versions
                (28, 128),         // one that is possible
                (32, 7),           // the number of entries
                (36, 0),           // no size
                (36, 0xffff_ffff), // one for which the table is too short
                (48, 0),           // the first block is in the header
                (48, 63),          // it is no cluster
                (48, 0x0fff_ffc0), // it is behind the end
                (48, 2 * 64),      // it is behind the first cluster
            ] {
                let image = DamagedImage::new(version);
                let original = image.files();
                image.write(name, at, &value.to_le_bytes());
                let before = check(&image.xml);
                let report = image.repair(&[]);
                assert!(
                    report.is_complete(),
                    "{name} {at} {value}: {before}\n{report:#?}"
                );
                image.assert_whole();
                assert_eq!(image.files(), original, "{name} {at} {value}");
            }
        }
    }
}

#[test]
fn a_signature_that_is_gone_is_made_anew_by_choice() {
    for version in [V1, V2] {
        for (start, len) in [(0, 16), (0, 64), (3, 1)] {
            let image = DamagedImage::new(version);
            image.write("middle.hds", start, &vec![0; len]);
            let report = image.repair(&[]);
            assert!(!report.is_complete());
            assert_eq!(report.choices(), [RepairChoice::RebuildHeaders]);
            let report = image.repair(&[RepairChoice::RebuildHeaders]);
            assert!(report.is_complete(), "{report:?}");
            image.assert_whole();
        }
    }
    // A file that is something else.
    let image = DamagedImage::new(V2);
    image.write("middle.hds", 0, &vec![7; 40_000]);
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::Header), "{report:?}");
    assert!(image.files() == before);
}

#[test]
fn a_signature_of_the_other_version_is_corrected() {
    for (version, other) in [(V1, b"WithouFreSpacExt"), (V2, b"WithoutFreeSpace")] {
        let image = DamagedImage::new(version);
        image.write("base.hds", 0, other);
        assert!(check(&image.xml).has(Issue::MixedVersions));
        let report = image.repair(&[]);
        assert_repaired(&report, Issue::MixedVersions);
        image.assert_whole();
    }
}

/// The header and the number of entries say one thing, the descriptor another one.
#[test]
fn the_descriptor_gets_the_size_of_the_top() {
    let image = DamagedImage::new(V2);
    let sectors = SIZE / 512;
    let from = format!("<Disk_size>{sectors}");
    image.replace_in_descriptor(&from, &format!("<Disk_size>{}", sectors * 2));
    let report = image.repair(&[]);
    assert_repaired(&report, Issue::Size);
    image.assert_whole();
}

/// The descriptor and the number of entries say one thing, the size of the top another one.
#[test]
fn the_top_gets_the_size_of_the_descriptor() {
    let image = DamagedImage::new(V2);
    let original = image.files();
    let sectors = (SIZE / 512) as u32;
    image.write("top.hds", 36, &(sectors + 64 * 50).to_le_bytes());
    let report = image.repair(&[]);
    assert!(report.is_complete(), "{report:?}");
    image.assert_whole();
    assert_eq!(image.files(), original);
    // Half the size: the entries behind it are in use.
    image.write("top.hds", 36, &(sectors / 2).to_le_bytes());
    let report = image.repair(&[]);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(image.files(), original);
    // The same in a delta below.
    image.write("base.hds", 36, &(sectors / 2).to_le_bytes());
    let report = image.repair(&[]);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(image.files(), original);
}

#[test]
fn the_descriptor_gets_the_cluster_size_of_all_deltas() {
    let image = DamagedImage::new(V2);
    image.replace_in_descriptor("<Blocksize>64", "<Blocksize>128");
    assert!(check(&image.xml).has(Issue::ClusterSize));
    let report = image.repair(&[]);
    assert!(report.is_complete(), "{report:?}");
    image.assert_whole();
}

#[test]
fn a_file_that_ends_in_the_table_is_left() {
    let image = DamagedImage::new(V2);
    image.set_len("top.hds", 500);
    let before = image.files();
    let report = image.repair(&RepairChoice::ALL);
    assert!(is_left(&report, Issue::Header), "{report:?}");
    assert!(image.files() == before);
}

#[test]
fn a_file_that_ends_behind_the_table_is_made_whole_by_choice() {
    let image = DamagedImage::new(V2);
    image.set_len("top.hds", 2000);
    let report = image.repair(&[RepairChoice::ClearEntries]);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(image.len("top.hds"), CLUSTER);
    image.assert_sound();
    let read = image.read();
    let expected = image.contents(1);
    for (at, cluster) in read[&ploop::Guid::TOP].iter().enumerate() {
        assert!(cluster.as_deref() == Some(&expected[at * CLUSTER as usize..][..CLUSTER as usize]));
    }
}
