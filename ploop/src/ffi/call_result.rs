//! [`CallResult`]: the code and the error text of libploop, and how they become a [`Result`] with an
//! [`ErrorKind`].

use std::io;
use std::path::Path;

use crate::error::LOAD_DRIVER;
use crate::{Code, Error, ErrorKind, Result};

/// What a C function returned, and what it said.
#[derive(Debug)]
pub(super) struct CallResult {
    pub(super) operation: &'static str,
    pub(super) code: i32,
    pub(super) message: Option<String>,
    /// The output of the tools that libploop started.
    pub(super) output: Option<String>,
    /// After a failure: what this crate finds wrong with the descriptor. It is more exact than libploop's message.
    pub(super) cause: Option<Error>,
    /// After a failure: whether this crate has looked at the descriptor and found nothing wrong.
    pub(super) descriptor_is_sound: bool,
}

impl CallResult {
    /// For a function that returns 0 or a code.
    pub(super) fn done(self, path: &Path) -> Result<()> {
        match self.code {
            0 => Ok(()),
            _ => Err(self.into_error(path)),
        }
    }

    /// For a look-up that returns 0 where it found something, and 1 where it did not.
    pub(super) fn found(self, path: &Path) -> Result<bool> {
        match self.code {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(self.into_error(path)),
        }
    }

    pub(super) fn into_error(mut self, path: &Path) -> Error {
        let output = self.output.take();
        let is_busy = [Code::UMOUNT, Code::UMOUNT_BUSY]
            .map(Code::get)
            .contains(&self.code);
        let error = self.without_output(path);
        match output {
            Some(_) if is_busy => error.with_advice("Error::output names the programs that use it"),
            _ => error,
        }
        .with_output(output)
    }

    fn without_output(self, path: &Path) -> Error {
        if let Some(cause) = self.cause {
            return cause.with_code(self.code);
        }
        let code = Code::from(self.code);
        let kind = match kind(code, self.message.as_deref()) {
            // libploop returns this code, too, where it could not read the descriptor at that moment.
            ErrorKind::Corrupt if code == Code::LOCK && self.descriptor_is_sound => ErrorKind::Io,
            kind => kind,
        };
        let message = match self.message {
            Some(message) if code == Code::UMOUNT_BUSY && is_of_lsof(&message) => Some(
                "programs use the file system, and it was still busy when the time for that was over"
                    .to_owned(),
            ),
            message => message,
        };
        let message = message.unwrap_or_else(|| match code.name() {
            Some(_) => "libploop gave no reason".to_owned(),
            None => "libploop failed and gave no reason".to_owned(),
        });
        let error = Error::new(kind, self.operation, message)
            .with_path(path)
            .with_code(self.code);
        match kind {
            ErrorKind::NoDriver if !super::is_driver_present() => {
                return error.with_advice(LOAD_DRIVER);
            }
            ErrorKind::PermissionDenied => return error.with_advice_for_others_than_root(),
            _ => {}
        }
        if error.message().starts_with(UNKNOWN_VERSION) {
            return error.with_advice(
                "libploop makes deltas of format v2 only with a driver that supports large disks",
            );
        }
        if error.message().starts_with(STOPPED_DEVICE) {
            return error.with_advice(
                "a program was killed and left the device attached; unmount the image to free it",
            );
        }
        if is_refused_mount(error.message()) {
            return error.with_advice(
                "there is no file system of this type, or it does not know one of the mount options; an image without a file system is mounted without a target",
            );
        }
        if is_without_balloon(error.message()) {
            return error.with_advice(
                "the file system there is mounted without a balloon (balloon_ino=): unmount it and let libploop mount it; if it has no balloon, first make an empty file .balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8 in its root",
            );
        }
        error
    }
}

/// libploop's message, in nearly all operations, where a device has the deltas and does not run.
const STOPPED_DEVICE: &str = "Unexpectedly found stopped ploop device";

/// Whether libploop's last words are about `lsof`, as those of libploop 7 are where a file system is busy.
fn is_of_lsof(message: &str) -> bool {
    message.starts_with("--- lsof ")
        || message.starts_with("Command lsof ")
        || message.ends_with("lsof: not found")
}

/// libploop's message for version 2 where the driver does not support it.
const UNKNOWN_VERSION: &str = "Unknown ploop image version: 2";

/// Whether the kernel refused to mount the file system with EINVAL.
fn is_refused_mount(message: &str) -> bool {
    message.starts_with("Can't mount file system") && message.ends_with(": Invalid argument")
}

/// Whether libploop failed because the file system is mounted without a balloon. The code is that of a missing
/// driver.
fn is_without_balloon(message: &str) -> bool {
    message.starts_with("Can't ioctl mount point") && by_errno(message) == Some(ErrorKind::NotFound)
}

/// The kind of a failure. Several codes have many causes each; the text of `errno` at the end of libploop's message
/// is more exact.
fn kind(code: Code, message: Option<&str>) -> ErrorKind {
    let by_code = code.kind();
    // Where a file system cannot be unmounted at once, libploop runs lsof, and that result replaces the reason. For
    // the balloon the reason is nearly always that there is no space left.
    let reason = message.filter(|message| !message.starts_with("Command lsof "));
    let Some(message) = reason else {
        return if message.is_some() && code == Code::FALLOCATE {
            ErrorKind::NoSpace
        } else {
            by_code
        };
    };
    // Failures with many codes, or with the code of another failure.
    if message.starts_with("Image is in use") || message.starts_with(STOPPED_DEVICE) {
        return ErrorKind::Busy;
    }
    if message.contains("/proc/vz/ploop_minor") {
        return ErrorKind::NoDriver;
    }
    if message.ends_with("is not mounted") {
        return ErrorKind::NotMounted;
    }
    if message.starts_with(UNKNOWN_VERSION) || is_without_balloon(message) {
        return ErrorKind::Unsupported;
    }
    if message.contains("xmlDocFormatDump") {
        // The descriptor could not be written. It is not damaged.
        return ErrorKind::Io;
    }
    if by_code == ErrorKind::Locked && !message.contains("is locked") {
        // The same code: the lock file cannot be made, or the descriptor cannot be read.
        return by_errno(message).unwrap_or(ErrorKind::Corrupt);
    }
    let by_errno = by_errno(message);
    match (by_code, by_errno) {
        (_, Some(ErrorKind::NoSpace)) => ErrorKind::NoSpace,
        (ErrorKind::Io | ErrorKind::Other | ErrorKind::Corrupt, Some(kind)) => kind,
        // A driver that gives this answer is there.
        (ErrorKind::NoDriver, Some(kind @ (ErrorKind::PermissionDenied | ErrorKind::Busy))) => kind,
        (
            ErrorKind::InvalidInput,
            Some(kind @ (ErrorKind::NotFound | ErrorKind::AlreadyExists)),
        ) => kind,
        _ => by_code,
    }
}

/// The kind of the `errno` whose text ends the message.
fn by_errno(message: &str) -> Option<ErrorKind> {
    [
        (libc::ENOSPC, ErrorKind::NoSpace),
        (libc::EDQUOT, ErrorKind::NoSpace),
        (libc::EACCES, ErrorKind::PermissionDenied),
        (libc::EPERM, ErrorKind::PermissionDenied),
        (libc::EROFS, ErrorKind::PermissionDenied),
        (libc::ENOENT, ErrorKind::NotFound),
        (libc::EEXIST, ErrorKind::AlreadyExists),
        (libc::EBUSY, ErrorKind::Busy),
        (libc::ETXTBSY, ErrorKind::Busy),
        (libc::ENOTDIR, ErrorKind::Io),
        (libc::ELOOP, ErrorKind::Io),
        (libc::EIO, ErrorKind::Io),
        (libc::EMFILE, ErrorKind::Io),
        (libc::ENFILE, ErrorKind::Io),
        (libc::ENOMEM, ErrorKind::Io),
    ]
    .into_iter()
    .find(|(errno, _)| {
        let text = io::Error::from_raw_os_error(*errno).to_string();
        // The standard library appends the number, libploop does not.
        text.split(" (os error")
            .next()
            .is_some_and(|text| message.ends_with(text))
    })
    .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(code: i32, message: Option<&str>) -> Error {
        CallResult {
            operation: "test",
            code,
            message: message.map(str::to_owned),
            output: None,
            cause: None,
            descriptor_is_sound: false,
        }
        .into_error(Path::new("/image"))
    }

    #[test]
    fn every_code_is_carried_with_and_without_words() {
        for code in Code::ALL
            .iter()
            .map(|code| code.get())
            .chain([-1, 47, i32::MIN, i32::MAX])
        {
            let silent = result(code, None);
            assert_eq!(silent.code(), Some(code));
            assert_eq!(silent.kind(), Code::from(code).kind());
            assert!(silent.message().contains("gave no reason"));
            let loud = result(code, Some("some words"));
            assert_eq!(loud.code(), Some(code));
            assert_eq!(loud.message(), "some words");
            assert_eq!(loud.operation(), "test");
            assert_eq!(loud.path(), Some(Path::new("/image")));
            let text = loud.to_string();
            assert!(text.contains("test /image: some words"), "{text}");
            assert!(text.contains(&code.to_string()), "{text}");
        }
    }

    #[test]
    fn the_system_s_words_sharpen_the_kind() {
        for (code, message, kind) in [
            (
                23,
                "The /a is locked: Resource temporarily unavailable",
                ErrorKind::Locked,
            ),
            (
                23,
                "Can't create file /a.lck: Permission denied",
                ErrorKind::PermissionDenied,
            ),
            (
                23,
                "Can't create file /a.lck: Read-only file system",
                ErrorKind::PermissionDenied,
            ),
            (23, "Can't parse /a", ErrorKind::Corrupt),
            (
                23,
                "Can't open lock file /a.lck: Too many open files",
                ErrorKind::Io,
            ),
            (
                39,
                "Can't resolve /a: No such file or directory",
                ErrorKind::NotFound,
            ),
            (
                1,
                "Error in write: No space left on device",
                ErrorKind::NoSpace,
            ),
            (20, "Command lsof exited with status 1", ErrorKind::NoSpace),
            (38, "Can't create /a: File exists", ErrorKind::AlreadyExists),
            (
                38,
                "The snapshot {…} already exist",
                ErrorKind::InvalidInput,
            ),
            (
                2,
                "Can't open /proc/vz/ploop_minor: No such file or directory",
                ErrorKind::NoDriver,
            ),
            (
                -1,
                "Can't open /proc/vz/ploop_minor: Permission denied",
                ErrorKind::NoDriver,
            ),
            (4, "Image is in use /a", ErrorKind::Busy),
            (46, "--- lsof finished ---", ErrorKind::Busy),
            (46, "Command lsof exited with status 1", ErrorKind::Busy),
            (
                46,
                "PLOOP_IOC_STOP: Device or resource busy",
                ErrorKind::Busy,
            ),
            (39, "Error at xmlDocFormatDump /a.tmp.tmp", ErrorKind::Io),
            (40, "Image /a is not mounted", ErrorKind::NotMounted),
            (
                38,
                "Unable to discard: image is not mounted",
                ErrorKind::NotMounted,
            ),
            (
                3,
                "Can't initialize discard mode: Device or resource busy",
                ErrorKind::Busy,
            ),
            (43, "Can't find snapshot by uuid x", ErrorKind::NoSnapshot),
            (1, UNKNOWN_VERSION, ErrorKind::Unsupported),
            (
                3,
                "Can't ioctl mount point /a: No such file or directory",
                ErrorKind::Unsupported,
            ),
            (
                3,
                "Can't ioctl mount point /a: Inappropriate ioctl for device",
                ErrorKind::NoDriver,
            ),
            (
                -1,
                "Can't open lock file: Permission denied",
                ErrorKind::PermissionDenied,
            ),
            (-1, "no clue", ErrorKind::Other),
        ] {
            assert_eq!(
                result(code, Some(message)).kind(),
                kind,
                "{code}: {message}"
            );
        }
    }

    #[test]
    fn a_busy_file_system_has_words_of_its_own() {
        let result = |message: &str, output: Option<&str>| {
            CallResult {
                operation: "unmount",
                code: 46,
                message: Some(message.to_owned()),
                output: output.map(str::to_owned),
                cause: None,
                descriptor_is_sound: true,
            }
            .into_error(Path::new("/a"))
        };
        for last in [
            "--- lsof finished ---",
            "Command lsof exited with status 1",
            "sh: 1: lsof: not found",
        ] {
            let error = result(last, Some("COMMAND PID USER"));
            assert!(error.message().starts_with("programs use"), "{error}");
            assert!(error.advice().is_some(), "{error}");
            assert_eq!(error.output(), Some("COMMAND PID USER"));
        }
        let error = result("PLOOP_IOC_STOP: Device or resource busy", None);
        assert!(error.message().starts_with("PLOOP_IOC_STOP"), "{error}");
        assert_eq!(error.advice(), None);
    }

    #[test]
    fn a_descriptor_that_is_sound_is_not_called_damaged() {
        let result = |descriptor_is_sound| CallResult {
            operation: "test",
            code: 23,
            message: Some("Can't parse /a".to_owned()),
            output: None,
            cause: None,
            descriptor_is_sound,
        };
        let kind = |sound| result(sound).into_error(Path::new("/a")).kind();
        assert_eq!(kind(false), ErrorKind::Corrupt);
        assert_eq!(kind(true), ErrorKind::Io);
    }

    #[test]
    fn look_ups_tell_not_found_from_failed() {
        let result = |code| CallResult {
            operation: "test",
            code,
            message: None,
            output: None,
            cause: None,
            descriptor_is_sound: false,
        };
        assert!(result(0).found(Path::new("/a")).unwrap());
        assert!(!result(1).found(Path::new("/a")).unwrap());
        assert_eq!(
            result(-1).found(Path::new("/a")).unwrap_err().code(),
            Some(-1)
        );
        assert!(result(0).done(Path::new("/a")).is_ok());
        assert_eq!(result(1).done(Path::new("/a")).unwrap_err().code(), Some(1));
    }
}
