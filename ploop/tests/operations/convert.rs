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
                    let mut known = FilledImage::with(from, cluster, format);
                    known.write([(0, 1), (5, 2), (4, 3), (known.clusters - 1, 4)]);
                    convert(&mut known, to);
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
                let (mut known, guids) = FilledImage::chain(from, format, 2);
                convert(&mut known, to);
                known.write([(6, 4000)]);
                if known.can_have_deltas() {
                    known.switch(guids[1]);
                }
                known.verify();
            }
        }
    }
}

fn convert(known: &mut FilledImage, to: ImageMode) {
    let from = known.descriptor().mode;
    let names = known.names();
    let result = known.ploop.convert(to);
    if from == ImageMode::Raw && to != from {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    } else {
        result.unwrap();
        assert_eq!(known.descriptor().mode, to);
    }
    known.verify();
    assert_eq!(known.names(), names);
    let base = known.descriptor().base().unwrap().file.clone();
    let size = known.clusters * known.cluster.bytes();
    match known.descriptor().mode {
        ImageMode::Raw => assert_eq!(fs::metadata(base).unwrap().len(), size),
        ImageMode::Preallocated => {
            let all = (0..known.clusters).collect();
            assert_eq!(Delta::open(&base).allocated(known.clusters), all);
            assert!(fs::metadata(base).unwrap().blocks() * 512 >= size);
        }
        ImageMode::Expanded => {}
    }
}

#[test]
fn all_the_way_and_on() {
    let mut known = FilledImage::new(ImageMode::Expanded);
    known.write([(3, 1)]);
    for mode in [
        ImageMode::Preallocated,
        ImageMode::Expanded,
        ImageMode::Preallocated,
        ImageMode::Raw,
    ] {
        convert(&mut known, mode);
        known.write([(mode as u64 + 5, mode as u64 + 50)]);
        known.verify();
    }
    let guid = known.snapshot();
    known.write([(3, 9)]);
    known.verify();
    known.ploop.delete_snapshot(guid).unwrap();
    known.states.remove(&guid);
    known.verify();
    assert_eq!(known.ploop.image_info().unwrap().version, 0);
    assert_eq!(known.file_of(Guid::TOP), known.path("root.hds"));
}
