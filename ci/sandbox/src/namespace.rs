//! The mount namespace of a sandbox, and what it has in the place of the host's.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, mounts};

/// The source of everything that a sandbox mounts.
pub(crate) const SOURCE: &str = "ploop-sandbox";

/// Puts this process into a mount namespace of its own, in which nothing that is mounted is seen
/// outside, or the other way round.
pub(crate) fn enter() -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts of the namespace private")?;
    fuse::mount_control().context("cannot mount fusectl")
}

/// Keeps the real directories of sysfs at hand, and gives the namespace a `/dev` of its own.
pub(crate) fn build(state: &SandboxDirectory) -> Result<()> {
    for (real, to) in [
        ("/sys/block", state.real_block()),
        ("/sys/devices/virtual/block", state.real_virtual()),
        ("/sys/module", state.real_module()),
    ] {
        bind(Path::new(real), &to)?;
    }
    let dev = state.dev();
    let flags = MountFlags::NOSUID;
    rustix::mount::mount(SOURCE, &dev, "tmpfs", flags, Some(c"mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", dev.display()))?;
    let points = mounts::own()?.into_iter().map(|mount| mount.point);
    let points = points.filter(|point| point.starts_with("/dev")).collect();
    copy(Path::new("/dev"), &dev, &points)?;
    rustix::mount::mount_move(&dev, "/dev").context("cannot move the new /dev into its place")?;
    hide_locks()
}

/// Where libploop keeps the lock around its search for devices. A sandbox has devices of its own, and
/// who searches in another, or hangs there, is none of its business.
const LOCKS: &str = "/var/lock/ploop";

fn hide_locks() -> Result<()> {
    // As libploop makes it.
    let made = DirBuilder::new().recursive(true).mode(0o755).create(LOCKS);
    made.with_context(|| format!("cannot make {LOCKS}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(SOURCE, LOCKS, "tmpfs", flags, Some(c"mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {LOCKS}"))
}

/// Puts what the daemon serves in the place of the real directories of sysfs.
pub(crate) fn cover(state: &SandboxDirectory) -> Result<()> {
    for (served, over) in [
        ("block", "/sys/block"),
        ("virtual", "/sys/devices/virtual/block"),
        ("module", "/sys/module"),
    ] {
        bind(&state.tree().join(served), Path::new(over))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    rustix::mount::mount_bind_recursive(from, to)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

/// Makes the nodes of a directory of devices anew in another. What is mounted in it is bound.
fn copy(from: &Path, to: &Path, points: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        // A device may go while this looks.
        let Ok(metadata) = fs::symlink_metadata(&from) else {
            continue;
        };
        copy_one(&from, &to, &metadata, points)
            .with_context(|| format!("cannot make {} anew", from.display()))?;
    }
    Ok(())
}

fn copy_one(from: &Path, to: &Path, metadata: &Metadata, points: &HashSet<PathBuf>) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_dir() {
        DirBuilder::new().mode(0o755).create(to)?;
        own(to, metadata)?;
        if points.contains(from) {
            bind(from, to)?;
        } else {
            copy(from, to, points)?;
        }
    } else if (kind.is_char_device() || kind.is_block_device()) && !points.contains(from) {
        let kind = if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            FileType::CharacterDevice
        };
        match rustix::fs::mknodat(CWD, to, kind, Mode::empty(), metadata.rdev()) {
            Ok(()) => own(to, metadata)?,
            // A container may have nodes that it may not make.
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
fn own(path: &Path, metadata: &Metadata) -> Result<()> {
    let (user, group) = (metadata.uid(), metadata.gid());
    rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(metadata.mode()))?;
    Ok(())
}
