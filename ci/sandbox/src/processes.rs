//! The processes of a sandbox: those in whose mount namespace its directories are mounted.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::mounts::{self, Mount};
use crate::sandbox_directory::SandboxDirectory;

/// How long processes may take to end: once after SIGTERM, once after SIGKILL.
const TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(10);

/// A mount namespace in which a mount of a sandbox is seen.
pub(crate) struct Namespace {
    pub(crate) mounts: Vec<Mount>,
    processes: Vec<u32>,
}

/// All of a sandbox: its own, and those that the program made, which have copies of the mounts.
pub(crate) fn namespaces_of(sandbox: &SandboxDirectory) -> Vec<Namespace> {
    let mut namespaces: HashMap<PathBuf, Option<Namespace>> = HashMap::new();
    for process in all() {
        let directory = Path::new("/proc").join(process.to_string());
        // Fails for a process that is gone, and for a zombie.
        let Ok(id) = fs::read_link(directory.join("ns/mnt")) else {
            continue;
        };
        let namespace = namespaces.entry(id).or_insert_with(|| {
            let mounts = mounts::read(&directory).unwrap_or_default();
            let is_ours = mounts.iter().any(|m| m.point.starts_with(sandbox.dir()));
            is_ours.then(|| Namespace {
                mounts,
                processes: Vec::new(),
            })
        });
        if let Some(namespace) = namespace {
            namespace.processes.push(process);
        }
    }
    namespaces.into_values().flatten().collect()
}

/// Ends all processes of a sandbox but this one and `spare`: kills them, after SIGTERM if `ask` says so. Does not wait
/// for those that hang in the kernel. Returns how many there were.
pub(crate) fn end(sandbox: &SandboxDirectory, spare: &[u32], ask: bool) -> usize {
    let ours = || -> Vec<u32> {
        let namespaces = namespaces_of(sandbox).into_iter();
        let processes = namespaces.flat_map(|namespace| namespace.processes);
        processes
            .filter(|process| *process != std::process::id() && !spare.contains(process))
            .filter(|process| is_alive(*process))
            .collect()
    };
    let found = ours();
    let wait = |signals: &[Signal]| {
        let until = Instant::now() + TIMEOUT;
        let mut signalled = Vec::new();
        loop {
            let left = ours();
            if left.is_empty() || Instant::now() >= until {
                return;
            }
            // Also those that were started meanwhile.
            for process in left {
                if !signalled.contains(&process) {
                    signal(process, signals);
                    signalled.push(process);
                }
            }
            thread::sleep(INTERVAL);
        }
    };
    if ask {
        wait(&[Signal::TERM, Signal::CONT]);
    }
    wait(&[Signal::KILL]);
    found.len()
}

/// Sends signals, if the process is still there.
pub(crate) fn signal(process: u32, signals: &[Signal]) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        for signal in signals {
            let _ = rustix::process::kill_process(pid, *signal);
        }
    }
}

/// Whether a process runs: it has not ended, and its main thread is no zombie.
pub(crate) fn is_alive(process: u32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{process}/stat")) else {
        return false;
    };
    // The state comes after the name, which is in brackets and may hold anything.
    let state = stat.iter().rposition(|byte| *byte == b')').map(|at| at + 2);
    !matches!(state.and_then(|at| stat.get(at)), None | Some(b'Z' | b'X'))
}

/// Bit masks in `/proc/PROCESS/status`, by the beginnings of their lines; 0 for a line that is missing. None: there is
/// no such process.
pub(crate) fn status_masks<const N: usize>(process: &str, names: [&str; N]) -> Option<[u64; N]> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(names.map(|name| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    }))
}

/// The numbers of all processes.
pub(crate) fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        std::str::from_utf8(entry.file_name().as_bytes())
            .ok()?
            .parse()
            .ok()
    })
}
