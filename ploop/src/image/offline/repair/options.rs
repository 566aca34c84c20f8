//! [`RepairOptions`]: what a repair may do.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{ClusterSize, Error, ErrorKind, FormatVersion, Result, Size};

/// What a repair does only if it is asked to, because something is lost or the space is needed, or because more than one
/// answer may be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RepairChoice {
    /// Clears entries of a table that lead to no cluster of the file: such a cluster of the disk reads as it is in the deltas below, or as zeros. What
    /// is there of a cluster at the end of a file that was cut short stays, with zeros for the rest.
    ClearEntries,
    /// Gives each entry but the first that leads to the same cluster a copy of it. Both read as before; which of them is
    /// the right one is not known.
    CopyShared,
    /// Makes a header anew whose signature is gone, by the descriptor, the other deltas and the table.
    RebuildHeaders,
    /// Drops format extensions (the dirty bitmaps of backup programs) that are damaged, and those of deltas whose table
    /// has to be changed: the next backup is a full one.
    DropExtensions,
    /// Removes snapshots from the descriptor whose delta is missing, as long as nothing stands upon them.
    DropMissing,
    /// Makes a raw base that is too short as long as the disk, with zeros: one below a snapshot as long as the disk was then.
    PadRaw,
    /// Fills the holes of a file that was copied sparsely. Takes as much space as the holes are long.
    FillHoles,
    /// Removes orphans beside the descriptor: deltas and temporary files that no descriptor there names.
    RemoveOrphans,
}

impl RepairChoice {
    /// All choices.
    pub const ALL: [RepairChoice; 8] = [
        RepairChoice::ClearEntries,
        RepairChoice::CopyShared,
        RepairChoice::RebuildHeaders,
        RepairChoice::DropExtensions,
        RepairChoice::DropMissing,
        RepairChoice::PadRaw,
        RepairChoice::FillHoles,
        RepairChoice::RemoveOrphans,
    ];

    /// Its name, as an option of the command `ploop-image repair` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RepairChoice::ClearEntries => "clear-entries",
            RepairChoice::CopyShared => "copy-shared",
            RepairChoice::RebuildHeaders => "rebuild-headers",
            RepairChoice::DropExtensions => "drop-extensions",
            RepairChoice::DropMissing => "drop-missing",
            RepairChoice::PadRaw => "pad-raw",
            RepairChoice::FillHoles => "fill-holes",
            RepairChoice::RemoveOrphans => "remove-orphans",
        }
    }
}

impl fmt::Display for RepairChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The format version and the cluster size of all deltas of an image, and the size of its disk: one of those between which
/// a repair cannot decide. As text: `v2,1MiB,131072s`.
///
/// ```
/// use ploop::image::RepairGeometry;
///
/// let geometry: RepairGeometry = "v2,1M,64M".parse()?;
/// assert_eq!(geometry.to_string(), "v2,1MiB,131072s");
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairGeometry {
    /// The format version of the headers.
    pub version: FormatVersion,
    /// The size of a cluster.
    pub cluster: ClusterSize,
    /// The size of the disk, as of the top.
    pub size: Size,
}

impl RepairGeometry {
    /// All three.
    pub fn new(version: FormatVersion, cluster: ClusterSize, size: Size) -> RepairGeometry {
        RepairGeometry {
            version,
            cluster,
            size,
        }
    }
}

impl fmt::Display for RepairGeometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.cluster.to_string().replace(' ', "");
        write!(f, "{},{cluster},{}s", self.version, self.size.sectors())
    }
}

impl FromStr for RepairGeometry {
    type Err = Error;

    /// Reads format, cluster size and size of the disk, with commas between them: `v2,1M,64G`.
    fn from_str(text: &str) -> Result<RepairGeometry> {
        let refuse = || {
            Error::new(
                ErrorKind::InvalidInput,
                "parse geometry",
                format!(
                    "{text:?} is no geometry: write format, cluster size and size of the disk, as in \"v2,1M,64G\""
                ),
            )
        };
        let mut parts = text.split(',');
        let mut part = || parts.next().ok_or_else(refuse);
        let version = part()?.trim().parse()?;
        let cluster: Size = part()?.parse()?;
        let size = part()?.parse()?;
        if parts.next().is_some() {
            return Err(refuse());
        }
        let cluster = ClusterSize::from_bytes(cluster.bytes())?;
        Ok(RepairGeometry::new(version, cluster, size))
    }
}

/// What [`OfflineImage::repair`](super::super::OfflineImage::repair) does.
///
/// ```
/// use ploop::image::{RepairChoice, RepairOptions};
///
/// let options = RepairOptions::new()
///     .allow(RepairChoice::CopyShared)
///     .undo("/backup/101.undo");
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RepairOptions {
    dry_run: bool,
    allowed: Vec<RepairChoice>,
    geometry: Option<RepairGeometry>,
    undo: Option<PathBuf>,
}

impl RepairOptions {
    /// Repairs what has one right answer.
    pub fn new() -> RepairOptions {
        RepairOptions::default()
    }

    /// Whether only to find out what would be done (default: no).
    pub fn dry_run(mut self, dry_run: bool) -> RepairOptions {
        self.dry_run = dry_run;
        self
    }

    /// Allows something that is not done otherwise (default: nothing).
    pub fn allow(mut self, choice: RepairChoice) -> RepairOptions {
        if !self.allows(choice) {
            self.allowed.push(choice);
        }
        self
    }

    /// The geometry that is right, where the report of a repair has named more than one that is possible (default: what
    /// all else says). Headers and descriptor get it, and nothing else is changed in that repair. With an
    /// [undo file](RepairOptions::undo), the next one can be tried if the disk is not right then.
    pub fn geometry(mut self, geometry: RepairGeometry) -> RepairOptions {
        self.geometry = Some(geometry);
        self
    }

    /// A new file for what is overwritten, cut off and removed (default: none). It is complete and synced before
    /// anything is changed, so a repair that was killed can be undone as well. It is as large as what it holds: mostly
    /// some kilobytes, but lost clusters and orphans are in it, too. Not made where nothing is to be changed.
    pub fn undo(mut self, file: impl Into<PathBuf>) -> RepairOptions {
        self.undo = Some(file.into());
        self
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    pub(super) fn allows(&self, choice: RepairChoice) -> bool {
        self.allowed.contains(&choice)
    }

    pub(super) fn chosen_geometry(&self) -> Option<RepairGeometry> {
        self.geometry
    }

    pub(super) fn undo_file(&self) -> Option<&PathBuf> {
        self.undo.as_ref()
    }
}
