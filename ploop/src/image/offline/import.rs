//! [`Importer`]: fills a new delta or raw file, one thread reading and another one writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use super::change::cancelled;
use super::size::widest;
use crate::image::aligned_buffer::AlignedBuffer;
use crate::image::holes::is_zero;
use crate::image::progress::{Progress, counted};
use crate::image::write::{Storage, WritableDelta, write_zeros};
use crate::image::{Disk, Header};
use crate::{ClusterSize, Error, ErrorKind, Result, Size};

/// How much is read at a time; clusters are at least so large, or a power of two smaller.
const UNIT: u64 = 1 << 20;
/// How many units may wait to be written.
const QUEUE: usize = 4;

/// A new file that is filled from the beginning to the end.
pub(super) struct Importer {
    operation: &'static str,
    target: NewTarget,
    cluster: u64,
    /// The cluster that was last written to, and its offset in the file.
    current: Option<(u32, u64)>,
    /// Where the last unit ended on the disk.
    end: u64,
}

enum NewTarget {
    Delta(Box<WritableDelta>),
    Raw {
        path: PathBuf,
        file: File,
        /// Whether zeros are written, because the file system cannot allocate space that reads as zero.
        dense: bool,
    },
}

impl Importer {
    pub(super) fn delta(operation: &'static str, delta: WritableDelta) -> Importer {
        Importer {
            operation,
            cluster: delta.header().cluster.bytes(),
            target: NewTarget::Delta(Box::new(delta)),
            current: None,
            end: 0,
        }
    }

    pub(super) fn raw(
        operation: &'static str,
        path: &Path,
        file: File,
        cluster: ClusterSize,
    ) -> Importer {
        let cluster = cluster.bytes();
        let dense = matches!(
            Storage::allocate(&file, 0, cluster.min(UNIT)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported
        );
        let path = path.to_owned();
        Importer {
            operation,
            target: NewTarget::Raw { path, file, dense },
            cluster,
            current: None,
            end: 0,
        }
    }

    /// How much [`write`](Importer::write) takes at a time, from an offset that is a multiple of it.
    pub(super) fn unit(&self) -> usize {
        self.cluster.min(UNIT) as usize
    }

    /// Lets the table of a delta have entries for a disk of this size. The delta's size is set at the end.
    pub(super) fn make_room(&mut self, size: Size) -> Result<()> {
        let NewTarget::Delta(delta) = &mut self.target else {
            return Ok(());
        };
        let Header {
            version, cluster, ..
        } = *delta.header();
        while delta.header().size < size {
            let table = delta.header().data_start() / self.cluster;
            delta
                .grow_to(widest(version, cluster, table + 1)?)
                .map_err(|error| error.during(self.operation))?;
            // It may have been moved.
            self.current = None;
        }
        Ok(())
    }

    /// Writes a unit. Zeros for a cluster that has nothing yet take no space.
    pub(super) fn write(&mut self, unit: &[u8], offset: u64) -> Result<()> {
        match self.place(unit, offset)? {
            Some(at) => self.file().write_all_at(unit, at).map_err(|error| {
                Error::io(self.operation, "the data cannot be written", error)
                    .with_path(self.path())
                    .with_offset(at)
            }),
            None => Ok(()),
        }
    }

    /// Where a unit is to be written, if it is.
    fn place(&mut self, unit: &[u8], offset: u64) -> Result<Option<u64>> {
        self.end = offset + unit.len() as u64;
        let zero = is_zero(unit);
        let delta = match &mut self.target {
            NewTarget::Delta(delta) => delta,
            NewTarget::Raw { dense, .. } => return Ok((*dense || !zero).then_some(offset)),
        };
        let number = (offset / self.cluster) as u32;
        let within = offset % self.cluster;
        let mut add = || {
            if let Some(start) = delta.cluster(number)? {
                return Ok(Some(start));
            }
            if zero {
                return Ok(None);
            }
            let (start, _) = delta.allocate()?;
            // What comes before. What comes behind is written, too.
            delta.write_zeros(start, within)?;
            delta.map_cluster(number, start)?;
            Ok(Some(start))
        };
        let start = match self.current {
            Some((current, start)) if current == number => Some(start),
            _ => add().map_err(|error: Error| error.during(self.operation))?,
        };
        self.current = start.map(|start| (number, start));
        Ok(start.map(|start| start + within))
    }

    fn file(&self) -> &File {
        match &self.target {
            NewTarget::Delta(delta) => delta.file(),
            NewTarget::Raw { file, .. } => file,
        }
    }

    fn path(&self) -> &Path {
        match &self.target {
            NewTarget::Delta(delta) => delta.path(),
            NewTarget::Raw { path, .. } => path,
        }
    }

    /// Copies what a disk has, and finishes.
    pub(super) fn copy_disk(
        mut self,
        disk: &Disk,
        size: Size,
        cancel: Option<&AtomicBool>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let operation = self.operation;
        let path = self.path().to_owned();
        let failed = |what, error| Error::io(operation, what, error).with_path(&path);
        let file = self
            .file()
            .try_clone()
            .map_err(|error| failed("the file cannot be opened again", error))?;
        let mut report = counted(disk.allocated_in(&(0..u64::MAX))?, progress);
        let unit = self.unit();
        thread::scope(|scope| {
            let (full, to_write) = mpsc::sync_channel::<(AlignedBuffer, u64)>(QUEUE);
            let (empty, to_fill) = mpsc::channel::<AlignedBuffer>();
            for _ in 0..=QUEUE {
                // The other end is below.
                let _ = empty.send(AlignedBuffer::new(unit));
            }
            let writer = scope.spawn(move || {
                for (buffer, at) in to_write {
                    file.write_all_at(&buffer, at)?;
                    // The reader may be done.
                    let _ = empty.send(buffer);
                }
                Ok(())
            });
            let mut spare = None;
            let mut read = || -> Result<()> {
                let mut next = 0;
                for extent in disk.extents() {
                    let extent = extent?;
                    let end = extent.offset + extent.len;
                    // In whole clusters of the new file, each once.
                    let mut at = next.max(extent.offset - extent.offset % self.cluster);
                    next = end.next_multiple_of(self.cluster);
                    while at < next {
                        if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                            return Err(cancelled(operation));
                        }
                        let Some(mut buffer) = spare.take().or_else(|| to_fill.recv().ok()) else {
                            // The writer has failed.
                            return Ok(());
                        };
                        let len = disk.read_at(&mut buffer, at)?;
                        buffer[len..].fill(0);
                        match self.place(&buffer, at)? {
                            Some(to) => {
                                if full.send((buffer, to)).is_err() {
                                    return Ok(());
                                }
                            }
                            None => spare = Some(buffer),
                        }
                        let stop = at + unit as u64;
                        report(end.min(stop).saturating_sub(extent.offset.max(at)));
                        at = stop;
                    }
                }
                Ok(())
            };
            let result = read();
            drop(full);
            let written: io::Result<()> = match writer.join() {
                Ok(written) => written,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            result.and(written.map_err(|error| failed("the data cannot be written", error)))
        })?;
        self.finish(size)
    }

    /// Sets the size of the disk, completes the last cluster, and syncs everything.
    pub(super) fn finish(self, size: Size) -> Result<()> {
        let operation = self.operation;
        match self.target {
            NewTarget::Raw { path, file, .. } => {
                allocate_all(operation, &path, &file, size)?;
                file.sync_all().map_err(|error| {
                    let what = "the file cannot be brought to the disk";
                    Error::io(operation, what, error).with_path(path)
                })
            }
            NewTarget::Delta(mut delta) => {
                let mut finish = || {
                    let rest = self.end.next_multiple_of(self.cluster) - self.end;
                    if let (Some((_, start)), 1..) = (self.current, rest) {
                        delta.write_zeros(start + self.cluster - rest, rest)?;
                    }
                    delta.flush()?;
                    if delta.header().size != size {
                        let Header {
                            version, cluster, ..
                        } = *delta.header();
                        let mut header = Header::new(version, cluster, size)?;
                        header.flags = delta.header().flags;
                        delta.put_header(header)?;
                    }
                    delta.settle_flags()
                };
                finish().map_err(|error| error.during(operation))
            }
        }
    }
}

/// Makes a raw file as long as a disk, without holes.
pub(super) fn allocate_all(
    operation: &'static str,
    path: &Path,
    file: &File,
    size: Size,
) -> Result<()> {
    let bytes = size.bytes();
    let allocate = || -> io::Result<()> {
        match Storage::allocate(file, 0, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let len = Storage::len(file)?;
                write_zeros(file, len, bytes.saturating_sub(len))
            }
            allocated => allocated,
        }
    };
    allocate().map_err(|error| {
        Error::io(operation, "the space cannot be allocated", error).with_path(path)
    })
}

/// Requires that a raw file cannot be taken for a delta.
pub(super) fn require_no_header(operation: &'static str, file: &File, path: &Path) -> Result<()> {
    if !Header::is_in(file) {
        return Ok(());
    }
    let why =
        "the disk begins with the header of a delta, and a raw file of it would be taken for one";
    Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(path))
}
