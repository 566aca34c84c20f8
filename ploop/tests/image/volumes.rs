//! Volumes of libploop 7: images that stand upon others in other directories.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ploop::image::{Descriptor, Disk, ExportOptions, Issue, OpenOptions, check};
use ploop::{Error, ErrorKind, FormatVersion, Guid};

use crate::written_image::{Delta, contents};

const M: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

fn guid(number: usize) -> Guid {
    format!("{{00000000-0000-4000-8000-{number:012x}}}")
        .parse()
        .unwrap()
}

/// The descriptor of a volume, in the form of libploop 7: its deltas as (GUID, parent, file), the top last.
fn volume(dir: &Path, parent: Option<(&str, usize)>, deltas: &[(usize, usize, &str)]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let mut volume = String::new();
    if let Some((directory, snapshot)) = parent {
        let snapshot = guid(snapshot);
        write!(
            volume,
            "<Parent>{directory}</Parent><SnapshotGUID>{snapshot}</SnapshotGUID>"
        )
        .unwrap();
    }
    let (mut images, mut shots) = (String::new(), String::new());
    for (number, parent, file) in deltas {
        let parent = match parent {
            0 => Guid::NONE,
            parent => guid(*parent),
        };
        let guid = guid(*number);
        write!(
            images,
            "<Image><GUID>{guid}</GUID><Type>Compressed</Type><File>{file}</File></Image>"
        )
        .unwrap();
        write!(
            shots,
            "<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>"
        )
        .unwrap();
    }
    let top = guid(deltas.last().unwrap().0);
    let path = dir.join("DiskDescriptor.xml");
    let xml = format!(
        "<?xml version=\"1.0\"?>\n<Parallels_disk_image><Disk_Parameters><Disk_size>{}</Disk_size>\
         <Cylinders>40</Cylinders><Heads>16</Heads><Sectors>32</Sectors><Padding>0</Padding></Disk_Parameters>\
         <StorageData><Volume>{volume}</Volume><Storage><Start>0</Start><End>{0}</End><Blocksize>{}</Blocksize>{images}</Storage></StorageData>\
         <Snapshots><TopGUID>{top}</TopGUID>{shots}</Snapshots></Parallels_disk_image>",
        M / 512,
        CLUSTER / 512,
    );
    fs::write(&path, xml).unwrap();
    path
}

/// As `ploop_volume_create`, `_snapshot` to `snap`, `_clone` to `clone` and another `_snapshot` to `snap2` leave it: four
/// deltas, of which each image has one or two, in the directories where they were made. Returns the deltas, the base first.
fn volumes(dir: &Path) -> Vec<Delta> {
    let names = [
        "vol/image.hds",
        "vol/image.hds.{1}",
        "clone/{2}.hds",
        "vol/{2}.hds.{3}",
    ];
    let mut deltas = Vec::new();
    for (number, name) in (1..).zip(names) {
        let mut delta = Delta::new(FormatVersion::V2, CLUSTER, M);
        delta.clusters = vec![(number, number as u8), (number + 1, 16 + number as u8)];
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        delta.write(&path);
        deltas.push(delta);
    }
    volume(
        &dir.join("vol"),
        Some(("../snap", 1)),
        &[(2, 1, "image.hds.{1}")],
    );
    volume(&dir.join("snap"), None, &[(1, 0, "../vol/image.hds")]);
    volume(
        &dir.join("clone"),
        Some(("../snap2", 3)),
        &[(4, 3, "../vol/{2}.hds.{3}")],
    );
    volume(
        &dir.join("snap2"),
        Some(("../snap", 1)),
        &[(3, 1, "../clone/{2}.hds")],
    );
    deltas
}

fn descriptor(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("DiskDescriptor.xml")
}

fn read(descriptor: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    Disk::open(descriptor)
        .unwrap()
        .read_to_end(&mut all)
        .unwrap();
    all
}

fn refused(descriptor: &Path) -> Error {
    let error = Disk::open(descriptor).unwrap_err();
    let report = check(descriptor);
    assert!(!report.is_sound(), "{report}");
    assert!(
        report
            .findings
            .iter()
            .any(|it| it.message.starts_with(error.message())),
        "{report}"
    );
    error
}

#[test]
fn volumes_stand_upon_others() {
    let dir = tempfile::tempdir().unwrap();
    let deltas = volumes(dir.path());
    for (name, levels) in [
        ("snap", vec![0]),
        ("vol", vec![0, 1]),
        ("snap2", vec![0, 2]),
        ("clone", vec![0, 2, 3]),
    ] {
        let chain: Vec<Delta> = levels.iter().map(|level| deltas[*level].clone()).collect();
        let path = descriptor(dir.path(), name);
        assert!(read(&path) == contents(&chain, false), "{name}");
        assert_eq!(Disk::open(&path).unwrap().files().len(), chain.len());
        let report = check(&path);
        assert!(report.is_clean(), "{name}: {report}");
        assert_eq!(report.deltas.len(), chain.len());
        // What belongs to the other images lies beside this one's.
        assert_eq!(report.orphans, [] as [PathBuf; 0]);
    }
    let clone = Descriptor::open(descriptor(dir.path(), "clone")).unwrap();
    let volume = clone.volume.as_ref().unwrap();
    assert_eq!(volume.snapshot, Some(guid(3)));
    assert!(volume.parent.as_ref().unwrap().ends_with("../snap2"));
    assert_eq!(clone.base(), clone.top_image());
    assert_eq!(
        (clone.parent(guid(4)), clone.depth(guid(4))),
        (None, Some(0))
    );

    // Below a descriptor that was read, too.
    let disk = OpenOptions::new()
        .open_descriptor(&clone, clone.top)
        .unwrap();
    assert_eq!(disk.files().len(), 3);
    // Written again, it says the same.
    let dir = dir.path().join("clone").canonicalize().unwrap();
    let again = Descriptor::parse(clone.to_xml(&dir).unwrap(), &dir).unwrap();
    assert_eq!(again, clone);
}

/// libploop puts the snapshots of all images together, so that one may be in any of them.
#[test]
fn a_parent_may_be_further_below() {
    let dir = tempfile::tempdir().unwrap();
    let deltas = volumes(dir.path());
    let path = volume(
        &dir.path().join("clone"),
        Some(("../snap2", 3)),
        &[(4, 1, "../vol/{2}.hds.{3}")],
    );
    let chain = [deltas[0].clone(), deltas[3].clone()];
    assert!(read(&path) == contents(&chain, false));
}

#[test]
fn parents_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    volumes(&home);
    let clone = descriptor(&home, "clone");
    let snap2 = home.join("snap2");
    let elsewhere = home.join("moved");

    fs::rename(&snap2, &elsewhere).unwrap();
    let error = refused(&clone);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.path().unwrap().ends_with("snap2/DiskDescriptor.xml"));
    assert!(check(&clone).has(Issue::Missing));
    fs::rename(&elsewhere, &snap2).unwrap();

    volume(&snap2, None, &[(5, 0, "../vol/image.hds")]);
    let error = refused(&clone);
    assert_eq!(error.kind(), ErrorKind::NoSnapshot);
    let message = format!(
        "the snapshot {}, upon which another image stands, is not there",
        guid(3)
    );
    assert_eq!(error.message(), message);

    // Of other clusters.
    volumes(&home);
    let xml = fs::read_to_string(descriptor(&home, "snap2")).unwrap();
    let other = xml.replace("<Blocksize>128", "<Blocksize>256");
    fs::write(descriptor(&home, "snap2"), other).unwrap();
    Disk::open(&clone).unwrap();
    let mut delta = Delta::new(FormatVersion::V2, 2 * CLUSTER, M);
    delta.clusters = vec![(1, 1)];
    delta.write(&home.join("clone/{2}.hds"));
    let error = Disk::open(&clone).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(check(&clone).has(Issue::ClusterSize));

    volumes(&home);
    let encrypted = "<StorageData>";
    let with = format!("<Encryption><KeyId>1</KeyId></Encryption>{encrypted}");
    fs::write(descriptor(&home, "snap2"), xml.replace(encrypted, &with)).unwrap();
    assert_eq!(refused(&clone).message(), "the image is encrypted");
}

#[test]
fn volumes_that_stand_upon_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    volumes(home);
    let itself = volume(
        &home.join("snap"),
        Some((".", 1)),
        &[(1, 7, "../vol/image.hds")],
    );
    let message = "the image stands upon others, and one of those upon it";
    assert_eq!(refused(&itself).message(), message);

    volume(
        &home.join("snap"),
        Some(("../vol", 2)),
        &[(1, 2, "../vol/image.hds")],
    );
    for name in ["snap", "vol", "clone"] {
        let error = refused(&descriptor(home, name));
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Corrupt, message)
        );
    }
    // Through ever new directories.
    let mut last = None;
    for number in 0..300 {
        let below = last.map(|last| (format!("../d{last}"), last + 10));
        let below = below.as_ref().map(|(dir, guid)| (dir.as_str(), *guid));
        let parent = below.map_or(0, |(_, guid)| guid);
        let file = format!("../vol/image.hds.{number}");
        fs::copy(home.join("vol/image.hds"), home.join("vol").join(&file)).unwrap();
        volume(
            &home.join(format!("d{number}")),
            below,
            &[(number + 10, parent, &file)],
        );
        last = Some(number);
    }
    let disk = Disk::open(descriptor(home, "d256")).unwrap();
    assert_eq!(disk.files().len(), 257);
    let error = refused(&descriptor(home, "d257"));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.message(),
        "more than 256 images in other directories are below"
    );
}

/// No descriptor and no delta outside is read.
#[test]
fn volumes_below_are_within() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    volumes(home);
    let options = |inside: &str| OpenOptions::new().within(home.join(inside));
    let clone = descriptor(home, "clone");
    assert_eq!(options(".").open(&clone).unwrap().files().len(), 3);
    let error = options("clone").open(&clone).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(
        error.path().unwrap().ends_with("snap2/DiskDescriptor.xml"),
        "{error}"
    );
}

#[test]
fn exports_spare_the_images_below() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    volumes(home);
    let disk = Disk::open(descriptor(home, "clone")).unwrap();
    for name in [
        "clone/DiskDescriptor.xml",
        "snap2/DiskDescriptor.xml",
        "snap/DiskDescriptor.xml",
        "vol/image.hds",
        "clone/{2}.hds",
    ] {
        let options = ExportOptions::new().overwrite(true);
        let error = disk.export(home.join(name), &options, |_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
    }
}
