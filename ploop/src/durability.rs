//! Whether what was done survives a power cut.
//!
//! libploop brings a new delta to the disk before a descriptor names it, but not the descriptor in its
//! place: after a power cut some seconds later, a snapshot, a switch or a deletion that had succeeded
//! may be undone. So each change ends by bringing to the disk what it has changed: deltas, descriptor,
//! and their directories (`fsync`, which is all that works on old kernels, too). Whatever returned `Ok`
//! is there after a power cut; what had not returned is as before or done, and the next operation on
//! the image, a mount too, finishes it or takes it back.
//!
//! That costs two to four `fsync`s a change: some milliseconds on a disk with a write cache, a few
//! hundred microseconds on one with a cache that needs no power. A program that makes many changes at
//! once may [leave them out](set_sync) and call `syncfs` or `sync` itself in the end.

use std::sync::atomic::{AtomicBool, Ordering};

static SYNC: AtomicBool = AtomicBool::new(true);

/// Whether changes are brought to the disk before they return. They are unless set otherwise.
#[must_use]
pub fn sync() -> bool {
    SYNC.load(Ordering::Relaxed)
}

/// Sets whether changes are brought to the disk before they return, for the whole process.
///
/// Without it a power cut may undo what succeeded some seconds ago. Images stay whole all the same.
///
/// ```
/// ploop::durability::set_sync(false);
/// // … a hundred changes …
/// ploop::durability::set_sync(true);
/// # assert!(ploop::durability::sync());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_sync(sync: bool) {
    SYNC.store(sync, Ordering::Relaxed);
}
