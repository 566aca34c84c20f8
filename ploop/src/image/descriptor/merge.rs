//! Which deltas a merge merges.

use super::{Descriptor, Image};
use crate::{Error, ErrorKind, Guid, MergeTarget, Result};

impl Descriptor {
    /// The deltas that a merge merges, the lowest first: two at least, and none but the highest has other children.
    pub(crate) fn deltas_to_merge(
        &self,
        operation: &'static str,
        target: MergeTarget,
    ) -> Result<Vec<&Image>> {
        let refused = |kind, why: String| Error::new(kind, operation, why);
        let require_snapshot = |guid: Guid| match self.snapshot(guid) {
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
        let top = self.top;
        let (from, to) = match target {
            MergeTarget::Top => (top, parent_of(top)?),
            MergeTarget::Snapshot(guid) => (guid, parent_of(guid)?),
            MergeTarget::Range { from, to } => (from, to),
            MergeTarget::All => match self.base() {
                Some(base) if base.guid == top => {
                    return Err(refused(
                        ErrorKind::InvalidInput,
                        "the image has no snapshots, so there is nothing to merge".to_owned(),
                    ));
                }
                Some(base) => (top, base.guid),
                None => {
                    let why = "the descriptor names no base".to_owned();
                    return Err(refused(ErrorKind::Corrupt, why));
                }
            },
        };
        require_snapshot(from)?;
        require_snapshot(to)?;
        let mut chain = self.chain(from);
        let at = chain.iter().position(|image| image.guid == to);
        let Some(at) = at.filter(|_| from != to) else {
            let why =
                format!("{to} is no ancestor of {from}, so there is nothing between them to merge");
            return Err(refused(ErrorKind::InvalidInput, why));
        };
        let merged = chain.split_off(at);
        for lower in &merged[..merged.len() - 1] {
            let (guid, children) = (lower.guid, self.children(lower.guid).count());
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
