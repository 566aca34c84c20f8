//! The format of an undo file: what a repair has overwritten, cut off and removed.
//!
//! The fuzz target `undo` has this file as a module of its own, so it uses nothing else of the crate.
//!
//! All numbers are little-endian. The file begins with [`MAGIC`]. Records follow, each of
//!
//! | bytes | |
//! |---|---|
//! | 1 | the kind |
//! | 3 | 0 |
//! | 4 | the length of the payload |
//! | … | the payload |
//! | 4 | CRC-32 (ISO-HDLC) of all that |
//!
//! | kind | payload |
//! |---|---|
//! | 1, descriptor | length of the old text (4), old text, new text. At most one, the first record |
//! | 2, file | flags (4; 1: it was removed), inode (8), old length (8), new length (8), the greatest length in between (8), mode (4), owner (4), group (4), end of header and table (8), CRC-64 (XZ) of these as they were (8), path. What follows is of this file |
//! | 3, change | offset (8), old bytes, as many new bytes: a change of header or table. In ascending order |
//! | 4, content | offset (8), bytes that the file had there. What is not listed behind the new length was zero |
//! | 5, copy | offset (8), length (8), CRC-64 of it (8), offset of the table entry (8), the entry (4): a cluster that is a copy as soon as the entry leads to it |
//! | 6, end | how many records there are before this one (4) |
//!
//! A file without its end was not complete when it was written, and is refused.

use std::io::{self, Read, Write};

use crc::{CRC_32_ISO_HDLC, CRC_64_XZ, Crc, Table};

pub(super) const MAGIC: &[u8; 16] = b"ploopundo\r\n\x1a\n\0\0\x01";

/// A descriptor has at most 16 MiB, and there are two in a record.
const MAX_PAYLOAD: u32 = 40 << 20;
/// How much content is in one record.
pub(super) const CONTENT: usize = 1 << 20;

static RECORD: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);
/// The checksum of contents.
pub(super) static CHECKSUM: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

mod kind {
    pub(super) const DESCRIPTOR: u8 = 1;
    pub(super) const FILE: u8 = 2;
    pub(super) const CHANGE: u8 = 3;
    pub(super) const CONTENT: u8 = 4;
    pub(super) const COPY: u8 = 5;
    pub(super) const END: u8 = 6;
}

/// What is in an undo file, but for the contents of files, of which it says where they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undo {
    /// The text before and after.
    pub(super) descriptor: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) files: Vec<UndoFile>,
}

/// A file that was changed or removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UndoFile {
    pub(super) was_removed: bool,
    pub(super) inode: u64,
    pub(super) old_len: u64,
    pub(super) new_len: u64,
    pub(super) longest: u64,
    pub(super) mode: u32,
    pub(super) owner: u32,
    pub(super) group: u32,
    /// Where header and table end.
    pub(super) table_end: u64,
    /// The checksum of header and table.
    pub(super) table_checksum: u64,
    pub(super) path: Vec<u8>,
    pub(super) changes: Vec<Change>,
    pub(super) contents: Vec<Content>,
    pub(super) copies: Vec<CopiedCluster>,
}

/// Bytes of a header or a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) offset: u64,
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
}

/// Bytes that a file had, which are at `position` of the undo file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) position: u64,
}

/// A cluster that was copied to `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopiedCluster {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) checksum: u64,
    pub(super) entry_offset: u64,
    pub(super) entry: [u8; 4],
}

/// Writes an undo file.
pub(super) struct Writer<W> {
    out: W,
    records: u32,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(mut out: W) -> io::Result<Writer<W>> {
        out.write_all(MAGIC)?;
        Ok(Writer { out, records: 0 })
    }

    fn record(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(len)
            .ok()
            .filter(|len| *len <= MAX_PAYLOAD)
            .ok_or_else(|| io::Error::other("a record of the undo file would be too long"))?;
        let mut head = [kind, 0, 0, 0, 0, 0, 0, 0];
        head[4..].copy_from_slice(&len.to_le_bytes());
        let mut digest = RECORD.digest();
        for part in [&head[..]].iter().chain(parts) {
            digest.update(part);
            self.out.write_all(part)?;
        }
        self.out.write_all(&digest.finalize().to_le_bytes())?;
        self.records = self.records.saturating_add(1);
        Ok(())
    }

    pub(super) fn descriptor(&mut self, old: &[u8], new: &[u8]) -> io::Result<()> {
        let len = u32::try_from(old.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.record(kind::DESCRIPTOR, &[&len, old, new])
    }

    /// The file to which all belongs that is written next.
    pub(super) fn file(&mut self, file: &UndoFile) -> io::Result<()> {
        let mut bytes = Vec::new();
        bytes.extend(u32::from(file.was_removed).to_le_bytes());
        for number in [file.inode, file.old_len, file.new_len, file.longest] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [file.mode, file.owner, file.group] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [file.table_end, file.table_checksum] {
            bytes.extend(number.to_le_bytes());
        }
        self.record(kind::FILE, &[&bytes, &file.path])
    }

    pub(super) fn change(&mut self, offset: u64, old: &[u8], new: &[u8]) -> io::Result<()> {
        self.record(kind::CHANGE, &[&offset.to_le_bytes(), old, new])
    }

    pub(super) fn content(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.record(kind::CONTENT, &[&offset.to_le_bytes(), bytes])
    }

    pub(super) fn copy(&mut self, copy: &CopiedCluster) -> io::Result<()> {
        let numbers = [copy.offset, copy.len, copy.checksum, copy.entry_offset];
        let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.record(kind::COPY, &[&bytes, &copy.entry])
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        let records = self.records.to_le_bytes();
        self.record(kind::END, &[&records])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Why an undo file cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// What is wrong with the record at this offset.
    Wrong(u64, &'static str),
}

const CUT: &str = "the file ends in the middle; the repair had not begun when it was written";

/// Reads numbers from a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn short(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// Reads an undo file to its end. Memory grows with what is in the file, never with what it claims.
pub(super) fn read(mut input: impl Read) -> Result<Undo, ReadError> {
    let mut magic = [0; MAGIC.len()];
    read_all(&mut input, &mut magic, 0)?;
    if magic != *MAGIC {
        return Err(ReadError::Wrong(0, "this is no undo file"));
    }
    let mut undo = Undo::default();
    let mut at = magic.len() as u64;
    let mut payload = Vec::new();
    for records in 0u32.. {
        let mut head = [0; 8];
        read_all(&mut input, &mut head, at)?;
        let wrong = |what| ReadError::Wrong(at, what);
        let (kind, len) = (
            head[0],
            u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
        );
        if head[1..4] != [0; 3] || len > MAX_PAYLOAD {
            return Err(wrong("this is no record"));
        }
        payload.clear();
        let read = input
            .by_ref()
            .take(len.into())
            .read_to_end(&mut payload)
            .map_err(ReadError::Io)?;
        if read != len as usize {
            return Err(wrong(CUT));
        }
        let mut checksum = [0; 4];
        read_all(&mut input, &mut checksum, at)?;
        let mut digest = RECORD.digest();
        digest.update(&head);
        digest.update(&payload);
        if digest.finalize().to_le_bytes() != checksum {
            return Err(wrong("the checksum is wrong"));
        }
        let mut fields = Fields(&payload);
        if kind == kind::END {
            let mut rest = [0];
            let is_end = input.read(&mut rest).map_err(ReadError::Io)? == 0;
            if fields.short() != Some(records) || !fields.0.is_empty() || !is_end {
                return Err(wrong("records are missing, or something follows the end"));
            }
            return Ok(undo);
        }
        let is_first = records == 0;
        undo.take(kind, &mut fields, at + 8, is_first)
            .ok_or_else(|| wrong("the record contradicts itself or the others"))?;
        at += 12 + u64::from(len);
    }
    Err(ReadError::Wrong(at, "there are too many records"))
}

fn read_all(input: &mut impl Read, bytes: &mut [u8], at: u64) -> Result<(), ReadError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Wrong(at, CUT),
        _ => ReadError::Io(error),
    })
}

/// No file is longer.
const MAX_LEN: u64 = i64::MAX as u64;

impl Undo {
    /// Takes a record, whose payload is at `position`. `None` where it cannot be true.
    fn take(
        &mut self,
        kind: u8,
        fields: &mut Fields<'_>,
        position: u64,
        is_first: bool,
    ) -> Option<()> {
        match kind {
            kind::DESCRIPTOR => {
                let old = fields.short()? as usize;
                let old = fields.bytes(old)?.to_vec();
                self.descriptor = Some((old, fields.0.to_vec()));
                is_first.then_some(())
            }
            kind::FILE => {
                let flags = fields.short()?;
                let file = UndoFile {
                    was_removed: flags == 1,
                    inode: fields.number()?,
                    old_len: fields.number()?,
                    new_len: fields.number()?,
                    longest: fields.number()?,
                    mode: fields.short()?,
                    owner: fields.short()?,
                    group: fields.short()?,
                    table_end: fields.number()?,
                    table_checksum: fields.number()?,
                    path: fields.0.to_vec(),
                    ..UndoFile::default()
                };
                let is_possible = flags <= 1
                    && file.longest <= MAX_LEN
                    && file.old_len.max(file.new_len) <= file.longest
                    && file.table_end <= file.old_len
                    && !file.path.is_empty()
                    && !file.path.contains(&0);
                self.files.push(file);
                is_possible.then_some(())
            }
            kind::CHANGE => {
                let file = self.files.last_mut()?;
                let offset = fields.number()?;
                let (old, new) = fields.0.split_at(fields.0.len() / 2);
                let start = file
                    .changes
                    .last()
                    .map_or(0, |last| last.offset + last.old.len() as u64);
                let end = offset.checked_add(old.len() as u64)?;
                let is_possible = old.len() == new.len()
                    && !old.is_empty()
                    && offset >= start
                    && end <= file.table_end;
                file.changes.push(Change {
                    offset,
                    old: old.to_vec(),
                    new: new.to_vec(),
                });
                is_possible.then_some(())
            }
            kind::CONTENT => {
                let file = self.files.last_mut()?;
                let offset = fields.number()?;
                let len = fields.0.len() as u64;
                let is_possible = offset.checked_add(len)? <= file.old_len;
                file.contents.push(Content {
                    offset,
                    len,
                    position: position + 8,
                });
                is_possible.then_some(())
            }
            kind::COPY => {
                let file = self.files.last_mut()?;
                let copy = CopiedCluster {
                    offset: fields.number()?,
                    len: fields.number()?,
                    checksum: fields.number()?,
                    entry_offset: fields.number()?,
                    entry: fields.take()?,
                };
                let is_possible = fields.0.is_empty()
                    && copy.offset.checked_add(copy.len)? <= file.longest
                    && copy.entry_offset.checked_add(4)? <= file.table_end;
                file.copies.push(copy);
                is_possible.then_some(())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.descriptor(b"old", b"newer").unwrap();
        let file = UndoFile {
            old_len: 1000,
            new_len: 2000,
            longest: 2000,
            table_end: 100,
            path: b"/a/b".to_vec(),
            ..UndoFile::default()
        };
        writer.file(&file).unwrap();
        writer.change(0, b"abcd", b"efgh").unwrap();
        writer.change(64, b"1234", b"5678").unwrap();
        writer.content(900, b"tail").unwrap();
        let copy = CopiedCluster {
            offset: 1000,
            len: 1000,
            checksum: 7,
            entry_offset: 64,
            entry: *b"5678",
        };
        writer.copy(&copy).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let bytes = written();
        let undo = read(&bytes[..]).unwrap();
        assert_eq!(undo.descriptor, Some((b"old".to_vec(), b"newer".to_vec())));
        let [file] = &undo.files[..] else {
            panic!("{undo:?}");
        };
        assert_eq!((file.old_len, file.new_len), (1000, 2000));
        assert_eq!((file.changes.len(), file.copies.len()), (2, 1));
        let content = file.contents[0];
        let at = content.position as usize;
        assert_eq!(&bytes[at..at + content.len as usize], b"tail");
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let bytes = written();
        for cut in 0..bytes.len() {
            read(&bytes[..cut]).unwrap_err();
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            read(&changed[..]).unwrap_err();
        }
        read(&[&bytes[..], b"x"].concat()[..]).unwrap_err();
    }
}
