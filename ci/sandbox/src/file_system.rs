//! Enlarges a mounted file system where CAP_SYS_RESOURCE is missing: unmounts it, runs e2fsck and resize2fs, mounts it
//! again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ploop_sandbox_wire::{Reply, Request};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::mounts::{self, Mount};

/// How often an unmount is tried, and the pause in between: the caller may still be closing its descriptor.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// Answers [`call::GROW_FILE_SYSTEM`](ploop_sandbox_wire::call::GROW_FILE_SYSTEM).
pub(crate) fn grow(request: &Request, descriptors: Vec<OwnedFd>) -> Reply {
    match try_grow(request, descriptors) {
        Ok(()) => Reply::of(0),
        Err(error) => Reply::of(-error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
    }
}

fn try_grow(request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let invalid = || io::Error::from(Errno::INVAL);
    let blocks: [u8; 8] = (&*request.payload).try_into().map_err(|_| invalid())?;
    let blocks = u64::from_le_bytes(blocks);
    let descriptor = descriptors.into_iter().next().ok_or_else(invalid)?;
    let device = rustix::fs::fstat(&descriptor)?.st_dev;
    // An open descriptor would keep the file system busy.
    drop(descriptor);
    let mut lines = mounts::current()?;
    lines.retain(|mount| rustix::fs::makedev(mount.device.0, mount.device.1) == device);
    let [mount] = &*lines else {
        // Several mounts could not be restored as they were.
        return Err(if lines.is_empty() {
            invalid()
        } else {
            Errno::BUSY.into()
        });
    };
    unmount(&mount.point)?;
    let grown = check_and_resize(&mount.source, blocks);
    let mounted = mount_again(mount);
    match (&grown, &mounted) {
        (Ok(()), Ok(())) => eprintln!(
            "ploop-sandbox: unmounted {point}, enlarged its file system and mounted it again, because \
             CAP_SYS_RESOURCE, which online resize needs, is missing here",
            point = mount.point.display(),
        ),
        (Err(error), _) => eprintln!(
            "ploop-sandbox: cannot enlarge the file system of {}: {error}",
            mount.point.display()
        ),
        (_, Err(error)) => eprintln!(
            "ploop-sandbox: cannot mount {} again after enlarging its file system: {error}",
            mount.point.display()
        ),
    }
    grown.and(mounted)
}

fn unmount(point: &Path) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => thread::sleep(PAUSE),
            result => return Ok(result?),
        }
    }
    Ok(rustix::mount::unmount(point, UnmountFlags::NOFOLLOW)?)
}

fn check_and_resize(device: &Path, blocks: u64) -> io::Result<()> {
    // Exit codes of e2fsck up to 3: errors were corrected.
    run(Command::new(tool("e2fsck")).arg("-fp").arg(device), 3)?;
    run(
        Command::new(tool("resize2fs"))
            .arg(device)
            .arg(blocks.to_string()),
        0,
    )
}

/// Runs a tool; fails if its exit code is greater than `worst`.
fn run(command: &mut Command, worst: i32) -> io::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .env_remove("LD_PRELOAD")
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))?;
    if output.status.code().is_some_and(|code| code <= worst) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim()
    )))
}

/// The path of a tool, which may be in a directory that a program's PATH lacks; only its name if it is not found.
pub(crate) fn tool(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path);
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into);
    own.chain(usual)
        .map(|directory| directory.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|metadata| metadata.is_file()))
        .unwrap_or_else(|| name.into())
}

fn mount_again(mount: &Mount) -> io::Result<()> {
    let mut flags = MountFlags::empty();
    for option in mount.options.split(',') {
        flags |= flag(option);
    }
    let mut data = Vec::new();
    for option in mount.super_options.split(',') {
        match option {
            "ro" | "sync" | "dirsync" | "lazytime" => flags |= flag(option),
            "rw" => {}
            option => data.push(option),
        }
    }
    let data = CString::new(data.join(","))?;
    let kind = mount.kind.as_str();
    if mount.root != Path::new("/") {
        return Err(Errno::INVAL.into());
    }
    let source = mount.source.as_os_str().as_bytes();
    Ok(rustix::mount::mount(
        source,
        &mount.point,
        kind,
        flags,
        &*data,
    )?)
}

fn flag(option: &str) -> MountFlags {
    match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "lazytime" => MountFlags::LAZYTIME,
        _ => MountFlags::empty(),
    }
}
