//! [`Target`]: the file to which clusters are copied.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::change::OfflineChange;
use super::copy::{Copier, Piece, Pieces};
use crate::image::chain::{Chain, Location};
use crate::image::descriptor::Image;
use crate::image::file;
use crate::image::header::Header;
use crate::image::progress::{Progress, counted};
use crate::image::table::PAGE;
use crate::image::write::{WritableDelta, extend};
use crate::{Error, Result, Size};

/// How much is copied before entries of the table are set.
const BATCH: u64 = 1 << 30;

/// A delta or a raw base that is written to.
pub(super) struct Target {
    operation: &'static str,
    file: TargetFile,
}

enum TargetFile {
    Delta(Box<WritableDelta>),
    Raw { path: PathBuf, file: File, len: u64 },
}

/// Calls `f` with each cluster of the disk that any file of a chain has.
pub(super) fn for_each_cluster(
    chain: &Chain,
    mut f: impl FnMut(u32, Location) -> Result<()>,
) -> Result<()> {
    let mut locations = Vec::new();
    for page in 0..chain.pages() {
        chain.page(page, &mut locations)?;
        for (index, location) in (0..).zip(&locations) {
            if let Some(location) = location {
                f(page * PAGE + index, *location)?;
            }
        }
    }
    Ok(())
}

impl Target {
    pub(super) fn of_delta(operation: &'static str, delta: WritableDelta) -> Target {
        let file = TargetFile::Delta(Box::new(delta));
        Target { operation, file }
    }

    /// A new raw file of this size.
    pub(super) fn of_raw(operation: &'static str, path: &Path, file: File, size: Size) -> Target {
        let (path, len) = (path.to_owned(), size.bytes());
        let file = TargetFile::Raw { path, file, len };
        Target { operation, file }
    }

    /// Opens a file of the image.
    pub(super) fn open(change: &OfflineChange<'_>, image: &Image) -> Result<Target> {
        let operation = change.operation();
        let failed = |error: Error| error.during(operation).with_path(&image.file);
        let file = WritableDelta::open_file(&image.file).map_err(failed)?;
        if !change.is_raw_base(image) {
            let delta = WritableDelta::from_file(&image.file, file, false);
            return Ok(Target::of_delta(operation, delta.map_err(failed)?));
        }
        let len = file::length(operation, &file).map_err(failed)?;
        let path = image.file.clone();
        let file = TargetFile::Raw { path, file, len };
        Ok(Target { operation, file })
    }

    pub(super) fn size(&self) -> Size {
        match &self.file {
            TargetFile::Delta(delta) => delta.header().size,
            TargetFile::Raw { len, .. } => Size::from_bytes(len.next_multiple_of(512)),
        }
    }

    /// Allocates the space for the clusters of a chain, and returns how many bytes these have. An error changes nothing.
    pub(super) fn reserve(&mut self, source: &Chain) -> Result<u64> {
        let cluster = source.cluster().bytes();
        let (mut total, mut new) = (0, 0);
        for_each_cluster(source, |number, _| {
            total += cluster;
            if let TargetFile::Delta(delta) = &mut self.file {
                new += u64::from(delta.cluster(number)?.is_none());
            }
            Ok(())
        })
        .map_err(|error| error.during(self.operation))?;
        if let TargetFile::Delta(delta) = &mut self.file {
            delta
                .preallocate(new)
                .map_err(|error| error.during(self.operation))?;
        }
        Ok(total)
    }

    /// Makes the disk larger, if it is smaller.
    pub(super) fn grow(&mut self, size: Size) -> Result<()> {
        if self.size() >= size {
            return Ok(());
        }
        let grown = match &mut self.file {
            TargetFile::Delta(delta) => {
                let Header {
                    version, cluster, ..
                } = *delta.header();
                Header::new(version, cluster, size).and_then(|header| delta.grow_to(header))
            }
            TargetFile::Raw { path, file, len } => {
                let grown = extend(file, *len, size.bytes());
                *len = size.bytes();
                grown.map_err(|error| {
                    let what = "the file cannot be made longer";
                    Error::io(self.operation, what, error).with_path(&*path)
                })
            }
        };
        grown.map_err(|error| error.during(self.operation))
    }

    /// Copies the clusters of a chain, `total` bytes.
    pub(super) fn copy(
        &mut self,
        change: &OfflineChange<'_>,
        source: &Chain,
        total: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let mut report = counted(Size::from_bytes(total), progress);
        let cluster = source.cluster().bytes();
        let size = source.size().bytes();
        let mut batch = Batch::default();
        for_each_cluster(source, |number, location| {
            let offset = u64::from(number) * cluster;
            let (to, len) = match &mut self.file {
                TargetFile::Raw { .. } => (offset, cluster.min(size - offset)),
                TargetFile::Delta(delta) => (batch.place(delta, number)?, cluster),
            };
            batch.pieces.add(Piece {
                level: location.level,
                from: location.offset,
                to,
                len,
            });
            if batch.pieces.len() >= BATCH {
                self.copy_batch(change, source, &mut batch, &mut report)?;
            }
            Ok(())
        })
        .map_err(|error| error.during(self.operation))?;
        self.copy_batch(change, source, &mut batch, &mut report)
    }

    fn copy_batch(
        &mut self,
        change: &OfflineChange<'_>,
        source: &Chain,
        batch: &mut Batch,
        report: &mut dyn FnMut(u64),
    ) -> Result<()> {
        Copier::new(change, source, self.file(), self.path()).copy(&batch.pieces, report)?;
        if let TargetFile::Delta(delta) = &mut self.file {
            for (number, offset) in batch.new.drain(..) {
                delta
                    .map_cluster(number, offset)
                    .map_err(|error| error.during(self.operation))?;
            }
        }
        batch.pieces.clear();
        Ok(())
    }

    fn file(&self) -> &File {
        match &self.file {
            TargetFile::Delta(delta) => delta.file(),
            TargetFile::Raw { file, .. } => file,
        }
    }

    fn path(&self) -> &Path {
        match &self.file {
            TargetFile::Delta(delta) => delta.path(),
            TargetFile::Raw { path, .. } => path,
        }
    }

    /// Syncs everything, and cuts off space that was allocated and is not used.
    pub(super) fn finish(self) -> Result<()> {
        let operation = self.operation;
        match self.file {
            TargetFile::Delta(mut delta) => delta
                .flush()
                .and_then(|()| delta.trim())
                .and_then(|()| delta.settle_flags())
                .map_err(|error| error.during(operation)),
            TargetFile::Raw { path, file, .. } => file.sync_data().map_err(|error: io::Error| {
                let what = "the data cannot be brought to the disk";
                Error::io(operation, what, error).with_path(path)
            }),
        }
    }
}

/// Clusters that are copied together.
#[derive(Default)]
struct Batch {
    pieces: Pieces,
    /// Clusters of the disk that get an entry, and their offsets in the file.
    new: Vec<(u32, u64)>,
}

impl Batch {
    /// Where a cluster goes.
    fn place(&mut self, delta: &mut WritableDelta, number: u32) -> Result<u64> {
        if let Some(offset) = delta.cluster(number)? {
            return Ok(offset);
        }
        let (offset, _) = delta.allocate()?;
        self.new.push((number, offset));
        Ok(offset)
    }
}
