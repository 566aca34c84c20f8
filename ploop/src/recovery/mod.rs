//! What must be true of an image after an operation, however that ended.
//!
//! * [`interrupted`]: an operation that was killed, or cut short by a power failure, is finished or
//!   taken back by the next one.
//! * [`detached`]: the same, where no device is left to say what it has done.
//! * [`creation`]: a creation that was cut short is not in the way of the next.
//! * [`removal`]: a delta that the kernel kept is named by the descriptor again.
//! * [`sync`]: what succeeded survives a power cut.

pub(crate) mod creation;
mod detached;
mod interrupted;
mod removal;
mod sync;

pub(crate) use removal::Removal;
pub(crate) use sync::{Unsynced, sync_directories, sync_files};

use std::path::Path;

use crate::Result;
use crate::ffi::Turn;
use crate::sysfs::Device;

/// Does the same for an operation that libploop has not done to its end (A9): a merge leaves its mark.
/// The lock is held.
pub(crate) fn after_failure(operation: &'static str, descriptor: &Path) {
    // What cannot be mended now, the next operation tries again, and reports.
    let _ = interrupted::finish(operation, descriptor);
}

/// Finishes or takes back what an earlier operation on the image left half done. The first thing of
/// every change, a mount and an unmount included.
pub(crate) fn finish(turn: &mut Turn<'_>) -> Result<Found> {
    let found = interrupted::finish(turn.operation(), turn.path())?;
    if found.mended {
        turn.forget_handle();
    }
    Ok(found)
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Whether there was something to be mended: the descriptor may be another one.
    pub(crate) mended: bool,
    /// All devices, as they are then.
    pub(crate) devices: Vec<Device>,
}
