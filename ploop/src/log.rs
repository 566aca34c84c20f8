//! Logging: where the messages of libploop and its tools go. They are written nowhere unless asked for.
//!
//! With the feature `log` (on by default) each line goes to the [log facade](https://docs.rs/log), from
//! the thread that waits for the operation: libploop's with the target `ploop::libploop`, errors as
//! errors, its level 0 as `Info`, 1 as `Debug`, the finer ones as `Trace`; those of the tools that it
//! starts (`mke2fs`, `resize2fs`, …) as `Info` with the target `ploop::tools`. libploop does not print
//! its levels; they are known by the words.
//!
//! What is set here is written besides, by the whole process. Errors reach the caller in any case, as
//! [`Error`]s.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::image::{Descriptor, Header};
use crate::{Error, ErrorKind, Result, ffi, paths};

const OPERATION: &str = "set log file";

/// For [`set_verbose_level`]: nothing on the console. The default.
pub const NO_CONSOLE: i32 = ffi::NO_CONSOLE;
/// For [`set_verbose_level`]: errors alone, on standard error.
pub const NO_STDOUT: i32 = -1;
/// For [`set_verbose_level`]: everything, with the time since the first setting before each line.
///
/// libploop keeps that time in one buffer: with operations in several threads a line may show
/// another line's time.
pub const TIMESTAMPS: i32 = ffi::TIMESTAMPS;

/// Sets how much of what libploop says is printed (`ploop_set_verbose_level`): messages up to this level, errors to
/// standard error, others to standard output. From level 0 on also what its tools say.
///
/// [`NO_CONSOLE`], [`NO_STDOUT`], 0 for the essential, 3 for everything, or [`TIMESTAMPS`].
///
/// ```
/// ploop::log::set_verbose_level(ploop::log::NO_STDOUT);
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_verbose_level(level: i32) {
    ffi::set_verbose_level(level);
}

/// Sets how much libploop writes to the log file (`ploop_set_log_level`): messages up to this level (default: 3,
/// everything).
pub fn set_log_level(level: i32) {
    ffi::set_log_level(level);
}

/// Has libploop's messages appended to a file, made if it is not there; `None` ends that
/// (`ploop_set_log_file`).
///
/// The file may be of any kind, but no delta and no descriptor. A message that cannot be written is lost, as with libploop.
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for a file of an image. Where the file cannot be opened, also a FIFO without a reader. The previous file, if any, stays in use.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// let file = dir.path().join("ploop.log");
/// ploop::log::set_log_file(Some(&file))?;
/// ploop::log::set_log_file(None)?;
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_log_file(file: Option<&Path>) -> Result<()> {
    if let Some(file) = file {
        paths::require_c_path(OPERATION, file)?;
        require_no_image(file)?;
    }
    let opened = file.map(open).transpose()?;
    ffi::set_log_file(opened);
    Ok(())
}

/// Lines of a log would damage a descriptor.
fn require_no_image(file: &Path) -> Result<()> {
    let is_file = std::fs::metadata(file).is_ok_and(|it| it.is_file());
    if is_file && (Header::read(file).is_ok() || Descriptor::open(file).is_ok()) {
        let why = "this is a file of an image, which a log would damage; choose another name";
        return Err(Error::new(ErrorKind::InvalidInput, OPERATION, why).with_path(file));
    }
    Ok(())
}

fn open(path: &Path) -> Result<std::fs::File> {
    let open = || -> io::Result<std::fs::File> {
        // A FIFO that nobody reads would be waited for, and a terminal might become this program's.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o666);
        let file = options.custom_flags(flags.bits() as i32).open(path)?;
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND)?;
        Ok(file)
    };
    open().map_err(|error| Error::io(OPERATION, "it cannot be opened", error).with_path(path))
}
