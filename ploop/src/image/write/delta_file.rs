//! [`DeltaFile`]: deltas as open files, so that a disk is read and written through file descriptors of the caller.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::OPERATION;
use crate::image::chain::{Chain, Level};
use crate::image::disk::Disk;
use crate::image::file;
use crate::image::header::Header;
use crate::{ClusterSize, Error, ErrorKind, Result};

/// An open file of an image, with a path for messages.
///
/// The file is opened again through `/proc/self/fd`, with the access that is needed and without direct I/O. So it does
/// not matter how it was opened, its position does not change, and it may have been renamed or removed since.
#[derive(Debug)]
pub struct DeltaFile {
    file: File,
    path: PathBuf,
    holes: Vec<Range<u64>>,
}

impl DeltaFile {
    /// A file, and the path that errors have for it.
    pub fn new(file: File, path: impl Into<PathBuf>) -> DeltaFile {
        let path = path.into();
        let holes = Vec::new();
        DeltaFile { file, path, holes }
    }

    /// Ranges of the file without space on its disk (default: none). The table must not lead there: the driver reads
    /// and writes by the file's extents, and fails. In a raw base they do not matter.
    #[must_use]
    pub fn with_holes(self, holes: Vec<Range<u64>>) -> DeltaFile {
        DeltaFile { holes, ..self }
    }

    pub(super) fn holes(&self) -> &[Range<u64>] {
        &self.holes
    }

    /// The path that errors have for the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file again.
    pub(super) fn reopen(&self, write: bool) -> Result<File> {
        reopen(&self.file, write).map_err(|error| {
            Error::io(OPERATION, "the file cannot be opened again", error).with_path(&self.path)
        })
    }

    pub(super) fn open_level(&self, raw: bool, allow_in_use: bool) -> Result<Level> {
        let mut level = Level::from_file(&self.path, self.reopen(false)?, raw, allow_in_use)?;
        level.set_holes(self.holes.clone());
        Ok(level)
    }
}

/// How a chain of files is opened that no descriptor tells of.
///
/// ```
/// use ploop::image::ChainOptions;
///
/// let after_a_crash = ChainOptions::new().raw_base(true).allow_in_use(true);
/// # let _ = after_a_crash;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[must_use]
pub struct ChainOptions {
    pub(super) raw_base: bool,
    pub(super) allow_in_use: bool,
}

impl ChainOptions {
    /// Deltas with a header each, none of them marked as in use.
    pub fn new() -> ChainOptions {
        ChainOptions::default()
    }

    /// Whether the base is a raw file (default: no).
    pub fn raw_base(mut self, raw: bool) -> ChainOptions {
        self.raw_base = raw;
        self
    }

    /// Whether deltas may be marked as in use, as after a crash (default: no).
    pub fn allow_in_use(mut self, allow: bool) -> ChainOptions {
        self.allow_in_use = allow;
        self
    }
}

/// Opens an open file again, whether or not it still has its name.
pub(super) fn reopen(file: &File, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The header of an open delta, which may be in use.
///
/// # Errors
///
/// As [`Header::read`], without a path.
pub fn header_of(file: &File) -> Result<Header> {
    let file = reopen(file, false)
        .map_err(|error| Error::io(OPERATION, "the file cannot be opened again", error))?;
    let len = file::length(OPERATION, &file)?;
    Header::read_from(&file, len)
}

impl Disk {
    /// Opens a chain of open files, the base first. Needs the feature `image-write`.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`]; [`ErrorKind::InvalidInput`] where there is no file.
    pub fn from_files(
        files: Vec<DeltaFile>,
        cluster: ClusterSize,
        options: ChainOptions,
    ) -> Result<Disk> {
        let ChainOptions {
            raw_base,
            allow_in_use,
        } = options;
        let levels = files.iter().enumerate();
        let levels =
            levels.map(|(level, file)| file.open_level(raw_base && level == 0, allow_in_use));
        Disk::from_levels(levels.collect::<Result<_>>()?, cluster)
    }

    /// Replaces a file by one with the same contents; the base has level 0. Needs the feature `image-write`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no such level, or the file is of another kind, size,
    /// cluster size or format version; [`ErrorKind::Busy`] where there are clones of this disk;
    /// otherwise as [`Disk::open`].
    pub fn replace_level(&mut self, level: usize, file: DeltaFile) -> Result<()> {
        let raw = self.chain().levels().get(level).is_some_and(Level::is_raw);
        let new = file.open_level(raw, true)?;
        exclusive_chain(self)?.replace(level, new)
    }

    /// Removes a delta after others have merged it into the one below, whose header and table are read again. Needs the
    /// feature `image-write`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for the base and where there is no such level, otherwise as
    /// [`reload_level`](Disk::reload_level).
    pub fn remove_level(&mut self, level: usize) -> Result<()> {
        exclusive_chain(self)?.remove(level)
    }

    /// Sets the slot of a cluster of a level, in memory only: others change the table in the file. `slot` counts
    /// clusters of the file. Needs the feature `image-write`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where that is not the level from which the cluster is read.
    pub fn set_slot(&mut self, level: usize, cluster: u32, slot: u32) -> Result<()> {
        exclusive_chain(self)?.set_slot(level, cluster, slot)
    }

    /// Reads the header and the table of a file again, after others have changed it. Needs the feature `image-write`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no such level, [`ErrorKind::Busy`] where there are
    /// clones of this disk, otherwise as [`Disk::open`].
    pub fn reload_level(&mut self, level: usize) -> Result<()> {
        exclusive_chain(self)?.reload(level)
    }
}

fn exclusive_chain(disk: &mut Disk) -> Result<&mut Chain> {
    let shared = "the disk is also read through clones of it";
    disk.chain_mut()
        .ok_or_else(|| Error::new(ErrorKind::Busy, OPERATION, shared))
}
