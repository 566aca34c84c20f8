//! The paths that the sandbox handles: nodes, lists of mounts, `/proc/vz`, sysfs. Only in their usual spelling:
//! relative paths, and those with `..` or `//`, are left alone.

use libc::c_char;
use ploop_sandbox_wire::Node;
use std::ffi::CStr;

/// Whether a path begins with a prefix. Reads no further than the first difference, so that other paths cost little.
pub(crate) fn starts_with(path: *const c_char, prefix: &[u8]) -> bool {
    !path.is_null()
        && prefix.iter().enumerate().all(|(at, byte)| {
            // SAFETY: a path is a C string, and none of the bytes before this one is its end.
            let found = unsafe { *path.add(at) };
            found as u8 == *byte
        })
}

/// The bytes of a path.
pub(crate) fn bytes<'a>(path: *const c_char) -> &'a [u8] {
    if path.is_null() {
        return b"";
    }
    // SAFETY: a path is a C string, which the caller keeps until the call returns; the result is not kept longer.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

/// A list of mounts in `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountList {
    /// `mountinfo`.
    Mountinfo,
    /// `mounts`.
    Mounts,
}

/// The list of mounts at a path; also of another process, because libploop reads those of other mount namespaces.
pub(crate) fn mount_list(path: &[u8]) -> Option<MountList> {
    let rest = path.strip_prefix(b"/proc/")?;
    if rest == b"mounts" {
        return Some(MountList::Mounts);
    }
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let (process, file) = (rest.get(..slash)?, rest.get(slash + 1..)?);
    let known = process == b"self"
        || process == b"thread-self"
        || (!process.is_empty() && process.iter().all(u8::is_ascii_digit));
    match file {
        b"mountinfo" if known => Some(MountList::Mountinfo),
        b"mounts" if known => Some(MountList::Mounts),
        _ => None,
    }
}

/// The rest of a path at or below `/proc/vz`.
pub(crate) fn proc_vz_rest(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/proc/vz")?;
    matches!(rest.first(), None | Some(b'/')).then_some(rest)
}

/// The node at `/dev/ploopN` or `/dev/ploopNp1`.
pub(crate) fn node(path: &[u8]) -> Option<Node> {
    let rest = path.strip_prefix(b"/dev/ploop")?;
    let (digits, partition) = match rest.strip_suffix(b"p1") {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let device = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if partition {
        Node::Partition(device)
    } else {
        Node::Whole(device)
    })
}

/// The node to which a link leads.
pub(crate) fn node_of_link(path: *const c_char) -> Option<Node> {
    let mut buffer = [0; 64];
    let len = crate::errno::preserve_errno(|| crate::kernel::read_link(path, &mut buffer))?;
    node(&buffer[..len])
}

/// Whether only users of ploop open this file.
pub(crate) fn is_of_the_driver(path: &[u8]) -> bool {
    proc_vz_rest(path).is_some()
        || path
            .strip_prefix(b"/sys/block/ploop")
            .and_then(|rest| rest.splitn(3, |byte| *byte == b'/').nth(1))
            .is_some_and(|part| matches!(part, b"pstate" | b"pdelta"))
}

/// Calls with the path to use: for one at or below `/proc/vz` the one in the daemon's directory, otherwise the same.
pub(crate) fn redirected<T>(path: *const c_char, call: impl FnOnce(*const c_char) -> T) -> T {
    const SYS: &[u8] = b"/sys/block/ploop";
    const PROC: &[u8] = b"/proc/vz";
    let Some(settings) = crate::settings::settings() else {
        return call(path);
    };
    let is_proc = starts_with(path, PROC);
    if !is_proc && !starts_with(path, SYS) {
        return call(path);
    }
    if is_of_the_driver(bytes(path)) {
        crate::libploop::note_use();
    }
    let mut buffer = [0; libc::PATH_MAX as usize];
    let to = settings.proc_vz.as_ref().map(|path| path.bytes());
    if is_proc && join(&mut buffer, to, proc_vz_rest(bytes(path))) {
        return call(buffer.as_ptr().cast());
    }
    call(path)
}

/// Joins two parts to a C string; false if one is missing or they do not fit.
pub(crate) fn join(buffer: &mut [u8], directory: Option<&[u8]>, rest: Option<&[u8]>) -> bool {
    let (Some(directory), Some(rest)) = (directory, rest) else {
        return false;
    };
    // One byte stays 0.
    if directory.len() + rest.len() >= buffer.len() {
        return false;
    }
    for (to, from) in buffer.iter_mut().zip(directory.iter().chain(rest)) {
        *to = *from;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_not_longer_than_the_path() {
        assert!(starts_with(c"/proc/vz/x".as_ptr(), b"/proc/vz"));
        assert!(starts_with(c"/proc/vz".as_ptr(), b"/proc/vz"));
        assert!(!starts_with(c"/proc".as_ptr(), b"/proc/vz"));
        assert!(!starts_with(c"".as_ptr(), b"/"));
        assert!(!starts_with(std::ptr::null(), b"/"));
    }

    #[test]
    fn lists_of_mounts_are_known() {
        for (path, expected) in [
            ("/proc/self/mountinfo", Some(MountList::Mountinfo)),
            ("/proc/thread-self/mountinfo", Some(MountList::Mountinfo)),
            ("/proc/17/mountinfo", Some(MountList::Mountinfo)),
            ("/proc/mounts", Some(MountList::Mounts)),
            ("/proc/self/mounts", Some(MountList::Mounts)),
            ("/proc/self/mountstats", None),
            ("/proc/x/mounts", None),
            ("/proc//mounts", None),
            ("/proc/self/task/1/mounts", None),
            ("/etc/mtab", None),
        ] {
            assert_eq!(mount_list(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn nodes_are_known() {
        assert_eq!(node(b"/dev/ploop0"), Some(Node::Whole(0)));
        assert_eq!(node(b"/dev/ploop59915p1"), Some(Node::Partition(59915)));
        for path in [
            "/dev/ploop",
            "/dev/ploopp1",
            "/dev/ploop1p2",
            "/dev/ploop1p1p1",
            "/dev/ploop99999999999",
            "/dev/ploop-1",
            "/dev/loop1",
            "ploop1",
        ] {
            assert_eq!(node(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn proc_vz_is_redirected() {
        let mut buffer = [0; 16];
        assert!(join(
            &mut buffer,
            Some(b"/run/vz"),
            proc_vz_rest(b"/proc/vz")
        ));
        assert_eq!(&buffer[..8], b"/run/vz\0");
        assert!(join(
            &mut buffer,
            Some(b"/d"),
            proc_vz_rest(b"/proc/vz/minor")
        ));
        assert_eq!(&buffer[..9], b"/d/minor\0");
        assert!(!join(&mut buffer, Some(b"/d"), proc_vz_rest(b"/proc/vzx")));
        assert!(!join(&mut buffer, None, proc_vz_rest(b"/proc/vz")));
        // Sixteen bytes and the zero do not fit.
        assert!(!join(&mut buffer, Some(b"/456789012345"), Some(b"/56")));
    }

    #[test]
    fn the_drivers_files_are_known() {
        for (path, expected) in [
            ("/proc/vz/ploop_minor", true),
            ("/sys/block/ploop7/pstate/running", true),
            ("/sys/block/ploop7/pdelta", true),
            ("/sys/block/ploop7/size", false),
            ("/sys/block/ploop7", false),
            ("/sys/block/loop7/pdelta", false),
        ] {
            assert_eq!(is_of_the_driver(path.as_bytes()), expected, "{path}");
        }
    }
}
