//! An image with a history, which a test damages.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ploop::image::{
    Disk, Issue, OfflineImage, OpenOptions, RepairChoice, RepairItem, RepairOptions, RepairOutcome,
    RepairReport, Severity, check,
};
use ploop::{Descriptor, FormatVersion, Guid};
use tempfile::TempDir;

use crate::written_image::{Delta, contents, describe, entry_offset};

pub(crate) const CLUSTER: u64 = 32 << 10;
/// As many as fill the second sector of a table.
pub(crate) const CLUSTERS: u64 = 200;
pub(crate) const SIZE: u64 = CLUSTERS * CLUSTER;
pub(crate) const FILES: [&str; 3] = ["base.hds", "middle.hds", "top.hds"];

/// Three deltas, each with clusters of its own and some over those of the ones below.
pub(crate) struct DamagedImage {
    _dir: TempDir,
    pub(crate) xml: PathBuf,
    pub(crate) deltas: Vec<Delta>,
}

/// All files of a directory but the locks.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn files_of(directory: &Path) -> Files {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|it| it != "lck"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// What the disk of a state reads, cluster by cluster; `None` for one that cannot be read.
pub(crate) type Clusters = Vec<Option<Vec<u8>>>;

impl DamagedImage {
    pub(crate) fn new(version: FormatVersion) -> DamagedImage {
        let dir = tempfile::tempdir().unwrap();
        let of = |clusters: &[(u32, u8)]| Delta {
            clusters: clusters.to_vec(),
            ..Delta::new(version, CLUSTER, SIZE)
        };
        let deltas = vec![
            of(&[(0, 1), (9, 2), (5, 3), (199, 4), (130, 5)]),
            of(&[(9, 11), (10, 12), (131, 13)]),
            of(&[(1, 21), (10, 22), (130, 23), (60, 24), (61, 25)]),
        ];
        for (delta, name) in deltas.iter().zip(FILES) {
            delta.write(&dir.path().join(name)).sync_all().unwrap();
        }
        let xml = describe(dir.path(), &FILES, SIZE, CLUSTER, false);
        let xml = fs::canonicalize(xml).unwrap();
        let image = DamagedImage {
            _dir: dir,
            xml,
            deltas,
        };
        assert!(check(&image.xml).is_clean());
        image
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.xml.with_file_name(name)
    }

    pub(crate) fn open(&self) -> OfflineImage {
        OfflineImage::open(&self.xml).unwrap()
    }

    pub(crate) fn files(&self) -> Files {
        files_of(self.xml.parent().unwrap())
    }

    /// Overwrites bytes of a file.
    pub(crate) fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    }

    pub(crate) fn set_entry(&self, name: &str, number: u32, entry: u32) {
        self.write(name, entry_offset(number), &entry.to_le_bytes());
    }

    pub(crate) fn set_len(&self, name: &str, len: u64) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        file.set_len(len).unwrap();
    }

    pub(crate) fn len(&self, name: &str) -> u64 {
        fs::metadata(self.file(name)).unwrap().len()
    }

    pub(crate) fn replace_in_descriptor(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.xml).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&self.xml, text.replace(from, to)).unwrap();
    }

    /// The contents of the disk as of a level, as they were before any damage.
    pub(crate) fn contents(&self, level: usize) -> Vec<u8> {
        contents(&self.deltas[..=level], false)
    }

    /// Asserts that each state reads as before any damage, and that QEMU finds nothing wrong with a delta.
    pub(crate) fn assert_whole(&self) {
        let descriptor = Descriptor::open(&self.xml).unwrap();
        for (level, image) in descriptor.chain(descriptor.top).iter().enumerate() {
            let disk = Disk::open_snapshot(&self.xml, image.guid).unwrap();
            let mut bytes = vec![0; SIZE as usize];
            assert_eq!(disk.read_at(&mut bytes, 0).unwrap(), bytes.len());
            assert!(bytes == self.contents(level), "level {level} differs");
        }
        self.assert_sound();
    }

    /// Asserts that nothing is wrong, by the check and by QEMU.
    pub(crate) fn assert_sound(&self) {
        let report = check(&self.xml);
        assert!(report.is_clean(), "{report}");
        let descriptor = Descriptor::open(&self.xml).unwrap();
        for image in &descriptor.images {
            let output = Command::new("qemu-img")
                .args(["check", "-f", "parallels"])
                .arg(&image.file)
                .output()
                .expect("qemu-img, installed by ci/setup.sh, starts");
            assert!(output.status.success(), "{output:?}");
        }
    }

    /// Repairs what has one right answer, and these choices. Asserts before that a dry run changes nothing and says the
    /// same, and afterwards that a second repair changes nothing, and that an undo puts every byte back.
    pub(crate) fn repair(&self, choices: &[RepairChoice]) -> RepairReport {
        let options = || {
            let all = choices.iter();
            all.fold(RepairOptions::new(), |options, choice| {
                options.allow(*choice)
            })
        };
        let damaged = self.files();
        let dry = self
            .open()
            .repair(&options().dry_run(true), |_| {})
            .unwrap();
        assert!(dry.dry_run);
        assert!(self.files() == damaged, "a dry run changes nothing");

        let undo = tempfile::tempdir().unwrap();
        let undo = undo.path().join("undo");
        let mut image = self.open();
        let report = image.repair(&options().undo(&undo), |_| {}).unwrap();
        let outcomes = |report: &RepairReport| -> Vec<RepairOutcome> {
            let items = report.items.iter();
            items.map(|item| item.outcome.clone()).collect()
        };
        assert_eq!(outcomes(&dry), outcomes(&report));
        let repaired = self.files();
        // Space for holes changes no byte.
        assert!(undo.exists() || repaired == damaged);

        if !goes_on(&report) {
            let again = image.repair(&options(), |_| {}).unwrap();
            assert!(
                self.files() == repaired,
                "a second repair changes something: {again:?}"
            );
            assert!(
                !again.items.iter().any(RepairItem::is_repaired),
                "{again:?}"
            );
        }

        if undo.exists() {
            image.undo_repair(&undo).unwrap();
            assert_same(&self.files(), &damaged);
            image.undo_repair(&undo).unwrap();
            assert_same(&self.files(), &damaged);
            image.repair(&options(), |_| {}).unwrap();
            assert_same(&self.files(), &repaired);
        }
        report
    }

    /// What each state reads, cluster by cluster.
    pub(crate) fn read(&self) -> BTreeMap<Guid, Clusters> {
        let Ok(descriptor) = Descriptor::open(&self.xml) else {
            return BTreeMap::new();
        };
        let mut states = BTreeMap::new();
        for image in &descriptor.images {
            let opened = OpenOptions::new()
                .allow_in_use(true)
                .open_snapshot(&self.xml, image.guid);
            let Ok(disk) = opened else {
                continue;
            };
            let clusters = disk.size().bytes().div_ceil(CLUSTER).min(4 * CLUSTERS);
            let read = |number: u64| {
                let mut bytes = vec![0; CLUSTER as usize];
                let len = disk.read_at(&mut bytes, number * CLUSTER).ok()?;
                bytes.truncate(len);
                Some(bytes)
            };
            states.insert(image.guid, (0..clusters).map(read).collect());
        }
        states
    }
}

pub(crate) fn assert_same(found: &Files, expected: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (path, bytes) in expected {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
}

/// Whether the rest is for the next repair, because this one corrected the geometry.
pub(crate) fn goes_on(report: &RepairReport) -> bool {
    let mut items = report.items.iter();
    items.any(|item| item.outcome.to_string().contains("repair the image again"))
}

/// The outcome of the only finding of this kind.
pub(crate) fn outcome(report: &RepairReport, issue: Issue) -> &RepairOutcome {
    let mut items = report.items.iter().filter(|item| item.issue == issue);
    let item = items.next();
    &item
        .unwrap_or_else(|| panic!("{issue:?}: {report:?}"))
        .outcome
}

pub(crate) fn is_repaired(report: &RepairReport, issue: Issue) -> bool {
    matches!(outcome(report, issue), RepairOutcome::Repaired { .. })
}

/// Asserts that this was repaired, and that nothing is left.
#[track_caller]
pub(crate) fn assert_repaired(report: &RepairReport, issue: Issue) {
    assert!(
        is_repaired(report, issue) && report.is_complete(),
        "{report:?}"
    );
}

pub(crate) fn is_left(report: &RepairReport, issue: Issue) -> bool {
    matches!(outcome(report, issue), RepairOutcome::Left { .. })
}

/// Asserts that the image has this damage, that it needs this choice, and repairs it.
pub(crate) fn repair_by_choice(
    image: &DamagedImage,
    issue: Issue,
    choice: RepairChoice,
) -> RepairReport {
    let damaged = image.files();
    let before = check(&image.xml);
    assert!(before.has(issue), "{before}");
    let without = image.repair(&[]);
    match outcome(&without, issue) {
        RepairOutcome::NeedsChoice { choice: needed, .. } => assert_eq!(*needed, choice),
        other => panic!("{other}"),
    }
    assert!(!without.is_complete());
    assert!(without.choices().contains(&choice));
    let severe = before
        .findings
        .iter()
        .any(|it| it.severity == Severity::Error);
    assert!(severe != without.is_sound, "{without:?}");
    // What else was wrong may be repaired.
    drop(damaged);
    let report = image.repair(&[choice]);
    assert!(is_repaired(&report, issue), "{report:?}");
    report
}
