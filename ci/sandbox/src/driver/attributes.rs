//! A device's files in sysfs: `pstate`, `pdelta`, `pstat`, `ptune`, `size`, `dev`, `ro` and its partition.

use rustix::fs::{fstat, fstatfs, major, minor};
use rustix::io::Errno;

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

/// The files of `pstate` that the driver of Virtuozzo 7 has in addition, and what they hold here.
const STATE_OF_7: [&str; 8] = [
    "blockable_reqs",
    "blocked_bios",
    "discard_inflight_bios",
    "discard_mode",
    "free_qmax",
    "free_reqs",
    "freeze_state",
    "push_backup_uuid",
];

/// The tunables that the driver of Virtuozzo 7 has in addition, beside `discard_granularity`.
const TUNABLES_OF_7: [(&str, &str, u16); 4] = [
    ("discard_alignment", "0", 0o444),
    ("discard_zeroes_data", "0", 0o644),
    ("push_backup_timeout", "42", 0o644),
    ("trusted", "0", 0o644),
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
                let mut names = vec![
                    "dev", "holders", "pdelta", "pstat", "pstate", "ptune", "ro", "size", "slaves",
                ];
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
            // Nothing is made of a device here.
            ["holders" | "slaves"] => Some(SysfsEntry::Directory(Vec::new())),
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
                let of_7 = STATE_OF_7.iter().filter(|_| self.is_of_virtuozzo_7());
                Some(directory(
                    QUEUES.into_iter().chain(others).chain(of_7.copied()),
                ))
            }
            ["pstate", name] if STATE_OF_7.contains(&name) => {
                self.is_of_virtuozzo_7().then(|| match name {
                    // Discards go through `PLOOP_IOC_DISCARD_INIT` and relocation.
                    "discard_mode" => file(1),
                    "freeze_state" => file(u8::from(self.is_frozen())),
                    // There is no push backup.
                    "push_backup_uuid" => SysfsEntry::File {
                        text: String::new(),
                        mode: 0o444,
                    },
                    _ => file(0),
                })
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
                let of_7 = self.is_of_virtuozzo_7().then_some("image_info");
                Some(directory(names.into_iter().chain(of_7)))
            }
            ["pdelta", level, "image_info"] => {
                let level = find(&state, level)?;
                let stat = self.is_of_virtuozzo_7().then(|| fstat(&level.file))?.ok()?;
                let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
                Some(file(format!("ino:{}\nsdev:{major}:{minor}", stat.st_ino)))
            }
            ["pdelta", level, name] => delta(level, find(&state, level)?, name),
            ["pstat"] => Some(directory(COUNTERS)),
            ["pstat", name] => COUNTERS.contains(&name).then(|| file(0)),
            ["ptune"] => {
                let of_7 = TUNABLES_OF_7.map(|(name, _, _)| name);
                let of_7 = of_7.into_iter().chain(["discard_granularity"]);
                let of_7 = of_7.filter(|_| self.is_of_virtuozzo_7());
                Some(directory(
                    TUNABLES.map(|(name, _)| name).into_iter().chain(of_7),
                ))
            }
            ["ptune", "discard_granularity"] => {
                self.is_of_virtuozzo_7().then(|| SysfsEntry::File {
                    text: format!("{}\n", state.discard_granularity),
                    mode: 0o644,
                })
            }
            ["ptune", name] => {
                let of_7 = TUNABLES_OF_7.iter().find(|(tunable, ..)| *tunable == name);
                if let Some((_, value, mode)) = of_7 {
                    return self.is_of_virtuozzo_7().then(|| SysfsEntry::File {
                        text: format!("{value}\n"),
                        mode: *mode,
                    });
                }
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
                    [] => Some(directory(["dev", "holders", "partition", "size", "start"])),
                    ["holders"] => Some(SysfsEntry::Directory(Vec::new())),
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

    /// Whether the file at this path can be written to.
    pub(super) fn is_writable(&self, path: &[&str]) -> bool {
        matches!(path, ["ptune", "discard_granularity"]) && self.is_of_virtuozzo_7()
    }

    /// Writes to a file that [can be](Device::is_writable).
    pub(super) fn store(&self, path: &[&str], text: &str) -> Result<(), Errno> {
        if !self.is_writable(path) {
            return Err(Errno::ACCESS);
        }
        // As `simple_strtoul`: the digits at the beginning, and 0 without any.
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        self.set_discard_granularity(text[..end].parse().unwrap_or(0))
    }

    /// `ptune/discard_granularity`: the size of a cluster, or of a block of the host's file system.
    fn set_discard_granularity(&self, bytes: u32) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        if state.running {
            return Err(Errno::BUSY);
        }
        if bytes == state.discard_granularity {
            return Ok(());
        }
        let top = state.levels.last().ok_or(Errno::NODEV)?;
        if bytes != 512 << state.cluster_log && i64::from(bytes) != fstatfs(&top.file)?.f_bsize {
            return Err(Errno::INVAL);
        }
        state.discard_granularity = bytes;
        Ok(())
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
