//! `stat`, `statx` and their variants with the driver's device numbers, for processes that use libploop: it compares
//! them with those in sysfs.
//!
//! The daemon is asked for each number of a loop device or a partition. Nothing is remembered, because a partition gets
//! another number each time it is made.

use crate::errno::{fail, preserve_errno};
use crate::paths::redirected;
use crate::{balloon, daemon, kernel, libploop, real, settings};
use libc::{c_char, c_int, c_uint, dev_t};
use ploop_sandbox_wire::{Alias, MAJOR, Node};

/// Major number of loop devices.
const LOOP: c_uint = 7;
/// Major number of partitions that have dynamic numbers.
const PARTITION: c_uint = 259;

/// Whether this can be the number of a device of the sandbox.
pub(crate) fn may_be_sandbox_device(device: dev_t) -> bool {
    matches!(libc::major(device), LOOP | PARTITION)
}

/// The node of the sandbox with this real number.
pub(crate) fn node(aliases: &[Alias], device: dev_t) -> Option<Node> {
    let number = (libc::major(device), libc::minor(device));
    aliases.iter().find_map(|alias| {
        if alias.whole == number {
            Some(Node::Whole(alias.device))
        } else if alias.partition == Some(number) {
            Some(Node::Partition(alias.device))
        } else {
            None
        }
    })
}

/// The major and minor number of a node in the driver.
pub(crate) fn number(node: Node) -> Option<(c_uint, c_uint)> {
    match node {
        Node::Whole(device) => Some((MAJOR, device.checked_mul(16)?)),
        Node::Partition(device) => Some((MAJOR, device.checked_mul(16)?.checked_add(1)?)),
        Node::None => None,
    }
}

/// The numbers to tell instead of the real `st_dev` and `st_rdev`. None: the real ones are right.
fn driver_numbers(devices: [dev_t; 2]) -> Option<[dev_t; 2]> {
    if !devices.into_iter().any(may_be_sandbox_device)
        || settings::settings().is_none()
        || !libploop::is_used()
    {
        return None;
    }
    let aliases = daemon::aliases()?;
    Some(devices.map(|device| {
        node(&aliases, device)
            .and_then(number)
            .map_or(device, |(major, minor)| libc::makedev(major, minor))
    }))
}

/// Translates the numbers in the result of libc's function.
fn translated(result: c_int, status: *mut libc::stat) -> c_int {
    if result != 0 || status.is_null() {
        return result;
    }
    // SAFETY: the call that filled it succeeded, so it points to such a structure.
    let devices = unsafe { [(*status).st_dev, (*status).st_rdev] };
    if let Some([device, special]) = preserve_errno(|| driver_numbers(devices)) {
        // SAFETY: as above.
        unsafe {
            (*status).st_dev = device;
            (*status).st_rdev = special;
        }
    }
    result
}

/// The functions that take a path. Programs built with an older libc call the second of each pair.
macro_rules! stat {
    ($($name:ident $old:ident $flags:expr;)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(path: *const c_char, status: *mut libc::stat) -> c_int {
                if balloon::hides(libc::AT_FDCWD, path) {
                    return fail(libc::EPERM);
                }
                let result = redirected(path, |path| match real::$name() {
                    // SAFETY: called as the program calls it, the path aside, which is a C string too.
                    Some(real) => unsafe { real(path, status) },
                    None => kernel::fstatat(libc::AT_FDCWD, path, status, $flags),
                });
                translated(result, status)
            }

            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $old(
                _version: c_int,
                path: *const c_char,
                status: *mut libc::stat,
            ) -> c_int {
                // SAFETY: called as the program calls it; where this is built, there is one version.
                unsafe { $name(path, status) }
            }
        )+
    };
}

stat! {
    stat __xstat 0;
    stat64 __xstat64 0;
    lstat __lxstat libc::AT_SYMLINK_NOFOLLOW;
    lstat64 __lxstat64 libc::AT_SYMLINK_NOFOLLOW;
}

macro_rules! fstat {
    ($($name:ident $old:ident;)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(descriptor: c_int, status: *mut libc::stat) -> c_int {
                let result = match real::$name() {
                    // SAFETY: called as the program calls it.
                    Some(real) => unsafe { real(descriptor, status) },
                    None => kernel::fstatat(descriptor, c"".as_ptr(), status, libc::AT_EMPTY_PATH),
                };
                translated(result, status)
            }

            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $old(
                _version: c_int,
                descriptor: c_int,
                status: *mut libc::stat,
            ) -> c_int {
                // SAFETY: called as the program calls it; where this is built, there is one version.
                unsafe { $name(descriptor, status) }
            }
        )+
    };
}

fstat! {
    fstat __fxstat;
    fstat64 __fxstat64;
}

macro_rules! fstatat {
    ($($name:ident $old:ident;)+) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $name(
                directory: c_int,
                path: *const c_char,
                status: *mut libc::stat,
                flags: c_int,
            ) -> c_int {
                if balloon::hides(directory, path) {
                    return fail(libc::EPERM);
                }
                let result = redirected(path, |path| match real::$name() {
                    // SAFETY: called as the program calls it, the path aside, which is a C string too.
                    Some(real) => unsafe { real(directory, path, status, flags) },
                    None => kernel::fstatat(directory, path, status, flags),
                });
                translated(result, status)
            }

            #[unsafe(no_mangle)]
            unsafe extern "C-unwind" fn $old(
                _version: c_int,
                directory: c_int,
                path: *const c_char,
                status: *mut libc::stat,
                flags: c_int,
            ) -> c_int {
                // SAFETY: called as the program calls it; where this is built, there is one version.
                unsafe { $name(directory, path, status, flags) }
            }
        )+
    };
}

fstatat! {
    fstatat __fxstatat;
    fstatat64 __fxstatat64;
}

#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    status: *mut libc::statx,
) -> c_int {
    if balloon::hides(directory, path) {
        return fail(libc::EPERM);
    }
    let result = redirected(path, |path| match real::statx() {
        // SAFETY: called as the program calls it, the path aside, which is a C string too.
        Some(real) => unsafe { real(directory, path, flags, mask, status) },
        None => real::missing(),
    });
    if result != 0 || status.is_null() {
        return result;
    }
    // SAFETY: the call that filled it succeeded, so it points to such a structure.
    let devices = unsafe {
        [
            libc::makedev((*status).stx_dev_major, (*status).stx_dev_minor),
            libc::makedev((*status).stx_rdev_major, (*status).stx_rdev_minor),
        ]
    };
    if let Some([device, special]) = preserve_errno(|| driver_numbers(devices)) {
        // SAFETY: as above.
        unsafe {
            (*status).stx_dev_major = libc::major(device);
            (*status).stx_dev_minor = libc::minor(device);
            (*status).stx_rdev_major = libc::major(special);
            (*status).stx_rdev_minor = libc::minor(special);
        }
    }
    result
}

/// Whether an open file is a block device of the sandbox.
pub(crate) enum Device {
    Node(Node),
    /// Not of the sandbox.
    Other,
    /// It may be one, but the daemon cannot be asked.
    Unknown,
}

/// The device that a descriptor names; changes `errno`.
pub(crate) fn device(descriptor: c_int) -> Device {
    let Some(status) = kernel::status_of_descriptor(descriptor) else {
        return Device::Other;
    };
    if status.st_mode & libc::S_IFMT != libc::S_IFBLK || !may_be_sandbox_device(status.st_rdev) {
        return Device::Other;
    }
    match daemon::aliases() {
        Some(aliases) => node(&aliases, status.st_rdev).map_or(Device::Other, Device::Node),
        None => Device::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_drivers() {
        let aliases = [
            Alias {
                device: 10001,
                whole: (7, 10001),
                partition: Some((259, 3)),
                balloon_inode: None,
            },
            Alias {
                device: 65535,
                whole: (7, 65535),
                partition: None,
                balloon_inode: None,
            },
        ];
        let shown = |major, minor| node(&aliases, libc::makedev(major, minor)).and_then(number);
        assert_eq!(shown(7, 10001), Some((182, 160_016)));
        assert_eq!(shown(259, 3), Some((182, 160_017)));
        assert_eq!(shown(7, 65535), Some((182, 1_048_560)));
        assert_eq!(shown(7, 3), None);
        assert_eq!(shown(259, 4), None);
        assert_eq!(number(Node::Whole(u32::MAX)), None);
    }

    #[test]
    fn an_open_file_has_its_real_numbers() {
        assert!(kernel::status_of_descriptor(-1).is_none());
        assert_eq!(crate::errno::get(), libc::EBADF);
        let status = kernel::status_of_descriptor(0).unwrap();
        assert!(!may_be_sandbox_device(status.st_rdev));
        assert!(matches!(device(0), Device::Other));
    }
}
