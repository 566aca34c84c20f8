//! The block device behind ploopN: loop device, nodes, FUSE file, partition.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ploop_sandbox_wire as wire;

use crate::data::Data;
use crate::state::State;

pub(crate) struct Block;

/// A partition as sysfs shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// In sectors of 512 bytes.
    pub(crate) start: u64,
    /// In sectors.
    pub(crate) size: u64,
}

/// Thaws the file systems when dropped.
pub(crate) struct Frozen;

fn later<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Block {
    pub(crate) fn create(_index: u32, _state: &State, _data: Arc<dyn Data>) -> io::Result<Block> {
        later()
    }
    pub(crate) fn attach(&self, _read_only: bool) -> io::Result<()> {
        later()
    }
    pub(crate) fn detach(&self) -> io::Result<()> {
        later()
    }
    pub(crate) fn resized(&self) -> io::Result<()> {
        later()
    }
    pub(crate) fn reread_partitions(&self) -> io::Result<()> {
        later()
    }
    pub(crate) fn partition(&self) -> Option<Partition> {
        None
    }
    pub(crate) fn openers(&self) -> u32 {
        0
    }
    pub(crate) fn alias(&self) -> wire::Alias {
        wire::Alias {
            device: 0,
            whole: (0, 0),
            partition: None,
            balloon_inode: None,
        }
    }
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    pub(crate) fn freeze(&self) -> io::Result<Frozen> {
        later()
    }
}
