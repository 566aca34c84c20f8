//! Parameters of snapshots: [`SnapshotParam`] and [`SwitchFlag`].

use std::path::{Path, PathBuf};

use bitflags::bitflags;

use crate::Guid;

/// The snapshots a chain can have: libploop stops there, the driver at 128 deltas.
pub(crate) const MAX_SNAPSHOTS: usize = 126;

bitflags! {
    /// How a switch to a snapshot treats the deltas (`Ploop::switch_snapshot_with`, `OfflineImage::switch_snapshot_with`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct SwitchFlag: u32 {
        /// Keep the old top delta, as a snapshot under a new GUID. Without this flag it is deleted, with all that was
        /// written since the last snapshot.
        const SKIP_DESTROY = 1;
        /// Make no new top delta: the snapshot itself becomes the top, is written to from now on,
        /// and loses its GUID. The old top delta is deleted.
        const SKIP_CREATE = 2;

        // Bits that a later libploop may know are kept.
        const _ = !0;
    }
}

impl SwitchFlag {
    /// What all lines of libploop know. They ignore others.
    pub(crate) const KNOWN: SwitchFlag = SwitchFlag::SKIP_DESTROY.union(SwitchFlag::SKIP_CREATE);
}

/// What `Ploop::snapshot_with` and `OfflineImage::snapshot_with` make.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[must_use]
pub struct SnapshotParam {
    pub(crate) guid: Option<Guid>,
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub(crate) directory: Option<PathBuf>,
    pub(crate) tracking: Option<Guid>,
}

impl SnapshotParam {
    /// A snapshot with a random GUID; the new delta goes beside the first one.
    pub fn new() -> SnapshotParam {
        SnapshotParam::default()
    }

    /// The GUID of the snapshot: the same for all disks of a container, say.
    pub fn guid(mut self, guid: Guid) -> SnapshotParam {
        self.guid = Some(guid);
        self
    }

    /// The directory for the new delta.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> SnapshotParam {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Track what is written from this snapshot on, under this name, which is not that of the snapshot. What was tracked
    /// until now is stored in the delta of the snapshot: see `Ploop::tracking_bitmap`. Of a running image, the driver
    /// tracks.
    ///
    /// Since libploop 7.0.32. Needs libploop.
    pub fn tracking(mut self, id: Guid) -> SnapshotParam {
        self.tracking = Some(id);
        self
    }
}
