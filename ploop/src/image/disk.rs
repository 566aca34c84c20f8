//! Reading the virtual disk of an image.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Chain, Level};
use super::delta::Delta;
use super::descriptor::Descriptor;
use super::extents::{Extents, Mapping, Mappings};
use super::file;
use super::header::Header;
use super::state::{State, StorageState};
use super::storages::Storages;
use crate::{ClusterSize, Error, ErrorKind, Guid, Result, Size};

const OPERATION: &str = "open image";

/// The virtual disk of an image, read only: what a mount of it would show.
///
/// Reads through the whole chain of deltas. The files are opened for reading, and stay open: renaming or removing one
/// does not disturb the reader. Writing to one does, as a merge into it.
///
/// [`read_at`](Disk::read_at) takes `&self` and may be called from many threads at once. `Read` and
/// `Seek` have a position; each clone has its own, over the same open files.
///
/// ```no_run
/// use std::io::{Read, Seek, SeekFrom};
/// use ploop::image::Disk;
///
/// let mut disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
/// let mut sector = [0; 512];
/// disk.seek(SeekFrom::Start(512))?;
/// disk.read_exact(&mut sector)?;
/// assert_eq!(&sector[..8], b"EFI PART");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Disk {
    storages: Arc<Storages>,
    /// All files of the image, also those that are not read.
    image: Arc<ImageFiles>,
    position: u64,
}

/// The names of an image's files.
#[derive(Debug, Default)]
pub(super) struct ImageFiles {
    /// Its own first, if it was opened by one, and then those of the images upon which it stands.
    pub(super) descriptors: Vec<PathBuf>,
    pub(super) deltas: Vec<PathBuf>,
}

/// How to open a [`Disk`].
///
/// ```no_run
/// use ploop::image::OpenOptions;
///
/// let disk = OpenOptions::new()
///     .allow_in_use(true)
///     .open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    allow_in_use: bool,
    salvage: bool,
    within: Option<PathBuf>,
}

impl OpenOptions {
    /// The options [`Disk::open`] uses.
    #[must_use]
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    /// Whether to open an image that is marked as in use (default: no).
    ///
    /// The mark of an image that was not unmounted before its host went down stays; such an image
    /// reads as the driver would read it after repair, less what had not reached the disk. An image
    /// that is written to while it is read shows a mixture of states: parts of its table are read
    /// when first needed, and not again.
    #[must_use]
    pub fn allow_in_use(mut self, allow: bool) -> OpenOptions {
        self.allow_in_use = allow;
        self
    }

    /// Whether to read what there is of a damaged image (default: no).
    ///
    /// Reads that would fail give zeros for what is lost: clusters to which the table leads wrongly, which are behind the
    /// end of a file that was cut short, or which the system cannot read. What a delta has lost is zero even where a
    /// delta below has an older state of it. [`Disk::lost`] lists these parts. Marks of use do not matter, and neither
    /// does what a header says of where the data begins, where that cannot be true. Where a header contradicts itself about the
    /// size of the disk, the descriptor has it; without one, it is what the table can hold.
    ///
    /// Some files still fail, because nobody can tell what they are: one without a header, one that is not there, and a
    /// descriptor that contradicts itself.
    #[must_use]
    pub fn salvage(mut self, salvage: bool) -> OpenOptions {
        self.salvage = salvage;
        self
    }

    /// Refuses deltas that lie outside of a directory, links followed (default: none).
    ///
    /// A descriptor may name any file of the host, and a raw base shows what is in it. Set this
    /// before showing the contents of an image to whoever has written its descriptor.
    #[must_use]
    pub fn within(mut self, dir: impl Into<PathBuf>) -> OpenOptions {
        self.within = Some(dir.into());
        self
    }

    /// Opens the top of the image that a `DiskDescriptor.xml` describes.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`].
    pub fn open(&self, descriptor: impl AsRef<Path>) -> Result<Disk> {
        let path = descriptor.as_ref();
        let descriptor = Descriptor::open(path)?;
        self.open_state(&descriptor, Some(path), descriptor.top)
            .map_err(|error| at(error, path))
    }

    /// Opens the image as of a snapshot.
    ///
    /// # Errors
    ///
    /// As [`Disk::open_snapshot`].
    pub fn open_snapshot(&self, descriptor: impl AsRef<Path>, guid: Guid) -> Result<Disk> {
        let path = descriptor.as_ref();
        let descriptor = Descriptor::open(path)?;
        self.open_state(&descriptor, Some(path), guid)
            .map_err(|error| at(error, path))
    }

    /// Opens the top or a snapshot of an image whose descriptor is already there.
    ///
    /// # Errors
    ///
    /// As [`Disk::open_snapshot`].
    pub fn open_descriptor(&self, descriptor: &Descriptor, guid: Guid) -> Result<Disk> {
        self.open_state(descriptor, None, guid)
    }

    fn open_state(&self, descriptor: &Descriptor, path: Option<&Path>, guid: Guid) -> Result<Disk> {
        let state = State::of(descriptor, path, guid, self.within.as_deref())?;
        // A snapshot may be of a time when the disk was smaller.
        let is_top = guid == descriptor.top;
        let count = state.storages.len();
        let mut chains = state
            .storages
            .iter()
            .map(|storage| self.open_storage(storage, count > 1, is_top))
            .collect::<Result<Vec<_>>>()?
            .into_iter();
        let Some(first) = chains.next() else {
            return Err(no_files());
        };
        Ok(Disk {
            storages: Arc::new(Storages::new(first, chains.collect())),
            image: Arc::new(ImageFiles {
                descriptors: path
                    .map(Path::to_owned)
                    .into_iter()
                    .chain(state.descriptors)
                    .collect(),
                deltas: state.all_files,
            }),
            position: 0,
        })
    }

    fn open_storage(&self, storage: &StorageState, split: bool, is_top: bool) -> Result<Chain> {
        let size = storage.end - storage.start;
        let levels = storage
            .files
            .iter()
            .map(|file| self.open_level(&file.path, file.raw))
            .collect::<Result<Vec<_>>>()?;
        let mut fixed_size = split.then_some(size);
        if let ([Level::Raw { path, len, .. }], true) = (&levels[..], is_top) {
            if let Err(error) = require_whole(path, *len, size) {
                if !self.salvage {
                    return Err(error);
                }
                fixed_size = Some(size);
            }
        }
        if let (Some(Level::Delta(top)), true) = (levels.last(), is_top) {
            if top.has_doubtful_size() {
                fixed_size = Some(size);
            }
        }
        self.chain(levels, storage.cluster, fixed_size)
    }

    fn chain(&self, levels: Vec<Level>, cluster: Size, size: Option<Size>) -> Result<Chain> {
        let chain = Chain::sized(levels, cluster, size)?;
        Ok(match self.salvage {
            true => chain.salvaged(),
            false => chain,
        })
    }

    /// Opens one delta by itself.
    ///
    /// # Errors
    ///
    /// As [`Disk::open_image`].
    pub fn open_image(&self, file: impl AsRef<Path>) -> Result<Disk> {
        let level = self.open_level(file.as_ref(), false)?;
        let cluster = match &level {
            Level::Delta(delta) => delta.layout().cluster,
            Level::Raw { .. } => ClusterSize::DEFAULT.into(),
        };
        Disk::from_chain(self.chain(vec![level], cluster, None)?)
    }

    fn open_level(&self, path: &Path, raw: bool) -> Result<Level> {
        let (file, _) = match &self.within {
            Some(directory) => file::open_beneath(OPERATION, directory, path),
            None => file::open(OPERATION, path),
        }
        .map_err(|error| at(error, path))?;
        if raw && Header::is_in(&file) {
            return Err(Error::new(ErrorKind::Corrupt, OPERATION, RAW_WITH_HEADER)
                .with_path(path)
                .with_offset(0));
        }
        if self.salvage && !raw {
            let len = file::length(OPERATION, &file).map_err(|error| at(error, path))?;
            return Delta::salvaged(path, file, len).map(Level::Delta);
        }
        Level::from_file(path, file, raw, self.allow_in_use)
    }
}

/// Of a raw base that begins with the header of a delta: read as a disk, header and table would be its contents.
pub(super) const RAW_WITH_HEADER: &str =
    "the descriptor says that this is a raw base, and it begins with the header of a delta";

/// Refuses a plain disk that is shorter than its descriptor says: what is missing would read as if it had never been
/// there. Below a delta it may be shorter, because the disk may have grown since.
fn require_whole(path: &Path, len: u64, size: Size) -> Result<()> {
    if len.next_multiple_of(512) >= size.bytes() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, OPERATION, cut_short(len, size)).with_path(path))
}

/// What a plain disk of `len` bytes is whose descriptor says `size`.
pub(super) fn cut_short(len: u64, size: Size) -> String {
    let len = Size::from_bytes(len);
    format!("the plain disk has {len}, and {size} by its descriptor: it was cut short")
}

/// Puts the descriptor into errors that are about no file yet.
fn at(error: Error, path: &Path) -> Error {
    if error.path().is_some() {
        error
    } else {
        error.with_path(path)
    }
}

fn no_files() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        OPERATION,
        "there is no file to read",
    )
}

impl Disk {
    #[cfg(feature = "image-write")]
    pub(super) fn from_levels(levels: Vec<Level>, cluster: ClusterSize) -> Result<Disk> {
        Disk::from_chain(Chain::new(levels, cluster)?)
    }

    fn from_chain(chain: Chain) -> Result<Disk> {
        Ok(Disk {
            image: Arc::new(ImageFiles {
                descriptors: Vec::new(),
                deltas: chain
                    .levels()
                    .iter()
                    .map(|it| it.path().to_owned())
                    .collect(),
            }),
            storages: Arc::new(Storages::one(chain)),
            position: 0,
        })
    }

    /// Opens the image that a `DiskDescriptor.xml` describes, in its present state.
    ///
    /// # Errors
    ///
    /// Those of [`Descriptor::open`], and with the path of the delta:
    /// [`ErrorKind::NotFound`] where it is missing, [`ErrorKind::Busy`] where it is marked as in use
    /// (see [`OpenOptions::allow_in_use`]), [`ErrorKind::Corrupt`] where its header cannot be true,
    /// and [`ErrorKind::Unsupported`] where it is encrypted or half
    /// converted.
    pub fn open(descriptor: impl AsRef<Path>) -> Result<Disk> {
        OpenOptions::new().open(descriptor)
    }

    /// Opens the image as of a snapshot.
    ///
    /// ```no_run
    /// use ploop::{Descriptor, image::Disk};
    ///
    /// let path = "/vz/private/101/root.hdd/DiskDescriptor.xml";
    /// for snapshot in Descriptor::open(path)?.snapshots {
    ///     let disk = Disk::open_snapshot(path, snapshot.guid)?;
    ///     println!("{} has {}", snapshot.guid, disk.size());
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Disk::open`]; also [`ErrorKind::NoSnapshot`] where the image has no such snapshot.
    pub fn open_snapshot(descriptor: impl AsRef<Path>, guid: Guid) -> Result<Disk> {
        OpenOptions::new().open_snapshot(descriptor, guid)
    }

    /// Opens one delta file by itself, without a descriptor. What lies in deltas below it reads as
    /// zero.
    ///
    /// # Errors
    ///
    /// As [`Disk::open`]. A raw base has no header, and is [`ErrorKind::Corrupt`] here.
    pub fn open_image(file: impl AsRef<Path>) -> Result<Disk> {
        OpenOptions::new().open_image(file)
    }

    /// The size of the disk: that of the topmost delta opened, which is what the driver goes by. A split disk has that of
    /// its storages.
    #[must_use]
    pub fn size(&self) -> Size {
        self.storages.size()
    }

    /// The unit in which the image is allocated. Where it is none that libploop knows, as in images of the first versions
    /// of Parallels, the next larger one that it knows; see [`cluster_size`](Disk::cluster_size).
    #[must_use]
    pub fn cluster(&self) -> ClusterSize {
        ClusterSize::at_least(self.cluster_size())
    }

    /// The unit in which the image is allocated, whatever it is. Of a split disk, that of its first storage.
    #[must_use]
    pub fn cluster_size(&self) -> Size {
        self.chain().cluster()
    }

    /// The files the disk is read from, the base first. Those of a split disk are those of its first storage, then those
    /// of the next.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> + '_ {
        let files: Vec<&Path> = self.storages.levels().map(Level::path).collect();
        files.into_iter()
    }

    /// Reads from `offset` on, and returns how many bytes were read: fewer than asked for only at
    /// the end of the disk, none behind it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] where the block allocation table leads out of the file, [`ErrorKind::Io`] where
    /// the file cannot be read; both with file and offset. The contents of the buffer are then
    /// undefined.
    ///
    /// ```no_run
    /// use ploop::image::Disk;
    ///
    /// let disk = Disk::open_image("/vz/private/101/root.hdd/root.hds")?;
    /// let mut block = vec![0; disk.cluster().bytes() as usize];
    /// let len = disk.read_at(&mut block, 1 << 20)?;
    /// println!("{len} bytes, of {}", disk.size());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().bytes().saturating_sub(offset);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.storages.read(&mut buffer[..len], offset)?;
        Ok(len)
    }

    /// The parts of the disk for which data is stored, in order and as long as they can be. The
    /// rest reads as zero.
    ///
    /// Clusters are taken as the tables have them, even where their contents are zero; a raw base
    /// counts where its file has no holes. The tables are read along the way: memory does not grow
    /// with the disk. After an error, which is as in [`read_at`](Disk::read_at), the iterator ends.
    ///
    /// ```no_run
    /// use ploop::image::Disk;
    ///
    /// let disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// for extent in disk.extents() {
    ///     let extent = extent?;
    ///     println!("{} bytes at {}", extent.len, extent.offset);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn extents(&self) -> Extents<'_> {
        self.extents_from(0)
    }

    /// As [`extents`](Disk::extents), from an offset on, in bytes: what is before it is left out, and not read.
    pub fn extents_from(&self, offset: u64) -> Extents<'_> {
        Extents::from(&self.storages, offset)
    }

    /// As [`extents`](Disk::extents), split where the data lies in another file or elsewhere in the
    /// same file.
    ///
    /// ```no_run
    /// use ploop::image::Disk;
    ///
    /// let disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// let files: Vec<_> = disk.files().collect();
    /// for mapping in disk.mappings() {
    ///     let mapping = mapping?;
    ///     let file = files[mapping.level].display();
    ///     println!("{} is at {} of {file}", mapping.offset, mapping.file_offset);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn mappings(&self) -> Mappings<'_> {
        Mappings::new(&self.storages)
    }

    /// The chain of the first storage, which nearly always is the whole disk.
    pub(super) fn chain(&self) -> &Chain {
        self.storages.first()
    }

    pub(super) fn storages(&self) -> &Storages {
        &self.storages
    }

    /// Fills `buffer` from `offset` of the disk on, which lies in a mapping.
    pub(super) fn read_mapped(
        &self,
        mapping: &Mapping,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let file_offset = mapping.file_offset + (offset - mapping.offset);
        self.storages
            .read_file(mapping.level, file_offset, buffer, offset)
    }

    pub(super) fn image_files(&self) -> &ImageFiles {
        &self.image
    }

    /// For changes; `None` where a clone of the disk shares the chain.
    #[cfg(feature = "image-write")]
    pub(super) fn chain_mut(&mut self) -> Option<&mut Chain> {
        Arc::get_mut(&mut self.storages).map(Storages::first_mut)
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.read_at(buffer, self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for Disk {
    /// As in a file, positions behind the end are allowed, and nothing is read there.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size().bytes().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the position would be before the beginning",
            )
        })?;
        Ok(self.position)
    }
}
