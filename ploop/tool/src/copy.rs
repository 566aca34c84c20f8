//! `cp`: copies files out of the file system inside. The names in it come from the root user of the container: each
//! directory is opened below the one before, and no link is followed.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::cli::Copy;
use crate::contents::Contents;
use crate::file_system::{FileSystem, Kind, Node, Visited};
use crate::list::printable;
use crate::output::{Failure, Output, Result};
use crate::progress::interrupt_flag;

pub(crate) fn run(copy: &Copy, output: &Output) -> Result {
    let file_system = FileSystem::open(&copy.file_system)?;
    let node = file_system.find(&copy.from, false)?;
    if node.kind() == Some(Kind::Directory) && !copy.recursive {
        return Err(Failure::Request(format!(
            "{}: this is a directory; copy it with --recursive",
            copy.from.display()
        )));
    }
    let (directory, name) = target(copy)?;
    let opened = rustix::fs::open(
        &directory,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let opened = opened.map_err(|errno| cannot(&directory, "opened", errno))?;
    let mut copier = Copier {
        file_system: &file_system,
        visited: Visited::default(),
        output,
        interrupted: interrupt_flag()?,
        left_out: false,
    };
    copier.copy(
        opened.as_fd(),
        &name,
        &directory.join(OsStr::from_bytes(&name)),
        &node,
    )?;
    Ok(match copier.left_out | file_system.warn_of_lost(output) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The directory that the copy goes into, and its name there.
fn target(copy: &Copy) -> Result<(PathBuf, Vec<u8>)> {
    let nameless = || {
        Failure::Request(format!(
            "{}: name the file that the copy is to be",
            copy.to.display()
        ))
    };
    if copy.to.is_dir() {
        // `/` has no name.
        let name = copy.from.file_name().ok_or_else(nameless)?;
        return Ok((copy.to.clone(), name.as_bytes().to_vec()));
    }
    let name = copy
        .to
        .file_name()
        .ok_or_else(nameless)?
        .as_bytes()
        .to_vec();
    let directory = match copy.to.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((directory, name))
}

struct Copier<'a> {
    file_system: &'a FileSystem,
    visited: Visited,
    output: &'a Output,
    interrupted: Arc<AtomicBool>,
    /// Whether something is not in the copy.
    left_out: bool,
}

/// A directory whose entries are being copied.
struct Open {
    fd: OwnedFd,
    path: PathBuf,
    node: Node,
    left: Vec<(Vec<u8>, u32)>,
}

impl Copier<'_> {
    /// The file system decides how deep it is, so this does not recurse.
    fn copy(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &Path,
        node: &Node,
    ) -> Result<()> {
        let Some(first) = self.copy_one(parent, name, path, node)? else {
            return Ok(());
        };
        let mut open = vec![first];
        while let Some(directory) = open.last_mut() {
            let Some((name, number)) = directory.left.pop() else {
                // The mode last: it may forbid to make files there.
                finish(directory.fd.as_fd(), &directory.path, &directory.node)?;
                open.pop();
                continue;
            };
            let node = self.file_system.node(number)?;
            let path = directory.path.join(OsStr::from_bytes(&name));
            let fd = directory.fd.as_fd();
            if let Some(next) = self.copy_one(fd, &name, &path, &node)? {
                open.push(next);
            }
        }
        Ok(())
    }

    /// Copies a file, or makes a directory, whose entries are then left.
    fn copy_one(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &Path,
        node: &Node,
    ) -> Result<Option<Open>> {
        let name = CString::new(name)
            .map_err(|_| Failure::Request(format!("{}: this is no name", path.display())))?;
        self.require_not_interrupted(path)?;
        if node.is_encrypted() {
            self.leave_out(path, "this is encrypted, and the key is not in the image");
            return Ok(None);
        }
        match node.kind() {
            Some(Kind::Directory) => {
                self.visited.enter(node.number, path)?;
                let made = rustix::fs::mkdirat(parent, &name, Mode::RWXU);
                made.map_err(|errno| cannot(path, "made", errno))?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(parent, &name, flags, Mode::empty());
                let mut left = self.file_system.entries(node)?;
                left.reverse();
                return Ok(Some(Open {
                    fd: fd.map_err(|errno| cannot(path, "opened", errno))?,
                    path: path.to_owned(),
                    node: node.clone(),
                    left,
                }));
            }
            Some(Kind::File) => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::WRONLY
                    | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(parent, &name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(fd.map_err(|errno| cannot(path, "made", errno))?);
                let written = self.write(&file, path, node);
                if let Err(failure) = written.and_then(|()| finish(file.as_fd(), path, node)) {
                    // A part of a file is taken for the whole.
                    let _ = rustix::fs::unlinkat(parent, &name, AtFlags::empty());
                    return Err(failure);
                }
            }
            Some(Kind::Link) => {
                let target = self.file_system.link(node)?;
                let made = rustix::fs::symlinkat(&*target, parent, &name);
                made.map_err(|errno| cannot(path, "made", errno))?;
                let set =
                    rustix::fs::utimensat(parent, &name, &times(node), AtFlags::SYMLINK_NOFOLLOW);
                set.map_err(|errno| cannot(path, "given its time", errno))?;
            }
            Some(Kind::Socket) => self.leave_out(path, "sockets are not copied"),
            _ => self.leave_out(path, "devices and fifos are not copied; tar takes them"),
        }
        Ok(None)
    }

    fn leave_out(&mut self, path: &Path, reason: &str) {
        let path = printable(&path.to_string_lossy());
        self.output.warning(format_args!("{path}: {reason}"));
        self.left_out = true;
    }

    fn require_not_interrupted(&self, path: &Path) -> Result<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Failure::Request(format!(
                "a signal has ended this before {} was copied",
                path.display()
            ))),
            false => Ok(()),
        }
    }

    /// Writes what has data, and leaves holes.
    fn write(&self, file: &File, path: &Path, node: &Node) -> Result<()> {
        let failed = |error: std::io::Error| cannot(path, "written", error);
        if let Some(data) = self.file_system.inline_data(node)? {
            file.write_all_at(&data, 0).map_err(failed)?;
        }
        let runs = self.file_system.data(node)?;
        let contents = Contents::new(self.file_system, &runs, 0..node.inode.size);
        contents.without_holes().for_each(|offset, part| {
            self.require_not_interrupted(path)?;
            file.write_all_at(part, offset).map_err(failed)
        })?;
        file.set_len(node.inode.size).map_err(failed)
    }
}

/// Sets what is set last: the permissions and the times. Set-ID bits would give the rights of whoever copies, and not
/// those of the owner in the image.
fn finish(fd: BorrowedFd<'_>, path: &Path, node: &Node) -> Result<()> {
    let mode = Mode::from_raw_mode(node.permissions() & 0o1777);
    rustix::fs::fchmod(fd, mode).map_err(|errno| cannot(path, "given its mode", errno))?;
    rustix::fs::futimens(fd, &times(node)).map_err(|errno| cannot(path, "given its time", errno))
}

fn times(node: &Node) -> Timestamps {
    let inode = &node.inode;
    let time = |seconds, nanoseconds: u32| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.min(999_999_999).into(),
    };
    Timestamps {
        last_access: time(inode.atime, inode.atime_nsec),
        last_modification: time(inode.mtime, inode.mtime_nsec),
    }
}

fn cannot(path: &Path, what: &str, error: impl Into<std::io::Error>) -> Failure {
    let error = error.into();
    if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) {
        return Failure::Request(format!("{}: this is there already", path.display()));
    }
    Failure::Request(format!("{} cannot be {what}: {error}", path.display()))
}
