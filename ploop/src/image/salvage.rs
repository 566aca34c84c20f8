//! What could not be read of a damaged image: [`LostExtent`].

use std::fmt;
use std::path::PathBuf;

use super::chain::Level;
use super::disk::Disk;

/// How many lost parts of a disk are listed.
const MAX_LISTED: usize = 1 << 16;

/// A part of a disk that was read as zeros, because what was there is lost: see [`Disk::lost`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LostExtent {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The file in which it should be.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub file: PathBuf,
    /// Why it is lost.
    pub reason: LossReason,
}

/// Why a part of a disk is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossReason {
    /// The table leads into itself or between two clusters, or cannot be read.
    Table,
    /// The file ends before it: it was cut short, or the table is wrong.
    Missing,
    /// The system cannot read it, as of a disk with bad sectors.
    Unreadable,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LossReason::Table => "the block table is damaged",
            LossReason::Missing => "the file ends before it",
            LossReason::Unreadable => "it cannot be read",
        })
    }
}

impl Disk {
    /// The parts of the disk that a [salvaging](super::OpenOptions::salvage) reader gives zeros for, in order: those that
    /// the tables show, which are read for that, and those that could not be read so far. Empty for a sound image.
    ///
    /// At most 65 536 parts are listed; behind the last of them there may be others.
    ///
    /// ```no_run
    /// use ploop::image::{ExportOptions, OpenOptions};
    ///
    /// let disk = OpenOptions::new().salvage(true).open_image("/backup/root.hds")?;
    /// disk.export("/backup/root.raw", &ExportOptions::new(), |_| ())?;
    /// for lost in disk.lost() {
    ///     println!("{} bytes at {}: {}", lost.len, lost.offset, lost.reason);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    #[must_use]
    pub fn lost(&self) -> Vec<LostExtent> {
        let mut found: Vec<Lost> = Vec::new();
        for part in self.storages().parts() {
            let mut of_part = Vec::new();
            part.chain.lost(&mut of_part, MAX_LISTED);
            of_part.extend(part.chain.unreadable());
            found.extend(of_part.into_iter().map(|lost| Lost {
                offset: part.start + lost.offset,
                level: part.first_level + lost.level,
                ..lost
            }));
        }
        found.sort_by_key(|lost| lost.offset);
        let mut merged: Vec<Lost> = Vec::new();
        for lost in found {
            push(&mut merged, lost);
        }
        merged.truncate(MAX_LISTED);
        let file = |level| self.storages().level(level).map(Level::path);
        merged
            .into_iter()
            .map(|lost| LostExtent {
                offset: lost.offset,
                len: lost.len,
                file: file(lost.level).unwrap_or("".as_ref()).to_owned(),
                reason: lost.reason,
            })
            .collect()
    }
}

/// A part of a disk, or of a storage, that is lost in the file of a level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) level: usize,
    pub(super) reason: LossReason,
}

/// Appends a part, or makes the last one longer.
pub(super) fn push(list: &mut Vec<Lost>, lost: Lost) {
    match list.last_mut() {
        Some(last)
            if (last.level, last.reason) == (lost.level, lost.reason)
                && (last.offset..=last.offset + last.len).contains(&lost.offset) =>
        {
            let end = (last.offset + last.len).max(lost.offset + lost.len);
            last.len = end - last.offset;
        }
        _ => list.push(lost),
    }
}
