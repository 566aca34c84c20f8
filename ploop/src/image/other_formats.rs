//! What a file is that is no delta, by its first bytes: an image of another kind, a plain disk, a compressed file.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// How much of a file is looked at: up to the superblock of ext2, ext3 and ext4.
const LOOKED_AT: usize = 2048;

/// The formats, by what is where in their files. The first that fits counts.
const FORMATS: [(usize, &[u8], &str); 19] = [
    (
        0,
        b"QFI\xfb",
        "a qcow2 image, as libploop 9 can make them; qemu-img(1) reads and converts it",
    ),
    (0, b"KDMV", "a VMDK image; qemu-img(1) converts it"),
    (0, b"vhdxfile", "a VHDX image; qemu-img(1) converts it"),
    (0, b"conectix", "a VHD image; qemu-img(1) converts it"),
    (
        64,
        b"\x7f\x10\xda\xbe",
        "a VDI image; qemu-img(1) converts it",
    ),
    (0, b"\x1f\x8b", "compressed with gzip(1)"),
    (0, b"BZh", "compressed with bzip2(1)"),
    (0, b"\xfd7zXZ\0", "compressed with xz(1)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd(1)"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4(1)"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"<?xml", "XML, as in a descriptor"),
    (0, b"<\0?\0", "XML, as in a descriptor"),
    (0, b"LUKS\xba\xbe", "an encrypted plain disk (LUKS)"),
    (512, b"EFI PART", PARTITIONED),
    (1080, b"\x53\xef", "a plain disk with an ext file system"),
    (0, b"XFSB", "a plain disk with an XFS file system"),
    (510, b"\x55\xaa", PARTITIONED),
];

const PARTITIONED: &str = "a plain disk with a partition table";

/// What a file is by its first bytes, if these are known.
pub(super) fn name(file: &File) -> Option<&'static str> {
    let mut start = [0; LOOKED_AT];
    let mut len = 0;
    // Whatever can be read will do: this only adds to the words of an error.
    while let Ok(read @ 1..) = file.read_at(&mut start[len..], len as u64) {
        len += read;
    }
    name_of(&start[..len])
}

fn name_of(start: &[u8]) -> Option<&'static str> {
    FORMATS
        .iter()
        .find(|(at, magic, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named() {
        let with = |at: usize, magic: &[u8]| {
            let mut start = vec![0; 4096];
            start[at..at + magic.len()].copy_from_slice(magic);
            name_of(&start).unwrap_or_default()
        };
        assert!(with(0, b"QFI\xfb\0\0\0\x03").starts_with("a qcow2 image"));
        assert_eq!(with(512, b"EFI PART"), PARTITIONED);
        assert_eq!(with(510, &[0x55, 0xaa]), PARTITIONED);
        assert_eq!(
            with(1080, &[0x53, 0xef]),
            "a plain disk with an ext file system"
        );
        assert_eq!(with(257, b"ustar\0"), "a tar archive");
        assert_eq!(with(0, b"WithoutFreeSpace"), "");
        assert_eq!(name_of(&[]), None);
        assert_eq!(name_of(b"QFI"), None);
        assert_eq!(name_of(b"\x1f\x8b"), Some("compressed with gzip(1)"));
    }
}
