//! Paths that mean something to the sandbox. Only as they are usually written: what is spelt in a roundabout way, or
//! relative to a directory, is left alone.

use libc::c_char;
use ploop_sandbox_wire::Node;
use std::ffi::CStr;

/// Does the path begin so? Reads no further than they agree, so that other paths cost next to nothing.
pub(crate) fn starts_with(path: *const c_char, prefix: &[u8]) -> bool {
    !path.is_null()
        && prefix.iter().enumerate().all(|(at, byte)| {
            // SAFETY: a path is a C string; all bytes before this one are known not to be its end.
            let found = unsafe { *path.add(at) };
            found as u8 == *byte
        })
}

/// The bytes of a path.
pub(crate) fn bytes<'a>(path: *const c_char) -> &'a [u8] {
    if path.is_null() {
        return b"";
    }
    // SAFETY: a path is a C string, which its caller keeps until the call returns; the result is not kept longer.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

/// A list of mounts in `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// `mountinfo`.
    Info,
    /// `mounts`.
    Mounts,
}

/// Which list of mounts this is. Those of other processes count: libploop reads them for other mount namespaces.
pub(crate) fn table(path: &[u8]) -> Option<Table> {
    let rest = path.strip_prefix(b"/proc/")?;
    if rest == b"mounts" {
        return Some(Table::Mounts);
    }
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let (process, file) = (rest.get(..slash)?, rest.get(slash + 1..)?);
    let known = process == b"self"
        || process == b"thread-self"
        || (!process.is_empty() && process.iter().all(u8::is_ascii_digit));
    match file {
        b"mountinfo" if known => Some(Table::Info),
        b"mounts" if known => Some(Table::Mounts),
        _ => None,
    }
}

/// Where a path at or below `/proc/vz` is served: `directory` and the rest of it.
pub(crate) fn proc_vz_rest(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/proc/vz")?;
    matches!(rest.first(), None | Some(b'/')).then_some(rest)
}

/// The node that `/dev/ploopN` or `/dev/ploopNp1` names.
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

/// Does only who uses ploop ask for this file?
pub(crate) fn is_of_the_driver(path: &[u8]) -> bool {
    proc_vz_rest(path).is_some()
        || path
            .strip_prefix(b"/sys/block/ploop")
            .and_then(|rest| rest.splitn(3, |byte| *byte == b'/').nth(1))
            .is_some_and(|part| matches!(part, b"pstate" | b"pdelta"))
}

/// Calls with the path that is meant: that of the daemon's directory for what is at or below `/proc/vz`, otherwise the
/// same.
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
    if is_proc && fill(&mut buffer, to, proc_vz_rest(bytes(path))) {
        return call(buffer.as_ptr().cast());
    }
    call(path)
}

/// Puts the path together; false if there is none or it is too long.
fn fill(buffer: &mut [u8], directory: Option<&[u8]>, rest: Option<&[u8]>) -> bool {
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
    fn prefixes_end_with_the_path() {
        assert!(starts_with(c"/proc/vz/x".as_ptr(), b"/proc/vz"));
        assert!(starts_with(c"/proc/vz".as_ptr(), b"/proc/vz"));
        assert!(!starts_with(c"/proc".as_ptr(), b"/proc/vz"));
        assert!(!starts_with(c"".as_ptr(), b"/"));
        assert!(!starts_with(std::ptr::null(), b"/"));
    }

    #[test]
    fn lists_of_mounts_are_known() {
        for (path, expected) in [
            ("/proc/self/mountinfo", Some(Table::Info)),
            ("/proc/thread-self/mountinfo", Some(Table::Info)),
            ("/proc/17/mountinfo", Some(Table::Info)),
            ("/proc/mounts", Some(Table::Mounts)),
            ("/proc/self/mounts", Some(Table::Mounts)),
            ("/proc/self/mountstats", None),
            ("/proc/x/mounts", None),
            ("/proc//mounts", None),
            ("/proc/self/task/1/mounts", None),
            ("/etc/mtab", None),
        ] {
            assert_eq!(table(path.as_bytes()), expected, "{path}");
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
    fn proc_vz_is_led_elsewhere() {
        let mut buffer = [0; 16];
        assert!(fill(
            &mut buffer,
            Some(b"/run/vz"),
            proc_vz_rest(b"/proc/vz")
        ));
        assert_eq!(&buffer[..8], b"/run/vz\0");
        assert!(fill(
            &mut buffer,
            Some(b"/d"),
            proc_vz_rest(b"/proc/vz/minor")
        ));
        assert_eq!(&buffer[..9], b"/d/minor\0");
        assert!(!fill(&mut buffer, Some(b"/d"), proc_vz_rest(b"/proc/vzx")));
        assert!(!fill(&mut buffer, None, proc_vz_rest(b"/proc/vz")));
        // Sixteen bytes and the zero do not fit.
        assert!(!fill(&mut buffer, Some(b"/456789012345"), Some(b"/56")));
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
