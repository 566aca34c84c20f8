//! [`Error`]: a failed operation, as a sentence for people and a kind for programs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Code, ErrorKind};

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation: what was tried, on what, why it failed.
///
/// Branch on [`kind`](Error::kind). Show the whole: [`Display`](fmt::Display) is one sentence with the operation,
/// the files, the reason (the system's included), what to do about it, and libploop's code. [`Debug`] is that
/// sentence and below it what the tools said, since it is what `main` and `unwrap` print; `{:#?}` shows the fields.
///
/// The sentence contains the system's reason, so [`source`](std::error::Error::source) is only what lies behind
/// that, which is nothing most of the time: who prints the whole chain sees each reason once.
/// [`raw_os_error`](Error::raw_os_error) is the system's number.
///
/// One word large, so a `Result` stays small.
///
/// ```
/// use std::error::Error as _;
/// use ploop::{ErrorKind, image::Descriptor};
///
/// let error = Descriptor::open("/none/DiskDescriptor.xml").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert_eq!(error.operation(), "read descriptor");
/// assert_eq!(error.path(), Some("/none/DiskDescriptor.xml".as_ref()));
/// assert_eq!(error.message(), "the file cannot be found");
/// assert_eq!(error.raw_os_error(), Some(2));
/// assert_eq!(error.code(), None); // libploop was not involved
/// assert_eq!(
///     error.to_string(),
///     "cannot read descriptor /none/DiskDescriptor.xml: the file cannot be found: \
///      No such file or directory (os error 2)",
/// );
/// assert!(error.source().is_none()); // the sentence has it all
/// ```
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    code: Option<i32>,
    /// Ends with ` of` where that leads to the file.
    operation: &'static str,
    /// The image, where another file is to blame.
    image: Option<PathBuf>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    other_path: Option<PathBuf>,
    message: String,
    os: Option<io::Error>,
    advice: Option<&'static str>,
    output: Option<String>,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(_) => write!(f, "cannot {}", self.operation)?,
            None => write!(f, "cannot {}", self.operation_alone())?,
        }
        if let Some(image) = &self.image {
            write!(f, " {}:", image.display())?;
        }
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        if let Some(other) = self.other_path.as_ref().filter(|_| self.image.is_none()) {
            write!(f, " (with {})", other.display())?;
        }
        write!(f, ": {}", self.reason())?;
        if let Some(advice) = self.advice {
            write!(f, "; {advice}")?;
        }
        if let Some(code) = self.code {
            write!(f, " [{}]", Code::from(code))?;
        }
        Ok(())
    }
}

impl Inner {
    fn operation_alone(&self) -> &'static str {
        let operation = self.operation;
        operation.strip_suffix(" of").unwrap_or(operation)
    }

    /// With the system's.
    fn reason(&self) -> String {
        match &self.os {
            Some(os) => format!("{}: {os}", self.message),
            None => self.message.clone(),
        }
    }
}

impl std::error::Error for Inner {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.os.as_ref()?.source()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if f.alternate() {
            return f
                .debug_struct("Error")
                .field("kind", &inner.kind)
                .field("code", &inner.code.map(Code::from))
                .field("operation", &inner.operation)
                .field("image", &inner.image)
                .field("path", &inner.path)
                .field("offset", &inner.offset)
                .field("other_path", &inner.other_path)
                .field("message", &inner.message)
                .field("os", &inner.os)
                .field("advice", &inner.advice)
                .field("output", &inner.output)
                .finish();
        }
        write!(f, "{inner}")?;
        for line in inner.output.iter().flat_map(|output| output.lines()) {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// What to do where the driver is missing.
#[cfg(feature = "libploop")]
pub(crate) const LOAD_DRIVER: &str = "load the driver with ploop::load_kernel_modules() on a kernel of OpenVZ or Virtuozzo, or run this program in the sandbox of this crate's repository: cargo xtask sandbox";

/// What to do where the system refused.
#[cfg(feature = "libploop")]
const BE_ROOT: &str = "most operations need root, and this process does not run as root";

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
            image: None,
            path: None,
            offset: None,
            other_path: None,
            message: message.into(),
            os: None,
            advice: None,
            output: None,
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
        #[cfg(feature = "libploop")]
        if source.kind() == io::ErrorKind::PermissionDenied {
            error = error.with_advice_for_others_than_root();
        }
        error.0.os = Some(source);
        error
    }

    /// For what the system refused: says so where the process is not root's.
    #[cfg(feature = "libploop")]
    pub(crate) fn with_advice_for_others_than_root(self) -> Error {
        if rustix::process::geteuid().is_root() {
            return self;
        }
        self.with_advice(BE_ROOT)
    }

    #[cfg(feature = "image")]
    pub(crate) fn with_path(mut self, path: impl Into<PathBuf>) -> Error {
        self.0.path = Some(path.into());
        self
    }

    /// The image that the operation was about, which the sentence names before the file that is to blame.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(crate) fn of_image(mut self, image: &Path) -> Error {
        match &self.0.path {
            None => self.0.path = Some(image.to_owned()),
            Some(path) if path == image || self.0.other_path.is_some() => {}
            Some(_) => self.0.image = Some(image.to_owned()),
        }
        self
    }

    /// The two files of an operation, one of which may be the path already.
    #[cfg(feature = "image")]
    pub(crate) fn with_paths(mut self, path: &Path, other: &Path) -> Error {
        let is_other = |path: &Path| {
            path == other || std::fs::canonicalize(other).is_ok_and(|other| other == path)
        };
        let blamed = self.0.path.get_or_insert_with(|| path.to_owned());
        self.0.other_path = Some(if is_other(blamed) { path } else { other }.to_owned());
        self
    }

    /// The place in the file that is to blame, in bytes.
    #[cfg(feature = "image")]
    pub(crate) fn with_offset(mut self, offset: u64) -> Error {
        self.0.offset = Some(offset);
        self
    }

    /// The same failure as part of a larger operation.
    #[cfg(feature = "image")]
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
    pub(crate) fn with_advice(mut self, advice: &'static str) -> Error {
        self.0.advice = Some(advice);
        self
    }

    /// What the tools said that libploop ran.
    #[cfg(feature = "libploop")]
    pub(crate) fn with_output(mut self, output: Option<String>) -> Error {
        self.0.output = output;
        self
    }

    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(crate) fn with_code(mut self, code: i32) -> Error {
        self.0.code = Some(code);
        self
    }

    /// The message, with the system's reason.
    #[cfg(feature = "image")]
    pub(crate) fn reason(&self) -> String {
        self.0.reason()
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

    /// [`code`](Error::code) with its name.
    ///
    /// ```
    /// use ploop::{Code, Error};
    ///
    /// fn is_locked(error: &Error) -> bool {
    ///     error.libploop_code() == Some(Code::LOCK)
    /// }
    /// ```
    #[must_use]
    pub fn libploop_code(&self) -> Option<Code> {
        self.0.code.map(Code::from)
    }

    /// The number of the system's error (`errno`), where a system call that this crate made is the reason.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.os.as_ref()?.raw_os_error()
    }

    /// The operation that failed, such as "create a snapshot".
    #[must_use]
    pub fn operation(&self) -> &str {
        self.0.operation_alone()
    }

    /// The file, directory or device that is to blame, or that the operation was about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The other file of an operation that has two: exporting, replacing, merging into a new file, making a
    /// descriptor. It is whichever of the two [`path`](Error::path) is not. Of an operation on an image for which another
    /// file is to blame, it is the image.
    ///
    /// ```
    /// # #[cfg(not(feature = "libploop"))]
    /// # fn main() {}
    /// # #[cfg(feature = "libploop")]
    /// # fn main() -> ploop::Result<()> {
    /// use ploop::{CreateParam, Guid, Ploop, ReplaceParam, ReplaceTarget, Size};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let param = CreateParam::new(dir.join("root.hds"), Size::from_mib(16)).fs(None);
    /// let mut image = Ploop::create(&param)?;
    /// let copy = ReplaceParam::new("/none", ReplaceTarget::Guid(Guid::TOP));
    /// let error = image.replace(&copy).unwrap_err();
    /// assert_eq!(error.path(), Some("/none".as_ref()));
    /// assert_eq!(error.other_path(), Some(&*dir.join("DiskDescriptor.xml")));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn other_path(&self) -> Option<&Path> {
        self.0
            .other_path
            .as_ref()
            .or(self.0.image.as_ref())
            .map(PathBuf::as_path)
    }

    /// The offset in [`path`](Error::path) of what is wrong, in bytes, where an image file is to
    /// blame.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The reason, without operation, path, the system's reason, [advice](Error::advice) and code: libploop's own words
    /// where it left any. Where this crate refuses something, it ends with what to do instead.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about a failure whatever the operation was: to load the driver, say, or to run as root. What to do in
    /// the place of something that is refused is part of the [message](Error::message).
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice
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

/// The sentence stays. The kind is that of the system's error where there is one, else what comes nearest to
/// [`Error::kind`].
///
/// An `io::Error` with words of its own has no `raw_os_error`; the number is in the [`Error`] inside:
///
/// ```
/// use std::io;
/// use ploop::{Error, image::Disk};
///
/// let error: io::Error = Disk::open_image("/none").unwrap_err().into();
/// assert_eq!(error.kind(), io::ErrorKind::NotFound);
/// let inside = error.get_ref().and_then(|inside| inside.downcast_ref::<Error>());
/// assert_eq!(inside.and_then(Error::raw_os_error), Some(2));
/// ```
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        if let Some(os) = error.0.os.as_ref().filter(|os| os.raw_os_error().is_some()) {
            return io::Error::new(os.kind(), error);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = assert!(size_of::<Error>() == size_of::<usize>());

    fn is_plain<T: Send + Sync + 'static>() {}

    #[test]
    fn error_crosses_threads() {
        is_plain::<Error>();
    }

    #[cfg(feature = "image")]
    #[test]
    fn the_system_s_reason_is_said_once_and_kept() {
        use std::error::Error as _;

        let full = || io::Error::from_raw_os_error(28);
        let error = Error::io("try", "it cannot be written", full()).with_path("/a");
        let sentence = "cannot try /a: it cannot be written: No space left on device (os error 28)";
        assert_eq!(error.to_string(), sentence);
        assert!(error.source().is_none());
        assert_eq!(error.raw_os_error(), Some(28));
        let error = io::Error::from(error);
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.kind(), full().kind());
        // A kind that has none of its own here.
        let not_directory = io::Error::from_raw_os_error(20);
        let kind = not_directory.kind();
        let error = Error::io("try", "it cannot be opened", not_directory);
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(io::Error::from(error).kind(), kind);
        // Of an error that has words of its own, what lies behind them.
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] fmt::Error);
        let error = Error::io("try", "no", io::Error::other(Outer(fmt::Error)));
        assert_eq!(error.to_string(), "cannot try: no: outer");
        assert!(
            error
                .source()
                .is_some_and(|source| source.is::<fmt::Error>())
        );
        assert_eq!(error.raw_os_error(), None);
    }

    #[cfg(feature = "libploop")]
    #[test]
    fn what_the_system_refuses_to_others_than_root_needs_root() {
        let is_root = rustix::process::geteuid().is_root();
        for (number, is_refused) in [(1, true), (13, true), (30, false), (2, false)] {
            let error = Error::io("try", "no", io::Error::from_raw_os_error(number));
            assert_eq!(error.advice().is_some(), is_refused && !is_root, "{error}");
        }
    }

    #[cfg(feature = "libploop")]
    #[test]
    fn debug_is_for_people_and_its_alternate_for_developers() {
        let error = Error::new(ErrorKind::Tool, "create image", "mkfs failed")
            .with_path("/a")
            .with_advice("do it by hand")
            .with_code(24)
            .with_output(Some("mke2fs 1.47\nno room\n".into()));
        let sentence = "cannot create image /a: mkfs failed; do it by hand [SYSEXIT_MKFS = 24]";
        assert_eq!(error.to_string(), sentence);
        let text = format!("{error:?}");
        assert_eq!(text, format!("{sentence}\n    mke2fs 1.47\n    no room"));
        let fields = format!("{error:#?}");
        assert!(fields.starts_with("Error {\n    kind: Tool,\n"), "{fields}");
        assert_eq!(error.advice(), Some("do it by hand"));
        assert_eq!(error.message(), "mkfs failed");
        assert_eq!(error.libploop_code(), Some(Code::MKFS));
    }

    #[cfg(any(feature = "libploop", feature = "image-write"))]
    #[test]
    fn the_sentence_names_the_image_and_what_is_to_blame() {
        let image = Path::new("/image");
        let error = || Error::new(ErrorKind::Other, "create a snapshot of", "no");
        assert_eq!(error().to_string(), "cannot create a snapshot: no");
        assert_eq!(error().operation(), "create a snapshot");
        for error in [error(), error().with_path(image)] {
            let error = error.of_image(image);
            assert_eq!(error.to_string(), "cannot create a snapshot of /image: no");
            assert_eq!(error.path(), Some(image));
            assert_eq!(error.other_path(), None);
        }
        let error = error().with_path("/lock").of_image(image);
        assert_eq!(
            error.to_string(),
            "cannot create a snapshot of /image: /lock: no"
        );
        assert_eq!(error.path(), Some(Path::new("/lock")));
        assert_eq!(error.other_path(), Some(image));
    }

    #[cfg(feature = "image")]
    #[test]
    fn both_paths_are_there_whichever_is_to_blame() {
        let error = || Error::new(ErrorKind::Other, "replace", "no");
        let (image, new) = (Path::new("/image"), Path::new("/new"));
        for (error, path, other) in [
            (error(), image, new),
            (error().with_path(image), image, new),
            (error().with_path(new), new, image),
            (error().with_path("/third"), Path::new("/third"), new),
        ] {
            let error = error.with_paths(image, new);
            assert_eq!(
                (error.path(), error.other_path()),
                (Some(path), Some(other))
            );
            let (path, other) = (path.display(), other.display());
            assert_eq!(
                error.to_string(),
                format!("cannot replace {path} (with {other}): no")
            );
        }
    }
}
