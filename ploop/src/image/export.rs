//! [`Disk::export`]: copies the virtual disk to a raw file with holes; [`Disk::stream`]: to a pipe; [`Disk::copy_to`]: to
//! whatever takes data at an offset.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use super::aligned_buffer::AlignedBuffer;
use super::atomic_file::AtomicFile;
use super::chain::Level;
use super::disk::Disk;
use super::export_file;
use super::extents::{Mapping, Mappings};
use super::holes::{self, DataRun};
use super::progress::{Progress, counted};
use crate::{Error, ErrorKind, Result, Size};

const OPERATION: &str = "export image";

/// How much one thread copies at a time: large enough to read in order, small enough to share the work.
const CHUNK: u64 = 8 << 20;
/// How much one thread reads at a time, and the other way around: file systems keep what is written at once in large
/// pieces of memory.
const BUFFER: usize = 1 << 20;
/// The unit in which zeros are found.
const BLOCK: usize = 4 << 10;
/// The shortest hole between data: each costs a system call and an extent, so fewer zeros are written.
const MIN_HOLE: usize = 16 << 10;

/// How [`Disk::export`] works.
///
/// ```
/// use ploop::image::ExportOptions;
///
/// let options = ExportOptions::new().overwrite(true).sync(false);
/// ```
#[derive(Debug, Clone)]
pub struct ExportOptions {
    threads: Option<NonZeroUsize>,
    overwrite: bool,
    sync: bool,
    find_zeros: bool,
    part: Option<(u64, Size)>,
    cancel: Option<Arc<AtomicBool>>,
}

impl Default for ExportOptions {
    fn default() -> ExportOptions {
        ExportOptions {
            threads: None,
            overwrite: false,
            sync: true,
            find_zeros: true,
            part: None,
            cancel: None,
        }
    }
}

impl ExportOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> ExportOptions {
        ExportOptions::default()
    }

    /// How many threads copy; each holds a MiB in memory. By default, and with 0, one for each
    /// processor, up to 8.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> ExportOptions {
        self.threads = NonZeroUsize::new(threads);
        self
    }

    /// Whether to replace a file that has the name already (default: no).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> ExportOptions {
        self.overwrite = overwrite;
        self
    }

    /// Whether to bring the data to the disk before the file gets its name (default: yes). Without
    /// it, a host that goes down soon after may leave a file that is not whole.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> ExportOptions {
        self.sync = sync;
        self
    }

    /// Whether to leave holes where the image stores zeros (default: yes), and not only where it
    /// stores nothing.
    #[must_use]
    pub fn find_zeros(mut self, find: bool) -> ExportOptions {
        self.find_zeros = find;
        self
    }

    /// Copies a part of the disk, such as a partition (default: all of it). It begins at `offset`, in bytes. What is
    /// behind the end of the disk is zero.
    #[must_use]
    pub fn part(mut self, offset: u64, size: Size) -> ExportOptions {
        self.part = Some((offset, size));
        self
    }

    /// Once `flag` is set, the export ends with an error and leaves no file.
    #[must_use]
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> ExportOptions {
        self.cancel = Some(flag);
        self
    }

    fn thread_count(&self) -> usize {
        self.threads.map_or_else(
            || thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            NonZeroUsize::get,
        )
    }

    fn require_not_cancelled(&self) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::new(
                ErrorKind::Cancelled,
                OPERATION,
                "the export was cancelled",
            )),
            _ => Ok(()),
        }
    }

    /// Which bytes of the disk are copied.
    fn range(&self, disk: &Disk) -> Range<u64> {
        match self.part {
            Some((offset, size)) => offset..offset.saturating_add(size.bytes()),
            None => 0..disk.size().bytes(),
        }
    }
}

/// The part of a mapping that lies in a range of the disk.
fn clip(mapping: Mapping, range: &Range<u64>) -> Option<Mapping> {
    let start = mapping.offset.max(range.start);
    let end = (mapping.offset + mapping.len).min(range.end);
    (start < end).then(|| Mapping {
        offset: start,
        len: end - start,
        level: mapping.level,
        file_offset: mapping.file_offset + (start - mapping.offset),
    })
}

impl Disk {
    /// Writes the disk into a plain file with holes where there is nothing but zeros.
    ///
    /// `progress` is called on this thread: once at the beginning, then after every few MiB, and
    /// with everything copied at the end.
    ///
    /// The file gets its name, and mode 0600, when it is complete; an export that fails or is
    /// killed leaves none and starts over the next time. (On file systems that cannot make a file
    /// without a name, a killed export leaves `.NAME.….partial` behind.) The tables are read before
    /// the file is made, so that a damaged one is found at once.
    ///
    /// ```no_run
    /// use ploop::image::{Disk, ExportOptions};
    ///
    /// let disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// disk.export("/backup/101.raw", &ExportOptions::new(), |progress| {
    ///     println!("{:.1} of {:.1}", progress.copied, progress.total);
    /// })?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] where the file exists (see [`ExportOptions::overwrite`]),
    /// [`ErrorKind::InvalidInput`] where it is a file of the image itself, by whatever name, or has the name of one
    /// that libploop makes beside it, or is the descriptor of another image or a delta that one beside it names, or is not
    /// a regular file,
    /// [`ErrorKind::Cancelled`] after [`ExportOptions::cancel`], [`ErrorKind::NoSpace`] where it does
    /// not fit, and those of [`Disk::read_at`].
    pub fn export(
        &self,
        path: impl AsRef<Path>,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        let path = path.as_ref();
        self.export_to(path, options, progress)
            .map_err(|error| match self.source() {
                Some(source) => error.with_paths(path, source),
                None => error,
            })
    }

    /// Requires that [`export`](Disk::export) may make this file: that nothing has the name, or with `overwrite` a regular
    /// file that is no file of this or another image, by whatever name, and none that libploop makes beside it. For programs that
    /// write another format by [`copy_to`](Disk::copy_to).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] and [`ErrorKind::InvalidInput`], as [`export`](Disk::export).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let file = dir.path().join("plain");
    /// # std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    /// # let image = ploop::image::Image::new(ploop::Guid::TOP, &file, ploop::image::ImageKind::Plain);
    /// # let descriptor = ploop::Descriptor::new(ploop::Size::from_mib(1), image);
    /// # let disk = ploop::image::OpenOptions::new().open_descriptor(&descriptor, descriptor.top)?;
    /// disk.require_other_file(dir.path().join("disk.qcow2"), false)?;
    /// assert!(disk.require_other_file(&file, true).is_err());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn require_other_file(&self, path: impl AsRef<Path>, overwrite: bool) -> Result<()> {
        export_file::require_replaceable(OPERATION, self, path.as_ref(), overwrite)
    }

    /// What errors call the image: its descriptor, or the topmost file that was opened.
    fn source(&self) -> Option<&Path> {
        let descriptor = self.image_files().descriptors.first();
        descriptor.map_or_else(|| self.files().last(), |path| Some(path))
    }

    fn export_to(
        &self,
        path: &Path,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        export_file::require_replaceable(OPERATION, self, path, options.overwrite)?;
        let range = options.range(self);
        let total = self.allocated_in(&range)?;
        let target = AtomicFile::create(OPERATION, path)?;
        target
            .file()
            .set_len(range.end - range.start)
            .map_err(write_failed)?;

        let file = OneWriter::new(target.file());
        self.copy_range(range, total, &file, options, progress)?;
        if options.sync {
            let synced = target.file().sync_all();
            synced.map_err(write_failed)?;
        }
        let dir = options.sync.then(|| target.dir().to_owned());
        target.publish(options.overwrite)?;
        if let Some(dir) = dir {
            File::open(&dir)
                .and_then(|dir| dir.sync_all())
                .map_err(|error| write_failed(error).with_path(dir))?;
        }
        Ok(())
    }
}

impl Disk {
    /// Writes the disk to a pipe, a socket or whatever takes bytes, from the first to the last, zeros included. Of
    /// the options [`part`](ExportOptions::part) and [`cancel`](ExportOptions::cancel) count.
    ///
    /// `progress` is called as in [`export`](Disk::export).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let file = dir.path().join("plain");
    /// # std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    /// # let image = ploop::image::Image::new(ploop::Guid::TOP, &file, ploop::image::ImageKind::Plain);
    /// # let descriptor = ploop::Descriptor::new(ploop::Size::from_mib(1), image);
    /// use ploop::image::{ExportOptions, OpenOptions};
    /// use sha2::{Digest, Sha256};
    ///
    /// let disk = OpenOptions::new().open_descriptor(&descriptor, descriptor.top)?;
    /// let mut hasher = Sha256::new();
    /// disk.stream(&mut hasher, &ExportOptions::new(), |_| ())?;
    /// assert_eq!(hasher.finalize(), Sha256::digest(vec![7; 1 << 20]));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] where the output cannot be written; [`ErrorKind::Cancelled`] after [`ExportOptions::cancel`];
    /// those of [`Disk::read_at`].
    pub fn stream(
        &self,
        output: impl Write,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        self.stream_to(output, options, progress)
            .map_err(|error| self.at_source(error))
    }

    fn stream_to(
        &self,
        mut output: impl Write,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        let failed = |error| Error::io(OPERATION, "the output cannot be written", error);
        let range = options.range(self);
        let total = self.allocated_in(&range)?;
        let mut report = counted(total, progress);
        let mut queue = MappingQueue {
            mappings: self.mappings(),
            range: range.clone(),
            rest: None,
        };
        let zeros = vec![0; BUFFER];
        let mut buffer = AlignedBuffer::new(BUFFER);
        let mut at = range.start;
        loop {
            let mapping = queue.next()?;
            let next = mapping.map_or(range.end, |mapping| mapping.offset);
            while at < next {
                options.require_not_cancelled()?;
                let part = (next - at).min(BUFFER as u64);
                output.write_all(&zeros[..part as usize]).map_err(failed)?;
                at += part;
            }
            let Some(mapping) = mapping else {
                return output.flush().map_err(failed);
            };
            let end = mapping.offset + mapping.len;
            while at < end {
                options.require_not_cancelled()?;
                let part = &mut buffer[..(end - at).min(BUFFER as u64) as usize];
                self.read_mapped(&mapping, at, part)?;
                output.write_all(part).map_err(failed)?;
                at += part.len() as u64;
                report(part.len() as u64);
            }
        }
    }

    /// Copies the data of the disk to whatever takes data at an offset, such as a writer of another image format. All
    /// options count but [`overwrite`](ExportOptions::overwrite) and [`sync`](ExportOptions::sync).
    ///
    /// Several threads write at the same time, in no order; no two write the same bytes. What is not written is zero.
    /// `progress` is called as in [`export`](Disk::export).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let file = dir.path().join("plain");
    /// # std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    /// # let image = ploop::image::Image::new(ploop::Guid::TOP, &file, ploop::image::ImageKind::Plain);
    /// # let descriptor = ploop::Descriptor::new(ploop::Size::from_mib(1), image);
    /// use std::io;
    /// use std::sync::Mutex;
    /// use ploop::image::{ExportOptions, ExportTarget, OpenOptions};
    ///
    /// struct Memory(Mutex<Vec<u8>>);
    ///
    /// impl ExportTarget for Memory {
    ///     fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
    ///         let offset = offset as usize;
    ///         self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let disk = OpenOptions::new().open_descriptor(&descriptor, descriptor.top)?;
    /// let memory = Memory(Mutex::new(vec![0; disk.size().bytes() as usize]));
    /// disk.copy_to(&memory, &ExportOptions::new(), |_| ())?;
    /// assert_eq!(memory.0.into_inner().unwrap(), vec![7; 1 << 20]);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`stream`](Disk::stream).
    pub fn copy_to(
        &self,
        target: &impl ExportTarget,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        let range = options.range(self);
        let total = self.allocated_in(&range)?;
        self.copy_range(range, total, target, options, progress)
            .map_err(|error| self.at_source(error))
    }

    /// Puts the image into errors that are about no file yet.
    fn at_source(&self, error: Error) -> Error {
        match (error.path(), self.source()) {
            (None, Some(source)) => error.with_path(source),
            _ => error,
        }
    }

    fn copy_range(
        &self,
        range: Range<u64>,
        total: Size,
        target: &dyn ExportTarget,
        options: &ExportOptions,
        progress: impl FnMut(Progress),
    ) -> Result<()> {
        let job = ExportJob {
            disk: self,
            target,
            options,
            start: range.start,
            queue: Mutex::new(MappingQueue {
                mappings: self.mappings(),
                range,
                rest: None,
            }),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
        };
        job.run(counted(total, progress));
        let failure = job.failure.into_inner();
        failure
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// What is allocated in a range of the disk.
    pub(super) fn allocated_in(&self, range: &Range<u64>) -> Result<Size> {
        let mut total = 0;
        for extent in self.extents() {
            let extent = extent?;
            let end = (extent.offset + extent.len).min(range.end);
            total += end.saturating_sub(extent.offset.max(range.start));
        }
        Ok(Size::from_bytes(total))
    }
}

fn write_failed(error: impl Into<io::Error>) -> Error {
    Error::io(OPERATION, "the file cannot be written", error)
}

/// Where [`Disk::copy_to`] puts the data.
pub trait ExportTarget: Sync {
    /// Writes all of `data`. Called by several threads at the same time, for parts that do not overlap.
    ///
    /// # Errors
    ///
    /// The export ends with an error that contains this one.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
}

impl ExportTarget for File {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }
}

/// A file to which one thread writes at a time. The kernel sees to that as well, but has the other threads spin meanwhile.
struct OneWriter<'a> {
    file: &'a File,
    writing: Mutex<()>,
}

impl<'a> OneWriter<'a> {
    fn new(file: &'a File) -> OneWriter<'a> {
        OneWriter {
            file,
            writing: Mutex::new(()),
        }
    }
}

impl ExportTarget for OneWriter<'_> {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(data, offset)
    }
}

/// An export that is running.
struct ExportJob<'a> {
    disk: &'a Disk,
    target: &'a dyn ExportTarget,
    options: &'a ExportOptions,
    /// The offset on the disk of the first byte of the target.
    start: u64,
    queue: Mutex<MappingQueue<'a>>,
    failure: Mutex<Option<Error>>,
    stop: AtomicBool,
}

/// What is still to be copied, in pieces of at most [`CHUNK`].
struct MappingQueue<'a> {
    mappings: Mappings<'a>,
    range: Range<u64>,
    rest: Option<Mapping>,
}

impl MappingQueue<'_> {
    fn next(&mut self) -> Result<Option<Mapping>> {
        let mapping = match self.rest.take() {
            Some(rest) => rest,
            None => loop {
                let Some(mapping) = self.mappings.next().transpose()? else {
                    return Ok(None);
                };
                if mapping.offset >= self.range.end {
                    return Ok(None);
                }
                if let Some(mapping) = clip(mapping, &self.range) {
                    break mapping;
                }
            },
        };
        if mapping.len <= CHUNK {
            return Ok(Some(mapping));
        }
        self.rest = Some(Mapping {
            offset: mapping.offset + CHUNK,
            len: mapping.len - CHUNK,
            file_offset: mapping.file_offset + CHUNK,
            ..mapping
        });
        Ok(Some(Mapping {
            len: CHUNK,
            ..mapping
        }))
    }
}

impl ExportJob<'_> {
    fn run(&self, mut report: impl FnMut(u64)) {
        let (sender, receiver) = mpsc::sync_channel(64);
        thread::scope(|scope| {
            for _ in 0..self.options.thread_count() {
                let sender = sender.clone();
                scope.spawn(move || {
                    if let Err(error) = self.work(&sender) {
                        self.stop.store(true, Ordering::Relaxed);
                        let mut failure =
                            self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                    }
                });
            }
            drop(sender);
            for bytes in receiver {
                report(bytes);
            }
        });
    }

    fn work(&self, sender: &mpsc::SyncSender<u64>) -> Result<()> {
        let mut buffer = AlignedBuffer::new(BUFFER);
        let mut runs = vec![DataRun::default(); self.disk.files().len()];
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next()?;
            let Some(mapping) = next else {
                return Ok(());
            };
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.options.require_not_cancelled()?;
            self.copy(&mapping, &mut runs, &mut buffer)?;
            // The progress function has panicked, and the receiver is gone.
            if sender.send(mapping.len).is_err() {
                return Ok(());
            }
        }
    }

    fn copy(&self, mapping: &Mapping, runs: &mut [DataRun], buffer: &mut [u8]) -> Result<()> {
        let level = mapping.level;
        let file = self.disk.storages().level(level).map(Level::file);
        let (from, end) = (mapping.file_offset, mapping.file_offset + mapping.len);
        let mut at = from;
        // A cluster that is allocated may still be a hole of the file.
        while let Some((start, stop)) = file.and_then(|file| runs[level].next(file, at, end)) {
            let offset = mapping.offset + (start - from);
            self.copy_data(mapping, offset..offset + (stop - start), buffer)?;
            at = stop;
        }
        Ok(())
    }

    /// Copies a range of the disk that lies in a mapping.
    fn copy_data(&self, mapping: &Mapping, range: Range<u64>, buffer: &mut [u8]) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let part = (range.end - at).min(buffer.len() as u64) as usize;
            let part = &mut buffer[..part];
            self.disk.read_mapped(mapping, at, part)?;
            let to = at - self.start;
            if self.options.find_zeros {
                for (start, end) in data_in(part) {
                    self.write(&part[start..end], to + start as u64)?;
                }
            } else {
                self.write(part, to)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.target
            .write_at(data, offset)
            .map_err(|error| write_failed(error).with_offset(offset))
    }
}

/// The parts of a buffer to write, as (start, end): all but long runs of zeros.
fn data_in(buffer: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < buffer.len() && holes::is_zero(block(buffer, at)) {
            at += BLOCK;
        }
        if at >= buffer.len() {
            return None;
        }
        let start = at;
        let mut end = at;
        while at < buffer.len() && at < end + MIN_HOLE {
            if !holes::is_zero(block(buffer, at)) {
                end = at + BLOCK;
            }
            at += BLOCK;
        }
        at = end;
        Some((start, end.min(buffer.len())))
    })
}

fn block(buffer: &[u8], at: usize) -> &[u8] {
    &buffer[at..buffer.len().min(at + BLOCK)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_where_it_pays() {
        let spans = |buffer: &[u8]| data_in(buffer).collect::<Vec<_>>();
        let zeros = vec![0; 128 << 10];
        assert!(spans(&zeros).is_empty());
        assert!(spans(&[]).is_empty());
        assert_eq!(spans(&[0, 0, 1]), [(0, 3)]);

        let mut buffer = zeros.clone();
        buffer[20_000] = 1;
        assert_eq!(spans(&buffer), [(16_384, 20_480)]);
        // The gap is 12 KiB here, and 16 KiB there.
        buffer[33_000] = 1;
        assert_eq!(spans(&buffer), [(16_384, 36_864)]);
        buffer[53_248] = 1;
        assert_eq!(spans(&buffer), [(16_384, 36_864), (53_248, 57_344)]);
        let end = buffer.len() - 1;
        buffer[end] = 1;
        assert_eq!(spans(&buffer).last(), Some(&(end + 1 - BLOCK, end + 1)));
        let all = vec![7; 10_000];
        assert_eq!(spans(&all), [(0, 10_000)]);
    }
}
