//! Chains of many deltas.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use ploop::FormatVersion;
use ploop::image::Disk;

use crate::work_done;
use crate::written_image::{Delta, describe};

const K: u64 = 1 << 10;

/// A thousand deltas of the largest disk there is, of some 200 bytes each on the disk: opened in memory that
/// follows what is in them, and not what could be.
#[test]
fn a_thousand_layers_are_opened_at_once() {
    const LAYERS: usize = 1000;
    const ALONE: &str = "PLOOP_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own, of which the memory is looked at.
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "layers::a_thousand_layers_are_opened_at_once"]);
        let output = alone.env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let cluster = 32 * K;
    let size = u64::from(u32::MAX) * cluster;
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..LAYERS).map(|n| format!("delta.{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let header = Delta::new(FormatVersion::V2, cluster, size).header();
    for name in &names {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(header.data_start()).unwrap();
        file.write_all_at(&header.to_bytes(), 0).unwrap();
    }
    let path = describe(dir.path(), &names, size, cluster, false);
    let before = (memory(), work_done::processor_time());
    let disk = Disk::open(path).unwrap();
    let after = (memory(), work_done::processor_time());
    assert_eq!(disk.files().len(), LAYERS);
    assert_eq!(disk.size().bytes(), size);
    let (kib, took) = (after.0.saturating_sub(before.0), after.1 - before.1);
    println!("{kib} KiB, {took:?}");
    assert!(kib < 64 << 10, "{kib} KiB");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut byte = [1];
    disk.read_at(&mut byte, size - 1).unwrap();
    assert_eq!(byte, [0]);
}

/// What the process has had at most, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}
