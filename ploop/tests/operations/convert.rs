//! Changing how the base stores its clusters.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ploop::{ClusterSize, ErrorKind, FormatVersion, Guid, ImageMode};

use super::filled_image::{Delta, FilledImage};

const MODES: [ImageMode; 3] = [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw];

#[test]
fn every_mode_to_every_other() {
    for format in [FormatVersion::V1, FormatVersion::V2] {
        for cluster in [ClusterSize::MIN, ClusterSize::DEFAULT] {
            for from in MODES {
                for to in MODES {
                    let mut filled = FilledImage::with(from, cluster, format);
                    filled.write([(0, 1), (5, 2), (4, 3), (filled.clusters - 1, 4)]);
                    convert(&mut filled, to);
                }
            }
        }
    }
}

#[test]
fn under_snapshots() {
    for format in [FormatVersion::V1, FormatVersion::V2] {
        for from in MODES {
            for to in MODES {
                let (mut filled, guids) = FilledImage::chain(from, format, 2);
                convert(&mut filled, to);
                filled.write([(6, 4000)]);
                if filled.can_have_deltas() {
                    filled.switch(guids[1]);
                }
                filled.verify();
            }
        }
    }
}

fn convert(filled: &mut FilledImage, to: ImageMode) {
    let from = filled.descriptor().mode;
    let names = filled.names();
    let result = filled.ploop.convert(to);
    if from == ImageMode::Raw && to != from {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    } else {
        result.unwrap();
        assert_eq!(filled.descriptor().mode, to);
    }
    filled.verify();
    assert_eq!(filled.names(), names);
    let base = filled.descriptor().base().unwrap().file.clone();
    let size = filled.clusters * filled.cluster.bytes();
    match filled.descriptor().mode {
        ImageMode::Raw => assert_eq!(fs::metadata(base).unwrap().len(), size),
        ImageMode::Preallocated => {
            let all = (0..filled.clusters).collect();
            assert_eq!(Delta::open(&base).allocated(filled.clusters), all);
            assert!(fs::metadata(base).unwrap().blocks() * 512 >= size);
        }
        ImageMode::Expanded => {}
    }
}

#[test]
fn all_the_way_and_on() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(3, 1)]);
    for mode in [
        ImageMode::Preallocated,
        ImageMode::Expanded,
        ImageMode::Preallocated,
        ImageMode::Raw,
    ] {
        convert(&mut filled, mode);
        filled.write([(mode as u64 + 5, mode as u64 + 50)]);
        filled.verify();
    }
    let guid = filled.snapshot();
    filled.write([(3, 9)]);
    filled.verify();
    filled.ploop.delete_snapshot(guid).unwrap();
    filled.states.remove(&guid);
    filled.verify();
    assert_eq!(filled.ploop.image_info().unwrap().version, 0);
    assert_eq!(filled.file_of(Guid::TOP), filled.path("root.hds"));
}
