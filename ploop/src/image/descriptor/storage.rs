//! Disks that are in more than one place: [`Storage`] of a split disk, [`Volume`] upon another image.

use std::path::{Path, PathBuf};

use super::form::DescriptorForm;
use super::{Descriptor, Image, ImageKind, corrupt, image};
use crate::image::xml::Element;
use crate::{ClusterSize, Guid, Result, Size};

/// A part of a disk that is split into several (`Storage`): each has delta files of its own for all snapshots.
///
/// Parallels Desktop makes such disks. libploop refuses them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Storage {
    /// Where it begins on the disk (`Start`).
    pub start: Size,
    /// Where it ends on the disk (`End`).
    pub end: Size,
    /// The cluster size of its deltas (`Blocksize`).
    pub cluster: Size,
    /// Its delta files. Their GUIDs are those of the snapshots.
    pub images: Vec<Image>,
}

/// How an image belongs to others of line 7 of libploop (`Volume`): `ploop_volume_snapshot` and `ploop_volume_clone` make
/// images that stand upon a snapshot in another directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Volume {
    /// The directory of the image below (`Parent`), in which there is a `DiskDescriptor.xml`. A relative name is joined
    /// to the directory of the descriptor.
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub parent: Option<PathBuf>,
    /// The snapshot of the image below on which this one stands (`SnapshotGUID`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub snapshot: Option<Guid>,
    /// Whether nothing may be written to it (`ReadOnly`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub read_only: bool,
}

impl Volume {
    /// Reads `StorageData/Volume`.
    pub(super) fn of(
        storage_data: Element<'_, '_>,
        dir: &Path,
        form: &DescriptorForm,
    ) -> Result<Option<Volume>> {
        let Some(element) = storage_data.optional("Volume") else {
            return Ok(None);
        };
        let parent = element.optional("Parent").map(|it| it.text()).transpose()?;
        if parent == Some("") {
            return Err(corrupt("Volume has an empty Parent"));
        }
        Ok(Some(Volume {
            parent: parent.map(|parent| form.file(parent, dir)),
            snapshot: element
                .optional("SnapshotGUID")
                .map(|it| it.guid())
                .transpose()?,
            read_only: element.optional("ReadOnly").is_some(),
        }))
    }
}

/// The storages of a descriptor, in the order in which they are on the disk.
pub(super) fn read_all(
    storage_data: Element<'_, '_>,
    size: Size,
    dir: &Path,
    form: &DescriptorForm,
) -> Result<Vec<Storage>> {
    let elements: Vec<_> = storage_data.children("Storage").collect();
    let split = elements.len() > 1;
    let mut storages = elements
        .into_iter()
        .map(|element| {
            let sectors = |name| -> Result<Size> {
                let sectors = element.required(name)?.number()?;
                let bytes = sectors.checked_mul(512).map(Size::from_bytes);
                bytes.ok_or_else(|| corrupt(format!("{name}: {sectors} sectors are beyond 16 EiB")))
            };
            // libploop reads neither where there is one storage.
            let (start, end) = match split {
                true => (sectors("Start")?, sectors("End")?),
                false => (Size::ZERO, size),
            };
            let images = element
                .children("Image")
                .map(|element| image(element, dir, form));
            Ok(Storage {
                start,
                end,
                cluster: cluster(element)?,
                images: images.collect::<Result<_>>()?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    storages.sort_by_key(|storage| storage.start);
    Ok(storages)
}

/// The largest cluster, in sectors.
const MAX_CLUSTER: u64 = ClusterSize::MAX.bytes() / 512;

fn cluster(storage: Element<'_, '_>) -> Result<Size> {
    let sectors = storage.required("Blocksize")?.number()?;
    if !(1..=MAX_CLUSTER).contains(&sectors) {
        return Err(corrupt(format!(
            "Blocksize: {sectors} sectors are not from 1 to {MAX_CLUSTER}"
        )));
    }
    Ok(Size::from_sectors(sectors))
}

impl Storage {
    /// Whether the base is a raw file: where any image is of type `Plain`, as libploop has it.
    pub(crate) fn is_raw(&self) -> bool {
        self.images.iter().any(|it| it.kind == ImageKind::Plain)
    }
}

impl Descriptor {
    /// The cluster size as it is in the descriptor: [`cluster`](Descriptor::cluster), or
    /// [`unusual_cluster`](Descriptor::unusual_cluster).
    #[must_use]
    pub fn cluster_size(&self) -> Size {
        self.unusual_cluster.unwrap_or(self.cluster.into())
    }

    /// The delta files of all storages, those of the first one first.
    pub fn all_images(&self) -> impl Iterator<Item = &Image> + '_ {
        let further = self.further_storages.iter().flat_map(|it| &it.images);
        self.images.iter().chain(further)
    }

    /// All storages; nearly always one, which is the whole disk.
    pub(crate) fn storages(&self) -> Vec<Storage> {
        let next = self.further_storages.first();
        let first = Storage {
            start: Size::ZERO,
            end: next.map_or(self.size, |next| next.start),
            cluster: self.cluster_size(),
            images: self.images.clone(),
        };
        let further = self.further_storages.iter().cloned();
        [first].into_iter().chain(further).collect()
    }

    /// Whether the image stands upon one in another directory.
    pub(crate) fn stands_upon(&self) -> Option<&Path> {
        self.volume.as_ref()?.parent.as_deref()
    }

    /// Refuses what libploop does not read, or not as this library does, and what is not written here.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(crate) fn require_for_changes(&self, form: &DescriptorForm) -> Result<()> {
        use crate::{Error, ErrorKind};
        let unsupported = |message: String| {
            Err(Error::new(
                ErrorKind::Unsupported,
                super::OPERATION,
                message,
            ))
        };
        if !self.further_storages.is_empty() {
            return unsupported("the disk is split into several Storage elements".into());
        }
        if let Some(cluster) = self.unusual_cluster {
            return unsupported(format!(
                "the image has clusters of {} sectors, as those of old Parallels versions; libploop takes powers of two from 64 on",
                cluster.sectors()
            ));
        }
        if self.padding != 0 {
            return unsupported(padded(self.padding));
        }
        // Where libploop knows volumes, what is allowed depends on the operation.
        if let Some(parent) = self.stands_upon().filter(|_| !form.has_key_and_volume) {
            return unsupported(format!(
                "the image is a volume that stands upon the one in {}",
                parent.display()
            ));
        }
        Ok(())
    }
}

/// What an image is whose `Padding` is not 0.
pub(in crate::image) fn padded(padding: u64) -> String {
    format!(
        "Padding is {padding}: a disk of Parallels whose form is not documented, and which other software must not open"
    )
}

/// What is wrong with a storage that does not begin where the one before ends, or is empty.
pub(super) fn not_adjacent(storage: &Storage, end: Size) -> String {
    format!(
        "Storage: one is from sector {} to {}, and the one before ends at {}",
        storage.start.sectors(),
        storage.end.sectors(),
        end.sectors()
    )
}

/// The storages behind the first one, and its images, as a descriptor has them: what must fit together.
pub(super) fn contradiction(descriptor: &Descriptor) -> Option<String> {
    let mut end = descriptor.further_storages.first()?.start;
    if end.is_zero() {
        return Some("Storage: the first one is empty".into());
    }
    for storage in &descriptor.further_storages {
        let (start, stop) = (storage.start.sectors(), storage.end.sectors());
        if storage.start != end || stop <= start {
            return Some(not_adjacent(storage, end));
        }
        end = storage.end;
        let mut guids: Vec<Guid> = storage.images.iter().map(|image| image.guid).collect();
        let mut expected: Vec<Guid> = descriptor.images.iter().map(|image| image.guid).collect();
        guids.sort_unstable();
        expected.sort_unstable();
        if guids != expected {
            return Some(format!(
                "Storage: the one at sector {start} has not the same images as the first"
            ));
        }
    }
    if end != descriptor.size {
        return Some(format!(
            "Storage: the last one ends at sector {}, and the disk has {}",
            end.sectors(),
            descriptor.size.sectors()
        ));
    }
    None
}
