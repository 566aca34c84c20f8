//! Random histories: the same operations by libploop, by this code, and by both in turns give the same images. Each
//! state of each image is compared with what it should read as, by two readers, after every operation.
//!
//! `PLOOP_HISTORY_STEPS` is how many operations there are in all, `PLOOP_HISTORY_SEED` the first seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use fastrand::Rng;
use ploop::image::{CompactOptions, OfflineImage};
use ploop::{
    ClusterSize, Descriptor, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget,
    SnapshotParam, SwitchFlag,
};

use super::filled_image::FilledImage;

/// The operations of one history.
const STEPS: u64 = 30;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap())
}

/// Who does an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Libploop,
    Files,
}

/// A snapshot, in all images: their GUIDs differ where libploop or the code chooses them.
type Name = usize;

const TOP: Name = 0;

#[derive(Clone, Debug)]
enum Operation {
    Write(Vec<(u64, u64)>),
    Snapshot(Name),
    Switch(Name),
    /// The new name of the old top.
    SwitchKeeping(Name, Name),
    MakeTop(Name),
    Delete(Name),
    DeleteTop,
    Merge(Target, bool),
    Convert(ImageMode),
    /// libploop cannot do it.
    Compact,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Top,
    One(Name),
    Range(Name, Name),
    All,
}

struct Subject {
    filled: FilledImage,
    guids: BTreeMap<Name, Guid>,
    /// How often libploop does what is done, of 100.
    by_libploop: u32,
    random: Rng,
    files: u32,
}

impl Subject {
    fn new(mode: ImageMode, cluster: ClusterSize, by_libploop: u32, seed: u64) -> Subject {
        Subject {
            filled: FilledImage::with(mode, cluster, FormatVersion::V1),
            guids: BTreeMap::from([(TOP, Guid::TOP)]),
            by_libploop,
            random: Rng::with_seed(seed),
            files: 0,
        }
    }

    fn offline(&self) -> OfflineImage {
        OfflineImage::open(self.filled.xml()).unwrap()
    }

    fn perform(&mut self, operation: &Operation) -> By {
        let by = match self.random.u32(..100) < self.by_libploop {
            true => By::Libploop,
            false => By::Files,
        };
        let guid = |name: &Name| self.guids[name];
        match operation {
            Operation::Write(clusters) => self.filled.write(clusters.iter().copied()),
            Operation::Snapshot(name) => {
                let guid = Guid::generate();
                let param = SnapshotParam::new().guid(guid);
                let made = match by {
                    By::Libploop => self.filled.ploop.snapshot_with(&param),
                    By::Files => self.offline().snapshot_with(&param),
                };
                assert_eq!(made.unwrap(), guid);
                self.filled.took(guid);
                self.guids.insert(*name, guid);
            }
            Operation::Switch(name) => {
                let guid = guid(name);
                match by {
                    By::Libploop => self.filled.ploop.switch_snapshot(guid).unwrap(),
                    By::Files => self.offline().switch_snapshot(guid).unwrap(),
                }
                self.filled.went_back_to(guid);
            }
            Operation::SwitchKeeping(name, kept) => {
                let guid = guid(name);
                let flags = SwitchFlag::SKIP_DESTROY;
                let new = match by {
                    By::Libploop => self.filled.ploop.switch_snapshot_with(guid, flags),
                    By::Files => self.offline().switch_snapshot_with(guid, flags),
                };
                let new = new.unwrap().unwrap();
                self.filled.took(new);
                self.filled.went_back_to(guid);
                self.guids.insert(*kept, new);
            }
            Operation::MakeTop(name) => {
                let guid = guid(name);
                let flags = SwitchFlag::SKIP_CREATE;
                let none = match by {
                    By::Libploop => self.filled.ploop.switch_snapshot_with(guid, flags),
                    By::Files => self.offline().switch_snapshot_with(guid, flags),
                };
                assert_eq!(none.unwrap(), None);
                self.filled.went_back_to(guid);
            }
            Operation::Delete(name) => {
                let guid = guid(name);
                match by {
                    By::Libploop => self.filled.ploop.delete_snapshot(guid).unwrap(),
                    By::Files => self.offline().delete_snapshot(guid, |_| {}).unwrap(),
                }
            }
            Operation::DeleteTop => {
                let descriptor = self.filled.descriptor();
                let below = descriptor.parent(Guid::TOP).unwrap();
                match by {
                    By::Libploop => self.filled.ploop.delete_top_delta().unwrap(),
                    By::Files => self.offline().delete_top_delta().unwrap(),
                }
                self.filled.went_back_to(below);
            }
            Operation::Merge(target, to_new_file) => {
                let target = match target {
                    Target::Top => MergeTarget::Top,
                    Target::One(name) => MergeTarget::Snapshot(guid(name)),
                    Target::Range(from, to) => MergeTarget::Range {
                        from: guid(from),
                        to: guid(to),
                    },
                    Target::All => MergeTarget::All,
                };
                let mut param = MergeParam::new(target);
                if *to_new_file {
                    self.files += 1;
                    let name = format!("merged.{}", self.files);
                    param = param.new_delta(self.filled.path(&name));
                }
                match by {
                    By::Libploop => self.filled.ploop.merge(&param).unwrap(),
                    By::Files => {
                        let (mut calls, mut last) = (0, None);
                        let merged = self.offline().merge(&param, |progress| {
                            calls += 1;
                            last = Some(progress);
                        });
                        merged.unwrap();
                        if let Some(last) = last {
                            assert!(calls > 0 && last.copied == last.total, "{last:?}");
                        }
                    }
                }
            }
            Operation::Compact => {
                if self.by_libploop < 100 {
                    let options = CompactOptions::new();
                    self.offline().compact(&options, |_| {}).unwrap();
                }
            }
            Operation::Convert(mode) => match by {
                // libploop cannot convert a raw base.
                By::Libploop if self.filled.descriptor().mode != ImageMode::Raw => {
                    self.filled.ploop.convert(*mode).unwrap();
                }
                _ => self.offline().convert(*mode, |_| {}).unwrap(),
            },
        }
        by
    }

    /// After an operation: what is there, by names.
    fn names(&mut self) -> BTreeSet<Name> {
        let there: BTreeSet<Guid> = self
            .filled
            .descriptor()
            .snapshots
            .iter()
            .map(|snapshot| snapshot.guid)
            .collect();
        self.guids.retain(|_, guid| there.contains(guid));
        self.filled.states.retain(|guid, _| there.contains(guid));
        self.guids.keys().copied().collect()
    }

    /// The tree, by names.
    fn tree(&self) -> Vec<String> {
        let name = |guid: Guid| {
            let mut names = self.guids.iter();
            let found = names.find(|(_, other)| **other == guid);
            found.map_or("-".to_owned(), |(name, _)| name.to_string())
        };
        let descriptor = self.filled.descriptor();
        let images = descriptor.images.iter();
        let images = images.map(|image| format!("{} {:?}", name(image.guid), image.kind));
        let shots = descriptor.snapshots.iter().map(|shot| {
            let temporary = if shot.temporary { " temporary" } else { "" };
            format!("{} on {}{temporary}", name(shot.guid), name(shot.parent))
        });
        let all = [format!("{} {}", descriptor.mode, descriptor.size)];
        all.into_iter().chain(images).chain(shots).collect()
    }

    /// The lengths of the files of the chain, and what is allocated in them.
    fn space(&self) -> Vec<u64> {
        let descriptor = self.filled.descriptor();
        let files = descriptor.images.iter();
        files
            .map(|image| fs::metadata(&image.file).unwrap().len())
            .collect()
    }
}

/// Chooses operations.
struct Author {
    random: Rng,
    names: Name,
    seeds: u64,
}

impl Author {
    fn next(&mut self, subject: &Subject) -> Option<Operation> {
        let descriptor = subject.filled.descriptor();
        let name = |guid: Guid| {
            let found = subject.guids.iter().find(|(_, other)| **other == guid);
            *found.unwrap().0
        };
        let random = &mut self.random;
        let snapshots: Vec<Guid> = descriptor
            .snapshots
            .iter()
            .map(|shot| shot.guid)
            .filter(|guid| *guid != Guid::TOP)
            .collect();
        let children = |guid: Guid| descriptor.children(guid).count();
        let is_temporary = |guid: Guid| descriptor.snapshot(guid).unwrap().temporary;
        let any = random.choice(&snapshots).copied();
        let below = descriptor.parent(Guid::TOP);
        let raw = descriptor.mode == ImageMode::Raw;
        Some(match random.u32(..16) {
            0..=3 => {
                let clusters = (0..random.u64(1..6)).map(|_| {
                    self.seeds += 1;
                    let zeros = random.u32(..6) == 0;
                    let seed = if zeros { 0 } else { self.seeds };
                    (random.u64(..FilledImage::CLUSTERS), seed)
                });
                Operation::Write(clusters.collect())
            }
            4..=6 => {
                // libploop fails then.
                let mut all = snapshots.iter();
                if snapshots.len() > 7 || all.any(|guid| is_temporary(*guid) && children(*guid) > 1)
                {
                    return None;
                }
                self.names += 1;
                Operation::Snapshot(self.names)
            }
            7 if !is_temporary(any?) => Operation::Switch(name(any?)),
            8 if !is_temporary(any?) && snapshots.len() < 8 => {
                self.names += 1;
                Operation::SwitchKeeping(name(any?), self.names)
            }
            9 => {
                let guid = any?;
                let mut others = descriptor.children(guid).filter(|it| *it != Guid::TOP);
                if is_temporary(guid) || others.next().is_some() {
                    return None;
                }
                Operation::MakeTop(name(guid))
            }
            10 | 11 => {
                let guid = any?;
                let is_base = descriptor.parent(guid).is_none();
                if children(guid) == 0 && is_base || is_temporary(guid) {
                    return None;
                }
                Operation::Delete(name(guid))
            }
            12 if children(below?) == 1 && !is_temporary(below?) => Operation::DeleteTop,
            13 | 14 => {
                let from = random.choice(&descriptor.snapshots).unwrap().guid;
                let chain = descriptor.chain(from);
                let to = random.choice(&chain).unwrap().guid;
                let (target, from, to) = match random.u32(..4) {
                    0 => (Target::Top, Guid::TOP, below?),
                    1 => (Target::One(name(from)), from, descriptor.parent(from)?),
                    2 => (Target::Range(name(from), name(to)), from, to),
                    _ => (Target::All, Guid::TOP, descriptor.base().unwrap().guid),
                };
                let chain = descriptor.chain(from);
                let at = chain.iter().position(|image| image.guid == to)?;
                let lower = &chain[at..chain.len() - 1];
                if from == to || lower.iter().any(|image| children(image.guid) != 1) {
                    return None;
                }
                let raw_base = raw && descriptor.parent(to).is_none();
                Operation::Merge(target, !raw_base && random.bool())
            }
            15 if random.bool() => Operation::Compact,
            15 if random.bool() => {
                let modes = [ImageMode::Preallocated, ImageMode::Expanded, ImageMode::Raw];
                Operation::Convert(modes[random.usize(..3)])
            }
            _ => return None,
        })
    }
}

fn live(seed: u64, cluster: ClusterSize) {
    let mut random = Rng::with_seed(seed);
    let modes = [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw];
    let mode = modes[random.usize(..3)];
    let mut subjects = [100, 0, 50].map(|share| Subject::new(mode, cluster, share, seed));
    let mut author = Author {
        random,
        names: TOP,
        seeds: 0,
    };
    let mut done: Vec<String> = Vec::new();
    while (done.len() as u64) < STEPS {
        let Some(operation) = author.next(&subjects[0]) else {
            continue;
        };
        let story = format!("seed {seed}, {mode}: {done:#?}, and now {operation:?}");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let by = subjects.each_mut().map(|it| it.perform(&operation));
            let names = subjects.each_mut().map(Subject::names);
            let trees = subjects.each_ref().map(Subject::tree);
            for at in 1..3 {
                assert_eq!(names[0], names[at], "subject {at}");
                assert_eq!(trees[0], trees[at], "subject {at}");
                subjects[at].filled.verify();
            }
            by[2]
        }));
        match result {
            Ok(by) => done.push(format!("{operation:?} ({by:?})")),
            Err(panic) => {
                eprintln!("{story}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // What libploop makes is compared at the end: its operations have tests of their own.
    subjects[0].filled.verify();
    let used = subjects.each_ref().map(Subject::space);
    assert_eq!(used[0].len(), used[1].len());
    for subject in &subjects {
        let _ = Descriptor::open(subject.filled.xml()).unwrap();
        let names = subject.filled.names();
        let files = subject.filled.descriptor().images.len();
        assert_eq!(names.len(), files + 1, "seed {seed}: {names:?}");
    }
}

#[test]
fn both_do_the_same() {
    let steps = number("PLOOP_HISTORY_STEPS", 300);
    let first = number("PLOOP_HISTORY_SEED", 1);
    for seed in first..first + steps.div_ceil(STEPS) {
        live(seed, ClusterSize::MIN);
    }
}
