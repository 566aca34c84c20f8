//! What can go wrong, and how a program finds out which.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation: what was tried, on what, why it failed.
///
/// Branch on [`kind`](Error::kind); show the whole. One word large, so a `Result` stays small.
///
/// ```
/// use ploop::{Error, ErrorKind, Guid};
///
/// let error = "not a guid".parse::<Guid>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert_eq!(error.operation(), "parse GUID");
/// assert_eq!(error.code(), None); // libploop was not involved
/// ```
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
struct Inner {
    kind: ErrorKind,
    code: Option<i32>,
    operation: &'static str,
    path: Option<PathBuf>,
    offset: Option<u64>,
    message: String,
    output: Option<String>,
    source: Option<io::Error>,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if let Some(code) = self.code {
            write!(f, " [{}]", Code(code))?;
        }
        Ok(())
    }
}

/// The same fields by name, for logs and panics.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("code", &inner.code.map(Code))
            .field("operation", &inner.operation)
            .field("path", &inner.path)
            .field("offset", &inner.offset)
            .field("message", &inner.message)
            .field("output", &inner.output)
            .field("source", &inner.source)
            .finish()
    }
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<String>,
    ) -> Error {
        Error(Box::new(Inner {
            kind,
            code: None,
            operation,
            path: None,
            offset: None,
            message: message.into(),
            output: None,
            source: None,
        }))
    }

    /// A failed system call. `what` says which part of the operation it was.
    #[cfg(feature = "image")]
    pub(crate) fn io(
        operation: &'static str,
        what: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Error {
        let source = source.into();
        let mut error = Error::new(ErrorKind::from_io(&source), operation, what);
        error.0.source = Some(source);
        error
    }

    #[cfg(feature = "image")]
    pub(crate) fn with_path(mut self, path: impl Into<PathBuf>) -> Error {
        self.0.path = Some(path.into());
        self
    }

    /// The place in the file that is to blame, in bytes.
    #[cfg(feature = "image")]
    pub(crate) fn with_offset(mut self, offset: u64) -> Error {
        self.0.offset = Some(offset);
        self
    }

    /// The same failure as part of a larger operation.
    #[cfg(feature = "libploop")]
    pub(crate) fn during(mut self, operation: &'static str) -> Error {
        self.0.operation = operation;
        self
    }

    /// For codes that mean something else where they were returned.
    #[cfg(feature = "libploop")]
    pub(crate) fn meaning(mut self, kind: ErrorKind, message: impl Into<String>) -> Error {
        self.0.kind = kind;
        self.0.message = message.into();
        self
    }

    /// Says what can be done about it, behind what is wrong.
    #[cfg(feature = "libploop")]
    pub(crate) fn with_advice(mut self, advice: &str) -> Error {
        self.0.message.push_str("; ");
        self.0.message.push_str(advice);
        self
    }

    /// What the tools said that libploop ran.
    #[cfg(feature = "libploop")]
    pub(crate) fn with_output(mut self, output: Option<String>) -> Error {
        self.0.output = output;
        self
    }

    #[cfg(feature = "libploop")]
    pub(crate) fn with_code(mut self, code: i32) -> Error {
        self.0.code = Some(code);
        self
    }

    /// The class of the failure, for a program to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What libploop returned: a [`Code`], -1, or a number this crate does not know. Where this crate
    /// refused what libploop refuses as well, the code libploop has for it. `None` where no C is
    /// involved.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.0.code
    }

    /// The operation that failed, such as "create snapshot".
    #[must_use]
    pub fn operation(&self) -> &str {
        self.0.operation
    }

    /// The file, directory or device the operation was about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The offset in [`path`](Error::path) of what is wrong, in bytes, where an image file is to
    /// blame.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The reason, without operation, path and code: libploop's own words where it left any.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the tools said that libploop ran for this operation (`mke2fs`, `resize2fs`, `e2fsck`,
    /// `parted`, …), the last 64 KiB of it. `None` where none said anything.
    ///
    /// With the feature `log` each line goes to the log facade, too.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        self.0.output.as_deref()
    }

    /// Whether the image was not mounted in the first place. Callers that unmount "if mounted"
    /// treat this as success.
    #[must_use]
    pub fn is_not_mounted(&self) -> bool {
        self.kind() == ErrorKind::NotMounted
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error.kind() {
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::Corrupt => io::ErrorKind::InvalidData,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Busy => io::ErrorKind::ResourceBusy,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::Locked => io::ErrorKind::WouldBlock,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ErrorKind {
    /// A descriptor, image, directory or device does not exist.
    NotFound,
    /// What was to be made is there already; it was left as it was.
    AlreadyExists,
    /// An argument is unusable; nothing was done.
    InvalidInput,
    /// The operating system refused: most operations need root.
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
    /// A tool libploop runs (`mkfs`, `parted`, `resize2fs`, …) is missing or failed.
    Tool,
    /// No space is left on the file system, or a quota is used up.
    NoSpace,
    /// A descriptor or image is damaged.
    Corrupt,
    /// The request or the image needs something this library does not do.
    Unsupported,
    /// The operating system reported an error.
    Io,
    /// None of the others.
    Other,
}

impl ErrorKind {
    #[cfg(feature = "image")]
    fn from_io(error: &io::Error) -> ErrorKind {
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
            ErrorKind::Tool => "tool missing or failed",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Io => "input/output error",
            ErrorKind::Other => "other error",
        })
    }
}

macro_rules! codes {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Code {
            $(
                #[doc = $doc]
                #[doc = concat!(" (`SYSEXIT_", stringify!($name), "`, ", $value, ")")]
                pub const $name: Code = Code($value);
            )*

            /// Every named code.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The C name without its prefix `SYSEXIT_`, or `None` for -1 and numbers that have none.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

/// A return code of libploop.
///
/// Any number may come back; those libploop names are constants here.
///
/// ```
/// use ploop::Code;
///
/// assert_eq!(Code::LOCK.get(), 23);
/// assert_eq!(Code::LOCK.to_string(), "SYSEXIT_LOCK = 23");
/// assert_eq!(Code::from(-1).name(), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Code(i32);

codes! {
    CREAT = 1, "An image file could not be created";
    DEVICE = 2, "A device could not be opened";
    DEVIOC = 3, "The driver refused a request";
    OPEN = 4, "A file could not be opened";
    MALLOC = 5, "Memory could not be allocated";
    READ = 6, "A read failed";
    WRITE = 7, "A write failed";
    RESERVED_8 = 8, "Reserved";
    SYSFS = 9, "The driver's sysfs entries could not be read";
    RESERVED_10 = 10, "Reserved";
    PLOOPFMT = 11, "An image has an unexpected format";
    SYS = 12, "A system call or tool failed";
    PROTOCOL = 13, "The copy stream is malformed";
    LOOP = 14, "The driver's state did not converge";
    FSTAT = 15, "A file could not be examined";
    FSYNC = 16, "Data could not be brought to the disk";
    EBUSY = 17, "Something is in use";
    FLOCK = 18, "A file lock failed";
    FTRUNCATE = 19, "A file could not be truncated";
    FALLOCATE = 20, "Space could not be allocated";
    MOUNT = 21, "The file system could not be mounted";
    UMOUNT = 22, "The file system could not be unmounted";
    LOCK = 23, "The image could not be locked";
    MKFS = 24, "The file system could not be made";
    RESERVED_25 = 25, "Reserved";
    RESIZE_FS = 26, "The file system could not be resized";
    MKDIR = 27, "A directory could not be made";
    RENAME = 28, "A file could not be renamed";
    ABORT = 29, "The operation was aborted";
    RELOC = 30, "Blocks could not be relocated";
    RESERVED_31 = 31, "Reserved";
    RESERVED_32 = 32, "Reserved";
    CHANGE_GPT = 33, "The partition table could not be changed";
    RESERVED_34 = 34, "Reserved";
    UNLINK = 35, "A file could not be removed";
    MKNOD = 36, "A device node could not be made";
    PLOOPINUSE = 37, "The image is in use";
    PARAM = 38, "A parameter is invalid";
    DISKDESCR = 39, "The disk descriptor is missing or invalid";
    DEV_NOT_MOUNTED = 40, "The image is not mounted";
    FSCK = 41, "The file system check found errors it did not mend";
    RESERVED_42 = 42, "Reserved";
    NOSNAP = 43, "The snapshot does not exist";
    NOCBT = 44, "Changed-block tracking is not active (libploop 7 and later)";
    CRYPT = 45, "Encryption failed (libploop 7 and later)";
    UMOUNT_BUSY = 46, "The file system is busy and cannot be unmounted (libploop 7 and later)";
}

impl Code {
    /// The number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }

    /// The kind an error with this code has where nothing more is known. What libploop returns for
    /// several failures alike is [`ErrorKind::Other`].
    #[must_use]
    pub const fn kind(self) -> ErrorKind {
        match self {
            Code::DEVICE | Code::DEVIOC | Code::SYSFS => ErrorKind::NoDriver,
            Code::CREAT
            | Code::OPEN
            | Code::READ
            | Code::WRITE
            | Code::FSTAT
            | Code::FSYNC
            | Code::FLOCK
            | Code::FTRUNCATE
            | Code::FALLOCATE
            | Code::MKDIR
            | Code::RENAME
            | Code::UNLINK
            | Code::MKNOD => ErrorKind::Io,
            Code::PLOOPFMT | Code::DISKDESCR | Code::FSCK | Code::PROTOCOL => ErrorKind::Corrupt,
            Code::EBUSY | Code::PLOOPINUSE | Code::UMOUNT | Code::UMOUNT_BUSY => ErrorKind::Busy,
            Code::LOCK => ErrorKind::Locked,
            Code::MKFS | Code::RESIZE_FS | Code::CHANGE_GPT => ErrorKind::Tool,
            Code::PARAM => ErrorKind::InvalidInput,
            Code::DEV_NOT_MOUNTED => ErrorKind::NotMounted,
            Code::NOSNAP => ErrorKind::NoSnapshot,
            Code::NOCBT | Code::CRYPT => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        }
    }
}

impl From<i32> for Code {
    fn from(code: i32) -> Code {
        Code(code)
    }
}

impl From<Code> for i32 {
    fn from(code: Code) -> i32 {
        code.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "SYSEXIT_{name} = {}", self.0),
            None => write!(f, "libploop returned {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = assert!(size_of::<Error>() == size_of::<usize>());

    fn is_plain<T: Send + Sync + 'static>() {}

    #[test]
    fn error_crosses_threads() {
        is_plain::<Error>();
    }

    #[test]
    fn every_code_has_its_number_and_name() {
        let numbers: Vec<i32> = Code::ALL.iter().map(|code| code.get()).collect();
        assert_eq!(numbers, (1..=46).collect::<Vec<_>>());
        for code in Code::ALL {
            let name = code.name().unwrap();
            assert_eq!(code.to_string(), format!("SYSEXIT_{name} = {}", code.get()));
        }
    }

    #[test]
    fn unknown_codes_are_carried_along() {
        for code in [-1, 0, 47, 255, i32::MIN, i32::MAX] {
            assert_eq!(Code(code).name(), None);
            assert_eq!(Code(code).kind(), ErrorKind::Other);
            assert_eq!(Code(code).to_string(), format!("libploop returned {code}"));
        }
    }
}
