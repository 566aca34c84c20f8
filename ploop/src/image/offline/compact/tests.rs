//! A compaction that is killed at each of its steps.

use fastrand::Rng;

use super::*;
use crate::image::chain::Level;
use crate::image::write::tests::recorder::{Recorder, replay};
use crate::image::write::{DiskWriter, create_delta};
use crate::image::{ChainOptions, OpenOptions as DiskOptions, check_image};
use crate::{ClusterSize, FormatVersion};

const CLUSTER: usize = 32 << 10;
const CLUSTERS: usize = 40;

/// The cluster with this number in the base or the top: no two are equal, but for those of zeros.
fn bytes(level: u8, number: usize) -> Vec<u8> {
    match number % 7 {
        3 => vec![0; CLUSTER],
        _ => vec![level * 100 + number as u8 + 1; CLUSTER],
    }
}

fn chain(paths: &[&std::path::Path]) -> Chain {
    let open = |path: &&std::path::Path| {
        let file = std::fs::File::open(path).unwrap();
        Level::from_file(path, file, false, true).unwrap()
    };
    let levels = paths.iter().map(open).collect();
    Chain::new(levels, ClusterSize::from_bytes(CLUSTER as u64).unwrap()).unwrap()
}

fn contents(chain: &Chain) -> Vec<u8> {
    let mut all = vec![0; CLUSTERS * CLUSTER];
    chain.read(&mut all, 0).unwrap();
    all
}

#[test]
fn a_kill_at_any_point_takes_nothing_but_free_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let [base, top, killed] = ["base", "top", "killed"].map(|name| dir.path().join(name));
    let cluster = ClusterSize::from_bytes(CLUSTER as u64).unwrap();
    let size = Size::from_bytes((CLUSTERS * CLUSTER) as u64);
    for (version, seed) in [
        (FormatVersion::V1, 1),
        (FormatVersion::V2, 2),
        (FormatVersion::V2, 3),
    ] {
        let mut random = Rng::with_seed(seed);
        for (level, path) in [&base, &top].into_iter().enumerate() {
            create_delta(path, version, cluster, size).unwrap();
            let files = [path.clone()];
            let mut writer = DiskWriter::open_files(&files, cluster, ChainOptions::new()).unwrap();
            let mut numbers: Vec<usize> = (0..CLUSTERS).filter(|_| random.u8(..3) > 0).collect();
            random.shuffle(&mut numbers);
            for number in numbers {
                let data = bytes(level as u8, number);
                writer.write_at(&data, (number * CLUSTER) as u64).unwrap();
            }
            writer.close().unwrap();
        }
        let below = chain(&[&base]);
        let (before, lower) = (contents(&chain(&[&base, &top])), contents(&below));
        let mut free = Clusters::default();
        for number in (0..CLUSTERS as u32).filter(|_| random.bool()) {
            free.insert(number);
        }
        let start = std::fs::read(&top).unwrap();
        let (recorder, log) = Recorder::of(&top);
        let mut delta = WritableDelta::from_storage(&top, Box::new(recorder), false).unwrap();
        let found = compact_file(&mut delta, Some(&below), &free, false, || Ok(())).unwrap();
        assert!(found.free > 3, "{found:?}");
        drop(delta);
        let steps = log.lock().unwrap().clone();
        assert!(steps.len() > 10, "{steps:?}");
        for at in 0..=steps.len() {
            for kept in [100, 50, 0] {
                let file = replay(&start, &steps[..at], || random.u64(..100) < kept);
                std::fs::write(&killed, file).unwrap();
                let report = check_image(&killed);
                assert!(report.is_sound(), "after step {at}: {report}");
                DiskOptions::new().open_image(&killed).unwrap();
                let now = contents(&chain(&[&base, &killed]));
                for number in 0..CLUSTERS {
                    let part = number * CLUSTER..(number + 1) * CLUSTER;
                    let is_old = now[part.clone()] == before[part.clone()];
                    let is_gone = free.contains(number as u32) && now[part.clone()] == lower[part];
                    assert!(is_old || is_gone, "after step {at}: cluster {number}");
                }
            }
        }
        // All of it was done in the end.
        let end = chain(&[&base, &top]);
        let now = contents(&end);
        for number in 0..CLUSTERS {
            let part = number * CLUSTER..(number + 1) * CLUSTER;
            let expected = match free.contains(number as u32) {
                true => &lower,
                false => &before,
            };
            assert!(now[part.clone()] == expected[part], "cluster {number}");
        }
        for path in [&base, &top] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
