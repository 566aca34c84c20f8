//! Mounting a FUSE file system, and ending it whatever its state.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use fuser::{BackgroundSession, Config, Filesystem, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::mounts;

/// Where the kernel lists the connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What is read is copied twice: into a buffer of this process, and from there to whoever asked. In pieces of this size
/// the buffers stay in the processor's cache; pieces of 1 MiB were slower by a third.
const MAX_READ: usize = 128 << 10;

/// A mounted file system that is served by threads of this process. Dropping it unmounts it.
pub(crate) struct Mounted {
    point: PathBuf,
    _session: BackgroundSession,
}

/// Mounts a file system that everybody may look into.
///
/// By hand, for then neither libfuse nor fusermount has to be there, and the unmount is this
/// module's own.
pub(crate) fn mount(
    file_system: impl Filesystem,
    point: &Path,
    threads: usize,
) -> io::Result<Mounted> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = CString::new(format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ}",
        device.as_raw_fd()
    ))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("ploop-sandbox", point, "fuse", flags, &*options)?;
    let mut config = Config::default();
    config.n_threads = Some(threads);
    config.acl = SessionACL::All;
    let session = Session::from_fd(file_system, device.into(), SessionACL::All, config)
        .and_then(Session::spawn);
    match session {
        Ok(session) => Ok(Mounted {
            point: point.to_owned(),
            _session: session,
        }),
        Err(error) => {
            rustix::mount::unmount(point, UnmountFlags::DETACH)?;
            Err(error)
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is still in use goes when its last user does; there is nobody to tell of a failure.
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// Sees to it that connections can be aborted: mounts the control file system where it is not
/// mounted, in this namespace.
pub(crate) fn mount_control() -> io::Result<()> {
    let is_mounted = mounts::own()?.iter().any(|mount| mount.kind == "fusectl");
    if !is_mounted {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", flags, None)?;
    }
    Ok(())
}

/// Aborts the connections of all FUSE file systems mounted below a directory: whoever waits for an
/// answer gets an error, and a process that could not be killed can be.
pub(crate) fn abort_below(mounts: &[mounts::Mount], directory: &Path) {
    for mount in mounts {
        if mount.kind == "fuse" && mount.point.starts_with(directory) {
            let file = format!("{CONNECTIONS}/{}/abort", mount.device.1);
            // Gone is as good as aborted.
            let _ = OpenOptions::new()
                .write(true)
                .open(file)
                .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
        }
    }
}
