//! Where libploop writes what it does. Nothing is written anywhere unless it is asked for.
//!
//! These are settings of the process. Errors reach the caller in any case, as [`Error`](crate::Error)s.
//!
//! libxml2 writes its complaints about malformed descriptors to standard error whatever is set here;
//! the operations that change an image read the descriptor in Rust first and refuse it before.

use std::path::Path;

use crate::Result;
use crate::ffi::{self, CPath};

/// For [`set_verbose_level`]: nothing on the console. The default.
pub const NO_CONSOLE: i32 = -2;
/// For [`set_verbose_level`]: errors alone, on standard error.
pub const NO_STDOUT: i32 = -1;
/// For [`set_verbose_level`]: everything, with the time since the first setting before each line.
///
/// libploop keeps that time in one buffer: with operations in several threads a line may show
/// another line's time.
pub const TIMESTAMPS: i32 = 4;

/// How much libploop prints: messages up to this level, errors to standard error, others to standard
/// output (`ploop_set_verbose_level`).
///
/// [`NO_CONSOLE`], [`NO_STDOUT`], 0 for the essential, 3 for everything, or [`TIMESTAMPS`].
pub fn set_verbose_level(level: i32) {
    ffi::set_verbose_level(level);
}

/// How much libploop writes to the log file: messages up to this level, 3 (everything) unless set
/// (`ploop_set_log_level`).
pub fn set_log_level(level: i32) {
    ffi::set_log_level(level);
}

/// Has libploop append its messages to a file, made if it is not there; `None` ends that
/// (`ploop_set_log_file`).
///
/// Waits until no operation is under way in this process, since libploop closes the previous file
/// at once; at most for [the lock timeout](crate::lock::timeout). With operations in several threads
/// a line may carry another line's time stamp.
///
/// # Errors
///
/// [`Locked`](crate::ErrorKind::Locked) where operations were under way all the time; otherwise why
/// the file could not be opened. The previous file, if any, stays in use.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let file = dir.path().join("ploop.log");
/// ploop::log::set_log_file(Some(&file))?;
/// ploop::log::set_log_file(None)?;
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_log_file(file: Option<&Path>) -> Result<()> {
    let c_path = file
        .map(|file| CPath::new("set log file", file))
        .transpose()?;
    ffi::set_log_file(
        file.unwrap_or(Path::new("")),
        c_path.as_ref(),
        crate::lock::timeout(),
    )
}
