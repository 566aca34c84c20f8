//! A delta as it is, and the bytes of its header.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use crate::identity::Identity;
use crate::image::descriptor::Image;
use crate::image::file;
use crate::image::header::{Header, at};
use crate::image::layout::Layout;
use crate::{ClusterSize, Error, FormatVersion, Guid, Result, Size};

/// A delta with a header, or what should have one, open for reading.
pub(super) struct OpenDelta {
    pub(super) guid: Guid,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) identity: Identity,
    /// How many names the file has.
    pub(super) names: u64,
    /// How much space it takes.
    pub(super) stored: u64,
    /// Its first bytes as they are.
    pub(super) bytes: [u8; Header::LEN],
}

impl OpenDelta {
    /// `None` where the file is no regular one, or shorter than a header; the check says so.
    pub(super) fn open(image: &Image) -> Result<Option<OpenDelta>> {
        let (file, len) = file::open("repair image", &image.file)?;
        let metadata = file.metadata().map_err(|error| {
            Error::io("repair image", "the file cannot be examined", error).with_path(&image.file)
        })?;
        let mut bytes = [0; Header::LEN];
        if !metadata.is_file() || file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        Ok(Some(OpenDelta {
            guid: image.guid,
            path: image.file.clone(),
            file,
            len,
            identity: Identity::from(&metadata),
            names: metadata.nlink(),
            stored: metadata.blocks().saturating_mul(512),
            bytes,
        }))
    }

    pub(super) fn layout(&self) -> Option<Layout> {
        Layout::read_from(&self.file, self.len).ok()
    }

    pub(super) fn number(&self, at: usize) -> u32 {
        number(&self.bytes, at)
    }

    /// The version by the signature.
    pub(super) fn version(&self) -> Option<FormatVersion> {
        [FormatVersion::V1, FormatVersion::V2]
            .into_iter()
            .find(|version| self.bytes[..at::TYPE] == signature(*version))
    }

    /// The size of the disk, as the header of a version has it.
    pub(super) fn sectors(&self, version: FormatVersion) -> u64 {
        let low = u64::from(self.number(at::SIZE));
        match version {
            FormatVersion::V1 => low,
            FormatVersion::V2 => low | u64::from(self.number(at::SIZE + 4)) << 32,
        }
    }

    /// The header with another geometry, and all else as it is.
    pub(super) fn with_geometry(&self, new: &Header) -> [u8; Header::LEN] {
        let new_bytes = new.to_bytes();
        let mut bytes = self.bytes;
        for (field, _) in fields(new.version) {
            bytes[field.clone()].copy_from_slice(&new_bytes[field]);
        }
        bytes
    }
}

pub(super) fn number(bytes: &[u8; Header::LEN], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn signature(version: FormatVersion) -> [u8; at::TYPE] {
    let mut signature = [0; at::TYPE];
    // Any header of the version has it.
    if let Ok(header) = Header::new(version, ClusterSize::DEFAULT, Size::from_mib(1)) {
        signature.copy_from_slice(&header.to_bytes()[..at::TYPE]);
    }
    signature
}

/// The fields of a header that say its geometry: where they are, and their names.
fn fields(version: FormatVersion) -> [(Range<usize>, &'static str); 6] {
    let size = match version {
        FormatVersion::V1 => 4,
        FormatVersion::V2 => 8,
    };
    [
        (0..at::TYPE, "signature"),
        (at::TYPE..at::HEADS, "type"),
        (at::CLUSTER..at::ENTRIES, "cluster size"),
        (at::ENTRIES..at::SIZE, "number of entries"),
        (at::SIZE..at::SIZE + size, "size"),
        (at::FIRST_BLOCK..at::FLAGS, "first block"),
    ]
}

/// The names of the fields of the geometry in which a header differs from another one of this version.
pub(super) fn changed_fields(
    old: &[u8; Header::LEN],
    new: &[u8; Header::LEN],
    version: FormatVersion,
) -> Vec<&'static str> {
    fields(version)
        .into_iter()
        .filter(|(field, _)| old[field.clone()] != new[field.clone()])
        .map(|(_, name)| name)
        .collect()
}
