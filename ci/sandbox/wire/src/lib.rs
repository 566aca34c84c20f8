//! The protocol between the preload library and the daemon: one [`Request`] and one [`Reply`] a connection, over a Unix
//! stream socket. File descriptors are sent with the first byte of a request.

use std::io::{self, Read, Write};

/// The environment variable with the path of the daemon's socket. Where it is not set, the preload library does
/// nothing.
pub const SOCKET: &str = "PLOOP_SANDBOX_SOCKET";

/// The environment variable with the directory that takes the place of `/proc/vz`.
pub const PROC_VZ: &str = "PLOOP_SANDBOX_PROC_VZ";

/// The file in the directory of the socket in which the daemon lists the files that are attached to devices. Every
/// program maps it; [`attached`] is its layout.
pub const ATTACHED: &str = "attached";

/// The layout of [`ATTACHED`]: 64-bit numbers in native byte order. The head has the number of slots that were ever
/// used, and 0. Then come the slots, a device and an inode each. A slot whose inode is 0 is free. The device is written
/// before the inode.
pub mod attached {
    /// How many slots there are.
    pub const SLOTS: usize = 4096;
    /// Bytes of a slot, and of the head.
    pub const SLOT_LEN: usize = 16;
    /// Bytes of the file.
    pub const LEN: usize = (SLOTS + 1) * SLOT_LEN;
}

/// The major number of ploop's block devices.
pub const MAJOR: u32 = 182;

/// The longest message. The list of extents of a disk of 16 TiB fits.
const MAX_LEN: u32 = 256 << 20;

/// The node of a device on which a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// `/dev/ploopN`.
    Whole(u32),
    /// `/dev/ploopNp1`.
    Partition(u32),
    /// None: the request is not about one device.
    None,
}

/// `BLKRRPART`, the block layer's ioctl that reads the partition table again.
pub const BLKRRPART: u32 = 0x125f;

/// `PLOOPCTLTYPE`, the type of the driver's ioctls.
pub const TYPE: u32 = b'P' as u32;

/// The type of the block layer's ioctls.
pub const BLOCK_TYPE: u32 = 0x12;

/// The numbers of the block layer's ioctls for changed block tracking, `BLKCBT*`, within [`BLOCK_TYPE`].
#[allow(missing_docs)]
pub mod cbt {
    pub const START: u32 = 200;
    pub const STOP: u32 = 201;
    pub const GET: u32 = 202;
    pub const SET: u32 = 203;
    pub const CLR: u32 = 204;
    /// Bytes of `struct blk_user_cbt_info`.
    pub const INFO: usize = 56;
    /// Bytes of `struct blk_user_cbt_extent`.
    pub const EXTENT: usize = 24;
}

/// The numbers of the driver's ioctls, `PLOOP_IOC_*`, within their type.
#[allow(missing_docs)]
pub mod number {
    pub const ADD_DELTA: u32 = 0;
    pub const CLEAR: u32 = 1;
    pub const STOP: u32 = 2;
    pub const START: u32 = 3;
    pub const SNAPSHOT: u32 = 4;
    pub const DEL_DELTA: u32 = 5;
    pub const TRACK_INIT: u32 = 6;
    pub const TRACK_STOP: u32 = 7;
    pub const TRACK_ABORT: u32 = 8;
    pub const TRACK_SETPOS: u32 = 9;
    pub const TRACK_READ: u32 = 10;
    pub const SYNC: u32 = 11;
    pub const MERGE: u32 = 12;
    pub const REPLACE_DELTA: u32 = 13;
    pub const TRUNCATE: u32 = 14;
    pub const UPDATE_INDEX: u32 = 16;
    pub const GROW: u32 = 17;
    pub const FBGET: u32 = 18;
    pub const BALLOON: u32 = 19;
    pub const FREEBLKS: u32 = 20;
    pub const RELOCBLKS: u32 = 21;
    pub const GETDEVICE: u32 = 22;
    pub const DISCARD_INIT: u32 = 23;
    pub const DISCARD_FINI: u32 = 24;
    pub const DISCARD_WAIT: u32 = 25;
    pub const FBDROP: u32 = 26;
    pub const FBFILTER: u32 = 27;
    pub const MAX_DELTA_SIZE: u32 = 28;
    // The driver of Virtuozzo 7 has those from here on.
    pub const PUSH_BACKUP_INIT: u32 = 29;
    pub const PUSH_BACKUP_IO: u32 = 30;
    pub const PUSH_BACKUP_STOP: u32 = 31;
    pub const FREEZE: u32 = 32;
    pub const THAW: u32 = 33;
    pub const DUMP_CACHED_BAT: u32 = 34;
    /// The greatest.
    pub const LAST: u32 = DUMP_CACHED_BAT;
}

/// Requests that are no ioctls.
pub mod call {
    /// Asks for the real devices behind ploop's nodes: [`Alias`](super::Alias).
    pub const ALIASES: u32 = 0xf000_0001;
    /// The node was mounted, or remounted, with `balloon_ino=`. The payload is the number of the inode as text; 0 for a
    /// mount without a balloon.
    pub const BALLOON_INODE: u32 = 0xf000_0002;
    /// Enlarges the file system that is mounted from the node, for a program that lacks CAP_SYS_RESOURCE. The payload
    /// is the new number of blocks (`u64`), the descriptor the mount point.
    pub const GROW_FILE_SYSTEM: u32 = 0xf000_0003;
    /// A program has opened the whole device.
    pub const OPENED: u32 = 0xf000_0005;
    /// A program has loaded libploop. The argument is the number in its soname.
    pub const LIBPLOOP: u32 = 0xf000_0006;
    /// Asks whether the daemon answers. The result is the age of its oldest unanswered data request, in seconds.
    pub const PING: u32 = 0xf000_0004;
}

/// A request: an ioctl with the bytes behind its argument, or one of [`call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The number of the ioctl, or one of [`call`].
    pub call: u32,
    /// The node on which it is made.
    pub node: Node,
    /// The argument itself, where it is a number.
    pub argument: u64,
    /// The bytes that the argument points to.
    pub payload: Vec<u8>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The result of the call: 0 or more, or a negative `errno`.
    pub result: i32,
    /// The bytes to write to where the argument points.
    pub payload: Vec<u8>,
}

/// The real devices behind the nodes of a device; major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// N of ploopN.
    pub device: u32,
    /// The loop device behind `/dev/ploopN`: major and minor.
    pub whole: (u32, u32),
    /// Its partition, if it has one.
    pub partition: Option<(u32, u32)>,
    /// The inode of the balloon, as the last mount named it.
    pub balloon_inode: Option<u64>,
}

impl Request {
    /// A request that is no ioctl, so that it has no argument.
    #[must_use]
    pub fn new(call: u32, node: Node, payload: Vec<u8>) -> Request {
        Request {
            call,
            node,
            argument: 0,
            payload,
        }
    }

    /// The message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, device) = match self.node {
            Node::Whole(device) => (0u32, device),
            Node::Partition(device) => (1, device),
            Node::None => (2, 0),
        };
        let mut bytes = Vec::with_capacity(24 + self.payload.len());
        bytes.extend_from_slice(&self.call.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&device.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.argument.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// Those of the stream, and [`io::ErrorKind::InvalidData`] for bytes that are no request.
    pub fn read(stream: &mut impl Read) -> io::Result<Request> {
        let mut head = [0; 24];
        stream.read_exact(&mut head)?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let node = match word(4) {
            0 => Node::Whole(word(8)),
            1 => Node::Partition(word(8)),
            2 => Node::None,
            _ => return Err(invalid("unknown kind of node")),
        };
        Ok(Request {
            call: word(0),
            node,
            argument: u64::from(word(16)) | u64::from(word(20)) << 32,
            payload: payload(stream, word(12))?,
        })
    }
}

impl Reply {
    /// A reply without payload.
    #[must_use]
    pub fn of(result: i32) -> Reply {
        Reply {
            result,
            payload: Vec::new(),
        }
    }

    /// Writes the message.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(8 + self.payload.len());
        bytes.extend_from_slice(&self.result.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        stream.write_all(&bytes)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub fn read(stream: &mut impl Read) -> io::Result<Reply> {
        let mut head = [0; 8];
        stream.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        Ok(Reply {
            result: i32::from_le_bytes([a, b, c, d]),
            payload: payload(stream, u32::from_le_bytes([e, f, g, h]))?,
        })
    }
}

impl Alias {
    /// The payload of the reply to [`call::ALIASES`]. A missing partition or inode is all ones.
    #[must_use]
    pub fn to_payload(aliases: &[Alias]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(28 * aliases.len());
        for alias in aliases {
            let partition = alias.partition.unwrap_or((u32::MAX, u32::MAX));
            for word in [
                alias.device,
                alias.whole.0,
                alias.whole.1,
                partition.0,
                partition.1,
            ] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&alias.balloon_inode.unwrap_or(u64::MAX).to_le_bytes());
        }
        bytes
    }

    /// Reads such a payload. An incomplete alias at its end is left out.
    pub fn parse(payload: &[u8]) -> impl Iterator<Item = Alias> {
        payload.chunks_exact(28).map(|bytes| {
            let word = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let inode = u64::from(word(20)) | u64::from(word(24)) << 32;
            Alias {
                device: word(0),
                whole: (word(4), word(8)),
                partition: Some((word(12), word(16))).filter(|number| number.0 != u32::MAX),
                balloon_inode: Some(inode).filter(|inode| *inode != u64::MAX),
            }
        })
    }
}

fn payload(stream: &mut impl Read, len: u32) -> io::Result<Vec<u8>> {
    if len > MAX_LEN {
        return Err(invalid("message too long"));
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut bytes)?;
    if bytes.len() != len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for node in [Node::Whole(7), Node::Partition(65535), Node::None] {
            let request = Request {
                call: 0x4010_5000,
                node,
                argument: u64::MAX - 1,
                payload: vec![1, 2, 3],
            };
            let bytes = request.to_bytes();
            assert_eq!(Request::read(&mut &*bytes).unwrap(), request);
            assert!(Request::read(&mut &bytes[..bytes.len() - 1]).is_err());
        }
        let reply = Reply {
            result: -16,
            payload: vec![9; 1000],
        };
        let mut bytes = Vec::new();
        reply.write(&mut bytes).unwrap();
        assert_eq!(Reply::read(&mut &*bytes).unwrap(), reply);
        let aliases = [
            Alias {
                device: 10001,
                whole: (7, 10001),
                partition: Some((259, 3)),
                balloon_inode: Some(12),
            },
            Alias {
                device: 10002,
                whole: (7, 10002),
                partition: None,
                balloon_inode: None,
            },
        ];
        let payload = Alias::to_payload(&aliases);
        assert_eq!(Alias::parse(&payload).collect::<Vec<_>>(), aliases);
    }
}
