//! [`RepairReport`]: what a repair has done, finding by finding.

use std::fmt;
use std::path::{Path, PathBuf};

use super::options::RepairChoice;
use crate::image::report::{Issue, Severity};

/// What [`OfflineImage::repair`](super::super::OfflineImage::repair) has done, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct RepairReport {
    /// Whether nothing was changed, and this is what would be done.
    pub dry_run: bool,
    /// Each finding of the check but those of [`Severity::Note`] that need no repair, and what came of it.
    pub items: Vec<RepairItem>,
    /// Whether an operation that was interrupted was finished or taken back first, as by every change; after a dry run,
    /// whether that would be tried.
    pub recovered: bool,
    /// Whether the image can be read and used now: [`Report::is_sound`](crate::image::Report::is_sound).
    pub is_sound: bool,
}

impl RepairReport {
    /// Whether nothing is left: the image is sound, and every finding is repaired. After a dry run, whether every
    /// finding would be repaired.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        (self.is_sound || self.dry_run) && self.items.iter().all(RepairItem::is_repaired)
    }

    /// The choices that would repair more.
    #[must_use]
    pub fn choices(&self) -> Vec<RepairChoice> {
        let mut choices: Vec<RepairChoice> = self
            .items
            .iter()
            .filter_map(|item| match item.outcome {
                RepairOutcome::NeedsChoice { choice, .. } => Some(choice),
                _ => None,
            })
            .collect();
        choices.sort_unstable();
        choices.dedup();
        choices
    }
}

/// A finding, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RepairItem {
    /// How bad it is, or was.
    pub severity: Severity,
    /// What it is, for a program.
    pub issue: Issue,
    /// The file it is about.
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub file: Option<PathBuf>,
    /// The offset of what is wrong in that file, in bytes.
    pub offset: Option<u64>,
    /// What it is, in words.
    pub message: String,
    /// What came of it.
    pub outcome: RepairOutcome,
}

impl RepairItem {
    /// Whether it is repaired, or would be.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        matches!(self.outcome, RepairOutcome::Repaired { .. })
    }
}

/// What came of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RepairOutcome {
    /// It is repaired, or would be: how.
    Repaired {
        /// What was done, in words.
        how: String,
    },
    /// It can be repaired if that is [allowed](super::RepairOptions::allow).
    NeedsChoice {
        /// What to allow.
        choice: RepairChoice,
        /// What that would do, in words.
        effect: String,
    },
    /// It cannot be repaired here.
    Left {
        /// Why, and what can be done about it.
        reason: String,
    },
}

impl RepairOutcome {
    pub(super) fn repaired(how: impl Into<String>) -> RepairOutcome {
        RepairOutcome::Repaired { how: how.into() }
    }

    pub(super) fn left(reason: impl Into<String>) -> RepairOutcome {
        RepairOutcome::Left {
            reason: reason.into(),
        }
    }

    pub(super) fn choice(choice: RepairChoice, effect: impl Into<String>) -> RepairOutcome {
        RepairOutcome::NeedsChoice {
            choice,
            effect: effect.into(),
        }
    }
}

impl fmt::Display for RepairOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepairOutcome::Repaired { how } => write!(f, "repaired: {how}"),
            RepairOutcome::NeedsChoice { choice, effect } => {
                write!(f, "needs the choice {choice}: {effect}")
            }
            RepairOutcome::Left { reason } => write!(f, "left: {reason}"),
        }
    }
}

/// What is decided about the findings of one kind in one file; of all its offsets where none is given.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) severity: Severity,
    pub(super) issue: Issue,
    pub(super) file: PathBuf,
    pub(super) offset: Option<u64>,
    /// For a finding that the check could not have, because it could not read so far.
    pub(super) message: String,
    pub(super) outcome: RepairOutcome,
}

/// All decisions of a repair.
#[derive(Debug, Default)]
pub(super) struct Decisions(pub(super) Vec<Decision>);

impl Decisions {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        issue: Issue,
        file: &Path,
        offset: Option<u64>,
        message: impl Into<String>,
        outcome: RepairOutcome,
    ) {
        self.0.push(Decision {
            severity,
            issue,
            file: file.to_owned(),
            offset,
            message: message.into(),
            outcome,
        });
    }
}
