//! The mount table, `/proc/self/mountinfo`. It is read in bytes: mount points need not be UTF-8.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

pub(crate) fn read() -> io::Result<Vec<u8>> {
    fs::read("/proc/self/mountinfo")
}

/// The first mount point of a device or of its first partition.
pub(crate) fn mount_point(table: &[u8], device: (u32, u32)) -> Option<PathBuf> {
    let first = mounts(table).find(|mount| mount.is_of(device))?;
    Some(PathBuf::from(OsString::from_vec(unescaped(first.point))))
}

/// The type and source of the file system that is mounted on top of a device's at its [first mount point](mount_point).
/// `None` where the device's own is the topmost.
pub(crate) fn mounted_on_top(table: &[u8], device: (u32, u32)) -> Option<(String, String)> {
    let own = mounts(table).find(|mount| mount.is_of(device))?;
    let here = || mounts(table).filter(|mount| mount.point == own.point);
    let topmost = here()
        .filter(|mount| here().all(|other| other.parent != mount.id))
        .last()?;
    let text = |field| String::from_utf8_lossy(&unescaped(field)).into_owned();
    (!topmost.is_of(device)).then(|| (text(topmost.fs_type), text(topmost.source)))
}

/// The longest mount point, as the table spells it.
pub(crate) fn longest_mount_point(table: &[u8]) -> Option<&[u8]> {
    mounts(table)
        .map(|mount| mount.point)
        .max_by_key(|point| point.len())
}

/// A line, in the spelling of the table.
struct Mount<'a> {
    id: &'a [u8],
    /// The mount that this one is mounted on.
    parent: &'a [u8],
    /// `MAJOR:MINOR`
    numbers: &'a [u8],
    point: &'a [u8],
    fs_type: &'a [u8],
    source: &'a [u8],
}

impl Mount<'_> {
    /// Whether a device or its first partition is mounted.
    fn is_of(&self, (major, minor): (u32, u32)) -> bool {
        [minor, minor + 1]
            .map(|minor| format!("{major}:{minor}").into_bytes())
            .iter()
            .any(|numbers| numbers == self.numbers)
    }
}

fn mounts(table: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let [id, parent, numbers] = [fields.next()?, fields.next()?, fields.next()?];
        let point = fields.nth(1)?;
        let mut last = fields.skip_while(|field| *field != b"-").skip(1);
        Some(Mount {
            id,
            parent,
            numbers,
            point,
            fs_type: last.next().unwrap_or_default(),
            source: last.next().unwrap_or_default(),
        })
    })
}

/// The bytes of a field: the table writes blanks, line ends and backslashes as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|it| std::str::from_utf8(it).ok());
        let octal = digits.and_then(|it| u8::from_str_radix(it, 8).ok());
        match octal.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_or_its_partition_is_found() {
        let table = b"36 35 98:0 / / rw - ext4 /dev/a rw\n\
            37 35 182:17 / /a\\040\\134b\\0 rw,noatime shared:1 - ext4 /dev/ploop1p1 rw\n\
            38 35 182:32 /sub /\xff rw - ext4 /dev/ploop2 rw\n\
            39 35 182:32 / /second rw - ext4 /dev/ploop2 rw\n\
            40 35\n";
        let point = |minor| mount_point(table, (182, minor));
        assert_eq!(point(16), Some(PathBuf::from("/a \\b\\0")));
        let odd = PathBuf::from(OsString::from_vec(b"/\xff".to_vec()));
        assert_eq!(point(32), Some(odd));
        assert_eq!(point(1), None);
        assert_eq!(mount_point(table, (8, 16)), None);
        assert_eq!(longest_mount_point(table), Some(&b"/a\\040\\134b\\0"[..]));
        assert_eq!(longest_mount_point(b"\n36 35\n"), None);
    }

    #[test]
    fn the_topmost_mount_is_on_no_other_one() {
        let on_top = |table: &[u8]| mounted_on_top(table, (182, 16));
        let own = "36 35 182:17 / /m rw - ext4 /dev/ploop1p1 rw\n";
        let other = |line: &str| format!("{own}{line}\n").into_bytes();
        assert_eq!(on_top(own.as_bytes()), None);
        assert_eq!(on_top(b""), None);
        let found = |fs_type: &str, source: &str| Some((fs_type.to_owned(), source.to_owned()));
        let tmpfs = other("37 36 0:5 / /m rw shared:1 master:2 - tmpfs a\\040b rw");
        assert_eq!(on_top(&tmpfs), found("tmpfs", "a b"));
        // Moved there: it is older, and in a line before.
        let moved = format!("30 36 182:33 / /m rw - ext4 /dev/ploop2p1 rw\n{own}");
        assert_eq!(on_top(moved.as_bytes()), found("ext4", "/dev/ploop2p1"));
        // Below the device's, elsewhere, and the device once more.
        for line in [
            "35 1 0:5 / /m rw - tmpfs none rw",
            "37 36 0:5 / /m/m rw - tmpfs none rw",
            "37 36 182:17 /a /m rw - ext4 /dev/ploop1p1 rw",
        ] {
            assert_eq!(on_top(&other(line)), None, "{line}");
        }
    }
}
