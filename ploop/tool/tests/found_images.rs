//! Images as they are found in the field, and what the commands make of them.

#[path = "../../tests/written_image/mod.rs"]
mod written_image;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ploop::FormatVersion;
use serde_json::{Value, json};
use tempfile::TempDir;
use written_image::{Delta, OldDelta, contents, describe, entry_offset, pattern, snapshot};

const M: u64 = 1 << 20;

/// The status of a command, and what it prints.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ploop-image"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn json(arguments: &[&str]) -> Value {
    let (_, out, err) = run(&[arguments, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}{err}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `export` writes; the status and the error where it writes nothing.
fn export(path: &Path) -> Result<Vec<u8>, (i32, String)> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (status, _, err) = run(&["export", text(path), text(&out)]);
    match status {
        0 => Ok(fs::read(&out).unwrap()),
        status => {
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
            Err((status, err))
        }
    }
}

/// The severity and kind of each finding of `check`.
fn findings(path: &Path) -> Vec<(String, String)> {
    let report = json(&["check", text(path)]);
    let findings = report["findings"].as_array().unwrap().iter();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .map(|it| (word(&it["severity"]), word(&it["issue"])))
        .collect()
}

fn one(severity: &str, issue: &str) -> Vec<(String, String)> {
    vec![(severity.to_owned(), issue.to_owned())]
}

fn delta(clusters: &[(u32, u8)]) -> Delta {
    let mut delta = Delta::new(FormatVersion::V2, M, 4 * M);
    delta.clusters = clusters.to_vec();
    delta
}

/// An image of a base and a top.
fn chain() -> (TempDir, PathBuf, Vec<Delta>) {
    let dir = tempfile::tempdir().unwrap();
    let deltas = vec![delta(&[(0, 1), (2, 2)]), delta(&[(2, 3)])];
    for (name, delta) in ["root.hds", "top.hds"].iter().zip(&deltas) {
        delta.write(&dir.path().join(name));
    }
    let descriptor = describe(dir.path(), &["root.hds", "top.hds"], 4 * M, M, false);
    (dir, descriptor, deltas)
}

fn write(file: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(file).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn edit(descriptor: &Path, old: &str, new: &str) {
    let xml = fs::read_to_string(descriptor).unwrap();
    assert!(xml.contains(old), "{xml}");
    fs::write(descriptor, xml.replacen(old, new, 1)).unwrap();
}

/// Parallels leaves a mark of its own in a delta that it has closed.
#[test]
fn closed_by_parallels() {
    let (dir, descriptor, deltas) = chain();
    for name in ["root.hds", "top.hds"] {
        write(&dir.path().join(name), 44, &0x312e_3276u32.to_le_bytes());
    }
    assert_eq!(
        run(&["check", text(&descriptor)]),
        (0, "The image is sound.\n".into(), String::new())
    );
    let report = json(&["check", text(&descriptor)]);
    for level in 0..2 {
        let header = &report["deltas"][level]["header"];
        assert_eq!(header["marked_closed"], true);
        assert_eq!(header["in_use"], false);
    }
    let expected = contents(&deltas, false);
    assert!(export(&descriptor).unwrap() == expected);
    let (status, _, err) = run(&["snapshot", text(&descriptor)]);
    assert_eq!(status, 0, "{err}");
    assert!(export(&descriptor).unwrap() == expected);
}

/// Read by itself, a delta lacks what is below: that is said.
#[test]
fn a_delta_by_itself() {
    let (dir, _, deltas) = chain();
    let top = dir.path().join("top.hds");
    assert_eq!(findings(&top), one("note", "part_of_image"));
    let (status, out, _) = run(&["check", text(&top)]);
    assert_eq!(status, 0);
    assert!(
        out.contains("read by itself, it lacks what is below"),
        "{out}"
    );
    assert!(export(&top).unwrap() == contents(&deltas[1..], false));
}

/// What is in a descriptor of Parallels Desktop and not in one of libploop stays there.
#[test]
fn fields_of_parallels() {
    let (_dir, descriptor, deltas) = chain();
    let fields = "<PhysicalSectorSize>4096</PhysicalSectorSize><LogicSectorSize>512</LogicSectorSize>\
                  <UID>{b2b2b2b2-2222-4222-8222-000000000009}</UID><Name>data</Name>\
                  <Miscellaneous><CompatLevel>level2</CompatLevel><Bootable>1</Bootable></Miscellaneous>\
                  </Disk_Parameters>";
    edit(&descriptor, "</Disk_Parameters>", fields);
    edit(
        &descriptor,
        "<Parallels_disk_image>",
        "<Parallels_disk_image Version=\"1.0\">",
    );
    let base = snapshot(0).to_string();
    for arguments in [
        &["snapshot", text(&descriptor)][..],
        &["switch", text(&descriptor), &base, "--keep-top"],
        &["delete", "--top", text(&descriptor)],
    ] {
        let (status, _, err) = run(arguments);
        if arguments[0] != "delete" {
            assert_eq!(status, 0, "{arguments:?}: {err}");
        }
        let xml = fs::read_to_string(&descriptor).unwrap();
        for field in [
            "Version=\"1.0\"",
            "<PhysicalSectorSize>4096</PhysicalSectorSize>",
            "<LogicSectorSize>512</LogicSectorSize>",
            "<UID>{b2b2b2b2-2222-4222-8222-000000000009}</UID>",
            "<Name>data</Name>",
            "<CompatLevel>level2</CompatLevel>",
            "<Bootable>1</Bootable>",
        ] {
            assert!(xml.contains(field), "{arguments:?}: {field}: {xml}");
        }
    }
    assert!(export(&descriptor).unwrap() == contents(&deltas[..1], false));
}

/// libvzctl and Parallels keep copies of descriptors under other names.
#[test]
fn descriptors_of_other_names() {
    let (dir, descriptor, deltas) = chain();
    let copies = ["Backup", "orig"].map(|end| {
        let copy = dir.path().join(format!("DiskDescriptor.xml.{end}"));
        fs::copy(&descriptor, &copy).unwrap();
        copy
    });
    fs::remove_file(&descriptor).unwrap();
    for copy in &copies {
        assert!(export(copy).unwrap() == contents(&deltas, false));
        assert_eq!(run(&["check", text(copy)]).0, 0);
        assert_eq!(json(&["info", text(copy)])["size"], 4 * M);
    }
    let directory = text(dir.path());
    let expected = format!(
        "error: {directory} has no DiskDescriptor.xml; name one of these, which look like descriptors: \
         DiskDescriptor.xml.Backup, DiskDescriptor.xml.orig\n"
    );
    for command in ["info", "check", "map"] {
        let (status, out, err) = run(&[command, directory]);
        assert_eq!((status, out, &err), (1, String::new(), &expected));
    }
    // Where there is none at all, the name that was looked for is in the message.
    copies
        .iter()
        .for_each(|copy| fs::remove_file(copy).unwrap());
    let (status, _, err) = run(&["info", directory]);
    assert_eq!(status, 1);
    assert!(err.contains("DiskDescriptor.xml"), "{err}");
}

/// A backup program keeps a bitmap of changes behind the data. It is no lost cluster, and nothing cuts it off.
#[test]
fn a_format_extension() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    let delta = delta(&[(0, 1), (1, 2), (2, 3)]);
    delta.write(&base);
    let descriptor = describe(dir.path(), &["root.hds"], 4 * M, M, false);
    // A dirty bitmap of the disk: the block of the extension, and a cluster with the bits.
    let at = fs::metadata(&base).unwrap().len();
    let mut extension = vec![0; 2 * M as usize];
    let mut put = |at: usize, bytes: &[u8]| extension[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xab23_4cef_23dc_ea87u64.to_le_bytes());
    put(24, &0x2038_5fae_252c_b34au64.to_le_bytes());
    put(40, &(32u32 + 8).to_le_bytes());
    put(48, &(4 * M / 512).to_le_bytes());
    put(48 + 24, &128u32.to_le_bytes());
    put(48 + 28, &1u32.to_le_bytes());
    put(48 + 32, &((at + M) / 512).to_le_bytes());
    write(&base, at, &extension);
    write(&base, 56, &(at / 512).to_le_bytes());
    write(&base, 44, &0x312e_3276u32.to_le_bytes());
    let before = fs::read(&base).unwrap();
    assert_eq!(findings(&descriptor), one("note", "extension"));
    assert_eq!(run(&["check", text(&descriptor)]).0, 0);
    assert_eq!(json(&["check", text(&descriptor)])["deltas"][0]["lost"], 0);
    assert!(export(&descriptor).unwrap() == contents(&[delta], false));
    for arguments in [
        &["resize", text(&descriptor), "8M"][..],
        &["compact", text(&descriptor)],
    ] {
        let (status, _, err) = run(arguments);
        assert_eq!(status, 1, "{arguments:?}");
        assert!(err.contains("format extension"), "{err}");
        assert!(fs::read(&base).unwrap() == before);
    }
    // A new top leaves the delta below as it is.
    assert_eq!(run(&["snapshot", text(&descriptor)]).0, 0);
    let report = json(&["check", text(&descriptor)]);
    let file = report["deltas"].as_array().unwrap().iter();
    let file = file.filter(|it| it["header"]["extension_sector"] != 0);
    let files: Vec<_> = file.map(|it| it["file"].as_str().unwrap()).collect();
    assert_eq!(files.len(), 1);
    assert!(fs::read(files[0]).unwrap() == before);
}

/// The report is there also where the partition table cannot be read: its cluster may be what is damaged.
#[test]
fn a_partition_table_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root.hds");
    delta(&[(0, 1), (2, 2), (3, 3)]).write(&file);
    write(&file, entry_offset(0), &6u32.to_le_bytes());
    let why = "the table puts cluster 0 at 6, which lies beyond the end of the file";
    let (status, out, _) = run(&["info", text(&file)]);
    assert_eq!(status, 0);
    assert!(
        out.contains(why) && out.contains("2.00 MiB allocated"),
        "{out}"
    );
    let info = json(&["info", text(&file)]);
    assert!(info["problems"][0].as_str().unwrap().contains(why));
    assert_eq!(info["report"]["deltas"][0]["allocated"], 2 * M);
    assert_eq!(run(&["check", text(&file)]).0, 2);
    let found = findings(&file);
    for (severity, issue) in [("error", "bad_entry"), ("note", "partitions")] {
        assert!(found.contains(&one(severity, issue)[0]), "{found:?}");
    }
    assert_eq!(export(&file).unwrap_err().0, 1);
}

#[test]
fn a_partition_that_ends_behind_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root.hds");
    delta(&[(0, 1)]).write(&file);
    let mut record = vec![0; 512];
    record[446] = 0x80;
    record[450] = 0x83;
    record[454..458].copy_from_slice(&2048u32.to_le_bytes());
    record[458..462].copy_from_slice(&8192u32.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    write(&file, M, &record);
    let descriptor = describe(dir.path(), &["root.hds"], 4 * M, M, false);
    let kind = json!({"mbr": {"kind": 0x83, "active": true}});
    let partition = json!([{"number": 1, "offset": M, "size": 3 * M, "kind": kind}]);
    for path in [&file, &descriptor] {
        let info = json(&["info", text(path)]);
        assert_eq!(info["partitions"], partition);
        assert_eq!(info["problems"], json!([]));
        let found = findings(path);
        assert_eq!(found, one("note", "partitions"));
        assert_eq!(run(&["check", text(path)]).0, 0);
    }
}

/// Clusters of 63, 504 and 512 sectors, and data at any sector.
#[test]
fn layouts_of_old_parallels() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old.hdd");
    for (cluster_sectors, said_first, says) in [
        (63, 0, "clusters of 31.5 KiB"),
        (504, 0, "clusters of 252 KiB"),
        (512, 0, "clusters of 256 KiB"),
        (2048, 1, "clusters of 1 MiB"),
    ] {
        let old = OldDelta {
            version: FormatVersion::V1,
            cluster_sectors,
            sectors: 40 * cluster_sectors - 20,
            said_first,
            clusters: vec![(7, 3), (0, 5), (39, 9)],
        };
        old.write(&file);
        assert!(export(&file).unwrap() == old.contents(), "{old:?}");
        assert_eq!(findings(&file), one("note", "old_layout"), "{old:?}");
        assert_eq!(run(&["check", text(&file)]).0, 0);
        let (status, out, _) = run(&["info", text(&file)]);
        assert_eq!(status, 0);
        assert!(out.contains(says) && out.contains("format v1"), "{out}");
        let map = json(&["map", text(&file)]);
        assert_eq!(map[0]["offset"], 0);
        assert_eq!(map[0]["len"], old.cluster());
        assert_eq!(map[0]["file_offset"], old.first() + old.cluster());
    }
}

/// Parallels puts the GUID before the extension.
#[test]
fn orphans_of_parallels() {
    let dir = tempfile::tempdir().unwrap();
    let name = |guid: &str| format!("data.hdd.0.{{{guid}}}.hds");
    let top = name("5fbaabe3-6958-40ff-92a7-860e329aab41");
    let orphan = name("a1a1a1a1-1111-4111-8111-000000000001");
    for name in [&top, &orphan] {
        delta(&[(1, 1)]).write(&dir.path().join(name));
    }
    for name in ["data.hdd", "data.hdd.drh"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    describe(dir.path(), &[&top], 4 * M, M, false);
    assert_eq!(run(&["check", text(dir.path())]).0, 3);
    assert_eq!(findings(dir.path()), one("warning", "orphan"));
    let orphans = &json(&["check", text(dir.path())])["orphans"];
    assert_eq!(orphans.as_array().unwrap().len(), 1);
    assert!(orphans[0].as_str().unwrap().ends_with(&orphan));
}

/// Other software must not open a disk with this mark, says the documentation of Parallels.
#[test]
fn padding() {
    let (_dir, descriptor, deltas) = chain();
    let message = "Padding is 1: a disk of Parallels whose form is not documented, and which other software must not open";
    edit(
        &descriptor,
        "</Disk_Parameters>",
        "<Padding>0</Padding></Disk_Parameters>",
    );
    assert!(export(&descriptor).unwrap() == contents(&deltas, false));
    edit(&descriptor, "<Padding>0<", "<Padding>1<");
    let (status, err) = export(&descriptor).unwrap_err();
    assert_eq!(status, 1);
    assert!(err.contains(message), "{err}");
    let (status, out, _) = run(&["check", text(&descriptor)]);
    assert_eq!(status, 2);
    assert!(out.contains(message), "{out}");
    let info = json(&["info", text(&descriptor)]);
    assert_eq!(
        (&info["size"], &info["descriptor"]["padding"]),
        (&Value::Null, &json!(1))
    );
    assert!(info["problems"][0].as_str().unwrap().contains(message));
    let before = fs::read(&descriptor).unwrap();
    assert_eq!(run(&["snapshot", text(&descriptor)]).0, 1);
    assert!(fs::read(&descriptor).unwrap() == before);
}

/// A conversion that was killed leaves a delta that its descriptor calls plain.
#[test]
fn plain_and_not_plain() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("root.hds");
    delta(&[(0, 1)]).write(&base);
    let descriptor = describe(dir.path(), &["root.hds"], 4 * M, M, true);
    let is_refused = |issue: &str, message: &str| {
        assert_eq!(findings(&descriptor), one("error", issue));
        assert_eq!(run(&["check", text(&descriptor)]).0, 2);
        let (status, err) = export(&descriptor).unwrap_err();
        assert_eq!(status, 1);
        assert!(err.contains(message), "{err}");
        let before = fs::read(&descriptor).unwrap();
        assert_eq!(run(&["snapshot", text(&descriptor)]).0, 1, "{message}");
        assert!(fs::read(&descriptor).unwrap() == before);
    };
    is_refused(
        "header",
        "a raw base, and it begins with the header of a delta",
    );
    // Half of the disk.
    fs::write(&base, pattern(3, 0, 2 * M)).unwrap();
    let (status, err) = export(&descriptor).unwrap_err();
    assert_eq!(status, 1);
    assert!(
        err.contains("has 2 MiB, and 4 MiB by its descriptor"),
        "{err}"
    );
    assert_eq!(findings(&descriptor), one("error", "size"));
    // The reverse.
    describe(dir.path(), &["root.hds"], 4 * M, M, false);
    let mut disk = pattern(3, 0, 4 * M);
    disk[..512].fill(0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&base, disk).unwrap();
    is_refused("header", "this is a plain disk with a partition table");
}

/// One disk in several files.
#[test]
fn a_split_disk() {
    let dir = tempfile::tempdir().unwrap();
    let parts = [delta(&[(0, 1), (2, 2)]), delta(&[(1, 3)])];
    for (name, part) in ["0.hds", "1.hds"].iter().zip(&parts) {
        part.write(&dir.path().join(name));
    }
    let descriptor = describe(dir.path(), &["0.hds"], 8 * M, M, false);
    edit(
        &descriptor,
        "<Storage>",
        "<Storage><Start>0</Start><End>8192</End>",
    );
    let second = "</Storage><Storage><Start>8192</Start><End>16384</End><Blocksize>2048</Blocksize>\
                  <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type>\
                  <File>1.hds</File></Image></Storage></StorageData>";
    edit(&descriptor, "</Storage></StorageData>", second);
    let [first, second] = parts;
    let expected = [contents(&[first], false), contents(&[second], false)].concat();
    assert!(export(&descriptor).unwrap() == expected);
    assert_eq!(run(&["check", text(&descriptor)]).0, 0);
    let map = json(&["map", text(&descriptor)]);
    let last = map.as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["offset"], &last["len"]), (&json!(5 * M), &json!(M)));
    assert!(last["file"].as_str().unwrap().ends_with("1.hds"));
    // Changes are refused, and change nothing.
    let before = fs::read(&descriptor).unwrap();
    let (status, _, err) = run(&["snapshot", text(&descriptor)]);
    assert_eq!(status, 1);
    assert!(err.contains("split into several Storage elements"), "{err}");
    assert!(fs::read(&descriptor).unwrap() == before);
}

/// Forms of XML that libploop reads.
#[test]
fn forms_of_descriptors() {
    let (_dir, descriptor, deltas) = chain();
    let good = fs::read_to_string(&descriptor).unwrap();
    let expected = contents(&deltas, false);
    let utf16 = |text: &str| -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    for form in [
        good.replace("root.hds", "root.hds<!-- a comment -->")
            .into_bytes(),
        good.replace("<Disk_size>8192<", "<Disk_size> 8192 \n<")
            .into_bytes(),
        good.replace("Compressed", "compressed").into_bytes(),
        format!("<!DOCTYPE Parallels_disk_image>{good}").into_bytes(),
        utf16(&good),
    ] {
        fs::write(&descriptor, &form).unwrap();
        let words = String::from_utf8_lossy(&form).into_owned();
        assert!(export(&descriptor).unwrap() == expected, "{words}");
        assert_eq!(run(&["check", text(&descriptor)]).0, 0, "{words}");
    }
    // Zeros after a power cut.
    fs::write(&descriptor, vec![0; good.len()]).unwrap();
    let (status, _, err) = run(&["export", text(&descriptor), "-"]);
    assert_eq!(status, 1);
    assert!(
        err.contains("the file holds nothing but zeros, as after a power cut"),
        "{err}"
    );
}
