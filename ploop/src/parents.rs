//! [`Parents`]: the images upon which a volume of libploop 7 stands, in other directories.
//!
//! libploop follows `Volume/Parent` upwards and puts the deltas of all these descriptors together. It locks none of them,
//! and checks nothing. So whoever calls it holds [`Parents`], which are locked, trusted and in canonical form, and in
//! which nothing can be taken for a delta of the volume itself (A74, A75): an operation on a volume writes to, merges and
//! removes its own deltas alone.
//!
//! Locks are taken upwards, the volume's own first. A circle of volumes is refused; so nobody waits for himself.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::canonical::CanonicalDescriptor;
use crate::identity::Identity;
use crate::image::descriptor::{DescriptorFile, DescriptorForm, require_readable};
use crate::image::{Header, HeaderFlags, Image};
use crate::lock::{ImageLock, Purpose, SharedImageLock};
use crate::{ClusterSize, Descriptor, Error, ErrorKind, Guid, ImageMode, Result, paths, trust};

/// How many images libploop follows.
const MAX_PARENTS: usize = 256;

/// The images upon which a volume stands, for as long as this is held.
pub(crate) struct Parents {
    /// The next one first.
    images: Vec<Parent>,
    /// The deltas below the volume's own: the file, and its place in `images`. The base first.
    chain: Vec<(Image, usize)>,
}

struct Parent {
    path: PathBuf,
    descriptor: Descriptor,
    _lock: SharedImageLock,
}

impl Parents {
    /// Locks and checks the images upon which `descriptor` stands; none for one that stands on its own. With `mends`, a
    /// descriptor that is not in canonical form is rewritten.
    pub(crate) fn lock(
        operation: &'static str,
        form: &DescriptorForm,
        path: &Path,
        descriptor: &Descriptor,
        timeout: Duration,
        mends: bool,
    ) -> Result<Option<Parents>> {
        let Some(mut directory) = descriptor.stands_upon().map(Path::to_owned) else {
            return Ok(None);
        };
        require_kind(operation, path, descriptor, descriptor.cluster)?;
        let mut parents = Parents {
            images: Vec::new(),
            chain: Vec::new(),
        };
        loop {
            let parent = directory.join(paths::DESCRIPTOR_NAME);
            let known = parents.images.iter().map(|it| &*it.path);
            if [path].into_iter().chain(known).any(|it| it == parent) {
                let why = "the image stands upon others, and one of those upon it";
                return Err(Error::new(ErrorKind::Corrupt, operation, why).with_path(parent));
            }
            if parents.images.len() == MAX_PARENTS {
                let why = format!("more than {MAX_PARENTS} images in other directories are below");
                return Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(parent));
            }
            let parent = Parent::lock(operation, form, parent, timeout, mends)?;
            require_kind(
                operation,
                &parent.path,
                &parent.descriptor,
                descriptor.cluster,
            )?;
            require_none_temporary(operation, &parent.path, &parent.descriptor)?;
            let next = parent.descriptor.stands_upon().map(Path::to_owned);
            parents.images.push(parent);
            match next {
                Some(next) => directory = next,
                None => break,
            }
        }
        parents.require_apart(operation, path, descriptor)?;
        parents.chain = parents.chain_below(operation, path, descriptor)?;
        Ok(Some(parents))
    }

    /// The base of all, by which libploop finds devices.
    pub(crate) fn base(&self) -> Option<&Path> {
        self.chain.first().map(|(image, _)| &*image.file)
    }

    /// The deltas below the volume's own, the base first, each with the descriptor that names it.
    pub(crate) fn chain(&self) -> impl ExactSizeIterator<Item = (&Image, &Descriptor)> + '_ {
        let chain = self.chain.iter();
        chain.map(|(image, at)| (image, &self.images[*at].descriptor))
    }

    /// Whether one of these images has this GUID.
    pub(crate) fn has(&self, guid: Guid) -> bool {
        let mut images = self.images.iter();
        images.any(|it| it.descriptor.snapshot(guid).is_some())
    }

    /// That no GUID and no file is both of the volume and of one below, or of two below: libploop takes the first it
    /// finds.
    fn require_apart(
        &self,
        operation: &'static str,
        path: &Path,
        descriptor: &Descriptor,
    ) -> Result<()> {
        let corrupt = |at: &Path, why: String| {
            Err(Error::new(ErrorKind::Corrupt, operation, why).with_path(at))
        };
        let below = self.images.iter().map(|it| (&*it.path, &it.descriptor));
        let mut guids: HashMap<Guid, &Path> = HashMap::new();
        let mut files: HashMap<Identity, &Path> = HashMap::new();
        let mut parents: Vec<(Guid, &Path)> = Vec::new();
        for (at, descriptor) in [(path, descriptor)].into_iter().chain(below) {
            for shot in &descriptor.snapshots {
                if let Some(other) = guids.insert(shot.guid, at) {
                    let why = format!("{} has the snapshot {}, too", other.display(), shot.guid);
                    return corrupt(at, why);
                }
                parents.push((shot.parent, at));
            }
            for image in &descriptor.images {
                let Ok(file) = Identity::of(&image.file) else {
                    continue;
                };
                if let Some(other) = files.insert(file, at).filter(|other| *other != at) {
                    let why = format!(
                        "{} has the delta {}, too",
                        other.display(),
                        image.file.display()
                    );
                    return corrupt(at, why);
                }
            }
        }
        // What is below does not stand upon the volume.
        for (guid, at) in &parents {
            if *at != path && guids.get(guid) == Some(&path) {
                let why = format!(
                    "a snapshot here stands upon {guid}, which is of {}",
                    path.display()
                );
                return corrupt(at, why);
            }
        }
        // libploop takes the first one for the base.
        let bases = parents.iter().filter(|(guid, _)| *guid == Guid::NONE);
        match bases.count() {
            1 => Ok(()),
            found => corrupt(
                path,
                format!("the volume and the images below it have {found} bases, not one"),
            ),
        }
    }

    fn chain_below(
        &self,
        operation: &'static str,
        path: &Path,
        descriptor: &Descriptor,
    ) -> Result<Vec<(Image, usize)>> {
        let lowest = descriptor
            .base()
            .and_then(|it| descriptor.snapshot(it.guid));
        let mut next = lowest.map_or(Guid::NONE, |it| it.parent);
        let mut chain = Vec::new();
        while next != Guid::NONE {
            let mut images = self.images.iter().enumerate();
            let found = images.find_map(|(at, it)| {
                let image = it.descriptor.image(next)?;
                Some((image.clone(), at, it.descriptor.snapshot(next)?.parent))
            });
            let Some((image, at, parent)) = found else {
                let why = format!("the snapshot {next}, upon which the image stands, is not there");
                return Err(Error::new(ErrorKind::NoSnapshot, operation, why).with_path(path));
            };
            if chain.iter().any(|(it, _): &(Image, usize)| it.guid == next) {
                let why = format!("{next}, upon which the image stands, stands upon itself");
                return Err(Error::new(ErrorKind::Corrupt, operation, why).with_path(path));
            }
            require_at_rest(operation, &image, &self.images[at].path)?;
            chain.push((image, at));
            next = parent;
        }
        if chain.is_empty() {
            let why = "the volume names the image upon which it stands, and no snapshot of that";
            return Err(Error::new(ErrorKind::Corrupt, operation, why).with_path(path));
        }
        chain.reverse();
        Ok(chain)
    }
}

impl Parent {
    fn lock(
        operation: &'static str,
        form: &DescriptorForm,
        path: PathBuf,
        timeout: Duration,
        mends: bool,
    ) -> Result<Parent> {
        let failed = |error: Error| error.during(operation).with_path(&path);
        paths::require_c_path(operation, &path)?;
        let real = fs::canonicalize(&path).map_err(|error| {
            let why = "the volume stands upon the image in this directory, which cannot be found";
            Error::io(operation, why, error).with_path(&path)
        })?;
        if real != path {
            let why = format!(
                "the volume names the image upon which it stands by a path that leads through links; libploop would read other names in it: it is {}",
                real.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path));
        }
        require_readable(&path).map_err(failed)?;
        // Whoever changes it between the two locks makes this go around once more.
        let mut attempts = 0;
        loop {
            let lock = SharedImageLock::acquire(operation, &path, timeout)?;
            let file = DescriptorFile::read_as(&path, form).map_err(failed)?;
            let deltas = file.descriptor.images.iter().map(|it| &*it.file);
            trust::require_no_other_writers(operation, [&*path].into_iter().chain(deltas))?;
            let (canonical, descriptor) = CanonicalDescriptor::of(operation, &path, file)?;
            if canonical.is_in_place() {
                let directory = paths::directory_of(&path);
                for image in &descriptor.images {
                    paths::require_delta_path(operation, &image.file, directory)?;
                }
                return Ok(Parent {
                    path,
                    descriptor,
                    _lock: lock,
                });
            }
            if !mends || attempts == 3 {
                let why = "the volume stands upon this image, whose descriptor is not in the form that libploop writes; a change or a mount of the image puts it into that form";
                return Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path));
            }
            drop(lock);
            let alone = ImageLock::of(&path);
            let _alone = alone.acquire(operation, Purpose::Change, false, timeout)?;
            let file = DescriptorFile::read_as(&path, form).map_err(failed)?;
            let (canonical, _) = CanonicalDescriptor::of(operation, &path, file)?;
            canonical.put_in_place(operation, false)?;
            attempts += 1;
        }
    }
}

/// That an image can be below a volume of this cluster size, or be the volume.
fn require_kind(
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
    cluster: ClusterSize,
) -> Result<()> {
    let why = if descriptor.encryption.is_some() {
        "it is encrypted, and belongs to volumes that stand upon each other".to_owned()
    } else if descriptor.mode == ImageMode::Raw {
        "it is raw, which libploop does not see in a volume that stands upon it".to_owned()
    } else if descriptor.cluster != cluster {
        format!(
            "it has clusters of {}, and the volume upon it of {cluster}",
            descriptor.cluster
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path))
}

/// libploop merges those of images below, too, whether they are in use or not.
fn require_none_temporary(
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
) -> Result<()> {
    let Some(temporary) = descriptor.snapshots.iter().find(|it| it.temporary) else {
        return Ok(());
    };
    let why = format!(
        "a volume stands upon it, and it has the temporary snapshot {}, which libploop would merge although that belongs to another image; mount that image, or delete the snapshot there",
        temporary.guid
    );
    Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path))
}

/// That a delta of another image needs no mending: a mount of the volume would do it.
fn require_at_rest(operation: &'static str, image: &Image, of: &Path) -> Result<()> {
    let header = Header::read(&image.file).map_err(|error| error.during(operation))?;
    if !header.in_use && !header.flags.contains(HeaderFlags::CONVERTING) {
        return Ok(());
    }
    let why = format!(
        "this delta of {} is marked as in use: an operation was interrupted; mount that image and unmount it, which mends it",
        of.display()
    );
    Err(Error::new(ErrorKind::Busy, operation, why).with_path(&image.file))
}
