//! Repairs of damaged images, and what takes them back, cut at any moment.
//!
//! What could be read before a repair can be read after each cut, and the next repair comes to the same end. Before the
//! undo file is there, nothing has changed. Once it is, each byte can be put back, also where that was cut itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use ploop::image::{
    self, CreateOptions, DiskWriter, OfflineImage, OpenOptions, RepairChoice, RepairOptions, check,
};
use ploop::{ClusterSize, Descriptor, FormatVersion, Guid, Size};

use super::recorder::Recorder;
use super::{Life, cuts, try_cuts};

const CLUSTER: u64 = 32 << 10;
const CLUSTERS: u64 = 48;
const HOST: u64 = 64 << 20;
const KINDS: usize = 5;
/// The kind whose headers have lost their signatures.
const HEADERS: usize = 3;

/// Where entries and fields are in a delta.
const TABLE: u64 = 64;
const ENTRIES: u64 = 32;
const MARK: u64 = 44;
const FLAGS: u64 = 52;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What each state has, cluster by cluster; nothing where it cannot be read.
type Contents = BTreeMap<(Guid, u64), Vec<u8>>;

/// An image that was repaired, and put back.
struct Repair {
    /// The number of the damaged image.
    kind: usize,
    damaged: Files,
    readable: Contents,
    repaired: Contents,
    steps: Vec<(usize, &'static str)>,
}

const DAMAGED: &str = "damage";
const REPAIRED: &str = "repair";
const UNDONE: &str = "undo";

fn descriptor(directory: &Path) -> PathBuf {
    directory.join("DiskDescriptor.xml")
}

/// The undo file, beside the directories of the images.
fn undo(image: &Path) -> PathBuf {
    image.join("undo")
}

/// Images of three deltas, each with damage of another kind.
fn prepare(image: &Path) {
    for kind in 0..KINDS {
        let directory = image.join(kind.to_string());
        fs::create_dir_all(&directory).unwrap();
        make(&directory, [FormatVersion::V1, FormatVersion::V2][kind % 2]);
        damage(&directory, kind);
    }
}

fn make(directory: &Path, version: FormatVersion) {
    let options = CreateOptions::new()
        .cluster(ClusterSize::from_bytes(CLUSTER).unwrap())
        .format(version);
    let size = Size::from_bytes(CLUSTERS * CLUSTER);
    let mut image = image::create(directory.join("root.hds"), size, &options).unwrap();
    for level in 0u64..3 {
        if level > 0 {
            image.snapshot().unwrap();
        }
        let mut disk = DiskWriter::open(image.path()).unwrap();
        for number in 0..8 {
            let fill = (level * 8 + number + 1) as u8;
            let at = (number * 5 + level * 3) % CLUSTERS;
            disk.write_at(&[fill; CLUSTER as usize], at * CLUSTER)
                .unwrap();
        }
        disk.close().unwrap();
    }
}

/// A delta that is being damaged.
struct Delta(File);

impl Delta {
    fn put(&self, at: u64, number: u32) {
        self.0.write_all_at(&number.to_le_bytes(), at).unwrap();
    }

    fn entry(&self, number: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0
            .read_exact_at(&mut bytes, TABLE + 4 * number)
            .unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set_entry(&self, number: u64, entry: u32) {
        self.put(TABLE + 4 * number, entry);
    }
}

fn damage(directory: &Path, kind: usize) {
    let found = Descriptor::open(descriptor(directory)).unwrap();
    for (level, image) in found.chain(found.top).iter().enumerate() {
        let file = File::options().read(true).write(true).open(&image.file);
        let delta = Delta(file.unwrap());
        let own = |has: bool| {
            let clusters = (0..CLUSTERS).filter(|number| (delta.entry(*number) != 0) == has);
            clusters.collect::<Vec<u64>>()
        };
        let (own, free) = (own(true), own(false));
        // A repair that makes headers anew does nothing else.
        let damage = match kind {
            HEADERS => HEADERS,
            _ => [0, 1, 2, 4][(kind + level) % 4],
        };
        match damage {
            // Lost clusters, in the middle and at the end, and a mark.
            0 => {
                for lost in [1, 3, 7] {
                    delta.set_entry(own[lost], 0);
                }
                delta.put(MARK, 0x746f_6e59);
            }
            // A shared cluster, a lost one, and a wrong flag.
            1 => {
                delta.set_entry(own[2], delta.entry(own[5]));
                delta.put(FLAGS, 1);
            }
            // Entries that lead nowhere, a file that was cut short, and a wrong number of entries.
            2 => {
                delta.set_entry(own[0], 60_000);
                delta.set_entry(free[1], 64 * 1000);
                delta.put(ENTRIES, 1);
                let len = delta.0.metadata().unwrap().len();
                delta.0.set_len(len - 700).unwrap();
            }
            HEADERS => delta.0.write_all_at(&[0; 20], 0).unwrap(),
            // Two entries for one cluster, where there were none.
            _ => {
                delta.set_entry(free[0], delta.entry(own[6]));
                delta.set_entry(free[2], delta.entry(own[1]));
            }
        }
        delta.0.sync_all().unwrap();
    }
    let text = fs::read_to_string(descriptor(directory)).unwrap();
    let text = match kind % 2 {
        0 => {
            fs::write(directory.join("root.hds.tmp"), "half a file").unwrap();
            text.replace("<Heads>16</Heads>", "<Heads>0</Heads>")
        }
        // A delta that is listed twice: the descriptor contradicts itself, and so nobody looks for orphans.
        _ => {
            let start = text.find("<Image>").unwrap();
            let end = text.find("</Image>").unwrap() + "</Image>".len();
            let image = text[start..end].to_owned();
            text[..end].to_owned() + &image + &text[end..]
        }
    };
    fs::write(descriptor(directory), text).unwrap();
}

/// All files but locks.
fn files(directory: &Path) -> Files {
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_none_or(|it| it != "lck"))
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()))
        .collect()
}

/// What can be read; of an image whose descriptor contradicts itself, nothing.
fn read(directory: &Path) -> Contents {
    let mut found = BTreeMap::new();
    let Ok(images) = Descriptor::open(descriptor(directory)) else {
        return found;
    };
    for image in &images.images {
        let options = OpenOptions::new().allow_in_use(true);
        let Ok(disk) = options.open_snapshot(descriptor(directory), image.guid) else {
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

/// Repairs an image, which must be sound then, and returns what it has.
fn repair(directory: &Path, options: &RepairOptions) -> Result<Contents, String> {
    let repaired = OfflineImage::open(descriptor(directory))
        .and_then(|mut image| image.repair(options, |_| {}));
    let report = repaired.map_err(|error| format!("repair: {error}"))?;
    let found = check(descriptor(directory));
    match report.is_complete() && found.is_clean() {
        true => Ok(read(directory)),
        false => Err(format!("not repaired: {report:#?}\n{found}")),
    }
}

fn undo_repair(directory: &Path, undo: &Path) -> Result<(), String> {
    let undone =
        OfflineImage::open(descriptor(directory)).and_then(|mut image| image.undo_repair(undo));
    undone.map(drop).map_err(|error| format!("undo: {error}"))
}

fn live(recorder: &Recorder, image: &Path, random: &mut Rng) -> Repair {
    let kind = random.usize(..KINDS);
    let directory = image.join(kind.to_string());
    let mut steps = vec![(recorder.position(), DAMAGED)];
    let (damaged, readable) = (files(&directory), read(&directory));
    let repaired = repair(&directory, &options().undo(undo(image))).unwrap();
    steps.push((recorder.position(), REPAIRED));
    undo_repair(&directory, &undo(image)).unwrap();
    assert!(files(&directory) == damaged);
    steps.push((recorder.position(), UNDONE));
    Repair {
        kind,
        damaged,
        readable,
        repaired,
        steps,
    }
}

impl Life for Repair {
    fn steps(&self) -> Vec<(usize, &str)> {
        self.steps.clone()
    }

    fn verify(&self, image: &Path, position: usize, number: u64) -> Result<(), String> {
        let directory = image.join(self.kind.to_string());
        let last = self.steps.iter().rfind(|step| step.0 <= position);
        let last = last.map_or(DAMAGED, |step| step.1);
        let at = |what: String| format!("image {}: {what}", self.kind);
        self.verify_reads(&directory).map_err(at)?;
        let undo = undo(image);
        match last {
            DAMAGED if !undo.exists() && files(&directory) != self.damaged => {
                return Err(at("it was changed before there was an undo file".to_owned()));
            }
            UNDONE if files(&directory) != self.damaged => {
                return Err(at("what was put back is not there".to_owned()));
            }
            REPAIRED | UNDONE if !undo.exists() => {
                return Err(at("the undo file is gone".to_owned()));
            }
            _ => {}
        }
        // The repair goes on, or is taken back and begins anew.
        if undo.exists() && number % 2 == 0 {
            undo_repair(&directory, &undo).map_err(at)?;
            if files(&directory) != self.damaged {
                return Err(at("not all was put back".to_owned()));
            }
        }
        match repair(&directory, &options()).map_err(at)? == self.repaired {
            true => Ok(()),
            false => Err(at("another end".to_owned())),
        }
    }
}

impl Repair {
    fn verify_reads(&self, directory: &Path) -> Result<(), String> {
        let now = read(directory);
        let worse = self
            .readable
            .iter()
            .find(|(place, bytes)| now.get(place) != Some(bytes));
        match worse {
            Some((place, _)) => Err(format!("{place:?} is worse")),
            None => Ok(()),
        }
    }
}

/// With mounts of its own. Nothing may be wrong.
pub(crate) fn conduct(place: &Path) {
    let wrong = try_cuts(place, cuts(), HOST, prepare, live);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
