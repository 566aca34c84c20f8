//! How a delta is laid out ([`Layout`]): as libploop does it, or as the first versions of Parallels did.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::file;
use super::header::{Fields, Header, HeaderFlags};
use crate::{ClusterSize, Error, FormatVersion, Result, Size};

const OPERATION: &str = "read image header";

/// How a delta is laid out: what its header says, as far as reading takes it.
///
/// [`Header`] is that of a delta that libploop and the driver can use. This one is wider: the first versions of Parallels
/// had clusters of any number of sectors, such as 63 or 504, and data that begins at any sector behind the table. Such
/// images are read, and nothing else.
///
/// ```no_run
/// let layout = ploop::image::Layout::read("/backup/old.hdd")?;
/// println!("{} in clusters of {}", layout.size, layout.cluster);
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Layout {
    /// The version of the format, from the signature.
    pub version: FormatVersion,
    /// The cluster size.
    pub cluster: Size,
    /// The size of the virtual disk.
    pub size: Size,
    /// How many entries the table has for clusters of the disk.
    pub entries: u32,
    /// Where the table ends and the data begins, in bytes.
    pub data_start: u64,
    /// Whether the image is marked as in use.
    pub in_use: bool,
    /// Whether the image is marked as closed by a program that keeps format extensions.
    pub marked_closed: bool,
    /// State flags.
    pub flags: HeaderFlags,
    /// The sector of the file at which the format extension lies; 0 where there is none. It counts only where the image
    /// is marked as closed.
    pub extension_sector: u64,
    /// Whether libploop and the driver know this layout.
    pub is_ploop: bool,
}

impl From<&Header> for Layout {
    fn from(header: &Header) -> Layout {
        Layout {
            version: header.version,
            cluster: header.cluster.into(),
            size: header.size,
            entries: header.entries(),
            data_start: header.data_start(),
            in_use: header.in_use,
            marked_closed: header.marked_closed,
            flags: header.flags,
            extension_sector: header.extension_sector,
            is_ploop: true,
        }
    }
}

impl Layout {
    /// Reads and checks the header of a delta file, also of one in use.
    ///
    /// # Errors
    ///
    /// As [`Header::read`], but for layouts of old versions of Parallels.
    pub fn read(path: impl AsRef<Path>) -> Result<Layout> {
        let path = path.as_ref();
        let open = || {
            let (file, len) = file::open(OPERATION, path)?;
            Layout::read_from(&file, len)
        };
        open().map_err(|error: Error| error.with_path(path))
    }

    /// [`Layout::read`] of a file of `len` bytes.
    pub(super) fn read_from(file: &File, len: u64) -> Result<Layout> {
        let error = match Header::read_from(file, len) {
            Ok(header) => return Ok(Layout::from(&header)),
            Err(error) => error,
        };
        let mut bytes = [0; Header::LEN];
        let old = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Fields::decode(&bytes).ok().and_then(|it| Layout::old(&it)),
            Err(_) => None,
        };
        match old {
            Some(old) if old.data_start <= len => Ok(old),
            Some(old) => Err(Header::too_short(len, old.data_start)),
            None => Err(error),
        }
    }

    /// [`read_from`](Layout::read_from), of a file that may be cut short or say wrongly where its data begins, or how large
    /// the disk is. There must be a signature and possible clusters. Also returns whether the size of the disk is in doubt:
    /// the header counts another number of clusters.
    pub(super) fn salvaged(file: &File, len: u64) -> Result<(Layout, bool)> {
        let read = Layout::read_from(file, len);
        let mut bytes = [0; Header::LEN];
        let fields = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Fields::decode(&bytes).ok(),
            Err(_) => None,
        };
        let (mut fields, error) = match (read, fields) {
            (Ok(layout), None) => return Ok((layout, false)),
            (Ok(layout), Some(fields)) => return Ok(layout.with_counted(&fields)),
            (Err(error), None) => return Err(error),
            (Err(error), Some(fields)) => (fields, error),
        };
        let cluster = u64::from(fields.cluster_sectors);
        if !(1..=u64::from(ClusterSize::MAX.sectors())).contains(&cluster) {
            return Err(error);
        }
        let clusters = u32::try_from(fields.sectors.div_ceil(cluster));
        let clusters = clusters.ok().filter(|clusters| *clusters > 0);
        let counted = Some(fields.entries).filter(|counted| *counted > 0);
        // What the header counts is taken where the size cannot be right.
        let is_right = |entries: &u32| begins_behind_table(&fields, *entries);
        let is_in_file = |entries: &u32| table_end(*entries) <= len;
        let entries = clusters
            .filter(is_right)
            .or_else(|| counted.filter(is_right))
            .or_else(|| clusters.filter(is_in_file))
            .or_else(|| clusters.into_iter().chain(counted).min());
        let Some(entries) = entries else {
            return Err(error);
        };
        let is_doubtful = clusters != counted;
        if clusters != Some(entries) {
            fields.sectors = u64::from(entries) * cluster;
        }
        // The file was cut short, and the header is right; or the first cluster is the one behind the table.
        if !begins_behind_table(&fields, entries) {
            let first = table_end(entries).next_multiple_of(cluster * 512) / 512;
            fields.first_block = u32::try_from(first).map_err(|_| error)?;
        }
        let is_ploop = ClusterSize::from_sectors(cluster).is_ok();
        let layout = Layout {
            version: fields.version,
            cluster: Size::from_sectors(cluster),
            size: Size::from_sectors(fields.sectors),
            entries,
            data_start: u64::from(fields.first_block) * 512,
            in_use: fields.in_use(),
            marked_closed: fields.marked_closed(),
            flags: fields.flags,
            extension_sector: fields.extension_sector,
            is_ploop,
        };
        Ok((layout, is_doubtful))
    }

    /// The layout with all clusters that the header counts, if its table has them, and whether the size of the disk is in
    /// doubt for that.
    fn with_counted(mut self, fields: &Fields) -> (Layout, bool) {
        let counted = fields.entries;
        let clusters = self.size.bytes().div_ceil(self.cluster.bytes());
        // Old layouts may have tables that are too long.
        let is_doubtful = match self.is_ploop {
            true => clusters != u64::from(counted),
            false => clusters > u64::from(counted),
        };
        if self.is_ploop && begins_behind_table(fields, counted) {
            self.entries = self.entries.max(counted);
        }
        (self, is_doubtful)
    }

    /// The layout of an old version of Parallels, if this is one.
    pub(super) fn old(fields: &Fields) -> Option<Layout> {
        const MAX_CLUSTER: u32 = ClusterSize::MAX.sectors();
        let cluster = fields.cluster_sectors;
        if !(1..=MAX_CLUSTER).contains(&cluster) || fields.sectors == 0 {
            return None;
        }
        let clusters = fields.sectors.div_ceil(cluster.into());
        let clusters = u32::try_from(clusters).ok()?;
        let first = u64::from(fields.first_block);
        // Otherwise it is a layout of libploop's, in which something else is wrong.
        let is_old = ClusterSize::from_sectors(cluster.into()).is_err()
            || fields.version == FormatVersion::V1
                && (first == 0 || first % u64::from(cluster) != 0);
        if !is_old {
            return None;
        }
        let table_end = Header::LEN as u64 + 4 * u64::from(fields.entries);
        let data_start = match fields.version {
            // The beginning is not always said; then it is the first sector behind the table.
            FormatVersion::V1 if first == 0 => table_end.next_multiple_of(512),
            FormatVersion::V1 => first * 512,
            FormatVersion::V2 if first % u64::from(cluster) == 0 => first * 512,
            FormatVersion::V2 => return None,
        };
        if fields.entries == 0 || data_start < table_end {
            return None;
        }
        Some(Layout {
            version: fields.version,
            cluster: Size::from_sectors(cluster.into()),
            size: Size::from_sectors(fields.sectors),
            // Clusters behind the end of the table are not allocated.
            entries: clusters.min(fields.entries),
            data_start,
            in_use: fields.in_use(),
            marked_closed: fields.marked_closed(),
            flags: fields.flags,
            extension_sector: fields.extension_sector,
            is_ploop: false,
        })
    }

    /// Whether there is a format extension that was kept up with the data.
    pub(super) fn has_extension(&self) -> bool {
        self.extension_sector != 0 && self.marked_closed
    }

    /// The offset of the cluster to which an entry leads. It is below 2^58, so sums do not overflow.
    pub(super) fn cluster_offset(&self, entry: u32) -> u64 {
        let unit = match self.version {
            FormatVersion::V1 => 512,
            FormatVersion::V2 => self.cluster.bytes(),
        };
        u64::from(entry) * unit
    }

    /// The entry that leads to a slot of the file, in a layout of libploop.
    #[cfg(feature = "image-write")]
    pub(super) fn entry_of(&self, slot: u32) -> u32 {
        match self.version {
            FormatVersion::V1 => slot.wrapping_mul(self.cluster.sectors() as u32),
            FormatVersion::V2 => slot,
        }
    }

    /// Whether a cluster can begin at this offset, by the unit in which files are divided.
    pub(super) fn is_aligned(&self, offset: u64) -> bool {
        offset.abs_diff(self.data_start) % self.cluster.bytes() == 0
    }

    /// Why there can be no cluster at `offset` of the file, if so. `is_beyond` says whether an offset is behind its end.
    pub(super) fn misplaced(
        &self,
        offset: u64,
        is_beyond: impl FnOnce(u64) -> bool,
    ) -> Option<&'static str> {
        if !self.is_aligned(offset) {
            Some("is not the beginning of a cluster")
        } else if offset < self.data_start {
            Some("lies in the block table")
        } else if is_beyond(offset + self.cluster.bytes()) {
            Some("lies beyond the end of the file")
        } else {
            None
        }
    }
}

/// Where a table of so many entries ends in the file.
fn table_end(entries: u32) -> u64 {
    Header::LEN as u64 + 4 * u64::from(entries)
}

/// Whether the data begins with the first cluster behind a table of so many entries.
fn begins_behind_table(fields: &Fields, entries: u32) -> bool {
    let cluster = u64::from(fields.cluster_sectors) * 512;
    let (first, end) = (u64::from(fields.first_block) * 512, table_end(entries));
    first >= end && first % cluster == 0 && first - end < cluster
}
