//! Writing to the virtual disk of an image.

mod allocation;
mod compact;
mod delta;
mod delta_file;
mod discard;
mod growth;
mod levels;
mod merge;
mod partial_clusters;
mod read_plan;
mod storage;
#[cfg(test)]
mod tests;
mod write_tracker;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Chain, Level};
use super::descriptor::Descriptor;
use super::file;
use super::holes::is_zero;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, ImageMode, Result, Size};
use delta::WritableDelta;
use merge::RunningMerge;
use storage::Storage;

pub use delta_file::{DeltaFile, header_of};
pub use read_plan::ReadPlan;

const OPERATION: &str = "write image";

/// Makes an empty delta of its own, such as the base of a new image. The file must not exist; the
/// size is rounded up to whole clusters.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for a size that the version cannot have,
/// [`ErrorKind::AlreadyExists`], and those of the operating system.
pub fn create_delta(
    path: impl AsRef<Path>,
    version: FormatVersion,
    cluster: ClusterSize,
    size: Size,
) -> Result<()> {
    let header = delta::new_header(version, cluster, size)?;
    WritableDelta::create(path.as_ref(), &header).map(drop)
}

/// The virtual disk of an image, for reading and writing: what the driver does to the files, without
/// the driver.
///
/// Writes go to the top delta. A cluster it does not have yet is copied from the deltas below and
/// put at the end of its file. Deltas below are only read, except by
/// [`merge_down`](DiskWriter::merge_down).
///
/// # After a crash
///
/// The rule, for a process that is killed and for a host that goes down at any point:
///
/// * What was written before the last [`flush`](DiskWriter::flush) that returned is there. Each
///   sector written since has its old or one of its new contents.
/// * The table leads to clusters only that are on the disk, whole; none is used twice. Clusters
///   that nothing leads to may be left; they cost space until the next check.
/// * The top delta is marked as in use, from when it is opened to [`close`](DiskWriter::close).
///
/// For that, data is brought to the disk before an entry of the table leads to it, the entry before
/// a cluster it has left is used again, and the header before anything relies on it. It is assumed
/// that the disk writes a sector wholly or not at all.
///
/// Nothing here keeps others from writing to the same files, or touches the descriptor.
///
/// ```no_run
/// use ploop::image::{DiskWriter, create_delta};
/// use ploop::{ClusterSize, FormatVersion, Size};
///
/// let cluster = ClusterSize::DEFAULT;
/// create_delta("root.hds", FormatVersion::V2, cluster, Size::from_gib(10))?;
/// let mut disk = DiskWriter::open_files(&["root.hds"], cluster, false, false)?;
/// disk.write_at(b"hello", 4096)?;
/// disk.snapshot("root.hds.1")?;
/// disk.write_at(b"world", 4096)?;
/// disk.close()?;
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug)]
pub struct DiskWriter {
    lower: Option<Chain>,
    top: Top,
    /// While a merge is under way.
    merge: Option<Box<RunningMerge>>,
    cluster: ClusterSize,
    settings: Settings,
}

/// What holds for each delta that becomes the top.
#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    preallocation: u64,
    max_len: Option<u64>,
    track: bool,
    keep_clusters: bool,
}

#[derive(Debug)]
enum Top {
    Delta(Box<WritableDelta>),
    /// A plain base with nothing upon it.
    Raw {
        path: PathBuf,
        file: Arc<File>,
        len: u64,
    },
}

impl Top {
    /// An open file as the top, not marked yet; with `raw`, as a plain base.
    fn open(
        path: &Path,
        file: File,
        cluster: ClusterSize,
        raw: bool,
        allow_in_use: bool,
    ) -> Result<Top> {
        if raw {
            let len = file::length(OPERATION, &file).map_err(|error| error.with_path(path))?;
            let (path, file) = (path.to_owned(), Arc::new(file));
            return Ok(Top::Raw { path, file, len });
        }
        let delta = WritableDelta::from_storage(path, Box::new(file), allow_in_use)?;
        let found = delta.header().cluster;
        if found != cluster {
            let message = format!("the delta has clusters of {found}, the image of {cluster}");
            let error = Error::new(ErrorKind::Corrupt, OPERATION, message);
            return Err(error.with_path(path).with_offset(28));
        }
        Ok(Top::Delta(Box::new(delta)))
    }

    /// Parts of the file that hold nothing.
    fn holes(&self) -> Vec<Range<u64>> {
        match self {
            Top::Delta(delta) => delta.holes.clone(),
            Top::Raw { .. } => Vec::new(),
        }
    }

    fn set_holes(&mut self, holes: Vec<Range<u64>>) {
        if let Top::Delta(delta) = self {
            delta.holes = holes;
        }
    }

    /// The top as one of the files below another.
    fn as_level(&self) -> Result<Level> {
        let path = match self {
            Top::Delta(delta) => delta.path(),
            Top::Raw { path, .. } => path,
        };
        let file = delta_file::reopen(self.file(), false).map_err(|error| {
            Error::io(OPERATION, "the file cannot be opened again", error).with_path(path)
        })?;
        let mut level = Level::from_file(path, file, matches!(self, Top::Raw { .. }), true)?;
        level.set_holes(self.holes());
        Ok(level)
    }

    fn file(&self) -> &File {
        match self {
            Top::Delta(delta) => delta.storage.file(),
            Top::Raw { file, .. } => file,
        }
    }
}

impl Settings {
    fn apply(self, delta: &mut WritableDelta) {
        delta.space.set_limit(self.preallocation);
        delta.space.set_max_len(self.max_len);
        delta.tracker.track(self.track);
    }
}

impl DiskWriter {
    /// Opens the top of an image that is not in use, and marks it as in use.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`](super::Disk::open).
    pub fn open(descriptor: impl AsRef<Path>) -> Result<DiskWriter> {
        let descriptor = Descriptor::open(descriptor)?;
        if descriptor.encryption.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "the image is encrypted",
            ));
        }
        let files: Vec<&Path> = descriptor
            .chain(descriptor.top)
            .iter()
            .map(|image| &*image.file)
            .collect();
        let raw = descriptor.mode == ImageMode::Raw;
        DiskWriter::open_files(&files, descriptor.cluster, raw, false)
    }

    /// Opens a chain of files, the base first; with `raw`, the base is a plain file. With
    /// `allow_in_use`, the top may be marked as in use, as after a crash.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`](super::Disk::open).
    pub fn open_files(
        files: &[impl AsRef<Path>],
        cluster: ClusterSize,
        raw: bool,
        allow_in_use: bool,
    ) -> Result<DiskWriter> {
        let Some((top, lower)) = files.split_last() else {
            return Err(no_file());
        };
        let levels = lower
            .iter()
            .enumerate()
            .map(|(level, path)| lower_level(path.as_ref(), raw && level == 0))
            .collect::<Result<Vec<_>>>()?;
        let (top, raw) = (top.as_ref(), raw && lower.is_empty());
        let file = WritableDelta::open_file(top)?;
        DiskWriter::open_top(levels, top, file, cluster, raw, allow_in_use)
    }

    /// As [`open_files`](DiskWriter::open_files), of files that are open already: the lower ones for
    /// reading at least, the top for writing, too, or so that the process may open it for that.
    /// With `allow_in_use`, each may be marked as in use. Later marks on those below do not matter.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`](super::Disk::open), and those of opening a file once more through
    /// `/proc/self/fd`.
    pub fn from_files(
        mut files: Vec<DeltaFile>,
        cluster: ClusterSize,
        raw: bool,
        allow_in_use: bool,
    ) -> Result<DiskWriter> {
        let top = files.pop().ok_or_else(no_file)?;
        let lower = files.iter().enumerate();
        let levels = lower
            .map(|(level, file)| file.open_level(raw && level == 0, allow_in_use))
            .collect::<Result<Vec<_>>>()?;
        let raw = raw && levels.is_empty();
        let file = top.reopen(true)?;
        let mut writer =
            DiskWriter::open_top(levels, top.path(), file, cluster, raw, allow_in_use)?;
        writer.top.set_holes(top.holes().to_vec());
        Ok(writer)
    }

    fn open_top(
        levels: Vec<Level>,
        path: &Path,
        file: File,
        cluster: ClusterSize,
        raw: bool,
        allow_in_use: bool,
    ) -> Result<DiskWriter> {
        let top = Top::open(path, file, cluster, raw, allow_in_use)?;
        let mut writer = DiskWriter::from_levels(levels, top, cluster)?;
        // Only now nothing can go wrong any more.
        if let Top::Delta(delta) = &mut writer.top {
            delta.mark(true)?;
        }
        Ok(writer)
    }

    fn from_levels(levels: Vec<Level>, top: Top, cluster: ClusterSize) -> Result<DiskWriter> {
        let lower = if levels.is_empty() {
            None
        } else {
            Some(Chain::new(levels, cluster)?)
        };
        Ok(DiskWriter {
            lower,
            top,
            merge: None,
            cluster,
            settings: Settings::default(),
        })
    }

    /// The size of the disk.
    #[must_use]
    pub fn size(&self) -> Size {
        match &self.top {
            Top::Delta(delta) => delta.header().size,
            Top::Raw { len, .. } => Size::from_bytes(*len),
        }
    }

    /// The file that is written to.
    #[must_use]
    pub fn top(&self) -> &Path {
        match &self.top {
            Top::Delta(delta) => delta.path(),
            Top::Raw { path, .. } => path,
        }
    }

    /// Reads from `offset` on, as [`Disk::read_at`](super::Disk::read_at).
    ///
    /// # Errors
    ///
    /// As [`Disk::read_at`](super::Disk::read_at).
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().bytes().saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = &mut buffer[..len];
        for piece in cluster_parts(offset, len, self.cluster) {
            let part = &mut buffer[piece.range()];
            if let Some(merge) = &mut self.merge {
                if let Some(place) = merge.source.cluster(piece.cluster)? {
                    merge.source.read(part, place + piece.within)?;
                    continue;
                }
            }
            match &mut self.top {
                Top::Raw { path, file, .. } => file
                    .read_exact_at(part, piece.offset)
                    .map_err(|error| raw_error(path, "the data cannot be read", error))?,
                Top::Delta(delta) => match delta.cluster(piece.cluster)? {
                    Some(place) => delta.read(part, place + piece.within)?,
                    None => match &self.lower {
                        Some(lower) => lower.read(part, piece.offset)?,
                        None => part.fill(0),
                    },
                },
            }
        }
        Ok(len)
    }

    /// Writes from `offset` on. Zeros for a cluster that no delta has take no space.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where that does not end within the disk, and nothing is written;
    /// [`ErrorKind::NoSpace`] and others of the operating system, after which all but reading is
    /// refused. Where there is no space for what is got [ahead](DiskWriter::set_preallocation), or
    /// the file must not become [longer](DiskWriter::set_max_len), no harm is done: the writer goes
    /// on, and some of the data may have been written.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        if self.is_merging() {
            for piece in cluster_parts(offset, data.len(), self.cluster) {
                self.move_down(piece.cluster)?;
            }
        }
        self.write_to_top(data, offset)
    }

    /// [`write_at`](DiskWriter::write_at) of what the top is to have.
    fn write_to_top(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let size = self.cluster.bytes() as usize;
        for piece in cluster_parts(offset, data.len(), self.cluster) {
            let part = &data[piece.range()];
            match &mut self.top {
                Top::Raw { path, file, .. } => file
                    .write_all_at(part, piece.offset)
                    .map_err(|error| raw_error(path, "the data cannot be written", error))?,
                Top::Delta(delta) => match delta.cluster(piece.cluster)? {
                    Some(place) => delta.write_within(place, piece.within, part)?,
                    None => match &self.lower {
                        Some(lower) if part.len() < size && lower.has(piece.cluster)? => {
                            let mut whole = vec![0; size];
                            let start = piece.offset - piece.within;
                            let left = (delta.header().size.bytes() - start).min(size as u64);
                            lower.read(&mut whole[..left as usize], start)?;
                            whole[piece.within as usize..][..part.len()].copy_from_slice(part);
                            delta.add(piece.cluster, 0, &whole)?;
                        }
                        // It reads as zero already.
                        None if is_zero(part) => {}
                        Some(lower) if is_zero(part) && !lower.has(piece.cluster)? => {}
                        _ => delta.add(piece.cluster, piece.within, part)?,
                    },
                },
            }
        }
        Ok(())
    }

    /// Brings everything written so far to the disk. The table in the file is complete then.
    ///
    /// # Errors
    ///
    /// Those of the operating system, after which all but reading is refused.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.top {
            Top::Delta(delta) => delta.flush(),
            Top::Raw { path, file, .. } => file
                .sync_data()
                .map_err(|error| raw_error(path, "the data cannot be brought to the disk", error)),
        }?;
        self.flush_merge_source()
    }

    /// Makes the disk larger; the size is rounded up to whole clusters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a smaller size or one the format cannot have, otherwise as
    /// [`write_at`](DiskWriter::write_at).
    pub fn grow(&mut self, size: Size) -> Result<()> {
        self.check_no_merge()?;
        match &mut self.top {
            Top::Delta(delta) => delta.grow(size),
            Top::Raw { path, file, len } => {
                let new = size.bytes().checked_next_multiple_of(self.cluster.bytes());
                let Some(new) = new.filter(|new| *new >= *len) else {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        OPERATION,
                        format!("the disk cannot have {size}"),
                    ));
                };
                if self.settings.max_len.is_some_and(|max| new > max) {
                    let message = "the file would become longer than the limit that was set";
                    let error = Error::new(ErrorKind::NoSpace, OPERATION, message);
                    return Err(error.with_path(&*path));
                }
                extend(file, *len, new)
                    .map_err(|error| raw_error(path, "the file cannot be made longer", error))?;
                *len = new;
                Ok(())
            }
        }
    }

    /// Has the file of the top delta made longer ahead, as the driver does it: where there is no room
    /// for a new cluster, by as much as the file is long with it, but by no more than so many bytes
    /// (default: 0, not at all; rounded up to whole clusters). A new cluster then is space of the file that reads as
    /// zero, of which only the part is written that has data. Without it, and where the file system
    /// cannot do it, new clusters are written whole.
    ///
    /// What is left is cut off by [`trim`](DiskWriter::trim), [`close`](DiskWriter::close), and when
    /// another delta is put on top. After a crash it stays, as clusters that nothing leads to.
    pub fn set_preallocation(&mut self, bytes: u64) {
        self.settings.preallocation = bytes;
        self.apply_settings();
    }

    /// The length in bytes that the file of the top delta must not exceed (default: none). Clusters
    /// behind that give [`ErrorKind::NoSpace`], and the writer goes on.
    pub fn set_max_len(&mut self, len: Option<u64>) {
        self.settings.max_len = len;
        self.apply_settings();
    }

    /// Whether clusters that are [made zero](DiskWriter::write_zeroes) stay where they are, as in an
    /// image that has all of them from the beginning (default: no).
    pub fn set_keep_clusters(&mut self, keep: bool) {
        self.settings.keep_clusters = keep;
    }

    /// Begins to remember which clusters of the top delta's file are written, its header and table
    /// included, or ends it and forgets. A new top begins with none; a plain base has none.
    pub fn track(&mut self, on: bool) {
        self.settings.track = on;
        self.apply_settings();
    }

    /// What was written to the file of the top delta since it is [tracked](DiskWriter::track), and
    /// forgets it: ranges of bytes of the file, in whole clusters, in order. The last may end behind
    /// the file, if its end was cut off since. The table follows with the next
    /// [`flush`](DiskWriter::flush) only.
    pub fn take_tracked(&mut self) -> Vec<Range<u64>> {
        match &mut self.top {
            Top::Delta(delta) => delta.tracker.take(self.cluster.bytes()),
            Top::Raw { .. } => Vec::new(),
        }
    }

    fn apply_settings(&mut self) {
        if let Top::Delta(delta) = &mut self.top {
            self.settings.apply(delta);
        }
    }

    /// Brings everything to the disk, and makes the file of the top delta as short as it is when
    /// closed.
    ///
    /// # Errors
    ///
    /// As [`flush`](DiskWriter::flush).
    pub fn trim(&mut self) -> Result<()> {
        self.flush()?;
        match &mut self.top {
            Top::Delta(delta) => delta.trim()?,
            Top::Raw { .. } => {}
        }
        self.trim_merge_source()
    }

    /// Brings everything to the disk and sets or clears the mark of the top, which stays open. The
    /// tables are read again when next needed.
    ///
    /// # Errors
    ///
    /// As [`flush`](DiskWriter::flush) and [`Disk::open`](super::Disk::open).
    pub fn set_in_use(&mut self, in_use: bool) -> Result<()> {
        self.flush()?;
        for level in 0..self.lower_levels() {
            self.reload_level(level)?;
        }
        match &mut self.top {
            Top::Delta(delta) => {
                delta.forget_table();
                // As in the driver, the mark is none of what a copy has to follow.
                let tracker = std::mem::take(&mut delta.tracker);
                let marked = delta.mark(in_use);
                delta.tracker = tracker;
                marked
            }
            Top::Raw { .. } => Ok(()),
        }
    }

    /// Brings everything to the disk, gives back unused space at the end of the top delta and clears
    /// its mark. A writer that is dropped instead leaves the mark, as after a crash. A merge that is
    /// not finished leaves the mark of the old top, which may still hold clusters.
    ///
    /// # Errors
    ///
    /// As [`flush`](DiskWriter::flush); the mark stays then.
    pub fn close(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.trim()?;
        match &mut self.top {
            Top::Delta(delta) => delta.mark(false),
            Top::Raw { .. } => Ok(()),
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size().bytes() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                format!(
                    "{len} bytes at {offset} lead out of the disk of {}",
                    self.size()
                ),
            )),
        }
    }
}

fn lower_level(path: &Path, raw: bool) -> Result<Level> {
    let (file, _) = file::open(OPERATION, path).map_err(|error| error.with_path(path))?;
    Level::from_file(path, file, raw, false)
}

fn raw_error(path: &Path, what: &str, error: io::Error) -> Error {
    Error::io(OPERATION, what, error).with_path(path)
}

/// Makes a plain file longer, without a hole; or leaves it as it is.
fn extend(file: &File, old: u64, new: u64) -> io::Result<()> {
    if new == old {
        return Ok(());
    }
    let result = match file.allocate(old, new - old) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            storage::write_zeros(file, old, new - old)
        }
        result => result,
    };
    let result = result.and_then(|()| Storage::sync(file));
    if result.is_err() {
        let _ = file.set_len(old);
    }
    result
}

fn no_file() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        OPERATION,
        "there is no file to write to",
    )
}

/// A part of a request that lies in one cluster.
struct ClusterPart {
    cluster: u32,
    /// Where it begins in its cluster.
    within: u64,
    /// Where it begins on the disk.
    offset: u64,
    /// Where it lies in the buffer.
    start: usize,
    len: usize,
}

impl ClusterPart {
    fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// Splits a request, which lies within the disk, at the clusters.
fn cluster_parts(
    offset: u64,
    len: usize,
    cluster: ClusterSize,
) -> impl Iterator<Item = ClusterPart> {
    let size = cluster.bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let at = offset + start as u64;
        let within = at % size;
        let piece = ClusterPart {
            cluster: (at / size) as u32,
            within,
            offset: at,
            start,
            len: (len - start).min((size - within) as usize),
        };
        start += piece.len;
        Some(piece)
    })
}
