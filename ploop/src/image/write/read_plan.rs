//! [`ReadPlan`]: reading in two steps, so that many threads can read while one writes. The writer looks up where the
//! data is; the plan then reads it without the writer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DiskWriter, Top, cluster_parts};
use crate::image::chain::Chain;
use crate::{Error, Result};

/// Where the data of a range of a disk is: see [`DiskWriter::plan_read`].
#[derive(Debug)]
pub struct ReadPlan {
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    len: usize,
    /// `None` reads as zero.
    source: Option<Source>,
}

/// A place in a file. The file stays open when the writer is gone.
#[derive(Debug)]
struct Source {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
}

impl ReadPlan {
    /// How many bytes the plan reads: fewer than were asked for only at the end of the disk.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Whether the range is empty, or begins behind the end of the disk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Fills the first [`len`](ReadPlan::len) bytes of the buffer, which must be so long at least.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) where a file cannot be read. The contents of the buffer are then
    /// undefined.
    pub fn read(&self, mut buffer: &mut [u8]) -> Result<()> {
        for segment in &self.segments {
            let (now, rest) = buffer.split_at_mut(segment.len);
            match &segment.source {
                None => now.fill(0),
                Some(source) => source.read(now)?,
            }
            buffer = rest;
        }
        Ok(())
    }

    /// The pieces of the range, in their order: the number of bytes of each, and the file and the offset at which they are;
    /// `None` for zeros. For callers that pass data on without reading it, by `splice` or `sendfile`.
    ///
    /// A piece may reach over several clusters that follow each other in the file.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, Option<(&File, u64)>)> {
        self.segments.iter().map(|segment| {
            let place = segment.source.as_ref();
            (segment.len, place.map(|place| (&*place.file, place.offset)))
        })
    }

    fn push(&mut self, len: usize, source: Option<(&Arc<File>, &Path, u64)>) {
        if let Some(last) = self.segments.last_mut() {
            let follows = match (&last.source, source) {
                (None, None) => true,
                (Some(last_source), Some((file, _, offset))) => {
                    Arc::ptr_eq(&last_source.file, file)
                        && last_source.offset + last.len as u64 == offset
                }
                _ => false,
            };
            if follows {
                last.len += len;
                return;
            }
        }
        let source = source.map(|(file, path, offset)| Source {
            file: Arc::clone(file),
            path: path.to_owned(),
            offset,
        });
        self.segments.push(Segment { len, source });
    }

    /// Adds a range that is read from the chain below the top.
    fn push_lower(&mut self, chain: &Chain, mut offset: u64, mut len: usize) -> Result<()> {
        while len > 0 {
            let (location, run) = chain.locate(offset, len as u64)?;
            // At most `len`.
            let run = run as usize;
            match location {
                None => self.push(run, None),
                Some(location) => {
                    let level = &chain.levels()[location.level];
                    self.push(
                        run,
                        Some((level.shared_file(), level.path(), location.offset)),
                    );
                }
            }
            offset += run as u64;
            len -= run;
        }
        Ok(())
    }
}

impl Source {
    fn read(&self, buffer: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(buffer, self.offset);
        read.map_err(|error| {
            Error::io("read image", "the data cannot be read", error)
                .with_path(&self.path)
                .with_offset(self.offset)
        })
    }
}

impl DiskWriter {
    /// Looks up where the disk's data from `offset` on is, for a reader that does not hold the writer.
    ///
    /// The plan is valid until clusters are discarded or moved, after which other data may be in the same place: until
    /// [`discard`](DiskWriter::discard), [`write_zeroes`](DiskWriter::write_zeroes), [`release`](DiskWriter::release),
    /// [`compact`](DiskWriter::compact), [`merge_down`](DiskWriter::merge_down) and everything that changes or reloads
    /// levels. [`write_at`](DiskWriter::write_at) and [`flush`](DiskWriter::flush) leave it valid: where they run at the
    /// same time as [`ReadPlan::read`], each byte is the old one or the new one.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// # let mut disk = ploop::image::DiskWriter::open(image.path())?;
    /// disk.write_at(b"hello", 0)?;
    /// let plan = disk.plan_read(0, 5)?;
    /// let mut text = [0; 5];
    /// std::thread::scope(|scope| scope.spawn(|| plan.read(&mut text)).join().unwrap())?;
    /// assert_eq!(&text, b"hello");
    /// disk.close()?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`read_at`](DiskWriter::read_at).
    pub fn plan_read(&mut self, offset: u64, len: usize) -> Result<ReadPlan> {
        let left = self.size().bytes().saturating_sub(offset);
        let len = usize::try_from(left).map_or(len, |left| left.min(len));
        let mut plan = ReadPlan {
            segments: Vec::new(),
        };
        for part in cluster_parts(offset, len, self.cluster) {
            if let Some(merge) = &mut self.merge {
                let delta = &mut merge.source;
                if let Some(file_offset) = delta.cluster(part.cluster)? {
                    let file = delta.shared_file()?;
                    plan.push(
                        part.len,
                        Some((&file, delta.path(), file_offset + part.within)),
                    );
                    continue;
                }
            }
            match &mut self.top {
                Top::Raw { path, file, .. } => {
                    plan.push(part.len, Some((file, path, part.offset)));
                }
                Top::Delta(delta) => match delta.cluster(part.cluster)? {
                    Some(file_offset) => {
                        let file = delta.shared_file()?;
                        let source = (&file, delta.path(), file_offset + part.within);
                        plan.push(part.len, Some(source));
                    }
                    None => match &self.lower {
                        Some(lower) => plan.push_lower(lower, part.offset, part.len)?,
                        None => plan.push(part.len, None),
                    },
                },
            }
        }
        Ok(plan)
    }
}
