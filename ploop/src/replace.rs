//! Exchanging a delta file for an identical one.

use std::fs;
use std::path::{Path, PathBuf};

use bitflags::bitflags;

use crate::change::{Change, DescriptorWrite, require_known_flags};
use crate::durability::sync_files;
use crate::ffi::{self, CPath, CText, LINE, LockedImage, ReplaceWhich};
use crate::identity::Identity;
use crate::image::descriptor::{self, DescriptorFile};
use crate::image::other_image::require_of_no_other_image;
use crate::image::{Header, Image};
use crate::{Code, Descriptor, Error, ErrorKind, Guid, Ploop, Result, paths, trust};

bitflags! {
    /// How [`Ploop::replace`] treats the names.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct ReplaceFlag: u32 {
        /// Rename the new file over the old one, which is thereby removed. Both must be on one file system. Where the
        /// descriptor names a symbolic link, the link is replaced, and the file it leads to stays. Where the path of
        /// the new file is a symbolic link, the file it leads to is renamed.
        const KEEP_NAME = ffi::REPLACE_KEEP_NAME;

        // Bits that a later libploop may know are kept.
        const _ = !0;
    }
}

impl ReplaceFlag {
    /// What libploop 1.15 knows. It ignores others.
    const KNOWN: ReplaceFlag = ReplaceFlag::KEEP_NAME;
}

/// Which delta [`Ploop::replace`] replaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ReplaceTarget {
    /// The delta of a snapshot, or of the top.
    Guid(Guid),
    /// The delta in this file. A relative path starts at the working directory.
    File(#[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))] PathBuf),
    /// The delta at this level of the running device; 0 is the base.
    Level(u32),
}

/// What [`Ploop::replace`] does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct ReplaceParam {
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    new_file: PathBuf,
    target: ReplaceTarget,
    #[cfg_attr(feature = "serde", serde(default))]
    flags: ReplaceFlag,
}

impl ReplaceParam {
    /// Puts `new_file` in the place of `target`.
    pub fn new(new_file: impl AsRef<Path>, target: ReplaceTarget) -> ReplaceParam {
        ReplaceParam {
            new_file: new_file.as_ref().to_owned(),
            target,
            flags: ReplaceFlag::empty(),
        }
    }

    /// How the names are treated.
    pub fn flags(mut self, flags: ReplaceFlag) -> ReplaceParam {
        self.flags = flags;
        self
    }
}

impl Ploop {
    /// Replaces a delta file by an identical copy of it, on another disk say, while the image is
    /// running or not (`ploop_replace_image`).
    ///
    /// The new file must have the size and header of the old one. Whether its data is the same is not checked. The
    /// old file stays where it was, except with [`KEEP_NAME`](ReplaceFlag::KEEP_NAME). Needs root, and the driver only
    /// where the image is attached. Takes as long as reading the block allocation table of the new file.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) for a missing new file,
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) and [`InvalidInput`](ErrorKind::InvalidInput) for a target
    /// the image does not have, [`Unsupported`](ErrorKind::Unsupported) for a raw base, and where some versions of
    /// libploop 7 take a delta of a running image [for damaged](crate::manual::_13_libploop_lines#what-remains-different),
    /// [`Corrupt`](ErrorKind::Corrupt) for a new file that is damaged or differs,
    /// [`Io`](ErrorKind::Io) where the renaming failed, which libploop itself reports as success: the message says which
    /// file is in use then. After any other error the image has the old file, and the new one stays where it was.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::{Guid, ReplaceFlag, ReplaceParam, ReplaceTarget};
    ///
    /// let (old, new) = (image.top_delta_file()?, dir.path().join("copy.hds"));
    /// std::fs::copy(&old, &new).unwrap();
    /// let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
    /// image.replace(&param.flags(ReplaceFlag::KEEP_NAME))?;
    /// assert_eq!(image.top_delta_file()?, old);
    /// assert!(!new.exists());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn replace(&mut self, param: &ReplaceParam) -> Result<()> {
        self.replace_delta(param)
            .map_err(|error| error.with_paths(self.path(), &param.new_file))
    }

    fn replace_delta(&mut self, param: &ReplaceParam) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::REPLACE)?;
        let operation = change.operation();
        let descriptor = &change.descriptor;
        CPath::new(operation, &param.new_file)?;
        let new_file = fs::canonicalize(&param.new_file).map_err(|error| {
            Error::io(operation, "the new file cannot be found", error).with_path(&param.new_file)
        })?;
        change.require_new_delta_path(&new_file)?;
        let c_new_file = CPath::new(operation, &new_file)?;
        // 9: libploop's own check of the new file trusts its header.
        Header::read(&new_file).map_err(|error| error.during(operation))?;
        trust::require_no_other_writers(operation, [&*new_file])?;
        let identity = identity_of(operation, &new_file)?;
        if change.delta_of_file(identity).is_some() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                operation,
                "the new file is a delta of this image already",
            )
            .with_path(new_file));
        }
        if let Some(device) = change.device_with_file(identity) {
            return change.refuse(
                ErrorKind::Busy,
                format!(
                    "the new file is attached to {}, as a delta of another image; unmount that first",
                    device.path().display()
                ),
            );
        }
        require_known_flags(operation, change.path(), param.flags, ReplaceFlag::KNOWN)?;
        // By GUID wherever possible: a relative file name is looked up in one directory and used in
        // another.
        let guid = match &param.target {
            ReplaceTarget::Guid(guid) => {
                change.require_snapshot(*guid)?;
                Some(*guid)
            }
            ReplaceTarget::File(file) => {
                let identity = identity_of(operation, file)?;
                match change.delta_of_file(identity) {
                    Some(guid) => Some(guid),
                    None => {
                        return Err(Error::new(
                            ErrorKind::InvalidInput,
                            operation,
                            "the image has no delta in this file",
                        )
                        .with_path(file));
                    }
                }
            }
            ReplaceTarget::Level(level) if !LINE.compares_replacement => {
                delta_at_level(&change, *level)?
            }
            ReplaceTarget::Level(_) => None,
        };
        // By a level, it may be any of them.
        let images = descriptor.images.iter().map(|image| image.guid);
        let replaced: Vec<Guid> = images
            .filter(|it| guid.is_none_or(|guid| guid == *it))
            .collect();
        change.require_of_no_other_image(&replaced)?;
        if param.flags.contains(ReplaceFlag::KEEP_NAME) {
            // It is moved away.
            require_of_no_other_image(operation, change.path(), &new_file)?;
        }
        if let Some(guid) = guid {
            if descriptor.is_raw_base(guid) {
                return change.refuse(
                    ErrorKind::Unsupported,
                    "libploop compares headers, and a raw base has none, so it cannot be replaced",
                );
            }
            change.require_sound(descriptor.image(guid))?;
            if let Some(old) = descriptor
                .image(guid)
                .filter(|_| !LINE.compares_replacement)
            {
                require_level_found(&change, guid)?;
                require_copy(&change, &new_file, old)?;
            }
        }
        let c_guid = guid.map(CText::guid);
        let which = match (&c_guid, &param.target) {
            (Some(guid), _) => ReplaceWhich::Guid(guid),
            (None, ReplaceTarget::Level(level)) => match i32::try_from(*level) {
                Ok(level) => ReplaceWhich::Level(level),
                Err(_) => {
                    return change.refuse(
                        ErrorKind::InvalidInput,
                        format!("there is no level {level}"),
                    );
                }
            },
            (None, _) => {
                return change.refuse(ErrorKind::InvalidInput, "the target is not a delta");
            }
        };
        // The caller has just copied it, perhaps; with the descriptor comes its data.
        sync_files(operation, [&*new_file])?;
        let keep_name = param.flags.contains(ReplaceFlag::KEEP_NAME);
        let misjudges = ffi::misjudges_replacement();
        if let Some(guid) = guid.filter(|_| misjudges && change.any_device().is_none()) {
            return change.run(DescriptorWrite::Maybe, |locked| {
                replace_without_c(&locked, guid, &new_file, keep_name)
            });
        }
        let _second = match keep_name && change.any_device().is_some() {
            true => SecondName::of(&new_file),
            false => None,
        };
        change.run(DescriptorWrite::Staged, |locked| {
            let locked = locked
                .replace(&c_new_file, &which, param.flags.bits() as i32)
                .map_err(|error| match misjudges && error.code() == Some(Code::PLOOPFMT.get()) {
                    true => misjudged(error),
                    false => error,
                })?;
            let now = locked.descriptor()?;
            // libploop returns 0 where it could not rename and rolled back.
            let in_use = same_file(&now, identity).and_then(|guid| now.image(guid));
            let failed = match in_use {
                None => "libploop could not rename the new file over the old one, and went on with the old one as if it had",
                Some(image) if keep_name && image.file == new_file => {
                    "the new file is in use, but under its own name: libploop could not rename it"
                }
                Some(_) => return Ok(()),
            };
            Err(Error::new(ErrorKind::Io, locked.operation(), failed).with_path(&new_file))
        })
    }
}

/// What `ploop_replace_image` does to an image that no device has, but for its check of the new file, which may refuse
/// a sound one (A73). The lock is held, and the file was checked.
fn replace_without_c(
    locked: &LockedImage<'_>,
    guid: Guid,
    new_file: &Path,
    keep_name: bool,
) -> Result<()> {
    let (operation, path) = (locked.operation(), locked.path());
    let DescriptorFile {
        mut descriptor,
        unknown,
        ..
    } = locked.descriptor_file()?;
    for image in descriptor.images.iter_mut().filter(|it| it.guid == guid) {
        if keep_name {
            return fs::rename(new_file, &image.file).map_err(|error| {
                let why = format!("the new file cannot be renamed over the old one: {error}");
                Error::new(ErrorKind::Io, operation, why).with_path(new_file)
            });
        }
        image.file = new_file.to_owned();
    }
    let xml = descriptor
        .to_xml_with(&unknown, paths::directory_of(path))
        .map_err(|error| error.during(operation).with_path(path))?;
    descriptor::replace(path, &xml).map_err(|error| {
        Error::io(operation, "the descriptor cannot be rewritten", error).with_path(path)
    })
}

/// The error where libploop refused a file that this crate has found to be sound.
fn misjudged(refused: Error) -> Error {
    let message = format!(
        "this version of libploop takes the new file for damaged, which is sound: {}; libploop 7.0.226 and later do not",
        refused.message()
    );
    refused
        .meaning(ErrorKind::Unsupported, message)
        .with_advice("unmount the image first: then this crate replaces the file without libploop")
}

/// A second name (hard link) of a file, removed when this is dropped.
///
/// libploop links a file that the driver uses before it renames it, and always fails, since it makes a file under the
/// new name first (A3). It does not link a file that has two names already.
struct SecondName(PathBuf);

impl SecondName {
    /// `None` where the file system has no links: then libploop tries, and the result is checked.
    fn of(file: &Path) -> Option<SecondName> {
        let mut name = file.to_owned().into_os_string();
        name.push(format!(".{}", Guid::generate().as_uuid().simple()));
        let name = PathBuf::from(name);
        fs::hard_link(file, &name).ok().map(|()| SecondName(name))
    }
}

impl Drop for SecondName {
    fn drop(&mut self) {
        // Should it stay, the file has two names, and nothing is lost.
        let _ = fs::remove_file(&self.0);
    }
}

/// The delta that a running device has at this level. `None` without a device, which libploop reports.
fn delta_at_level(change: &Change<'_>, level: u32) -> Result<Option<Guid>> {
    let Some(device) = change.found_device() else {
        return Ok(None);
    };
    let delta = usize::try_from(level).ok();
    let delta = delta.and_then(|level| device.deltas.get(level));
    let guid = delta.and_then(|delta| change.delta_of_file(delta.identity?));
    match guid {
        Some(guid) => Ok(Some(guid)),
        None => change.refuse(
            ErrorKind::InvalidInput,
            format!(
                "{} has no delta of this image at level {level}",
                device.path().display()
            ),
        ),
    }
}

/// Requires that libploop finds the level at which a running device has the delta. Otherwise it would take the image for
/// one that does not run: the descriptor would name the new file, and the device would go on with the old one.
fn require_level_found(change: &Change<'_>, guid: Guid) -> Result<()> {
    for device in change.devices_with(&[guid]) {
        // libploop looks at one level after the other, and gives up at the first that it does not find.
        let mut files = device.deltas.iter().map(|delta| delta.identity);
        let found = files.find(|file| file.is_none_or(|file| change.is_delta(file, guid)));
        if device.writes() && (!device.runs || found.flatten().is_none()) {
            return change.refuse_attached(
                device,
                "it is stopped, or one of its files is not found, and libploop would not tell it of the new file",
            );
        }
    }
    Ok(())
}

/// Requires that the new file is a copy of the old one, as far as size and header show, and that its table is sound.
fn require_copy(change: &Change<'_>, new_file: &Path, old: &Image) -> Result<()> {
    let operation = change.operation();
    let is_same = Header::is_same_in(new_file, &old.file)
        .map_err(|error| Error::io(operation, "the files cannot be compared", error))?;
    if !is_same {
        return Err(Error::new(
            ErrorKind::Corrupt,
            operation,
            format!(
                "the new file is no copy of {}: its size or its header is another one",
                old.file.display()
            ),
        )
        .with_path(new_file)
        .with_code(Code::PLOOPFMT.get()));
    }
    let new = Image::new(old.guid, new_file, old.kind);
    change.require_sound([&new]).map(drop)
}

fn identity_of(operation: &'static str, file: &Path) -> Result<Identity> {
    CPath::new(operation, file)?;
    Identity::of(file)
        .map_err(|error| Error::io(operation, "the file cannot be examined", error).with_path(file))
}

/// The delta that is this file, under any name.
fn same_file(descriptor: &Descriptor, identity: Identity) -> Option<Guid> {
    descriptor
        .images
        .iter()
        .find(|image| Identity::of(&image.file).is_ok_and(|found| found == identity))
        .map(|image| image.guid)
}
