//! The files of a state of an image: the deltas of a snapshot or of the top in each storage, and below them those of the
//! images in other directories upon which a volume of libploop 7 stands.

use std::path::{Path, PathBuf};

use super::descriptor::{self, Descriptor, Storage};
use crate::{Error, ErrorKind, Guid, Result, Size};

const OPERATION: &str = "open image";

/// The name of the descriptor in the directory of a volume.
const DESCRIPTOR: &str = "DiskDescriptor.xml";

/// How many images may stand upon each other. libploop follows as many.
const MAX_VOLUMES: usize = 256;

/// The files of a state.
#[derive(Debug)]
pub(super) struct State {
    /// The files of each storage, in the order of the disk.
    pub(super) storages: Vec<StorageState>,
    /// The descriptors that were read besides the first one.
    pub(super) descriptors: Vec<PathBuf>,
    /// All delta files of all these descriptors.
    pub(super) all_files: Vec<PathBuf>,
}

/// The files of a state in a storage.
#[derive(Debug)]
pub(super) struct StorageState {
    pub(super) start: Size,
    pub(super) end: Size,
    pub(super) cluster: Size,
    /// The base first.
    pub(super) files: Vec<StateFile>,
}

#[derive(Debug)]
pub(super) struct StateFile {
    pub(super) guid: Guid,
    pub(super) path: PathBuf,
    /// Whether it has neither header nor table.
    pub(super) raw: bool,
}

impl StorageState {
    fn of(descriptor: &Descriptor, storage: &Storage, guid: Guid) -> StorageState {
        let base = descriptor.base().map(|image| image.guid);
        let stands_upon_another = descriptor
            .snapshots
            .iter()
            .any(|shot| Some(shot.guid) == base && shot.parent != Guid::NONE);
        let raw = storage.is_raw() && !stands_upon_another;
        let chain = descriptor.chain_in(&storage.images, guid);
        StorageState {
            start: storage.start,
            end: storage.end,
            cluster: storage.cluster,
            files: chain
                .into_iter()
                .enumerate()
                .map(|(level, image)| StateFile {
                    guid: image.guid,
                    path: image.file.clone(),
                    raw: raw && level == 0,
                })
                .collect(),
        }
    }
}

impl State {
    /// The files of the state `guid`. The descriptors of other images are read, those in `within` or below it only, if
    /// that is given.
    pub(super) fn of(
        descriptor: &Descriptor,
        path: Option<&Path>,
        guid: Guid,
        within: Option<&Path>,
    ) -> Result<State> {
        require_readable(descriptor)?;
        if descriptor.snapshot(guid).is_none() {
            return Err(Error::new(
                ErrorKind::NoSnapshot,
                OPERATION,
                format!("there is no snapshot {guid}"),
            ));
        }
        let storages = descriptor.storages();
        let files = |descriptor: &Descriptor| -> Vec<PathBuf> {
            let images = descriptor.all_images();
            images.map(|image| image.file.clone()).collect()
        };
        let mut state = State {
            storages: storages
                .iter()
                .map(|storage| StorageState::of(descriptor, storage, guid))
                .collect(),
            descriptors: Vec::new(),
            all_files: files(descriptor),
        };
        let first = path.and_then(|path| path.canonicalize().ok());
        let mut below = Below::of(descriptor);
        while let Some(Below { guid, directory }) = below {
            let path = directory.join(DESCRIPTOR);
            let at = |error: Error| match error.path() {
                Some(_) => error,
                None => error.with_path(&path),
            };
            let (real, next) = descriptor::open_within(&path, within).map_err(at)?;
            let visited = &state.descriptors;
            if first.as_ref() == Some(&real) || visited.contains(&real) {
                let message = "the image stands upon others, and one of those upon it";
                return Err(at(Error::new(ErrorKind::Corrupt, OPERATION, message)));
            }
            if visited.len() == MAX_VOLUMES {
                let message =
                    format!("more than {MAX_VOLUMES} images in other directories are below");
                return Err(at(Error::new(ErrorKind::Unsupported, OPERATION, message)));
            }
            require_readable(&next).map_err(at)?;
            if next.storages().len() != state.storages.len() {
                let message = "the image upon which another one stands is split in another way";
                return Err(at(Error::new(ErrorKind::Unsupported, OPERATION, message)));
            }
            state.descriptors.push(real);
            state.all_files.extend(files(&next));
            // As libploop, which puts the snapshots of all these images together.
            if next.snapshot(guid).is_none() {
                let message =
                    format!("the snapshot {guid}, upon which another image stands, is not there");
                let missing = at(Error::new(ErrorKind::NoSnapshot, OPERATION, message));
                let directory = next.stands_upon().ok_or(missing)?.to_owned();
                below = Some(Below { guid, directory });
                continue;
            }
            for (storage, lower) in state.storages.iter_mut().zip(next.storages()) {
                let mut lower = StorageState::of(&next, &lower, guid);
                lower.files.append(&mut storage.files);
                storage.files = lower.files;
            }
            below = Below::of_state(&next, guid);
        }
        Ok(state)
    }
}

/// The base upon which the top of an image stands, which may be in another one.
#[cfg(feature = "libploop")]
pub(crate) fn base_file(descriptor: &Descriptor, path: &Path) -> Result<PathBuf> {
    let state = State::of(descriptor, Some(path), descriptor.top, None)?;
    let mut files = state.storages.into_iter().flat_map(|it| it.files);
    let missing = || Error::new(ErrorKind::Corrupt, OPERATION, "the image has no deltas");
    Ok(files.next().ok_or_else(missing)?.path)
}

/// The snapshot of another image upon which a chain stands.
struct Below {
    guid: Guid,
    directory: PathBuf,
}

impl Below {
    fn of(descriptor: &Descriptor) -> Option<Below> {
        Below::of_state(descriptor, descriptor.base()?.guid)
    }

    fn of_state(descriptor: &Descriptor, guid: Guid) -> Option<Below> {
        let base = descriptor.chain(guid).first()?.guid;
        let guid = descriptor.snapshot(base)?.parent;
        let directory = descriptor.stands_upon()?.to_owned();
        (guid != Guid::NONE).then_some(Below { guid, directory })
    }
}

/// Refuses an image that cannot be read whatever is in its deltas.
fn require_readable(descriptor: &Descriptor) -> Result<()> {
    let unsupported = |message| Err(Error::new(ErrorKind::Unsupported, OPERATION, message));
    if descriptor.encryption.is_some() {
        return unsupported("the image is encrypted".to_owned());
    }
    if descriptor.padding != 0 {
        return unsupported(descriptor::padded(descriptor.padding));
    }
    Ok(())
}
