//! Random work of a writer, compared with a copy of the disk in memory.

use proptest::prelude::*;

use super::*;
use crate::image::{Issue, Severity, check, check_image};

/// An operation on a chain. Positions are fractions of the disk, because its size changes.
#[derive(Debug, Clone)]
enum Work {
    Write { at: u16, len: u32, byte: u8 },
    Discard { at: u16, len: u32 },
    Grow { clusters: u8 },
    Zero { at: u16, len: u32 },
    Release { at: u16, clusters: u32 },
    Compact,
    Ahead { clusters: u8 },
    Snapshot,
    Merge,
    MergeBelow { level: u8 },
    Replace { level: u8 },
    Flush,
    Trim,
    Reopen,
}

fn work_on_chains() -> impl Strategy<Value = Work> {
    let len = 1..3 * CLUSTER as u32;
    prop_oneof![
        11 => (any::<u16>(), len.clone(), any::<u8>())
            .prop_map(|(at, len, byte)| Work::Write { at, len, byte }),
        1 => (any::<u16>(), len.clone()).prop_map(|(at, len)| Work::Discard { at, len }),
        2 => (any::<u16>(), len).prop_map(|(at, len)| Work::Zero { at, len }),
        1 => (any::<u16>(), 0..4u32)
            .prop_map(|(at, clusters)| Work::Release { at, clusters }),
        1 => Just(Work::Compact),
        1 => (0..20u8).prop_map(|clusters| Work::Ahead { clusters }),
        1 => any::<u8>().prop_map(|level| Work::MergeBelow { level }),
        1 => any::<u8>().prop_map(|level| Work::Replace { level }),
        1 => Just(Work::Flush),
        1 => Just(Work::Trim),
        1 => (0..3u8).prop_map(|clusters| Work::Grow { clusters }),
        2 => Just(Work::Snapshot),
        1 => Just(Work::Merge),
        1 => Just(Work::Reopen),
    ]
}

/// A chain, and a copy in memory of what it should read as.
struct Modelled {
    dir: tempfile::TempDir,
    raw: bool,
    files: Vec<PathBuf>,
    writer: Option<DiskWriter>,
    model: Vec<u8>,
    made: u32,
    ahead: u64,
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
            ahead: 0,
        }
    }

    fn writer(&mut self) -> &mut DiskWriter {
        self.writer.as_mut().unwrap()
    }

    /// Where a fraction of the disk is, with room for `len` bytes behind.
    fn location(&self, at: u16, len: u32) -> u64 {
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
            Work::Discard { at, len } => self.discard(self.location(at, len), u64::from(len)),
            Work::Write { at, len, byte } => {
                let at = self.location(at, len);
                let data = repeated(len as usize, byte);
                self.writer().write_at(&data, at).unwrap();
                self.model[at as usize..][..data.len()].copy_from_slice(&data);
            }
            Work::Zero { at, len } => {
                let at = self.location(at, len);
                self.writer().write_zeroes(at, u64::from(len)).unwrap();
                self.model[at as usize..][..len as usize].fill(0);
            }
            Work::Release { at, clusters } => {
                let first = self.location(at, 1) / CLUSTER;
                let last = (first + u64::from(clusters)).min(self.model.len() as u64 / CLUSTER);
                self.release(&(first as u32..last as u32).collect::<Vec<_>>());
            }
            Work::Compact => {
                let head = self.writer().allocation_head();
                let lost = self.writer().compact().unwrap();
                assert_eq!(self.writer().allocation_head(), head - lost);
                if !self.raw || self.files.len() > 1 {
                    // Without holes and preallocated space.
                    let top = self.files.last().unwrap();
                    let report = check_image(top);
                    assert!(
                        !report.has(Issue::LostClusters) && report.is_sound(),
                        "{report}"
                    );
                    let len = std::fs::metadata(top).unwrap().len();
                    assert_eq!(len, u64::from(head - lost) * CLUSTER);
                }
            }
            Work::Ahead { clusters } => {
                self.ahead = u64::from(clusters) * CLUSTER;
                let ahead = self.ahead;
                self.writer().set_preallocation(ahead);
            }
            Work::MergeBelow { level } => self.merge_below(usize::from(level)),
            Work::Replace { level } => {
                let level = usize::from(level) % self.files.len();
                self.made += 1;
                let path = self.dir.path().join(format!("copy{}", self.made));
                self.writer().flush().unwrap();
                std::fs::copy(&self.files[level], &path).unwrap();
                let file = DeltaFile::new(File::open(&path).unwrap(), &path);
                self.writer().replace_level(level, file).unwrap();
                let old = std::mem::replace(&mut self.files[level], path);
                std::fs::remove_file(old).unwrap();
            }
            Work::Flush => self.writer().flush().unwrap(),
            Work::Trim => self.writer().trim().unwrap(),
            Work::Reopen => self.reopen(),
        }
    }

    /// Released clusters read as the files below have them.
    fn release(&mut self, clusters: &[u32]) {
        let below = self.files.split_last().unwrap().1;
        if self.raw && below.is_empty() {
            return self.writer().release(clusters).unwrap();
        }
        let given = below.iter().map(|path| {
            let file = File::open(path).unwrap();
            DeltaFile::new(file, path)
        });
        let below = match given.len() {
            0 => None,
            _ => Some(
                Disk::from_files(
                    given.collect(),
                    cluster(),
                    ChainOptions::new().raw_base(self.raw),
                )
                .unwrap(),
            ),
        };
        self.writer().release(clusters).unwrap();
        for number in clusters {
            let mut expected = vec![0; CLUSTER as usize];
            let offset = u64::from(*number) * CLUSTER;
            if let Some(below) = &below {
                below.read_at(&mut expected, offset).unwrap();
            }
            self.model[offset as usize..][..expected.len()].copy_from_slice(&expected);
            assert_eq!(self.writer().slot(*number).unwrap(), None);
            assert!(!self.writer().top_has(*number).unwrap());
        }
    }

    /// Another program merges a delta below the top into the next one.
    fn merge_below(&mut self, level: usize) {
        let Some(level) = (level % self.files.len()).checked_sub(1) else {
            return;
        };
        if level == 0 {
            let error = self.writer().remove_level(level).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            return;
        }
        let mut other = open(&self.files[..=level], self.raw);
        other.merge_down().unwrap();
        let size = other.size();
        other.close().unwrap();
        self.writer().remove_level(level).unwrap();
        std::fs::remove_file(self.files.remove(level)).unwrap();
        let levels = self.files.len();
        assert_eq!(self.writer().levels(), levels);
        assert!(self.writer().size() >= size);
    }

    /// Zeroes the whole clusters of a discarded range in the copy.
    fn discard(&mut self, at: u64, len: u64) {
        let given = self.writer().discard(at, len).unwrap();
        let mut zeroed = 0;
        for first in (at.next_multiple_of(CLUSTER)..at + len).step_by(CLUSTER as usize) {
            let mut now = vec![0; CLUSTER as usize];
            self.writer().read_at(&mut now, first).unwrap();
            let was = &mut self.model[first as usize..][..CLUSTER as usize];
            if now != *was {
                assert!(is_zero(&now));
                assert!(first + CLUSTER <= at + len);
                was.fill(0);
                zeroed += CLUSTER;
            }
        }
        assert!(zeroed <= given);
    }

    /// Closes the chain, reads and checks it, and opens it again.
    fn reopen(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.close().unwrap();
        }
        let size = Size::from_bytes(self.model.len() as u64);
        let path = descriptor(self.dir.path(), &self.files, size, self.raw);
        assert!(contents(&Disk::open(&path).unwrap()) == self.model);
        let report = check(&path);
        let sound = report.findings.iter().all(|finding| {
            // Freed clusters stay where they are, and a raw base below others as it is.
            let is_short_base = (finding.severity, finding.issue) == (Severity::Note, Issue::Size);
            finding.issue == Issue::LostClusters || is_short_base && self.raw
        });
        assert!(sound, "{report}");
        self.made += 1;
        let mut writer = if self.made % 2 == 0 {
            DiskWriter::open(&path).unwrap()
        } else {
            let given = self.files.iter().map(|path| {
                let file = File::open(path).unwrap();
                DeltaFile::new(file, path)
            });
            DiskWriter::from_files(
                given.collect(),
                cluster(),
                ChainOptions::new().raw_base(self.raw),
            )
            .unwrap()
        };
        writer.set_preallocation(self.ahead);
        self.writer = Some(writer);
    }
}

/// 256 bytes, no two alike, over and over.
fn repeated(len: usize, byte: u8) -> Vec<u8> {
    let period: Vec<u8> = (0..=u8::MAX).map(|n| n ^ byte).collect();
    let mut data = period.repeat(len.div_ceil(period.len()));
    data.truncate(len);
    data
}

/// Whether each byte is like one of two others. Most sectors are, as a whole.
fn is_mixed(bytes: &[u8], old: &[u8], new: &[u8]) -> bool {
    const SECTOR: usize = 512;
    let sectors = bytes.chunks(SECTOR);
    let mut all = sectors.zip(old.chunks(SECTOR)).zip(new.chunks(SECTOR));
    all.all(|((sector, old), new)| {
        let mut bytes = sector.iter().zip(old).zip(new);
        sector == old || sector == new || bytes.all(|((byte, old), new)| byte == old || byte == new)
    })
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
            let old = chain.model.clone();
            let before = chain.writer().plan_read(0, old.len()).unwrap();
            chain.apply(step);
            let mut all = vec![0; chain.model.len()];
            chain.writer().read_at(&mut all, 0).unwrap();
            prop_assert!(all == chain.model, "after {step:?}");
            let now = chain.writer().plan_read(1, all.len()).unwrap();
            prop_assert_eq!(now.len(), all.len() - 1);
            all.fill(0xee);
            now.read(&mut all[1..]).unwrap();
            prop_assert!(all[1..] == chain.model[1..], "planned after {step:?}");
            let mut pieces = Vec::new();
            for (len, place) in now.pieces() {
                let mut piece = vec![0; len];
                if let Some((file, offset)) = place {
                    file.read_exact_at(&mut piece, offset).unwrap();
                }
                pieces.append(&mut piece);
            }
            prop_assert!(pieces == chain.model[1..], "in pieces after {step:?}");
            if matches!(step, Work::Write { .. } | Work::Flush) {
                // As for a read that runs at the same time.
                all.fill(0xee);
                before.read(&mut all).unwrap();
                prop_assert!(
                    is_mixed(&all, &old, &chain.model),
                    "planned before {step:?}"
                );
            }
        }
        chain.reopen();
    }
}
