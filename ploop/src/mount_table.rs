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
pub(crate) fn mount_point(table: &[u8], (major, minor): (u32, u32)) -> Option<PathBuf> {
    let wanted = [0, 1].map(|partition| format!("{major}:{}", minor + partition).into_bytes());
    lines(table)
        .find(|(numbers, _)| wanted.iter().any(|wanted| wanted == numbers))
        .map(|(_, point)| PathBuf::from(OsString::from_vec(unescaped(point))))
}

/// The longest mount point, as the table spells it.
pub(crate) fn longest_mount_point(table: &[u8]) -> Option<&[u8]> {
    lines(table)
        .map(|(_, point)| point)
        .max_by_key(|point| point.len())
}

/// `MAJOR:MINOR` and the mount point of each line.
fn lines(table: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        Some((fields.next()?, fields.nth(1)?))
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
}
