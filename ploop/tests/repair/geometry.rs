//! One field of a header or of the descriptor is wrong, and perhaps an entry of a table, too: nothing that can be read is lost,
//! and no file becomes shorter.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use ploop::image::{
    CreateOptions, Disk, DiskWriter, Issue, OfflineImage, RepairChoice, RepairGeometry,
    RepairOptions, RepairOutcome, RepairReport, check, import,
};
use ploop::{ClusterSize, Descriptor, FormatVersion, ImageMode, Size};
use tempfile::TempDir;

const CLUSTERS: u64 = 16;
const V1: &[u8] = b"WithoutFreeSpace";
const V2: &[u8] = b"WithouFreSpacExt";

/// An image, and what its disk reads.
struct Written {
    _dir: TempDir,
    xml: PathBuf,
    /// The deltas with a header.
    deltas: Vec<PathBuf>,
    content: Vec<u8>,
    cluster: u64,
}

/// What an image stands upon, and of how many deltas it is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Single,
    Chain,
    RawBase,
}

impl Written {
    /// `is_full` says whether all clusters are in use.
    fn new(
        kind: Kind,
        version: FormatVersion,
        cluster: u64,
        sectors: u64,
        is_full: bool,
    ) -> Written {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Rng::with_seed(sectors);
        let mut content = vec![0; 512 * sectors as usize];
        for (number, part) in content.chunks_mut(cluster as usize).enumerate() {
            if is_full || number % 3 == 1 {
                random.fill(part);
            }
        }
        let raw = dir.path().join("raw");
        fs::write(&raw, &content).unwrap();
        let mode = match kind {
            Kind::RawBase => ImageMode::Raw,
            _ => ImageMode::Expanded,
        };
        let options = CreateOptions::new()
            .cluster(ClusterSize::from_bytes(cluster).unwrap())
            .format(version)
            .mode(mode);
        let mut source = File::open(&raw).unwrap();
        let mut image = import(dir.path().join("root.hds"), &mut source, &options, |_| {}).unwrap();
        fs::remove_file(raw).unwrap();
        if !matches!(kind, Kind::Single) {
            image.snapshot().unwrap();
            let mut disk = DiskWriter::open(image.path()).unwrap();
            for number in [0, 5, 9, 12] {
                let start = number * cluster as usize;
                let part = &mut content[start..][..cluster as usize];
                random.fill(part);
                disk.write_at(part, start as u64).unwrap();
            }
            disk.close().unwrap();
        }
        let xml = fs::canonicalize(image.path()).unwrap();
        let descriptor = Descriptor::open(&xml).unwrap();
        let mut deltas: Vec<PathBuf> = descriptor.images.into_iter().map(|it| it.file).collect();
        if let Kind::RawBase = kind {
            deltas.retain(|file| ploop::image::Header::read(file).is_ok());
        }
        let image = Written {
            _dir: dir,
            xml,
            deltas,
            content,
            cluster,
        };
        // An import makes whole clusters.
        image.describe("Disk_size", |_| sectors as u32);
        for delta in 0..image.deltas.len() {
            image.set_number(delta, 36, sectors as u32);
        }
        if let Kind::RawBase = kind {
            let base = image.xml.with_file_name("root.hds");
            let base = File::options().write(true).open(base).unwrap();
            base.set_len(512 * sectors).unwrap();
        }
        assert!(check(&image.xml).is_clean(), "{}", check(&image.xml));
        assert_eq!(image.differences(), Some(vec![]));
        image
    }

    fn set(&self, delta: usize, at: u64, bytes: &[u8]) {
        let file = File::options()
            .write(true)
            .open(&self.deltas[delta])
            .unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn number(&self, delta: usize, at: u64) -> u32 {
        let mut bytes = [0; 4];
        let file = File::open(&self.deltas[delta]).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set_number(&self, delta: usize, at: u64, number: u32) {
        self.set(delta, at, &number.to_le_bytes());
    }

    fn set_entry(&self, delta: usize, number: u64, entry: u32) {
        self.set_number(delta, 64 + 4 * number, entry);
    }

    /// Changes the number in an element of the descriptor.
    fn describe(&self, element: &str, change: impl FnOnce(u32) -> u32) {
        let text = fs::read_to_string(&self.xml).unwrap();
        let (_, rest) = text.split_once(&format!("<{element}>")).unwrap();
        let (number, _) = rest.split_once('<').unwrap();
        let new = change(number.parse().unwrap());
        // The size is there twice.
        let mut text = text.replace(
            &format!("<{element}>{number}<"),
            &format!("<{element}>{new}<"),
        );
        if element == "Disk_size" {
            text = text.replace(&format!("<End>{number}<"), &format!("<End>{new}<"));
        }
        fs::write(&self.xml, text).unwrap();
    }

    fn lengths(&self) -> Vec<u64> {
        let len = |file: &PathBuf| fs::metadata(file).unwrap().len();
        self.deltas.iter().map(len).collect()
    }

    fn files(&self) -> Vec<Vec<u8>> {
        let files = self.deltas.iter().chain([&self.xml]);
        files.map(|file| fs::read(file).unwrap()).collect()
    }

    /// Repairs it. A dry run before says the same.
    fn repair(&self, choices: &[RepairChoice]) -> ploop::Result<RepairReport> {
        let options = |dry_run| {
            let all = choices.iter();
            all.fold(RepairOptions::new().dry_run(dry_run), |options, choice| {
                options.allow(*choice)
            })
        };
        let mut image = OfflineImage::open(&self.xml)?;
        let dry = image.repair(&options(true), |_| {})?;
        let report = image.repair(&options(false), |_| {})?;
        // A dry run promises nothing that the repair does not do.
        assert!(
            !dry.is_complete() || report.is_complete(),
            "{dry:#?}\n{report:#?}"
        );
        Ok(report)
    }

    /// The clusters of the disk that do not read as they were written; `None` where it cannot be opened or has another size.
    fn differences(&self) -> Option<Vec<u64>> {
        let disk = Disk::open(&self.xml).ok()?;
        if disk.size().bytes() != self.content.len() as u64 {
            return None;
        }
        let parts = self.content.chunks(self.cluster as usize);
        let differs = |(number, part): (u64, &[u8])| {
            let mut bytes = vec![0; part.len()];
            let read = disk.read_at(&mut bytes, number * self.cluster);
            (!read.is_ok_and(|len| len == part.len()) || bytes != part).then_some(number)
        };
        Some((0..).zip(parts).filter_map(differs).collect())
    }

    /// Asserts that nothing is left, and that the disk is whole.
    fn assert_mended(&self, report: &RepairReport) {
        assert!(report.is_complete(), "{report:#?}");
        assert_eq!(self.differences(), Some(vec![]), "{report:#?}");
    }
}

fn is_left(report: &RepairReport) -> bool {
    let mut items = report.items.iter();
    !report.is_complete() && items.any(|it| matches!(it.outcome, RepairOutcome::Left { .. }))
}

const CHOICES: [&[RepairChoice]; 2] = [&[], &RepairChoice::ALL];

#[test]
fn one_field_is_wrong_and_perhaps_an_entry() {
    let mut mended = 0;
    let rounds = 500;
    for round in 0..rounds {
        let mut random = Rng::with_seed(round);
        let kind = [Kind::Single, Kind::Chain, Kind::RawBase][random.usize(..3)];
        let version = [FormatVersion::V1, FormatVersion::V2][random.usize(..2)];
        let cluster = [32 << 10, 64 << 10][random.usize(..2)];
        let sectors = CLUSTERS * cluster / 512 - [0, 0, 1, 8, 40][random.usize(..5)];
        let is_full = random.bool();
        let image = Written::new(kind, version, cluster, sectors, is_full);
        let delta = random.usize(..image.deltas.len());
        let sound = image.files();
        let change = |random: &mut Rng, number: u32| match random.u32(..11) {
            0 => number * 2,
            1 => number / 2,
            2 => number + 1,
            3 => number.wrapping_sub(1),
            4 => number + (cluster / 512) as u32,
            5 => number.wrapping_sub((cluster / 512) as u32),
            6 => number * 3,
            7 => 0,
            8 => random.u32(..300),
            9 => 1 << random.u32(..32),
            _ => random.u32(..),
        };
        let field = random.usize(..8);
        match field {
            0 => {
                // A delta upon a raw base is always of one version.
                let other = match image.files()[delta].starts_with(V1) {
                    true => V2,
                    false => V1,
                };
                image.set(delta, 0, other);
            }
            1 => image.describe("Blocksize", |number| change(&mut random, number)),
            2 => image.describe("Disk_size", |number| change(&mut random, number)),
            _ => {
                let at = [16, 28, 32, 36, 48][field - 3];
                let new = change(&mut random, image.number(delta, at));
                image.set_number(delta, at, new);
            }
        }
        if image.files() == sound {
            continue;
        }
        // A delta below may have a smaller disk.
        let is_seen = !check(&image.xml).is_clean();
        let mut damaged = None;
        if random.bool() {
            let entry = match random.u32(..4) {
                0 => random.u32(..),
                1 => random.u32(..40),
                2 => random.u32(..40) * (cluster / 512) as u32,
                _ => 0x999,
            };
            let number = random.u64(..CLUSTERS);
            let delta = random.usize(..image.deltas.len());
            image.set_entry(delta, number, entry);
            damaged = Some(number);
        }
        let choices = CHOICES[random.usize(..2)];
        let what = format!(
            "round {round}: {kind:?} {version} of {cluster}, {sectors} sectors, full {is_full}, field {field} of {delta}, entry {damaged:?}, {choices:?}"
        );
        let (before, lengths) = (image.files(), image.lengths());
        let Ok(report) = image.repair(choices) else {
            assert!(image.files() == before, "{what}");
            continue;
        };
        // With an entry that leads to what another one has, the one before may be the wrong one.
        let may_differ = |differences: &[u64]| match damaged {
            None => differences.is_empty(),
            Some(_) => differences.len() <= 2,
        };
        let differences = image.differences();
        if report.is_complete() {
            let differences = differences.unwrap_or_else(|| panic!("{what}: {report:#?}"));
            assert!(
                may_differ(&differences),
                "{what}: {differences:?} {report:#?}"
            );
            mended += 1;
        }
        // The number of entries alone says nothing that counts.
        if field != 5 && is_seen {
            let after = image.lengths();
            let is_shorter = lengths
                .iter()
                .zip(&after)
                .any(|(before, after)| after < before);
            assert!(!is_shorter, "{what}: {lengths:?} {after:?} {report:#?}");
        }
        if !report.is_complete() && choices.len() > 1 {
            // Whoever has seen that goes on.
            let again = image.repair(choices).unwrap();
            if again.is_complete() {
                let differences = image.differences().unwrap();
                assert!(
                    may_differ(&differences),
                    "{what}: {differences:?} {report:#?} {again:#?}"
                );
            }
        }
    }
    assert!(mended > rounds / 4, "{mended} of {rounds}");
}

/// Descriptor, number of entries and table say what the header does not.
#[test]
fn a_wrong_cluster_size_in_all_headers() {
    for (kind, version) in [
        (Kind::Single, FormatVersion::V1),
        (Kind::Chain, FormatVersion::V1),
        (Kind::Single, FormatVersion::V2),
        (Kind::Chain, FormatVersion::V2),
        (Kind::RawBase, FormatVersion::V1),
    ] {
        for cluster in [64, 256] {
            let image = Written::new(kind, version, 64 << 10, 2048, true);
            let files = image.files();
            for delta in 0..image.deltas.len() {
                image.set_number(delta, 28, cluster);
            }
            let report = image.repair(&[]).unwrap();
            image.assert_mended(&report);
            assert!(image.files() == files);
        }
    }
}

#[test]
fn a_wrong_cluster_size_in_the_descriptor_and_an_entry() {
    for version in [FormatVersion::V1, FormatVersion::V2] {
        for (kind, delta) in [(Kind::Single, 0), (Kind::Chain, 0), (Kind::Chain, 1)] {
            for (blocks, entry) in [(64, 0x999), (256, 0x999), (256, 1), (64, 0x99)] {
                for choices in CHOICES {
                    let image = Written::new(kind, version, 64 << 10, 2048, true);
                    image.describe("Blocksize", |_| blocks);
                    image.set_entry(delta, 3, entry);
                    let files = image.files();
                    let report = image.repair(choices).unwrap();
                    assert!(is_left(&report), "{report:#?}");
                    let now = image.files();
                    let deltas = image.deltas.len();
                    assert!(now[..deltas] == files[..deltas], "{report:#?}");
                    let report = image.repair(choices).unwrap();
                    assert_eq!(report.is_complete(), choices.len() > 1, "{report:#?}");
                    if report.is_complete() {
                        let differences = image.differences().unwrap();
                        assert!(differences.len() <= 2, "{differences:?}");
                    }
                }
            }
        }
    }
}

/// Every second cluster is taken twice, if the descriptor is believed.
#[test]
fn a_wrong_cluster_size_in_the_descriptor_and_a_shared_cluster() {
    let image = Written::new(Kind::Single, FormatVersion::V1, 64 << 10, 2176, false);
    let entry = image.number(0, 64 + 4);
    image.set_entry(0, 2, entry);
    image.describe("Blocksize", |_| 256);
    let report = image.repair(&[]).unwrap();
    assert!(!report.is_complete(), "{report:#?}");
    assert_eq!(image.differences(), Some(vec![2]));
}

#[test]
fn the_signature_of_the_other_version_in_the_only_delta() {
    for (version, other) in [(FormatVersion::V1, V2), (FormatVersion::V2, V1)] {
        for kind in [Kind::Single, Kind::RawBase] {
            for choices in CHOICES {
                let image = Written::new(kind, version, 32 << 10, 1024, true);
                let files = image.files();
                image.set(0, 0, other);
                let report = image.repair(choices).unwrap();
                image.assert_mended(&report);
                assert!(image.files() == files);
            }
        }
    }
}

#[test]
fn a_first_block_that_is_too_late() {
    for version in [FormatVersion::V1, FormatVersion::V2] {
        for entry in [None, Some(0), Some(0x999), Some(1)] {
            for choices in CHOICES {
                let image = Written::new(Kind::Single, version, 64 << 10, 2048, true);
                image.set_number(0, 48, 3 * 128);
                if let Some(entry) = entry {
                    image.set_entry(0, 7, entry);
                }
                let files = image.files();
                let report = image.repair(choices).unwrap();
                let now = image.files();
                // Only the field is changed.
                assert_eq!(now[0][..48], files[0][..48], "{report:#?}");
                assert!(now[0][52..] == files[0][52..], "{report:#?}");
                match entry {
                    None => image.assert_mended(&report),
                    Some(_) => assert!(is_left(&report), "{report:#?}"),
                }
            }
        }
    }
}

/// The size of the top is in doubt, so nothing goes of the delta below either.
#[test]
fn a_size_in_doubt_and_a_lost_cluster_below() {
    let image = Written::new(Kind::Chain, FormatVersion::V1, 32 << 10, 1016, true);
    for delta in 0..2 {
        image.set_entry(delta, 10, 0);
    }
    image.describe("Disk_size", |_| 1017);
    let files = image.files();
    for choices in CHOICES {
        let report = image.repair(choices).unwrap();
        assert!(is_left(&report), "{report:#?}");
        assert!(image.files() == files);
    }
}

#[test]
fn a_wrong_size_in_a_header() {
    let image = Written::new(Kind::Chain, FormatVersion::V2, 32 << 10, 1024, true);
    let files = image.files();
    let base = usize::from(image.number(0, 52) == 0 && image.number(1, 52) == 0);
    for delta in [base, 1 - base] {
        image.set_number(delta, 36, 1024 + 64);
        let report = image.repair(&[]).unwrap();
        image.assert_mended(&report);
        assert!(image.files() == files);
    }
    // Header and descriptor differ by less than a cluster.
    let image = Written::new(Kind::Single, FormatVersion::V2, 32 << 10, 1024, true);
    image.set_number(0, 36, 1023);
    let files = image.files();
    for choices in CHOICES {
        let report = image.repair(choices).unwrap();
        assert!(is_left(&report), "{report:#?}");
        assert!(report.items.iter().any(|it| it.issue == Issue::Size));
        assert!(image.files() == files);
    }
}

/// What contradicts each other is decided by a person; with an undo file, the next possibility can be tried.
#[test]
fn a_geometry_that_is_chosen() {
    let choose = |image: &Written, geometry: RepairGeometry, undo: Option<&Path>| {
        let mut options = RepairOptions::new().geometry(geometry);
        if let Some(undo) = undo {
            options = options.undo(undo);
        }
        let mut image = OfflineImage::open(&image.xml).unwrap();
        image.repair(&options, |_| {}).unwrap()
    };
    let geometry = |version, cluster, sectors| {
        let cluster = ClusterSize::from_bytes(cluster).unwrap();
        RepairGeometry::new(version, cluster, Size::from_sectors(sectors))
    };
    let dir = tempfile::tempdir().unwrap();
    let undo = dir.path().join("undo");

    // Header and descriptor differ by less than a cluster.
    let image = Written::new(Kind::Single, FormatVersion::V2, 32 << 10, 1024, true);
    let whole = image.files();
    image.set_number(0, 36, 1023);
    let damaged = image.files();
    let (of_header, of_descriptor) = (
        geometry(FormatVersion::V2, 32 << 10, 1023),
        geometry(FormatVersion::V2, 32 << 10, 1024),
    );
    let report = image.repair(&[]).unwrap();
    let named = format!("{report:?}");
    for possible in [of_header, of_descriptor] {
        assert!(named.contains(&format!("{possible},")), "{named}");
    }
    let report = choose(&image, of_header, Some(&undo));
    assert!(report.is_complete(), "{report:#?}");
    let disk = Disk::open(&image.xml).unwrap();
    assert_eq!(disk.size(), Size::from_sectors(1023));
    drop(disk);
    let mut offline = OfflineImage::open(&image.xml).unwrap();
    offline.undo_repair(&undo).unwrap();
    assert!(image.files() == damaged);
    let report = choose(&image, of_descriptor, None);
    image.assert_mended(&report);
    assert!(image.files() == whole);

    // Two fields that all deltas have in common are wrong.
    for (kind, version) in [
        (Kind::Single, FormatVersion::V1),
        (Kind::Chain, FormatVersion::V1),
        (Kind::Chain, FormatVersion::V2),
    ] {
        let image = Written::new(kind, version, 64 << 10, 2048, true);
        let whole = image.files();
        let deltas = image.deltas.len();
        for delta in 0..deltas {
            image.set_number(delta, 28, 256);
        }
        image.describe("Blocksize", |_| 256);
        let report = choose(&image, geometry(version, 64 << 10, 2048), None);
        image.assert_mended(&report);
        assert!(image.files()[..deltas] == whole[..deltas]);

        // By a wrong one, nothing is cut off or cleared; and what cannot be is not written.
        let long = image.lengths();
        let wrong = geometry(version, 128 << 10, 2048);
        let report = choose(&image, wrong, None);
        assert_eq!(image.lengths(), long, "{report:#?}");
        let right = choose(&image, geometry(version, 64 << 10, 2048), None);
        image.assert_mended(&right);
        let files = image.files();
        let report = choose(&image, geometry(version, 64 << 20, 1 << 30), None);
        assert!(is_left(&report), "{report:#?}");
        assert!(image.files() == files, "{report:#?}");
        let why = "was chosen, and is not possible";
        assert!(format!("{report:?}").contains(why), "{report:#?}");
    }
}

/// The check cannot read the descriptor, so that the dry run has only what the repair finds itself.
#[test]
fn a_dry_run_of_a_contradictory_descriptor_tells_of_a_lost_delta() {
    let image = Written::new(Kind::Single, FormatVersion::V2, 32 << 10, 1024, true);
    let text = fs::read_to_string(&image.xml).unwrap();
    let (start, end) = (
        text.find("<Image>").unwrap(),
        text.find("</Image>").unwrap() + 8,
    );
    let twice = format!("{}{}{}", &text[..end], &text[start..end], &text[end..]);
    fs::write(&image.xml, twice).unwrap();
    File::create(&image.deltas[0]).unwrap();
    let mut opened = OfflineImage::open(&image.xml).unwrap();
    let report = opened
        .repair(&RepairOptions::new().dry_run(true), |_| {})
        .unwrap();
    assert!(is_left(&report), "{report:#?}");
    let report = image.repair(&[]).unwrap();
    assert!(is_left(&report), "{report:#?}");
}

#[test]
fn a_raw_base_below_a_snapshot_that_was_cut_short() {
    for len in [300_001, 600 * 512] {
        let image = Written::new(Kind::RawBase, FormatVersion::V2, 32 << 10, 1024, true);
        let base = image.xml.with_file_name("root.hds");
        let content = fs::read(&base).unwrap();
        let file = File::options().write(true).open(&base).unwrap();
        file.set_len(len).unwrap();
        let found = check(&image.xml);
        assert!(found.has(Issue::Size), "{found}");
        // A disk that was made larger after its snapshot has such a base, too, but of whole sectors.
        assert_eq!(found.is_clean(), len % 512 == 0, "{found}");
        let report = image.repair(&[]).unwrap();
        assert_eq!(report.is_complete(), len % 512 == 0, "{report:#?}");
        assert_eq!(fs::metadata(&base).unwrap().len(), len);
        let report = image.repair(&[RepairChoice::PadRaw]).unwrap();
        assert!(report.is_complete(), "{report:#?}");
        let mut expected = content[..len as usize].to_vec();
        expected.resize(content.len(), 0);
        assert!(fs::read(&base).unwrap() == expected);
        assert!(check(&image.xml).is_clean());
    }
}
