//! Removing a sandbox, whatever state it is in: its processes, mounts, loop devices and directory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::loop_device::{self, LoopDevice};
use crate::namespace::{self, SOURCE};
use crate::sandbox_directory::{Base, Lock, SandboxDirectory};
use crate::{ioctl, mounts, processes, watchdog};

/// The limit for work that is quick unless a file system hangs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How long the removal of a loop device is tried.
const REMOVAL: Duration = Duration::from_secs(10);
/// The loop devices in the real sysfs.
const LOOP_DEVICES: &str = "/sys/devices/virtual/block";

/// Thaws the file systems of the sandbox that a program has left frozen: what writes to them could not be ended.
pub(crate) fn thaw() {
    for mount in mounts::current().unwrap_or_default() {
        if mount
            .source
            .as_os_str()
            .as_bytes()
            .starts_with(b"/dev/ploop")
        {
            // Fails where it is not frozen.
            let _ = File::open(&mount.point).and_then(ioctl::thaw);
        }
    }
}

/// Thaws the file systems of a sandbox whose launcher was killed. One that is frozen outlives its last mount, and keeps its
/// device; processes that wait for it cannot be killed. It is mounted once more for that, in a namespace of its own.
fn thaw_devices(sandbox: &SandboxDirectory) {
    for index in sandbox.loops() {
        let device = LoopDevice::new(index, Path::new(LOOP_DEVICES));
        let node = Path::new("/dev").join(format!(".ploop-sandbox-{index}"));
        let at = sandbox.dir().join("thawed");
        for number in device.numbers() {
            let (node, at) = (node.clone(), at.clone());
            with_timeout(TIMEOUT, move || {
                // Whatever fails here, the device stays, and that is reported.
                let _ = thaw_device(number, &node, &at);
            });
        }
    }
}

fn thaw_device(number: (u32, u32), node: &Path, at: &Path) -> io::Result<()> {
    loop_device::make_node(node, number)?;
    // Fails where a file system has it.
    let is_free = loop_device::open(node, false, true).is_ok();
    if !is_free {
        fs::create_dir_all(at)?;
        namespace::separate()?;
        for flags in [MountFlags::empty(), MountFlags::RDONLY] {
            if rustix::mount::mount(node, at, "ext4", flags, None).is_ok() {
                // Fails where it is not frozen.
                let _ = File::open(at).and_then(ioctl::thaw);
                rustix::mount::unmount(at, UnmountFlags::DETACH)?;
                break;
            }
        }
        fs::remove_dir(at)?;
    }
    fs::remove_file(node)
}

/// Unmounts what was mounted since the program started, so that what it wrote reaches the images.
pub(crate) fn unmount_new(before: &HashSet<u32>) {
    let new = || -> Vec<mounts::Mount> {
        let mut mounts = mounts::current().unwrap_or_default();
        mounts.retain(|mount| !before.contains(&mount.id) && mount.source != Path::new(SOURCE));
        // A later mount may lie on an earlier one.
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

/// Ends all processes of a sandbox but this one, and removes what is left of it. Returns a line for each thing that
/// could not be removed.
pub(crate) fn remove(sandbox: &SandboxDirectory) -> Vec<String> {
    // Processes that wait for an answer get an error.
    watchdog::abort(sandbox);
    thaw_devices(sandbox);
    processes::end(sandbox, &[], false);
    // First what covers sysfs, then the FUSE mounts below the directory; /dev comes last.
    unmount(|mount| mount.point.starts_with("/sys") && mount.source == Path::new(SOURCE));
    unmount(|mount| mount.kind == "fuse" && mount.point.starts_with(sandbox.dir()));
    let mut problems = Vec::new();
    for index in sandbox.loops() {
        if let Err(error) = remove_loop(sandbox, index) {
            problems.push(format!(
                "loop device {index} cannot be removed: {error}; see what uses it with `lsof /dev/loop{index}`"
            ));
        }
    }
    unmount(|mount| mount.point.starts_with(sandbox.dir()));
    unmount(|mount| mount.source == Path::new(SOURCE));
    if problems.is_empty() {
        if let Err(error) = sandbox.remove() {
            problems.push(format!(
                "{} cannot be removed: {error}",
                sandbox.dir().display()
            ));
        }
    }
    problems
}

fn unmount(which: impl Fn(&mounts::Mount) -> bool) {
    let mut mounts = mounts::current().unwrap_or_default();
    mounts.retain(which);
    for mount in mounts.iter().rev() {
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&mount.point, flags);
    }
}

/// Unbinds and removes a loop device, unless it has become somebody else's.
fn remove_loop(sandbox: &SandboxDirectory, index: u32) -> io::Result<()> {
    let device = LoopDevice::new(index, Path::new(LOOP_DEVICES));
    if !device.exists() {
        return Ok(());
    }
    if let Some(file) = device.backing_file() {
        // The kernel names a file in a mount that is gone by its path from the root of that mount.
        let is_ours = file.starts_with(sandbox.dir()) || file == Path::new("/disk");
        if !is_ours {
            return Ok(());
        }
        let opened = device.open_without_node()?;
        match ioctl::loop_clear(&opened) {
            // Unbound meanwhile.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {}
            result => result?,
        }
    }
    device.remove(REMOVAL)
}

/// Removes the dead sandboxes of this base. Returns a line for each, and one for each thing that could not be removed.
pub(crate) fn clean(base: &Base) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (sandbox, Lock(_lock)) in SandboxDirectory::dead(base)? {
        watchdog::abort(&sandbox);
        let killed = processes::end(&sandbox, &[], false);
        let loops = sandbox.loops().len();
        let name = sandbox.dir().display().to_string();
        let problems = remove(&sandbox);
        lines.push(format!(
            "cleaned up after a sandbox that died: {name}, devices: {loops}, processes: {killed}"
        ));
        lines.extend(problems);
    }
    Ok(lines)
}

/// Does something that may never end. Says whether it ended in time.
pub(crate) fn with_timeout(timeout: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    let thread = thread::Builder::new().spawn(move || {
        work();
        // Too late: nobody waits any more.
        let _ = done.send(());
    });
    thread.is_ok() && wait.recv_timeout(timeout).is_ok()
}
