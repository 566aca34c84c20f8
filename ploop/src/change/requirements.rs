//! What operations require of an image before they change it: snapshots that are there, deltas that are sound and fit
//! together, a mount table that libploop can read.

use std::path::Path;

use bitflags::Flags;

use super::Change;
use crate::ffi::{LINE, descriptor_form};
use crate::image::descriptor::merge;
use crate::image::other_image::{require_no_other_image_beside, require_of_no_other_image};
use crate::image::sound::{
    SoundDelta, require_header_of, require_no_child_of_top, require_no_extension, require_sound,
};
use crate::image::{Header, Image};
use crate::tools::{require_crypt_helper, require_tools};
use crate::{Code, Error, ErrorKind, FormatVersion, Guid, Result, mount_table, paths};

impl Change<'_> {
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
    pub(super) fn require_unused_temporary(&self) -> Result<()> {
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
    pub(super) fn require_temporary_mergeable(&self) -> Result<()> {
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
