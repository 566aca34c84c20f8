//! Repairs that are killed, or whose host loses power, at each of their writes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use tempfile::TempDir;

use super::*;
use crate::image::{CreateOptions, DiskWriter, OpenOptions, create};
use crate::{ClusterSize, Descriptor, FormatVersion, Guid};
use steps::Step;

const CLUSTER: u64 = 32 << 10;
const CLUSTERS: u64 = 48;

/// An image of three deltas.
fn make(directory: &Path, version: FormatVersion) {
    let options = CreateOptions::new()
        .cluster(ClusterSize::from_bytes(CLUSTER).unwrap())
        .format(version);
    let size = Size::from_bytes(CLUSTERS * CLUSTER);
    let mut image = create(directory.join("root.hds"), size, &options).unwrap();
    for level in 0u64..3 {
        if level > 0 {
            image.snapshot().unwrap();
        }
        let mut disk = DiskWriter::open(image.path()).unwrap();
        for number in 0..8 {
            let at = (number * 5 + level * 3) % CLUSTERS;
            let data: Vec<u8> = (0..CLUSTER)
                .map(|byte| (byte >> 6) as u8 ^ (number * 17 + level * 101) as u8)
                .collect();
            disk.write_at(&data, at * CLUSTER).unwrap();
        }
        disk.close().unwrap();
    }
}

fn xml(directory: &Path) -> PathBuf {
    fs::canonicalize(directory)
        .unwrap()
        .join("DiskDescriptor.xml")
}

/// The files of the deltas, the base first.
fn deltas(directory: &Path) -> Vec<PathBuf> {
    let descriptor = Descriptor::open(xml(directory)).unwrap();
    let chain = descriptor.chain(descriptor.top);
    chain.iter().map(|image| image.file.clone()).collect()
}

fn put(file: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn entry(file: &Path, number: u64) -> u32 {
    let mut bytes = [0; 4];
    let file = File::open(file).unwrap();
    file.read_exact_at(&mut bytes, 64 + 4 * number).unwrap();
    u32::from_le_bytes(bytes)
}

fn set_entry(file: &Path, number: u64, entry: u32) {
    put(file, 64 + 4 * number, &entry.to_le_bytes());
}

/// The numbers of the clusters that a delta has.
fn allocated(file: &Path) -> Vec<u64> {
    (0..CLUSTERS)
        .filter(|number| entry(file, *number) != 0)
        .collect()
}

/// All kinds of damage of which a repair writes in several steps.
fn damage(directory: &Path, kind: usize) {
    let files = deltas(directory);
    for (level, file) in files.iter().enumerate() {
        let own = allocated(file);
        let free: Vec<u64> = (0..CLUSTERS).filter(|it| !own.contains(it)).collect();
        match kind + level {
            // Lost clusters, in the middle and at the end, and a mark.
            0 | 5 => {
                set_entry(file, own[1], 0);
                set_entry(file, own[7], 0);
                set_entry(file, own[3], 0);
                put(file, 44, &0x746f_6e59u32.to_le_bytes());
            }
            // Shared clusters, one of them by an entry whose own cluster is lost, and a wrong flag.
            1 | 4 => {
                set_entry(file, own[2], entry(file, own[5]));
                set_entry(file, free[0], entry(file, own[6]));
                put(file, 52, &1u32.to_le_bytes());
            }
            // Entries that lead nowhere, a file that was cut short, and a wrong number of entries.
            2 | 3 => {
                set_entry(file, own[0], 60_000);
                set_entry(file, free[1], 64 * 1000);
                put(file, 32, &1u32.to_le_bytes());
                let len = fs::metadata(file).unwrap().len();
                let file = File::options().write(true).open(file).unwrap();
                file.set_len(len - 700).unwrap();
            }
            // A header without its signature, over lost clusters.
            _ => {
                set_entry(file, own[4], 0);
                put(file, 0, &[0; 20]);
            }
        }
    }
    let text = fs::read_to_string(xml(directory)).unwrap();
    let text = text.replace("<Heads>16</Heads>", "<Heads>0</Heads>");
    fs::write(xml(directory), text).unwrap();
    let orphan = files[0].with_file_name("root.hds.tmp");
    fs::write(orphan, "half a file").unwrap();
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|it| it != "lck") {
            fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    to
}

fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|it| it != "lck"))
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()))
        .collect()
}

/// What each state reads, cluster by cluster; nothing where it cannot be read.
fn read(directory: &Path) -> BTreeMap<(Guid, u64), Vec<u8>> {
    let descriptor = Descriptor::open(xml(directory)).unwrap();
    let mut found = BTreeMap::new();
    for image in &descriptor.images {
        let options = OpenOptions::new().allow_in_use(true);
        let Ok(disk) = options.open_snapshot(xml(directory), image.guid) else {
            continue;
        };
        for number in 0..CLUSTERS {
            let mut bytes = vec![0; CLUSTER as usize];
            if disk.read_at(&mut bytes, number * CLUSTER).is_ok() {
                found.insert((image.guid, number), bytes);
            }
        }
    }
    found
}

fn options() -> RepairOptions {
    let all = RepairChoice::ALL.into_iter();
    all.fold(RepairOptions::new(), RepairOptions::allow)
}

/// The undo file, and the changes that are to follow.
fn begin(directory: &Path, undo: &Path) -> Changes {
    let path = xml(directory);
    let prepared = Prepared::new(&path, &options()).unwrap().unwrap();
    let plan = prepared.plan(&path, &options());
    undo::write(OPERATION, undo, &plan.changes, &mut |_| {}).unwrap();
    plan.changes
}

/// Asserts that nothing is worse, that the next repair comes to the same end, and of a copy of the directory's files, that the
/// repair can be undone.
fn verify(
    directory: &Path,
    undo: &Path,
    before: &BTreeMap<(Guid, u64), Vec<u8>>,
    damaged: &BTreeMap<PathBuf, Vec<u8>>,
    undoes: bool,
    what: &str,
) -> BTreeMap<(Guid, u64), Vec<u8>> {
    let now = read(directory);
    for (place, bytes) in before {
        let found = now.get(place);
        assert!(found == Some(bytes), "{what}: {place:?} is worse");
    }
    let mut image = OfflineImage::open(xml(directory)).unwrap();
    if undoes {
        let undone = image.undo_repair(undo);
        undone.unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = files(directory);
        assert!(found == *damaged, "{what}: it is not undone");
    }
    // The one after a corrected header has the rest.
    let mut report = image.repair(&options(), |_| {}).unwrap();
    if !report.is_complete() {
        report = image.repair(&options(), |_| {}).unwrap();
    }
    assert!(report.is_complete(), "{what}: {report:#?}");
    assert!(check(xml(directory)).is_clean(), "{what}");
    read(directory)
}

#[test]
fn a_kill_at_any_write_is_no_worse_and_can_be_undone() {
    for kind in 0..5 {
        let version = [FormatVersion::V1, FormatVersion::V2][kind % 2];
        let original = tempfile::tempdir().unwrap();
        make(original.path(), version);
        damage(original.path(), kind);
        let damaged = files(original.path());
        let before = read(original.path());
        let mut end = None;
        let mut stop = 0;
        loop {
            // Each place is undone with some of the kinds.
            let undoes = (stop + kind) % 2 == 0;
            let directory = copy(original.path());
            let aside = tempfile::tempdir().unwrap();
            let undo = aside.path().join("undo");
            let changes = begin(directory.path(), &undo);
            let mut count = 0;
            let run = changes.run(OPERATION, &xml(directory.path()), |_, _| {
                count += 1;
                match count > stop {
                    true => Err(cancelled(OPERATION)),
                    false => Ok(()),
                }
            });
            let what = format!("kind {kind}, killed after {stop} writes, undone: {undoes}");
            let found = verify(directory.path(), &undo, &before, &damaged, undoes, &what);
            let end = end.get_or_insert_with(|| found.clone());
            assert!(*end == found, "{what}: another end");
            if run.is_ok() {
                break;
            }
            stop += 1;
        }
        // A header that is made anew is a repair of its own, with fewer writes.
        let has_header = kind + deltas(original.path()).len() > 6;
        let least = if has_header { 8 } else { 11 };
        assert!(stop >= least, "kind {kind}: {stop} writes");
    }
}

/// The steps of a file up to `cut`, of which those behind the last sync reach the disk by chance, and parts of them.
fn cut_power(change: &delta::FileChange, cut: usize, random: &mut Rng) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(&change.path)
        .unwrap();
    let steps = change.steps();
    let done = &steps[..cut];
    let synced = done.iter().rposition(|step| matches!(step, Step::Sync));
    let (synced, open) = done.split_at(synced.map_or(0, |at| at + 1));
    for step in synced {
        step.run(&file, change.cluster).unwrap();
    }
    for step in open {
        match step {
            Step::Copy(copy) => {
                // Sectors that were not written are stale, or zero behind the old end.
                let mut bytes = vec![0; CLUSTER as usize];
                let read = file.read_at(&mut bytes, copy.from).unwrap();
                assert!(read > 0);
                for (number, sector) in (0u64..).zip(bytes.chunks(512)) {
                    if random.bool() {
                        file.write_all_at(sector, copy.to + 512 * number).unwrap();
                    }
                }
            }
            step if random.bool() => step.run(&file, change.cluster).unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_power_cut_at_any_write_is_no_worse_and_can_be_undone() {
    let mut random = Rng::with_seed(1);
    for kind in 0..5 {
        let version = [FormatVersion::V2, FormatVersion::V1][kind % 2];
        let original = tempfile::tempdir().unwrap();
        make(original.path(), version);
        damage(original.path(), kind);
        let damaged = files(original.path());
        let before = read(original.path());
        let mut end = None;
        let mut place = (0, 0);
        loop {
            let directory = copy(original.path());
            let aside = tempfile::tempdir().unwrap();
            let undo = aside.path().join("undo");
            let changes = begin(directory.path(), &undo);
            let Some(change) = changes.files.get(place.0) else {
                break;
            };
            for whole in &changes.files[..place.0] {
                let file = steps::open(OPERATION, whole).unwrap();
                for step in whole.steps() {
                    step.run(&file, whole.cluster).unwrap();
                }
            }
            cut_power(change, place.1, &mut random);
            let what = format!("kind {kind}, power cut at {place:?}");
            let undoes = random.bool();
            let found = verify(directory.path(), &undo, &before, &damaged, undoes, &what);
            let end = end.get_or_insert_with(|| found.clone());
            assert!(*end == found, "{what}: another end");
            place = match place.1 == change.steps().len() {
                true => (place.0 + 1, 0),
                false => (place.0, place.1 + 1),
            };
        }
        assert!(place.0 >= 2, "kind {kind}");
    }
}
