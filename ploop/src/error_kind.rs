//! [`ErrorKind`]: the class of an error, for programs that branch on it.

use std::fmt;
#[cfg(feature = "image")]
use std::io;

/// The class of an [`Error`](crate::Error).
///
/// With `serde`, a kind that a later version has added is read as [`Other`](ErrorKind::Other).
///
/// ```
/// use ploop::{ErrorKind, Size};
///
/// let error = "much".parse::<Size>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert_eq!(error.kind().to_string(), "invalid input");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// A descriptor, image, directory or device does not exist.
    NotFound,
    /// What was to be made already exists. It was left as it was.
    AlreadyExists,
    /// An argument is unusable. Nothing was done, unless the operation says otherwise.
    InvalidInput,
    /// The operating system refused: most operations need root. Or others than root can write to the image: see
    /// `ploop::trust`.
    PermissionDenied,
    /// The image is not mounted.
    NotMounted,
    /// The image, device or file system is in use.
    Busy,
    /// Somebody else held the image's lock for longer than the lock timeout.
    Locked,
    /// The ploop kernel driver is not there, or refused a request.
    NoDriver,
    /// The snapshot is not part of the image.
    NoSnapshot,
    /// Nobody tracks changes of the image, or of this delta.
    NotTracked,
    /// A tool libploop runs (`mkfs`, `parted`, `resize2fs`, …) is missing or failed.
    Tool,
    /// No space is left on the file system, or a quota is used up.
    NoSpace,
    /// A descriptor or image is damaged.
    Corrupt,
    /// The request or the image needs something this library does not do.
    Unsupported,
    /// The caller has cancelled the operation.
    Cancelled,
    /// The operating system reported an error.
    Io,
    /// None of the others.
    #[cfg_attr(feature = "serde", serde(other))]
    Other,
}

impl ErrorKind {
    #[cfg(feature = "image")]
    pub(crate) fn from_io(error: &io::Error) -> ErrorKind {
        match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::PermissionDenied
            }
            io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ErrorKind::NotFound => "not found",
            ErrorKind::AlreadyExists => "already exists",
            ErrorKind::InvalidInput => "invalid input",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::NotMounted => "not mounted",
            ErrorKind::Busy => "busy",
            ErrorKind::Locked => "locked",
            ErrorKind::NoDriver => "no ploop driver",
            ErrorKind::NoSnapshot => "no such snapshot",
            ErrorKind::NotTracked => "changes not tracked",
            ErrorKind::Tool => "tool missing or failed",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Io => "input/output error",
            ErrorKind::Other => "other error",
        })
    }
}
