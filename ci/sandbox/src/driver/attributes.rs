//! A device's files in sysfs: `pstate`, `pdelta`, `pstat`, `ptune`, `size`, `dev`, `ro` and its partition.

use super::device::{Device, DeviceState, Level};
use crate::block::MINORS;
use crate::lock::lock;
use crate::virtual_disk::VirtualDisk as _;

/// A file or directory below `/sys/devices/virtual/block`.
pub(crate) enum SysfsEntry {
    Directory(Vec<String>),
    File {
        text: String,
        mode: u16,
    },
    /// `pstate/event`: a read waits until the device stops.
    Event,
}

/// The files of `pstate` that are always zero here, because no requests queue up in the driver itself.
const QUEUES: [&str; 9] = [
    "active_reqs",
    "barrier_reqs",
    "discard_bios",
    "entry_read_sync_reqs",
    "entry_reqs",
    "fastpath_reqs",
    "fsync_reqs",
    "queued_bios",
    "total_bios",
];

/// The driver's tunables and their defaults. They have no effect here.
const TUNABLES: [(&str, &str); 16] = [
    ("batch_entry_delay", "16"),
    ("batch_entry_qlen", "32"),
    ("check_zeros", "1"),
    ("congestion_detection", "1"),
    ("congestion_high_watermark", "192"),
    ("congestion_low_watermark", "128"),
    ("disable_root_threshold", "0"),
    ("disable_user_threshold", "0"),
    ("fsync_delay", "1000"),
    ("fsync_max", "64"),
    ("max_active_requests", "128"),
    ("max_map_inactivity", "10000"),
    ("max_requests", "256"),
    ("min_map_pages", "32"),
    ("pass_fuas", "1"),
    ("pass_flushes", "1"),
];

/// The driver's counters that programs read.
const COUNTERS: [&str; 4] = ["bio_fsync", "bio_in", "bio_out", "map_reads"];

fn file(text: impl ToString) -> SysfsEntry {
    SysfsEntry::File {
        text: text.to_string() + "\n",
        mode: 0o444,
    }
}

fn directory<S: ToString>(names: impl IntoIterator<Item = S>) -> SysfsEntry {
    SysfsEntry::Directory(names.into_iter().map(|name| name.to_string()).collect())
}

impl Device {
    /// The entry at a path below the device's directory.
    pub(super) fn entry(&self, path: &[&str]) -> Option<SysfsEntry> {
        let state = lock(&self.state);
        let number = self.index * MINORS;
        let partition = self.name() + "p1";
        match *path {
            [] => {
                drop(state);
                let mut names = vec!["dev", "pdelta", "pstat", "pstate", "ptune", "ro", "size"];
                if self
                    .block_device()
                    .and_then(|block| block.partition())
                    .is_some()
                {
                    names.push(&partition);
                }
                Some(directory(names))
            }
            ["dev"] => Some(file(format!("{}:{number}", ploop_sandbox_wire::MAJOR))),
            ["size"] => Some(file(self.size() / 512)),
            ["ro"] => Some(file(u8::from(state.read_only))),
            ["pstate"] => {
                let others = [
                    "aborted",
                    "block_size",
                    "cookie",
                    "event",
                    "fmt_version",
                    "locked",
                    "map_pages",
                    "open_count",
                    "running",
                    "top",
                ];
                Some(directory(QUEUES.into_iter().chain(others)))
            }
            ["pstate", "aborted"] => Some(SysfsEntry::File {
                text: format!("{}\n", u8::from(self.is_aborted())),
                mode: 0o644,
            }),
            ["pstate", "event"] => Some(SysfsEntry::Event),
            ["pstate", "open_count"] => {
                drop(state);
                self.block_device().map(|block| file(block.openers()))
            }
            ["pstate", name] => pstate(&state, name),
            ["pdelta"] => Some(directory(0..state.levels.len())),
            ["pdelta", level] => {
                find(&state, level)?;
                let names = [
                    "dump",
                    "format",
                    "image",
                    "io",
                    "level",
                    "ro",
                    "transparent",
                ];
                Some(directory(names))
            }
            ["pdelta", level, name] => delta(level, find(&state, level)?, name),
            ["pstat"] => Some(directory(COUNTERS)),
            ["pstat", name] => COUNTERS.contains(&name).then(|| file(0)),
            ["ptune"] => Some(directory(TUNABLES.map(|(name, _)| name))),
            ["ptune", name] => {
                let (_, value) = TUNABLES.iter().find(|(tunable, _)| *tunable == name)?;
                Some(SysfsEntry::File {
                    text: format!("{value}\n"),
                    mode: 0o644,
                })
            }
            [name, ..] if name == partition => {
                drop(state);
                let partition = self.block_device()?.partition()?;
                match path[1..] {
                    [] => Some(directory(["dev", "partition", "size", "start"])),
                    ["dev"] => Some(file(format!(
                        "{}:{}",
                        ploop_sandbox_wire::MAJOR,
                        number + 1
                    ))),
                    ["partition"] => Some(file(1)),
                    ["size"] => Some(file(partition.size)),
                    ["start"] => Some(file(partition.start)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

fn find<'a>(state: &'a DeviceState, level: &str) -> Option<&'a Level> {
    state.levels.get(level.parse::<usize>().ok()?)
}

fn pstate(state: &DeviceState, name: &str) -> Option<SysfsEntry> {
    let top = match state.levels.len() {
        0 => u32::MAX,
        levels => levels as u32 - 1,
    };
    Some(match name {
        "block_size" => file(1u32 << state.cluster_log),
        "cookie" => file(String::from_utf8_lossy(&state.cookie)),
        "fmt_version" => file(state.version),
        "locked" | "map_pages" => file(0),
        "running" => file(u8::from(state.running)),
        "top" => file(top),
        _ if QUEUES.contains(&name) => file(0),
        _ => return None,
    })
}

fn delta(number: &str, level: &Level, name: &str) -> Option<SysfsEntry> {
    Some(match name {
        "dump" | "transparent" => file(0),
        "format" => file(if level.raw { "raw" } else { "ploop1" }),
        "image" => file(level.path()),
        "io" => file("direct"),
        "level" => file(number),
        "ro" => file(u8::from(level.read_only)),
        _ => return None,
    })
}
