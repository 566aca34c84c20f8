//! [`Descriptor`]: the contents of a `DiskDescriptor.xml`, and reading it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::file;
use super::xml::{self, Element};

pub(crate) mod damaged;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod descriptor_file;
mod form;
#[cfg(feature = "image-write")]
mod mend;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) mod merge;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod size;
mod storage;
#[cfg(feature = "image-write")]
mod tree;
mod write;

use crate::image::Header;
use crate::{ClusterSize, Error, ErrorKind, Guid, ImageMode, Result, Size};
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) use descriptor_file::{DescriptorFile, replace, write};
pub(crate) use form::DescriptorForm;
pub(super) use storage::padded;
pub use storage::{Storage, Volume};
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) use write::UnknownFields;

const OPERATION: &str = "read descriptor";

/// No descriptor is so large: one delta takes some 300 bytes, and libploop has at most 127 in a chain.
const MAX_FILE: u64 = 16 << 20;

/// libploop cuts off longer file names, and then works on another file.
const MAX_PATH: usize = 4095;

/// The contents of a `DiskDescriptor.xml`.
///
/// Read as libploop 1.15 reads it, with its tolerance of other root elements, unknown elements and
/// old top GUIDs, and without its trust: what it would loop on, crash on or silently misread is an
/// error here, so a `Descriptor` that was read is a tree with one base and a delta file for each of
/// its snapshots. Whether those files exist is not looked at.
///
/// All fields are public; [`validate`](Descriptor::validate) checks a descriptor that came from
/// somewhere else. The methods that walk the tree end on any contents.
///
/// ```no_run
/// use ploop::Descriptor;
///
/// let descriptor = Descriptor::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
/// for image in descriptor.chain(descriptor.top) {
///     println!("{} {}", image.guid, image.file.display());
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Descriptor {
    /// The size of the virtual disk (`Disk_size`).
    pub size: Size,
    /// The cluster size of all deltas (`Blocksize`). Where it is none that libploop knows, the next larger one that it
    /// knows, and [`unusual_cluster`](Descriptor::unusual_cluster) has the true one.
    pub cluster: ClusterSize,
    /// The cluster size of an image that libploop does not read: the first versions of Parallels had clusters of any
    /// number of sectors, such as 63.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub unusual_cluster: Option<Size>,
    /// How the base is stored: raw where any image is of type `Plain`, as libploop has it.
    pub mode: ImageMode,
    /// The size beyond which the driver lets no delta grow (`Max_delta_size`, a number of sectors).
    pub max_delta_size: Option<Size>,
    /// The made-up geometry.
    #[cfg_attr(feature = "serde", serde(default))]
    pub geometry: Geometry,
    /// The delta files, in the order of the descriptor. Those of a split disk are of its first part; see
    /// [`further_storages`](Descriptor::further_storages).
    pub images: Vec<Image>,
    /// The parts of a disk that is split into several, behind the first one. Empty for all images that libploop makes.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Vec::is_empty")
    )]
    pub further_storages: Vec<Storage>,
    /// The snapshots and the top, in the order of the descriptor. Their GUIDs are those of
    /// [`images`](Descriptor::images).
    pub snapshots: Vec<Snapshot>,
    /// The delta that is written to. [`Guid::TOP`] except in descriptors of old versions.
    pub top: Guid,
    /// The key of an encrypted image (Virtuozzo 7 and later), or the name of the engine that
    /// encrypted it.
    pub encryption: Option<String>,
    /// How the image belongs to others in other directories, as volumes of libploop 7 do.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub volume: Option<Volume>,
    /// `Padding`: 0 but for disks of Parallels whose form is not documented, and which are not read.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_zero"))]
    pub padding: u64,
}

#[cfg(feature = "serde")]
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The geometry a descriptor states. Nothing depends on it, but libploop divides by cylinders ×
/// heads when it writes a descriptor, and that kills the process where the product is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Geometry {
    /// `Cylinders`, 0 where it is missing.
    pub cylinders: u32,
    /// `Heads`, 0 where it is missing.
    pub heads: u32,
    /// `Sectors` of a track, 0 where it is missing.
    pub sectors_per_track: u32,
}

impl Geometry {
    /// The one that libploop makes up for a disk of this size.
    #[must_use]
    pub fn of(size: Size) -> Geometry {
        const HEADS: u32 = 16;
        const SECTORS: u32 = 32;
        let cylinders = size.sectors() / u64::from(HEADS * SECTORS);
        let cylinders = cylinders.clamp(1, u64::from(u32::MAX / HEADS)) as u32;
        let tracks = u64::from(cylinders * HEADS);
        Geometry {
            cylinders,
            heads: HEADS,
            sectors_per_track: u32::try_from(size.sectors() / tracks).unwrap_or(u32::MAX),
        }
    }
}

/// A delta file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Image {
    /// The snapshot (or the top) whose data this file holds.
    pub guid: Guid,
    /// The file. A relative name is joined to the directory of the descriptor, with any `..` left
    /// in place.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub file: PathBuf,
    /// The type as stored. libploop gives all images of a raw disk the type `Plain`, though only
    /// its base is a plain file.
    pub kind: ImageKind,
}

/// The type a descriptor states for a delta file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ImageKind {
    /// Of a disk whose base is a plain file.
    Plain,
    /// With a header and a block allocation table. Nothing is compressed, despite the name.
    Compressed,
}

/// A node of the snapshot tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name.
    pub guid: Guid,
    /// The snapshot below, [`Guid::NONE`] for the base. The base of a [volume](Descriptor::volume) may have a parent in
    /// another directory.
    pub parent: Guid,
    /// Whether libploop removes it as soon as it can: for a backup, or because it is being merged (also where libploop 9
    /// has marked it `TemporaryZero` or `TemporaryZeroSwap`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub temporary: bool,
}

impl Image {
    /// The file that holds the data of a snapshot, or of the top.
    #[must_use]
    pub fn new(guid: Guid, file: impl Into<PathBuf>, kind: ImageKind) -> Image {
        let file = file.into();
        Image { guid, file, kind }
    }
}

impl Snapshot {
    /// A snapshot that is not temporary, on top of another, or of [`Guid::NONE`].
    #[must_use]
    pub fn new(guid: Guid, parent: Guid) -> Snapshot {
        let temporary = false;
        Snapshot {
            guid,
            parent,
            temporary,
        }
    }
}

impl Descriptor {
    /// The descriptor of a disk that is in one file, with clusters of [`ClusterSize::DEFAULT`].
    ///
    /// ```
    /// use ploop::image::{Image, ImageKind, Snapshot};
    /// use ploop::{Descriptor, Guid, Size};
    ///
    /// let base = Guid::generate();
    /// let file = Image::new(base, "/vz/root.hds", ImageKind::Compressed);
    /// let mut descriptor = Descriptor::new(Size::from_gib(10), file);
    /// descriptor.images.push(Image::new(Guid::TOP, "/vz/top", ImageKind::Compressed));
    /// descriptor.snapshots.push(Snapshot::new(Guid::TOP, base));
    /// descriptor.top = Guid::TOP;
    /// descriptor.validate()?;
    ///
    /// let xml = descriptor.to_xml("/vz")?;
    /// assert_eq!(Descriptor::parse(xml, "/vz")?, descriptor);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    #[must_use]
    pub fn new(size: Size, base: Image) -> Descriptor {
        Descriptor {
            size,
            cluster: ClusterSize::DEFAULT,
            unusual_cluster: None,
            mode: match base.kind {
                ImageKind::Plain => ImageMode::Raw,
                ImageKind::Compressed => ImageMode::Expanded,
            },
            max_delta_size: None,
            geometry: Geometry::of(size),
            snapshots: vec![Snapshot::new(base.guid, Guid::NONE)],
            top: base.guid,
            images: vec![base],
            further_storages: Vec::new(),
            encryption: None,
            volume: None,
            padding: 0,
        }
    }

    /// Reads a descriptor file.
    ///
    /// Symbolic links are followed first, as libploop does it: relative image names start at the
    /// directory of the file itself.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where there is no such file, [`ErrorKind::InvalidInput`] where it is
    /// a directory, pipe or the like, otherwise as [`Descriptor::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Descriptor> {
        Descriptor::open_as(path.as_ref(), &DescriptorForm::PARALLELS)
    }

    /// [`open`](Descriptor::open), with file names as a line of libploop reads them.
    pub(crate) fn open_as(path: &Path, form: &DescriptorForm) -> Result<Descriptor> {
        read(path, form).map_err(|error| error.with_path(path))
    }

    /// Reads the contents of a descriptor. Relative image names are joined to `dir`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] where this is not the XML of a descriptor, or the descriptor
    /// contradicts itself, with a message that names the element or GUID;
    /// [`ErrorKind::Unsupported`] for an image type other than `Plain` and `Compressed`, and an encoding other than
    /// UTF-8, UTF-16 and US-ASCII.
    pub fn parse(xml: impl AsRef<[u8]>, dir: impl AsRef<Path>) -> Result<Descriptor> {
        Descriptor::parse_as(xml.as_ref(), dir.as_ref(), &DescriptorForm::PARALLELS)
    }

    /// [`parse`](Descriptor::parse), with file names as a line of libploop reads them. `dir` has no links.
    pub(crate) fn parse_as(xml: &[u8], dir: &Path, form: &DescriptorForm) -> Result<Descriptor> {
        let text = xml::decode(xml)?;
        let document = xml::parse(&text)?;
        Descriptor::of(Element::root(&document), dir, form)
    }

    fn of(root: Element<'_, '_>, dir: &Path, form: &DescriptorForm) -> Result<Descriptor> {
        let descriptor = assemble(root, dir, form, None)?;
        descriptor.validate()?;
        Ok(descriptor)
    }

    /// Checks that the parts fit together: the same GUIDs in both lists, none of them twice, one
    /// base, no cycle, a top that is not temporary, usable file names, a size of whole sectors, images of type `Plain`
    /// if the mode is raw, and only then; and in a split disk, storages that make up the disk and have the same GUIDs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`], with a message that says which.
    pub fn validate(&self) -> Result<()> {
        contradiction(self).map_or(Ok(()), |message| Err(corrupt(message)))
    }

    /// The delta file of a snapshot or of the top.
    #[must_use]
    pub fn image(&self, guid: Guid) -> Option<&Image> {
        self.images.iter().find(|image| image.guid == guid)
    }

    /// A node of the snapshot tree; the top is one of them.
    #[must_use]
    pub fn snapshot(&self, guid: Guid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|shot| shot.guid == guid)
    }

    /// The snapshot below `guid`; `None` for the base, also where that stands upon an image in another directory, and
    /// for a GUID that is not listed.
    #[must_use]
    pub fn parent(&self, guid: Guid) -> Option<Guid> {
        self.snapshot(guid)
            .map(|shot| shot.parent)
            .filter(|parent| *parent != Guid::NONE && !self.is_elsewhere(*parent))
    }

    /// Whether a parent is in another directory.
    fn is_elsewhere(&self, parent: Guid) -> bool {
        self.stands_upon().is_some() && self.snapshot(parent).is_none()
    }

    /// The snapshots directly above `guid`, the top among them.
    pub fn children(&self, guid: Guid) -> impl Iterator<Item = Guid> + '_ {
        self.snapshots
            .iter()
            .filter(move |shot| shot.parent == guid)
            .map(|shot| shot.guid)
    }

    /// The delta files that make up the disk as of `guid`, the base first. Empty where `guid` is
    /// not listed. Those in the directories of other images, upon which a [volume](Descriptor::volume) stands, are not
    /// among them, and of a split disk they are those of the first part; [`Disk`](super::Disk) reads all.
    #[must_use]
    pub fn chain(&self, guid: Guid) -> Vec<&Image> {
        self.chain_in(&self.images, guid)
    }

    /// [`chain`](Descriptor::chain) in the images of a storage.
    pub(crate) fn chain_in<'a>(&self, images: &'a [Image], guid: Guid) -> Vec<&'a Image> {
        let parents: HashMap<Guid, Guid> = self
            .snapshots
            .iter()
            .map(|shot| (shot.guid, shot.parent))
            .collect();
        let images: HashMap<Guid, &Image> =
            images.iter().map(|image| (image.guid, image)).collect();
        let mut chain = Vec::new();
        let mut next = guid;
        let is_volume = self.stands_upon().is_some();
        while next != Guid::NONE {
            if is_volume && !chain.is_empty() && !parents.contains_key(&next) {
                break;
            }
            // A chain longer than there are snapshots is a cycle, in contents that were not validated.
            let link = (chain.len() < self.snapshots.len())
                .then(|| Some((*images.get(&next)?, *parents.get(&next)?)))
                .flatten();
            let Some((image, parent)) = link else {
                return Vec::new();
            };
            chain.push(image);
            next = parent;
        }
        chain.reverse();
        chain
    }

    /// How many deltas lie below `guid`: 0 for the base, `None` where `guid` is not listed.
    #[must_use]
    pub fn depth(&self, guid: Guid) -> Option<usize> {
        self.chain(guid).len().checked_sub(1)
    }

    /// The delta file everything stands on. In a [volume](Descriptor::volume) that stands upon another image, the lowest
    /// one of this image.
    #[must_use]
    pub fn base(&self) -> Option<&Image> {
        let base = self.lowest().next()?;
        self.image(base.guid)
    }

    /// The snapshots that have no parent in this descriptor: one, if it is valid.
    fn lowest(&self) -> impl Iterator<Item = &Snapshot> + '_ {
        let listed: HashSet<Guid> = match self.stands_upon() {
            Some(_) => self.snapshots.iter().map(|shot| shot.guid).collect(),
            None => HashSet::new(),
        };
        let is_volume = self.stands_upon().is_some();
        self.snapshots.iter().filter(move |shot| {
            shot.parent == Guid::NONE || (is_volume && !listed.contains(&shot.parent))
        })
    }

    /// The delta file that is written to.
    #[must_use]
    pub fn top_image(&self) -> Option<&Image> {
        self.image(self.top)
    }
}

/// The marks of libploop 9 on a snapshot into which the top is being merged.
const MERGING: [&str; 2] = ["TemporaryZero", "TemporaryZeroSwap"];

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

fn read(path: &Path, form: &DescriptorForm) -> Result<Descriptor> {
    let real = fs::canonicalize(path)
        .map_err(|error| Error::io(OPERATION, "the file cannot be found", error))?;
    let descriptor =
        text(&real).and_then(|text| Descriptor::parse_as(&text, directory(&real), form));
    descriptor.map_err(|error| require_readable(&real).err().unwrap_or(error))
}

/// The directory to which relative image names of the descriptor `real` are joined.
pub(crate) fn directory(real: &Path) -> &Path {
    real.parent().unwrap_or(Path::new("/"))
}

/// Requires that this can be a descriptor, a regular file of a sensible size, and says what to open instead. libploop
/// reads anything, with the image's lock held, and says little about what it could not read.
pub(crate) fn require_readable(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path)
        .map_err(|error| Error::io(OPERATION, "the file cannot be examined", error))?;
    let refused = |message| Err(Error::new(ErrorKind::InvalidInput, OPERATION, message));
    let other = |what, directory: &Path| {
        let descriptor = directory.join("DiskDescriptor.xml");
        refused(match descriptor.is_file() {
            true => format!("this is {what}; open {}", descriptor.display()),
            false => format!("this is {what}, and there is no {}", descriptor.display()),
        })
    };
    match metadata.file_type() {
        kind if kind.is_dir() => other("a directory, not a descriptor", path),
        kind if kind.is_file() && Header::read(path).is_ok() => {
            other("a delta, not a descriptor", directory(path))
        }
        kind if kind.is_file() => require_sensible_size(metadata.len()),
        _ => refused("this is not a regular file".into()),
    }
}

fn require_sensible_size(len: u64) -> Result<()> {
    if len <= MAX_FILE {
        return Ok(());
    }
    Err(corrupt(format!(
        "the file is larger than {}, no descriptor is",
        Size::from_bytes(MAX_FILE)
    )))
}

/// The bytes of a descriptor file, for [`Descriptor::parse`].
pub(crate) fn text(path: &Path) -> Result<Vec<u8>> {
    let (file, len) = file::open(OPERATION, path)?;
    contents(file, len)
}

/// As [`Descriptor::open`], of a file in `within` or below, if a directory is given. Returns the path without links, too.
pub(super) fn open_within(path: &Path, within: Option<&Path>) -> Result<(PathBuf, Descriptor)> {
    let real = fs::canonicalize(path)
        .map_err(|error| Error::io(OPERATION, "the file cannot be found", error))?;
    let (file, len) = match within {
        Some(within) => file::open_beneath(OPERATION, within, &real)?,
        None => file::open(OPERATION, &real)?,
    };
    let descriptor = Descriptor::parse(contents(file, len)?, directory(&real))?;
    Ok((real, descriptor))
}

fn contents(file: fs::File, len: u64) -> Result<Vec<u8>> {
    let mut contents = Vec::with_capacity(len.min(MAX_FILE) as usize + 1);
    file.take(MAX_FILE + 1)
        .read_to_end(&mut contents)
        .map_err(|error| Error::io(OPERATION, "the file cannot be read", error))?;
    require_sensible_size(contents.len() as u64)?;
    Ok(contents)
}

/// What a descriptor says, which may contradict itself. `missing_top` is the top where none is named.
fn assemble(
    root: Element<'_, '_>,
    dir: &Path,
    form: &DescriptorForm,
    missing_top: Option<Guid>,
) -> Result<Descriptor> {
    let parameters = root.required("Disk_Parameters")?;
    let storage_data = root.required("StorageData")?;
    if storage_data.optional("Storage").is_none() {
        return Err(corrupt("StorageData has no Storage"));
    }
    let tree = root.required("Snapshots")?;

    let sectors = parameters.required("Disk_size")?.number()?;
    let size = sectors
        .checked_mul(512)
        .map(Size::from_bytes)
        .ok_or_else(|| corrupt(format!("Disk_size: {sectors} sectors are beyond 16 EiB")))?;
    let preallocated = storage_data
        .children("Storage")
        .map(|storage| match storage.optional_number("Preallocated")? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(other) => Err(corrupt(format!("Preallocated: {other} is neither 0 nor 1"))),
        })
        .collect::<Result<Vec<_>>>()?
        .contains(&true);
    let mut storages = storage::read_all(storage_data, size, dir, form)?;
    let first = storages.remove(0);
    if !first.start.is_zero() {
        return Err(corrupt(format!(
            "Storage: the first one begins at sector {}",
            first.start.sectors()
        )));
    }
    if let Some(next) = storages.first().filter(|next| next.start != first.end) {
        return Err(corrupt(storage::not_adjacent(next, first.end)));
    }
    let images = first.images;
    let (cluster, unusual_cluster) = match ClusterSize::from_bytes(first.cluster.bytes()) {
        Ok(cluster) => (cluster, None),
        Err(_) => (ClusterSize::at_least(first.cluster), Some(first.cluster)),
    };
    let mode = if preallocated {
        ImageMode::Preallocated
    } else if images.iter().any(|image| image.kind == ImageKind::Plain) {
        ImageMode::Raw
    } else {
        ImageMode::Expanded
    };

    let mut snapshots = tree
        .children("Shot")
        .map(|element| {
            Ok(Snapshot {
                guid: element.required("GUID")?.guid()?,
                parent: element.required("ParentGUID")?.guid()?,
                temporary: ["Temporary"]
                    .iter()
                    .chain(&MERGING)
                    .any(|name| element.optional(name).is_some()),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    // Old descriptors do not list the top.
    if snapshots.len() + 1 == images.len() && snapshots.iter().all(|shot| shot.guid != Guid::TOP) {
        snapshots.push(Snapshot {
            guid: Guid::TOP,
            parent: Guid::NONE,
            temporary: false,
        });
    }
    let top = match tree.optional("TopGUID") {
        Some(element) => element.guid()?,
        None if snapshots.iter().any(|shot| shot.guid == Guid::TOP) => Guid::TOP,
        None => missing_top.ok_or_else(|| {
            corrupt(format!(
                "there is neither a TopGUID nor a Shot {}",
                Guid::TOP
            ))
        })?,
    };

    Ok(Descriptor {
        size,
        cluster,
        unusual_cluster,
        mode,
        max_delta_size: parameters
            .optional_number("Max_delta_size")?
            .map(Size::from_sectors),
        geometry: Geometry {
            cylinders: geometry(parameters, "Cylinders")?,
            heads: geometry(parameters, "Heads")?,
            sectors_per_track: geometry(parameters, "Sectors")?,
        },
        images,
        further_storages: storages,
        snapshots,
        top,
        encryption: encryption(root, parameters)?,
        volume: Volume::of(storage_data, dir, form)?,
        // Nobody reads it but to see that it is 0.
        padding: parameters
            .optional_number("Padding")
            .ok()
            .flatten()
            .unwrap_or(0),
    })
}

/// A value of the geometry: libploop keeps the low 32 bits.
fn geometry(parameters: Element<'_, '_>, name: &str) -> Result<u32> {
    let value = parameters.optional_number(name)?.unwrap_or(0);
    Ok((value & u64::from(u32::MAX)) as u32)
}

fn image(element: Element<'_, '_>, dir: &Path, form: &DescriptorForm) -> Result<Image> {
    let guid = element.required("GUID")?.guid()?;
    let kind = match element.optional("Type") {
        None => ImageKind::Compressed,
        Some(kind) => match kind.text()? {
            "Plain" => ImageKind::Plain,
            "" | "Compressed" => ImageKind::Compressed,
            // libploop takes any other type than `Plain` for a delta with a table.
            other if ["plain", "compressed"].contains(&&*other.to_ascii_lowercase()) => {
                ImageKind::Compressed
            }
            other => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    OPERATION,
                    format!("image {guid} is of unknown type {}", xml::excerpt(other)),
                ));
            }
        },
    };
    let file = element.required("File")?.text()?;
    if file.is_empty() {
        return Err(corrupt(format!("image {guid} has an empty File")));
    }
    Ok(Image {
        guid,
        file: form.file(file, dir),
        kind,
    })
}

/// The key or engine of an encrypted image. Virtuozzo has a key below the root; Parallels Desktop has an engine below
/// the parameters, which is the nil GUID if nothing is encrypted.
fn encryption(root: Element<'_, '_>, parameters: Element<'_, '_>) -> Result<Option<String>> {
    for (parent, name) in [
        (root, "KeyId"),
        (parameters, "KeyId"),
        (parameters, "Engine"),
    ] {
        let Some(value) = parent
            .optional("Encryption")
            .and_then(|element| element.optional(name))
        else {
            continue;
        };
        let value = value.text()?.trim();
        if !value.is_empty() && value.parse::<Guid>().ok() != Some(Guid::NONE) {
            return Ok(Some(value.to_owned()));
        }
    }
    Ok(None)
}

/// The first contradiction in a descriptor. Takes time linear in the number of snapshots.
fn contradiction(descriptor: &Descriptor) -> Option<String> {
    if descriptor.size.is_zero() {
        return Some("Disk_size: the disk has no sectors".into());
    }
    if descriptor.size.bytes() % 512 != 0 {
        return Some("Disk_size: the disk does not end with a whole sector".into());
    }
    let mut images = descriptor.images.iter();
    let plain = images.find(|image| image.kind == ImageKind::Plain);
    match (descriptor.mode, plain) {
        (ImageMode::Expanded | ImageMode::Preallocated, None) | (ImageMode::Raw, Some(_)) => {}
        (ImageMode::Raw, None) => return Some("the mode is raw, but no image is Plain".into()),
        (ImageMode::Preallocated, Some(image)) => {
            return Some(format!(
                "Preallocated is set, but image {} is Plain",
                image.guid
            ));
        }
        (ImageMode::Expanded, Some(image)) => {
            return Some(format!(
                "the mode is expanded, but image {} is Plain",
                image.guid
            ));
        }
    }
    let mut files: HashMap<Guid, &Image> = HashMap::new();
    for image in &descriptor.images {
        if files.insert(image.guid, image).is_some() {
            return Some(format!("two images have the GUID {}", image.guid));
        }
        if image.file.as_os_str().len() > MAX_PATH {
            return Some(format!(
                "the file name of image {} is longer than {MAX_PATH} bytes",
                image.guid
            ));
        }
    }
    let mut parents: HashMap<Guid, Guid> = HashMap::new();
    for shot in &descriptor.snapshots {
        if shot.guid == Guid::NONE {
            return Some(format!(
                "a Shot has the GUID {}, which means none",
                shot.guid
            ));
        }
        if parents.insert(shot.guid, shot.parent).is_some() {
            return Some(format!("two Shots have the GUID {}", shot.guid));
        }
    }
    if files.is_empty() {
        return Some("there is no Image".into());
    }
    let is_volume = descriptor.stands_upon().is_some();
    for shot in &descriptor.snapshots {
        if !files.contains_key(&shot.guid) {
            return Some(format!("Shot {} has no Image", shot.guid));
        }
        if shot.parent != Guid::NONE && !is_volume && !parents.contains_key(&shot.parent) {
            return Some(format!(
                "the parent {} of Shot {} is not listed",
                shot.parent, shot.guid
            ));
        }
    }
    for image in &descriptor.images {
        if !parents.contains_key(&image.guid) {
            return Some(format!("image {} has no Shot", image.guid));
        }
    }
    match descriptor.snapshot(descriptor.top) {
        None => return Some(format!("the top {} is not listed", descriptor.top)),
        Some(shot) if shot.temporary => {
            return Some(format!("the top {} is temporary", descriptor.top));
        }
        Some(_) => {}
    }
    let mut bases = descriptor.lowest();
    if let (Some(first), Some(second)) = (bases.next(), bases.next()) {
        return Some(format!("both {} and {} are bases", first.guid, second.guid));
    }
    cycle(&descriptor.snapshots, &parents)
        .map(|guid| format!("the parents of {guid} lead back to it, never to a base"))
        .or_else(|| storage::contradiction(descriptor))
}

/// A GUID on a cycle of parents.
fn cycle(snapshots: &[Snapshot], parents: &HashMap<Guid, Guid>) -> Option<Guid> {
    // The number of the walk that first came by. A walk that meets its own number has found a cycle.
    let mut walked: HashMap<Guid, usize> = HashMap::new();
    for (walk, shot) in snapshots.iter().enumerate() {
        let mut guid = shot.guid;
        while guid != Guid::NONE {
            match walked.insert(guid, walk) {
                None => match parents.get(&guid) {
                    Some(parent) => guid = *parent,
                    // The parent is in another directory.
                    None => break,
                },
                Some(earlier) if earlier == walk => return Some(guid),
                Some(_) => break,
            }
        }
    }
    None
}
