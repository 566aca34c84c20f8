//! Writers against a model, and every point at which one may be killed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::store::Store;
use super::*;
use crate::Guid;
use crate::image::{Disk, Issue, OpenOptions as DiskOptions, check_image};

const CLUSTER: u64 = 32 << 10;
const SECTOR: usize = 512;

fn cluster() -> ClusterSize {
    ClusterSize::from_bytes(CLUSTER).unwrap()
}

/// A file that remembers what was done to it.
struct Recorder {
    file: File,
    log: Arc<Mutex<Vec<Step>>>,
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Allocate(u64),
    SetLen(u64),
    Sync,
    /// The writer's user was told that all is on the disk.
    Flushed,
}

impl Recorder {
    fn note(&self, step: Step) {
        self.log.lock().unwrap().push(step);
    }
}

impl Store for Recorder {
    fn len(&self) -> io::Result<u64> {
        Store::len(&self.file)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Step::SetLen(len));
        Store::set_len(&self.file, len)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(Step::Write(offset, data.to_vec()));
        self.file.write(data, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Step::Allocate(offset + len));
        self.file.allocate(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Step::Write(offset, vec![0; len as usize]));
        self.file.zero(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }

    fn file(&self) -> &File {
        &self.file
    }
}

/// A source of numbers that is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// What a sector is to hold, by the number of the write; 0 for none.
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

/// Works on a fresh delta, and returns it as it was, the steps of the work, and the history.
fn work(path: &Path, version: FormatVersion, seed: u64) -> (Vec<u8>, Vec<Step>, History) {
    let size = Size::from_bytes(60 * CLUSTER);
    create_delta(path, version, cluster(), size).unwrap();
    let start = std::fs::read(path).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder {
        file: OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap(),
        log: log.clone(),
    };
    let mut delta = WritableDelta::over(path, Box::new(recorder), false).unwrap();
    delta.mark(true).unwrap();
    let top = Top::Delta(Box::new(delta));
    let mut writer = DiskWriter::over(Vec::new(), top, cluster()).unwrap();
    let mut random = Random(seed);
    let mut history = History::new();
    let now = || log.lock().unwrap().len();
    for write in 1..=80 {
        let sectors = writer.size().sectors();
        match random.below(20) {
            0..=1 => {
                writer.flush().unwrap();
                log.lock().unwrap().push(Step::Flushed);
            }
            2 => {
                let first = random.below(60);
                let given = writer.discard(first * CLUSTER, 3.min(60 - first) * CLUSTER);
                // It may take effect from now on; reads tell which sectors were meant.
                given.unwrap();
                for at in first * 64..(first + 3).min(60) * 64 {
                    history.entry(at).or_default().push((now(), 0));
                }
            }
            3 if write % 3 == 0 => {
                // Longer by far: the table needs another cluster.
                let clusters = sectors / 64 + 4000;
                writer.grow(Size::from_bytes(clusters * CLUSTER)).unwrap();
                log.lock().unwrap().push(Step::Flushed);
            }
            _ => {
                let at = random.below(60 * 64);
                let len = (1 + random.below(150)).min(60 * 64 - at);
                let data = sector(write).repeat(len as usize);
                let before = now();
                writer.write_at(&data, at * SECTOR as u64).unwrap();
                for at in at..at + len {
                    history.entry(at).or_default().push((before, write));
                }
            }
        }
        for at in [random.below(60 * 64), random.below(60 * 64)] {
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

/// The file after some steps. Of the writes since the last sync, `kept` says which reached the disk.
fn replay(start: &[u8], steps: &[Step], mut kept: impl FnMut() -> bool) -> Vec<u8> {
    let synced = steps
        .iter()
        .rposition(|step| matches!(step, Step::Sync))
        .unwrap_or(0);
    let mut file = start.to_vec();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Write(offset, data) => {
                // The disk writes whole sectors.
                for (index, part) in data.chunks(SECTOR).enumerate() {
                    if at < synced || kept() {
                        let offset = *offset as usize + index * SECTOR;
                        if file.len() < offset + part.len() {
                            file.resize(offset + part.len(), 0);
                        }
                        file[offset..offset + part.len()].copy_from_slice(part);
                    }
                }
            }
            Step::Allocate(len) if at < synced || kept() => {
                file.resize(file.len().max(*len as usize), 0);
            }
            Step::SetLen(len) if at < synced || kept() => file.resize(*len as usize, 0),
            Step::Allocate(_) | Step::SetLen(_) | Step::Sync | Step::Flushed => {}
        }
    }
    file
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
    for (version, seed) in [
        (FormatVersion::V1, 1),
        (FormatVersion::V2, 2),
        (FormatVersion::V2, 3),
    ] {
        let path = dir.path().join(format!("delta{seed}"));
        let (start, steps, history) = work(&path, version, seed);
        assert!(steps.len() > 60);
        let killed = dir.path().join("killed");
        let mut random = Random(seed);
        for at in 0..=steps.len() {
            let done = &steps[..at];
            // In order up to here; and with some or all of what was not synced lost.
            for kept in [100, [50, 0][at % 2]] {
                let file = replay(&start, done, || random.below(100) < kept);
                std::fs::write(&killed, file).unwrap();
                verify(&killed, done, &history, at);
            }
        }
        let report = check_image(&path);
        assert!(!report.has(Issue::InUse) && report.is_sound(), "{report}");
        std::fs::remove_file(&path).unwrap();
    }
}

/// The whole disk through the reader.
fn contents(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size().bytes()).unwrap()];
    disk.read_at(&mut all, 0).unwrap();
    all
}

fn open(files: &[PathBuf], raw: bool) -> DiskWriter {
    DiskWriter::open_files(files, cluster(), raw, false).unwrap()
}

fn descriptor(dir: &Path, files: &[PathBuf], size: Size, raw: bool) -> PathBuf {
    let kind = if raw { "Plain" } else { "Compressed" };
    let (mut images, mut shots, mut parent) = (String::new(), String::new(), Guid::NONE);
    for (level, file) in files.iter().enumerate() {
        let guid = if level + 1 == files.len() {
            Guid::TOP
        } else {
            Guid::generate()
        };
        let file = file.display();
        images +=
            &format!("<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>");
        shots += &format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>");
        parent = guid;
    }
    let path = dir.join("DiskDescriptor.xml");
    let xml = format!(
        "<d><Disk_Parameters><Disk_size>{}</Disk_size><Cylinders>1</Cylinders><Heads>1</Heads>\
         </Disk_Parameters><StorageData><Storage><Blocksize>64</Blocksize>{images}</Storage>\
         </StorageData><Snapshots>{shots}</Snapshots></d>",
        size.sectors()
    );
    std::fs::write(&path, xml).unwrap();
    path
}

/// What is done to a chain. Places are fractions of the disk, whose size changes.
#[derive(Debug, Clone)]
enum Work {
    Write { at: u16, len: u32, byte: u8 },
    Discard { at: u16, len: u32 },
    Grow { clusters: u8 },
    Snapshot,
    Merge,
    Reopen,
}

fn work_on_chains() -> impl Strategy<Value = Work> {
    let len = 1..3 * CLUSTER as u32;
    prop_oneof![
        11 => (any::<u16>(), len.clone(), any::<u8>())
            .prop_map(|(at, len, byte)| Work::Write { at, len, byte }),
        1 => (any::<u16>(), len).prop_map(|(at, len)| Work::Discard { at, len }),
        1 => (0..3u8).prop_map(|clusters| Work::Grow { clusters }),
        1 => Just(Work::Snapshot),
        1 => Just(Work::Merge),
        1 => Just(Work::Reopen),
    ]
}

/// A chain on disk beside a plain copy of what it should read as.
struct Modelled {
    dir: tempfile::TempDir,
    raw: bool,
    files: Vec<PathBuf>,
    writer: Option<DiskWriter>,
    model: Vec<u8>,
    made: u32,
}

impl Modelled {
    fn new(version: FormatVersion, raw: bool) -> Modelled {
        let dir = tempfile::tempdir().unwrap();
        let model = vec![0u8; (30 * CLUSTER) as usize];
        let files = vec![dir.path().join("base")];
        if raw {
            std::fs::write(&files[0], &model).unwrap();
        } else {
            let size = Size::from_bytes(model.len() as u64);
            create_delta(&files[0], version, cluster(), size).unwrap();
        }
        let writer = Some(open(&files, raw));
        Modelled {
            dir,
            raw,
            files,
            writer,
            model,
            made: 0,
        }
    }

    fn writer(&mut self) -> &mut DiskWriter {
        self.writer.as_mut().unwrap()
    }

    /// Where a fraction of the disk is, with room for `len` bytes behind.
    fn place(&self, at: u16, len: u32) -> u64 {
        (self.model.len() as u64 - u64::from(len)) * u64::from(at) / u64::from(u16::MAX)
    }

    fn apply(&mut self, work: &Work) {
        match *work {
            Work::Snapshot => {
                self.made += 1;
                let path = self.dir.path().join(format!("delta{}", self.made));
                self.writer().snapshot(&path).unwrap();
                self.files.push(path);
            }
            Work::Merge if self.files.len() > 1 => {
                let merged = self.writer().merge_down().unwrap();
                assert_eq!(Some(&merged), self.files.last());
                std::fs::remove_file(merged).unwrap();
                self.files.pop();
            }
            Work::Merge => {}
            Work::Grow { clusters } => {
                let size = self.model.len() as u64 + u64::from(clusters) * CLUSTER;
                self.writer().grow(Size::from_bytes(size)).unwrap();
                self.model.resize(size as usize, 0);
            }
            Work::Discard { at, len } => self.discard(self.place(at, len), u64::from(len)),
            Work::Write { at, len, byte } => {
                let at = self.place(at, len);
                let data: Vec<u8> = (0..len).map(|n| (n as u8) ^ byte).collect();
                self.writer().write_at(&data, at).unwrap();
                self.model[at as usize..][..data.len()].copy_from_slice(&data);
            }
            Work::Reopen => self.reopen(),
        }
    }

    /// As the discarded range reads afterwards; only whole clusters change, to zero.
    fn discard(&mut self, at: u64, len: u64) {
        let given = self.writer().discard(at, len).unwrap();
        let mut zeroed = 0;
        for first in (at.next_multiple_of(CLUSTER)..at + len).step_by(CLUSTER as usize) {
            let mut now = vec![0; CLUSTER as usize];
            self.writer().read_at(&mut now, first).unwrap();
            let was = &mut self.model[first as usize..][..CLUSTER as usize];
            if now != *was {
                assert!(now.iter().all(|byte| *byte == 0));
                assert!(first + CLUSTER <= at + len);
                was.fill(0);
                zeroed += CLUSTER;
            }
        }
        assert!(zeroed <= given);
    }

    /// Closes the chain, has the reader and the check look at it, and goes on.
    fn reopen(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.close().unwrap();
        }
        let size = Size::from_bytes(self.model.len() as u64);
        let path = descriptor(self.dir.path(), &self.files, size, self.raw);
        assert!(contents(&Disk::open(&path).unwrap()) == self.model);
        let report = super::super::check(&path);
        let sound = report.findings.iter().all(|finding| {
            // A raw file has holes, and freed clusters stay where they are.
            matches!(finding.issue, Issue::Sparse | Issue::LostClusters)
        });
        assert!(sound, "{report}");
        self.writer = Some(DiskWriter::open(&path).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    /// Random work on a chain, against a plain copy of the disk.
    #[test]
    fn chains_follow_their_model(
        steps in proptest::collection::vec(work_on_chains(), 1..80),
        v2 in any::<bool>(),
        raw in any::<bool>(),
    ) {
        let version = if v2 { FormatVersion::V2 } else { FormatVersion::V1 };
        let mut chain = Modelled::new(version, raw);
        for step in &steps {
            chain.apply(step);
            let mut all = vec![0; chain.model.len()];
            chain.writer().read_at(&mut all, 0).unwrap();
            prop_assert!(all == chain.model, "after {step:?}");
        }
        chain.reopen();
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_mib(1);
    create_delta(&path, FormatVersion::V1, cluster(), size).unwrap();
    let again = create_delta(&path, FormatVersion::V1, cluster(), size).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let other = dir.path().join("other");
    for (version, size) in [
        (FormatVersion::V1, Size::from_gib(2048)),
        (FormatVersion::V2, Size::MAX),
        (FormatVersion::V2, Size::ZERO),
    ] {
        let error = create_delta(&other, version, cluster(), size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{size}");
    }
    assert!(!other.exists());

    let mut writer = open(std::slice::from_ref(&path), false);
    // Marked from now on.
    assert_eq!(Disk::open_image(&path).unwrap_err().kind(), ErrorKind::Busy);
    for (at, len) in [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1)] {
        let error = writer.write_at(&vec![1; len], at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let error = writer.grow(Size::from_kib(512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        writer.merge_down().unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let error = writer.snapshot(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    writer.write_at(&[5], 0).unwrap();
    drop(writer);
    let error = DiskWriter::open_files(&[&path], cluster(), false, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    DiskWriter::open_files(&[&path], cluster(), false, true)
        .unwrap()
        .close()
        .unwrap();
    assert!(check_image(&path).is_sound());
}

#[test]
fn deltas_that_are_there_can_be_put_on_top() {
    let dir = tempfile::tempdir().unwrap();
    let (base, upper) = (dir.path().join("base"), dir.path().join("upper"));
    let size = Size::from_mib(1);
    let v2 = FormatVersion::V2;
    create_delta(&base, v2, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&base), false);
    writer.write_at(&[1; 1000], 100).unwrap();
    for (version, cluster, size) in [
        (FormatVersion::V1, cluster(), size),
        (v2, ClusterSize::DEFAULT, size),
        (v2, cluster(), Size::from_mib(2)),
    ] {
        create_delta(&upper, version, cluster, size).unwrap();
        let error = writer.push(&upper).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        std::fs::remove_file(&upper).unwrap();
    }
    create_delta(&upper, v2, cluster(), size).unwrap();
    writer.push(&upper).unwrap();
    // The base is done with; the new top is in use.
    assert!(!check_image(&base).has(Issue::InUse));
    assert!(check_image(&upper).has(Issue::InUse));
    writer.write_at(&[2; 1000], 600).unwrap();
    writer.close().unwrap();
    let disk = Disk::open(descriptor(dir.path(), &[base, upper], size, false)).unwrap();
    let mut expected = vec![0; 1 << 20];
    expected[100..1100].fill(1);
    expected[600..1600].fill(2);
    assert!(contents(&disk) == expected);
}

/// Space that was given back at the end of the file is gone after closing.
#[test]
fn discarded_space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
    let empty = std::fs::read(&path).unwrap();
    let mut writer = open(std::slice::from_ref(&path), false);
    writer.write_at(&vec![1; 10 * CLUSTER as usize], 0).unwrap();
    writer.flush().unwrap();
    let given = writer.discard(CLUSTER / 2, 19 * CLUSTER).unwrap();
    assert_eq!(given, 9 * CLUSTER);
    writer.write_at(&[2; 10], 15 * CLUSTER).unwrap();
    assert_eq!(writer.discard(0, 20 * CLUSTER).unwrap(), 2 * CLUSTER);
    writer.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == empty);
}
