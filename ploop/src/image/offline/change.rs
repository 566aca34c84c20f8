//! [`OfflineChange`]: what all changes of an image without libploop have in common. The checks before, under the
//! image's lock, and the new descriptor.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::OfflineImage;
use crate::durability;
use crate::identity::Identity;
use crate::image::descriptor::{
    self, Descriptor, DescriptorFile, DescriptorForm, Image, Snapshot, UnknownFields,
};
use crate::image::header::Header;
use crate::image::other_image::{
    require_no_second_name, require_of_no_other_image, require_recoverable,
};
use crate::image::recovery::{self, creation, detached};
use crate::image::sound::{SoundDelta, require_no_extension, require_sound, require_whole_size};
use crate::lock::{ImageLockGuard, Purpose};
use crate::sysfs::{self};
use crate::{Error, ErrorKind, Guid, Result, Size, paths, side_files, trust};

/// A descriptor keeps the root and the names that it has.
pub(super) const FORM: DescriptorForm = DescriptorForm {
    has_key_and_volume: true,
    ..DescriptorForm::PARALLELS
};

/// A change that has begun. The image's locks are held until it is dropped.
pub(super) struct OfflineChange<'a> {
    operation: &'static str,
    path: &'a Path,
    /// What the descriptor in place says, in the form in which libploop would write it.
    pub(super) descriptor: Descriptor,
    unknown: UnknownFields,
    /// Whether the unknown fields are those that a change which was killed has saved.
    has_saved_fields: bool,
    cancel: Option<&'a AtomicBool>,
    _lock: ImageLockGuard,
}

impl<'a> OfflineChange<'a> {
    /// Locks the image, finishes or takes back what was interrupted, and checks what every change needs.
    pub(super) fn begin(
        image: &'a OfflineImage,
        operation: &'static str,
    ) -> Result<OfflineChange<'a>> {
        let mut change = OfflineChange::begin_marked(image, operation)?;
        change
            .look_at_top()
            .map_err(|error| error.of_image(image.path()))?;
        Ok(change)
    }

    /// [`begin`](OfflineChange::begin) of an image whose top may be marked as in use.
    pub(super) fn begin_marked(
        image: &'a OfflineImage,
        operation: &'static str,
    ) -> Result<OfflineChange<'a>> {
        OfflineChange::begin_locked(image, operation).map_err(|error| error.of_image(image.path()))
    }

    fn begin_locked(image: &'a OfflineImage, operation: &'static str) -> Result<OfflineChange<'a>> {
        let lock = image
            .lock
            .acquire(operation, Purpose::Change, false, image.timeout())?;
        let path = image.path();
        let read = || {
            DescriptorFile::read_as(path, &FORM)
                .map_err(|error| error.during(operation).with_path(path))
        };
        let mut file = read()?;
        require_changeable(operation, path, &file)?;
        require_distinct_files(operation, &file.descriptor)?;
        let deltas = file.descriptor.images.iter().map(|image| &*image.file);
        let devices = sysfs::require_unattached(operation, path, deltas)?;
        require_no_second_name(operation, path, &file.descriptor)?;
        require_recoverable(operation, path, &file.descriptor)?;
        if recovery::finish(&devices, operation, path, &file.descriptor, &FORM)? {
            file = read()?;
        }
        let saved = saved_fields(path);
        let has_saved_fields = saved.is_some();
        let unknown = match saved.filter(|_| !file.unknown.is_dropped()) {
            Some(saved) => saved,
            None => file.unknown,
        };
        let descriptor = file
            .descriptor
            .normalized()
            .map_err(|error| error.during(operation).with_path(path))?;
        Ok(OfflineChange {
            operation,
            path,
            descriptor,
            unknown,
            has_saved_fields,
            cancel: image.cancel.as_deref(),
            _lock: lock,
        })
    }

    /// Refuses a top that is marked as in use, and takes the size of the disk from it: the driver goes by the top.
    fn look_at_top(&mut self) -> Result<()> {
        let top = self.image(self.descriptor.top)?;
        if self.is_raw_base(top) {
            return Ok(());
        }
        // One that cannot be read is an error of the operations that need it.
        if let Ok(header) = Header::read(&top.file) {
            if header.in_use {
                return Err(Error::new(
                    ErrorKind::Busy,
                    self.operation,
                    "the top delta is marked as in use: a program has it open, here or on another host, or was killed; if none has, clear the mark with OfflineImage::clear_in_use_marks or repair (ploop-image repair)",
                )
                .with_path(&top.file));
            }
            if let Some(contradiction) = header.contradiction() {
                let why = format!("{contradiction}; repair the image first (ploop-image repair)");
                let error = Error::new(ErrorKind::Corrupt, self.operation, why);
                return Err(error.with_path(&top.file));
            }
            require_whole_size(self.operation, &top.file, &header, &self.descriptor)?;
            self.descriptor.size = header.size;
        }
        Ok(())
    }

    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// The directory of the descriptor.
    pub(super) fn directory(&self) -> &'a Path {
        side_files::directory_of(self.path)
    }

    pub(super) fn refuse<T>(&self, kind: ErrorKind, why: impl Into<String>) -> Result<T> {
        Err(Error::new(kind, self.operation, why).with_path(self.path))
    }

    /// Fails once the caller has cancelled the operation.
    pub(super) fn check_cancel(&self) -> Result<()> {
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(cancelled(self.operation)),
            _ => Ok(()),
        }
    }

    pub(super) fn cancel_flag(&self) -> Option<&'a AtomicBool> {
        self.cancel
    }

    /// A snapshot, or the top.
    pub(super) fn snapshot(&self, guid: Guid) -> Result<Snapshot> {
        match self.descriptor.snapshot(guid) {
            Some(snapshot) => Ok(*snapshot),
            None => self.refuse(
                ErrorKind::NoSnapshot,
                format!("the image has no snapshot {guid}"),
            ),
        }
    }

    /// The delta of a snapshot, or of the top.
    pub(super) fn image(&self, guid: Guid) -> Result<&Image> {
        match self.descriptor.image(guid) {
            Some(image) => Ok(image),
            None => self.refuse(
                ErrorKind::NoSnapshot,
                format!("the image has no snapshot {guid}"),
            ),
        }
    }

    /// Whether this is the raw base of a raw image.
    pub(super) fn is_raw_base(&self, image: &Image) -> bool {
        self.descriptor.is_raw_base(image.guid)
    }

    /// Requires that these deltas can be worked on: sound, of one version, and not marked as in use.
    pub(super) fn require_sound<'i>(
        &self,
        images: impl IntoIterator<Item = &'i Image>,
    ) -> Result<Vec<SoundDelta<'i>>> {
        let mut version = None;
        let mut sound = Vec::new();
        for image in images {
            let delta = require_sound(self.operation, image, &self.descriptor)?;
            if let Some(found) = delta.version {
                let expected = *version.get_or_insert(found);
                if found != expected {
                    let why = format!("this delta is of version {found}, others of {expected}");
                    let error = Error::new(ErrorKind::Corrupt, self.operation, why);
                    return Err(error.with_path(&image.file));
                }
                if Header::read(&image.file).is_ok_and(|header| header.in_use) {
                    let why = "this delta is marked as in use: a program has it open, or was killed; if none has, clear the mark with OfflineImage::clear_in_use_marks or repair (ploop-image repair)";
                    let error = Error::new(ErrorKind::Busy, self.operation, why);
                    return Err(error.with_path(&image.file));
                }
            }
            self.require_order(image.guid, delta.size)?;
            sound.push(delta);
        }
        Ok(sound)
    }

    /// Requires that a delta is no smaller than the one below, nor larger than one upon it: the driver refuses that.
    fn require_order(&self, guid: Guid, size: u64) -> Result<()> {
        let header = |guid: Guid| {
            let image = self.descriptor.image(guid)?;
            let header = Header::read(&image.file).ok()?;
            (!self.is_raw_base(image)).then_some((image, header.size.bytes()))
        };
        let below = self.descriptor.parent(guid).and_then(header);
        let mut above = self.descriptor.children(guid).filter_map(header);
        let smaller = match below {
            Some((_, below)) if below > size => self.descriptor.image(guid),
            _ => above.find(|(_, above)| *above < size).map(|it| it.0),
        };
        let Some(smaller) = smaller else {
            return Ok(());
        };
        let why = "the disk is smaller in this delta than in the one below; repair the image first (ploop-image repair)";
        let error = Error::new(ErrorKind::Corrupt, self.operation, why);
        Err(error.with_path(&smaller.file))
    }

    /// Refuses deltas with a format extension, where the result of the change could not have it.
    pub(super) fn require_no_extension(&self, deltas: &[SoundDelta<'_>]) -> Result<()> {
        let fate = "would be lost; drop them with the program that made them";
        let mut deltas = deltas.iter();
        deltas.try_for_each(|delta| require_no_extension(self.operation, delta, fate))
    }

    /// Requires that these files, which are written to or removed, are deltas of no other image.
    pub(super) fn require_of_no_other_image<'f>(
        &self,
        files: impl IntoIterator<Item = &'f Path>,
    ) -> Result<()> {
        let mut files = files.into_iter();
        files.try_for_each(|file| require_of_no_other_image(self.operation, self.path, file))
    }

    /// Requires that a delta that is written to is one of this image alone: no descriptor in another directory names it,
    /// and its file has one name. By another name it may belong to another image (linked clones, backups by hard links),
    /// whose data would change.
    pub(super) fn require_own_file(&self, image: &Image) -> Result<()> {
        self.require_of_no_other_image([&*image.file])?;
        let names = || fs::metadata(&image.file).map(|metadata| metadata.nlink());
        if names().is_ok_and(|names| names > 1) {
            creation::remove_second_link(&image.file);
        }
        match names() {
            Ok(names) if names > 1 => {
                let why = format!(
                    "this file has {names} names (hard links), and its contents would change under all of them; put a copy of the file in its place, or remove the other names"
                );
                let error = Error::new(ErrorKind::Unsupported, self.operation, why);
                Err(error.with_path(&image.file))
            }
            _ => Ok(()),
        }
    }

    /// The text of a descriptor: an error before anything is changed.
    pub(super) fn text(&self, descriptor: &Descriptor) -> Result<String> {
        descriptor
            .to_xml_with(&self.unknown, self.directory())
            .map_err(|error| error.during(self.operation))
    }

    /// Puts a new descriptor in place. It is the image's from now on.
    pub(super) fn put(&mut self, descriptor: Descriptor) -> Result<()> {
        let text = self.text(&descriptor)?;
        if let Err(error) = descriptor::replace(self.path, &text) {
            let is_there = fs::read(self.path).is_ok_and(|found| found == text.as_bytes());
            let what = match is_there {
                true => {
                    self.descriptor = descriptor;
                    "the operation is done, but could not be synced to the disk, and a power cut may undo it"
                }
                false => "the new descriptor cannot be put in place",
            };
            return Err(Error::io(self.operation, what, error).with_path(self.path));
        }
        self.took(descriptor);
        Ok(())
    }

    /// Stages a new descriptor, as libploop does: after an interruption, the files may show that it is the right one.
    pub(super) fn stage(&self, descriptor: &Descriptor) -> Result<()> {
        let text = self.text(descriptor)?;
        let staged = side_files::staged(self.path);
        fs::metadata(self.path)
            .and_then(|like| descriptor::write(&staged, text.as_bytes(), Some(&like)))
            .and_then(|()| durability::sync_directory(self.directory()))
            .map_err(|error| {
                let what = "the new descriptor cannot be written";
                Error::io(self.operation, what, error).with_path(staged)
            })
    }

    /// Removes a staged descriptor.
    pub(super) fn unstage(&self) {
        // One that stays is not taken: the files show that it is not the right one.
        let _ = fs::remove_file(side_files::staged(self.path));
    }

    /// [`put`](OfflineChange::put) of the staged descriptor.
    pub(super) fn put_staged(&mut self, descriptor: Descriptor) -> Result<()> {
        detached::put_in_place(self.operation, &side_files::staged(self.path), self.path)?;
        self.took(descriptor);
        Ok(())
    }

    /// This descriptor is in place.
    fn took(&mut self, descriptor: Descriptor) {
        self.descriptor = descriptor;
        if self.has_saved_fields {
            // They are in the descriptor again.
            let _ = fs::remove_file(side_files::saved_unknown_fields(self.path));
            self.has_saved_fields = false;
        }
    }

    /// [`put`](OfflineChange::put), and then removes files that the new descriptor does not name. Where one of them
    /// cannot be removed, the old descriptor is put back.
    pub(super) fn put_and_remove(&mut self, new: Descriptor, files: &[PathBuf]) -> Result<()> {
        let old = self.descriptor.clone();
        self.put(new)?;
        if let Err(error) = self.remove_files(files) {
            let back = self.put(old);
            return Err(match back {
                Ok(()) => error,
                Err(back) => back,
            });
        }
        Ok(())
    }

    /// Removes files that the descriptor does not name.
    pub(super) fn remove_files(&self, files: &[PathBuf]) -> Result<()> {
        for file in files {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let what = "a delta that is no longer needed cannot be removed";
                    return Err(Error::io(self.operation, what, error).with_path(file));
                }
                _ => {}
            }
        }
        let directories = files.iter().map(|file| side_files::directory_of(file));
        durability::sync_directories(self.operation, directories)
    }

    /// The size of the disk as of a snapshot.
    pub(super) fn size_of(&self, image: &Image) -> Result<Size> {
        self.descriptor.size_of(self.operation, image)
    }
}

/// The error of an operation that the caller has cancelled.
pub(super) fn cancelled(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Cancelled,
        operation,
        "the operation was cancelled",
    )
}

/// Requires that an image may be changed at all: nobody else can write to it, and it is of a kind that is known here.
pub(super) fn require_changeable(
    operation: &'static str,
    path: &Path,
    file: &DescriptorFile,
) -> Result<()> {
    let deltas = || file.descriptor.images.iter().map(|image| &*image.file);
    trust::require_no_other_writers(operation, [path].into_iter().chain(deltas()))?;
    paths::require_own_side_files(operation, path, deltas())?;
    let unsupported =
        |why: &str| Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path));
    if file.descriptor.encryption.is_some() {
        return unsupported("the image is encrypted");
    }
    if let Some(volume) = &file.unknown.volume {
        if volume.parent.is_some() || volume.read_only {
            return unsupported(
                "the image is a volume of Virtuozzo that shares deltas with others, which a change could damage; libploop 7 knows them",
            );
        }
    }
    Ok(())
}

/// Requires that each delta is a file of its own. Otherwise merging one into the other, or removing one, would remove
/// both.
pub(super) fn require_distinct_files(
    operation: &'static str,
    descriptor: &Descriptor,
) -> Result<()> {
    let mut seen: HashMap<Identity, Guid> = HashMap::new();
    for image in &descriptor.images {
        let Ok(identity) = Identity::of(&image.file) else {
            continue;
        };
        if let Some(other) = seen.insert(identity, image.guid) {
            let guid = image.guid;
            let why = format!("{other} and {guid} are one file, by one name or by two");
            let error = Error::new(ErrorKind::Corrupt, operation, why);
            return Err(error.with_path(&image.file));
        }
    }
    Ok(())
}

/// The fields unknown to libploop that a change by libploop saved and did not restore, because it was killed.
pub(super) fn saved_fields(path: &Path) -> Option<UnknownFields> {
    let backup = side_files::saved_unknown_fields(path);
    side_files::is_regular_file(&backup)
        .then(|| DescriptorFile::read_as(&backup, &FORM).ok())
        .flatten()
        .map(|file| file.unknown)
}
