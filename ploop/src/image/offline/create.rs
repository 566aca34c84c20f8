//! Making images: what `ploop_create_image` does without a file system, and images of the data of others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::OfflineImage;
use super::change::cancelled;
use super::import::{Importer, allocate_all, require_no_header};
use super::size::{whole_clusters, widest};
use crate::image::aligned_buffer::AlignedBuffer;
use crate::image::descriptor::{Descriptor, Image, ImageKind};
use crate::image::file;
use crate::image::preallocate::preallocate;
use crate::image::recovery::creation;
use crate::image::staging_directory::{Destination, StagingDirectory};
use crate::image::write::WritableDelta;
use crate::image::{Disk, Header, Progress};
use crate::{
    ClusterSize, Error, ErrorKind, FormatVersion, Guid, ImageMode, Result, Size, lock, paths,
};

/// How [`create`], [`import`] and [`import_disk`] make an image.
///
/// ```
/// use ploop::image::CreateOptions;
/// use ploop::{ClusterSize, ImageMode};
///
/// let options = CreateOptions::new()
///     .mode(ImageMode::Preallocated)
///     .cluster(ClusterSize::from_bytes(256 << 10)?);
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct CreateOptions {
    mode: ImageMode,
    cluster: ClusterSize,
    format: FormatVersion,
    cancel: Option<Arc<AtomicBool>>,
}

impl Default for CreateOptions {
    fn default() -> CreateOptions {
        CreateOptions {
            mode: ImageMode::Expanded,
            cluster: ClusterSize::DEFAULT,
            format: FormatVersion::V2,
            cancel: None,
        }
    }
}

impl CreateOptions {
    /// An expanded image of format v2, with clusters of 1 MiB.
    pub fn new() -> CreateOptions {
        CreateOptions::default()
    }

    /// How the base stores its clusters.
    pub fn mode(mut self, mode: ImageMode) -> CreateOptions {
        self.mode = mode;
        self
    }

    /// The size of a cluster.
    pub fn cluster(mut self, cluster: ClusterSize) -> CreateOptions {
        self.cluster = cluster;
        self
    }

    /// The version of the format. A raw base has none, but the limits of this one.
    pub fn format(mut self, format: FormatVersion) -> CreateOptions {
        self.format = format;
        self
    }

    /// Once `flag` is set, the creation ends with an error and leaves nothing.
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> CreateOptions {
        self.cancel = Some(flag);
        self
    }

    fn check_cancel(&self, operation: &'static str) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(cancelled(operation)),
            _ => Ok(()),
        }
    }
}

/// Makes an image without a file system and its `DiskDescriptor.xml` in the same directory, and opens it. `file` is the
/// base delta, in a directory that exists. The size is rounded up to whole clusters. Needs the feature `image-write`.
///
/// Both files are made in a hidden directory beside them, and moved to their place when they are complete, the descriptor
/// last. So nobody sees half an image, and no file is replaced.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use ploop::Size;
/// use ploop::image::{self, CreateOptions};
///
/// let base = dir.path().join("root.hds");
/// let image = image::create(base, Size::from_gib(10), &CreateOptions::new())?;
/// assert_eq!(image.descriptor()?.size, Size::from_gib(10));
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// [`AlreadyExists`](ErrorKind::AlreadyExists) where the base or a descriptor is there,
/// [`InvalidInput`](ErrorKind::InvalidInput) for a size that the format cannot hold and a name that libploop or this
/// crate uses beside an image, [`NotFound`](ErrorKind::NotFound) for a missing directory,
/// [`NoSpace`](ErrorKind::NoSpace). After an error nothing is left; `kill -9` or a power cut may leave a directory
/// `.ploop-create-…`, which does not hinder another try, and which `Ploop::remove_leftovers` removes.
pub fn create(file: impl AsRef<Path>, size: Size, options: &CreateOptions) -> Result<OfflineImage> {
    const OPERATION: &str = "create image";
    let file = file.as_ref();
    let size = whole_clusters(OPERATION, options.format, options.cluster, size)
        .map_err(|error| error.with_path(file))?;
    make(OPERATION, file, options, |base| {
        match options.mode {
            ImageMode::Raw => {
                let file = new_file(OPERATION, base)?;
                allocate_all(OPERATION, base, &file, size)?;
            }
            mode => {
                let header = Header::new(options.format, options.cluster, size)?;
                drop(WritableDelta::create(base, &header)?);
                if mode == ImageMode::Preallocated {
                    preallocate(base, true)?;
                }
            }
        }
        Ok(size)
    })
}

/// Makes an image of what `source` gives up to its end: a raw disk from a pipe, say. Clusters of zeros take no space in
/// an expanded image. The size is rounded up to whole clusters; [`grow`](OfflineImage::grow) makes the disk larger.
/// Needs the feature `image-write`, and a few MiB of memory.
///
/// `progress` is called on this thread after every few MiB. Its total is what was read so far.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use ploop::image::{self, CreateOptions, Disk};
///
/// let source = [1; 512];
/// let base = dir.path().join("root.hds");
/// let image = image::import(base, &source[..], &CreateOptions::new(), |_| {})?;
/// assert_eq!(Disk::open(image.path())?.size(), ploop::Size::from_mib(1));
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// As [`create`]; those of the source; [`InvalidInput`](ErrorKind::InvalidInput) where it gives nothing, or more than the
/// format can hold, or no whole number of sectors, as what is left of a disk that was cut short, or data that begins with
/// the header of a delta for a raw base.
pub fn import(
    file: impl AsRef<Path>,
    mut source: impl Read,
    options: &CreateOptions,
    mut progress: impl FnMut(Progress),
) -> Result<OfflineImage> {
    const OPERATION: &str = "import disk";
    let (version, cluster) = (options.format, options.cluster);
    make(OPERATION, file.as_ref(), options, |base| {
        let mut importer = match options.mode {
            ImageMode::Raw => Importer::raw(OPERATION, base, new_file(OPERATION, base)?, cluster),
            _ => {
                let header = widest(version, cluster, 1)?;
                Importer::delta(OPERATION, WritableDelta::create(base, &header)?)
            }
        };
        let mut read = 0;
        let mut buffer = AlignedBuffer::new(importer.unit());
        loop {
            options.check_cancel(OPERATION)?;
            let len = match read_full(&mut source, &mut buffer) {
                Ok(len) => len,
                Err(error) => {
                    // A source that waits for data may itself have looked at the flag.
                    options.check_cancel(OPERATION)?;
                    let why = "the source cannot be read";
                    return Err(Error::io(OPERATION, why, error).with_path(base));
                }
            };
            if len == 0 {
                break;
            }
            // Also refuses what the format cannot hold.
            let end = Size::from_bytes(read + len as u64);
            let size = whole_clusters(OPERATION, version, cluster, end)?;
            importer.make_room(size)?;
            buffer[len..].fill(0);
            importer.write(&buffer, read)?;
            read += len as u64;
            progress(Progress {
                copied: Size::from_bytes(read),
                total: Size::from_bytes(read),
            });
        }
        if read == 0 {
            let why = "the source is empty";
            return Err(Error::new(ErrorKind::InvalidInput, OPERATION, why));
        }
        if read % 512 != 0 {
            let why = format!(
                "the source gave {read} bytes, which is no number of sectors: it was cut short, or is no raw disk"
            );
            return Err(Error::new(ErrorKind::InvalidInput, OPERATION, why));
        }
        let size = whole_clusters(OPERATION, version, cluster, Size::from_bytes(read))?;
        importer.finish(size)?;
        finish_import(OPERATION, base, options.mode)?;
        Ok(size)
    })
}

/// Makes an image of the disk of another one, or of a raw file that was opened as one: with other clusters, of another
/// format, of a chain of deltas. Only what is allocated there is read, by one thread, and written by another. Needs the
/// feature `image-write`, and a few MiB of memory.
///
/// `progress` is called on this thread after every few MiB.
///
/// ```no_run
/// use ploop::ClusterSize;
/// use ploop::image::{self, CreateOptions, Disk};
///
/// let disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
/// let options = CreateOptions::new().cluster(ClusterSize::from_bytes(64 << 10)?);
/// image::import_disk("/vz/private/102/root.hdd/root.hds", &disk, &options, |_| {})?;
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// As [`import`], and those of [`Disk::read_at`].
pub fn import_disk(
    file: impl AsRef<Path>,
    disk: &Disk,
    options: &CreateOptions,
    mut progress: impl FnMut(Progress),
) -> Result<OfflineImage> {
    const OPERATION: &str = "import disk";
    let file = file.as_ref();
    let size = whole_clusters(OPERATION, options.format, options.cluster, disk.size())
        .map_err(|error| error.with_path(file))?;
    make(OPERATION, file, options, |base| {
        let importer = match options.mode {
            ImageMode::Raw => {
                let file = new_file(OPERATION, base)?;
                Importer::raw(OPERATION, base, file, options.cluster)
            }
            _ => {
                let header = Header::new(options.format, options.cluster, size)?;
                Importer::delta(OPERATION, WritableDelta::create(base, &header)?)
            }
        };
        importer.copy_disk(disk, size, options.cancel.as_deref(), &mut progress)?;
        finish_import(OPERATION, base, options.mode)?;
        Ok(size)
    })
}

fn finish_import(operation: &'static str, base: &Path, mode: ImageMode) -> Result<()> {
    match mode {
        ImageMode::Raw => {
            let (file, _) = file::open(operation, base)?;
            require_no_header(operation, &file, base)
        }
        ImageMode::Preallocated => preallocate(base, true),
        ImageMode::Expanded => Ok(()),
    }
}

/// Makes an image whose base is made by `make_base`, which returns the size of its disk.
fn make(
    operation: &'static str,
    file: &Path,
    options: &CreateOptions,
    make_base: impl FnOnce(&Path) -> Result<Size>,
) -> Result<OfflineImage> {
    let base = paths::of_new_file(operation, file)?;
    paths::require_no_side_file_name(operation, &base)?;
    let destination = Destination::of(operation, base);
    destination.require_other_name_than_descriptor()?;
    let made = lock::with_lock_of(operation, &destination.descriptor, || {
        creation::remove_unfinished(&destination.image, &destination.descriptor);
        destination.require_free()?;
        let staging = StagingDirectory::open(&destination)?;
        options.check_cancel(operation)?;
        let size = make_base(&staging.image)?;
        let kind = match options.mode {
            ImageMode::Raw => ImageKind::Plain,
            ImageMode::Expanded | ImageMode::Preallocated => ImageKind::Compressed,
        };
        let image = Image::new(Guid::TOP, &*staging.image, kind);
        let mut descriptor = Descriptor::new(size, image);
        descriptor.cluster = options.cluster;
        descriptor.mode = options.mode;
        let text = descriptor.to_xml(&staging.directory)?;
        fs::write(&staging.descriptor, text).map_err(|error| {
            let what = "the descriptor cannot be written";
            Error::io(operation, what, error).with_path(&destination.descriptor)
        })?;
        staging.deliver(&destination)
    });
    // Nobody has seen the files in the hidden directory.
    made.map_err(|error| error.during(operation).with_path(file))?;
    OfflineImage::open(&destination.descriptor)
}

fn new_file(operation: &'static str, path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io(operation, "the file cannot be made", error).with_path(path))
}

/// Reads as much as fits, or up to the end.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match source.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
