//! The mount namespace of a sandbox: its `/dev`, its lock directory of libploop, and what covers the host's sysfs.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags};

use ploop_sandbox_wire::MAJOR;

use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, mounts};

/// The source of every mount of a sandbox.
pub(crate) const SOURCE: &str = "ploop-sandbox";

/// Puts this process into a mount namespace of its own. Neither it nor the host sees what the other mounts from then
/// on.
pub(crate) fn enter() -> Result<()> {
    separate().context("cannot make a mount namespace")?;
    fuse::mount_control().context("cannot mount fusectl")
}

/// Puts this thread into such a namespace.
pub(crate) fn separate() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Binds the real directories of sysfs into the sandbox's directory, and gives the namespace a `/dev` of its own.
pub(crate) fn set_up(sandbox: &SandboxDirectory) -> Result<()> {
    for (real, to) in [
        ("/sys/block", sandbox.real_block()),
        ("/sys/class/block", sandbox.real_class()),
        ("/sys/dev/block", sandbox.real_numbers()),
        ("/sys/devices/virtual/block", sandbox.real_virtual()),
        ("/sys/module", sandbox.real_module()),
    ] {
        bind(Path::new(real), &to)?;
    }
    let dev = sandbox.dev();
    let flags = MountFlags::NOSUID;
    rustix::mount::mount(SOURCE, &dev, "tmpfs", flags, Some(c"mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", dev.display()))?;
    let points = mounts::current()?.into_iter().map(|mount| mount.point);
    let points = points.filter(|point| point.starts_with("/dev")).collect();
    copy_nodes(Path::new("/dev"), &dev, &points)?;
    rustix::mount::mount_move(&dev, "/dev").context("cannot move the new /dev into its place")?;
    list_driver(&sandbox.drivers())?;
    hide_locks()
}

/// Lists the driver in `/proc/devices`, which tells who sees no sysfs that there is one.
fn list_driver(file: &Path) -> Result<()> {
    const DRIVERS: &str = "/proc/devices";
    let real = fs::read_to_string(DRIVERS).with_context(|| format!("cannot read {DRIVERS}"))?;
    // Block devices are listed last.
    let text = format!("{}\n{MAJOR} ploop\n", real.trim_end());
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    bind(file, Path::new(DRIVERS))?;
    // What is mounted stays.
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
}

/// The directory of libploop's lock around its search for devices. A sandbox has devices of its own, so it must not
/// wait for the searches of others.
const LOCKS: &str = "/var/lock/ploop";

fn hide_locks() -> Result<()> {
    // As libploop makes it.
    let made = DirBuilder::new().recursive(true).mode(0o755).create(LOCKS);
    made.with_context(|| format!("cannot make {LOCKS}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(SOURCE, LOCKS, "tmpfs", flags, Some(c"mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {LOCKS}"))
}

/// Mounts what the daemon serves over the real directories of sysfs.
pub(crate) fn cover_sysfs(sandbox: &SandboxDirectory) -> Result<()> {
    for (served, over) in [
        ("block", "/sys/block"),
        ("class", "/sys/class/block"),
        ("dev", "/sys/dev/block"),
        ("virtual", "/sys/devices/virtual/block"),
        ("module", "/sys/module"),
    ] {
        bind(&sandbox.tree().join(served), Path::new(over))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    rustix::mount::mount_bind_recursive(from, to)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

/// Makes the nodes of one directory again in another. What is mounted in it is bound.
fn copy_nodes(from: &Path, to: &Path, points: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        // A device may go meanwhile.
        let Ok(metadata) = fs::symlink_metadata(&from) else {
            continue;
        };
        copy_node(&from, &to, &metadata, points)
            .with_context(|| format!("cannot make {} again", from.display()))?;
    }
    Ok(())
}

fn copy_node(from: &Path, to: &Path, metadata: &Metadata, points: &HashSet<PathBuf>) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_dir() {
        DirBuilder::new().mode(0o755).create(to)?;
        copy_owner(to, metadata)?;
        if points.contains(from) {
            bind(from, to)?;
        } else {
            copy_nodes(from, to, points)?;
        }
    } else if (kind.is_char_device() || kind.is_block_device()) && !points.contains(from) {
        let kind = if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            FileType::CharacterDevice
        };
        match rustix::fs::mknodat(CWD, to, kind, Mode::empty(), metadata.rdev()) {
            Ok(()) => copy_owner(to, metadata)?,
            // A container may have nodes that it is not allowed to make.
            Err(rustix::io::Errno::PERM) => bind_file(from, to)?,
            Err(error) => return Err(error.into()),
        }
    } else {
        bind_file(from, to)?;
    }
    Ok(())
}

fn bind_file(from: &Path, to: &Path) -> Result<()> {
    File::create(to)?;
    bind(from, to)
}

/// Gives a new file the owner and the permissions of the old one.
fn copy_owner(path: &Path, metadata: &Metadata) -> Result<()> {
    let (user, group) = (metadata.uid(), metadata.gid());
    rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(metadata.mode()))?;
    Ok(())
}
