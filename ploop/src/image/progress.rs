//! [`Progress`]: how far a copy is.

use crate::Size;

/// How far an export, an import, a merge or the like is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Progress {
    /// What has been copied of [`total`](Progress::total).
    pub copied: Size,
    /// What is allocated in the image, and so has to be read.
    pub total: Size,
}

/// Adds up what is copied, and tells it: nothing yet at once, and the sum with each call.
pub(super) fn counted(total: Size, mut progress: impl FnMut(Progress)) -> impl FnMut(u64) {
    let mut copied = 0;
    let mut report = move |bytes| {
        copied += bytes;
        progress(Progress {
            copied: Size::from_bytes(copied),
            total,
        });
    };
    report(0);
    report
}
