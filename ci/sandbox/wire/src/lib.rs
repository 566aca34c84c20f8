//! What the preload library asks the daemon, and what it answers, over a Unix stream socket: one
//! request and one reply a connection. File descriptors travel beside the first byte of a message.

use std::io::{self, Read, Write};

/// The variable that holds the path of the daemon's socket. Where it is not set, the preload
/// library does nothing.
pub const SOCKET: &str = "PLOOP_SANDBOX_SOCKET";

/// The variable that holds the directory in which the daemon serves what belongs into `/proc/vz`.
pub const PROC_VZ: &str = "PLOOP_SANDBOX_PROC_VZ";

/// The file beside the socket in which the daemon lists the files that are attached to devices, for
/// every program to map: see [`attached`].
pub const ATTACHED: &str = "attached";

/// The layout of [`ATTACHED`]: 64-bit numbers as the machine has them. First how many slots were ever
/// used, and an unused number; then the slots, a device and an inode each. A slot whose inode is 0 is
/// free. The device is written before the inode.
pub mod attached {
    /// How many slots there are.
    pub const SLOTS: usize = 4096;
    /// Bytes of a slot, and of what stands before the first.
    pub const SLOT_LEN: usize = 16;
    /// Bytes of the file.
    pub const LEN: usize = (SLOTS + 1) * SLOT_LEN;
}

/// The major number of ploop's block devices.
pub const MAJOR: u32 = 182;

/// No message is longer: lists of extents of a disk of 16 TiB fit.
const MAX_LEN: u32 = 256 << 20;

/// Which node of a device was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// `/dev/ploopN`.
    Whole(u32),
    /// `/dev/ploopNp1`.
    Partition(u32),
    /// None: the request is not about one device.
    None,
}

/// Requests that are no ioctl of ploop's or the block layer's.
pub mod call {
    /// Which device numbers stand for which: see [`Alias`](super::Alias).
    pub const ALIASES: u32 = 0xf000_0001;
    /// A partition was mounted, or remounted, with `balloon_ino=`. The payload is the inode's number
    /// as text, the node says where. 0: it was mounted without a balloon.
    pub const BALLOON_INODE: u32 = 0xf000_0002;
    /// The file system mounted from a partition is to be made larger without the privilege for that.
    /// The payload is the number of blocks wanted (`u64`), the descriptor sent the mount point.
    pub const GROW_FILE_SYSTEM: u32 = 0xf000_0003;
    /// A program has opened the whole device.
    pub const OPENED: u32 = 0xf000_0005;
    /// Does the daemon answer?
    pub const PING: u32 = 0xf000_0004;
}

/// A request: an ioctl as it was called, the bytes behind its argument included, or one of
/// [`call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The number of the ioctl, or one of [`call`].
    pub call: u32,
    /// Of which node.
    pub node: Node,
    /// The argument itself, where it is a number.
    pub argument: u64,
    /// What the argument points to.
    pub payload: Vec<u8>,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What the call returns: 0 or more, or an `errno` with a minus before it.
    pub result: i32,
    /// What goes back to where the argument points.
    pub payload: Vec<u8>,
}

/// Which real device stands behind a node; numbers as in `st_rdev`, the driver's beside the real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// N of ploopN.
    pub device: u32,
    /// The loop device behind `/dev/ploopN`: major and minor.
    pub whole: (u32, u32),
    /// Its partition, if it has one.
    pub partition: Option<(u32, u32)>,
    /// The number of the balloon's inode that the mount of the partition was given.
    pub balloon_inode: Option<u64>,
}

impl Request {
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
    /// Those of the stream, and [`io::ErrorKind::InvalidData`] for what is no request.
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
    /// A result without more.
    #[must_use]
    pub fn of(result: i32) -> Reply {
        Reply {
            result,
            payload: Vec::new(),
        }
    }

    /// Sends it.
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

    /// Reads one.
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
    /// The answer to [`call::ALIASES`]. A partition or inode that is not there is all ones.
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

    /// Reads such an answer. What is cut off at its end is left out.
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
    fn messages_come_back() {
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
