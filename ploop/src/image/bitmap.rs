//! What a delta says of the disk besides its data: which clusters it has ([`UsedBitmap`]), and, where changes are
//! tracked, what was written since a moment ([`TrackingBitmap`]).

use std::fs::File;
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::delta::Delta;
use super::extension::{self, DirtyBitmap};
use super::extents::Extent;
use super::file;
use super::header::Header;
use super::holes;
use super::layout::Layout;
use super::table::PAGE;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Guid, Result, Size};

/// The clusters that a delta file has itself, whatever the deltas below it have: see [`used_bitmap`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct UsedBitmap {
    /// The size of the disk.
    pub size: Size,
    /// The size of a cluster. Extents begin and end with one, or with the disk. In a layout of old Parallels versions, it
    /// may be smaller than this.
    pub cluster: ClusterSize,
    extents: Vec<Extent>,
}

impl UsedBitmap {
    /// The parts of the disk for which the delta has clusters, in order and as long as they can be.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().copied()
    }

    /// How much that is.
    #[must_use]
    pub fn used(&self) -> Size {
        Size::from_bytes(self.extents.iter().map(|extent| extent.len).sum())
    }
}

/// Which clusters a delta file has itself: what changed on the disk between the snapshot below it and its own.
///
/// Also of a delta in use; of one that a device writes to, as its table is on the disk at this moment.
///
/// ```no_run
/// let used = ploop::image::used_bitmap("/vz/private/101/root.hdd/root.hds")?;
/// for extent in used.extents() {
///     println!("{} bytes at {}", extent.len, extent.offset);
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// As [`Header::read`] and [`Disk::open_image`](super::Disk::open_image). A raw base has no table and is no delta.
pub fn used_bitmap(delta: impl AsRef<Path>) -> Result<UsedBitmap> {
    const OPERATION: &str = "read the used bitmap of";
    let path = delta.as_ref();
    let (file, len) = file::open(OPERATION, path).map_err(|error| error.with_path(path))?;
    let delta = Delta::from_file(path, file, len, true)?;
    let layout = delta.layout();
    let (size, cluster) = (layout.size.bytes(), layout.cluster.bytes());
    let entries = layout.entries;
    let mut extents: Vec<Extent> = Vec::new();
    for number in 0..entries.div_ceil(PAGE) {
        let page = delta.page(number)?;
        let first = number * PAGE;
        for index in 0..PAGE.min(entries - first) {
            if delta.resolve(first + index, page.entry(index))?.is_none() {
                continue;
            }
            let offset = u64::from(first + index) * cluster;
            push(&mut extents, offset, cluster.min(size - offset));
        }
    }
    Ok(UsedBitmap {
        size: layout.size,
        cluster: ClusterSize::at_least(layout.cluster),
        extents,
    })
}

/// Appends to the last extent, or begins one.
fn push(extents: &mut Vec<Extent>, offset: u64, len: u64) {
    match extents.last_mut() {
        Some(last) if last.offset + last.len == offset => last.len += len,
        _ => extents.push(Extent { offset, len }),
    }
}

/// What was written to a disk while its changes were tracked (changed-block tracking), as a delta keeps it: see
/// [`tracking_bitmaps`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackingBitmap {
    /// The name under which tracking began: changes since then are in the bitmap.
    pub id: Guid,
    /// The size of the disk.
    pub size: Size,
    /// What one bit stands for, in bytes.
    pub granularity: u64,
    parts: Vec<Part>,
    /// The bits of one part.
    bits_per_part: u64,
}

/// The bits that are stored in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Clean,
    Dirty,
    Bits(Box<[u8]>),
}

impl TrackingBitmap {
    /// The parts of the disk that were written to, in order and as long as they can be.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut at = 0;
        iter::from_fn(move || {
            let first = self.find(at, true)?;
            at = self.find(first, false).unwrap_or_else(|| self.bits());
            let offset = first * self.granularity;
            // The last bit may stand for less.
            let end = (at * self.granularity).min(self.size.bytes());
            Some(Extent {
                offset,
                len: end - offset,
            })
        })
    }

    /// How much that is.
    #[must_use]
    pub fn changed(&self) -> Size {
        Size::from_bytes(self.extents().map(|extent| extent.len).sum())
    }

    fn bits(&self) -> u64 {
        self.size.bytes().div_ceil(self.granularity)
    }

    /// The first bit from `at` on that is set, or is not.
    fn find(&self, mut at: u64, set: bool) -> Option<u64> {
        let end = self.bits();
        while at < end {
            let part_end = (at / self.bits_per_part + 1) * self.bits_per_part;
            let part = usize::try_from(at / self.bits_per_part).ok();
            match part.and_then(|part| self.parts.get(part)) {
                Some(Part::Bits(bytes)) => {
                    let start = at / self.bits_per_part * self.bits_per_part;
                    if let Some(bit) = find_bit(bytes, at - start, set) {
                        return Some(start + bit).filter(|found| *found < end);
                    }
                }
                Some(Part::Dirty) if set => return Some(at),
                Some(Part::Clean) | None if !set => return Some(at),
                _ => {}
            }
            at = part_end;
        }
        None
    }
}

/// The first bit from `at` on that is set, or is not: the lowest bit of a byte is its first.
fn find_bit(bytes: &[u8], at: u64, set: bool) -> Option<u64> {
    let first = usize::try_from(at / 8).ok()?;
    let mut skip = (at % 8) as u32;
    for (index, byte) in bytes.iter().enumerate().skip(first) {
        let wanted = if set { *byte } else { !*byte };
        let wanted = wanted >> skip << skip;
        skip = 0;
        if wanted != 0 {
            return Some(8 * index as u64 + u64::from(wanted.trailing_zeros()));
        }
    }
    None
}

/// The bitmaps that a delta keeps of what was written to the disk. Empty where changes are not tracked.
///
/// libploop 7 and the driver track changes from a snapshot with a name for them on
/// (`ploop_snapshot_param::cbt_uuid`), and keep the bitmap in the delta (`ploop_get_tracking_bitmap_from_image`) when
/// the next such snapshot is made, or when the image is unmounted; while it is mounted, the driver has it. Backup
/// programs of Parallels Desktop keep theirs in the same form.
///
/// A delta that was written to since its bitmaps were stored, without their being kept up, has none.
///
/// ```no_run
/// for bitmap in ploop::image::tracking_bitmaps("/vz/private/101/root.hdd/root.hds")? {
///     println!("since {}: {}", bitmap.id, bitmap.changed());
///     for extent in bitmap.extents() {
///         println!("{} bytes at {}", extent.len, extent.offset);
///     }
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// As [`Header::read`]; [`Busy`](ErrorKind::Busy) for a delta that is marked as in use, whose bitmap the driver has, or
/// a crash has lost; [`Corrupt`](ErrorKind::Corrupt) for bitmaps that are damaged.
pub fn tracking_bitmaps(delta: impl AsRef<Path>) -> Result<Vec<TrackingBitmap>> {
    let path = delta.as_ref();
    read_tracking_bitmaps(path).map_err(|error| error.with_path(path))
}

const OPERATION: &str = "read the tracking bitmap of";

fn read_tracking_bitmaps(path: &Path) -> Result<Vec<TrackingBitmap>> {
    let (file, len) = file::open(OPERATION, path)?;
    let header = Header::read_from(&file, len).map_err(|error| error.during(OPERATION))?;
    if header.extension_sector == 0 {
        return Ok(Vec::new());
    }
    if header.in_use {
        return Err(Error::new(
            ErrorKind::Busy,
            OPERATION,
            "the image is marked as in use: the driver has the bitmap of what was written since the last snapshot, or its host went down and lost it",
        )
        .with_offset(44));
    }
    if !header.has_extension() {
        return Ok(Vec::new());
    }
    extension::dirty_bitmaps(&file, &Layout::from(&header), len)
        .map_err(|error| error.during(OPERATION))?
        .iter()
        .map(|bitmap| read(&file, &header, bitmap))
        .collect()
}

fn read(file: &File, header: &Header, bitmap: &DirtyBitmap) -> Result<TrackingBitmap> {
    let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, OPERATION, what));
    let sectors = match header.version {
        FormatVersion::V1 => bitmap.sectors & u64::from(u32::MAX),
        FormatVersion::V2 => bitmap.sectors,
    };
    if sectors != header.size.sectors() {
        return corrupt(format!(
            "the bitmap is of a disk of {} sectors, and this one has {}",
            bitmap.sectors,
            header.size.sectors()
        ));
    }
    if bitmap.granularity == 0 {
        return corrupt("a bit of the bitmap stands for nothing".to_owned());
    }
    let granularity = u64::from(bitmap.granularity) * 512;
    let bits_per_part = header.cluster.bytes() * 8;
    let bits = header.size.bytes().div_ceil(granularity);
    if bitmap.table.len() as u64 > bits.div_ceil(bits_per_part) {
        return corrupt("the bitmap has more parts than the disk".to_owned());
    }
    // Otherwise a small file could take any amount of memory.
    let mut places: Vec<u64> = bitmap.table.iter().copied().filter(|it| *it > 1).collect();
    places.sort_unstable();
    if places.windows(2).any(|pair| pair[0] == pair[1]) {
        return corrupt("two parts of the bitmap are one cluster".to_owned());
    }
    let part = |(index, place): (u64, &u64)| match place {
        0 => Ok(Part::Clean),
        1 => Ok(Part::Dirty),
        sector => {
            let bits = (bits - index * bits_per_part).min(bits_per_part);
            let (offset, len) = (sector * 512, bits.div_ceil(8));
            if holes::is_hole(file, offset, len) {
                return Ok(Part::Clean);
            }
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset).map_err(|error| {
                Error::io(OPERATION, "the file cannot be read", error).with_offset(offset)
            })?;
            Ok(Part::Bits(bytes.into()))
        }
    };
    Ok(TrackingBitmap {
        id: bitmap.id,
        size: header.size,
        granularity,
        parts: (0..).zip(&bitmap.table).map(part).collect::<Result<_>>()?,
        bits_per_part,
    })
}
