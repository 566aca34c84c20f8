//! The header of a delta, its first 64 bytes (`struct ploop_pvd_header`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::layout::Layout;
use super::{file, other_formats};
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Result, Size};

const OPERATION: &str = "read image header";

const SIGNATURE_V1: &[u8; 16] = b"WithoutFreeSpace";
const SIGNATURE_V2: &[u8; 16] = b"WithouFreSpacExt";
/// The only disk type there is (`PRL_IMAGE_COMPRESSED`). Nothing is compressed.
const TYPE: u32 = 2;
/// The mark of Parallels Desktop for an image that it has closed. libploop has 0 there, but where it tracks changes.
const CLOSED: u32 = 0x312e_3276;
const IN_USE: u32 = 0x746f_6e59;

const NO_SIGNATURE: &str = "the signature is not that of a ploop image";

/// Offsets of the fields.
pub(in crate::image) mod at {
    pub(in crate::image) const TYPE: usize = 16;
    pub(in crate::image) const HEADS: usize = 20;
    pub(in crate::image) const CYLINDERS: usize = 24;
    pub(in crate::image) const CLUSTER: usize = 28;
    pub(in crate::image) const ENTRIES: usize = 32;
    pub(in crate::image) const SIZE: usize = 36;
    pub(in crate::image) const IN_USE: usize = 44;
    pub(in crate::image) const FIRST_BLOCK: usize = 48;
    pub(in crate::image) const FLAGS: usize = 52;
    pub(in crate::image) const EXTENSION: usize = 56;

    /// The fields that say in which state the delta is, and nothing of its layout.
    #[cfg(feature = "image-write")]
    pub(in crate::image) const MARKS: [std::ops::Range<usize>; 2] =
        [IN_USE..FIRST_BLOCK, FLAGS..EXTENSION];
}

bitflags::bitflags! {
    /// What the header says about the state of a delta.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    #[cfg_attr(feature = "serde", serde(transparent))]
    pub struct HeaderFlags: u32 {
        /// No cluster was ever allocated (`CIF_Empty`). A hint: libploop does not keep it up.
        const EMPTY = 1;
        /// The format version is being changed (`CIF_FmtVersionConvert`); entries of the table may
        /// be of either version.
        const CONVERTING = 2;
        /// Others are kept as they are.
        const _ = !0;
    }
}

/// The header of a delta file.
///
/// A `Header` that was read is consistent: the table holds an entry for each cluster of the disk
/// and ends where the data begins, on a cluster boundary. libploop checks none of that, and a header
/// that lies makes it write beyond its buffers.
///
/// ```
/// use ploop::image::{Header, HeaderFlags};
/// use ploop::{ClusterSize, FormatVersion, Size};
///
/// let header = Header::new(FormatVersion::V2, ClusterSize::DEFAULT, Size::from_gib(10))?;
/// assert_eq!((header.entries(), header.data_start()), (10240, 1 << 20));
/// assert!(header.flags.contains(HeaderFlags::EMPTY));
///
/// assert_eq!(Header::parse(&header.to_bytes())?, header);
/// assert!(header.check_len(64).is_err()); // the table is not there
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Header {
    /// The version of the format, from the signature.
    pub version: FormatVersion,
    /// The cluster size.
    pub cluster: ClusterSize,
    /// The heads of the made-up geometry.
    pub heads: u32,
    /// The cylinders of the made-up geometry.
    pub cylinders: u32,
    /// The number of clusters as stored. Informative: libploop and the driver calculate it from the
    /// size, as [`entries`](Header::entries) does.
    pub stored_entries: u32,
    /// The size of the virtual disk.
    pub size: Size,
    /// Whether the image is marked as in use: mounted now, or not unmounted before a power cut.
    pub in_use: bool,
    /// Whether the image is marked as closed by a program that keeps format extensions: Parallels Desktop, or libploop
    /// 7 where changes are tracked. libploop 1 takes the mark for one of an image in use, and clears it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub marked_closed: bool,
    /// The sector of the file at which the table ends and the data begins.
    pub first_block_sector: u32,
    /// State flags.
    pub flags: HeaderFlags,
    /// The sector of the file at which the format extension with dirty bitmaps lies; 0 where there is none. The
    /// extension counts only where the image is [marked as closed](Header::marked_closed): see
    /// [`has_extension`](Header::has_extension).
    pub extension_sector: u64,
}

impl Header {
    /// The length of a header in bytes. The table follows immediately.
    pub const LEN: usize = 64;

    /// The header of a new delta without data, with a geometry as libploop makes it up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a size of zero, and for one that the version or the cluster cannot hold.
    pub fn new(version: FormatVersion, cluster: ClusterSize, size: Size) -> Result<Header> {
        let invalid = |message| Error::new(ErrorKind::InvalidInput, "make image header", message);
        let sectors = size.sectors();
        if sectors == 0 {
            return Err(invalid(format!("{size} is no size of a disk")));
        }
        let entries = sectors.div_ceil(cluster.sectors().into());
        let table = (Header::LEN as u64 + 4 * entries).next_multiple_of(cluster.bytes());
        let fits = version == FormatVersion::V2 || u32::try_from(sectors).is_ok();
        match (u32::try_from(entries), u32::try_from(table / 512)) {
            (Ok(stored_entries), Ok(first_block_sector)) if fits => Ok(Header {
                version,
                cluster,
                heads: 16,
                // Of 32 sectors a track.
                cylinders: u32::try_from(sectors / (16 * 32)).unwrap_or(u32::MAX),
                stored_entries,
                size: Size::from_sectors(sectors),
                in_use: false,
                marked_closed: false,
                first_block_sector,
                flags: HeaderFlags::EMPTY,
                extension_sector: 0,
            }),
            _ => Err(invalid(format!(
                "a disk of {size} is too large for {version} and clusters of {cluster}"
            ))),
        }
    }

    /// Reads and checks the header of a delta file, also of one in use.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where there is no such file, [`ErrorKind::InvalidInput`] where it is
    /// not a regular file or block device, otherwise as [`Header::parse`]; also
    /// [`ErrorKind::Corrupt`] where the file ends before the data begins.
    pub fn read(path: impl AsRef<Path>) -> Result<Header> {
        let path = path.as_ref();
        let open = || {
            let (file, len) = file::open(OPERATION, path)?;
            Header::read_from(&file, len)
        };
        open().map_err(|error| error.with_path(path))
    }

    /// Whether the file begins with a header, even if it ends before the data begins.
    pub(crate) fn is_in(file: &File) -> bool {
        Header::read_from(file, u64::MAX).is_ok()
    }

    /// Whether a file begins with the signature of a delta, whatever follows.
    pub(super) fn has_signature(path: &Path) -> bool {
        let mut signature = [0; at::TYPE];
        let read = file::open(OPERATION, path)
            .is_ok_and(|(file, _)| file.read_exact_at(&mut signature, 0).is_ok());
        read && [SIGNATURE_V1, SIGNATURE_V2].contains(&&signature)
    }

    /// Clears the in-use mark, and no other.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(crate) fn clear_in_use(path: &Path) -> std::io::Result<()> {
        if !Header::read(path).is_ok_and(|header| header.in_use) {
            return Ok(());
        }
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&[0; 4], at::IN_USE as u64)?;
        file.sync_data()
    }

    /// Clears the mark of a closed delta, and no other.
    #[cfg(feature = "libploop")]
    pub(crate) fn clear_closed_mark(path: &Path) -> std::io::Result<()> {
        if !Header::read(path).is_ok_and(|header| header.marked_closed) {
            return Ok(());
        }
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&[0; 4], at::IN_USE as u64)?;
        file.sync_data()
    }

    /// Changes the bytes of a header: there is no format extension, and the image is closed.
    #[cfg(feature = "libploop")]
    pub(crate) fn forget_extension(bytes: &mut [u8; Header::LEN]) {
        bytes[at::IN_USE..at::IN_USE + 4].fill(0);
        bytes[at::EXTENSION..at::EXTENSION + 8].fill(0);
    }

    /// Whether there is a format extension that was kept up with the data: whoever writes to the image and does not
    /// know of extensions clears the mark of a closed image.
    #[must_use]
    pub fn has_extension(&self) -> bool {
        self.extension_sector != 0 && self.marked_closed
    }

    /// Whether two files have the same length, and headers that differ in the in-use mark at most.
    #[cfg(feature = "libploop")]
    pub(crate) fn is_same_in(first: &Path, second: &Path) -> std::io::Result<bool> {
        let read = |path: &Path| {
            let mut bytes = [0; Header::LEN];
            let file = File::open(path)?;
            file.read_exact_at(&mut bytes, 0)?;
            bytes[at::IN_USE..][..4].fill(0);
            Ok::<_, std::io::Error>((file.metadata()?.len(), bytes))
        };
        Ok(read(first)? == read(second)?)
    }

    /// [`Header::read`] of a file of `len` bytes.
    pub(crate) fn read_from(file: &File, len: u64) -> Result<Header> {
        let mut bytes = [0; Header::LEN];
        if len < bytes.len() as u64 {
            return Err(corrupt(
                0,
                format!("the file has {len} bytes, fewer than a header"),
            ));
        }
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| Error::io(OPERATION, "the file cannot be read", error))?;
        let header = Header::parse(&bytes).map_err(|error| match error.offset() {
            Some(0) => name_file(error, file),
            _ => error,
        })?;
        header.check_len(len)?;
        Ok(header)
    }

    /// Decodes a header and checks that it is consistent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] with the offset of the field that is wrong; [`ErrorKind::Unsupported`] for a layout of the
    /// first versions of Parallels, which only [`Layout`](super::Layout) knows. Whether the file is long
    /// enough is checked by [`check_len`](Header::check_len).
    pub fn parse(bytes: &[u8; Header::LEN]) -> Result<Header> {
        let fields = Fields::decode(bytes)?;
        Header::of(&fields).map_err(|error| match Layout::old(&fields) {
            Some(old) => old_layout(&old, &fields, error.offset()),
            None => error,
        })
    }

    fn of(fields: &Fields) -> Result<Header> {
        let cluster_sectors = fields.cluster_sectors;
        let cluster = ClusterSize::from_sectors(u64::from(cluster_sectors)).map_err(|_| {
            corrupt(
                at::CLUSTER,
                format!(
                    "a cluster of {cluster_sectors} sectors is not a power of two from 64 to 131072"
                ),
            )
        })?;
        let sectors = fields.sectors;
        if sectors == 0 {
            return Err(corrupt(at::SIZE, "the disk has no sectors".to_owned()));
        }
        let entries = sectors.div_ceil(u64::from(cluster.sectors()));
        // This also keeps the size in bytes below 2^58.
        if entries > u64::from(u32::MAX) {
            return Err(corrupt(
                at::SIZE,
                format!("a disk of {sectors} sectors has more than 2^32 clusters of {cluster}"),
            ));
        }
        let header = Header {
            version: fields.version,
            cluster,
            heads: fields.heads,
            cylinders: fields.cylinders,
            stored_entries: fields.entries,
            size: Size::from_sectors(sectors),
            in_use: fields.in_use(),
            marked_closed: fields.marked_closed(),
            first_block_sector: fields.first_block,
            flags: fields.flags,
            extension_sector: fields.extension_sector,
        };
        let first = header.first_block_sector;
        if first % cluster.sectors() != 0 {
            return Err(corrupt(
                at::FIRST_BLOCK,
                format!(
                    "the first block, at sector {first}, does not begin a cluster of {cluster}"
                ),
            ));
        }
        let table = header.table_end();
        if header.data_start() < table {
            return Err(corrupt(
                at::FIRST_BLOCK,
                format!(
                    "the first block, at sector {first}, lies inside the table, which ends at offset {table}"
                ),
            ));
        }
        Ok(header)
    }

    /// The bytes of this header. `in_use` becomes the mark the driver sets, and `marked_closed` that of Parallels
    /// Desktop.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let sectors = self.size.sectors();
        match self.version {
            FormatVersion::V1 => {
                put(0, SIGNATURE_V1);
                put(at::SIZE, &(sectors as u32).to_le_bytes());
            }
            FormatVersion::V2 => {
                put(0, SIGNATURE_V2);
                put(at::SIZE, &sectors.to_le_bytes());
            }
        }
        let in_use = match (self.in_use, self.marked_closed) {
            (true, _) => IN_USE,
            (false, true) => CLOSED,
            (false, false) => 0,
        };
        for (at, field) in [
            (at::TYPE, TYPE),
            (at::HEADS, self.heads),
            (at::CYLINDERS, self.cylinders),
            (at::CLUSTER, self.cluster.sectors()),
            (at::ENTRIES, self.stored_entries),
            (at::IN_USE, in_use),
            (at::FIRST_BLOCK, self.first_block_sector),
            (at::FLAGS, self.flags.bits()),
        ] {
            put(at, &field.to_le_bytes());
        }
        put(at::EXTENSION, &self.extension_sector.to_le_bytes());
        bytes
    }

    /// Checks that a file of `len` bytes holds the whole table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] where it does not: libploop then writes beyond its buffers.
    pub fn check_len(&self, len: u64) -> Result<()> {
        if len < self.data_start() {
            return Err(Header::too_short(len, self.data_start()));
        }
        Ok(())
    }

    pub(super) fn too_short(len: u64, data_start: u64) -> Error {
        corrupt(
            at::FIRST_BLOCK,
            format!(
                "the file has {len} bytes and ends before the first block, at sector {}",
                data_start / 512
            ),
        )
    }

    /// The clusters of the virtual disk, each of which has an entry in the table.
    #[must_use]
    pub fn entries(&self) -> u32 {
        // `parse` has checked that it fits; other contents saturate.
        let entries = self.size.bytes().div_ceil(self.cluster.bytes());
        u32::try_from(entries).unwrap_or(u32::MAX)
    }

    /// How a header contradicts itself about the size of the disk, if it does: one of the two numbers is wrong, and by the wrong
    /// one clusters seem to be in no use. The driver goes by the size, and libploop in places by the count.
    pub(super) fn contradiction(&self) -> Option<String> {
        let whole = self.size.bytes() / self.cluster.bytes();
        let counted = self.stored_entries;
        let agrees = counted == self.entries() || u64::from(counted) == whole;
        (!agrees).then(|| {
            format!(
                "the header counts {counted} clusters, but the size is that of {}",
                self.entries()
            )
        })
    }

    /// Where the data begins, in bytes.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        u64::from(self.first_block_sector) * 512
    }

    /// Where the table ends, in bytes.
    fn table_end(&self) -> u64 {
        Header::LEN as u64 + 4 * u64::from(self.entries())
    }
}

/// The fields of a header, as they are in the file.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) version: FormatVersion,
    pub(super) heads: u32,
    pub(super) cylinders: u32,
    pub(super) cluster_sectors: u32,
    pub(super) entries: u32,
    pub(super) sectors: u64,
    pub(super) mark: u32,
    pub(super) first_block: u32,
    pub(super) flags: HeaderFlags,
    pub(super) extension_sector: u64,
}

impl Fields {
    /// Refuses another signature or type.
    pub(super) fn decode(bytes: &[u8; Header::LEN]) -> Result<Fields> {
        let u32_at = |at: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(field)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;

        let signature = &bytes[..at::TYPE];
        let version = if signature == SIGNATURE_V1 {
            FormatVersion::V1
        } else if signature == SIGNATURE_V2 {
            FormatVersion::V2
        } else {
            return Err(corrupt(0, NO_SIGNATURE.to_owned()));
        };
        let kind = u32_at(at::TYPE);
        if kind != TYPE {
            return Err(corrupt(
                at::TYPE,
                format!("the disk type is {kind}, not {TYPE}"),
            ));
        }
        Ok(Fields {
            version,
            heads: u32_at(at::HEADS),
            cylinders: u32_at(at::CYLINDERS),
            cluster_sectors: u32_at(at::CLUSTER),
            entries: u32_at(at::ENTRIES),
            sectors: match version {
                // The upper half is unused in version 1, and not always zero.
                FormatVersion::V1 => u64::from(u32_at(at::SIZE)),
                FormatVersion::V2 => u64_at(at::SIZE),
            },
            mark: u32_at(at::IN_USE),
            first_block: u32_at(at::FIRST_BLOCK),
            flags: HeaderFlags::from_bits_retain(u32_at(at::FLAGS)),
            extension_sector: u64_at(at::EXTENSION),
        })
    }

    pub(super) fn in_use(&self) -> bool {
        !matches!(self.mark, 0 | CLOSED)
    }

    pub(super) fn marked_closed(&self) -> bool {
        self.mark == CLOSED
    }
}

fn old_layout(old: &Layout, fields: &Fields, offset: Option<u64>) -> Error {
    let message = format!(
        "the layout is one of old Parallels versions, with clusters of {} sectors and a first block said to be at sector {}; libploop and the driver do not know it, and it can only be read",
        old.cluster.sectors(),
        fields.first_block
    );
    let error = Error::new(ErrorKind::Unsupported, OPERATION, message);
    match offset {
        Some(offset) => error.with_offset(offset),
        None => error,
    }
}

/// Says what a file is that has another signature, if that is known.
fn name_file(error: Error, file: &File) -> Error {
    match other_formats::name(file) {
        Some(name) => corrupt(0, format!("{NO_SIGNATURE}: this is {name}")),
        None => error,
    }
}

fn corrupt(at: usize, message: String) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message).with_offset(at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libploop 1.15 writes for 10 MiB in clusters of 64 KiB.
    const BY_LIBPLOOP: &[u8; 64] = b"WithoutFreeSpace\
        \x02\0\0\0\x10\0\0\0\x28\0\0\0\x80\0\0\0\xa0\0\0\0\0\x50\0\0\0\0\0\0\0\0\0\0\
        \x80\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0";

    fn with(changes: &[(usize, u32)]) -> [u8; 64] {
        let mut bytes = *BY_LIBPLOOP;
        for (at, value) in changes {
            bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn v2(changes: &[(usize, u32)]) -> [u8; 64] {
        let mut bytes = with(changes);
        bytes[..16].copy_from_slice(SIGNATURE_V2);
        bytes
    }

    #[test]
    fn a_header_of_libploop() {
        let header = Header::parse(BY_LIBPLOOP).unwrap();
        assert_eq!((header.heads, header.cylinders), (16, 40));
        assert_eq!(
            (header.stored_entries, header.first_block_sector),
            (160, 128)
        );
        let cluster = ClusterSize::from_bytes(64 << 10).unwrap();
        let new = Header::new(FormatVersion::V1, cluster, Size::from_mib(10));
        assert_eq!(header, new.unwrap());
        assert_eq!(header.entries(), 160);
        assert_eq!(header.data_start(), 64 << 10);
        assert_eq!(&header.to_bytes(), BY_LIBPLOOP);
    }

    #[test]
    fn sizes_of_both_versions() {
        // The upper half of the size exists in version 2 only.
        let high = [(40, 1)];
        assert_eq!(
            Header::parse(&with(&high)).unwrap().size,
            Size::from_mib(10)
        );
        let large = [(28, 2048), (36, 0), (40, 8), (48, 65 * 2048)];
        let header = Header::parse(&v2(&large)).unwrap();
        assert_eq!(header.version, FormatVersion::V2);
        assert_eq!(header.size, Size::from_gib(16 << 10));
        assert_eq!(header.entries(), 16 << 20);
        let again = Header::parse(&header.to_bytes()).unwrap();
        assert_eq!(again, header);
        // A last cluster that is not whole has an entry.
        assert_eq!(Header::parse(&with(&[(36, 129)])).unwrap().entries(), 2);
    }

    #[test]
    fn marks_and_flags() {
        for (mark, in_use) in [(0, false), (CLOSED, false), (IN_USE, true), (1, true)] {
            let header = Header::parse(&with(&[(44, mark)])).unwrap();
            assert_eq!(header.in_use, in_use, "{mark:#x}");
        }
        let header = Header::parse(&with(&[(52, 0x8000_0003), (56, 5), (60, 1)])).unwrap();
        assert!(header.flags.contains(HeaderFlags::CONVERTING));
        assert_eq!(header.flags.bits(), 0x8000_0003);
        assert_eq!(header.extension_sector, 5 | 1 << 32);
    }

    #[test]
    fn lies_are_found_where_they_are() {
        let cases: &[([u8; 64], u64, &str)] = &[
            ([0; 64], 0, "the signature is not that of a ploop image"),
            (
                with(&[(0, 0)]),
                0,
                "the signature is not that of a ploop image",
            ),
            (with(&[(16, 3)]), 16, "the disk type is 3, not 2"),
            (
                with(&[(28, 0)]),
                28,
                "a cluster of 0 sectors is not a power of two from 64 to 131072",
            ),
            (
                with(&[(28, 1 << 31)]),
                28,
                "a cluster of 2147483648 sectors is not a power of two from 64 to 131072",
            ),
            (with(&[(36, 0)]), 36, "the disk has no sectors"),
            (
                v2(&[(36, !0), (40, !0)]),
                36,
                "a disk of 18446744073709551615 sectors has more than 2^32 clusters of 64 KiB",
            ),
            (
                v2(&[(36, 0), (40, 128)]),
                36,
                "a disk of 549755813888 sectors has more than 2^32 clusters of 64 KiB",
            ),
            (
                v2(&[(48, 100)]),
                48,
                "the first block, at sector 100, does not begin a cluster of 64 KiB",
            ),
            (
                v2(&[(48, 0)]),
                48,
                "the first block, at sector 0, lies inside the table, which ends at offset 704",
            ),
            (
                v2(&[(36, 128 * (1 << 14))]),
                48,
                "the first block, at sector 128, lies inside the table, which ends at offset 65600",
            ),
        ];
        for (bytes, offset, message) in cases {
            let error = Header::parse(bytes).unwrap_err();
            assert_eq!(error.message(), *message);
            assert_eq!(error.offset(), Some(*offset), "{message}");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{message}");
        }
    }

    #[test]
    fn layouts_of_old_versions_are_not_for_libploop() {
        for (bytes, offset, what) in [
            (
                with(&[(28, 63)]),
                28,
                "clusters of 63 sectors and a first block said to be at sector 128",
            ),
            (
                with(&[(48, 0)]),
                48,
                "clusters of 128 sectors and a first block said to be at sector 0",
            ),
            (
                with(&[(48, 100)]),
                48,
                "clusters of 128 sectors and a first block said to be at sector 100",
            ),
            (
                v2(&[(28, 63), (48, 126)]),
                28,
                "clusters of 63 sectors and a first block said to be at sector 126",
            ),
        ] {
            let error = Header::parse(&bytes).unwrap_err();
            assert_eq!(
                (error.kind(), error.offset()),
                (ErrorKind::Unsupported, Some(offset))
            );
            assert!(error.message().contains(what), "{error}");
        }
        // In the table, between two clusters, or of no size at all.
        for bytes in [
            with(&[(48, 1)]),
            v2(&[(28, 63), (48, 64)]),
            with(&[(28, 0)]),
        ] {
            assert_eq!(
                Header::parse(&bytes).unwrap_err().kind(),
                ErrorKind::Corrupt
            );
        }
    }

    /// libploop does not check this, and writes beyond a buffer that is as long as the file.
    #[test]
    fn a_table_longer_than_the_file_is_refused() {
        let header = Header::parse(&with(&[(48, 0xffff_ff80)])).unwrap();
        let error = header.check_len(1 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(
            error.message(),
            "the file has 1048576 bytes and ends before the first block, at sector 4294967168"
        );
        let header = Header::parse(BY_LIBPLOOP).unwrap();
        header.check_len(64 << 10).unwrap();
        header.check_len((64 << 10) - 1).unwrap_err();
    }

    #[test]
    fn files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.hds");
        assert_eq!(Header::read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(
            Header::read(dir.path()).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        std::fs::write(&path, &BY_LIBPLOOP[..63]).unwrap();
        let error = Header::read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(error.path(), Some(&*path));
        assert_eq!(
            error.message(),
            "the file has 63 bytes, fewer than a header"
        );
        std::fs::write(&path, BY_LIBPLOOP).unwrap();
        assert_eq!(Header::read(&path).unwrap_err().kind(), ErrorKind::Corrupt);
        let mut whole = BY_LIBPLOOP.to_vec();
        whole.resize(64 << 10, 0);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(
            Header::read(&path).unwrap(),
            Header::parse(BY_LIBPLOOP).unwrap()
        );
    }
}
