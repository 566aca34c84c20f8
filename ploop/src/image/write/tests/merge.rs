//! Merges that run while the disk is read and written.

use std::path::{Path, PathBuf};

use super::*;
use crate::image::disk::OpenOptions as DiskOptions;
use crate::image::header::Header;
use crate::image::write::create_delta;
use crate::{ErrorKind, FormatVersion, Size};

const CLUSTERS: u64 = 40;

/// Three deltas, or two upon a raw base, each with clusters of its own.
fn chain(dir: &Path, raw: bool, random: &mut Rng) -> (Vec<PathBuf>, Vec<u8>) {
    let size = Size::from_bytes(CLUSTERS * CLUSTER);
    let paths: Vec<PathBuf> = ["base", "middle", "top"].map(|name| dir.join(name)).into();
    if raw {
        std::fs::write(&paths[0], vec![0; size.bytes() as usize]).unwrap();
    } else {
        create_delta(&paths[0], FormatVersion::V2, cluster(), size).unwrap();
    }
    let mut model = vec![0; size.bytes() as usize];
    let mut writer = open(&paths[..1], raw);
    for (level, path) in paths.iter().enumerate() {
        if level > 0 {
            writer.snapshot(path).unwrap();
        }
        for _ in 0..20 {
            write(&mut writer, &mut model, random);
        }
    }
    writer.close().unwrap();
    (paths, model)
}

fn write(writer: &mut DiskWriter, model: &mut [u8], random: &mut Rng) {
    let at = random.u64(..(CLUSTERS - 3) * CLUSTER);
    let len = 1 + random.u64(..2 * CLUSTER);
    let byte = 1 + random.u8(..255);
    let range = at as usize..(at + len) as usize;
    match random.u64(..4) {
        0 => {
            writer.write_zeroes(at, len).unwrap();
            model[range].fill(0);
        }
        _ => {
            writer.write_at(&vec![byte; len as usize], at).unwrap();
            model[range].fill(byte);
        }
    }
}

fn whole(writer: &mut DiskWriter) -> Vec<u8> {
    let mut now = vec![0; writer.size().bytes() as usize];
    writer.read_at(&mut now, 0).unwrap();
    now
}

/// The chain as another program finds it in the files.
fn of_files(paths: &[PathBuf], raw: bool) -> Vec<u8> {
    let files = paths
        .iter()
        .map(|path| DeltaFile::new(std::fs::File::open(path).unwrap(), path));
    contents(
        &Disk::from_files(
            files.collect(),
            cluster(),
            ChainOptions::new().raw_base(raw).allow_in_use(true),
        )
        .unwrap(),
    )
}

fn is_empty(delta: &Path) -> bool {
    let entries = Header::read(delta).unwrap().entries() as usize;
    std::fs::read(delta).unwrap()[Header::LEN..][..4 * entries]
        .iter()
        .all(|byte| *byte == 0)
}

#[test]
fn the_disk_is_written_while_clusters_move() {
    for (seed, raw) in (0..12).map(|seed| (seed, seed % 3 == 0)) {
        let mut random = Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let (mut paths, mut model) = chain(dir.path(), raw, &mut random);
        let mut writer = open(&paths, raw);
        // What a sector may hold after a crash.
        let mut since_flush = vec![model.clone()];
        for expected in [2, 1] {
            writer.begin_merge().unwrap();
            assert!(writer.is_merging());
            assert_eq!(writer.levels(), expected + 1);
            let mut more = true;
            while more {
                more = writer.merge_next().unwrap();
                if random.u64(..2) == 0 {
                    write(&mut writer, &mut model, &mut random);
                    since_flush.push(model.clone());
                }
                if random.u64(..4) == 0 {
                    writer.flush().unwrap();
                    since_flush = vec![model.clone()];
                }
                assert!(whole(&mut writer) == model, "seed {seed}");
                let found = of_files(&paths, raw);
                for (index, sector) in found.chunks(512).enumerate() {
                    let held = |model: &Vec<u8>| &model[512 * index..][..512] == sector;
                    assert!(since_flush.iter().any(held), "seed {seed}, sector {index}");
                }
            }
            for error in [
                writer.snapshot(dir.path().join("new")).unwrap_err(),
                writer.grow(Size::from_mib(64)).unwrap_err(),
                writer.compact().unwrap_err(),
                writer.release(&[1]).unwrap_err(),
                writer.remove_level(1).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            }
            let top = paths.last().unwrap();
            assert!(is_empty(top) && Header::read(top).unwrap().in_use);
            assert_eq!(&writer.finish_merge().unwrap(), top);
            assert!(!Header::read(top).unwrap().in_use);
            assert_eq!(writer.levels(), expected);
            // Also with the old top, which hides nothing.
            assert!(of_files(&paths, raw) == whole(&mut writer));
            write(&mut writer, &mut model, &mut random);
            writer.flush().unwrap();
            assert!(of_files(&paths, raw) == model);
            since_flush = vec![model.clone()];
            std::fs::remove_file(paths.pop().unwrap()).unwrap();
        }
        assert_eq!(
            writer.finish_merge().unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        writer.close().unwrap();
        assert!(of_files(&paths, raw) == model);
    }
}

/// Clusters that were not moved are still in the source, whose mark shows that the merge was not finished.
#[test]
fn a_merge_that_is_not_finished_leaves_both() {
    let mut random = Rng::with_seed(7);
    let dir = tempfile::tempdir().unwrap();
    let (paths, model) = chain(dir.path(), false, &mut random);
    let mut writer = open(&paths, false);
    writer.begin_merge().unwrap();
    assert!(writer.merge_next().unwrap());
    writer.close().unwrap();
    let marks = [1, 2].map(|level| Header::read(&paths[level]).unwrap().in_use);
    assert_eq!(marks, [false, true]);
    assert!(!is_empty(&paths[2]));
    assert!(of_files(&paths, false) == model);
    // A merge of the two can begin again.
    let mut writer =
        DiskWriter::open_files(&paths, cluster(), ChainOptions::new().allow_in_use(true)).unwrap();
    writer.merge_down().unwrap();
    assert!(whole(&mut writer) == model);
    writer.close().unwrap();
    assert!(is_empty(&paths[2]));
    let marked = DiskOptions::new().open_image(&paths[1]);
    assert!(marked.is_ok());
}
