//! Hides the balloon of a file system that is mounted with `balloon_ino=`. As in OpenVZ's ext4, no directory lists it,
//! and calls that name it fail with EPERM.

use crate::errno::preserve_errno;
use crate::{daemon, kernel, paths, real, settings};
use libc::{DIR, c_char, c_int, dev_t, dirent};
use std::ffi::CStr;

/// The name that libploop gives the balloon in the root of each file system.
pub(crate) const NAME: &CStr = c".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

/// The inode of the balloon that the file system on this device was mounted with; changes `errno`.
pub(crate) fn inode(device: dev_t) -> Option<u64> {
    let _guard = daemon::CancellationDisabled::new();
    let number = (libc::major(device), libc::minor(device));
    let aliases = daemon::aliases()?;
    // The file system lies on the partition, if there is one.
    let alias = aliases
        .iter()
        .find(|alias| alias.partition.unwrap_or(alias.whole) == number)?;
    alias.balloon_inode
}

/// Whether a path names a hidden balloon. Only for a path that ends in its name is the daemon asked.
pub(crate) fn hides(directory: c_int, path: *const c_char) -> bool {
    settings::settings().is_some() && {
        let path_bytes = paths::bytes(path);
        let name = NAME.to_bytes();
        path_bytes.ends_with(name)
            && matches!(path_bytes.iter().rev().nth(name.len()), None | Some(b'/'))
            && preserve_errno(|| {
                kernel::status_of_path(directory, path, libc::AT_SYMLINK_NOFOLLOW)
                    .is_some_and(|status| inode(status.st_dev) == Some(status.st_ino))
            })
    }
}

/// `readdir` without the balloon.
macro_rules! readdir {
    ($($name:ident)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(directory: *mut DIR) -> *mut dirent {
                loop {
                    let entry = match real::$name() {
                        // SAFETY: called as the program calls it.
                        Some(real) => unsafe { real(directory) },
                        None => return real::missing(),
                    };
                    if entry.is_null() || settings::settings().is_none() {
                        return entry;
                    }
                    // SAFETY: an entry holds a C string; the program's directory is open.
                    let (name, inode, descriptor) = unsafe {
                        (CStr::from_ptr((*entry).d_name.as_ptr()), (*entry).d_ino, libc::dirfd(directory))
                    };
                    if name != NAME || !preserve_errno(|| is_balloon(descriptor, inode)) {
                        return entry;
                    }
                }
            }
        )+
    };
}

readdir! { readdir readdir64 }

fn is_balloon(directory: c_int, inode: u64) -> bool {
    kernel::status_of_descriptor(directory)
        .is_some_and(|status| self::inode(status.st_dev) == Some(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_sandbox_nothing_is_hidden() {
        assert!(!hides(libc::AT_FDCWD, NAME.as_ptr()));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME.to_str().unwrap()), "").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
