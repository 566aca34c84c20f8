//! [`DiskWriter`]: writing to the virtual disk of an image, as the driver does it.

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
pub(super) mod tests;
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
use super::other_image::require_of_no_other_image;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, ImageMode, Result, Size, sysfs};
use merge::RunningMerge;

pub(super) use delta::WritableDelta;
pub use delta_file::{ChainOptions, DeltaFile, header_of};
pub use read_plan::ReadPlan;
pub(super) use storage::{Storage, write_zeros};

const OPERATION: &str = "write image";

/// Makes an empty delta, such as the base of a new image. The file must not exist. The size is rounded up to whole
/// clusters.
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
/// Writes go to the top delta. A cluster that it does not have yet is copied from the deltas below to the end of its
/// file. Deltas below are only read, except by [`merge_down`](DiskWriter::merge_down).
///
/// # After a crash
///
/// This holds after a process was killed, or a host went down, at any point:
///
/// * What was written before the last [`flush`](DiskWriter::flush) that returned is there. Each
///   sector written since has its old contents or one of its new ones.
/// * The table leads only to whole clusters that are on the disk, and no cluster is used twice. Clusters without an
///   entry may be left; they cost space until the next check.
/// * The top delta is marked as in use from when it is opened to [`close`](DiskWriter::close).
///
/// For that, data is synced before an entry of the table leads to it, an entry is synced before the cluster that it
/// has left is used again, and the header is synced before anything relies on it. It is assumed that the disk writes a
/// sector wholly or not at all.
///
/// The files are not locked, and the descriptor is not changed.
///
/// ```no_run
/// use ploop::image::{ChainOptions, DiskWriter, create_delta};
/// use ploop::{ClusterSize, FormatVersion, Size};
///
/// let cluster = ClusterSize::DEFAULT;
/// create_delta("root.hds", FormatVersion::V2, cluster, Size::from_gib(10))?;
/// let mut disk = DiskWriter::open_files(&["root.hds"], cluster, ChainOptions::new())?;
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
    /// The merge that is running, if there is one.
    merge: Option<Box<RunningMerge>>,
    cluster: ClusterSize,
    settings: Settings,
}

/// The settings that each new top gets.
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
    /// A raw base without deltas upon it.
    Raw {
        path: PathBuf,
        file: Arc<File>,
        len: u64,
    },
}

impl Top {
    /// An open file as the top; with `raw`, as a raw base. Does not mark it.
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

    /// Ranges of the file without space on its disk, if the caller knows any.
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

    /// The top as a level below another top.
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
    /// As [`Disk::open`](super::Disk::open); [`ErrorKind::Busy`] where a device has the image, and
    /// [`ErrorKind::Unsupported`] where the top is a delta of another image, which the descriptor is a copy of.
    pub fn open(descriptor: impl AsRef<Path>) -> Result<DiskWriter> {
        let path = descriptor.as_ref();
        let descriptor = Descriptor::open(path)?;
        if descriptor.encryption.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "the image is encrypted",
            ));
        }
        if let Some(top) = descriptor.top_image() {
            sysfs::require_unattached(OPERATION, &top.file, [top.file.as_path()])?;
            require_of_no_other_image(OPERATION, path, &top.file)?;
        }
        let files: Vec<&Path> = descriptor
            .chain(descriptor.top)
            .iter()
            .map(|image| &*image.file)
            .collect();
        let raw = descriptor.mode == ImageMode::Raw;
        let options = ChainOptions::new().raw_base(raw);
        DiskWriter::open_files(&files, descriptor.cluster, options)
    }

    /// Opens a chain of files, the base first. Only the top may be marked as in use, where the options allow that.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`](super::Disk::open).
    pub fn open_files(
        files: &[impl AsRef<Path>],
        cluster: ClusterSize,
        options: ChainOptions,
    ) -> Result<DiskWriter> {
        let ChainOptions {
            raw_base: raw,
            allow_in_use,
        } = options;
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

    /// [`open_files`](DiskWriter::open_files) with files that are open already. The process must be able to open them
    /// again through `/proc/self/fd`: the top for writing, the others for reading. Marks that those below get later do not matter.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`](super::Disk::open), and those of opening a file again.
    pub fn from_files(
        mut files: Vec<DeltaFile>,
        cluster: ClusterSize,
        options: ChainOptions,
    ) -> Result<DiskWriter> {
        let ChainOptions {
            raw_base: raw,
            allow_in_use,
        } = options;
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
        // Last, after everything that can fail.
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
        for part in cluster_parts(offset, len, self.cluster) {
            let bytes = &mut buffer[part.range()];
            if let Some(merge) = &mut self.merge {
                if let Some(file_offset) = merge.source.cluster(part.cluster)? {
                    merge.source.read(bytes, file_offset + part.within)?;
                    continue;
                }
            }
            match &mut self.top {
                Top::Raw { path, file, .. } => file
                    .read_exact_at(bytes, part.offset)
                    .map_err(|error| raw_error(path, "the data cannot be read", error))?,
                Top::Delta(delta) => match delta.cluster(part.cluster)? {
                    Some(file_offset) => delta.read(bytes, file_offset + part.within)?,
                    None => match &self.lower {
                        Some(lower) => lower.read(bytes, part.offset)?,
                        None => bytes.fill(0),
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
    /// [`ErrorKind::InvalidInput`] where the range does not end within the disk; then nothing is written.
    /// [`ErrorKind::NoSpace`] and others of the operating system: afterwards only reading is possible. But where there
    /// is no space to [preallocate](DiskWriter::set_preallocation), or the file would exceed its
    /// [largest length](DiskWriter::set_max_len), the writer can go on; some of the data may have been written.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        if self.is_merging() {
            for part in cluster_parts(offset, data.len(), self.cluster) {
                self.move_down(part.cluster)?;
            }
        }
        self.write_to_top(data, offset)
    }

    /// [`write_at`](DiskWriter::write_at) without regard to a running merge.
    fn write_to_top(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let size = self.cluster.bytes() as usize;
        for part in cluster_parts(offset, data.len(), self.cluster) {
            let bytes = &data[part.range()];
            match &mut self.top {
                Top::Raw { path, file, .. } => file
                    .write_all_at(bytes, part.offset)
                    .map_err(|error| raw_error(path, "the data cannot be written", error))?,
                Top::Delta(delta) => match delta.cluster(part.cluster)? {
                    Some(file_offset) => delta.write_within(file_offset, part.within, bytes)?,
                    None => match &self.lower {
                        Some(lower) if bytes.len() < size && lower.has(part.cluster)? => {
                            let mut whole = vec![0; size];
                            let start = part.offset - part.within;
                            let left = (delta.header().size.bytes() - start).min(size as u64);
                            lower.read(&mut whole[..left as usize], start)?;
                            whole[part.within as usize..][..bytes.len()].copy_from_slice(bytes);
                            delta.add(part.cluster, 0, &whole)?;
                        }
                        // It reads as zero already.
                        None if is_zero(bytes) => {}
                        Some(lower) if is_zero(bytes) && !lower.has(part.cluster)? => {}
                        _ => delta.add(part.cluster, part.within, bytes)?,
                    },
                },
            }
        }
        Ok(())
    }

    /// Syncs everything written so far. The table in the file is complete then.
    ///
    /// # Errors
    ///
    /// Those of the operating system: afterwards only reading is possible.
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

    /// Preallocates space at the end of the top delta's file, as the driver does: whenever a new cluster needs it, as
    /// much as the file is long with that cluster, but at most so many bytes, rounded up to whole clusters (default: 0,
    /// nothing). Such space reads as zero, so of a new cluster only the part with data is written. Without
    /// preallocation, and where the file system cannot do it, new clusters are written whole.
    ///
    /// What is not used is cut off by [`trim`](DiskWriter::trim) and [`close`](DiskWriter::close), and when another
    /// delta is put on top. After a crash it stays, as clusters without an entry.
    pub fn set_preallocation(&mut self, bytes: u64) {
        self.settings.preallocation = bytes;
        self.apply_settings();
    }

    /// The largest length of the top delta's file, in bytes (default: no limit). A cluster behind it is
    /// [`ErrorKind::NoSpace`], and the writer can go on.
    pub fn set_max_len(&mut self, len: Option<u64>) {
        self.settings.max_len = len;
        self.apply_settings();
    }

    /// Whether clusters that are [made zero](DiskWriter::write_zeroes) stay where they are, as in an
    /// image that has all of them from the beginning (default: no).
    pub fn set_keep_clusters(&mut self, keep: bool) {
        self.settings.keep_clusters = keep;
    }

    /// Begins to track which clusters of the top delta's file are written (`PLOOP_IOC_TRACK_INIT`), header and table
    /// included; or ends it, and forgets them. A new top begins with none. Of a raw base nothing is tracked.
    pub fn track(&mut self, on: bool) {
        self.settings.track = on;
        self.apply_settings();
    }

    /// Takes what was written to the top delta's file since the last call: ranges of bytes of the file, in whole
    /// clusters and in order. The last may end behind the file, if that was cut since. Entries of the table are written,
    /// and so tracked, by the next [`flush`](DiskWriter::flush).
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

    /// Syncs everything, and cuts the top delta's file as [`close`](DiskWriter::close) does.
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

    /// Syncs everything, and sets or clears the in-use mark of the top, which stays open. The tables are read again
    /// when next needed.
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
                // The mark is not tracked, as in the driver: a live copy does not need it.
                let tracker = std::mem::take(&mut delta.tracker);
                let marked = delta.mark(in_use);
                delta.tracker = tracker;
                marked
            }
            Top::Raw { .. } => Ok(()),
        }
    }

    /// Syncs everything, cuts off unused space at the end of the top delta, and clears its in-use mark. A writer that is
    /// dropped leaves the mark, as after a crash. A merge that is not finished leaves the mark of the old top, which may
    /// still have clusters.
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

/// Makes a raw file longer, without a hole. An error changes nothing.
pub(super) fn extend(file: &File, old: u64, new: u64) -> io::Result<()> {
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

/// The part of a request that lies in one cluster.
struct ClusterPart {
    cluster: u32,
    /// The offset in the cluster.
    within: u64,
    /// The offset on the disk.
    offset: u64,
    /// The offset in the buffer.
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
        let part = ClusterPart {
            cluster: (at / size) as u32,
            within,
            offset: at,
            start,
            len: (len - start).min((size - within) as usize),
        };
        start += part.len;
        Some(part)
    })
}
