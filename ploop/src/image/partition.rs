//! The partition table of a disk: GPT and MBR.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use uuid::Uuid;

use super::disk::Disk;
use crate::{Error, ErrorKind, Result, Size};

const OPERATION: &str = "read partition table";

/// The sector size of ploop devices, and the unit of both kinds of table.
const SECTOR: u64 = 512;
/// Tables usually have 128. The crate `gpt` reads all of them into memory.
const MAX_GPT_ENTRIES: u32 = 4096;
/// The longest chain of extended boot records that is read.
const MAX_LOGICAL: usize = 128;

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Partition {
    /// Its number, as in the name of its device: from 1 on, logical ones from 5.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size.
    pub size: Size,
    /// What the table says it holds.
    pub kind: PartitionKind,
}

/// What a partition table says about a partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PartitionKind {
    /// In a GUID partition table.
    Gpt {
        /// The type.
        kind: Uuid,
        /// The partition's own GUID.
        guid: Uuid,
        /// The label, often empty.
        name: String,
    },
    /// In a master boot record or an extended boot record.
    Mbr {
        /// The type.
        kind: u8,
        /// Whether it is marked to boot from.
        active: bool,
    },
}

impl Disk {
    /// The partitions of the disk, in the order of the table. Empty where there is no table, as in
    /// an image with a file system of its own.
    ///
    /// Reads GUID partition tables, their backup where the first is damaged, and master boot
    /// records with logical partitions.
    ///
    /// ```no_run
    /// use ploop::image::{Disk, PartitionKind};
    ///
    /// for partition in Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?.partitions()? {
    ///     let label = match &partition.kind {
    ///         PartitionKind::Gpt { name, .. } => name,
    ///         _ => "",
    ///     };
    ///     println!("{} {} {label}", partition.number, partition.size);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] where a table is damaged or leads out of the disk,
    /// [`ErrorKind::Unsupported`] for one with entries of unusual size, and those of
    /// [`Disk::read_at`].
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        // The reader stays within the disk, so reads are never short.
        let read = |buffer: &mut [u8], offset| self.read_at(buffer, offset).map(drop);
        Reader::new(self.size(), read).partitions()
    }
}

/// As [`Disk::partitions`], of a disk of which a function reads: it fills the buffer it gets from an
/// offset in bytes on, and is never asked to read behind `size`.
///
/// # Errors
///
/// As [`Disk::partitions`]; those of the function become [`ErrorKind::Io`] or what they stand for.
#[cfg(feature = "image-write")]
pub fn partitions_of(
    size: Size,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> Result<Vec<Partition>> {
    let read = |buffer: &mut [u8], offset| {
        read(buffer, offset).map_err(|error| {
            Error::io(OPERATION, "the disk cannot be read", error).with_offset(offset)
        })
    };
    Reader::new(size, read).partitions()
}

/// A disk with a position, as the crate `gpt` needs it.
struct Reader<F> {
    read: F,
    size: Size,
    position: u64,
}

impl<F: FnMut(&mut [u8], u64) -> Result<()>> Reader<F> {
    /// Reads from `offset` on: less than asked for only at the end of the disk.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size.bytes().saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if len > 0 {
            (self.read)(&mut buffer[..len], offset)?;
        }
        Ok(len)
    }
}

impl<F: FnMut(&mut [u8], u64) -> Result<()>> Read for Reader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.read_at(buffer, self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<F> Seek for Reader<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size.bytes().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl<F: FnMut(&mut [u8], u64) -> Result<()>> Reader<F> {
    fn new(size: Size, read: F) -> Reader<F> {
        Reader {
            read,
            size,
            position: 0,
        }
    }

    fn partitions(&mut self) -> Result<Vec<Partition>> {
        let mut start = [0; 2 * SECTOR as usize];
        let len = self.read_at(&mut start, 0)?;
        let (boot, header) = start[..len].split_at(len.min(SECTOR as usize));
        let record = BootRecord::parse(boot);
        let protective = record
            .as_ref()
            .is_some_and(|record| record.entries.iter().any(|entry| entry.kind == 0xee));
        if let Some(header) = gpt_header(header) {
            return self.gpt_partitions(&header);
        }
        // A disk that had a GUID table once may still have its backup. It counts where there is a protective record.
        if protective {
            let mut last = [0; SECTOR as usize];
            let at = (self.size.bytes() / SECTOR).saturating_sub(1) * SECTOR;
            let len = self.read_at(&mut last, at)?;
            return match gpt_header(&last[..len]) {
                Some(header) => self.gpt_partitions(&header),
                None => Err(corrupt(
                    "both headers of the GUID partition table are damaged",
                )),
            };
        }
        record.map_or(Ok(Vec::new()), |record| self.mbr_partitions(&record))
    }

    fn gpt_partitions(&mut self, header: &gpt::header::Header) -> Result<Vec<Partition>> {
        // `gpt` does not check either.
        if header.part_size != 128 || header.num_parts > MAX_GPT_ENTRIES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                format!(
                    "the table has {} entries of {} bytes",
                    header.num_parts, header.part_size
                ),
            ));
        }
        let sectors = LogicalBlockSize::Lb512;
        self.position = 0;
        let entries = gpt::partition::file_read_partitions(self, header, sectors)
            .map_err(|error| Error::io(OPERATION, "the GUID partition table is damaged", error))?;
        entries
            .into_iter()
            .filter(|(_, entry)| entry.part_type_guid.guid != Uuid::nil())
            .map(|(number, entry)| {
                let sectors = entry.last_lba.checked_sub(entry.first_lba);
                let sectors = sectors.and_then(|n| n.checked_add(1));
                let kind = PartitionKind::Gpt {
                    kind: entry.part_type_guid.guid,
                    guid: entry.part_guid,
                    name: entry.name,
                };
                self.partition(number, entry.first_lba, sectors, kind)
            })
            .collect()
    }

    fn mbr_partitions(&mut self, record: &BootRecord) -> Result<Vec<Partition>> {
        let mut partitions = Vec::new();
        let mut extended = None;
        for (number, entry) in (1..).zip(&record.entries) {
            if entry.is_extended() {
                extended.get_or_insert(u64::from(entry.first));
            } else if entry.is_used() {
                partitions.push(self.mbr_partition(number, entry, 0)?);
            }
        }
        let Some(extended) = extended else {
            return Ok(partitions);
        };
        // Each record has one partition, relative to itself, and the position of the next record, relative to the
        // first.
        let mut at = extended;
        for number in 5..5 + MAX_LOGICAL as u32 {
            let mut sector = [0; SECTOR as usize];
            let len = self.read_at(&mut sector, at.saturating_mul(SECTOR))?;
            let Some(record) = BootRecord::parse(&sector[..len]) else {
                break;
            };
            let [entry, next, ..] = &record.entries;
            if entry.is_used() {
                partitions.push(self.mbr_partition(number, entry, at)?);
            }
            let to = extended + u64::from(next.first);
            if !next.is_extended() || to <= at {
                break;
            }
            at = to;
        }
        Ok(partitions)
    }

    fn mbr_partition(&self, number: u32, entry: &BootEntry, base: u64) -> Result<Partition> {
        let kind = PartitionKind::Mbr {
            kind: entry.kind,
            active: entry.active,
        };
        let first = base + u64::from(entry.first);
        self.partition(number, first, Some(u64::from(entry.sectors)), kind)
    }

    /// A partition, if it lies within the disk. `sectors` is `None` where it ends before it begins.
    fn partition(
        &self,
        number: u32,
        first: u64,
        sectors: Option<u64>,
        kind: PartitionKind,
    ) -> Result<Partition> {
        sectors
            .and_then(|sectors| {
                let offset = first.checked_mul(SECTOR)?;
                let size = sectors.checked_mul(SECTOR)?;
                let inside = offset.checked_add(size)? <= self.size.bytes();
                inside.then_some(Partition {
                    number,
                    offset,
                    size: Size::from_bytes(size),
                    kind,
                })
            })
            .ok_or_else(|| corrupt(format!("partition {number} leads out of the disk")))
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

/// The GPT header in a sector, if there is one with the right checksum.
fn gpt_header(sector: &[u8]) -> Option<gpt::header::Header> {
    // `gpt` reads it from the second sector.
    let mut disk = vec![0; SECTOR as usize];
    disk.extend_from_slice(sector);
    let sectors = LogicalBlockSize::Lb512;
    gpt::header::read_header_from_arbitrary_device(&mut Cursor::new(disk), sectors).ok()
}

/// A master or extended boot record. Decoded here: the crates for it panic where sums of sector numbers overflow, and
/// this is untrusted input.
struct BootRecord {
    entries: [BootEntry; 4],
}

struct BootEntry {
    active: bool,
    kind: u8,
    first: u32,
    sectors: u32,
}

impl BootRecord {
    fn parse(sector: &[u8]) -> Option<BootRecord> {
        let table = sector.get(446..510)?;
        let signed = sector.get(510..512)? == [0x55, 0xaa];
        // The boot sector of a file system has the same signature, and code instead of the table.
        let plausible = table.chunks(16).all(|entry| entry[0] & 0x7f == 0);
        (signed && plausible).then(|| BootRecord {
            entries: [0, 16, 32, 48].map(|at| BootEntry::parse(&table[at..at + 16])),
        })
    }
}

impl BootEntry {
    fn parse(bytes: &[u8]) -> BootEntry {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        BootEntry {
            active: bytes[0] == 0x80,
            kind: bytes[4],
            first: u32_at(8),
            sectors: u32_at(12),
        }
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0 && !self.is_extended()
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}
