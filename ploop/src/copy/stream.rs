//! The stream of a copy, as `ploop_copy_send` of libploop 1.15 writes it and `ploop_copy_receive` reads it.
//!
//! It is a sequence of blocks. Each begins with 16 bytes in the byte order of the sender: a marker (`u32`), the length
//! of the data (`u32`) and the position in the file (`u64`). Then the data follows. Two lengths are special:
//!
//! * 4: the data is of no use. The receiver syncs the file, and answers with [`SYNCED`] or [`NOT_SYNCED`] if it has
//!   something to answer on.
//! * 0: the end.
//!
//! This file uses the standard library only: the fuzz target includes it.

use std::io::{self, Read};

/// The length of what precedes the data of a block.
pub(crate) const HEADER: usize = 16;

pub(super) const MARKER: u32 = 0x4cc0_ac3d;

/// The marker of the other kind of stream: `ploop copy` of libploop 7 and later, `ploop_copy_start`, has 24 bytes
/// before the data, waits for answers in the stream itself, and has checksums.
pub(super) const PACKET_MARKER: u32 = 0x4cc0_ac3e;

/// The length that asks for a sync.
pub(crate) const SYNC: usize = 4;

/// The answer to a sync that succeeded.
pub(crate) const SYNCED: &[u8; 8] = b"SUCCESS\n";
/// The answer to one that did not.
pub(crate) const NOT_SYNCED: &[u8; 8] = b"FAILURE\n";

/// The largest offset in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// What precedes the data of a block.
pub(crate) fn header(len: u32, position: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MARKER.to_ne_bytes());
    bytes[4..8].copy_from_slice(&len.to_ne_bytes());
    bytes[8..].copy_from_slice(&position.to_ne_bytes());
    bytes
}

/// A stream that is none of a copy of this kind, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherStream {
    /// The one of libploop 7.
    Packets,
    /// One of a sender with the other byte order.
    OtherByteOrder,
    Unknown,
}

impl OtherStream {
    /// `None` for a stream of this kind.
    pub(crate) fn of(marker: [u8; 4]) -> Option<OtherStream> {
        let other = |marker: u32| match marker {
            PACKET_MARKER => OtherStream::Packets,
            _ if marker.swap_bytes() == MARKER => OtherStream::OtherByteOrder,
            _ if marker.swap_bytes() == PACKET_MARKER => OtherStream::Packets,
            _ => OtherStream::Unknown,
        };
        let marker = u32::from_ne_bytes(marker);
        (marker != MARKER).then(|| other(marker))
    }
}

/// Where the data of a stream goes.
pub(crate) trait Target {
    type Error;

    fn write(&mut self, bytes: &[u8], position: u64) -> Result<(), Self::Error>;

    /// Brings to the disk what was written so far, and tells the sender.
    fn sync(&mut self) -> Result<(), Self::Error>;
}

/// Why a stream was not received.
#[derive(Debug)]
pub(crate) enum ReceiveError<E> {
    Read(io::Error),
    /// It ends before its end mark.
    Ended,
    /// It is of another kind from its first byte on.
    Other(OtherStream),
    /// A block, at this offset in the stream, has no marker, or a position that no file has.
    Corrupt(u64),
    Target(E),
}

/// Reads a stream up to its end mark. `buffer` is all the memory this takes, whatever lengths the stream names.
pub(crate) fn receive<T: Target>(
    input: &mut impl Read,
    buffer: &mut [u8],
    target: &mut T,
) -> Result<(), ReceiveError<T::Error>> {
    let mut offset = 0;
    loop {
        let mut header = [0; HEADER];
        read(input, &mut header)?;
        let [a, b, c, d, rest @ ..] = header;
        match OtherStream::of([a, b, c, d]) {
            None => {}
            Some(other) if offset == 0 => return Err(ReceiveError::Other(other)),
            Some(_) => return Err(ReceiveError::Corrupt(offset)),
        }
        let [a, b, c, d, position @ ..] = rest;
        let len = u32::from_ne_bytes([a, b, c, d]);
        let mut position = u64::from_ne_bytes(position);
        let end = position.checked_add(len.into());
        if end.is_none_or(|end| end > MAX_OFFSET) {
            return Err(ReceiveError::Corrupt(offset));
        }
        offset += HEADER as u64 + u64::from(len);
        if len == 0 {
            return Ok(());
        }
        if len as usize == SYNC {
            read(input, &mut [0; SYNC])?;
            target.sync().map_err(ReceiveError::Target)?;
            continue;
        }
        let mut left = len as usize;
        while left > 0 {
            let part = left.min(buffer.len());
            let part = &mut buffer[..part];
            read(input, part)?;
            target.write(part, position).map_err(ReceiveError::Target)?;
            position += part.len() as u64;
            left -= part.len();
        }
    }
}

fn read<E>(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), ReceiveError<E>> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReceiveError::Ended,
        _ => ReceiveError::Read(error),
    })
}
