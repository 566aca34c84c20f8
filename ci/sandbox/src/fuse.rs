//! FUSE: mounting a file system, unmounting it, and aborting its connection when it does not answer.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fuser::{
    BackgroundSession, Config, FileAttr, FileType, Filesystem, INodeNo, Session, SessionACL,
};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::mounts;

/// The directory in which the kernel lists the connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The longest read: as much as goes through a pipe of the size that the kernel gives to everybody, with the header of
/// an answer (see `spliced_answer`).
const MAX_READ: usize = 512 << 10;

/// A connection with the kernel, by which one file system is mounted.
pub(crate) struct Connection(File);

/// A mounted file system that is served by threads of this process. Dropping it unmounts it.
pub(crate) struct Mounted {
    point: PathBuf,
    _session: BackgroundSession,
}

impl Connection {
    pub(crate) fn open() -> io::Result<Connection> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        Ok(Connection(device))
    }

    /// The device by which requests come and answers go. The connection stays as long as it is open.
    pub(crate) fn device(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// Mounts a file system that all users may read.
    ///
    /// The mount is made here and not by `fuser`, so that neither libfuse nor fusermount is needed and this module
    /// unmounts it.
    pub(crate) fn mount(
        self,
        file_system: impl Filesystem,
        point: &Path,
        threads: usize,
    ) -> io::Result<Mounted> {
        let options = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ}",
            self.0.as_raw_fd()
        ))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("ploop-sandbox", point, "fuse", flags, &*options)?;
        let mut config = Config::default();
        config.n_threads = Some(threads);
        config.acl = SessionACL::All;
        let session = Session::from_fd(file_system, self.0.into(), SessionACL::All, config)
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
}

/// Attributes of a file of root's.
pub(crate) fn attributes(inode: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
    FileAttr {
        ino: inode,
        size,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is still in use goes with its last user.
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// Mounts `fusectl` where it is not mounted, in this namespace, so that connections can be aborted.
pub(crate) fn mount_control() -> io::Result<()> {
    let is_mounted = mounts::current()?
        .iter()
        .any(|mount| mount.kind == "fusectl");
    if !is_mounted {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", flags, None)?;
    }
    Ok(())
}

/// Whether connections can be aborted.
pub(crate) fn can_abort() -> bool {
    Path::new(CONNECTIONS).read_dir().is_ok()
}

/// Aborts the connections of all FUSE file systems mounted below a directory. Processes that wait for an answer get an
/// error, and can be killed again.
pub(crate) fn abort_below(mounts: &[mounts::Mount], directory: &Path) {
    for mount in mounts {
        if mount.kind == "fuse" && mount.point.starts_with(directory) {
            let file = format!("{CONNECTIONS}/{}/abort", mount.device.1);
            // Fails where the connection is gone already.
            let _ = OpenOptions::new()
                .write(true)
                .open(file)
                .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
        }
    }
}
