//! Removing a volume.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Volume, call, layout, read, relation};
use crate::change::Change;
use crate::ffi::Call;
use crate::identity::Identity;
use crate::image::{Image, Volume as Relation};
use crate::{Descriptor, Error, ErrorKind, Guid, Ploop, Result, durability, paths};

/// Also one upon which another stands.
const DELETE: Call = call("delete the volume").any_delta();

impl Volume {
    /// Removes the volume (`ploop_volume_delete`), which no device may have: its deltas, its descriptor and its directory.
    ///
    /// Where one volume stands upon it, that one **takes over** the deltas below its own, as snapshots of its own, which
    /// [`Ploop::delete_snapshot`] merges; it reads as before, and stands upon what this one stood upon. Deltas in this
    /// volume's directory then get a name in the other one's, which needs both on one file system, and the other
    /// one not to be attached. libploop merges the deltas at once.
    ///
    /// Only deltas that the volume names, and files that libploop and this crate make beside an image are removed. If there is anything
    /// else in the directory, such as a delta of another volume, that stays, and the directory with it. Needs root and no
    /// driver; takes a moment.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) where two or more volumes stand upon it,
    /// [`NotFound`](ErrorKind::NotFound) where one that is registered as upon it has no descriptor,
    /// [`Busy`](ErrorKind::Busy) while it is attached, or where the volume upon it is and deltas get another name;
    /// [`Unsupported`](ErrorKind::Unsupported) for deltas that cannot get one, where a delta belongs to another image, too,
    /// where the volume upon it does not take one on which yet another volume stands, and where the directory is a copy
    /// whose links lead to the original. After an error, call it again: it goes on.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// # use ploop::volume::{Volume, VolumePlace};
    /// # if !ploop::capabilities().has(ploop::Feature::Volumes) { return Ok(()) }
    /// # let param = ploop::CreateParam::new(dir.join("web/image.hds"), ploop::Size::from_mib(64));
    /// # let mut web = Volume::create(&param.fs(None))?;
    /// let monday = web.snapshot(&VolumePlace::new(dir.join("monday")))?;
    /// monday.delete()?;
    /// assert_eq!(web.image().descriptor()?.images.len(), 2);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn delete(mut self) -> Result<()> {
        let operation = DELETE.name;
        let _lock = self.begin(operation)?;
        let own = self.directory().to_owned();
        let mut children = Vec::new();
        let registered = layout::children(operation, &own)?.into_iter();
        for child in registered.filter(|it| !it.is_move) {
            if !child.directory.join(paths::DESCRIPTOR_NAME).exists() {
                let why = "a volume that stands upon this one is registered here, and its descriptor is not there: what it stands upon would be removed; put it back, or remove this link, if that volume is gone";
                return Err(Error::new(ErrorKind::NotFound, operation, why).with_path(child.link));
            }
            if !children.contains(&child.directory) {
                children.push(child.directory);
            }
        }
        if children.len() > 1 {
            let why = format!(
                "{} volumes stand upon it, and only one can take over what it has",
                children.len()
            );
            return Err(
                Error::new(ErrorKind::InvalidInput, operation, why).with_path(self.image.path())
            );
        }

        let heir = children.first().map(PathBuf::as_path);
        let change = Change::begin(&self.image.image, &DELETE)?;
        let descriptor = &change.descriptor;
        let above = relation(operation, change.path(), descriptor)?
            .parent
            .clone();
        self.require_unattached(&change, heir)?;
        let taken = match heir {
            Some(heir) => taken_over(&change, &own, heir)?,
            None => {
                require_nobody_beside(&change, &own)?;
                Vec::new()
            }
        };
        for image in &descriptor.images {
            change.require_delta_header(image.file.exists().then_some(image))?;
            if !taken.contains(&image.guid) {
                change.require_of_no_other_image(&[image.guid])?;
            }
        }
        let files: Vec<PathBuf> = (descriptor.images.iter().rev())
            .map(|image| image.file.clone())
            .collect();
        let path = change.path().to_owned();
        // Who is above locks this one, too.
        let locked = match heir {
            Some(heir) => {
                drop(change);
                self.hand_over(heir)?;
                None
            }
            None => Some(change),
        };

        let kept = match heir {
            Some(heir) => read(operation, heir)?.images,
            None => Vec::new(),
        };
        // By this name, or as the only one.
        let is_kept = |file: &&PathBuf| {
            kept.iter().any(|it| {
                let is_same = Identity::of(&it.file).ok() == Identity::of(file).ok();
                let names = fs::metadata(file).map_or(0, |it| it.nlink());
                resolved(&it.file) == resolved(file) || is_same && names == 1
            })
        };
        let removed: Vec<&Path> = (files.iter().filter(|file| !is_kept(file)))
            .map(PathBuf::as_path)
            .collect();
        // Its descriptor goes first: until then a kill leaves a volume that reads as before, and from then on one that the
        // next operation on the volume above or on the heir removes. So it stays registered in both until the end.
        let above = above.filter(|above| above.is_dir());
        if let Some(above) = &above {
            layout::register_move(operation, &own, above)?;
        }
        layout::mark(operation, &own, removed.iter().copied())?;
        layout::remove_file(operation, &path)?;
        durability::sync_directories(operation, [&*own])?;
        for file in &removed {
            layout::remove_file(operation, file)?;
        }
        let directories = removed.iter().map(|file| paths::directory_of(file));
        durability::sync_directories(operation, directories)?;
        drop(locked);
        let registered_in: Vec<&Path> = above.as_deref().into_iter().chain(heir).collect();
        layout::remove(operation, &own, &registered_in)
    }

    /// That no device has the volume. One may have a delta that the volume upon this one has by now.
    fn require_unattached(&self, change: &Change<'_>, child: Option<&Path>) -> Result<()> {
        let guids: Vec<Guid> = change.descriptor.images.iter().map(|it| it.guid).collect();
        let tops: Vec<Identity> = match child {
            Some(child) => (read(change.operation(), child)?.images.iter())
                .filter_map(|image| Identity::of(&image.file).ok())
                .collect(),
            None => Vec::new(),
        };
        let is_of_child = |top: Option<Identity>| top.is_some_and(|top| tops.contains(&top));
        let mut devices = change.devices_with(&guids);
        match devices.find(|it| !is_of_child(it.top().and_then(|top| top.identity))) {
            Some(device) => change.refuse_attached(device, "it is about to be deleted"),
            None => Ok(()),
        }
    }

    /// Has the volume in `child`, which stands upon this one, take over what is below it. Does nothing if it has.
    fn hand_over(&mut self, child: &Path) -> Result<()> {
        let operation = DELETE.name;
        let own = self.directory();
        let image = Ploop::open(child.join(paths::DESCRIPTOR_NAME))?;
        let change = Change::begin(&image.image, &DELETE)?;
        let upon = relation(operation, change.path(), &change.descriptor)?.clone();
        if upon.parent.as_deref() != Some(own) {
            return Ok(());
        }
        // Locked, and the same as what this descriptor says: it is the first parent of the other one.
        let descriptor = read(operation, own)?;
        let taken = deltas_below(&change.descriptor, &descriptor);
        let mut new = change.descriptor.clone();
        let mut links = Vec::new();
        for (at, image) in taken.iter().enumerate() {
            let mut image = (*image).clone();
            let directory = fs::canonicalize(paths::directory_of(&image.file)).ok();
            if directory.as_deref() == Some(own) {
                let [mut file, other] = second_names(child, &image);
                let same = Identity::of(&file).ok() == Identity::of(&image.file).ok();
                if fs::symlink_metadata(&file).is_ok() && !same {
                    file = other;
                }
                links.push((image.file.clone(), file.clone()));
                image.file = file;
            }
            let shot = descriptor.snapshot(image.guid).cloned();
            new.images.insert(at, image);
            new.snapshots.splice(at..at, shot);
        }
        let below = descriptor.volume.as_ref();
        new.volume = Some(Relation {
            parent: below.and_then(|it| it.parent.clone()),
            // Where nothing is taken, it stands upon the same.
            snapshot: match taken.is_empty() {
                true => upon.snapshot,
                false => below.and_then(|it| it.snapshot),
            },
            read_only: upon.read_only,
        });
        let guids: Vec<Guid> = change.descriptor.images.iter().map(|it| it.guid).collect();
        if let (Some(device), false) = (change.devices_with(&guids).next(), links.is_empty()) {
            return change.refuse_attached(
                device,
                "it has deltas that are in the directory of the volume that is to be deleted, and get another name",
            );
        }
        if let Some(below) = new.stands_upon() {
            layout::require_name_free(operation, below, child)?;
        }
        // Until its descriptor is gone, the volume that is deleted reads the same deltas: nothing may be merged into them.
        // By this link, the next operation takes back what comes now, and the move.
        layout::register_move(operation, child, own)?;
        for (file, link) in &links {
            make_link(operation, file, link)?;
        }
        durability::sync_directories(operation, [child])?;
        if let Some(below) = new.stands_upon() {
            layout::register(operation, below, child)?;
        }
        change.replace_descriptor(&new)
    }
}

/// The deltas of a volume upon which another one stands, from the base up.
fn deltas_below<'a>(upper: &Descriptor, lower: &'a Descriptor) -> Vec<&'a Image> {
    let lowest = upper.base().and_then(|it| upper.snapshot(it.guid));
    lower.chain(lowest.map_or(Guid::NONE, |it| it.parent))
}

/// The deltas of the volume in `own` that its heir has by now or is going to have: those below it. Refused where the heir
/// is registered and stands upon another volume, as in a copy of the directory.
fn taken_over(change: &Change<'_>, own: &Path, heir: &Path) -> Result<Vec<Guid>> {
    let other = read(change.operation(), heir)?;
    let upon = relation(change.operation(), heir, &other)?;
    let descriptor = &change.descriptor;
    if upon.parent.as_deref() == Some(own) {
        let below = deltas_below(&other, descriptor);
        return Ok(below.iter().map(|it| it.guid).collect());
    }
    let files: Vec<Identity> = (other.images.iter())
        .filter_map(|it| Identity::of(&it.file).ok())
        .collect();
    let has: Vec<Guid> = (descriptor.images.iter())
        .filter(|it| Identity::of(&it.file).is_ok_and(|it| files.contains(&it)))
        .map(|it| it.guid)
        .collect();
    let above = descriptor.volume.as_ref().and_then(|it| it.parent.as_ref());
    if has.is_empty() && upon.parent.as_ref() != above {
        let why = format!(
            "the volume {} is registered as upon this one, and stands upon another: this is a copy, whose deltas others may need; remove the link in `children`, if that is not so",
            heir.display()
        );
        return change.refuse(ErrorKind::Unsupported, &why);
    }
    Ok(has)
}

/// Requires that no volume among whose files deltas of this one lie stands upon this one without being registered.
fn require_nobody_beside(change: &Change<'_>, own: &Path) -> Result<()> {
    for image in &change.descriptor.images {
        let directory = paths::directory_of(&image.file);
        let other = Descriptor::open(directory.join(paths::DESCRIPTOR_NAME));
        let parent = other.ok().and_then(|it| it.volume?.parent);
        if parent.is_some_and(|it| fs::canonicalize(it).is_ok_and(|it| it == own)) {
            let why = format!(
                "the volume {} stands upon this one and is not registered in `children`, as in a copy of the directories; put the link back",
                directory.display()
            );
            return change.refuse(ErrorKind::Unsupported, &why);
        }
    }
    Ok(())
}

/// The names that a delta may get in the directory of the volume that takes it over.
fn second_names(heir: &Path, image: &Image) -> [PathBuf; 2] {
    let name = image.file.file_name().unwrap_or_default();
    [heir.join(name), heir.join(format!("{}.hds", image.guid))]
}

/// Removes those names of deltas of a volume that was to be deleted, and is not, which the heir does not use.
pub(super) fn remove_second_names(
    operation: &'static str,
    heir: &Path,
    own: &Descriptor,
    deleted: &Descriptor,
) -> Result<()> {
    let used: Vec<PathBuf> = (own.images.iter().chain(&deleted.images))
        .map(|it| resolved(&it.file))
        .collect();
    for image in &deleted.images {
        let Ok(identity) = Identity::of(&image.file) else {
            continue;
        };
        for file in second_names(heir, image) {
            if !used.contains(&file) && Identity::of(&file).is_ok_and(|it| it == identity) {
                layout::remove_file(operation, &file)?;
            }
        }
    }
    Ok(())
}

fn make_link(operation: &'static str, file: &Path, link: &Path) -> Result<()> {
    match fs::hard_link(file, link) {
        // From an attempt that was cut short: that was looked at.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            let why =
                "the delta cannot get a name in the directory of the volume that takes it over";
            Err(
                Error::new(ErrorKind::Unsupported, operation, format!("{why}: {error}"))
                    .with_path(file),
            )
        }
        Ok(()) => Ok(()),
    }
}

/// The name of a file, in a directory without links.
pub(super) fn resolved(file: &Path) -> PathBuf {
    let directory = paths::directory_of(file);
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    directory.join(file.file_name().unwrap_or_default())
}
