//! [`AtomicFile`]: a file that gets its name when it is complete (`O_TMPFILE`, or a temporary name).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::{Error, ErrorKind, Guid, Result};

/// A file that is being written. It is gone if it is dropped without [`AtomicFile::publish`].
#[derive(Debug)]
pub(super) struct AtomicFile {
    operation: &'static str,
    file: File,
    target: PathBuf,
    dir: PathBuf,
    /// Its temporary name, on file systems that make no files without a name. A process that is killed leaves that
    /// behind.
    temporary: Option<PathBuf>,
}

impl AtomicFile {
    /// Makes an empty file with mode 0600, which is published as `target`.
    pub(super) fn create(operation: &'static str, target: &Path) -> Result<AtomicFile> {
        let dir = match target.parent() {
            Some(dir) if dir != Path::new("") => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let failed = |error: Errno| {
            Error::io(operation, "the file cannot be created", error).with_path(target)
        };
        if target.file_name().is_none() {
            return Err(failed(Errno::ISDIR));
        }
        let (file, temporary) = match nameless(&dir) {
            Some(fd) => (fd, None),
            None => named(&dir, target).map_err(failed)?,
        };
        Ok(AtomicFile {
            operation,
            file: File::from(file),
            target: target.to_owned(),
            dir,
            temporary,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name. Replaces another file only with `overwrite`; otherwise fails with
    /// [`ErrorKind::AlreadyExists`].
    pub(super) fn publish(mut self, overwrite: bool) -> Result<()> {
        let result = self.name(overwrite);
        if result.is_ok() {
            self.temporary = None;
        }
        result.map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                Error::new(
                    ErrorKind::AlreadyExists,
                    self.operation,
                    "a file of that name is there already",
                )
            } else {
                Error::io(self.operation, "the file cannot be named", error)
            }
            .with_path(&self.target)
        })
    }

    fn name(&mut self, overwrite: bool) -> io::Result<()> {
        match (&self.temporary, overwrite) {
            (None, false) => link(&self.file, &self.target)?,
            (None, true) => {
                let path = temporary_name(&self.dir, &self.target);
                link(&self.file, &path)?;
                self.temporary = Some(path.clone());
                fs::rename(&path, &self.target)?;
            }
            (Some(path), true) => fs::rename(path, &self.target)?,
            (Some(path), false) => {
                let flags = RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(CWD, path, CWD, &self.target, flags) {
                    // The file system does not support it.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        fs::hard_link(path, &self.target)?;
                        fs::remove_file(path)?;
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The directory of the target.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            // `drop` cannot report an error.
            let _ = fs::remove_file(path);
        }
    }
}

const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);

fn nameless(dir: &Path) -> Option<OwnedFd> {
    rustix::fs::open(dir, FLAGS | OFlags::TMPFILE, MODE)
        .ok()
        // The file is linked through /proc, which must be mounted.
        .filter(|fd| fs::symlink_metadata(proc_path(fd)).is_ok())
}

fn named(dir: &Path, target: &Path) -> Result<(OwnedFd, Option<PathBuf>), Errno> {
    let path = temporary_name(dir, target);
    let flags = FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&path, flags, MODE)?;
    Ok((fd, Some(path)))
}

fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = proc_path(file);
    Ok(rustix::fs::linkat(
        CWD,
        from,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

/// A hidden, unique name beside the target.
fn temporary_name(dir: &Path, target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", Guid::generate().as_uuid()));
    dir.join(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Both ways to make a file, and both ways to name it.
    #[test]
    fn files_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let entries = || fs::read_dir(dir.path()).unwrap().count();
        for with_name in [false, true] {
            let make = || {
                let mut staged = AtomicFile::create("test", &target).unwrap();
                // Old kernels give it a name anyway.
                if with_name && staged.temporary.is_none() {
                    let (fd, temporary) = named(dir.path(), &target).unwrap();
                    staged.file = File::from(fd);
                    staged.temporary = temporary;
                }
                staged.file().write_all(b"new").unwrap();
                staged
            };
            drop(make());
            assert_eq!(entries(), 0);

            for overwrite in [false, true] {
                make().publish(overwrite).unwrap();
                assert_eq!(fs::read(&target).unwrap(), b"new");
                assert_eq!(entries(), 1);
                fs::write(&target, "old").unwrap();
                let error = make().publish(false).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::AlreadyExists);
                assert_eq!(fs::read(&target).unwrap(), b"old");
                make().publish(true).unwrap();
                assert_eq!(fs::read(&target).unwrap(), b"new");
                assert_eq!(entries(), 1);
                fs::remove_file(&target).unwrap();
            }
        }
    }
}
