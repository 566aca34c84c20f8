//! What a device is busy with, and what it must not do meanwhile.

use rustix::io::Errno;

use super::tracked::Track;

/// What a device is busy with; the numbers are the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Off = 0,
    Balloon = 1,
    FreeBlocksLoaded = 2,
    Snapshot = 3,
    Track = 4,
    Discard = 5,
    Merge = 257,
}

#[derive(Default)]
pub(super) struct Maintenance {
    pub(super) kind: Kind,
    /// Discards are asked for, whatever is being done about those there are.
    pub(super) discarding: bool,
    pub(super) track: Option<Track>,
    /// What a merge has come to.
    pub(super) moved: Moved,
}

impl Maintenance {
    pub(super) fn reset(&mut self) {
        *self = Maintenance::default();
    }
}

/// How far the clusters of a merge are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Moved {
    /// There is no merge, or what moved them has stopped before the end.
    #[default]
    Not,
    /// They are being moved.
    Moving,
    /// They could not be moved; the next MERGE tries again.
    Failed(Errno),
    All,
}
