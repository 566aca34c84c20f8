//! The maintenance state of a device (`PLOOP_MNTN_*`): balloon, snapshot, tracking, discards or merge.

use rustix::io::Errno;

use super::changed_ranges::ChangedRanges;

/// `PLOOP_MNTN_*`, with the driver's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Off = 0,
    Balloon = 1,
    /// `PLOOP_MNTN_FBLOADED`: a caller was given a list of free clusters, or gave one.
    FreeBlocksLoaded = 2,
    Snapshot = 3,
    Track = 4,
    Discard = 5,
    Merge = 257,
}

/// The maintenance state of a device.
#[derive(Default)]
pub(super) struct Maintenance {
    pub(super) kind: Kind,
    /// Between `PLOOP_IOC_DISCARD_INIT` and `_FINI`, also while `kind` is another one.
    pub(super) discarding: bool,
    pub(super) track: Option<ChangedRanges>,
    pub(super) merge: MergeProgress,
}

impl Maintenance {
    pub(super) fn reset(&mut self) {
        *self = Maintenance::default();
    }
}

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum MergeProgress {
    /// There is no merge, or its thread has stopped before the end.
    #[default]
    Stopped,
    /// Its thread moves clusters.
    Moving,
    /// A cluster could not be moved. The next `PLOOP_IOC_MERGE` tries again.
    Failed(Errno),
    /// All clusters are moved.
    Complete,
}
