//! Parameters of merges: [`MergeTarget`] and [`MergeParam`].

use std::path::{Path, PathBuf};

use crate::Guid;

/// Which deltas a merge merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MergeTarget {
    /// The top into its parent.
    Top,
    /// A snapshot into its parent. The result keeps the snapshot's GUID.
    Snapshot(Guid),
    /// All from the descendant `from` down to its ancestor `to`. The result keeps the GUID of `from`.
    Range {
        /// The upper end.
        from: Guid,
        /// The lower end.
        to: Guid,
    },
    /// The whole chain of the top, down to the base.
    All,
}

/// What `Ploop::merge` and `OfflineImage::merge` do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct MergeParam {
    pub(crate) target: MergeTarget,
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub(crate) new_delta: Option<PathBuf>,
}

impl MergeParam {
    /// Merges into the lower delta's file.
    pub fn new(target: MergeTarget) -> MergeParam {
        MergeParam {
            target,
            new_delta: None,
        }
    }

    /// Writes the result to a new file, and removes the old ones. The file may not exist.
    pub fn new_delta(mut self, file: impl AsRef<Path>) -> MergeParam {
        self.new_delta = Some(file.as_ref().to_owned());
        self
    }
}
