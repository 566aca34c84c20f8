//! Images that are not attached: what libploop does to them by itself, and `OfflineImage` without libploop, cut at any
//! moment.
//!
//! A disk is recorded while an image on it is made, written to, and goes through operations that chance
//! chooses. Then the power is cut at many moments of the record. Each time, the image must be as it was
//! after the last operation that had returned, or as after the next one, and the next operation must
//! work.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ploop::image::{
    self, CreateOptions, Disk, DiskWriter, Header, Issue, OfflineImage, OpenOptions, Severity,
    check,
};
use ploop::{
    ClusterSize, CreateParam, Descriptor, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget,
    Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, Size, SnapshotParam,
};

use fastrand::Rng;

use super::recorder::Recorder;
use super::sandbox::{self, RunningPart, note};
use super::{Life, cuts, try_cuts};

const CLUSTER: usize = 32 << 10;
const CLUSTERS: usize = 48;
const HOST: u64 = 64 << 20;
const STEPS: u64 = 14;
/// A disk writes these whole.
const SECTOR: usize = 512;

/// The byte that fills each sector of an image's disk.
type Contents = Vec<u8>;

/// What an image is to be.
#[derive(Clone, Debug, PartialEq)]
struct State {
    top: Contents,
    snapshots: BTreeMap<Guid, Contents>,
    mode: ImageMode,
}

/// An operation that returned, and when.
struct Step {
    name: String,
    end: usize,
    /// `None` while there is no image.
    after: Option<State>,
    writes: bool,
}

/// The image that is recorded.
struct Subject<'a> {
    recorder: &'a Recorder,
    directory: PathBuf,
    steps: Vec<Step>,
}

fn descriptor(directory: &Path) -> PathBuf {
    directory.join("DiskDescriptor.xml")
}

/// Whether the operations are done without libploop.
static BY_FILES: AtomicBool = AtomicBool::new(false);

/// An image, with the one who changes it.
enum Changer {
    Libploop(Ploop),
    Files(OfflineImage),
}

impl Changer {
    fn open(path: &Path) -> ploop::Result<Changer> {
        Ok(match BY_FILES.load(Ordering::Relaxed) {
            false => Changer::Libploop(Ploop::open(path)?),
            true => Changer::Files(OfflineImage::open(path)?),
        })
    }

    fn snapshot_with(&mut self, param: &SnapshotParam) -> ploop::Result<Guid> {
        match self {
            Changer::Libploop(image) => image.snapshot_with(param),
            Changer::Files(image) => image.snapshot_with(param),
        }
    }

    fn switch_snapshot(&mut self, guid: Guid) -> ploop::Result<()> {
        match self {
            Changer::Libploop(image) => image.switch_snapshot(guid),
            Changer::Files(image) => image.switch_snapshot(guid),
        }
    }

    fn delete_snapshot(&mut self, guid: Guid) -> ploop::Result<()> {
        match self {
            Changer::Libploop(image) => image.delete_snapshot(guid),
            Changer::Files(image) => image.delete_snapshot(guid, |_| {}),
        }
    }

    fn delete_top_delta(&mut self) -> ploop::Result<()> {
        match self {
            Changer::Libploop(image) => image.delete_top_delta(),
            Changer::Files(image) => image.delete_top_delta(),
        }
    }

    fn merge(&mut self, param: &MergeParam) -> ploop::Result<()> {
        match self {
            Changer::Libploop(image) => image.merge(param),
            Changer::Files(image) => image.merge(param, |_| {}),
        }
    }

    fn convert(&mut self, mode: ImageMode) -> ploop::Result<()> {
        match self {
            Changer::Libploop(image) => image.convert(mode),
            Changer::Files(image) => image.convert(mode, |_| {}),
        }
    }
}

fn create(directory: &Path) -> ploop::Result<()> {
    let size = Size::from_bytes((CLUSTER * CLUSTERS) as u64);
    let cluster = ClusterSize::from_bytes(CLUSTER as u64).unwrap();
    let base = directory.join("root.hds");
    if BY_FILES.load(Ordering::Relaxed) {
        let options = CreateOptions::new()
            .cluster(cluster)
            .format(FormatVersion::V1);
        return image::create(base, size, &options).map(drop);
    }
    let param = CreateParam::new(base, size);
    Ploop::create(&param.cluster(cluster).fs(None)).map(drop)
}

impl Subject<'_> {
    fn did(&mut self, name: impl Into<String>, after: Option<State>, writes: bool) {
        self.steps.push(Step {
            name: name.into(),
            end: self.recorder.position(),
            after,
            writes,
        });
    }

    fn state(&self) -> State {
        self.steps.last().unwrap().after.clone().unwrap()
    }

    /// Writes to the top, and syncs.
    fn write(&mut self, random: &mut Rng) {
        let mut state = self.state();
        let mut disk = DiskWriter::open(descriptor(&self.directory)).unwrap();
        for _ in 0..8 {
            let cluster = random.usize(..CLUSTERS);
            let fill = 1 + random.u8(..255);
            let data = [fill; CLUSTER];
            let sectors = CLUSTER / SECTOR;
            state.top[cluster * sectors..][..sectors].fill(fill);
            disk.write_at(&data, (cluster * CLUSTER) as u64).unwrap();
        }
        disk.close().unwrap();
        self.did("write", Some(state), true);
    }

    /// One operation.
    fn operate(&mut self, random: &mut Rng) {
        let mut image = Changer::open(&descriptor(&self.directory)).unwrap();
        let now = Descriptor::open(descriptor(&self.directory)).unwrap();
        let mut state = self.state();
        let any = |guids: Vec<Guid>, random: &mut Rng| random.choice(guids);
        let snapshots: Vec<Guid> = state.snapshots.keys().copied().collect();
        let chain: Vec<Guid> = now.chain(now.top).iter().map(|image| image.guid).collect();
        let name = match random.u64(..8) {
            0 | 1 if snapshots.len() < 5 => {
                let guid = image.snapshot_with(&SnapshotParam::new()).unwrap();
                state.snapshots.insert(guid, state.top.clone());
                "snapshot"
            }
            2 => {
                let Some(guid) = any(snapshots, random) else {
                    return;
                };
                image.switch_snapshot(guid).unwrap();
                state.top = state.snapshots[&guid].clone();
                "switch"
            }
            3 | 4 => {
                let one_child = |guid: &Guid| now.children(*guid).count() < 2;
                let Some(guid) = any(snapshots.into_iter().filter(one_child).collect(), random)
                else {
                    return;
                };
                image.delete_snapshot(guid).unwrap();
                state.snapshots.remove(&guid);
                if now.children(guid).count() == 0 {
                    "delete of a leaf"
                } else {
                    "delete, merging"
                }
            }
            5 if chain.len() > 1 => {
                let lower = chain[chain.len() - 2];
                if now.children(lower).count() > 1 {
                    return;
                }
                image.delete_top_delta().unwrap();
                state.top = state.snapshots.remove(&lower).unwrap();
                "delete of the top"
            }
            6 if chain.len() > 1 => {
                let lower = chain[chain.len() - 2];
                if now.children(lower).count() > 1 {
                    return;
                }
                let mut param = MergeParam::new(MergeTarget::Top);
                if random.u64(..2) == 0 && state.mode != ImageMode::Raw {
                    param = param.new_delta(
                        self.directory
                            .join(format!("merged.{}", random.u64(..1 << 30))),
                    );
                }
                image.merge(&param).unwrap();
                state.snapshots.remove(&lower);
                "merge of the top"
            }
            7 if !BY_FILES.load(Ordering::Relaxed)
                && (now.images.len() > 1 || state.mode != ImageMode::Raw) =>
            {
                let Some(target) = any(
                    now.images
                        .iter()
                        .map(|image| image.guid)
                        .filter(|guid| {
                            state.mode != ImageMode::Raw
                                || now.base().is_some_and(|base| base.guid != *guid)
                        })
                        .collect(),
                    random,
                ) else {
                    return;
                };
                let copy = self
                    .directory
                    .join(format!("copy.{}", random.u64(..1 << 30)));
                match fs::copy(&now.image(target).unwrap().file, &copy) {
                    // There is no room for this step.
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        fs::remove_file(&copy).unwrap();
                        return;
                    }
                    copied => copied.unwrap(),
                };
                let mut param = ReplaceParam::new(&copy, ReplaceTarget::Guid(target));
                if random.u64(..2) == 0 {
                    param = param.flags(ReplaceFlag::KEEP_NAME);
                }
                let mut image = Ploop::open(descriptor(&self.directory)).unwrap();
                image.replace(&param).unwrap();
                "replace"
            }
            _ => return,
        };
        self.did(name, Some(state), false);
    }

    fn convert(&mut self, mode: ImageMode) {
        let mut state = self.state();
        let mut image = Changer::open(&descriptor(&self.directory)).unwrap();
        image.convert(mode).unwrap();
        state.mode = mode;
        self.did(format!("convert to {mode}"), Some(state), false);
    }
}

impl Life for Vec<Step> {
    fn steps(&self) -> Vec<(usize, &str)> {
        self.iter().map(|step| (step.end, &*step.name)).collect()
    }

    fn verify(&self, image: &Path, position: usize, _: u64) -> Result<(), String> {
        let last = self.iter().rposition(|step| step.end <= position);
        let last = last.unwrap_or(0);
        verify(image, &self[last], self.get(last + 1))
    }
}

/// Records an image's life.
fn live(recorder: &Recorder, directory: &Path, random: &mut Rng) -> Vec<Step> {
    let mut subject = Subject {
        recorder,
        directory: directory.to_owned(),
        steps: Vec::new(),
    };
    subject.did("nothing", None, false);
    create(directory).unwrap();
    let empty = State {
        top: vec![0; CLUSTERS * CLUSTER / SECTOR],
        snapshots: BTreeMap::new(),
        mode: ImageMode::Expanded,
    };
    subject.did("create", Some(empty), false);
    subject.write(random);
    for number in 0..STEPS {
        let before = subject.steps.len();
        while subject.steps.len() == before {
            subject.operate(random);
        }
        if random.u64(..2) == 0 {
            subject.write(random);
        }
        if number == STEPS / 2 && random.u64(..2) == 0 {
            subject.convert(ImageMode::Preallocated);
        }
        if number == STEPS - 3 && random.u64(..2) == 0 {
            subject.convert(ImageMode::Raw);
        }
    }
    subject.steps
}

/// What is there.
fn read(directory: &Path) -> ploop::Result<State> {
    let path = descriptor(directory);
    let descriptor = Descriptor::open(&path)?;
    let contents = |guid| -> ploop::Result<Contents> {
        let disk: Disk = OpenOptions::new()
            .allow_in_use(true)
            .open_snapshot(&path, guid)?;
        let mut bytes = vec![0; CLUSTERS * CLUSTER];
        let read = disk.read_at(&mut bytes, 0)?;
        assert_eq!(read, bytes.len());
        let sectors = bytes.chunks(SECTOR);
        Ok(sectors
            .map(|sector| {
                // Each byte is like the one before it.
                assert!(sector[1..] == sector[..SECTOR - 1]);
                sector[0]
            })
            .collect())
    };
    let mut snapshots = BTreeMap::new();
    for image in &descriptor.images {
        if image.guid != descriptor.top {
            snapshots.insert(image.guid, contents(image.guid)?);
        }
    }
    Ok(State {
        top: contents(descriptor.top)?,
        snapshots,
        mode: descriptor.mode,
    })
}

/// The image after a cut, and that the next operation works; or what is wrong.
fn verify(directory: &Path, last: &Step, next: Option<&Step>) -> Result<(), String> {
    let mut allowed: Vec<&State> = last.after.iter().collect();
    allowed.extend(next.and_then(|next| next.after.as_ref()));
    let failed =
        |what: &str, error: ploop::Error| format!("{what}: {error}\n{}", listing(directory));
    if last.after.is_none() && !descriptor(directory).exists() {
        create(directory).map_err(|error| failed("creating again", error))?;
        return Ok(());
    }
    let mut image = Ploop::open(descriptor(directory)).map_err(|error| failed("opening", error))?;
    let guid = Guid::generate();
    let param = SnapshotParam::new().guid(guid);
    let next_operation = |changer: ploop::Result<Changer>| {
        let made = changer.and_then(|mut changer| changer.snapshot_with(&param));
        made.map_err(|error| failed("the next operation", error))
    };
    // The top that was written to is marked, and only libploop may clear that.
    let top = Descriptor::open(descriptor(directory));
    let top = top.map_err(|error| failed("opening", error))?;
    let top = top.top_image().map(|top| Header::read(&top.file));
    match top {
        Some(Ok(header)) if header.in_use => {
            next_operation(Ploop::open(descriptor(directory)).map(Changer::Libploop))
        }
        _ => next_operation(Changer::open(&descriptor(directory))),
    }?;
    let mut found = read(directory).map_err(|error| failed("reading", error))?;
    if found.snapshots.remove(&guid).as_ref() != Some(&found.top) {
        return Err("the snapshot differs from the top".to_owned());
    }
    let writes = next.is_some_and(|next| next.writes);
    if let (true, Some(old), Some(new)) = (writes, allowed.first(), allowed.last()) {
        // Each sector is the old one or the new one.
        for (number, fill) in found.top.iter_mut().enumerate() {
            if *fill == new.top[number] {
                *fill = old.top[number];
            }
        }
    }
    if !allowed.contains(&&found) {
        let differences = allowed.iter().map(|state| difference(&found, state));
        let differences: Vec<String> = differences.collect();
        return Err(format!("{UNDONE} {}", differences.join("; or ")));
    }
    image
        .delete_snapshot(guid)
        .map_err(|error| failed("deleting", error))?;
    let removed = image.remove_leftovers();
    removed.map_err(|error| failed("removing what is left", error))?;
    let report = check(descriptor(directory));
    if report.has(Issue::Orphan) || descriptor(directory).with_extension("xml.tmp").exists() {
        return Err(format!("something is left:\n{}", listing(directory)));
    }
    match report.worst() {
        Some(Severity::Error) => Err(report.to_string()),
        _ => Ok(()),
    }
}

const UNDONE: &str = "another state:";

fn difference(found: &State, expected: &State) -> String {
    let in_sectors = |found: &Contents, expected: &Contents| {
        let all = found.iter().zip(expected).enumerate();
        all.filter(|(_, (found, expected))| found != expected)
            .map(|(number, (found, expected))| format!("{number}: {found} for {expected}"))
            .take(4)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let guids = |state: &State| state.snapshots.keys().copied().collect::<Vec<_>>();
    let mut text = format!("top {}", in_sectors(&found.top, &expected.top));
    if (found.mode, guids(found)) != (expected.mode, guids(expected)) {
        text += &format!(
            ", {} {:?} for {} {:?}",
            found.mode,
            guids(found),
            expected.mode,
            guids(expected)
        );
    }
    for (guid, contents) in &expected.snapshots {
        if let Some(found) = found.snapshots.get(guid).filter(|found| *found != contents) {
            text += &format!(", {guid} {}", in_sectors(found, contents));
        }
    }
    text
}

fn listing(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let len = entry.metadata().unwrap().len();
        text += &format!("{:?} {len}\n", entry.file_name());
    }
    text + &check(descriptor(directory)).to_string()
}

/// With mounts of its own. Nothing may be wrong.
pub(crate) fn conduct(place: &Path) {
    let wrong = offline_cuts(place, cuts());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without syncs, as libploop does it. The same cuts undo what succeeded: so they are cuts, and it takes
/// the syncs.
pub(crate) fn conduct_unsynced(place: &Path) {
    ploop::durability::set_sync(false);
    // About one cut of five undoes something: that none of these does is not to be expected.
    let wrong = offline_cuts(place, cuts() / 4);
    note!("{} undone", wrong.len());
    assert!(wrong.iter().any(|what| what.contains(UNDONE)));
}

fn offline_cuts(place: &Path, total: u64) -> Vec<String> {
    let prepare = |image: &Path| fs::create_dir(image).unwrap();
    try_cuts(place, total, HOST, prepare, live)
}

/// Without libploop. Nothing may be wrong.
pub(crate) fn conduct_by_files(place: &Path) {
    BY_FILES.store(true, Ordering::Relaxed);
    conduct(place);
}

/// Starts a part of images that are not attached.
pub(crate) fn run(part: &str) {
    let directory = sandbox::directory();
    let command = sandbox::with_own_mounts(part, directory.path());
    let output = RunningPart::start(command, false).succeed(std::time::Duration::from_secs(600));
    sandbox::show(&output);
}
