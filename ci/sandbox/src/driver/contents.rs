//! The virtual disk of a device and the discards that are under way.

use super::discard_queue::DiscardQueue;
use super::stack::Stack;

/// The virtual disk of a device and the discards that are under way.
pub(super) struct Contents {
    pub(super) disk: Stack,
    pub(super) discards: DiscardQueue,
}

impl Contents {
    /// None where the disk cannot be written to.
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
