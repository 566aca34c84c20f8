//! The directory of a sandbox below `/run`.

use std::path::{Path, PathBuf};

/// Where a sandbox keeps what it made.
#[derive(Debug, Clone)]
pub(crate) struct State {
    dir: PathBuf,
}

impl State {
    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}
