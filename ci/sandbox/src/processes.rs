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

/// How long processes get to end by themselves, and to be gone once they are killed.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(10);

/// A mount namespace that has something of a sandbox's.
pub(crate) struct Namespace {
    pub(crate) mounts: Vec<Mount>,
    processes: Vec<u32>,
}

/// All of them: those that a program made for itself too, for they have copies of the mounts.
pub(crate) fn namespaces_of(state: &SandboxDirectory) -> Vec<Namespace> {
    let mut namespaces: HashMap<PathBuf, Option<Namespace>> = HashMap::new();
    for process in all() {
        let directory = Path::new("/proc").join(process.to_string());
        // Not there for a process that is gone or a zombie.
        let Ok(id) = fs::read_link(directory.join("ns/mnt")) else {
            continue;
        };
        let namespace = namespaces.entry(id).or_insert_with(|| {
            let mounts = mounts::read(&directory).unwrap_or_default();
            let is_ours = mounts.iter().any(|m| m.point.starts_with(state.dir()));
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

/// Ends all processes of a sandbox but this one and some: asks them to, and kills those that do not. One that
/// waits in the kernel is not waited for. Says how many there were.
pub(crate) fn end(state: &SandboxDirectory, spare: &[u32], ask: bool) -> usize {
    let ours = || -> Vec<u32> {
        let namespaces = namespaces_of(state).into_iter();
        let processes = namespaces.flat_map(|namespace| namespace.processes);
        processes
            .filter(|process| *process != std::process::id() && !spare.contains(process))
            .filter(|process| is_alive(*process))
            .collect()
    };
    let found = ours();
    let wait = |signals: &[Signal]| {
        let until = Instant::now() + PATIENCE;
        let mut signalled = Vec::new();
        loop {
            let left = ours();
            if left.is_empty() || Instant::now() >= until {
                return;
            }
            // One may have started another meanwhile.
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

/// Sends signals; a process that is gone does not mind.
pub(crate) fn signal(process: u32, signals: &[Signal]) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        for signal in signals {
            let _ = rustix::process::kill_process(pid, *signal);
        }
    }
}

/// Whether a process is there, and neither a zombie nor one of whose threads only some are left.
pub(crate) fn is_alive(process: u32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{process}/stat")) else {
        return false;
    };
    // The name before it, in brackets, may hold anything.
    let state = stat.iter().rposition(|byte| *byte == b')').map(|at| at + 2);
    !matches!(state.and_then(|at| stat.get(at)), None | Some(b'Z' | b'X'))
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        std::str::from_utf8(entry.file_name().as_bytes())
            .ok()?
            .parse()
            .ok()
    })
}
