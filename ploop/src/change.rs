//! A change of an image: what is checked under its lock before libploop is called, and what follows the call.
//!
//! libploop trusts the descriptor, the images and its surroundings. A [`Change`] does not: it reads
//! them under the image's lock and refuses what libploop would crash on, loop on, hand to a shell, or
//! report as done though it was not. The numbers are those of the hazards in the crate's manual.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, OFlags};

use crate::canonical::CanonicalDescriptor;
use crate::ffi::{self, Call, LockedImage, WriteSignalsBlocked};
use crate::identity::Identity;
use crate::image::{Header, Image, ImageKind, require_sound_delta};
use crate::recovery::Unsynced;
use crate::sysfs::Device;
use crate::{
    Code, Descriptor, Error, ErrorKind, FormatVersion, Guid, ImageMode, Result, mount_table, paths,
    recovery, trust,
};

/// How a function writes the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DescriptorWrite {
    /// To `.tmp`, then renamed.
    Direct,
    /// To `.tmp.tmp`, renamed to `.tmp`, and after the work renamed again.
    Staged,
    /// Not at all, or only when temporary snapshots are merged on the way.
    Maybe,
}

/// An operation that changes an image: the locked image, with everything checked.
pub(crate) struct Change<'a> {
    locked: LockedImage<'a>,
    /// As it is before the change.
    pub(crate) descriptor: Descriptor,
    /// All there are.
    pub(crate) devices: Vec<Device>,
    /// The deltas, as far as they are there.
    pub(crate) files: Vec<(Guid, Identity)>,
    canonical: CanonicalDescriptor,
    /// Deltas with a mark that libploop takes for that of one in use.
    closed: RefCell<Vec<Image>>,
    /// What this crate writes itself fails, too, where it may not write.
    _write_signals: WriteSignalsBlocked,
}

impl<'a> Change<'a> {
    pub(crate) fn begin(image: &'a ffi::ImageHandle, call: &'static Call) -> Result<Change<'a>> {
        let write_signals = WriteSignalsBlocked::begin();
        let locked = image.lock(call)?;
        // Before anything is written, mending included. What cannot be read is found to be so below.
        let read = locked.descriptor_file();
        let deltas = read.iter().flat_map(|file| &file.descriptor.images);
        let deltas = deltas.map(|delta| delta.file.as_path());
        let files = [locked.path()].into_iter().chain(deltas);
        trust::require_no_other_writers(call.name, files)?;
        let (file, devices) = recovery::finish(&locked, read?)?;
        let descriptor = &file.descriptor;
        let refuse = |kind, message: String| {
            Err(Error::new(kind, call.name, message).with_path(locked.path()))
        };
        if descriptor.encryption.is_some() {
            return refuse(
                ErrorKind::Unsupported,
                "the image is encrypted: this version of libploop would drop the key's name from the descriptor".into(),
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
            closed: RefCell::default(),
            devices,
            _write_signals: write_signals,
        };
        change.require_distinct_files()?;
        // What a mount attaches need not be the top.
        if call.finds_device && !call.any_delta {
            change.require_writers_found()?;
        }
        Ok(change)
    }

    /// Lets C do it, brings what was done to the disk, and removes what a failure left behind.
    pub(crate) fn run<T>(
        mut self,
        write: DescriptorWrite,
        c: impl FnOnce(LockedImage<'a>) -> Result<T>,
    ) -> Result<T> {
        let path = self.locked.path().to_owned();
        let operation = self.locked.operation();
        let lock = self.locked.lock_guard();
        self.clear_closed_marks()?;
        self.locked.put_in_place(&self.canonical)?;
        self.canonical.save_unknown_fields(operation)?;
        let staging = StagingFile::make(operation, &path, write)?;
        let unsynced = Unsynced::before(&path, &self.descriptor);
        let result = c(self.locked);
        if self.canonical.has_unknown_fields() {
            lock.try_with_libploop_lock(|| self.canonical.restore_unknown_fields());
        }
        match (&result, unsynced) {
            (Err(_), _) => lock.try_with_libploop_lock(|| {
                // What could not be mended now needs what is left of the operation.
                if recovery::after_failure(operation, &path).is_ok() {
                    staging.clear();
                }
            }),
            (Ok(_), Some(unsynced)) => unsynced.sync(operation)?,
            (Ok(_), None) => {}
        }
        result
    }

    /// Where no device has the delta, it is as if the mark had never been set.
    fn clear_closed_marks(&self) -> Result<()> {
        for image in self.closed.borrow().iter() {
            if self.devices_with(&[image.guid]).next().is_none() {
                Header::clear_closed_mark(&image.file).map_err(|error| {
                    let why = "the mark of a closed image cannot be taken off, and libploop takes it for one in use";
                    Error::io(self.operation(), why, error).with_path(&image.file)
                })?;
            }
        }
        Ok(())
    }

    /// An error of this operation on this image, with the code libploop has for unusable parameters
    /// where it is one.
    pub(crate) fn refuse<T>(&self, kind: ErrorKind, why: impl Into<String>) -> Result<T> {
        let error = Error::new(kind, self.operation(), why).with_path(self.path());
        Err(match kind {
            ErrorKind::InvalidInput | ErrorKind::AlreadyExists | ErrorKind::Busy => {
                error.with_code(Code::PARAM.get())
            }
            _ => error,
        })
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.locked.operation()
    }

    /// How long it waits for others.
    pub(crate) fn timeout(&self) -> Duration {
        self.locked.timeout()
    }

    /// The name that libploop looks for.
    pub(crate) fn component(&self) -> &[u8] {
        self.locked.component()
    }

    pub(crate) fn path(&self) -> &Path {
        self.locked.path()
    }

    /// That this GUID is in the descriptor, as a snapshot or as the top.
    pub(crate) fn require_snapshot(&self, guid: Guid) -> Result<()> {
        match self.descriptor.snapshot(guid) {
            Some(_) => Ok(()),
            None => Err(no_snapshot(self.operation(), self.path(), guid)),
        }
    }

    /// That this file is a delta of the image, which is about to be removed: whatever its table is like, for
    /// going back to a snapshot is the way out of a damaged top.
    pub(crate) fn require_delta_header(&self, image: Option<&Image>) -> Result<()> {
        image.map_or(Ok(()), |image| {
            let header =
                Header::read(&image.file).map_err(|error| error.during(self.operation()))?;
            require_header_of(self.operation(), image, &self.descriptor, &header)
        })
    }

    /// That these files are deltas libploop can work on together: readable headers that do not lead
    /// it out of its buffers (9), of one cluster size (10) and one version of the format: a merge writes
    /// the upper one's version to the lower one's table. It also keeps a descriptor that names
    /// just any file from having that file deleted or overwritten (33).
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
            if delta.is_marked_closed {
                self.closed.borrow_mut().push(image.clone());
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

    /// [`require_sound`](Change::require_sound), and that no disk of these deltas ends within a cluster:
    /// libploop makes new deltas, and merges and converts old ones, in whole clusters, and the rest is lost.
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
                        "the disk has {size} bytes, not a whole number of clusters of {cluster}, and libploop would cut off its end; export it to a new image"
                    ),
                )
                .with_path(&image.file));
            }
        }
        Ok(())
    }

    /// What must hold where libploop attaches the chain of a delta: sound deltas, and a mount table it
    /// can read.
    pub(crate) fn require_attachable(&self, guid: Guid) -> Result<()> {
        self.require_sound(self.descriptor.chain(guid))?;
        match mount_table::read() {
            Ok(table) => require_short_mounts(self.operation(), &table),
            // Without a table libploop says so itself.
            Err(_) => Ok(()),
        }
    }

    /// That libploop's tools are there. It forks first and looks for the tool then, and its child
    /// comes back as a second copy of the caller (21).
    pub(crate) fn require_tools(&self, tools: &[&str]) -> Result<()> {
        require_tools(self.operation(), tools)
    }
}

pub(crate) fn no_snapshot(operation: &'static str, path: &Path, guid: Guid) -> Error {
    Error::new(
        ErrorKind::NoSnapshot,
        operation,
        format!("the image has no snapshot {guid}"),
    )
    .with_path(path)
    .with_code(Code::NOSNAP.get())
}

/// A delta whose header and table were read, and found to be sound.
pub(crate) struct SoundDelta<'i> {
    image: &'i Image,
    /// Of the disk, in bytes.
    size: u64,
    /// Of the format; a raw base has none.
    version: Option<FormatVersion>,
    is_marked_closed: bool,
}

fn require_sound<'i>(
    operation: &'static str,
    image: &'i Image,
    descriptor: &Descriptor,
) -> Result<SoundDelta<'i>> {
    let raw = image.kind == ImageKind::Plain || descriptor.mode == ImageMode::Raw;
    if raw
        && descriptor
            .base()
            .is_some_and(|base| base.guid == image.guid)
    {
        return Ok(SoundDelta {
            image,
            size: require_raw(operation, &image.file, descriptor)?,
            version: None,
            is_marked_closed: false,
        });
    }
    let accept = |header: &Header| {
        require_header_of(operation, image, descriptor, header)?;
        if header.extension_offset == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            "this delta has a format extension with the dirty bitmaps of a backup program, which libploop would cut off; remove it with the program that made it, or export the disk to a new image",
        )
        .with_path(&image.file)
        .with_offset(56))
    };
    let (header, file) = require_sound_delta(operation, &image.file, accept)?;
    Ok(SoundDelta {
        image,
        size: header.size.bytes(),
        version: Some(header.version),
        is_marked_closed: Header::is_marked_closed(&file).unwrap_or(false),
    })
}

/// That the header is that of a delta of this image.
fn require_header_of(
    operation: &'static str,
    image: &Image,
    descriptor: &Descriptor,
    header: &Header,
) -> Result<()> {
    if header.cluster == descriptor.cluster {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        operation,
        format!(
            "this delta has clusters of {}, the descriptor says {}",
            header.cluster, descriptor.cluster
        ),
    )
    .with_path(&image.file))
}

/// A raw base has no header to tell it from somebody's file: that its size is the disk's must do. Deltas upon it
/// may make the disk larger. Returns its length.
fn require_raw(operation: &'static str, file: &Path, descriptor: &Descriptor) -> Result<u64> {
    let metadata = fs::metadata(file).map_err(|error| {
        Error::io(operation, "the raw base cannot be examined", error).with_path(file)
    })?;
    let (len, size) = (metadata.len(), descriptor.size.bytes());
    let why = if !metadata.is_file() {
        "it is not a regular file".to_owned()
    } else if len == 0 || len % 512 != 0 {
        format!("its {len} bytes are not one or more whole sectors")
    } else if len > size || len < size && descriptor.images.len() == 1 {
        format!(
            "it has {len} bytes, and the disk {size}; put the right size into the descriptor if it is the base all the same"
        )
    } else {
        return Ok(len);
    };
    Err(Error::new(
        ErrorKind::Corrupt,
        operation,
        format!("this is not the raw base of the image: {why}"),
    )
    .with_path(file))
}

/// That each mount point of the host, as the table spells it, fits the buffer into which libploop
/// copies it without looking (16).
fn require_short_mounts(operation: &'static str, table: &[u8]) -> Result<()> {
    const BUFFER: usize = 4096;
    match mount_table::longest(table) {
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

/// Where libploop looks for tools, in its order; the `2fs` ones first in a directory of their own.
const TOOL_DIRECTORIES: [&str; 5] = ["/sbin", "/bin", "/usr/sbin", "/usr/bin", "/usr/local/sbin"];

pub(crate) fn require_tools(operation: &'static str, tools: &[&str]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .copied()
        .filter(|tool| {
            !TOOL_DIRECTORIES
                .iter()
                .chain(&["/usr/libexec"])
                .any(|dir| rustix::fs::access(Path::new(dir).join(tool), Access::EXEC_OK).is_ok())
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Tool,
        operation,
        format!(
            "libploop needs {} in {}; install the packages e2fsprogs and parted",
            missing.join(", "),
            TOOL_DIRECTORIES.join(", ")
        ),
    ))
}

/// The temporary file that libploop writes a descriptor to, made before libploop needs it.
///
/// When libploop cannot create it, it goes on as if it had been written, and reports success for
/// what it did not do, or deletes a delta that the descriptor on disk still names (25). So the file
/// is created beforehand; libploop overwrites and renames it.
struct StagingFile {
    /// What was not there before.
    made: Vec<PathBuf>,
}

/// What one operation adds to a descriptor, at most: an image and a snapshot, whose file names may be
/// long.
const GROWTH: u64 = 8192;

impl StagingFile {
    fn make(
        operation: &'static str,
        descriptor: &Path,
        write: DescriptorWrite,
    ) -> Result<StagingFile> {
        let mut staging = StagingFile { made: Vec::new() };
        let needed = match write {
            DescriptorWrite::Maybe => return Ok(staging),
            DescriptorWrite::Direct => paths::staged(descriptor),
            DescriptorWrite::Staged => {
                // Left behind by some failures.
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
                // Where the disk is full, libploop fails later and without saying why.
                let len = fs::metadata(descriptor).map_or(0, |metadata| metadata.len()) + GROWTH;
                if let Err(error) = io::copy(&mut io::repeat(0).take(len), &mut file) {
                    staging.clear();
                    return Err(refused(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Of an operation that was killed, and a regular file.
                create(&mut OpenOptions::new()).map_err(refused)?;
            }
            Err(error) => return Err(refused(error)),
        }
        Ok(staging)
    }

    fn clear(&self) {
        for file in &self.made {
            // Gone is what it should be.
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

    #[test]
    fn missing_tools_are_named() {
        require_tools("test", &["sh"]).unwrap();
        let error = require_tools("test", &["sh", "no-such-tool"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool);
        assert!(error.message().contains("needs no-such-tool in"), "{error}");
    }
}
