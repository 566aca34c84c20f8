//! Trust: a program that runs as root does not change images that others can write to, unless allowed.
//!
//! libploop opens the files of an image by their names, some of them several times, and some as a shell's arguments.
//! Whoever can write to the directory of an image, to its descriptor or to a delta can exchange them in between, and
//! make a program that runs as root overwrite, remove or run what it should not. No check before or after can prevent
//! that. So a program that runs as root neither makes, changes nor mounts an image that somebody else can write to:
//! [`PermissionDenied`](crate::ErrorKind::PermissionDenied), with the file and what to do.
//!
//! Somebody else is
//!
//! * the owner, where that is not root;
//! * everybody, where the permissions let them write;
//! * the group, where it is not root's and may write. With an access control list the permissions of
//!   the group are those of everybody in the list, so root's group is not trusted then either.
//!
//! Looked at are the directory of the descriptor, the descriptor, each delta, the directories of the
//! deltas, and every directory in which a symbolic link on the way lies, or which a `..` leaves. The
//! directories above are not: keep images below directories that are root's. What is inside an image belongs to a stranger anyway, and
//! can do no more than make an operation fail.
//!
//! A program that knows better, in a container of its own say, or on a file system without owners, allows it:
//!
//! ```
//! ploop::trust::allow_other_writers(true);
//! # assert!(ploop::trust::are_other_writers_allowed());
//! # ploop::trust::allow_other_writers(false);
//! ```

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::{Error, ErrorKind, Result};

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Sets whether images that others than root can write to are changed all the same, for the whole process (default:
/// no).
pub fn allow_other_writers(allowed: bool) {
    ALLOWED.store(allowed, Ordering::Relaxed);
}

/// What [`allow_other_writers`] was told.
#[must_use]
pub fn are_other_writers_allowed() -> bool {
    ALLOWED.load(Ordering::Relaxed)
}

/// That nobody else can write to these files and to their directories. What is not there is left to the
/// operation itself.
pub(crate) fn require_no_other_writers<'a>(
    operation: &'static str,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    if !applies_to_this_process() {
        return Ok(());
    }
    let mut looked_at = HashSet::new();
    let mut require = |path: PathBuf| -> Result<()> {
        if looked_at.contains(&path) {
            return Ok(());
        }
        require_no_other_writer(operation, &path)?;
        looked_at.insert(path);
        Ok(())
    };
    let mut walked = HashSet::new();
    for file in files {
        let is_link = fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_symlink());
        // One way leads to all files of a directory that are no links themselves.
        if is_link || walked.insert(file.parent()) {
            for looked_in in directories_of(file) {
                require(looked_in)?;
            }
        }
        require(file.to_owned())?;
    }
    Ok(())
}

/// Whoever can write to one of these can exchange the file: its directory, and the directory of each symbolic link on
/// the way to it, of the target of each, and of each directory below another one.
fn directories_of(file: &Path) -> Vec<PathBuf> {
    /// As the kernel's own limit.
    const LINKS: usize = 40;
    let mut found = Vec::new();
    let mut links = 0;
    let mut next = Some(file.to_owned());
    while let Some(path) = next.take() {
        let Some(directory) = path.parent() else {
            break;
        };
        found.push(directory.to_owned());
        let mut so_far = PathBuf::new();
        let mut components = path.components();
        while let Some(component) = components.next() {
            let above = so_far.clone();
            so_far.push(component);
            if component == Component::ParentDir {
                // Whoever can exchange what is left here says where it leads.
                found.extend(above.parent().map(Path::to_owned));
                found.push(above);
                continue;
            }
            // One that leads nowhere is an error of the operation's.
            let Ok(target) = fs::read_link(&so_far) else {
                continue;
            };
            if !is_protected_link(&above, &so_far) {
                found.push(above.clone());
            }
            links += 1;
            if links <= LINKS {
                next = Some(above.join(target).join(components.as_path()));
            }
            break;
        }
    }
    found
}

/// Whether others can neither remove nor rename this link of root's, though they can write beside it.
fn is_protected_link(directory: &Path, link: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let of_root = |metadata: Metadata| (metadata.uid() == 0).then_some(metadata.mode());
    let directory = fs::metadata(directory).ok().and_then(of_root);
    let link = fs::symlink_metadata(link).ok().and_then(of_root);
    directory.is_some_and(|mode| mode & STICKY != 0) && link.is_some()
}

/// That nobody else can write to this directory, in which an image is to be made.
pub(crate) fn require_own_directory(operation: &'static str, directory: &Path) -> Result<()> {
    if !applies_to_this_process() {
        return Ok(());
    }
    require_no_other_writer(operation, directory)
}

/// Who is not root risks no more than is theirs.
fn applies_to_this_process() -> bool {
    rustix::process::geteuid().is_root() && !are_other_writers_allowed()
}

fn require_no_other_writer(operation: &'static str, path: &Path) -> Result<()> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let what = "it cannot be found out who can write to this file";
            return Err(Error::io(operation, what, error).with_path(path));
        }
    };
    let Some(other) = other_writer(&metadata, || has_access_list(path)) else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::PermissionDenied,
        operation,
        format!(
            "{other} can write to this {}, and could have a program that runs as root do harm while it changes the image; let only root write to it, or see ploop::trust::allow_other_writers",
            if metadata.is_dir() { "directory" } else { "file" }
        ),
    )
    .with_path(path))
}

fn other_writer(metadata: &Metadata, has_access_list: impl FnOnce() -> bool) -> Option<String> {
    const GROUP: u32 = 0o020;
    const OTHERS: u32 = 0o002;
    let (mode, owner, group) = (metadata.mode(), metadata.uid(), metadata.gid());
    if owner != 0 {
        return Some(format!("user {owner}"));
    }
    if mode & OTHERS != 0 {
        return Some("everybody".to_owned());
    }
    if mode & GROUP != 0 {
        if group != 0 {
            return Some(format!("group {group}"));
        }
        if has_access_list() {
            return Some("whoever is named in an access control list".to_owned());
        }
    }
    None
}

fn has_access_list(path: &Path) -> bool {
    let mut nothing: [u8; 0] = [];
    match rustix::fs::getxattr(path, "system.posix_acl_access", &mut nothing) {
        Ok(_) => true,
        // Neither here nor known: nobody is named in one.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => false,
        Err(_) => true,
    }
}
