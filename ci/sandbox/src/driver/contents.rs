//! What the disk of a device holds.

use super::discards::Discards;
use super::stack::Stack;

/// What the disk holds, and what is to become of parts of it.
pub(super) struct Contents {
    pub(super) disk: Stack,
    pub(super) discards: Discards,
}

impl Contents {
    /// None where there is nothing to write to.
    pub(super) fn write(&mut self, data: &[u8], offset: u64) -> Option<ploop::Result<()>> {
        let Contents { disk, discards } = self;
        let Stack::Writable(disk) = disk else {
            return None;
        };
        let len = data.len() as u64;
        let written = discards
            .take_free(disk, offset, len)
            .and_then(|()| disk.write_at(data, offset));
        if written.is_ok() {
            discards.written(offset, len);
        }
        Some(written)
    }
}
