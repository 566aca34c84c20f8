//! The commands of the README, run from start to end.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

const M: u64 = 1 << 20;

/// The blocks of the README that are shell scripts.
fn scripts() -> Vec<String> {
    let text = include_str!("../README.md");
    let mut scripts = Vec::new();
    let mut script: Option<String> = None;
    for line in text.lines() {
        match (&mut script, line) {
            (None, "```sh") => script = Some(String::new()),
            (Some(done), "```") => {
                scripts.push(std::mem::take(done));
                script = None;
            }
            (Some(script), line) => *script += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    scripts
}

/// A disk with one partition, on which a container's files are.
fn make_disk(dir: &Path, disk: &Path) {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hostname"), "ct101\n").unwrap();
    let fs_image = dir.join("fs");
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &fs_image])
        .arg("32M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = File::create(disk).unwrap();
    file.set_len(34 * M).unwrap();
    let mut record = [0; 512];
    record[446 + 4] = 0x83;
    record[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    record[446 + 12..446 + 16].copy_from_slice(&65536u32.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&record, 0).unwrap();
    file.write_all_at(&fs::read(fs_image).unwrap(), M).unwrap();
}

#[test]
fn the_readme_runs_from_start_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("made.raw");
    make_disk(dir.path(), &disk);
    let program = Path::new(env!("CARGO_BIN_EXE_ploop-image"));
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    let imported = Command::new(program)
        .arg("import")
        .args([&disk, &work.join("root.hdd")])
        .status()
        .unwrap();
    assert!(imported.success());

    let scripts = scripts();
    assert_eq!(scripts.len(), 6);
    let paths = std::env::var("PATH").unwrap();
    let path = format!("{}:{paths}", program.parent().unwrap().display());
    for script in &scripts {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .env("PATH", &path)
            .current_dir(&work)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}{words}");
    }
    // Not only done, but right.
    assert!(fs::read(work.join("disk.raw")).unwrap() == fs::read(&disk).unwrap());
    for name in ["rootfs/etc/hostname", "etc-of-101/hostname"] {
        assert_eq!(fs::read(work.join(name)).unwrap(), b"ct101\n", "{name}");
    }
}
