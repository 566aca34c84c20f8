//! Writing to the virtual disk of an image.

mod delta;
mod store;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain::{Chain, Layer};
use super::delta::Delta;
use super::descriptor::Descriptor;
use crate::{ClusterSize, Error, ErrorKind, FormatVersion, ImageMode, Result, Size};
use delta::WritableDelta;

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
#[derive(Debug)]
pub struct DiskWriter {
    lower: Option<Chain>,
    top: Top,
    cluster: ClusterSize,
}

#[derive(Debug)]
enum Top {
    Delta(WritableDelta),
    /// A plain base with nothing upon it.
    Raw {
        path: PathBuf,
        file: File,
        len: u64,
    },
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
            return Err(Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                "there is no file to write to",
            ));
        };
        let layers = lower
            .iter()
            .enumerate()
            .map(|(level, path)| lower_layer(path.as_ref(), raw && level == 0))
            .collect::<Result<Vec<_>>>()?;
        let top = if raw && lower.is_empty() {
            open_raw(top.as_ref())?
        } else {
            let mut delta = WritableDelta::open(top.as_ref(), allow_in_use)?;
            check_cluster(&delta, cluster)?;
            delta.mark(true)?;
            Top::Delta(delta)
        };
        DiskWriter::over(layers, top, cluster)
    }

    fn over(layers: Vec<Layer>, top: Top, cluster: ClusterSize) -> Result<DiskWriter> {
        let lower = if layers.is_empty() {
            None
        } else {
            Some(Chain::new(layers, cluster)?)
        };
        Ok(DiskWriter {
            lower,
            top,
            cluster,
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
        for piece in pieces(offset, len, self.cluster) {
            let part = &mut buffer[piece.range()];
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

    /// Writes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where that does not end within the disk, and nothing is written;
    /// [`ErrorKind::NoSpace`] and others of the operating system, after which all but reading is
    /// refused.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        for piece in pieces(offset, data.len(), self.cluster) {
            let part = &data[piece.range()];
            match &mut self.top {
                Top::Raw { path, file, .. } => file
                    .write_all_at(part, piece.offset)
                    .map_err(|error| raw_error(path, "the data cannot be written", error))?,
                Top::Delta(delta) => match delta.cluster(piece.cluster)? {
                    Some(place) => delta.write(part, place + piece.within)?,
                    None => {
                        let mut whole = vec![0; self.cluster.bytes() as usize];
                        let start = piece.offset - piece.within;
                        if let (Some(lower), true) = (&self.lower, part.len() < whole.len()) {
                            let left =
                                (delta.header().size.bytes() - start).min(whole.len() as u64);
                            lower.read(&mut whole[..left as usize], start)?;
                        }
                        let within = piece.within as usize;
                        whole[within..within + part.len()].copy_from_slice(part);
                        delta.add(piece.cluster, &whole)?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Gives up the clusters of the top delta that lie wholly within a range, and that no delta
    /// below has; they read as zero. Returns how many bytes that were. The file becomes shorter
    /// when it is closed, if they were at its end; otherwise they are used again.
    ///
    /// # Errors
    ///
    /// As [`write_at`](DiskWriter::write_at).
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<u64> {
        self.check_range(offset, len)?;
        let cluster = self.cluster.bytes();
        let Top::Delta(delta) = &mut self.top else {
            return Ok(0);
        };
        let end = if offset + len == delta.header().size.bytes() {
            (offset + len).div_ceil(cluster)
        } else {
            (offset + len) / cluster
        };
        let mut given = 0;
        // `check_range` has seen that these are clusters of the disk.
        for number in offset.div_ceil(cluster) as u32..end as u32 {
            if let Some(lower) = &self.lower {
                if lower.has(number)? {
                    continue;
                }
            }
            if delta.remove(number)? {
                given += cluster;
            }
        }
        Ok(given)
    }

    /// Brings everything written so far to the disk.
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
        }
    }

    /// Makes the disk larger; the size is rounded up to whole clusters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a smaller size or one the format cannot have, otherwise as
    /// [`write_at`](DiskWriter::write_at).
    pub fn grow(&mut self, size: Size) -> Result<()> {
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
                file.set_len(new)
                    .and_then(|()| file.sync_data())
                    .map_err(|error| raw_error(path, "the file cannot be made longer", error))?;
                *len = new;
                Ok(())
            }
        }
    }

    /// Puts a new, empty delta on top, which from now on is written to. Everything written so far is
    /// brought to the disk first, and the mark of the old top is cleared.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] where there is a file of that name; otherwise as
    /// [`write_at`](DiskWriter::write_at).
    pub fn snapshot(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let header = delta::new_header(self.version(), self.cluster, self.size())?;
        self.flush()?;
        let new = WritableDelta::create(path.as_ref(), &header)?;
        self.put_on_top(new)
    }

    /// As [`snapshot`](DiskWriter::snapshot), with a delta that is there already, as libploop makes
    /// it for the driver. What it holds is part of the disk from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where it has another size, cluster size or format version than
    /// the disk; otherwise as [`snapshot`](DiskWriter::snapshot).
    pub fn push(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let new = WritableDelta::open(path.as_ref(), false)?;
        let header = new.header();
        let fits = header.size == self.size()
            && header.cluster == self.cluster
            && (header.version == self.version() || matches!(self.top, Top::Raw { .. }));
        if !fits {
            let message = format!(
                "the delta has {} in {} clusters of {}, the disk {} in {} clusters of {}",
                header.size,
                header.version,
                header.cluster,
                self.size(),
                self.version(),
                self.cluster
            );
            return Err(
                Error::new(ErrorKind::InvalidInput, OPERATION, message).with_path(path.as_ref())
            );
        }
        self.put_on_top(new)
    }

    fn version(&self) -> FormatVersion {
        match &self.top {
            Top::Delta(delta) => delta.header().version,
            Top::Raw { .. } => FormatVersion::V2,
        }
    }

    fn put_on_top(&mut self, mut new: WritableDelta) -> Result<()> {
        new.mark(true)?;
        self.finish()?;
        let raw = matches!(self.top, Top::Raw { .. });
        let layer = lower_layer(self.top(), raw)?;
        let mut layers = self.lower.take().map_or(Vec::new(), Chain::into_layers);
        layers.push(layer);
        self.lower = Some(Chain::new(layers, self.cluster)?);
        self.top = Top::Delta(new);
        Ok(())
    }

    /// Merges the top delta into the one below, which then is the top, and returns the path of the
    /// file that is no longer needed. Other deltas must not stand on the one below: they would see
    /// the change. Until the file is removed, the chain with it reads the same, after a crash, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where there is no delta below; otherwise as
    /// [`write_at`](DiskWriter::write_at).
    pub fn merge_down(&mut self) -> Result<PathBuf> {
        let none = || {
            Error::new(
                ErrorKind::InvalidInput,
                OPERATION,
                "there is no delta below",
            )
        };
        self.flush()?;
        let Top::Delta(top) = &mut self.top else {
            return Err(none());
        };
        let lower = self.lower.as_ref().ok_or_else(none)?;
        let (below, rest) = lower.layers().split_last().ok_or_else(none)?;
        let mut files: Vec<&Path> = rest.iter().map(Layer::path).collect();
        files.push(below.path());
        let raw = matches!(lower.layers()[0], Layer::Raw { .. });
        let mut target = DiskWriter::open_files(&files, self.cluster, raw, true)?;
        let size = top.header().size;
        if target.size() < size {
            target.grow(size)?;
        }
        let mut buffer = vec![0; self.cluster.bytes() as usize];
        for number in 0..top.header().entries() {
            if let Some(place) = top.cluster(number)? {
                top.read(&mut buffer, place)?;
                let offset = u64::from(number) * self.cluster.bytes();
                let left = (target.size().bytes() - offset).min(buffer.len() as u64);
                target.write_at(&buffer[..left as usize], offset)?;
            }
        }
        target.flush()?;
        let merged = top.path().to_owned();
        *self = target;
        Ok(merged)
    }

    /// Brings everything to the disk, gives back unused space at the end of the top delta and clears
    /// its mark. A writer that is dropped instead leaves the mark, as after a crash.
    ///
    /// # Errors
    ///
    /// As [`flush`](DiskWriter::flush).
    pub fn close(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        if let Top::Delta(delta) = &mut self.top {
            delta.trim()?;
            delta.mark(false)?;
        }
        Ok(())
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

fn lower_layer(path: &Path, raw: bool) -> Result<Layer> {
    if raw {
        Layer::raw(path)
    } else {
        Delta::open(path, false).map(Layer::Delta)
    }
}

fn open_raw(path: &Path) -> Result<Top> {
    let open = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        Ok((file, len))
    };
    let (file, len) =
        open().map_err(|error| raw_error(path, "the file cannot be opened", error))?;
    Ok(Top::Raw {
        path: path.to_owned(),
        file,
        len,
    })
}

fn raw_error(path: &Path, what: &str, error: std::io::Error) -> Error {
    Error::io(OPERATION, what, error).with_path(path)
}

fn check_cluster(delta: &WritableDelta, cluster: ClusterSize) -> Result<()> {
    let found = delta.header().cluster;
    if found == cluster {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        OPERATION,
        format!("the delta has clusters of {found}, the image of {cluster}"),
    )
    .with_path(delta.path())
    .with_offset(28))
}

/// A part of a request that lies in one cluster.
struct Piece {
    cluster: u32,
    /// Where it begins in its cluster.
    within: u64,
    /// Where it begins on the disk.
    offset: u64,
    /// Where it lies in the buffer.
    start: usize,
    len: usize,
}

impl Piece {
    fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// Splits a request, which lies within the disk, at the clusters.
fn pieces(offset: u64, len: usize, cluster: ClusterSize) -> impl Iterator<Item = Piece> {
    let size = cluster.bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let at = offset + start as u64;
        let within = at % size;
        let piece = Piece {
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
