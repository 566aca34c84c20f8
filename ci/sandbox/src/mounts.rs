//! Lists of mounts: `/proc/PID/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of such a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u32,
    /// Major and minor number of the file system's device.
    pub(crate) device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The options of the mount: `rw,relatime`.
    pub(crate) options: String,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    /// The options of the file system.
    pub(crate) super_options: String,
}

/// The mounts of this process's namespace.
pub(crate) fn current() -> io::Result<Vec<Mount>> {
    read(Path::new("/proc/self"))
}

/// The mounts in the namespace of a process, which is named by its directory in `/proc`.
pub(crate) fn read(process: &Path) -> io::Result<Vec<Mount>> {
    let bytes = std::fs::read(process.join("mountinfo"))?;
    Ok(bytes
        .split(|byte| *byte == b'\n')
        .filter_map(line)
        .collect())
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || {
        fields
            .next()
            .map(|field| String::from_utf8_lossy(field).into_owned())
    };
    let id = text()?.parse().ok()?;
    text()?;
    let device = number(&text()?)?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    // Any number of optional fields, up to a dash.
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = path(fields.next()?);
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        id,
        device,
        root,
        point,
        options,
        kind,
        source,
        super_options,
    })
}

/// `MAJOR:MINOR`.
pub(crate) fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Blanks, line ends and backslashes are octal in mountinfo.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_parsed() {
        let mount = line(
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue",
        )
        .unwrap();
        assert_eq!(mount.id, 36);
        assert_eq!(mount.device, (98, 0));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(mount.kind, "ext3");
        assert_eq!(mount.source, Path::new("/dev/root"));
        assert_eq!(mount.super_options, "rw,errors=continue");
        assert!(line(b"36 35 98:0 / / rw").is_none());
        assert!(line(b"").is_none());
    }
}
