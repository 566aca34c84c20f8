//! New volumes: of images, as snapshots, and as clones.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::delete::{remove_second_names, resolved};
use super::{Volume, VolumePlace, call, layout, read, relation, require_standable};
use crate::change::Change;
use crate::ffi::Call;
use crate::identity::Identity;
use crate::image::{Header, Image, ImageKind, Snapshot, Volume as Relation};
use crate::lock::VolumesLock;
use crate::{
    CreateParam, Descriptor, Error, ErrorKind, Feature, Guid, ImageMode, Ploop, Result,
    SnapshotParam, paths, trust,
};

const CREATE: Call = call("create volume");
const SNAPSHOT: Call = call("make a snapshot of the volume");
/// Also of one upon which others stand.
const CLONE: Call = call("clone the volume").any_delta();

impl Volume {
    /// Makes an image, as [`Ploop::create`] does, and a volume of it (`ploop_volume_create`). Its directory is that of the
    /// image, and is made where it is missing.
    ///
    /// Needs the driver and root where it is to have a file system.
    ///
    /// # Errors
    ///
    /// As [`Ploop::create`]; [`Unsupported`](ErrorKind::Unsupported) for a raw or encrypted image, upon which no volume can
    /// stand, and without [`Feature::Volumes`]. After an error nothing is left, but for the directory where it was made.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use ploop::volume::Volume;
    /// use ploop::{CreateParam, Feature, Size};
    ///
    /// # if !ploop::capabilities().has(Feature::Volumes) { return Ok(()) }
    /// let param = CreateParam::new(dir.path().join("web/image.hds"), Size::from_mib(64));
    /// let volume = Volume::create(&param.fs(None))?;
    /// assert!(volume.tree()?.children.is_empty());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn create(param: &CreateParam) -> Result<Volume> {
        let operation = CREATE.name;
        let file = param.file();
        Feature::Volumes.require(operation, file)?;
        if let Some(why) = param.fault_of_volume() {
            return Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(file));
        }
        let _lock = VolumesLock::acquire(operation, file)?;
        let directory = paths::directory_of(file);
        let mut made = None;
        if fs::symlink_metadata(directory).is_err() {
            let new = layout::new_directory(operation, directory)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&new)
                .map_err(|error| {
                    Error::io(operation, "the directory cannot be made", error).with_path(&new)
                })?;
            made = Some(new);
        }
        let volume = Ploop::create(param).and_then(|image| {
            let change = Change::begin(&image.image, &CREATE)?;
            require_standable(&change)?;
            let mut new = change.descriptor.clone();
            new.volume = Some(Relation::default());
            // libploop wants it to be there.
            layout::make(operation, paths::directory_of(change.path()))?;
            change.replace_descriptor(&new)?;
            drop(change);
            Ok(Volume { image })
        });
        if let (Err(_), Some(made)) = (&volume, made) {
            // Only if there is nothing in it.
            let _ = fs::remove_dir(made);
        }
        volume
    }

    /// Makes a snapshot of the volume, which is a volume in a directory of its own (`ploop_volume_snapshot`): it takes all
    /// deltas and is read-only, and this volume stands upon it with a new, empty top delta.
    ///
    /// The new top is made in [`images`](VolumePlace::images), or else in this volume's directory. The deltas stay where they are. Works
    /// on a mounted volume, whose file system is synced, and on one that is not. Needs root; takes a moment.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where something is in the new directory, or a volume of its name is
    /// registered; [`Unsupported`](ErrorKind::Unsupported) for a volume that is read-only, and for a raw or encrypted image; [`Busy`](ErrorKind::Busy)
    /// after the sixth snapshot since the volume was attached: the names of deltas get longer each time; and as
    /// [`Ploop::snapshot_with`]. After an error the volume has the same data, and perhaps a snapshot of its own.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// # use ploop::volume::{Volume, VolumePlace};
    /// # if !ploop::capabilities().has(ploop::Feature::Volumes) { return Ok(()) }
    /// # let param = ploop::CreateParam::new(dir.join("web/image.hds"), ploop::Size::from_mib(64));
    /// # let mut web = Volume::create(&param.fs(None))?;
    /// let monday = web.snapshot(&VolumePlace::new(dir.join("monday")))?;
    /// assert!(monday.is_read_only()?);
    /// assert_eq!(monday.tree()?.children[0].directory, web.directory());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn snapshot(&mut self, place: &VolumePlace) -> Result<Volume> {
        let operation = SNAPSHOT.name;
        let _lock = self.begin(operation)?;
        let directory = layout::new_directory(operation, &place.directory)?;
        let change = Change::begin(&self.image.image, &SNAPSHOT)?;
        relation(operation, change.path(), &change.descriptor)?;
        require_standable(&change)?;
        if let Some(parent) = change.descriptor.stands_upon() {
            layout::require_name_free(operation, parent, &directory)?;
        }
        shorten_name(&change)?;
        drop(change);

        let guid = Guid::generate();
        let images = place.images.as_deref().unwrap_or(self.directory());
        self.image
            .snapshot_with(&SnapshotParam::new().guid(guid).directory(images))?;
        let change = Change::begin(&self.image.image, &SNAPSHOT)?;
        let mut taken = change.descriptor.clone();
        if taken.parent(taken.top) != Some(guid) {
            return change.refuse(
                ErrorKind::Busy,
                "another program has changed the volume meanwhile; it has a snapshot more, and is otherwise as that left it",
            );
        }
        require_standable(&change)?;
        taken.images.retain(|image| image.guid != taken.top);
        taken.snapshots.retain(|shot| shot.guid != taken.top);
        taken.top = guid;
        let above = relation(operation, change.path(), &change.descriptor)?;
        taken.volume = Some(Relation {
            read_only: true,
            ..above.clone()
        });
        // Registered before it is a volume: so these deltas are neither merged nor removed from here on.
        layout::make(operation, &directory)?;
        layout::mark(operation, &directory, [])?;
        let own = self.directory();
        layout::register_move(operation, own, &directory)?;
        layout::register(operation, &directory, own)?;
        layout::write_descriptor(operation, &directory, &taken, change.path())?;
        stand_upon(&change, &directory)?;
        drop(change);
        Volume::open(directory)
    }

    /// Makes a clone of the volume: a volume upon its state, with an empty delta of its own (`ploop_volume_clone`).
    ///
    /// Of a volume that can be written to, a snapshot is made first, as [`Ploop::snapshot`] does; so this works on a
    /// mounted one, too. It then keeps that snapshot, as long as the clone is there. The clone's delta is made in
    /// [`images`](VolumePlace::images), or else in its directory. The clone has the limit for the size of deltas of this volume, and none
    /// of its snapshots. Needs root; takes a moment.
    ///
    /// # Errors
    ///
    /// As [`snapshot`](Volume::snapshot); a volume that is read-only can be cloned.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// # use ploop::volume::{Volume, VolumePlace};
    /// # if !ploop::capabilities().has(ploop::Feature::Volumes) { return Ok(()) }
    /// # let param = ploop::CreateParam::new(dir.join("web/image.hds"), ploop::Size::from_mib(64));
    /// # let mut web = Volume::create(&param.fs(None))?;
    /// let copy = web.clone_to(&VolumePlace::new(dir.join("copy")))?;
    /// assert_eq!(web.tree()?.children[0].directory, copy.directory());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn clone_to(&mut self, place: &VolumePlace) -> Result<Volume> {
        let operation = CLONE.name;
        let _lock = self.begin(operation)?;
        let directory = layout::new_directory(operation, &place.directory)?;
        let images = (place.images.as_deref())
            .map(|images| layout::directory_for_delta(operation, images))
            .transpose()?;
        let change = Change::begin(&self.image.image, &CLONE)?;
        let is_read_only = relation(operation, change.path(), &change.descriptor)?.read_only;
        require_standable(&change)?;
        layout::require_name_free(operation, self.directory(), &directory)?;
        drop(change);

        let guid = match is_read_only {
            true => None,
            false => Some(self.image.snapshot()?),
        };
        let change = Change::begin(&self.image.image, &CLONE)?;
        require_standable(&change)?;
        // That of libploop stands upon the image below where this one stands upon another (A82).
        let guid = guid.unwrap_or(change.descriptor.top);
        let below = match change.descriptor.image(guid) {
            Some(below) if change.descriptor.snapshot(guid).is_some() => below,
            _ => {
                return change.refuse(
                    ErrorKind::Busy,
                    "another program has changed the volume meanwhile, and the snapshot is gone",
                );
            }
        };
        let header = Header::read(&below.file).map_err(|error| error.during(operation))?;
        let file = new_delta(images.as_deref().unwrap_or(&directory));
        layout::make(operation, &directory)?;
        layout::mark(operation, &directory, [&*file])?;
        // By this link, whoever uses the directory after a kill finds where it is registered.
        layout::register_move(operation, &directory, self.directory())?;
        layout::register(operation, self.directory(), &directory)?;
        let relation = Relation {
            parent: Some(self.directory().to_owned()),
            snapshot: Some(guid),
            read_only: false,
        };
        let clone = upon(&change.descriptor, relation, guid, file.clone(), &header);
        layout::make_delta(operation, &file, &header)?;
        layout::write_descriptor(operation, &directory, &clone, change.path())?;
        layout::unregister(operation, &directory, self.directory())?;
        drop(change);
        Volume::open(directory)
    }

    /// Begins an operation: nobody else has one until the lock is dropped, and nothing is left of one before.
    pub(super) fn begin(&mut self, operation: &'static str) -> Result<VolumesLock> {
        let lock = VolumesLock::acquire(operation, self.image.path())?;
        for child in layout::children(operation, self.directory())? {
            let path = child.directory.join(paths::DESCRIPTOR_NAME);
            let may_move = || -> Result<bool> {
                let links = layout::children(operation, &child.directory)?;
                Ok(links.iter().any(|it| it.is_move))
            };
            if !child.is_move && path.exists() && may_move()? {
                let image = Ploop::open(path)?;
                Volume { image }.finish(operation)?;
            }
        }
        self.finish(operation)?;
        Ok(lock)
    }

    /// Finishes or takes back what was cut short: a move of this volume, and what makes or removes one that is registered
    /// here.
    pub(super) fn finish(&self, operation: &'static str) -> Result<()> {
        for child in layout::children(operation, self.directory())? {
            if child.is_move || layout::is_unfinished(&child.directory) {
                // Perhaps somebody is about to complete it.
                let change = Change::begin(&self.image.image, &CLONE)?;
                let path = child.directory.join(paths::DESCRIPTOR_NAME);
                trust::require_no_other_writers(operation, [&*path])?;
                match layout::is_unfinished(&child.directory) {
                    true => {
                        let own = Some(self.directory());
                        layout::remove_unfinished(operation, &child.directory, own)?;
                    }
                    false if child.is_move => finish_move(&change, &child.directory)?,
                    false => {}
                }
            }
        }
        Ok(())
    }
}

/// The volume was about to stand upon the one in `directory`, or not to any more.
fn finish_move(change: &Change<'_>, directory: &Path) -> Result<()> {
    let operation = change.operation();
    let own = paths::directory_of(change.path());
    if !directory.join(paths::DESCRIPTOR_NAME).exists() {
        return layout::unregister(operation, own, directory);
    }
    let (descriptor, other) = (&change.descriptor, read(operation, directory)?);
    let is_of_other = |image: &&Image| {
        let file = other.image(image.guid).map(|it| Identity::of(&it.file));
        matches!((file, Identity::of(&image.file)), (Some(Ok(other)), Ok(own)) if other == own)
    };
    let (taken, rest): (Vec<&Image>, Vec<&Image>) = descriptor.images.iter().partition(is_of_other);
    if taken.is_empty() {
        // It stands upon one, and is to be registered there alone.
        let from = match descriptor.stands_upon() {
            Some(above) if above == directory => other.stands_upon(),
            _ => Some(directory),
        };
        if let Some(from) = from.filter(|it| it.is_dir()) {
            layout::unregister(operation, from, own)?;
        }
        remove_second_names(operation, own, descriptor, &other)?;
        return layout::unregister(operation, own, directory);
    }
    // It was not done with a snapshot, or has taken over the deltas of a volume that was not deleted.
    let below: Vec<Guid> = (rest.iter().filter_map(|it| descriptor.parent(it.guid)))
        .filter(|guid| rest.iter().all(|it| it.guid != *guid))
        .collect();
    let stand_upon_one = matches!(below.as_slice(), [below] if other.image(*below).is_some());
    match stand_upon_one && rest.iter().any(|it| it.guid == descriptor.top) {
        true => stand_upon(change, directory),
        // Changed since. Its deltas are safe as long as the link is there, and the deletion can go on.
        false => Ok(()),
    }
}

/// libploop names a new top after the lowest delta of the volume, which is the top that it made last: each name is
/// longer than the one before (A83). So one that is long already gets another.
fn shorten_name(change: &Change<'_>) -> Result<()> {
    /// What libploop adds, a dot and a GUID, and as much for the file's name elsewhere.
    const ADDED: usize = 39;
    const LONGEST: usize = 255;
    let operation = change.operation();
    let Some(lowest) = change.descriptor.base() else {
        return Ok(());
    };
    let len = lowest.file.file_name().map_or(0, OsStr::len);
    if len + 2 * ADDED <= LONGEST {
        return Ok(());
    }
    if let Some(device) = change.devices_with(&[lowest.guid]).next() {
        return match len + ADDED <= LONGEST {
            true => Ok(()),
            false => change.refuse_attached(
                device,
                "libploop would name the new delta after this one, whose name is too long for that",
            ),
        };
    }
    change.require_no_hard_links(lowest.guid)?;
    let file = new_delta(paths::directory_of(&lowest.file));
    let mut new = change.descriptor.clone();
    for image in &mut new.images {
        if image.guid == lowest.guid {
            image.file.clone_from(&file);
        }
    }
    fs::hard_link(&lowest.file, &file).map_err(|error| {
        let why = "the delta's name is too long for libploop to name another one after it, and it cannot get another";
        Error::io(operation, why, error).with_path(&lowest.file)
    })?;
    if let Err(error) = change.replace_descriptor(&new) {
        let _ = fs::remove_file(&file);
        return Err(error);
    }
    layout::remove_file(operation, &lowest.file)?;
    crate::durability::sync_directories(operation, [paths::directory_of(&file)])
}

/// The last steps of a snapshot: the volume in `directory` has deltas of this one, which is to stand upon them. So is a
/// deletion taken back.
fn stand_upon(change: &Change<'_>, directory: &Path) -> Result<()> {
    let operation = change.operation();
    let own = paths::directory_of(change.path());
    let other = read(operation, directory)?;
    let above = change.descriptor.stands_upon().map(Path::to_owned);
    let images = change.descriptor.images.iter();
    let has_another_name = images.clone().any(|image| {
        let named = other.image(image.guid).map(|it| resolved(&it.file));
        named.is_some_and(|it| it != resolved(&image.file))
    });
    let guids: Vec<Guid> = images.map(|it| it.guid).collect();
    if let (true, Some(device)) = (has_another_name, change.devices_with(&guids).next()) {
        return change.refuse_attached(
            device,
            "the deletion of a volume of which it has deltas by another name was cut short, and is taken back",
        );
    }
    if let Some(above) = &above {
        layout::register(operation, above, directory)?;
    }
    let mut new = change.descriptor.clone();
    new.images.retain(|it| other.image(it.guid).is_none());
    new.snapshots.retain(|it| other.image(it.guid).is_none());
    let mut below = new.snapshots.iter().map(|it| it.parent);
    new.volume = Some(Relation {
        parent: Some(directory.to_owned()),
        snapshot: below.find(|guid| other.image(*guid).is_some()),
        // One that has just taken over the deltas of another one may be read-only.
        read_only: new.volume.as_ref().is_some_and(|it| it.read_only),
    });
    change.replace_descriptor(&new)?;
    remove_second_names(operation, own, &new, &other)?;
    if let Some(above) = above {
        layout::unregister(operation, &above, own)?;
    }
    layout::unregister(operation, own, directory)
}

/// A new name for a delta, as libploop gives it to that of a clone.
pub(super) fn new_delta(directory: &Path) -> PathBuf {
    directory.join(format!("{}.hds", Guid::generate()))
}

/// The descriptor of a volume with one delta, upon the snapshot `guid` with this header of the image `below`.
pub(super) fn upon(
    below: &Descriptor,
    relation: Relation,
    guid: Guid,
    file: PathBuf,
    header: &Header,
) -> Descriptor {
    let top = Guid::generate();
    let mut new = below.clone();
    new.size = header.size;
    new.mode = ImageMode::Expanded;
    new.images = vec![Image::new(top, file, ImageKind::Compressed)];
    new.snapshots = vec![Snapshot::new(top, guid)];
    new.top = top;
    new.volume = Some(relation);
    new
}
