//! Volumes of libploop 7: images that stand upon each other, each in a directory of its own.
//!
//! A [snapshot](Volume::snapshot) of a volume is a volume, too: it takes the deltas there are, is read-only, and the volume
//! stands upon it with a new top. A [clone](Volume::clone_to) is a volume upon the state of another one. In the directory
//! of each, `children` has a link to each volume upon it.
//!
//! libploop has functions for this (`libvolume.h`, since 7.0.95). They sync nothing, leave half a volume when they
//! are cut short, and abort or remove the data of other volumes (hazards A80 to A82), so none of them is called. The steps
//! here are this crate's, and a running volume is snapshotted by [`Ploop::snapshot_with`](crate::Ploop::snapshot_with). What they make, libploop
//! reads and continues; and what libploop has made is taken as it is.
//!
//! # What an interruption leaves
//!
//! After a kill or a power cut at any moment each volume that was there reads as before, or is what it was to become. The
//! next operation of this module on the volume, on one upon which it stands or was to stand, or on one upon it finishes or takes back
//! what was cut short; a volume with a descriptor stays. Until then, deltas that two of them have are not merged. What remains:
//!
//! | operation | may leave |
//! |---|---|
//! | [`create`](Volume::create) | an image that is no volume yet; remove its directory |
//! | [`snapshot`](Volume::snapshot), [`clone_to`](Volume::clone_to) | a snapshot of the image, which [`Ploop::delete_snapshot`](crate::Ploop::delete_snapshot) merges; an empty delta beside the volume's own or in [the directory for images](VolumePlace::images); a directory with a few files of this crate, which the next attempt uses, from whichever volume |
//! | [`switch_to`](Volume::switch_to) | a link in `children.ploop-moves`, which the next operation on the volume removes; an old delta, or the new one, that nobody names |
//! | [`delete`](Volume::delete) | once the descriptor is gone, a directory with a few files of this crate, and deltas in other directories that nobody names; remove them |
//!
//! So call the operation again. A clone of a volume that can be written to makes another snapshot then, and the one before may be
//! deleted: one upon which a volume stands is refused. No call lists deltas that nobody names, since those of other volumes lie
//! among them: remove one by hand where no descriptor of the volumes has its name.
//!
//! These operations exclude each other: all of root on a host, and all of any other user.
//!
//! # What is done by hand
//!
//! Which volumes stand upon one is told by the links in its `children` alone. A volume whose directory or descriptor was moved is
//! missed: what it stands upon is not deleted until it is back, or the link is removed. One whose link was removed, or that is a copy
//! (`cp -a`) of another one, is **not seen**: it loses what it stands upon when that is deleted. So make clones, and no copies.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path();
//! use ploop::volume::{Volume, VolumePlace};
//! use ploop::{CreateParam, Feature, Size};
//!
//! # if !ploop::capabilities().has(Feature::Volumes) { return Ok(()) }
//! let param = CreateParam::new(dir.join("web/image.hds"), Size::from_gib(10)).fs(None);
//! let mut web = Volume::create(&param)?;
//! let mut monday = web.snapshot(&VolumePlace::new(dir.join("monday")))?;
//! let copy = monday.clone_to(&VolumePlace::new(dir.join("copy")))?;
//! assert_eq!(monday.tree()?.children.len(), 2);
//! copy.delete()?;
//! # Ok::<(), ploop::Error>(())
//! ```

mod delete;
mod layout;
mod make;
mod switch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::change::Change;
use crate::ffi::{Call, descriptor_form};
use crate::image::Volume as Relation;
use crate::{Descriptor, Error, ErrorKind, Feature, Ploop, Result, Size, paths};

/// Where a new volume goes.
///
/// ```
/// use ploop::volume::VolumePlace;
///
/// let place = VolumePlace::new("/vz/volumes/copy").images("/vz/fast");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct VolumePlace {
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    directory: PathBuf,
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    images: Option<PathBuf>,
}

impl VolumePlace {
    /// The directory of the volume. If it is there, it must be empty.
    pub fn new(directory: impl AsRef<Path>) -> VolumePlace {
        VolumePlace {
            directory: directory.as_ref().to_owned(),
            images: None,
        }
    }

    /// The directory for the new delta. Without it, that of the volume whose top the delta is.
    pub fn images(mut self, directory: impl AsRef<Path>) -> VolumePlace {
        self.images = Some(directory.as_ref().to_owned());
        self
    }
}

/// A volume and those upon it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct VolumeTree {
    /// Its directory, without symbolic links on the way.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub directory: PathBuf,
    /// Those upon it, by their directories.
    pub children: Vec<VolumeTree>,
}

/// A volume.
#[derive(Debug)]
pub struct Volume {
    image: Ploop,
}

impl Volume {
    /// Opens the volume in a directory.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) where there is no descriptor, [`InvalidInput`](ErrorKind::InvalidInput) for an
    /// image that is no volume, [`Unsupported`](ErrorKind::Unsupported) without [`Feature::Volumes`], and as
    /// [`Ploop::open`].
    ///
    /// ```no_run
    /// let volume = ploop::volume::Volume::open("/vz/volumes/web")?;
    /// println!("{:#?}", volume.tree()?);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn open(directory: impl AsRef<Path>) -> Result<Volume> {
        const OPERATION: &str = "open volume";
        let path = directory.as_ref().join(paths::DESCRIPTOR_NAME);
        Feature::Volumes.require(OPERATION, &path)?;
        let volume = Volume {
            image: Ploop::open(path)?,
        };
        relation(OPERATION, volume.image.path(), &volume.image.descriptor()?)?;
        Ok(volume)
    }

    /// The image, to look at it.
    #[must_use]
    pub fn image(&self) -> &Ploop {
        &self.image
    }

    /// The image: to mount it, and for snapshots of its own. A volume that is read-only is mounted read-only, whatever is
    /// asked for.
    pub fn image_mut(&mut self) -> &mut Ploop {
        &mut self.image
    }

    /// The volume's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        paths::directory_of(self.image.path())
    }

    /// Whether it is read-only: others were made to stand upon it.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`].
    ///
    /// ```no_run
    /// let volume = ploop::volume::Volume::open("/vz/volumes/web")?;
    /// assert!(!volume.is_read_only()?);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn is_read_only(&self) -> Result<bool> {
        let descriptor = self.image.descriptor()?;
        Ok(descriptor.volume.is_some_and(|volume| volume.read_only))
    }

    /// The space that the top delta takes: what was written to the volume alone. It is the length of the file, as
    /// `ploop_volume_get_info` tells it.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`], and [`NotFound`](ErrorKind::NotFound) where the delta is missing.
    ///
    /// ```no_run
    /// let volume = ploop::volume::Volume::open("/vz/volumes/web")?;
    /// println!("{} written", volume.size()?);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn size(&self) -> Result<Size> {
        let file = self.image.top_delta_file()?;
        let metadata = fs::metadata(&file).map_err(|error| {
            Error::io("get the size of", "the top delta cannot be examined", error).with_path(file)
        })?;
        Ok(Size::from_bytes(metadata.len()))
    }

    /// The volumes upon this one, those upon them, and so on. (`ploop_volume_get_tree` goes down one level.) No lock is
    /// taken.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) for a link in `children` that leads nowhere: it is [`Error::path`].
    ///
    /// ```no_run
    /// let volume = ploop::volume::Volume::open("/vz/volumes/web")?;
    /// for upon in volume.tree()?.children {
    ///     println!("{} is upon it", upon.directory.display());
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn tree(&self) -> Result<VolumeTree> {
        tree(self.directory().to_owned(), &mut BTreeSet::new())
    }
}

fn tree(directory: PathBuf, above: &mut BTreeSet<PathBuf>) -> Result<VolumeTree> {
    const OPERATION: &str = "list the volumes upon";
    above.insert(directory.clone());
    let mut children = Vec::new();
    for child in layout::children(OPERATION, &directory)? {
        let path = child.directory.join(paths::DESCRIPTOR_NAME);
        let is_unfinished = !path.exists() && child.directory.is_dir();
        if child.is_move || is_unfinished || above.contains(&child.directory) {
            // It is being made or deleted, or was when that was cut short.
            continue;
        }
        if !path.exists() {
            let why = "this leads to no volume; remove it, if the volume that stood upon this one is gone";
            return Err(Error::new(ErrorKind::NotFound, OPERATION, why).with_path(child.link));
        }
        children.push(tree(child.directory, above)?);
    }
    children.sort_by(|one, other| one.directory.cmp(&other.directory));
    above.remove(&directory);
    Ok(VolumeTree {
        directory,
        children,
    })
}

/// How a volume belongs to others.
fn relation<'d>(
    operation: &'static str,
    path: &Path,
    descriptor: &'d Descriptor,
) -> Result<&'d Relation> {
    descriptor.volume.as_ref().ok_or_else(|| {
        let why = "the image is no volume: it was made without ploop::volume::Volume::create or ploop_volume_create";
        Error::new(ErrorKind::InvalidInput, operation, why).with_path(path)
    })
}

/// Refuses what no volume can stand upon.
fn require_standable(change: &Change<'_>) -> Result<()> {
    let descriptor = &change.descriptor;
    let why = if descriptor.mode == crate::ImageMode::Raw {
        "the image is raw, and volumes cannot stand upon that; convert it first"
    } else if descriptor.encryption.is_some() {
        "the image is encrypted, and volumes cannot stand upon that"
    } else if change.has_unknown_fields() {
        "the descriptor has fields that libploop does not know, and a volume does not keep"
    } else if descriptor.snapshots.iter().any(|it| it.temporary) {
        "the image has a temporary snapshot; delete it first"
    } else {
        return Ok(());
    };
    change.refuse(ErrorKind::Unsupported, why)
}

/// The descriptor of a volume, with file names as libploop reads them.
fn read(operation: &'static str, directory: &Path) -> Result<Descriptor> {
    let path = directory.join(paths::DESCRIPTOR_NAME);
    Descriptor::open_as(&path, descriptor_form())
        .map_err(|error| error.during(operation).with_path(path))
}

/// What these operations need of libploop: nothing, but the images below locked.
const fn call(name: &'static str) -> Call {
    Call::new(name).changes().finds_device().knows_parents()
}
