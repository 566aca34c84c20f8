//! [`Change`]: an operation that changes an image. The checks before libploop is called, under the image's lock, and
//! what follows the call: sync, restoring, cleaning up.
//!
//! libploop trusts the descriptor, the deltas and its surroundings. A [`Change`] refuses what libploop would crash
//! on, loop on, hand to a shell, or report as done though it was not. Which devices have the image is asked in
//! [`devices`]. Numbers are those of the hazards in `hazards.md`. The whole way to C is described in [`ffi`].

mod devices;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitflags::Flags;
use rustix::fs::OFlags;

use crate::canonical::CanonicalDescriptor;
use crate::ffi::{
    self, AttachFirst, CText, Call, LINE, LockedImage, WriteSignalsBlocked, descriptor_form,
};
use crate::identity::Identity;
use crate::image::descriptor::merge;
use crate::image::other_image::{
    require_no_other_image_beside, require_of_no_other_image, require_recoverable,
};
use crate::image::recovery::merge::MergeRecord;
use crate::image::sound::{
    SoundDelta, require_header_of, require_no_child_of_top, require_no_extension, require_sound,
};
use crate::image::{Header, Image};
use crate::parents::Parents;
use crate::recovery::SyncBaseline;
use crate::sysfs::Device;
use crate::tools::{require_crypt_helper, require_tools};
use crate::{
    Code, ComponentName, Descriptor, Error, ErrorKind, FormatVersion, Guid, Result, mount_table,
    paths, recovery, trust,
};

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
        self.clear_closed_marks()?;
        // A merge writes to the lowest delta first, and cannot take that back.
        let merges = matches!(
            write,
            DescriptorWrite::Merge(_) | DescriptorWrite::MergeToNewFile(_)
        );
        self.locked.put_in_place(&self.canonical, merges)?;
        self.canonical.save_unknown_fields(operation)?;
        let staging = StagingFile::make(operation, &path, write)?;
        let baseline = SyncBaseline::before(&path, &self.descriptor);
        let recorded = match write {
            DescriptorWrite::Merge(snapshots) => {
                MergeRecord::make(operation, &path, &self.descriptor, snapshots, false)
            }
            // Otherwise nothing that is there is changed before the new descriptor is in place.
            DescriptorWrite::MergeToNewFile(snapshots) if LINE.marks_before_merging => {
                MergeRecord::make(operation, &path, &self.descriptor, snapshots, true)
            }
            _ => Ok(()),
        };
        let result = recorded
            .and_then(|()| c(self.locked))
            .and_then(|done| check().map(|()| done));
        let may_change_top = matches!(write, DescriptorWrite::Staged | DescriptorWrite::Direct);
        if self.canonical.has_unknown_fields() || may_change_top {
            let top = self.descriptor.top_image();
            lock.try_with_libploop_lock(|| self.canonical.complete(operation, top));
        }
        match (&result, baseline) {
            (Err(_), _) => lock.try_with_libploop_lock(|| {
                // A recovery that failed needs these files the next time.
                if recovery::after_failure(operation, &path).is_ok() {
                    staging.clear();
                }
            }),
            (Ok(_), Some(baseline)) => baseline.sync_changes(operation)?,
            (Ok(_), None) => {}
        }
        if let (Ok(_), DescriptorWrite::Merge(_) | DescriptorWrite::MergeToNewFile(_)) =
            (&result, write)
        {
            MergeRecord::remove(&path);
        }
        result
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

    /// [`paths::require_new_delta_path`], and that libploop takes the name that it will write for this file.
    pub(crate) fn require_new_delta_path(&self, delta: &Path) -> Result<()> {
        let directory = paths::directory_of(self.path());
        paths::require_new_delta_path(self.operation(), delta, directory)?;
        if descriptor_form().name(delta, directory).is_some() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            self.operation(),
            "libploop would take this path for another one, because a directory in it has a name that ends with two dots; choose another directory",
        )
        .with_path(delta))
    }

    /// The deltas below those of the image itself, where that is a volume: the base first.
    fn chain_below(&self) -> impl Iterator<Item = (&Image, &Descriptor)> {
        self.parents().into_iter().flat_map(Parents::chain)
    }

    /// How many deltas there are from the base of all up to this one.
    pub(crate) fn chain_len(&self, guid: Guid) -> usize {
        self.chain_below().count() + self.descriptor.chain(guid).len()
    }

    /// Refuses what gives the top the GUID that libploop gives it, where an image below has that one: a volume that
    /// stands upon others has another one.
    pub(crate) fn require_top_guid_free(&self) -> Result<()> {
        match self.parents() {
            Some(parents) if parents.has(Guid::TOP) => self.refuse(
                ErrorKind::Unsupported,
                format!("the image is a volume upon another one, and libploop would name its top {}, which is the top of one below; make a Volume::snapshot instead, and a clone of that", Guid::TOP),
            ),
            _ => Ok(()),
        }
    }

    /// Requires that the descriptor has this GUID, as a snapshot or as the top.
    pub(crate) fn require_snapshot(&self, guid: Guid) -> Result<()> {
        match self.descriptor.snapshot(guid) {
            Some(_) => Ok(()),
            None => Err(no_snapshot(self.operation(), self.path(), guid)),
        }
    }

    /// Requires that the top, if it is one of the deltas to be removed, has no child: libploop would leave a descriptor
    /// whose top is not listed (A11).
    pub(crate) fn require_no_child_of_top(&self, removed: &[Guid]) -> Result<()> {
        require_no_child_of_top(self.operation(), &self.descriptor, removed)
            .map_err(|error| self.refused(error))
    }

    /// Requires that the header is that of a delta of this image. For a delta that is to be removed: its table may be
    /// damaged, and going back to a snapshot is the way out of that.
    pub(crate) fn require_delta_header(&self, image: Option<&Image>) -> Result<()> {
        image.map_or(Ok(()), |image| {
            let header =
                Header::read(&image.file).map_err(|error| error.during(self.operation()))?;
            require_header_of(self.operation(), image, &self.descriptor, &header)
        })
    }

    /// Requires that these deltas, which are written to or removed, are those of no other image (A66).
    pub(crate) fn require_of_no_other_image(&self, guids: &[Guid]) -> Result<()> {
        let images = guids.iter().filter_map(|guid| self.descriptor.image(*guid));
        let mut files = images.map(|image| &image.file);
        files.try_for_each(|file| require_of_no_other_image(self.operation(), self.path(), file))
    }

    /// Requires that libploop can make a delta beside the base.
    pub(crate) fn require_place_beside_base(&self) -> Result<()> {
        let base = self.descriptor.base();
        base.map_or(Ok(()), |base| {
            require_no_other_image_beside(self.operation(), self.path(), &base.file)
        })
    }

    /// Requires that libploop can work on these deltas together: the headers and tables are sound (9), of one cluster
    /// size (10) and one format version, for a merge writes the upper delta's entries to the lower delta's table.
    /// So a file that is no delta is neither deleted nor overwritten, whatever the descriptor says (33).
    pub(crate) fn require_sound<'i>(
        &self,
        images: impl IntoIterator<Item = &'i Image>,
    ) -> Result<Vec<SoundDelta<'i>>> {
        let mut first = None;
        let mut sound = Vec::new();
        for image in images {
            let delta = require_sound(self.operation(), image, &self.descriptor)?;
            let Some(version) = delta.version else {
                sound.push(delta);
                continue;
            };
            if !LINE.keeps_extensions {
                require_no_extension(
                    self.operation(),
                    &delta,
                    "libploop 1 would cut off; drop them with Ploop::drop_tracking or the program that made them",
                )?;
                if delta.is_marked_closed {
                    self.marked_closed.borrow_mut().push(image.clone());
                }
            }
            let expected = *first.get_or_insert(version);
            if version != expected {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    self.operation(),
                    format!(
                        "this delta is of version {version}, others of the chain of {expected}"
                    ),
                )
                .with_path(&image.file));
            }
            sound.push(delta);
        }
        Ok(sound)
    }

    /// [`require_sound`](Change::require_sound), and that the disk ends with a whole cluster in each: libploop makes,
    /// merges and converts deltas in whole clusters, and cuts off the rest.
    pub(crate) fn require_sound_and_whole<'i>(
        &self,
        images: impl IntoIterator<Item = &'i Image>,
    ) -> Result<()> {
        let cluster = self.descriptor.cluster;
        for SoundDelta { image, size, .. } in self.require_sound(images)? {
            if size % cluster.bytes() != 0 {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    self.operation(),
                    format!(
                        "the disk has {size} bytes, not a whole number of clusters of {cluster}; libploop would cut off its end, so export the disk to a new image"
                    ),
                )
                .with_path(&image.file));
            }
        }
        Ok(())
    }

    /// [`require_sound_and_whole`](Change::require_sound_and_whole) of deltas that are merged, the lowest first.
    pub(crate) fn require_mergeable(&self, images: &[&Image]) -> Result<()> {
        self.require_sound_and_whole(images.iter().copied())?;
        let lower = images.split_last().map_or(images, |(_, lower)| lower);
        for image in lower.iter().filter(|_| LINE.misplaces_v1_clusters) {
            // A raw base has no clusters.
            if Header::read(&image.file).is_ok_and(|header| is_misplaced(&header)) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    self.operation(),
                    "this version of libploop would put clusters of this delta over each other when it merges into it: it is of format v1, and its clusters are not of 1 MiB; export the disk to an image of format v2",
                )
                .with_path(&image.file));
            }
        }
        Ok(())
    }

    /// Requires that no temporary snapshot of a volume that stands upon others is in use: libploop would not find the
    /// device, and would merge it (A75).
    fn require_unused_temporary(&self) -> Result<()> {
        if self.parents().is_none() {
            return Ok(());
        }
        let mut snapshots = self.descriptor.snapshots.iter();
        let used = snapshots.find_map(|it| {
            let mut devices = self.devices_with_top(it.guid);
            devices.next().filter(|_| it.temporary)
        });
        match used {
            Some(device) => self.refuse_attached(
                device,
                "the image is a volume upon another one, and libploop would merge a temporary snapshot that is in use",
            ),
            None => Ok(()),
        }
    }

    /// Requires that each temporary snapshot that libploop would merge, because no device has it, can be merged:
    /// otherwise libploop stores wrong data, or fails and says nothing (10, A6).
    fn require_temporary_mergeable(&self) -> Result<()> {
        // A mount under a name merges nothing.
        if !self.component().is_empty() {
            return Ok(());
        }
        let snapshots = self.descriptor.snapshots.iter();
        for snapshot in snapshots.filter(|snapshot| snapshot.temporary) {
            let mut children = self.descriptor.children(snapshot.guid);
            let (Some(child), None) = (children.next(), children.next()) else {
                continue;
            };
            let images = (
                self.descriptor.image(snapshot.guid),
                self.descriptor.image(child),
            );
            let is_free = self.devices_with(&[snapshot.guid]).next().is_none();
            if let (Some(lower), Some(upper), true) = (images.0, images.1, is_free) {
                self.require_of_no_other_image(&[lower.guid, upper.guid])?;
                self.require_mergeable(&[lower, upper])?;
            }
        }
        Ok(())
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

    /// Requires what libploop needs to attach the chain of a delta: sound deltas, and a mount table it can read.
    pub(crate) fn require_attachable(&self, guid: Guid) -> Result<()> {
        let own = self.require_sound(self.descriptor.chain(guid))?;
        let version = own.first().and_then(|delta| delta.version);
        for (image, descriptor) in self.chain_below() {
            let delta = require_sound(self.operation(), image, descriptor)?;
            // libploop clones an image of any version to one of the newest (A78).
            if let (Some(version), Some(below)) =
                (version, delta.version.filter(|it| Some(*it) != version))
            {
                let why = format!(
                    "this delta is of version {below}, and those of the volume upon it of {version}"
                );
                return Err(
                    Error::new(ErrorKind::Corrupt, self.operation(), why).with_path(&image.file)
                );
            }
        }
        if self.descriptor.encryption.is_some() {
            require_crypt_helper(self.operation(), self.path())?;
        }
        match mount_table::read() {
            Ok(table) => require_short_mounts(self.operation(), &table),
            // libploop reports it.
            Err(_) => Ok(()),
        }
    }

    /// [`require_tools`] for this operation.
    pub(crate) fn require_tools(&self, tools: &[&str]) -> Result<()> {
        require_tools(self.operation(), tools)
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

/// Whether a merge into a delta with this header would put clusters over each other, where libploop counts those of
/// format v1 in units of 1 MiB. Smaller ones lie apart then, as long as the table can hold where.
fn is_misplaced(header: &Header) -> bool {
    const UNIT: u64 = 1 << 20;
    /// In sectors of the table's 32 bits.
    const MOST_UNITS: u64 = (1 << 32) / (UNIT / 512);
    let cluster = header.cluster.bytes();
    let clusters = u64::from(header.entries()) + header.data_start() / cluster;
    header.version == FormatVersion::V1
        && cluster != UNIT
        && (cluster > UNIT || clusters >= MOST_UNITS)
}

/// That libploop knows these flags.
pub(crate) fn require_known_flags<F: Flags<Bits = u32>>(
    operation: &'static str,
    path: &Path,
    flags: F,
    known: F,
) -> Result<()> {
    match flags.bits() & !known.bits() {
        0 => Ok(()),
        unknown => Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            format!("this libploop does not know the flags {unknown:#x}"),
        )
        .with_path(path)),
    }
}

pub(crate) fn no_snapshot(operation: &'static str, path: &Path, guid: Guid) -> Error {
    merge::no_snapshot(operation, guid)
        .with_path(path)
        .with_code(Code::NOSNAP.get())
}

/// Requires that each mount point of the host, as the table spells it, fits the buffer of libploop, which does not
/// check (16).
fn require_short_mounts(operation: &'static str, table: &[u8]) -> Result<()> {
    const BUFFER: usize = 4096;
    match mount_table::longest_mount_point(table) {
        Some(longest) if longest.len() >= BUFFER => Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            format!(
                "something is mounted on this system at a path of {} bytes, {}…, more than libploop can read from /proc/self/mountinfo; unmount it first",
                longest.len(),
                String::from_utf8_lossy(&longest[..64]),
            ),
        )),
        _ => Ok(()),
    }
}

/// The temporary file to which libploop writes a new descriptor (`.tmp`, `.tmp.tmp`), made before libploop needs it.
///
/// Where libploop cannot create it, it goes on as if it had written it: it reports success for what it did not do, or
/// deletes a delta that the descriptor on disk still names (25). So the file is created before; libploop overwrites
/// and renames it.
struct StagingFile {
    /// The files that were not there before.
    made: Vec<PathBuf>,
}

/// How much one operation adds to a descriptor, at most: an image and a snapshot, with long file names.
const GROWTH: u64 = 8192;

impl StagingFile {
    fn make(
        operation: &'static str,
        descriptor: &Path,
        write: DescriptorWrite<'_>,
    ) -> Result<StagingFile> {
        let mut staging = StagingFile { made: Vec::new() };
        let needed = match write {
            DescriptorWrite::Maybe => return Ok(staging),
            DescriptorWrite::Direct => paths::staged(descriptor),
            DescriptorWrite::Staged
            | DescriptorWrite::Merge(_)
            | DescriptorWrite::MergeToNewFile(_) => {
                // Some failures leave it behind.
                let staged = paths::staged(descriptor);
                if fs::symlink_metadata(&staged).is_err() {
                    staging.made.push(staged);
                }
                paths::being_staged(descriptor)
            }
        };
        let create = |options: &mut OpenOptions| -> io::Result<File> {
            options
                .write(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
                .open(&needed)
        };
        let refused = |error: io::Error| {
            Error::io(
                operation,
                "libploop could not write a new descriptor, and would not say so: its temporary file cannot be made",
                error,
            )
            .with_path(&needed)
        };
        match create(OpenOptions::new().create_new(true)) {
            Ok(mut file) => {
                staging.made.push(needed.clone());
                // On a full disk libploop would fail later, and not say why.
                let len = fs::metadata(descriptor).map_or(0, |metadata| metadata.len()) + GROWTH;
                if let Err(error) = io::copy(&mut io::repeat(0).take(len), &mut file) {
                    staging.clear();
                    return Err(refused(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // An operation that was killed has left it. It is a regular file: that was checked.
                create(&mut OpenOptions::new()).map_err(refused)?;
            }
            Err(error) => return Err(refused(error)),
        }
        Ok(staging)
    }

    fn clear(&self) {
        for file in &self.made {
            // libploop may have removed it.
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mount_points_are_found() {
        let table = |point: &str| {
            format!(
                "36 35 98:0 / / rw - ext4 /dev/a rw\n37 35 98:0 / {point} rw - ext4 /dev/b rw\n"
            )
        };
        require_short_mounts("test", table(&"x".repeat(4095)).as_bytes()).unwrap();
        let error =
            require_short_mounts("test", table(&"\\040".repeat(1024)).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        require_short_mounts("test", b"\n36 35\n").unwrap();
    }
}
