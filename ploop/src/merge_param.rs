//! Parameters of merges: [`MergeTarget`] and [`MergeParam`].

use std::path::{Path, PathBuf};

use crate::image::descriptor::{Descriptor, Image};
use crate::{Error, ErrorKind, Guid, Result};

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

impl MergeTarget {
    /// The deltas that are merged, the lowest first: two at least, and none but the highest has other children.
    pub(crate) fn deltas<'d>(
        self,
        operation: &'static str,
        descriptor: &'d Descriptor,
    ) -> Result<Vec<&'d Image>> {
        let refused = |kind, why: String| Error::new(kind, operation, why);
        let require_snapshot = |guid: Guid| match descriptor.snapshot(guid) {
            Some(snapshot) => Ok(snapshot),
            None => Err(no_snapshot(operation, guid)),
        };
        let parent_of = |guid: Guid| match require_snapshot(guid)?.parent {
            Guid::NONE => Err(refused(
                ErrorKind::InvalidInput,
                format!("{guid} is the base and has no parent to be merged into"),
            )),
            parent => Ok(parent),
        };
        let top = descriptor.top;
        let (from, to) = match self {
            MergeTarget::Top => (top, parent_of(top)?),
            MergeTarget::Snapshot(guid) => (guid, parent_of(guid)?),
            MergeTarget::Range { from, to } => (from, to),
            MergeTarget::All => match descriptor.base() {
                Some(base) => (top, base.guid),
                None => {
                    let why = "the descriptor names no base".to_owned();
                    return Err(refused(ErrorKind::Corrupt, why));
                }
            },
        };
        require_snapshot(from)?;
        require_snapshot(to)?;
        let mut chain = descriptor.chain(from);
        let at = chain.iter().position(|image| image.guid == to);
        let Some(at) = at.filter(|_| from != to) else {
            let why =
                format!("{to} is no ancestor of {from}, so there is nothing between them to merge");
            return Err(refused(ErrorKind::InvalidInput, why));
        };
        let merged = chain.split_off(at);
        for lower in &merged[..merged.len() - 1] {
            let (guid, children) = (lower.guid, descriptor.children(lower.guid).count());
            if children > 1 {
                let why = format!(
                    "{guid} has {children} children, and merging one would change the others"
                );
                return Err(refused(ErrorKind::InvalidInput, why));
            }
        }
        Ok(merged)
    }
}

/// The error for a GUID that the image does not have.
pub(crate) fn no_snapshot(operation: &'static str, guid: Guid) -> Error {
    let why = format!("the image has no snapshot {guid}");
    Error::new(ErrorKind::NoSnapshot, operation, why)
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
