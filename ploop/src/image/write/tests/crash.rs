//! A writer that is killed at each of its steps.

use std::collections::BTreeMap;

use super::recorder::{Recorder, SECTOR, Step, replay};
use super::*;
use crate::image::{Issue, OpenOptions as DiskOptions, check_image};

/// The contents of a sector after the write with this number; 0 for none.
fn sector(number: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for word in bytes.chunks_mut(4) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn number(bytes: &[u8]) -> u32 {
    assert!(
        bytes[4..] == bytes[..SECTOR - 4],
        "a sector is torn, or of something else"
    );
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

/// The sectors of a disk with all they have held: (position in the log, number of the write).
type History = BTreeMap<u64, Vec<(usize, u32)>>;

/// Works on a new delta. Returns the file before that, the steps of the work, and the history.
fn work(
    path: &Path,
    version: FormatVersion,
    seed: u64,
    ahead: u64,
) -> (Vec<u8>, Vec<Step>, History) {
    let size = Size::from_bytes(60 * CLUSTER);
    create_delta(path, version, cluster(), size).unwrap();
    let start = std::fs::read(path).unwrap();
    let (recorder, log) = Recorder::of(path);
    let mut delta = WritableDelta::from_storage(path, Box::new(recorder), false).unwrap();
    delta.mark(true).unwrap();
    let top = Top::Delta(Box::new(delta));
    let mut writer = DiskWriter::from_levels(Vec::new(), top, cluster()).unwrap();
    writer.set_preallocation(ahead * CLUSTER);
    let mut random = Rng::with_seed(seed);
    let mut history = History::new();
    let now = || log.lock().unwrap().len();
    for write in 1..=70 {
        let sectors = writer.size().sectors();
        match random.u64(..20) {
            0..=1 => {
                writer.flush().unwrap();
                log.lock().unwrap().push(Step::Flushed);
            }
            2 => {
                let first = random.u64(..60);
                let given = writer.discard(first * CLUSTER, 3.min(60 - first) * CLUSTER);
                // It may take effect from now on. Reads show which sectors it concerns.
                given.unwrap();
                for at in first * 64..(first + 3).min(60) * 64 {
                    history.entry(at).or_default().push((now(), 0));
                }
            }
            3 => {
                let before = now();
                let at = random.u64(..60 * 64);
                let len = (1 + random.u64(..150)).min(60 * 64 - at);
                let bytes = SECTOR as u64;
                writer.write_zeroes(at * bytes, len * bytes).unwrap();
                for at in at..at + len {
                    history.entry(at).or_default().push((before, 0));
                }
            }
            4 => {
                let clusters = [random.u64(..60), random.u64(..60)];
                writer
                    .release(&clusters.map(|cluster| cluster as u32))
                    .unwrap();
                for at in clusters
                    .iter()
                    .flat_map(|cluster| cluster * 64..(cluster + 1) * 64)
                {
                    history.entry(at).or_default().push((now(), 0));
                }
            }
            5 => {
                writer.compact().unwrap();
                log.lock().unwrap().push(Step::Flushed);
            }
            6 if write % 3 == 0 => {
                // So much longer that the table needs another cluster.
                let clusters = sectors / 64 + 4000;
                writer.grow(Size::from_bytes(clusters * CLUSTER)).unwrap();
                log.lock().unwrap().push(Step::Flushed);
            }
            _ => {
                let at = random.u64(..60 * 64);
                let len = (1 + random.u64(..150)).min(60 * 64 - at);
                let data = sector(write).repeat(len as usize);
                let before = now();
                writer.write_at(&data, at * SECTOR as u64).unwrap();
                for at in at..at + len {
                    history.entry(at).or_default().push((before, write));
                }
            }
        }
        for at in [random.u64(..60 * 64), random.u64(..60 * 64)] {
            let mut bytes = [0; SECTOR];
            writer.read_at(&mut bytes, at * SECTOR as u64).unwrap();
            let expected = history
                .get(&at)
                .and_then(|held| held.last())
                .map_or(0, |last| last.1);
            assert_eq!(number(&bytes), expected);
        }
    }
    writer.close().unwrap();
    log.lock().unwrap().push(Step::Flushed);
    let steps = log.lock().unwrap().clone();
    (start, steps, history)
}

fn verify(path: &Path, steps: &[Step], history: &History, at: usize) {
    let report = check_image(path);
    assert!(report.is_sound(), "after step {at}: {report}");
    let disk = DiskOptions::new()
        .allow_in_use(true)
        .open_image(path)
        .unwrap();
    let flushed = steps
        .iter()
        .rposition(|step| matches!(step, Step::Flushed))
        .unwrap_or(0);
    let mut all = vec![0; (60 * CLUSTER) as usize];
    disk.read_at(&mut all, 0).unwrap();
    for (index, bytes) in all.chunks(SECTOR).enumerate() {
        let found = number(bytes);
        let held = history.get(&(index as u64)).map_or(&[][..], Vec::as_slice);
        let old = held
            .iter()
            .rev()
            .find(|(when, _)| *when < flushed)
            .map_or(0, |(_, number)| *number);
        let allowed = found == old
            || held
                .iter()
                .any(|(when, number)| *when >= flushed && *when <= at && *number == found);
        assert!(
            allowed,
            "after step {at}, sector {index} holds {found}, flushed was {old}"
        );
    }
}

#[test]
fn a_kill_at_any_point_leaves_what_was_flushed() {
    let dir = tempfile::tempdir().unwrap();
    for (version, seed, ahead) in [
        (FormatVersion::V1, 1, 0),
        (FormatVersion::V2, 2, 0),
        (FormatVersion::V1, 3, 3),
        (FormatVersion::V2, 4, 7),
    ] {
        let path = dir.path().join(format!("delta{seed}"));
        let (start, steps, history) = work(&path, version, seed, ahead);
        assert!(steps.len() > 60);
        let killed = dir.path().join("killed");
        let mut random = Rng::with_seed(seed);
        for at in 0..=steps.len() {
            let done = &steps[..at];
            // All steps up to here took effect, or some or all of what was not synced is lost.
            for kept in [[100, 50], [50, 0]][at % 2] {
                let file = replay(&start, done, || random.u64(..100) < kept);
                std::fs::write(&killed, file).unwrap();
                verify(&killed, done, &history, at);
            }
        }
        let report = check_image(&path);
        assert!(!report.has(Issue::InUse) && report.is_sound(), "{report}");
        std::fs::remove_file(&path).unwrap();
    }
}
