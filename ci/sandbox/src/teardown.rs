//! Taking a sandbox down: nothing of it may stay, whatever state it is in.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::loop_device::LoopDevice;
use crate::namespace::SOURCE;
use crate::sandbox_directory::{Base, Lock, SandboxDirectory};
use crate::{ioctl, mounts, processes, watchdog};

/// For what should take no time, but talks to file systems that may be broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const REMOVAL: Duration = Duration::from_secs(10);

/// Unmounts what was mounted since a program started, so that what it wrote is written.
pub(crate) fn unmount_new(before: &HashSet<u32>) {
    let new = || -> Vec<mounts::Mount> {
        let mut mounts = mounts::own().unwrap_or_default();
        mounts.retain(|mount| !before.contains(&mount.id) && mount.source != Path::new(SOURCE));
        // What was mounted last may stand on what was mounted before.
        mounts.reverse();
        mounts
    };
    for mount in new() {
        let _ = rustix::mount::unmount(&mount.point, UnmountFlags::NOFOLLOW);
    }
    for mount in new() {
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&mount.point, flags);
    }
}

/// Removes all that is left of a sandbox, of whose processes only this one may live on. Says what
/// could not be.
pub(crate) fn rest(state: &SandboxDirectory) -> Vec<String> {
    // Whoever waits for an answer gets an error now.
    watchdog::abort(state);
    processes::end(state, &[], false);
    // First what covers sysfs, then what the sandbox mounted below its directory, but for /dev.
    unmount(|mount| mount.point.starts_with("/sys") && mount.source == Path::new(SOURCE));
    unmount(|mount| mount.kind == "fuse" && mount.point.starts_with(state.dir()));
    let mut problems = Vec::new();
    for index in state.loops() {
        if let Err(error) = remove_loop(state, index) {
            problems.push(format!(
                "loop device {index} cannot be removed: {error}; see what uses it with `lsof /dev/loop{index}`"
            ));
        }
    }
    unmount(|mount| mount.point.starts_with(state.dir()));
    unmount(|mount| mount.source == Path::new(SOURCE));
    if problems.is_empty() {
        if let Err(error) = state.remove() {
            problems.push(format!(
                "{} cannot be removed: {error}",
                state.dir().display()
            ));
        }
    }
    problems
}

fn unmount(which: impl Fn(&mounts::Mount) -> bool) {
    let mut mounts = mounts::own().unwrap_or_default();
    mounts.retain(which);
    for mount in mounts.iter().rev() {
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&mount.point, flags);
    }
}

/// Unbinds and removes a loop device, unless it has become somebody else's.
fn remove_loop(state: &SandboxDirectory, index: u32) -> io::Result<()> {
    let device = LoopDevice::new(index, Path::new("/sys/devices/virtual/block"));
    if !device.exists() {
        return Ok(());
    }
    if let Some(file) = device.backing_file() {
        // A file in a mount that is gone is named from that mount's root.
        let is_ours = file.starts_with(state.dir()) || file == Path::new("/disk");
        if !is_ours {
            return Ok(());
        }
        let opened = device.open_without_node()?;
        match ioctl::loop_clear(&opened) {
            // Unbound in the meantime.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {}
            result => result?,
        }
    }
    device.remove(REMOVAL)
}

/// Cleans up after the sandboxes of this base that died. Says what was done.
pub(crate) fn clean(base: &Base) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (state, Lock(_lock)) in SandboxDirectory::dead(base)? {
        watchdog::abort(&state);
        let killed = processes::end(&state, &[], false);
        let loops = state.loops().len();
        let name = state.dir().display().to_string();
        let problems = rest(&state);
        lines.push(format!(
            "cleaned up after a sandbox that died: {name}, {loops} devices, {killed} processes"
        ));
        lines.extend(problems);
    }
    Ok(lines)
}

/// Does something that may never end. Says whether it did.
pub(crate) fn within(patience: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    let thread = thread::Builder::new().spawn(move || {
        work();
        // Nobody waits any more.
        let _ = done.send(());
    });
    thread.is_ok() && wait.recv_timeout(patience).is_ok()
}

/// Kills a process.
pub(crate) fn kill(process: u32) {
    processes::signal(process, &[Signal::KILL]);
}
