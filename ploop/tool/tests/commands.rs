//! The commands as a person uses them.

#[path = "../../tests/written_image/mod.rs"]
mod written_image;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ploop::image::{Disk, Header, HeaderFlags};
use ploop::{ClusterSize, FormatVersion, Size};
use snapbox::cmd::{Command, cargo_bin};
use snapbox::str;
use tempfile::TempDir;
use written_image::{Delta, contents, describe, snapshot};

const M: u64 = 1 << 20;

fn command(arguments: &[&str]) -> Command {
    Command::new(cargo_bin!("ploop-image")).args(arguments)
}

/// An image of two deltas, and the contents of both states.
struct Image {
    dir: TempDir,
    descriptor: PathBuf,
    states: [Vec<u8>; 2],
}

impl Image {
    fn new() -> Image {
        let dir = tempfile::tempdir().unwrap();
        let mut base = Delta::new(FormatVersion::V2, M, 4 * M);
        base.clusters = vec![(0, 1), (2, 2)];
        let mut top = base.clone();
        top.clusters = vec![(2, 3)];
        base.write(&dir.path().join("root.hds"));
        top.write(&dir.path().join("top.hds"));
        let descriptor = describe(dir.path(), &["root.hds", "top.hds"], 4 * M, M, false);
        let states = [
            contents(&[base.clone()], false),
            contents(&[base, top], false),
        ];
        Image {
            dir,
            descriptor,
            states,
        }
    }

    fn of_one_delta() -> Image {
        let mut image = Image::new();
        fs::remove_file(image.file("top.hds")).unwrap();
        image.descriptor = describe(image.dir.path(), &["root.hds"], 4 * M, M, false);
        image.states[1] = image.states[0].clone();
        image
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn info_shows_the_tree() {
    let image = Image::new();
    let expected = str![[r#"
[..]/DiskDescriptor.xml
Disk of 4.00 MiB, expanded, clusters of 1 MiB

SNAPSHOT                                         ALLOCATED  FORMAT  FILE
{00000000-0000-0000-0000-000000000001}            2.00 MiB  v2      root.hds
└─ {5fbaabe3-6958-40ff-92a7-860e329aab41} (top)   1.00 MiB  v2      top.hds

"#]];
    // The directory and the descriptor in it are the same.
    for path in [image.path(), text(&image.descriptor)] {
        command(&["info", path])
            .assert()
            .success()
            .stdout_eq(expected.clone());
    }
}

#[test]
fn info_of_a_delta_says_what_it_is() {
    let image = Image::new();
    let file = image.file("top.hds");
    command(&["info", text(&file)])
        .assert()
        .success()
        .stdout_eq(str![[r#"
[..]/top.hds
Delta of a disk of 4.00 MiB, format v2, clusters of 1 MiB, 1.00 MiB allocated

"#]]);
}

#[test]
fn check_ends_with_what_it_found() {
    let image = Image::new();
    let sound = str![[r#"
...
The image is sound.

"#]];
    command(&["check", image.path()])
        .assert()
        .code(0)
        .stdout_eq(sound);
    // A cluster that nothing leads to: space is lost.
    let top = image.file("top.hds");
    let file = fs::File::options().write(true).open(&top).unwrap();
    file.set_len(3 * M).unwrap();
    file.write_all_at(&[0; M as usize], 3 * M).unwrap();
    command(&["check", image.path()]).assert().code(3);
    // Half a header.
    file.set_len(32).unwrap();
    command(&["check", image.path()])
        .assert()
        .code(2)
        .stdout_eq(str![[r#"
error: [..]/top.hds[..]
...
The image is damaged.

"#]]);
    let json = command(&["check", "--json", image.path()]).assert().code(2);
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(report["findings"][0]["severity"], "error", "{report}");
}

#[test]
fn map_and_diff_show_where_data_is_and_what_changed() {
    let image = Image::new();
    command(&["map", image.path()])
        .assert()
        .success()
        .stdout_eq(str![[r#"
 OFFSET   LENGTH  IN FILE AT  FILE
      0  1048576     1048576  root.hds
2097152  1048576     1048576  top.hds

"#]]);
    let guid = snapshot(0).to_string();
    command(&["diff", image.path(), "--from", &guid])
        .assert()
        .success()
        .stdout_eq(str![[r#"
 OFFSET   LENGTH
2097152  1048576
1.00 MiB changed

"#]]);
    command(&["diff", image.path(), "--from", &guid, "--to", &guid])
        .assert()
        .success()
        .stdout_eq(str![[r#"
The two states are equal.

"#]]);
}

/// More pieces than are in memory at once.
#[test]
fn long_lists_are_complete() {
    const CLUSTER: u64 = 32 << 10;
    const PIECES: u32 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.hds");
    let size = Size::from_bytes(2 * u64::from(PIECES) * CLUSTER);
    let cluster = ClusterSize::from_bytes(CLUSTER).unwrap();
    let mut header = Header::new(FormatVersion::V2, cluster, size).unwrap();
    header.flags = HeaderFlags::empty();
    let first = header.data_start() / CLUSTER;
    let file = fs::File::create(&path).unwrap();
    file.set_len((first + u64::from(PIECES)) * CLUSTER).unwrap();
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    let expected: Vec<(u64, u64)> = (0..u64::from(PIECES))
        .map(|piece| (2 * piece * CLUSTER, (first + piece) * CLUSTER))
        .collect();
    for (at, in_file) in &expected {
        let entry = u32::try_from(in_file / CLUSTER).unwrap().to_le_bytes();
        let place = 64 + 4 * (at / CLUSTER);
        file.write_all_at(&entry, place).unwrap();
    }
    let printed = |arguments: &[&str]| {
        let output = command(&[&["map", text(&path)], arguments].concat()).assert();
        String::from_utf8(output.success().get_output().stdout.clone()).unwrap()
    };
    let table = printed(&[]);
    let rows: Vec<(u64, u64)> = table
        .lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(cells[1..].len(), 3, "{line}");
            assert_eq!((cells[1], cells[3]), ("32768", "root.hds"));
            (cells[0].parse().unwrap(), cells[2].parse().unwrap())
        })
        .collect();
    assert!(rows == expected);
    let json: Vec<serde_json::Value> = serde_json::from_str(&printed(&["--json"])).unwrap();
    let rows = json.iter().map(|row| {
        let number = |name: &str| row[name].as_u64().unwrap();
        (number("offset"), number("file_offset"))
    });
    assert!(rows.collect::<Vec<_>>() == expected);
    // A table that leads nowhere, far behind.
    let place = 64 + 4 * 2 * u64::from(PIECES - 1);
    file.write_all_at(&u32::MAX.to_le_bytes(), place).unwrap();
    let failed = command(&["map", "--json", text(&path)]).assert().code(1);
    let output = failed.get_output();
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_err());
    let report: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(report["kind"], "corrupt", "{report}");
}

#[test]
fn export_writes_every_state_to_a_file_or_a_pipe() {
    let image = Image::new();
    let out = image.file("out.raw");
    let guid = snapshot(0).to_string();
    for (state, options) in [(0, &["--snapshot", &*guid][..]), (1, &[])] {
        let arguments = [
            &["export", "--overwrite", image.path(), text(&out)],
            options,
        ]
        .concat();
        command(&arguments)
            .assert()
            .success()
            .stdout_eq("")
            .stderr_eq("");
        assert!(fs::read(&out).unwrap() == image.states[state]);
        let arguments = [&["export", image.path(), "-"], options].concat();
        let piped = command(&arguments).assert().success();
        assert!(piped.get_output().stdout == image.states[state]);
    }
    // Nothing is overwritten unless it is asked for.
    fs::write(&out, "precious").unwrap();
    command(&["export", image.path(), text(&out)])
        .assert()
        .code(1)
        .stderr_eq(str![[r#"
error: cannot export image [..]: a file of that name is there already

"#]]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    // And never what belongs to the image, in any format.
    for format in ["raw", "qcow2"] {
        for name in ["root.hds", "DiskDescriptor.xml", "DiskDescriptor.xml.tmp"] {
            let own = image.file(name);
            let before = fs::read(&own).ok();
            let options = [
                "export",
                "--overwrite",
                "--format",
                format,
                image.path(),
                text(&own),
            ];
            command(&options).assert().code(1).stdout_eq("");
            assert!(fs::read(&own).ok() == before, "{format} {name}");
        }
    }
}

#[test]
fn export_replaces_no_file_of_an_image() {
    let (image, other) = (Image::new(), Image::new());
    let delta = image.file("root.hds");
    let refused = |target: &Path, what: &str| {
        let before = fs::read(target).unwrap();
        for format in ["raw", "qcow2"] {
            let options = ["export", "--overwrite", "--format", format];
            let options = [&options[..], &[text(&delta), text(target)]].concat();
            let output = command(&options).assert().code(1).stdout_eq("");
            let words = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
            let reasons = [
                "file of the image",
                "is a delta",
                "a delta of",
                "is a descriptor",
            ];
            assert!(reasons.iter().any(|it| words.contains(it)), "{words}");
            assert!(fs::read(target).unwrap() == before, "{what} {format}");
        }
    };
    // By one delta, the others of its image, and those of another image.
    for name in ["root.hds", "top.hds", "DiskDescriptor.xml"] {
        refused(&image.file(name), name);
        refused(&other.file(name), name);
    }
    // A delta elsewhere, which the descriptor beside the exported one names.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("top.hds");
    fs::rename(image.file("top.hds"), &moved).unwrap();
    let xml = fs::read_to_string(&image.descriptor).unwrap();
    let named = xml.replace(">top.hds<", &format!(">{}<", moved.display()));
    fs::write(&image.descriptor, named).unwrap();
    refused(&moved, "elsewhere");
    // A delta without its descriptor is still one.
    fs::remove_file(&other.descriptor).unwrap();
    refused(&other.file("top.hds"), "alone");
    // A raw base is told by a descriptor alone, whatever that is called; and by one that is damaged.
    fs::write(other.file("root.hds"), vec![7; 4 << 20]).unwrap();
    let raw = xml.replace("Compressed", "Plain");
    for name in ["COPY.XML", "copy", "DiskDescriptor.xml.bak"] {
        fs::write(other.file(name), &raw).unwrap();
        refused(&other.file("root.hds"), name);
        refused(&other.file(name), name);
        fs::remove_file(other.file(name)).unwrap();
    }
    for cut in [0, 30, 90, 300, xml.len() - 10] {
        fs::write(&other.descriptor, &raw[..cut]).unwrap();
        refused(&other.file("root.hds"), "cut off");
    }
    fs::write(&other.descriptor, vec![0; 700]).unwrap();
    refused(&other.file("root.hds"), "zeros");
    // What a damaged descriptor has named.
    fs::write(&other.descriptor, &xml[..xml.len() - 10]).unwrap();
    refused(&other.file("top.hds"), "cut off");
    refused(&other.descriptor, "cut off");
    fs::write(&other.descriptor, &xml[..20]).unwrap();
    refused(&other.file("top.hds"), "cut off early");
    // The way back of a repair.
    let undo = other.file("undo");
    fs::write(&undo, b"ploopundo\r\n\x1a\n\0\0\x01...").unwrap();
    let options = ["export", "--overwrite", text(&delta), text(&undo)];
    command(&options).assert().code(1).stdout_eq("");
    // A pipe takes raw disks alone.
    let options = ["export", text(&delta), "-", "--format", "qcow2"];
    command(&options).assert().code(1).stdout_eq("");
    // Other files are replaced, also one that a text names which is no descriptor.
    fs::remove_file(&other.descriptor).unwrap();
    let free = other.file("free.raw");
    fs::write(other.file("empty.xml"), "").unwrap();
    fs::write(other.file("report.xml"), vec![0; 700]).unwrap();
    for name in ["report.xml", "empty.xml", "report.xml"] {
        let target = other.file(name);
        let options = ["export", "--overwrite", text(&delta), text(&target)];
        command(&options).assert().success();
        assert!(fs::read(&target).unwrap() == image.states[0], "{name}");
    }
    fs::write(&free, "old").unwrap();
    fs::write(other.file("domain.xml"), "<domain>free.raw</domain>").unwrap();
    command(&["export", "--overwrite", text(&delta), text(&free)])
        .assert()
        .success();
    assert!(fs::read(&free).unwrap() == image.states[0]);
}

#[test]
fn a_failure_is_json_for_programs() {
    let output = command(&["map", "--json", "/none"]).assert().code(1);
    let report: serde_json::Value = serde_json::from_slice(&output.get_output().stderr).unwrap();
    assert_eq!(report["path"], "/none", "{report}");
    assert_eq!(report["kind"], "not found", "{report}");
}

#[test]
fn a_reader_that_has_seen_enough_is_told_of_by_the_status_alone() {
    let image = Image::new();
    let script = format!(
        "{} export {} - | head -c 100 | wc -c",
        cargo_bin!("ploop-image").display(),
        image.path()
    );
    Command::new("bash")
        .args(["-o", "pipefail", "-c", &script])
        .assert()
        .code(1)
        .stdout_eq("100\n")
        .stderr_eq("");
}

#[test]
fn usage_is_a_status_of_its_own() {
    command(&["export"]).assert().code(2);
    command(&["no-such-command"]).assert().code(2);
}

/// What is not there is not damaged, also for programs.
#[test]
fn a_check_of_nothing_is_not_one_of_a_damaged_image() {
    for options in [
        &["check", "no-such.hdd"][..],
        &["check", "--json", "no-such.hdd"],
    ] {
        command(options).assert().code(1).stdout_eq("");
    }
}

/// What is written is what the library reads.
#[test]
fn a_delta_by_itself_is_exported() {
    let image = Image::new();
    let (file, out) = (image.file("root.hds"), image.file("out.raw"));
    command(&["export", text(&file), text(&out)])
        .assert()
        .success();
    let disk = Disk::open_image(&file).unwrap();
    let mut expected = vec![0; disk.size().bytes() as usize];
    disk.read_at(&mut expected, 0).unwrap();
    assert!(fs::read(&out).unwrap() == expected);
}

#[test]
fn export_to_qcow2_is_the_disk() {
    use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, file, qcow2};
    let image = Image::new();
    let out = image.file("out.qcow2");
    let arguments = ["export", "--format", "qcow2", image.path(), text(&out)];
    command(&arguments).assert().success();
    let storage = file::File::try_from(fs::File::open(&out).unwrap()).unwrap();
    let opened = qcow2::Qcow2OpenBuilder::<file::File>::new(storage)
        .open(DenyImplicitOpenGate::default())
        .unwrap();
    let mut read = vec![0xa5; image.states[1].len()];
    FormatAccess::new(opened).read(&mut read[..], 0).unwrap();
    assert!(read == image.states[1]);
    // Two clusters of the four have data; the rest takes no space.
    let stored = fs::metadata(&out).unwrap().len();
    assert!((2 * M..3 * M).contains(&stored), "{stored}");
    command(&arguments).assert().code(1).stderr_eq(str![[r#"
error: [..]/out.qcow2: a file of that name is there already

"#]]);
    let left: Vec<_> = fs::read_dir(image.dir.path()).unwrap().collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

fn contents_of(descriptor: &Path) -> Vec<u8> {
    let disk = Disk::open(descriptor).unwrap();
    let mut bytes = vec![0; disk.size().bytes() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn snapshots_are_made_gone_back_to_deleted_and_merged() {
    let image = Image::new();
    let base = snapshot(0).to_string();
    let deltas = || {
        let descriptor = ploop::Descriptor::open(&image.descriptor).unwrap();
        descriptor.images.len()
    };
    let made = command(&["snapshot", image.path()]).assert().success();
    let made = String::from_utf8(made.get_output().stdout.clone()).unwrap();
    let made: ploop::Guid = made.trim().parse().unwrap();
    assert_eq!(deltas(), 3);
    assert!(contents_of(&image.descriptor) == image.states[1]);

    let switched = command(&["switch", "--json", "--keep-top", image.path(), &base])
        .assert()
        .success();
    let kept: serde_json::Value = serde_json::from_slice(&switched.get_output().stdout).unwrap();
    assert!(contents_of(&image.descriptor) == image.states[0]);
    let kept = kept["guid"].as_str().unwrap().to_owned();

    command(&["switch", image.path(), &made.to_string()])
        .assert()
        .success()
        .stdout_eq("");
    command(&["delete", image.path(), &kept]).assert().success();
    command(&["merge", image.path(), &made.to_string()])
        .assert()
        .success();
    assert_eq!(deltas(), 2);
    assert!(contents_of(&image.descriptor) == image.states[1]);
    let new = image.file("new.hds");
    command(&["merge", "--all", image.path(), "--output", text(&new)])
        .assert()
        .success();
    assert_eq!(deltas(), 1);
    assert!(new.exists());
    assert!(contents_of(&image.descriptor) == image.states[1]);
    command(&["check", image.path()]).assert().code(0);

    command(&["delete", image.path(), &base]).assert().code(1);
    command(&["delete", image.path()]).assert().code(2);
    command(&["snapshot", text(&new)])
        .assert()
        .code(1)
        .stderr_eq(str![[r#"
error: [..]/new.hds: this is one delta; name the descriptor of the image that is to be changed

"#]]);
}

#[test]
fn images_are_made_imported_grown_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    command(&["create", &path("new"), "--size", "64M", "--cluster", "64K"])
        .assert()
        .success()
        .stdout_eq("[..]/new/DiskDescriptor.xml\n");
    let descriptor = dir.path().join("new/DiskDescriptor.xml");
    assert!(contents_of(&descriptor) == vec![0; 64 << 20]);
    command(&["resize", &path("new"), "96M"]).assert().success();
    assert_eq!(contents_of(&descriptor).len(), 96 << 20);
    command(&["resize", &path("new"), "32M"]).assert().code(1);

    // From a file with a hole, and from a pipe.
    let mut raw = vec![0; 5 << 20];
    raw[..1000].fill(1);
    raw[4_000_000..4_500_000].fill(7);
    fs::write(path("raw"), &raw).unwrap();
    command(&["import", &path("raw"), &path("file")])
        .assert()
        .success();
    command(&["import", "-", &path("pipe"), "--mode", "raw", "--json"])
        .stdin(raw.clone())
        .assert()
        .success();
    for name in ["file", "pipe"] {
        let descriptor = dir.path().join(name).join("DiskDescriptor.xml");
        assert!(contents_of(&descriptor) == raw, "{name}");
        for mode in ["raw", "preallocated", "expanded"] {
            command(&["convert", &path(name), "--mode", mode])
                .assert()
                .success();
            assert!(contents_of(&descriptor) == raw, "{name} {mode}");
            command(&["check", &path(name)]).assert().code(0);
        }
    }
    // Nothing is overwritten, and nothing left behind.
    command(&["import", &path("raw"), &path("file")])
        .assert()
        .code(1);
    fs::write(path("odd"), [1; 1000]).unwrap();
    command(&["import", &path("odd"), &path("none")])
        .assert()
        .code(1);
    command(&["import", "-", &path("none")])
        .stdin("")
        .assert()
        .code(1);
    assert!(!Path::new(&path("none")).exists());

    let v1 = [
        "import",
        &path("raw"),
        &path("v1"),
        "--format-version",
        "v1",
        "--cluster",
        "32K",
    ];
    command(&v1).assert().success();
    command(&["convert", &path("v1"), "--format-version", "v2"])
        .assert()
        .success();
    let descriptor = dir.path().join("v1/DiskDescriptor.xml");
    assert!(contents_of(&descriptor) == raw);
    command(&["convert", &path("v1"), "--format-version", "v1"])
        .assert()
        .code(1);
}

#[test]
fn what_there_is_of_a_damaged_image_is_exported() {
    let image = Image::new();
    // Half of the only cluster of the top is cut off.
    let file = fs::File::options()
        .write(true)
        .open(image.file("top.hds"))
        .unwrap();
    file.set_len(M + M / 2).unwrap();
    let out = image.file("out.raw");
    command(&["export", image.path(), text(&out)])
        .assert()
        .code(1);
    assert!(!out.exists());
    command(&["export", "--salvage", image.path(), text(&out)])
        .assert()
        .success()
        .stderr_eq(str![[r#"
warning: [..]512 KiB at offset 2621440 are lost: [..]/top.hds: [..]

"#]]);
    let mut expected = image.states[1].clone();
    expected[2 * M as usize + M as usize / 2..3 * M as usize].fill(0);
    assert!(fs::read(&out).unwrap() == expected);
    let arguments = [
        "export",
        "--json",
        "--salvage",
        "--overwrite",
        image.path(),
        text(&out),
    ];
    let json = command(&arguments).assert().success();
    let value: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(value["lost"][0]["offset"], 2_621_440, "{value}");
}

#[test]
fn what_is_stored_for_nothing_is_freed() {
    let image = Image::new();
    // A cluster of zeros, and one that is the same below.
    let mut top = Delta::new(FormatVersion::V2, M, 4 * M);
    top.clusters = vec![(1, 0), (2, 2), (3, 9)];
    top.write(&image.file("top.hds"));
    let before = contents_of(&image.descriptor);
    let len = || fs::metadata(image.file("top.hds")).unwrap().len();
    assert_eq!(len(), 4 * M);
    command(&["compact", "--dry-run", image.path()])
        .assert()
        .success()
        .stdout_eq(str![[r#"
...
2.00 MiB would be freed

"#]]);
    assert_eq!(len(), 4 * M);
    let json = command(&["compact", "--json", image.path()])
        .assert()
        .success();
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(
        report["deltas"][1]["file"],
        text(&image.file("top.hds")),
        "{report}"
    );
    assert_eq!(len(), 2 * M);
    assert!(contents_of(&image.descriptor) == before);
    command(&["check", image.path()]).assert().code(0);
}

/// An image with a lost cluster, a mark and an entry that leads nowhere.
fn damage(image: &Image) {
    let top = image.file("top.hds");
    let file = fs::File::options().write(true).open(top).unwrap();
    file.write_all_at(&0x746f_6e59u32.to_le_bytes(), 44)
        .unwrap();
    file.write_all_at(&900u32.to_le_bytes(), 64).unwrap();
    file.set_len(3 * M).unwrap();
    file.write_all_at(&[9; M as usize], 2 * M).unwrap();
}

fn files(image: &Image) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(image.dir.path()).unwrap();
    let mut files: Vec<(PathBuf, Vec<u8>)> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_none_or(|it| it != "lck" && it != "undo")
        })
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_damaged_image_is_repaired_and_the_repair_undone() {
    let image = Image::new();
    command(&["repair", image.path()])
        .assert()
        .code(0)
        .stdout_eq("The image is sound.\n");
    let sound = contents_of(&image.descriptor);
    damage(&image);
    let damaged = files(&image);
    command(&["check", image.path()]).assert().code(2);

    command(&["repair", "--dry-run", image.path()])
        .assert()
        .code(1)
        .stdout_eq(str![[r#"
warning: [..]/top.hds at offset 44: the delta is marked as in use[..]
  left: the mark stays until the damage of the delta is repaired
error: [..]/top.hds at offset 64: the table puts cluster 0 at 900, which lies beyond the end of the file
  with --clear-entries: these clusters read as in the deltas below, or as zeros[..]
warning: [..]/top.hds: 1 of the file's 2 clusters are not in use
  left: they may belong to damaged entries of the table, and stay until these are repaired
Something would be left.

"#]]);
    assert!(files(&image) == damaged);

    let undo = image.file("before.undo");
    let arguments = [
        "repair",
        image.path(),
        "--undo",
        text(&undo),
        "--clear-entries",
    ];
    command(&arguments).assert().code(0).stdout_eq(str![[r#"
warning: [..]/top.hds at offset 44: the delta is marked as in use[..]
  repaired: no device of this host has it: the mark is cleared
error: [..]/top.hds at offset 64: the table puts cluster 0 at 900, which lies beyond the end of the file
  repaired: the entry is cleared
warning: [..]/top.hds: 1 of the file's 2 clusters are not in use
  repaired: 1 MiB of the file are freed: what is behind them moves to their place, and the file is cut
The image is sound.

"#]]);
    assert!(contents_of(&image.descriptor) == sound);
    command(&["check", image.path()]).assert().code(0);

    command(&["repair", image.path(), "--revert", text(&undo)])
        .assert()
        .code(0)
        .stdout_eq("[..]/top.hds is as before the repair\n");
    assert!(files(&image) == damaged);
    let arguments = ["repair", "--json", image.path(), "--clear-entries"];
    let json = command(&arguments).assert().code(0);
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(report["is_sound"], true, "{report}");
    assert_eq!(report["items"].as_array().unwrap().len(), 3, "{report}");
    let how = &report["items"][0]["outcome"]["repaired"]["how"];
    assert!(how.is_string(), "{report}");
    assert!(contents_of(&image.descriptor) == sound);
    // The image is not as the undo file would have it any more: it is as after the first repair.
    command(&["repair", "--json", image.path(), "--revert", text(&undo)])
        .assert()
        .code(0);
    assert!(files(&image) == damaged);
}

/// Nobody can tell which of them is wrong; what is possible is named as the option takes it.
#[test]
fn sizes_that_contradict_each_other_are_decided_by_choice() {
    let image = Image::of_one_delta();
    let before = contents_of(&image.descriptor);
    let base = image.file("root.hds");
    let file = fs::File::options().write(true).open(base).unwrap();
    file.write_all_at(&8191u64.to_le_bytes(), 36).unwrap();
    command(&["repair", image.path()])
        .assert()
        .code(1)
        .stdout_eq(str![[r#"
...
  left: nothing of the delta is written, for more than one geometry is possible: v2,1MiB,8191s, with [..], or v2,1MiB,8192s, with [..]; choose one, with an undo file, and look at the disk
...
"#]]);
    for wrong in ["v2,1M", "v3,1M,4M", "v2,1M,4M,0", "v2,3M,4M"] {
        command(&["repair", image.path(), "--geometry", wrong])
            .assert()
            .code(2);
    }
    command(&["repair", image.path(), "--geometry", "v2,1MiB,8192s"])
        .assert()
        .code(0)
        .stdout_eq(str![[r#"
...
  repaired: the header of the top delta says so now
The image is sound.

"#]]);
    assert!(contents_of(&image.descriptor) == before);
}

#[test]
fn a_repair_refuses_what_it_cannot_do() {
    let image = Image::new();
    // A descriptor of zeros, as after a power cut.
    let text_before = fs::read(&image.descriptor).unwrap();
    fs::write(&image.descriptor, [0; 100]).unwrap();
    for path in [image.path(), text(&image.descriptor)] {
        command(&["repair", path])
            .assert()
            .code(1)
            .stdout_eq(str![[r#"
error: [..]/DiskDescriptor.xml: the file holds nothing but zeros, as after a power cut
  left: [..]restore_descriptor
The image is damaged.

"#]]);
    }
    fs::write(&image.descriptor, text_before).unwrap();
    let top = image.file("top.hds");
    command(&["repair", text(&top)]).assert().code(1);
    command(&["repair", image.path(), "--revert", text(&top)])
        .assert()
        .code(1)
        .stderr_eq(str![[r#"
error: cannot undo repair [..]/top.hds at offset 0: this is no undo file

"#]]);
    for usage in [
        &["repair", "--dry-run", "--undo", "x", "y"][..],
        &["repair", "--revert", "x", "--clear-entries", "y"],
        &["repair"],
    ] {
        command(usage).assert().code(2);
    }
}

#[test]
fn a_lost_descriptor_is_made_anew() {
    let image = Image::new();
    let deltas = [image.file("root.hds"), image.file("top.hds")];
    let [base, top] = [text(&deltas[0]), text(&deltas[1])];
    let before = contents_of(&image.descriptor);
    command(&["restore-descriptor", image.path(), base, top])
        .assert()
        .code(1)
        .stderr_eq(str![[r#"
error: cannot restore descriptor [..]

"#]]);
    fs::remove_file(&image.descriptor).unwrap();
    command(&["restore-descriptor", image.path(), base, top])
        .assert()
        .code(0)
        .stdout_eq("[..]/DiskDescriptor.xml\n");
    assert!(contents_of(&image.descriptor) == before);
    command(&["check", image.path()]).assert().code(0);
    let other = image.file("other.xml");
    let arguments = ["restore-descriptor", "--json", text(&other), base, top];
    let json = command(&arguments).assert().code(0);
    let value: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert!(
        value["descriptor"]
            .as_str()
            .unwrap()
            .ends_with("/other.xml"),
        "{value}"
    );
    assert!(contents_of(&other) == before);
    command(&["restore-descriptor", image.path()])
        .assert()
        .code(2);
}
