//! What a check found.

use std::fmt;
use std::path::PathBuf;

use crate::{Guid, Size};

/// What [`check`](super::check) or [`check_image`](super::check_image) found.
///
/// ```
/// use ploop::image::{self, Issue, Severity};
///
/// let report = image::check("/none/DiskDescriptor.xml");
/// assert!(!report.is_sound() && !report.is_clean());
/// assert_eq!(report.worst(), Some(Severity::Error));
/// assert!(report.has(Issue::Descriptor));
/// println!("{report}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct Report {
    /// What is wrong or worth knowing, file by file.
    pub findings: Vec<Finding>,
    /// The delta files, in the order of the descriptor; those that cannot be read are missing. Behind them are those of
    /// the images in other directories upon which a volume stands.
    pub deltas: Vec<DeltaReport>,
    /// The snapshots and the top, in the order of the descriptor.
    pub snapshots: Vec<SnapshotReport>,
    /// Files that look like deltas of this image and are named by no descriptor beside them.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub orphans: Vec<PathBuf>,
    /// The partitions of the disk in its present state, as far as their table can be read.
    pub partitions: Vec<super::Partition>,
}

impl Report {
    /// Whether the image can be read and used: there is no finding of [`Severity::Error`].
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.worst() < Some(Severity::Error)
    }

    /// Whether nothing at all is wrong: there is no finding but of [`Severity::Note`].
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.worst() < Some(Severity::Warning)
    }

    /// The highest severity of all findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether there is a finding of this kind.
    #[must_use]
    pub fn has(&self, issue: Issue) -> bool {
        self.findings.iter().any(|finding| finding.issue == issue)
    }
}

/// How bad a [`Finding`] is. There will be no more of them: the exit code of `ploop-image check` tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Reads as it should, and wastes space or trips libploop or the driver.
    Warning,
    /// Cannot be read, or not for certain.
    Error,
}

/// One thing that is wrong or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
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
}

/// The kind of a [`Finding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Issue {
    /// The descriptor cannot be read or contradicts itself. The deltas beside it were checked, each by itself.
    Descriptor,
    /// The descriptor has another top GUID than libploop gives it today.
    OldTop,
    /// The top is the parent of a snapshot, which changes with each write to the top.
    TopWithChild,
    /// The descriptor lacks the geometry, and libploop crashes when it writes one.
    Geometry,
    /// The image is encrypted.
    Encrypted,
    /// Two entries of the descriptor name the same file.
    SameFile,
    /// A delta file is missing.
    Missing,
    /// A delta file or directory cannot be read.
    Unreadable,
    /// A header cannot be true.
    Header,
    /// A delta is marked as in use.
    InUse,
    /// A delta has something this library does not read.
    Unsupported,
    /// A delta has a format extension, with the dirty bitmaps of a backup program. It is only in the way of
    /// changes, unless it is damaged.
    Extension,
    /// A delta has a layout of the first versions of Parallels. It can be read; libploop and the driver do not know it.
    OldLayout,
    /// A delta has other clusters than the descriptor says.
    ClusterSize,
    /// The deltas are of different format versions.
    MixedVersions,
    /// Descriptor, header and file disagree about the size.
    Size,
    /// An entry of the table leads out of the file, into the table or between two clusters.
    BadEntry,
    /// The header says wrongly that no cluster is allocated, or fails to say so. libploop mends that
    /// when it checks the image.
    EmptyFlag,
    /// Two entries of the table lead to the same cluster.
    SharedCluster,
    /// There are entries behind those of the last cluster of the disk.
    EntryBeyondDisk,
    /// Clusters of the file are used by no entry. Only a note where they are holes, and take no space.
    LostClusters,
    /// The file does not end with a whole cluster.
    UnalignedTail,
    /// Parts of the file are holes, as in a sparse copy. On ext4 libploop refuses such a file, or
    /// fills the holes; the driver cannot write to them. Only a note where no cluster of the holes is in use: libploop 7
    /// leaves such files.
    Sparse,
    /// A file of the image's family is named by no descriptor.
    Orphan,
    /// A snapshot is temporary: libploop removes it when it can.
    Temporary,
    /// The partition table is damaged, or leads out of the disk. The image itself is none the worse for it.
    Partitions,
    /// The delta that was checked by itself is one of several that make up a disk, by a descriptor beside it.
    PartOfImage,
}

/// A delta file as a [`Report`] has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DeltaReport {
    /// The snapshot or top whose data it holds; `None` for a file checked by itself.
    pub guid: Option<Guid>,
    /// The part of a split disk to which it belongs: 0 for all others.
    #[cfg_attr(feature = "serde", serde(default))]
    pub storage: usize,
    /// The file.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub file: PathBuf,
    /// Its header; `None` for a raw base, and where the layout is none of libploop's.
    pub header: Option<super::Header>,
    /// How it is laid out; `None` for a raw base.
    #[cfg_attr(feature = "serde", serde(default))]
    pub layout: Option<super::Layout>,
    /// The length of the file.
    pub len: Size,
    /// What is allocated in it: the clusters its table has, or the whole of a raw base.
    pub allocated: Size,
    /// What the file has beyond that and the table, for nothing. Holes do not count.
    pub lost: Size,
}

/// A snapshot, or the top, as a [`Report`] has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotReport {
    /// Its name.
    pub guid: Guid,
    /// The snapshot below, [`Guid::NONE`] for the base.
    pub parent: Guid,
    /// Whether libploop removes it as soon as it can.
    pub temporary: bool,
    /// How many there are directly above.
    pub children: usize,
    /// The data that deleting it would copy: that of its child, if it has exactly one, which is
    /// merged down. One without children is unlinked; one with several stays until all but one are
    /// gone. `None` where the child cannot be read.
    pub delete_copies: Option<Size>,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(offset) = self.offset {
                write!(f, " at offset {offset}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

/// A line for each delta, snapshot and finding, and one for the result.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for delta in &self.deltas {
            write!(f, "{}: ", delta.file.display())?;
            match &delta.layout {
                Some(layout) => write!(
                    f,
                    "{}, clusters of {}, disk of {}",
                    layout.version, layout.cluster, layout.size
                )?,
                None => f.write_str("plain")?,
            }
            writeln!(f, ", {} allocated", delta.allocated)?;
        }
        for shot in &self.snapshots {
            if let (Some(copies), 1..) = (shot.delete_copies, shot.children) {
                writeln!(f, "{}: deleting it would copy {copies}", shot.guid)?;
            }
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        f.write_str(match self.worst() {
            Some(Severity::Error) => "The image is damaged.",
            Some(Severity::Warning) => "The image is sound, with reservations.",
            Some(Severity::Note) | None => "The image is sound.",
        })
    }
}
