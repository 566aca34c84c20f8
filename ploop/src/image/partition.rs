//! The partition table of a disk: GPT and MBR.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use uuid::Uuid;

use super::disk::Disk;
use crate::{Error, ErrorKind, Result, Size};

const OPERATION: &str = "read the partition table of";

/// The sector size of ploop devices, and that of master boot records.
const MBR_SECTOR: u64 = 512;
/// The sector sizes in which a GUID partition table is looked for.
const SECTORS: [u64; 2] = [MBR_SECTOR, 4096];
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

/// A partition table, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PartitionTable {
    /// What can be listed, in the order of the table. A partition that ends behind the end of the disk is listed up to
    /// there, as the kernel does it; one that begins behind it is not listed.
    pub partitions: Vec<Partition>,
    /// The unit in which the table counts, in bytes: 512, or 4096 as on disks with sectors of that size.
    pub sector_size: u32,
    /// What is wrong with the table, in words.
    pub faults: Vec<String>,
}

impl PartitionTable {
    /// The partitions, or the first fault where nothing could be listed.
    fn into_partitions(self) -> Result<Vec<Partition>> {
        match self.faults.into_iter().next() {
            Some(fault) if self.partitions.is_empty() => Err(corrupt(fault)),
            _ => Ok(self.partitions),
        }
    }
}

impl Disk {
    /// The partitions of the disk, in the order of the table. Empty where there is no table, as in
    /// an image with a file system of its own.
    ///
    /// Reads GUID partition tables, with sectors of 512 and of 4096 bytes, their backup where the first is damaged, and
    /// master boot records with logical partitions. What is wrong with a table of which a part can be listed is in
    /// [`partition_table`](Disk::partition_table).
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
    /// [`ErrorKind::Corrupt`] where there is a table and nothing of it can be listed, and those of
    /// [`Disk::read_at`].
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        self.partition_table()?.into_partitions()
    }

    /// The partition table of the disk, also a damaged one, and what is wrong with it.
    ///
    /// ```no_run
    /// use ploop::image::Disk;
    ///
    /// let table = Disk::open_image("/vz/private/101/root.hdd/root.hds")?.partition_table()?;
    /// println!("{} partitions", table.partitions.len());
    /// for fault in &table.faults {
    ///     println!("{fault}");
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Disk::read_at`]. A table that is damaged is no error.
    pub fn partition_table(&self) -> Result<PartitionTable> {
        // The reader stays within the disk, so reads are never short.
        let read = |buffer: &mut [u8], offset| self.read_at(buffer, offset).map(drop);
        Reader::new(self.size(), read).table()
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
    Reader::new(size, read).table()?.into_partitions()
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

    fn table(&mut self) -> Result<PartitionTable> {
        let mut table = Listing::new(self.size, MBR_SECTOR);
        let mut boot = [0; MBR_SECTOR as usize];
        let len = self.read_at(&mut boot, 0)?;
        let record = BootRecord::parse(&boot[..len]);
        let protective = record
            .as_ref()
            .is_some_and(|record| record.entries.iter().any(|entry| entry.kind == 0xee));
        for sector in SECTORS {
            // What lies there without a protective record need not be a header in sectors of 4096 bytes.
            if !protective && sector != MBR_SECTOR {
                continue;
            }
            if let Some(header) = self.gpt_header(sector, sector)? {
                table.sector = sector;
                self.gpt_or_backup(&header, &mut table)?;
                return Ok(table.finish());
            }
        }
        // A disk that had a GUID table once may still have its backup. It counts where there is a protective record.
        if protective {
            table.fault("the header of the GUID partition table is damaged");
            for sector in SECTORS {
                if let Some(header) = self.gpt_header(self.last_sector(sector), sector)? {
                    table.sector = sector;
                    self.gpt_partitions(&header, &mut table)?;
                    return Ok(table.finish());
                }
            }
            table.faults = vec!["both headers of the GUID partition table are damaged".to_owned()];
        } else if let Some(record) = record {
            self.mbr_partitions(&record, &mut table)?;
        }
        Ok(table.finish())
    }

    /// The offset of the last whole sector of the disk.
    fn last_sector(&self, sector: u64) -> u64 {
        (self.size.bytes() / sector).saturating_sub(1) * sector
    }

    /// The GPT header in the sector at `offset`, if there is one with the right checksum.
    fn gpt_header(&mut self, offset: u64, sector: u64) -> Result<Option<gpt::header::Header>> {
        // `gpt` reads it from the second sector.
        let mut disk = vec![0; 2 * sector as usize];
        let (_, second) = disk.split_at_mut(sector as usize);
        if self.read_at(second, offset)? < second.len() {
            return Ok(None);
        }
        let block = block_size(sector);
        Ok(gpt::header::read_header_from_arbitrary_device(&mut Cursor::new(disk), block).ok())
    }

    /// The partitions of a header, or of the backup where the table to which the header leads is damaged.
    fn gpt_or_backup(&mut self, header: &gpt::header::Header, table: &mut Listing) -> Result<()> {
        if self.gpt_partitions(header, table)? {
            return Ok(());
        }
        let last = self.last_sector(table.sector);
        let backup = header.backup_lba.checked_mul(table.sector);
        for at in [backup.unwrap_or(last), last] {
            if let Some(backup) = self.gpt_header(at, table.sector)? {
                if self.gpt_partitions(&backup, table)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Lists the partitions of a header; `false` where the table to which it leads is damaged.
    fn gpt_partitions(
        &mut self,
        header: &gpt::header::Header,
        table: &mut Listing,
    ) -> Result<bool> {
        // `gpt` does not check either.
        if header.part_size != 128 || header.num_parts > MAX_GPT_ENTRIES {
            table.fault(format!(
                "the GUID partition table has {} entries of {} bytes, which are not read",
                header.num_parts, header.part_size
            ));
            return Ok(false);
        }
        self.position = 0;
        let block = block_size(table.sector);
        let entries = match gpt::partition::file_read_partitions(self, header, block) {
            Ok(entries) => entries,
            Err(error) => {
                let damaged = "the GUID partition table is damaged";
                // What the reader failed with, and not what `gpt` has found.
                return match error.downcast::<Error>() {
                    Ok(error) => Err(error),
                    Err(error) => {
                        table.fault(format!("{damaged}: {error}"));
                        Ok(false)
                    }
                };
            }
        };
        for (number, entry) in entries {
            if entry.part_type_guid.guid == Uuid::nil() {
                continue;
            }
            let sectors = entry.last_lba.checked_sub(entry.first_lba);
            let sectors = sectors.and_then(|n| n.checked_add(1));
            let kind = PartitionKind::Gpt {
                kind: entry.part_type_guid.guid,
                guid: entry.part_guid,
                name: entry.name,
            };
            table.add(number, entry.first_lba, sectors, kind);
        }
        Ok(true)
    }

    fn mbr_partitions(&mut self, record: &BootRecord, table: &mut Listing) -> Result<()> {
        let mut extended = None;
        for (number, entry) in (1..).zip(&record.entries) {
            if entry.is_extended() {
                extended.get_or_insert(u64::from(entry.first));
            } else if entry.is_used() {
                table.add_mbr(number, entry, 0);
            }
        }
        let Some(extended) = extended else {
            return Ok(());
        };
        // Each record has one partition, relative to itself, and the position of the next record, relative to the
        // first.
        let mut at = extended;
        for number in 5..5 + MAX_LOGICAL as u32 {
            let mut sector = [0; MBR_SECTOR as usize];
            let len = self.read_at(&mut sector, at.saturating_mul(MBR_SECTOR))?;
            let Some(record) = BootRecord::parse(&sector[..len]) else {
                table.fault(format!("there is no extended boot record at sector {at}"));
                break;
            };
            let [entry, next, ..] = &record.entries;
            if entry.is_used() {
                table.add_mbr(number, entry, at);
            }
            let to = extended + u64::from(next.first);
            if !next.is_extended() {
                break;
            }
            if to <= at {
                table.fault("the extended boot records lead back");
                break;
            }
            at = to;
        }
        Ok(())
    }
}

/// What is listed of a table.
struct Listing {
    size: Size,
    sector: u64,
    partitions: Vec<Partition>,
    faults: Vec<String>,
}

impl Listing {
    fn new(size: Size, sector: u64) -> Listing {
        Listing {
            size,
            sector,
            partitions: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    fn add_mbr(&mut self, number: u32, entry: &BootEntry, base: u64) {
        let kind = PartitionKind::Mbr {
            kind: entry.kind,
            active: entry.active,
        };
        let first = base + u64::from(entry.first);
        self.add(number, first, Some(u64::from(entry.sectors)), kind);
    }

    /// Lists what lies on the disk of a partition. `sectors` is `None` where it ends before it begins.
    fn add(&mut self, number: u32, first: u64, sectors: Option<u64>, kind: PartitionKind) {
        let disk = self.size.bytes();
        let offset = first.saturating_mul(self.sector);
        let Some(sectors) = sectors else {
            return self.fault(format!("partition {number} ends before it begins"));
        };
        if offset >= disk {
            return self.fault(format!(
                "partition {number} begins at {}, and the disk has {}",
                Size::from_bytes(offset),
                self.size
            ));
        }
        let end = offset.saturating_add(sectors.saturating_mul(self.sector));
        if end > disk {
            self.fault(format!(
                "partition {number} ends at {}, and the disk has {}",
                Size::from_bytes(end),
                self.size
            ));
        }
        self.partitions.push(Partition {
            number,
            offset,
            size: Size::from_bytes(end.min(disk) - offset),
            kind,
        });
    }

    fn finish(self) -> PartitionTable {
        PartitionTable {
            partitions: self.partitions,
            sector_size: self.sector as u32,
            faults: self.faults,
        }
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

fn block_size(sector: u64) -> LogicalBlockSize {
    match sector {
        MBR_SECTOR => LogicalBlockSize::Lb512,
        _ => LogicalBlockSize::Lb4096,
    }
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
