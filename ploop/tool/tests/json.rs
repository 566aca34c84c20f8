//! What `--json` prints has all fields that JSON.md documents, and no others.

mod ext_image;
#[path = "../../tests/written_image/mod.rs"]
mod written_image;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ext_image::{ExtImage, M, ploop_image, text};
use ploop::{FormatVersion, Guid};
use serde_json::Value;
use written_image::{Delta, OldDelta, describe, snapshot};

struct Field {
    kind: String,
    is_optional: bool,
    /// Of a `word`.
    words: Vec<String>,
}

/// JSON.md, and which of it was seen with a value.
struct Schema {
    commands: BTreeMap<String, String>,
    types: BTreeMap<String, BTreeMap<String, Field>>,
    seen: BTreeSet<(String, String)>,
    seen_commands: BTreeSet<String>,
}

fn unquoted(cell: &str) -> String {
    cell.trim().trim_matches('`').to_owned()
}

impl Schema {
    fn read() -> Schema {
        let mut schema = Schema {
            commands: BTreeMap::new(),
            types: BTreeMap::new(),
            seen: BTreeSet::new(),
            seen_commands: BTreeSet::new(),
        };
        let mut section = None;
        for line in include_str!("../JSON.md").lines() {
            if let Some(name) = line.strip_prefix("## ") {
                section = Some(name.to_owned());
                schema.types.insert(name.to_owned(), BTreeMap::new());
                continue;
            }
            let line = line.replace("\\|", "");
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let is_row = line.starts_with('|') && !line.starts_with("|---");
            if !is_row || cells[0].trim() == "field" || cells[0].trim() == "command" {
                continue;
            }
            let (name, kind) = (unquoted(cells[0]), unquoted(cells[1]));
            let Some(section) = &section else {
                schema.commands.insert(name, kind);
                continue;
            };
            let words = cells[2].split('`').skip(1).step_by(2);
            let field = Field {
                is_optional: kind.ends_with(", optional"),
                kind: kind.trim_end_matches(", optional").to_owned(),
                words: words.map(str::to_owned).collect(),
            };
            let fields = schema.types.get_mut(section).unwrap();
            assert!(fields.insert(name, field).is_none(), "{line}");
        }
        schema
    }

    fn require(&mut self, command: &str, value: &Value) {
        let kind = self.commands[command].clone();
        self.seen_commands.insert(command.to_owned());
        self.require_type(command, &kind, &[], value);
    }

    fn require_type(&mut self, place: &str, kind: &str, words: &[String], value: &Value) {
        if let Some(kind) = kind.strip_suffix(" or null") {
            if !value.is_null() {
                self.require_type(place, kind, words, value);
            }
            return;
        }
        if let Some(kind) = kind.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            let elements = value
                .as_array()
                .unwrap_or_else(|| panic!("{place}: {value}"));
            for element in elements {
                self.require_type(&format!("{place}[]"), kind, words, element);
            }
            return;
        }
        let is_right = match kind {
            "number" => value.is_i64() || value.is_u64(),
            "string" | "path" => value.is_string(),
            "bool" => value.is_boolean(),
            "word" => words.iter().any(|it| value == it),
            "guid" => value
                .as_str()
                .is_some_and(|it| it.parse::<Guid>().is_ok_and(|guid| guid.to_string() == it)),
            name => {
                assert!(self.types.contains_key(name), "{place}: no type {name}");
                self.require_object(place, name, value);
                true
            }
        };
        assert!(is_right, "{place} is no {kind}: {value}");
    }

    fn require_object(&mut self, place: &str, name: &str, value: &Value) {
        let object = value
            .as_object()
            .unwrap_or_else(|| panic!("{place}: {value}"));
        for key in object.keys() {
            let is_known = self.types[name].contains_key(key);
            assert!(
                is_known,
                "{place}: {name} has {key}, which is not documented"
            );
        }
        let fields: Vec<(String, String, Vec<String>)> = self.types[name]
            .iter()
            .filter(|(key, field)| {
                let is_there = object.contains_key(*key);
                assert!(is_there || field.is_optional, "{place}: {name} lacks {key}");
                is_there
            })
            .map(|(key, field)| (key.clone(), field.kind.clone(), field.words.clone()))
            .collect();
        for (key, kind, words) in fields {
            let value = &object[&key];
            let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !is_empty {
                self.seen.insert((name.to_owned(), key.clone()));
            }
            self.require_type(&format!("{place}.{key}"), &kind, &words, value);
        }
    }

    /// Runs a command, and compares what it prints.
    fn run(&mut self, name: &str, status: i32, arguments: &[&str]) -> Value {
        let output = ploop_image(&[arguments, &["--json"]].concat());
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {words}");
        let bytes = match name {
            "a failure" => {
                assert!(output.stdout.is_empty());
                &output.stderr
            }
            _ => &output.stdout,
        };
        let value = serde_json::from_slice(bytes).unwrap();
        self.require(name, &value);
        value
    }
}

/// An image of two deltas of 4 MiB, with a partition.
fn chain(dir: &Path) -> PathBuf {
    fs::create_dir(dir).unwrap();
    let mut base = Delta::new(FormatVersion::V2, M, 4 * M);
    base.clusters = vec![(1, 1), (2, 2)];
    let mut top = base.clone();
    top.clusters = vec![(2, 3)];
    base.write(&dir.join("root.hds"));
    top.write(&dir.join("top.hds"));
    describe(dir, &["root.hds", "top.hds"], 4 * M, M, false)
}

fn replace(path: &Path, old: &str, new: &str) {
    let xml = fs::read_to_string(path).unwrap();
    assert!(xml.contains(old), "{xml}");
    fs::write(path, xml.replacen(old, new, 1)).unwrap();
}

/// `info` and `check` of an image that may be refused otherwise.
fn look(schema: &mut Schema, descriptor: &Path) {
    schema.run("info", 0, &["info", text(descriptor)]);
    let output = ploop_image(&["check", text(descriptor), "--json"]);
    let value = serde_json::from_slice(&output.stdout).unwrap();
    schema.require("check", &value);
}

/// The commands that look at an image, with images that have something in each field.
fn look_at_images(schema: &mut Schema, dir: &Path) {
    let descriptor = chain(&dir.join("chain"));
    let image = text(&descriptor);
    schema.run("info", 0, &["info", image]);
    schema.run("check", 0, &["check", image]);
    schema.run("map", 0, &["map", image]);
    let from = snapshot(0).to_string();
    schema.run("diff", 0, &["diff", image, "--from", &from]);
    let delta = descriptor.with_file_name("top.hds");
    schema.run("info", 0, &["info", text(&delta)]);
    fs::copy(
        &delta,
        delta.with_file_name("top.hds.{a1a1a1a1-1111-4111-8111-000000000009}"),
    )
    .unwrap();
    schema.run("check", 3, &["check", image]);

    let name = |name: &str| dir.join(name);
    let encrypted = "<Encryption><KeyId>key</KeyId></Encryption></Disk_Parameters>";
    let volume = "<StorageData><Volume><ReadOnly/><Parent>../chain</Parent>\
                  <SnapshotGUID>{00000000-0000-0000-0000-000000000001}</SnapshotGUID></Volume>";
    for (directory, old, new) in [
        ("encrypted", "</Disk_Parameters>", encrypted),
        (
            "padding",
            "</Disk_Parameters>",
            "<Padding>1</Padding></Disk_Parameters>",
        ),
        (
            "limit",
            "</Disk_Parameters>",
            "<Max_delta_size>4096</Max_delta_size></Disk_Parameters>",
        ),
        ("volume", "<StorageData>", volume),
        ("unusual", "<Blocksize>2048<", "<Blocksize>504<"),
    ] {
        let descriptor = chain(&name(directory));
        replace(&descriptor, old, new);
        look(schema, &descriptor);
    }
    let split = chain(&name("split"));
    let xml = fs::read_to_string(&split).unwrap();
    let (_, images) = xml.split_once("</Blocksize>").unwrap();
    let (images, _) = images.split_once("</Storage>").unwrap();
    let second = format!(
        "</Storage><Storage><Start>8192</Start><End>16384</End><Blocksize>2048</Blocksize>{images}</Storage></StorageData>"
    );
    for (old, new) in [
        ("<Disk_size>8192<", "<Disk_size>16384<"),
        ("<Storage>", "<Storage><Start>0</Start><End>8192</End>"),
        ("</Storage></StorageData>", &second),
    ] {
        replace(&split, old, new);
    }
    look(schema, &split);

    let old = OldDelta {
        version: FormatVersion::V1,
        cluster_sectors: 63,
        sectors: 4000,
        said_first: 0,
        clusters: vec![(7, 3)],
    };
    old.write(&name("old.hdd"));
    let file = name("old.hdd");
    let value = schema.run("info", 0, &["info", text(&file)]);
    assert_eq!(value["report"]["deltas"][0]["header"], Value::Null);

    // Half of the only cluster of the top is cut off.
    let descriptor = chain(&name("damaged"));
    let image = text(&descriptor);
    let top = fs::File::options()
        .write(true)
        .open(descriptor.with_file_name("top.hds"));
    top.unwrap().set_len(M + M / 2).unwrap();
    schema.run("check", 2, &["check", image]);
    let out = name("out");
    let out = text(&out);
    let failure = schema.run("a failure", 1, &["export", image, out]);
    assert_eq!(failure["kind"], "corrupt");
    schema.run("export", 0, &["export", "--salvage", image, out]);
    let failure = schema.run("a failure", 1, &["export", image, out, "--partition", "3"]);
    assert_eq!(failure["kind"], Value::Null);
}

/// The commands that make and change images, and those that look at the file system inside.
fn change_images(schema: &mut Schema, dir: &Path) {
    let image = ExtImage::new(&["-t", "ext4"], 32 * M, |tree| {
        fs::write(tree.join("file"), "x".repeat(100_000)).unwrap();
        fs::write(tree.join("gone"), "y".repeat(100_000)).unwrap();
        std::os::unix::fs::symlink("file", tree.join("link")).unwrap();
    });
    image.debugfs(&["mknod null c 1 3"]);
    let (raw, root) = (image.raw(), image.image());
    let root = text(&root);
    schema.run("import", 0, &["import", text(&raw), root]);
    let made = schema.run("snapshot", 0, &["snapshot", root]);
    let from = made["guid"].as_str().unwrap();
    image.debugfs(&[
        "set_current_time 20300101120000",
        "rm gone",
        "ln file moved",
        "unlink file",
        "sif moved uid 5",
    ]);
    image.write();
    schema.run("ls", 0, &["ls", root]);
    schema.run(
        "diff --files",
        0,
        &["diff", "--files", root, "--from", from],
    );
    schema.run("compact", 0, &["compact", "--free", root]);
    image.debugfs(&["ssv state 0"]);
    image.write();
    schema.run("compact", 1, &["compact", "--free", "--dry-run", root]);
    schema.run("switch", 0, &["switch", root, from]);
    schema.run("switch", 0, &["switch", "--keep-top", root, from]);
    let new = dir.join("new");
    schema.run("create", 0, &["create", text(&new), "--size", "64M"]);

    // A disk with a boot record, and one with a GUID partition table.
    let mut disk = vec![0; 8 << 20];
    disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let (mbr, gpt) = (dir.join("mbr"), dir.join("gpt"));
    fs::write(&mbr, &disk).unwrap();
    fs::write(&gpt, vec![0; 8 << 20]).unwrap();
    ext_image::run(
        "parted",
        &[
            "-s",
            text(&gpt),
            "mklabel",
            "gpt",
            "mkpart",
            "name",
            "2048s",
            "8191s",
        ],
    );
    let partitions = dir.join("partitions");
    for (number, raw) in [&mbr, &gpt].into_iter().enumerate() {
        let image = partitions.with_extension(number.to_string());
        schema.run("import", 0, &["import", text(raw), text(&image)]);
        schema.run("info", 0, &["info", text(&image)]);
    }
    let image = text(&new);
    // With a partition that has a file system, its number is there.
    let mut whole = vec![0; 1 << 20];
    whole[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
    whole[510..512].copy_from_slice(&[0x55, 0xaa]);
    whole.extend(fs::read(&raw).unwrap());
    let (disk, of_disk) = (dir.join("disk"), dir.join("of-disk"));
    fs::write(&disk, whole).unwrap();
    schema.run("import", 0, &["import", text(&disk), text(&of_disk)]);
    schema.run("compact", 1, &["compact", "--free", text(&of_disk)]);

    // These print nothing.
    for arguments in [
        &["resize", image, "96M"][..],
        &["convert", image, "--mode", "preallocated"],
        &["snapshot", image],
        &["merge", image],
        &["snapshot", image],
        &["delete", "--top", image],
    ] {
        let output = ploop_image(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}");
        assert_eq!(
            output.stdout.is_empty(),
            arguments[0] != "snapshot",
            "{arguments:?}"
        );
    }
}

/// `repair`, its undo file, and `restore-descriptor`, of an image with a lost cluster, an entry that leads nowhere and
/// an in-use mark.
fn repair_images(schema: &mut Schema, dir: &Path) {
    let descriptor = chain(&dir.join("repaired"));
    let image = text(&descriptor);
    let top = descriptor.with_file_name("top.hds");
    let file = fs::File::options().write(true).open(&top).unwrap();
    // The entry of cluster 3.
    file.write_all_at(&9u32.to_le_bytes(), 64 + 3 * 4).unwrap();
    file.write_all_at(&1u32.to_le_bytes(), 44).unwrap();
    file.set_len(3 * M).unwrap();
    let before = fs::read(&top).unwrap();
    let would = schema.run("repair", 1, &["repair", "--dry-run", image]);
    assert_eq!(would["dry_run"], true);
    let undo = dir.join("undo");
    let arguments = ["repair", image, "--clear-entries", "--undo", text(&undo)];
    let done = schema.run("repair", 0, &arguments);
    assert_eq!(done["is_sound"], true);
    assert!(fs::read(&top).unwrap() != before);
    let arguments = ["repair", image, "--revert", text(&undo)];
    let reverted = schema.run("repair --revert", 0, &arguments);
    assert_eq!(reverted["files"][0], text(&top));
    assert!(fs::read(&top).unwrap() == before);

    let descriptor = chain(&dir.join("restored"));
    fs::remove_file(&descriptor).unwrap();
    let image = text(&descriptor);
    let base = descriptor.with_file_name("root.hds");
    let top = descriptor.with_file_name("top.hds");
    let arguments = ["restore-descriptor", image, text(&base), text(&top)];
    let made = schema.run("restore-descriptor", 0, &arguments);
    assert_eq!(made["descriptor"], image);
    schema.run("check", 0, &["check", image]);
}

#[test]
fn json_is_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let mut schema = Schema::read();
    look_at_images(&mut schema, dir.path());
    change_images(&mut schema, dir.path());
    repair_images(&mut schema, dir.path());
    let commands: Vec<_> = (schema.commands.keys())
        .filter(|it| !schema.seen_commands.contains(*it))
        .collect();
    assert!(commands.is_empty(), "not run: {commands:?}");
    let fields: Vec<_> = (schema.types.iter())
        .flat_map(|(name, fields)| fields.keys().map(move |key| (name.clone(), key.clone())))
        .filter(|it| !schema.seen.contains(it))
        .collect();
    assert!(fields.is_empty(), "documented, and never there: {fields:?}");
}

/// Each command of the help is documented, if only as one that prints nothing.
#[test]
fn all_commands_are_documented() {
    let help = String::from_utf8(ploop_image(&["--help"]).stdout).unwrap();
    let (_, commands) = help.split_once("Commands:").unwrap();
    let (commands, _) = commands.split_once("Options:").unwrap();
    let document = include_str!("../JSON.md");
    let (head, _) = document.split_once("## Failure").unwrap();
    let lines = commands
        .lines()
        .filter(|it| it.starts_with("  ") && !it.starts_with("   "));
    let mut count = 0;
    for line in lines {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" {
            assert!(head.contains(&format!("`{name}`")), "{name}");
            count += 1;
        }
    }
    assert!(count > 15, "{commands}");
}
