//! The examples, from end to end, as far as they go without a driver.
#![cfg(all(feature = "libploop", feature = "serde"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ploop::{Guid, Ploop};

/// Cargo builds the examples along with the tests, into a directory beside theirs.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        program.is_file(),
        "{} is not there; `cargo test` builds it unless it is told to build some targets alone",
        program.display()
    );
    Command::new(program)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn lifecycle() {
    let scratch = tempfile::tempdir().unwrap();
    let output = example("lifecycle")
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{errors}");
    // Where there is a driver, tools run, which say their names, and a shell that misses udev.
    let tools = [
        "mke2fs ",
        "resize2fs ",
        "e2fsck ",
        "tune2fs ",
        "dumpe2fs ",
        "sh: ",
    ];
    let of_tools = |line: &str| tools.iter().any(|tool| line.starts_with(tool));
    let driver = ploop::kernel::is_driver_present();
    let complaints: Vec<&str> = errors
        .lines()
        .filter(|line| !driver || !of_tools(line))
        .collect();
    assert!(complaints.is_empty(), "{errors}");
    let titles: Vec<&str> = out
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(' '))
        .collect();
    let expected = [
        "Create",
        "Inspect",
        "Snapshot, twice",
        "Switch back to the first, and keep what was the top",
        "Delete the branch that was left",
        "Merge the top into the base",
        "Replace the base by a copy, under its old name",
        "Convert to preallocated",
        "Convert to raw",
    ];
    assert_eq!(titles[1..=expected.len()], expected, "{out}");
    for fact in [
        "size         64 MiB",
        "cluster      256 KiB",
        // The default, which is the driver's.
        match ploop::kernel::is_large_disk_supported() {
            true => "format       v2",
            false => "format       v1",
        },
    ] {
        assert!(out.contains(fact), "{fact:?} in {out}");
    }
    // After the merge, and from then on, the top is all there is.
    let last = out.split("Convert to raw").nth(1).unwrap();
    // In what the step itself says: a blank line ends it.
    let rows: Vec<&str> = last
        .trim_start()
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.contains("root.hds"))
        .collect();
    assert_eq!(rows.len(), 1, "{last}");
    assert!(
        rows[0].starts_with("  top ") && rows[0].contains("64 MiB"),
        "{last}"
    );
    assert_eq!(
        last.contains("skipped: the ploop kernel driver is not loaded"),
        !driver,
        "{last}"
    );
    // It cleaned up.
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

struct Volumes(tempfile::TempDir);

impl Volumes {
    fn run(&self, arguments: &[&str]) -> Output {
        example("volume")
            .arg("--base")
            .arg(self.0.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What it prints; it must succeed and complain of nothing.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        text(&output.stdout)
    }

    /// It must fail with this code, print nothing, and say why.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(
            !errors.contains("panicked") && !errors.is_empty(),
            "{errors}"
        );
        errors
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.done(&["list", "--json"])).unwrap()
    }

    fn xml(&self, name: &str) -> PathBuf {
        self.0.path().join(name).join("DiskDescriptor.xml")
    }
}

#[test]
fn volumes_live_and_die() {
    let volumes = Volumes(tempfile::tempdir().unwrap());
    assert_eq!(volumes.json(), serde_json::json!([]));
    assert_eq!(
        volumes.done(&["create", "web", "--size", "8M", "--bare"]),
        ""
    );
    volumes.done(&[
        "create", "db.1", "--size", "4MiB", "--bare", "--mode", "raw",
    ]);
    let first: Guid = volumes.done(&["snapshot", "web"]).trim().parse().unwrap();
    let second: Guid = volumes.done(&["snapshot", "web"]).trim().parse().unwrap();

    let list = volumes.json();
    assert_eq!(list[0]["name"], "db.1");
    assert_eq!(list[0]["state"]["mode"], "raw");
    assert_eq!(list[1]["name"], "web");
    assert_eq!(list[1]["state"]["size"], 8 << 20);
    assert_eq!(list[1]["state"]["device"], serde_json::Value::Null);
    assert_eq!(
        list[1]["state"]["snapshots"],
        serde_json::json!([first, second])
    );
    let table = volumes.done(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    // The columns are below their titles.
    for (title, value) in [("SIZE", "4 MiB"), ("SIZE", "8 MiB")] {
        let end = lines[0].find(title).unwrap() + title.len();
        assert!(
            lines
                .iter()
                .any(|line| line.get(..end).is_some_and(|l| l.ends_with(value))),
            "{table}"
        );
    }
    assert!(lines[1].ends_with("not mounted"), "{table}");

    let kept: Guid = volumes
        .done(&["restore", "web", &first.to_string(), "--keep"])
        .trim()
        .parse()
        .unwrap();
    let descriptor = Ploop::open(volumes.xml("web"))
        .unwrap()
        .descriptor()
        .unwrap();
    assert_eq!(descriptor.parent(Guid::TOP), Some(first));
    assert_eq!(descriptor.parent(kept), Some(second));
    // Without braces, in capitals.
    let spelling = second.as_uuid().to_string().to_uppercase();
    assert_eq!(volumes.done(&["restore", "web", &spelling]), "");
    assert_eq!(volumes.done(&["umount", "web"]), "");

    volumes.done(&["remove", "web"]);
    volumes.done(&["remove", "db.1"]);
    assert_eq!(volumes.json(), serde_json::json!([]));
    assert_eq!(fs::read_dir(volumes.0.path()).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_has_a_number() {
    let volumes = Volumes(tempfile::tempdir().unwrap());
    volumes.done(&["create", "web", "--size", "4M", "--bare"]);
    let none = Guid::generate().to_string();
    for (arguments, code) in [
        (&[][..], 2),
        (&["bogus"], 2),
        (&["create", "web"], 2),
        (&["create", "a", "--size", "much", "--bare"], 2),
        (&["create", "a", "--size", "0", "--bare"], 2),
        // More than either version of the format has.
        (&["create", "a", "--size", "2048T", "--bare"], 2),
        (&["create", "a", "--size", "4M", "--bare", "--mode", "x"], 2),
        (&["create", "../a", "--size", "4M", "--bare"], 2),
        (&["create", "", "--size", "4M", "--bare"], 2),
        (&["create", "a;b", "--size", "4M", "--bare"], 2),
        (&["create", "web", "--size", "4M", "--bare"], 4),
        // No room for the journal of its file system.
        (&["create", "a", "--size", "64M"], 2),
        (&["snapshot", "other"], 3),
        (&["remove", "other"], 3),
        (&["umount", "other"], 3),
        (&["mount", "web", "/no/such/directory"], 3),
        (&["mount", "web", "/proc/version"], 2),
        (&["restore", "web", "x"], 2),
        (&["restore", "web", &none], 3),
    ] {
        volumes.refused(arguments, code);
    }
    if !ploop::kernel::is_driver_present() {
        let target = tempfile::tempdir().unwrap();
        let target = target.path().to_str().unwrap();
        volumes.refused(&["create", "a", "--size", "1G"], 6);
        volumes.refused(&["mount", "web", target], 6);
    }
    // Nothing was left or lost on the way.
    assert_eq!(fs::read_dir(volumes.0.path()).unwrap().count(), 1);
    volumes.done(&["snapshot", "web"]);
}

#[test]
fn a_damaged_volume_does_not_hide_the_others() {
    let volumes = Volumes(tempfile::tempdir().unwrap());
    for name in ["a", "b", "c"] {
        volumes.done(&["create", name, "--size", "4M", "--bare"]);
    }
    fs::write(volumes.xml("b"), "<rubbish>").unwrap();
    // Neither is a volume.
    fs::write(volumes.0.path().join("file"), "").unwrap();
    fs::create_dir(volumes.0.path().join(".hidden")).unwrap();
    let output = volumes.run(&["list", "--json"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3);
    assert!(
        list[1]["error"].as_str().unwrap().contains("not XML"),
        "{list}"
    );
    assert_eq!(list[2]["state"]["size"], 4 << 20);
    assert!(text(&output.stderr).contains("the volume b cannot be read"));
    assert_eq!(volumes.run(&["list"]).status.code(), Some(7));
}

#[test]
fn a_base_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing: &Path = &dir.path().join("missing");
    for arguments in [&["list"][..], &["snapshot", "a"]] {
        let output = example("volume")
            .arg("--base")
            .arg(missing)
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
}

#[test]
fn a_disk_is_read_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let descriptor = dir.path().join("DiskDescriptor.xml");
    let out = dir.path().join("disk.raw");
    let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(8));
    ploop::Ploop::create(&param.fs(None)).unwrap();
    let output = example("export")
        .args([&descriptor, &out])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(&out).unwrap() == vec![0; 8 << 20]);
    let output = example("read").arg(&descriptor).output().unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
}
