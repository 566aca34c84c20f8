//! An image with known contents. Data is written to its deltas byte by byte, and two readers without libploop read it
//! back.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use ploop::image::{self, Disk, Header, Issue, Severity};
use ploop::{
    ClusterSize, CreateParam, Descriptor, FormatVersion, Guid, ImageMode, Ploop, Size, SwitchFlag,
};
use tempfile::TempDir;

use crate::line;

/// What a disk holds: the seed each cluster was filled from. A cluster that is not listed reads as
/// zeroes, and so does one with the seed 0, which nevertheless hides what lies below it.
pub(crate) type Contents = BTreeMap<u64, u64>;

/// The bytes of a cluster: different in every eight of them, and for every seed.
pub(crate) fn cluster_bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    if seed != 0 {
        // Eight at a time: one at a time takes longer than the rest of an unoptimized test.
        for (at, eight) in (0..).zip(bytes.chunks_exact_mut(8)) {
            eight.copy_from_slice(&(seed << 32 | at).to_le_bytes());
        }
    }
    bytes
}

/// The table of a delta file: a reader and writer of its own, not the crate's.
pub(crate) struct Delta {
    file: File,
    cluster: u64,
    data_start: u64,
    /// Bytes per unit of a table entry: sectors in version 1, clusters in version 2.
    unit: u64,
}

impl Delta {
    const TABLE: u64 = 64;

    pub(crate) fn open(path: &Path) -> Delta {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut header = [0; Self::TABLE as usize];
        file.read_exact_at(&mut header, 0).unwrap();
        let field =
            |at: usize| u64::from(u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
        let cluster = field(28) * 512;
        let unit = match &header[..16] {
            b"WithoutFreeSpace" => 512,
            b"WithouFreSpacExt" => cluster,
            other => panic!("{}: signature {other:?}", path.display()),
        };
        Delta {
            file,
            cluster,
            data_start: field(48) * 512,
            unit,
        }
    }

    fn entry(&self, number: u64) -> u64 {
        let mut entry = [0; 4];
        self.file
            .read_exact_at(&mut entry, Self::TABLE + 4 * number)
            .unwrap();
        u64::from(u32::from_le_bytes(entry)) * self.unit
    }

    fn set_entry(&self, number: u64, at: u64) {
        let entry = u32::try_from(at / self.unit).unwrap().to_le_bytes();
        self.file
            .write_all_at(&entry, Self::TABLE + 4 * number)
            .unwrap();
    }

    /// Fills a cluster, at the end of the file if it is not allocated.
    pub(crate) fn write(&self, number: u64, seed: u64) {
        let mut at = self.entry(number);
        if at == 0 {
            at = self.file.metadata().unwrap().len().max(self.data_start);
            assert_eq!(at % self.cluster, 0);
        }
        self.file
            .write_all_at(&cluster_bytes(seed, self.cluster), at)
            .unwrap();
        self.set_entry(number, at);
    }

    /// The clusters that are allocated in this file.
    pub(crate) fn allocated(&self, clusters: u64) -> BTreeSet<u64> {
        (0..clusters)
            .filter(|number| self.entry(*number) != 0)
            .collect()
    }

    /// Makes a version 2 delta of a version 1 delta; only a driver lets libploop make one from
    /// scratch.
    pub(crate) fn into_v2(mut self, clusters: u64) {
        let places: Vec<u64> = (0..clusters).map(|number| self.entry(number)).collect();
        self.file.write_all_at(b"WithouFreSpacExt", 0).unwrap();
        self.unit = self.cluster;
        for (number, at) in (0..).zip(places) {
            self.set_entry(number, at);
        }
    }
}

/// An image in a directory of its own, and what each of its states holds.
pub(crate) struct FilledImage {
    pub(crate) dir: TempDir,
    pub(crate) ploop: Ploop,
    pub(crate) clusters: u64,
    pub(crate) cluster: ClusterSize,
    /// By snapshot; the top is one of them.
    pub(crate) states: BTreeMap<Guid, Contents>,
    /// Files beside the image's that were taken out of its descriptor and left there.
    pub(crate) orphans: BTreeSet<PathBuf>,
    /// Deltas that a killed merge wrote to: clusters that were not entered into the table yet may be lost.
    pub(crate) cut_short: BTreeSet<PathBuf>,
}

impl FilledImage {
    pub(crate) const CLUSTERS: u64 = 24;

    pub(crate) fn new(mode: ImageMode) -> FilledImage {
        FilledImage::with(mode, ClusterSize::MIN, FormatVersion::V1)
    }

    pub(crate) fn with(
        mode: ImageMode,
        cluster: ClusterSize,
        format: FormatVersion,
    ) -> FilledImage {
        let dir = tempfile::tempdir().unwrap();
        let param = CreateParam::new(
            dir.path().join("root.hds"),
            Size::from_bytes(Self::CLUSTERS * cluster.bytes()),
        )
        .mode(mode)
        .cluster(cluster)
        // A driver would have the other one preferred.
        .format(FormatVersion::V1)
        .fs(None);
        let ploop = Ploop::create(&param).unwrap();
        let filled = FilledImage {
            dir,
            ploop,
            clusters: Self::CLUSTERS,
            cluster,
            states: BTreeMap::from([(Guid::TOP, Contents::new())]),
            orphans: BTreeSet::new(),
            cut_short: BTreeSet::new(),
        };
        if format == FormatVersion::V2 {
            filled.make_v2();
        }
        filled
    }

    /// Makes version 2 deltas of all deltas.
    pub(crate) fn make_v2(&self) {
        let descriptor = self.descriptor();
        for image in &descriptor.images {
            if descriptor.mode != ImageMode::Raw || *image != *descriptor.base().unwrap() {
                Delta::open(&image.file).into_v2(self.clusters);
            }
        }
    }

    /// Whether libploop can put new deltas on this image: for version 2 it wants a driver.
    pub(crate) fn can_have_deltas(&self) -> bool {
        let top = self.file_of(Guid::TOP);
        ploop::kernel::is_large_disk_supported()
            || !fs::read(top).unwrap().starts_with(b"WithouFreSpacExt")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        // As the library does, which resolves links.
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    pub(crate) fn xml(&self) -> PathBuf {
        self.path("DiskDescriptor.xml")
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::open(self.xml()).unwrap()
    }

    /// As the handle tells it: a descriptor may have another spelling.
    pub(crate) fn file_of(&self, guid: Guid) -> PathBuf {
        let descriptor = self.ploop.descriptor().unwrap();
        descriptor.image(guid).unwrap().file.clone()
    }

    /// The names in the image's directory, without the lock file, which stays once it was made.
    pub(crate) fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }

    /// Writes clusters as a driver would, into the top delta.
    pub(crate) fn write(&mut self, clusters: impl IntoIterator<Item = (u64, u64)>) {
        let descriptor = self.descriptor();
        let top = descriptor.top_image().unwrap().file.clone();
        let state = self.states.get_mut(&descriptor.top).unwrap();
        let raw_base = descriptor.mode == ImageMode::Raw && descriptor.images.len() == 1;
        for (number, seed) in clusters {
            if raw_base {
                let file = OpenOptions::new().write(true).open(&top).unwrap();
                let len = self.cluster.bytes();
                file.write_all_at(&cluster_bytes(seed, len), number * len)
                    .unwrap();
            } else {
                Delta::open(&top).write(number, seed);
            }
            state.insert(number, seed);
        }
    }

    pub(crate) fn snapshot(&mut self) -> Guid {
        let guid = self.ploop.snapshot().unwrap();
        self.took(guid)
    }

    /// The top became this snapshot.
    pub(crate) fn took(&mut self, guid: Guid) -> Guid {
        let contents = self.states[&Guid::TOP].clone();
        self.states.insert(guid, contents);
        guid
    }

    /// The top is now as this snapshot.
    pub(crate) fn went_back_to(&mut self, guid: Guid) {
        let contents = self.states[&guid].clone();
        self.states.insert(Guid::TOP, contents);
    }

    pub(crate) fn switch(&mut self, guid: Guid) {
        assert_eq!(
            self.ploop
                .switch_snapshot_with(guid, SwitchFlag::empty())
                .unwrap(),
            None
        );
        self.went_back_to(guid);
    }

    /// base ← `guids[0]` … ← top, each state with clusters of its own, clusters it shares with the
    /// one below, and a cluster of zeroes over data.
    pub(crate) fn chain(
        mode: ImageMode,
        format: FormatVersion,
        snapshots: u64,
    ) -> (FilledImage, Vec<Guid>) {
        let mut filled = FilledImage::new(mode);
        let guids = (0..snapshots)
            .map(|level| {
                filled.fill(level + 1);
                filled.snapshot()
            })
            .collect();
        filled.fill(snapshots + 1);
        if format == FormatVersion::V2 {
            filled.make_v2();
        }
        filled.verify();
        (filled, guids)
    }

    /// Writes the data of a level; no two levels have the same.
    pub(crate) fn fill(&mut self, level: u64) {
        let seed = level * 100;
        self.write([
            (2 * level, seed + 1),
            (2 * level + 1, seed + 2),
            (2 * level + 2, seed + 3),
            (1, seed + 4),
            // Over the third cluster of the level below.
            (2 * level - 1, 0),
            (self.clusters - level, seed + 5),
        ]);
    }

    /// Asserts that the image has these states and no others, that both readers read each of them right, and that the
    /// check finds no fault.
    pub(crate) fn verify(&self) {
        // libploop writes the same text as this crate.
        let home = fs::canonicalize(self.dir.path()).unwrap();
        let text = fs::read_to_string(self.xml()).unwrap();
        assert_eq!(line::descriptor_text(&self.descriptor(), home), text);
        self.verify_states();
    }

    /// As [`verify`](FilledImage::verify), of an image whose descriptor libploop has not written.
    pub(crate) fn verify_states(&self) {
        let descriptor = self.descriptor();
        descriptor.validate().unwrap();
        let guids: BTreeSet<Guid> = descriptor.snapshots.iter().map(|s| s.guid).collect();
        let expected: BTreeSet<Guid> = self.states.keys().copied().collect();
        assert_eq!(guids, expected);
        // No C runs in what follows, and valgrind would spend most of its time there.
        if std::env::var_os("PLOOP_TESTS_UNDER_VALGRIND").is_some() {
            return;
        }
        let mut layers = BTreeMap::new();
        for (guid, contents) in &self.states {
            self.verify_state(&descriptor, *guid, contents, &mut layers);
        }
        let report = image::check(self.xml());
        let faults = report
            .findings
            .iter()
            .filter(|finding| finding.severity > Severity::Note)
            .filter(|finding| finding.issue != Issue::Orphan)
            .filter(|finding| {
                let file = finding.file.as_ref();
                finding.issue != Issue::LostClusters
                    || !file.is_some_and(|file| self.cut_short.contains(file))
            });
        assert_eq!(faults.count(), 0, "{report:?}");
        assert_eq!(
            report.orphans.into_iter().collect::<BTreeSet<_>>(),
            self.orphans
        );
        for image in &descriptor.images {
            let is_raw_base =
                descriptor.mode == ImageMode::Raw && descriptor.base().unwrap().guid == image.guid;
            if !is_raw_base {
                assert_eq!(Header::read(&image.file).unwrap().cluster, self.cluster);
                let _ = delta_by_qemu(&image.file);
            }
        }
    }

    fn verify_state(
        &self,
        descriptor: &Descriptor,
        guid: Guid,
        contents: &Contents,
        layers: &mut BTreeMap<PathBuf, Arc<Vec<u8>>>,
    ) {
        let mut expected = vec![0; (self.clusters * self.cluster.bytes()) as usize];
        for (number, seed) in contents {
            let at = (number * self.cluster.bytes()) as usize;
            let bytes = cluster_bytes(*seed, self.cluster.bytes());
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let disk = Disk::open_snapshot(self.xml(), guid).unwrap();
        self.compare(guid, "Disk", &read_whole(&disk), &expected);
        let mut by_qemu = vec![0; expected.len()];
        for image in descriptor.chain(guid) {
            let file = &image.file;
            if descriptor.mode == ImageMode::Raw && *image == *descriptor.base().unwrap() {
                by_qemu.copy_from_slice(&fs::read(file).unwrap());
                continue;
            }
            // QEMU reads one delta at a time; here they are put together.
            let layer = layers
                .entry(file.clone())
                .or_insert_with(|| delta_by_qemu(file));
            assert_eq!(layer.len(), by_qemu.len());
            // A cluster of zeroes hides what is below; for QEMU it is the same as none.
            for number in Delta::open(file).allocated(self.clusters) {
                let len = self.cluster.bytes() as usize;
                let range = number as usize * len..(number as usize + 1) * len;
                by_qemu[range.clone()].copy_from_slice(&layer[range]);
            }
        }
        self.compare(guid, "qemu-img", &by_qemu, &expected);
    }

    /// Asserts that the image has these states and no others, and that this crate and the reader of these tests read
    /// each of them right. For deltas with more in them than QEMU takes: format extensions, and what is left of them.
    pub(crate) fn verify_contents(&self) {
        let descriptor = self.descriptor();
        descriptor.validate().unwrap();
        let guids: BTreeSet<Guid> = descriptor.snapshots.iter().map(|s| s.guid).collect();
        assert_eq!(guids, self.states.keys().copied().collect());
        let len = self.cluster.bytes() as usize;
        for (guid, contents) in &self.states {
            let mut expected = vec![0; self.clusters as usize * len];
            for (number, seed) in contents {
                let at = *number as usize * len;
                expected[at..at + len].copy_from_slice(&cluster_bytes(*seed, len as u64));
            }
            let disk = Disk::open_snapshot(self.xml(), *guid).unwrap();
            self.compare(*guid, "Disk", &read_whole(&disk), &expected);
            let mut by_table = vec![0; expected.len()];
            for image in descriptor.chain(*guid) {
                let is_raw_base =
                    descriptor.mode == ImageMode::Raw && *image == *descriptor.base().unwrap();
                if is_raw_base {
                    by_table.copy_from_slice(&fs::read(&image.file).unwrap());
                    continue;
                }
                let delta = Delta::open(&image.file);
                for number in delta.allocated(self.clusters) {
                    let range = number as usize * len..(number as usize + 1) * len;
                    let at = delta.entry(number);
                    delta.file.read_exact_at(&mut by_table[range], at).unwrap();
                }
            }
            self.compare(*guid, "the table", &by_table, &expected);
        }
        assert!(image::check(self.xml()).is_sound());
    }

    fn compare(&self, guid: Guid, reader: &str, found: &[u8], expected: &[u8]) {
        assert_eq!(found.len(), expected.len(), "{guid} by {reader}");
        let len = self.cluster.bytes() as usize;
        let differing: Vec<usize> = (0..self.clusters as usize)
            .filter(|n| found[n * len..][..len] != expected[n * len..][..len])
            .collect();
        assert!(
            differing.is_empty(),
            "{guid} by {reader}: the clusters {differing:?} differ from {:?}",
            self.states[&guid]
        );
    }
}

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lck"))
        .collect();
    names.sort();
    names
}

pub(crate) fn read_whole(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size().bytes() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let read = disk.read_at(&mut bytes[at..], at as u64).unwrap();
        assert_ne!(read, 0);
        at += read;
    }
    bytes
}

/// The same path, from the working directory, which is not the image's.
pub(crate) fn relative(path: &Path) -> PathBuf {
    let here = fs::canonicalize(".").unwrap();
    let up = here
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .map(|_| "..");
    let mut relative: PathBuf = up.collect();
    relative.push(path.strip_prefix("/").unwrap());
    relative
}

/// Runs `qemu-img`, which must succeed. It is one of the programs that `ci/setup.sh test` installs.
fn qemu_img(arguments: &[&str], files: &[&Path]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .args(files)
        .output()
        .expect("qemu-img, installed by ci/setup.sh, starts");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?} {files:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The disk of one delta, in which QEMU finds no fault, as QEMU reads it.
///
/// Images are verified after every step, a step changes one delta, and many tests begin with the same image. QEMU's answer
/// depends on the bytes of the file alone, so it is asked once for each content.
fn delta_by_qemu(file: &Path) -> Arc<Vec<u8>> {
    /// By the bytes of the file.
    type Answers = HashMap<Vec<u8>, Arc<Vec<u8>>>;
    static ANSWERS: Mutex<Option<Answers>> = Mutex::new(None);
    /// Larger files are few, and all different.
    const LARGEST: u64 = 1 << 20;

    let answers = || ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    let content = (fs::metadata(file).unwrap().len() <= LARGEST).then(|| fs::read(file).unwrap());
    let answer = content
        .as_ref()
        .and_then(|content| answers().as_ref()?.get(content).cloned());
    if let Some(disk) = answer {
        return disk;
    }
    qemu_img(&["check", "-q", "-f", "parallels"], &[file]);
    let scratch = tempfile::tempdir().unwrap();
    let raw = scratch.path().join("raw");
    qemu_img(&["convert", "-f", "parallels", "-O", "raw"], &[file, &raw]);
    let disk = Arc::new(fs::read(&raw).unwrap());
    if let Some(content) = content {
        answers()
            .get_or_insert_default()
            .insert(content, Arc::clone(&disk));
    }
    disk
}
