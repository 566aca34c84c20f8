//! [`Change`]: an operation that changes an image. The checks before libploop is called, under the image's lock, and
//! what follows the call: sync, restoring, cleaning up.
//!
//! libploop trusts the descriptor, the deltas and its surroundings. A [`Change`] refuses what libploop would crash
//! on, loop on, hand to a shell, or report as done though it was not: [`requirements`]. Which devices have the image is
//! asked in [`devices`]. Numbers are those of the hazards in `hazards.md`. The whole way to C is described in [`ffi`].

mod devices;
mod requirements;
mod staging_file;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::time::Duration;

use self::devices::detach_what_was_left;
use self::staging_file::StagingFile;
use crate::canonical::CanonicalDescriptor;
use crate::ffi::{self, AttachFirst, CText, Call, LINE, LockedImage, WriteSignalsBlocked};
use crate::identity::Identity;
use crate::image::other_image::{require_no_second_name, require_recoverable};
use crate::image::recovery::merge::MergeRecord;
use crate::image::{Header, Image};
use crate::parents::Parents;
use crate::recovery::SyncBaseline;
use crate::sysfs::Device;
use crate::{
    Code, ComponentName, Descriptor, Error, ErrorKind, FormatVersion, Guid, Result, paths,
    recovery, trust,
};

pub(crate) use self::requirements::{no_snapshot, require_known_flags};

/// How a function of libploop writes the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DescriptorWrite<'a> {
    /// To `.tmp`, which is then renamed.
    Direct,
    /// To `.tmp.tmp`, which is renamed to `.tmp`, and after the work again.
    Staged,
    /// As `Staged`. In between, data is merged into the lowest of these snapshots, which come first and are removed.
    Merge(&'a [Guid]),
    /// As `Merge`, and the lowest goes to a new file.
    MergeToNewFile(&'a [Guid]),
    /// Not, unless it merges temporary snapshots on the way.
    Maybe,
}

impl DescriptorWrite<'_> {
    fn merges(self) -> bool {
        matches!(
            self,
            DescriptorWrite::Merge(_) | DescriptorWrite::MergeToNewFile(_)
        )
    }
}

/// An operation that changes an image: begun by [`begin`](Change::begin), which checks what all of them need, and
/// ended by [`run`](Change::run), which calls libploop.
pub(crate) struct Change<'a> {
    locked: LockedImage<'a>,
    /// The descriptor before the change.
    pub(crate) descriptor: Descriptor,
    /// All devices of the system.
    pub(crate) devices: Vec<Device>,
    /// The delta files that exist.
    pub(crate) files: Vec<(Guid, Identity)>,
    canonical: CanonicalDescriptor,
    /// Deltas that are marked as closed: libploop 1 takes every mark for one of a delta in use.
    marked_closed: RefCell<Vec<Image>>,
    /// Also for the files that this crate writes itself.
    _write_signals: WriteSignalsBlocked,
}

impl<'a> Change<'a> {
    /// Locks the image, finishes an operation that was interrupted, and checks what every change needs.
    pub(crate) fn begin(image: &'a ffi::ImageHandle, call: &'static Call) -> Result<Change<'a>> {
        Change::begin_locked(image, call).map_err(|error| error.of_image(image.path()))
    }

    fn begin_locked(image: &'a ffi::ImageHandle, call: &'static Call) -> Result<Change<'a>> {
        let write_signals = WriteSignalsBlocked::begin();
        let mut locked = image.lock(call)?;
        // Before anything is written, by the recovery, too. A descriptor that cannot be read is an error below.
        let read = locked.descriptor_file();
        let deltas = read.iter().flat_map(|file| &file.descriptor.images);
        let deltas = deltas.map(|delta| delta.file.as_path());
        let files = [locked.path()].into_iter().chain(deltas);
        trust::require_no_other_writers(call.name, files)?;
        let read = read?;
        if !call.detaches {
            require_recoverable(call.name, locked.path(), &read.descriptor)?;
            if !call.any_delta {
                require_no_second_name(call.name, locked.path(), &read.descriptor)?;
            }
        }
        let (file, devices) = recovery::finish(&locked, read)?;
        let descriptor = &file.descriptor;
        locked.lock_parents(descriptor)?;
        let refuse = |kind, message: String| {
            Err(Error::new(kind, call.name, message).with_path(locked.path()))
        };
        if descriptor.encryption != file.unknown.key {
            return refuse(
                ErrorKind::Unsupported,
                "the image is encrypted: this version of libploop would drop the key's name from the descriptor".into(),
            );
        }
        let volume = file.unknown.volume.as_ref();
        if volume.is_some_and(|volume| volume.read_only) && !call.any_delta {
            return refuse(
                ErrorKind::Unsupported,
                "other volumes stand on this one, and would change with it".into(),
            );
        }
        let directory = paths::directory_of(locked.path());
        for image in &descriptor.images {
            paths::require_delta_path(call.name, &image.file, directory)?;
        }
        paths::require_harmless_to_shell(call.name, locked.path())?;
        let deltas = descriptor.images.iter().map(|image| image.file.as_path());
        paths::require_own_side_files(call.name, locked.path(), deltas)?;
        let (canonical, descriptor) = CanonicalDescriptor::of(call.name, locked.path(), file)?;
        let file = |image: &Image| Some((image.guid, Identity::of(&image.file).ok()?));
        let change = Change {
            locked,
            files: descriptor.images.iter().filter_map(file).collect(),
            descriptor,
            canonical,
            marked_closed: RefCell::default(),
            devices,
            _write_signals: write_signals,
        };
        change.require_distinct_files()?;
        change.require_unused_temporary()?;
        if call.merges_temporary {
            change.require_temporary_mergeable()?;
        }
        // Only a mount works on any delta, and it checks the one that it attaches.
        if call.finds_device && !call.any_delta {
            change.require_writers_found()?;
            if !call.detaches {
                change.require_named_top()?;
            }
        }
        Ok(change)
    }

    /// Calls C. Then syncs the result, or after a failure removes what was left behind.
    pub(crate) fn run<T>(
        self,
        write: DescriptorWrite<'_>,
        c: impl FnOnce(LockedImage<'a>) -> Result<T>,
    ) -> Result<T> {
        self.run_and_check(write, || Ok(()), c)
    }

    /// [`run`](Change::run) of a call that has done its work only if the descriptor is then as `is_done` says: libploop
    /// also reports success where it could not write it (25). A program that uses libploop without this crate may have
    /// changed it since; so it is the descriptor of before that tells that nothing was written.
    pub(crate) fn run_until<T>(
        self,
        write: DescriptorWrite<'_>,
        is_done: impl FnOnce(&Descriptor) -> bool,
        c: impl FnOnce(LockedImage<'a>) -> Result<T>,
    ) -> Result<T> {
        let (operation, path) = (self.operation(), self.path().to_owned());
        let before = self.descriptor.clone();
        let check = || match Descriptor::open(&path) {
            Ok(now) if is_done(&now) || !is_same(&now, &before) => Ok(()),
            Ok(_) => Err(not_written(operation, &path, Ok(()))),
            Err(error) => Err(error.during(operation)),
        };
        self.run_and_check(write, check, c)
    }

    /// `check` follows a call that succeeded, under the image's lock.
    fn run_and_check<T>(
        mut self,
        write: DescriptorWrite<'_>,
        check: impl FnOnce() -> Result<()>,
        c: impl FnOnce(LockedImage<'a>) -> Result<T>,
    ) -> Result<T> {
        let path = self.locked.path().to_owned();
        let operation = self.locked.operation();
        let lock = self.locked.lock_guard();
        let attaches = self.locked.may_attach().then(|| self.component().to_vec());
        self.clear_closed_marks()?;
        if !write.merges() && self.is_at_rest() {
            self.locked.set_without_data();
        }
        // A merge writes to the lowest delta first, and cannot take that back.
        self.locked.put_in_place(&self.canonical, write.merges())?;
        self.canonical.save_unknown_fields(operation)?;
        let staging = StagingFile::make(operation, &path, write)?;
        let baseline = SyncBaseline::before(&path, &self.descriptor);
        let result = self
            .record_merge(write)
            .and_then(|()| c(self.locked))
            .and_then(|done| check().map(|()| done));
        let may_change_top = matches!(write, DescriptorWrite::Staged | DescriptorWrite::Direct);
        if self.canonical.has_unknown_fields() || may_change_top {
            let top = self.descriptor.top_image();
            lock.try_with_libploop_lock(|| self.canonical.complete(operation, top));
        }
        if result.is_err() {
            if let Some(component) = attaches {
                detach_what_was_left(operation, &self.devices, &self.files, &component);
            }
            lock.try_with_libploop_lock(|| {
                // A recovery that failed needs these files the next time.
                if recovery::after_failure(operation, &path).is_ok() {
                    staging.clear();
                }
            });
            return result;
        }
        if let Some(baseline) = baseline {
            baseline.sync_changes(operation)?;
        }
        if write.merges() {
            MergeRecord::remove(&path);
        }
        result
    }

    /// Records a merge that changes what is there before the new descriptor is in place.
    fn record_merge(&self, write: DescriptorWrite<'_>) -> Result<()> {
        let (snapshots, is_to_new_file) = match write {
            DescriptorWrite::Merge(snapshots) => (snapshots, false),
            DescriptorWrite::MergeToNewFile(snapshots) if LINE.marks_before_merging => {
                (snapshots, true)
            }
            _ => return Ok(()),
        };
        let (operation, path) = (self.operation(), self.path());
        MergeRecord::make(operation, path, &self.descriptor, snapshots, is_to_new_file)
    }

    /// Whether no device has any of the deltas, and no snapshot is one that libploop merges on the way.
    fn is_at_rest(&self) -> bool {
        let mut snapshots = self.descriptor.snapshots.iter();
        self.any_device().is_none() && !snapshots.any(|snapshot| snapshot.temporary)
    }

    /// Replaces the descriptor, without libploop.
    pub(crate) fn replace_descriptor(&self, new: &Descriptor) -> Result<()> {
        self.canonical.replace_by(self.operation(), new)
    }

    /// Whether the descriptor has fields that libploop does not know.
    pub(crate) fn has_unknown_fields(&self) -> bool {
        self.canonical.has_unknown_fields()
    }

    /// Clears the marks of closed deltas, but of those that a device has.
    fn clear_closed_marks(&self) -> Result<()> {
        for image in self.marked_closed.borrow().iter() {
            if self.devices_with(&[image.guid]).next().is_none() {
                Header::clear_closed_mark(&image.file).map_err(|error| {
                    let why = "the delta is marked as closed by Parallels Desktop, and the mark, which libploop takes for one of use, cannot be cleared";
                    Error::io(self.operation(), why, error).with_path(&image.file)
                })?;
            }
        }
        Ok(())
    }

    /// The error of a refused operation.
    pub(crate) fn refuse<T>(&self, kind: ErrorKind, why: impl Into<String>) -> Result<T> {
        Err(self.refused(Error::new(kind, self.operation(), why)))
    }

    /// Puts the image into the error of a refused operation, and libploop's code where the kind stands for an unusable
    /// parameter.
    pub(crate) fn refused(&self, error: Error) -> Error {
        let error = error.with_path(self.path());
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::AlreadyExists | ErrorKind::Busy => {
                error.with_code(Code::PARAM.get())
            }
            ErrorKind::NoSnapshot => error.with_code(Code::NOSNAP.get()),
            _ => error,
        }
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.locked.operation()
    }

    /// How long this operation waits for locks.
    pub(crate) fn timeout(&self) -> Duration {
        self.locked.timeout()
    }

    /// The images upon which a volume stands.
    pub(crate) fn parents(&self) -> Option<&Parents> {
        self.locked.parents()
    }

    /// The component name of the device that libploop looks for.
    pub(crate) fn component(&self) -> &[u8] {
        self.locked.component()
    }

    pub(crate) fn path(&self) -> &Path {
        self.locked.path()
    }

    /// The deltas below those of the image itself, where that is a volume: the base first.
    fn chain_below(&self) -> impl Iterator<Item = (&Image, &Descriptor)> {
        self.parents().into_iter().flat_map(Parents::chain)
    }

    /// How many deltas there are from the base of all up to this one.
    pub(crate) fn chain_len(&self, guid: Guid) -> usize {
        self.chain_below().count() + self.descriptor.chain(guid).len()
    }

    /// How to attach the image for a call that would do it by itself, and rewrite it to format v2. `None` where it would
    /// not: the image is attached, or has no delta of format v1, or the handle has a name.
    pub(crate) fn attach_first(&self, component: Option<&ComponentName>) -> Option<AttachFirst> {
        let rewrites = ffi::upgrades_v1_at_mount()
            && component.is_none()
            && self.found_device().is_none()
            && self.has_v1(self.descriptor.top);
        rewrites.then(|| AttachFirst {
            top: CText::guid(self.descriptor.top),
            target: None,
        })
    }

    /// Whether one of the deltas of a chain is of format v1.
    pub(crate) fn has_v1(&self, guid: Guid) -> bool {
        let own = self.descriptor.chain(guid);
        let below = self.chain_below().map(|(image, _)| image);
        below.chain(own).any(is_v1)
    }
}

/// Whether two descriptors have the same deltas upon each other, whatever else differs.
fn is_same(one: &Descriptor, other: &Descriptor) -> bool {
    (one.top, &one.images, &one.snapshots) == (other.top, &other.images, &other.snapshots)
}

/// The error of a call that returned 0 and did not write the descriptor. `restored` is what became of a delta that it
/// removed.
pub(crate) fn not_written(operation: &'static str, path: &Path, restored: io::Result<()>) -> Error {
    let done = match restored {
        Ok(()) => "look at it again before you repeat the operation".to_owned(),
        Err(error) => format!("the delta that was removed could not be restored: {error}"),
    };
    Error::new(
        ErrorKind::Io,
        operation,
        format!(
            "libploop reports success, and the descriptor does not have the change: libploop could not write it, or another program has written it since; {done}"
        ),
    )
    .with_path(path)
}

pub(crate) fn is_v1(image: &Image) -> bool {
    Header::read(&image.file).is_ok_and(|header| header.version == FormatVersion::V1)
}
