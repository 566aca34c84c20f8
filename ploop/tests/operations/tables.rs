//! Deltas with tables, marks or sizes that libploop accepts, and then loses data.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ploop::image::{self, Disk, Header, Issue, Severity};
use ploop::{
    DiscardParam, Error, ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget,
    MountParam, Ploop, ReplaceParam, ReplaceTarget, ResizeMode, Result, Size, SwitchFlag,
};
use tempfile::TempDir;

use super::directory::Contents;
use super::filled_image::read_whole;
use super::written_image::{self, Delta, entry_offset};

use crate::refused::refused;

const CLUSTER: u64 = 32 << 10;
const CLUSTERS: u64 = 16;
/// What Parallels Desktop leaves on a closed image.
const CLOSED: u32 = 0x312e_3276;
const MARK: u64 = 44;

/// A base with three clusters and a top with one, of so many bytes.
fn chain(version: FormatVersion, size: u64) -> (TempDir, Ploop, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let home = fs::canonicalize(dir.path()).unwrap();
    let files = [home.join("root.hds"), home.join("top.hds")];
    let mut base = Delta::new(version, CLUSTER, size);
    base.clusters = vec![(0, 1), (5, 2), (1, 3)];
    base.write(&files[0]);
    let mut top = Delta::new(version, CLUSTER, size);
    top.clusters = vec![(5, 4)];
    top.write(&files[1]);
    let names = ["root.hds", "top.hds"];
    let descriptor = written_image::describe(&home, &names, size, CLUSTER, false);
    (dir, Ploop::open(descriptor).unwrap(), files)
}

fn write(file: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

type Operation = (&'static str, fn(&mut Ploop) -> Result<()>);

/// The operations that write to a delta of the image, merge or remove one, or attach it.
const OPERATIONS: &[Operation] = &[
    ("merge", |image| {
        image.merge(&MergeParam::new(MergeTarget::Top))
    }),
    ("merge all", |image| {
        image.merge(&MergeParam::new(MergeTarget::All))
    }),
    ("merge to a new delta", |image| {
        let new = image.path().with_file_name("new.hds");
        image.merge(&MergeParam::new(MergeTarget::All).new_delta(new))
    }),
    ("delete", |image| {
        image.delete_snapshot(written_image::snapshot(0))
    }),
    ("switch", |image| {
        image.switch_snapshot(written_image::snapshot(0))
    }),
    ("switch and keep", |image| {
        let flags = SwitchFlag::SKIP_DESTROY;
        image
            .switch_snapshot_with(written_image::snapshot(0), flags)
            .map(drop)
    }),
    ("convert", |image| image.convert(ImageMode::Preallocated)),
    ("convert to raw", |image| image.convert(ImageMode::Raw)),
    ("mount", |image| image.mount(&MountParam::new()).map(drop)),
    ("mount read-only", |image| {
        let base = MountParam::new().snapshot(written_image::snapshot(0));
        image.mount(&base.read_only(true)).map(drop)
    }),
    ("discard", |image| {
        image
            .discard(&DiscardParam::new().automount(true))
            .map(drop)
    }),
    ("resize", |image| {
        image.resize(Size::from_mib(10), ResizeMode::Offline)
    }),
    ("look at the file system", |image| {
        ploop::fs_info(image.path()).map(drop)
    }),
];

/// Of the base alone.
fn all_refused(
    image: &mut Ploop,
    kind: ErrorKind,
    delta: &Path,
    operations: &[Operation],
) -> Vec<Error> {
    let before = Contents::of(image.path().parent().unwrap());
    let mut errors = Vec::new();
    for (what, operation) in operations {
        let error = operation(image).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert_eq!(error.path(), Some(delta), "{what}: {error}");
        before.assert_unchanged(what);
        errors.push(error);
    }
    errors
}

#[test]
fn tables_that_lead_elsewhere() {
    for version in [FormatVersion::V1, FormatVersion::V2] {
        let unit = match version {
            FormatVersion::V1 => CLUSTER / 512,
            FormatVersion::V2 => 1,
        } as u32;
        for (entry, what) in [
            (
                1,
                "version 1: between two clusters; version 2: the cluster of the first data",
            ),
            (unit * 4, "behind the end"),
            (u32::MAX, "far behind the end"),
            (unit * 2, "a cluster of another entry"),
        ] {
            let (_dir, mut image, [base, _]) = chain(version, CLUSTERS * CLUSTER);
            write(&base, entry_offset(9), &entry.to_le_bytes());
            assert!(!image::check(image.path()).is_sound(), "{what}");
            for error in all_refused(&mut image, ErrorKind::Corrupt, &base, OPERATIONS) {
                assert_eq!(error.offset(), Some(entry_offset(9)), "{what}: {error}");
            }
        }
    }
    // Inside the table, of a version 1 with a larger one.
    let (_dir, mut image, [base, _]) = chain(FormatVersion::V1, 20_000 * CLUSTER);
    write(
        &base,
        entry_offset(9),
        &(CLUSTER as u32 / 512).to_le_bytes(),
    );
    all_refused(&mut image, ErrorKind::Corrupt, &base, OPERATIONS);
    // The top, which is about to be copied. An operation that removes it is allowed: it is the way out.
    let (_dir, mut image, [_, top]) = chain(FormatVersion::V1, CLUSTERS * CLUSTER);
    write(&top, entry_offset(9), &1u32.to_le_bytes());
    all_refused(&mut image, ErrorKind::Corrupt, &top, &OPERATIONS[..4]);
    let snapshot: Operation = ("snapshot", |image| image.snapshot().map(drop));
    all_refused(&mut image, ErrorKind::Corrupt, &top, &[snapshot]);
    image.switch_snapshot(written_image::snapshot(0)).unwrap();
    assert!(!top.exists());
    assert!(image::check(image.path()).is_sound());
}

/// Whether libploop knows of extensions, and of the mark that says that they are kept up.
fn keeps_extensions() -> bool {
    ploop::sys::SONAME != "libploop.so.1"
}

/// A delta with a dirty bitmap in one more cluster behind the data, as a backup program leaves it.
fn add_extension(delta: &Path) {
    let len = fs::metadata(delta).unwrap().len();
    let mut extension = vec![0; 2 * CLUSTER as usize];
    let mut put = |at: usize, bytes: &[u8]| extension[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xab23_4cef_23dc_ea87u64.to_le_bytes());
    put(24, &0x2038_5fae_252c_b34au64.to_le_bytes());
    put(40, &(32u32 + 8 * 3).to_le_bytes());
    put(48, &(CLUSTERS * CLUSTER / 512).to_le_bytes());
    put(48 + 24, &128u32.to_le_bytes());
    put(48 + 28, &3u32.to_le_bytes());
    put(48 + 32, &1u64.to_le_bytes());
    put(48 + 48, &((len + CLUSTER) / 512).to_le_bytes());
    write(delta, len, &extension);
    write(delta, 56, &(len / 512).to_le_bytes());
    write(delta, MARK, &CLOSED.to_le_bytes());
}

#[test]
fn a_format_extension_is_read_over_and_never_cut_off() {
    for level in [0, 1] {
        let (_dir, mut image, files) = chain(FormatVersion::V2, CLUSTERS * CLUSTER);
        let expected = read_whole(&Disk::open(image.path()).unwrap());
        let sound = image::check(image.path());
        assert!(sound.is_sound() && sound.findings.is_empty(), "{sound}");
        add_extension(&files[level]);
        assert_eq!(read_whole(&Disk::open(image.path()).unwrap()), expected);
        let report = image::check(image.path());
        let found: Vec<_> = report
            .findings
            .iter()
            .map(|it| (it.severity, it.issue))
            .collect();
        assert_eq!(found, [(Severity::Note, Issue::Extension)], "{report}");
        assert!(report.is_sound());
        assert!(
            report.deltas.iter().all(|delta| delta.lost == Size::ZERO),
            "{report}"
        );
        assert_eq!(
            image.image_info().unwrap().size(),
            Size::from_bytes(CLUSTERS * CLUSTER)
        );

        if keeps_extensions() {
            // tests/line7 has what becomes of it.
            continue;
        }
        let of_top = ["convert", "convert to raw", "mount read-only"];
        let concerned =
            |it: &&Operation| level == 0 || !of_top.contains(&it.0) && !it.0.starts_with("switch");
        let concerned: Vec<Operation> = OPERATIONS.iter().filter(concerned).copied().collect();
        all_refused(
            &mut image,
            ErrorKind::Unsupported,
            &files[level],
            &concerned,
        );
        if level == 1 {
            let snapshot: Operation = ("snapshot", |image| image.snapshot().map(drop));
            all_refused(&mut image, ErrorKind::Unsupported, &files[1], &[snapshot]);
        }
        // As a replacement.
        let new = image.path().with_file_name("copy.hds");
        fs::copy(&files[level], &new).unwrap();
        let target = ReplaceTarget::Guid(if level == 0 {
            written_image::snapshot(0)
        } else {
            Guid::TOP
        });
        refused(
            image.replace(&ReplaceParam::new(&new, target)),
            ErrorKind::Unsupported,
        );
    }
}

#[test]
fn a_damaged_extension_is_named() {
    type Damage = fn(&Path, u64);
    let damages: [Damage; 5] = [
        |file, at| write(file, at, &[0; 8]),
        |file, _| write(file, 56, &1u64.to_le_bytes()),
        |file, _| write(file, 56, &u64::MAX.to_le_bytes()),
        |file, at| write(file, at + 40, &u32::MAX.to_le_bytes()),
        |file, at| write(file, at + 48 + 48, &7u64.to_le_bytes()),
    ];
    for damage in damages {
        let (_dir, image, [base, _]) = chain(FormatVersion::V2, CLUSTERS * CLUSTER);
        let expected = read_whole(&Disk::open(image.path()).unwrap());
        let at = fs::metadata(&base).unwrap().len();
        add_extension(&base);
        damage(&base, at);
        let report = image::check(image.path());
        assert!(report.has(Issue::Extension), "{report}");
        assert!(
            report
                .findings
                .iter()
                .any(|it| it.severity == Severity::Warning),
            "{report}"
        );
        assert_eq!(read_whole(&Disk::open(image.path()).unwrap()), expected);
    }
}

#[test]
fn a_closed_image_is_one_that_is_not_in_use() {
    let marked = || {
        let (dir, image, files) = chain(FormatVersion::V1, CLUSTERS * CLUSTER);
        for file in &files {
            write(file, MARK, &CLOSED.to_le_bytes());
        }
        (dir, image, files)
    };
    let mark = |file: &Path| {
        let mut mark = [0; 4];
        File::open(file)
            .unwrap()
            .read_exact_at(&mut mark, MARK)
            .unwrap();
        u32::from_le_bytes(mark)
    };
    let (_dir, mut image, files) = marked();
    let before = Contents::of(image.path().parent().unwrap());
    let info = image.image_info().unwrap();
    assert_eq!((info.blocks, info.block_size, info.version), (1024, 64, 1));
    image.switch_snapshot(Guid::generate()).unwrap_err();
    before.assert_unchanged("a look-up and a refused change");
    let expected = read_whole(&Disk::open(image.path()).unwrap());
    let base = read_whole(&Disk::open_snapshot(image.path(), written_image::snapshot(0)).unwrap());
    image.snapshot().unwrap();
    let cleared = if keeps_extensions() { CLOSED } else { 0 };
    assert_eq!((mark(&files[0]), mark(&files[1])), (CLOSED, cleared));
    assert_eq!(read_whole(&Disk::open(image.path()).unwrap()), expected);

    // Merges, and what makes a new top.
    for (what, operation) in &OPERATIONS[..7] {
        if what.contains("new") {
            continue;
        }
        let (_dir, mut image, files) = marked();
        operation(&mut image).expect(what);
        let is_written = !what.contains("switch") && !what.contains("convert");
        let expected_mark = if is_written { 0 } else { cleared };
        assert_eq!(mark(&files[0]), expected_mark, "{what}");
        let expected = if what.contains("switch") {
            &base
        } else {
            &expected
        };
        assert_eq!(
            &read_whole(&Disk::open(image.path()).unwrap()),
            expected,
            "{what}"
        );
        assert!(image::check(image.path()).is_sound(), "{what}");
    }
}

#[test]
fn a_disk_that_ends_within_a_cluster_keeps_its_end() {
    let size = 5 * CLUSTER + 512;
    let (_dir, mut image, [base, top]) = chain(FormatVersion::V2, size);
    let concerned = |it: &&Operation| {
        it.0.contains("merge") || ["delete", "switch"].contains(&it.0) || it.0.contains("convert")
    };
    let concerned: Vec<Operation> = OPERATIONS.iter().filter(concerned).copied().collect();
    for error in all_refused(&mut image, ErrorKind::Unsupported, &base, &concerned) {
        assert!(
            error.message().contains("whole number of clusters"),
            "{error}"
        );
    }
    let snapshot: Operation = ("snapshot", |image| image.snapshot().map(drop));
    all_refused(&mut image, ErrorKind::Unsupported, &top, &[snapshot]);
    image
        .set_max_delta_size(Size::from_sectors(1 << 20))
        .unwrap();
    let disk = read_whole(&Disk::open(image.path()).unwrap());
    assert_eq!(disk.len() as u64, size);
    assert_eq!(
        disk[5 * CLUSTER as usize..],
        written_image::pattern(4, 5 * CLUSTER, 512)
    );
}

/// A file of another size than the disk belongs to somebody else.
#[test]
fn a_plain_base_is_as_large_as_the_disk() {
    let size = CLUSTERS * CLUSTER;
    for len in [size - CLUSTER, size - 512, size + 512, size + 1, 0, 512] {
        let dir = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        let base = home.join("root.hds");
        fs::write(&base, vec![7; len as usize]).unwrap();
        let path = written_image::describe(&home, &["root.hds"], size, CLUSTER, true);
        let mut image = Ploop::open(path).unwrap();
        let operations: [Operation; 3] = [
            ("snapshot", |image| image.snapshot().map(drop)),
            ("mount", |image| image.mount(&MountParam::new()).map(drop)),
            ("look at the file system", |image| {
                ploop::fs_info(image.path()).map(drop)
            }),
        ];
        all_refused(&mut image, ErrorKind::Corrupt, &base, &operations);
        fs::write(&base, vec![7; size as usize]).unwrap();
        image.snapshot().unwrap();
        assert!(Header::read(image.top_delta_file().unwrap()).is_ok());
    }
}

/// As a descriptor says of which one delta alone is of type `Plain`: a merge would write over the header.
#[test]
fn a_plain_base_has_no_header() {
    let (_dir, mut image, [base, _]) = chain(FormatVersion::V2, CLUSTERS * CLUSTER);
    let text = fs::read_to_string(image.path()).unwrap();
    let at = text.rfind("Compressed").unwrap();
    let text = format!("{}Plain{}", &text[..at], &text[at + "Compressed".len()..]);
    fs::write(image.path(), text).unwrap();
    assert_eq!(image.descriptor().unwrap().mode, ImageMode::Raw);
    // Shorter than the disk, as one that has grown since may be.
    assert!(fs::metadata(&base).unwrap().len() < CLUSTERS * CLUSTER);
    let report = image::check(image.path());
    let finding = |issue| report.findings.iter().any(|finding| finding.issue == issue);
    assert!(!report.is_sound() && finding(Issue::Header), "{report}");
    for error in all_refused(&mut image, ErrorKind::Corrupt, &base, &OPERATIONS[..4]) {
        assert!(error.message().contains("the header of a delta"), "{error}");
    }
}
