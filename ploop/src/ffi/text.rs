//! Conversions: paths and strings for C ([`CPath`], [`CText`]), C's parameter structs ([`Param`]), and buffers that C
//! fills ([`PathBuffer`]).

use std::ffi::{CString, c_char};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{ComponentName, Error, ErrorKind, Guid, Result, paths};

/// libploop's path buffers.
const PATH_MAX: usize = 4096;

/// A path for C, padded with zeros to 4096 bytes. Debian's build copies that many from several path arguments,
/// however short they are (hazard 0.8).
#[derive(Clone)]
pub(crate) struct CPath(Box<[u8; PATH_MAX]>);

impl CPath {
    pub(crate) fn new(operation: &'static str, path: &Path) -> Result<CPath> {
        paths::require_c_path(operation, path)?;
        let bytes = path.as_os_str().as_bytes();
        let mut buffer = Box::new([0; PATH_MAX]);
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(CPath(buffer))
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// For members of C's parameter structs that lack `const`. C does not write there.
    pub(super) fn as_mut_ptr(&self) -> *mut c_char {
        self.as_ptr().cast_mut()
    }
}

/// Any other text for C.
#[derive(Clone)]
pub(crate) struct CText(CString);

impl CText {
    pub(crate) fn new(operation: &'static str, what: &str, text: &str) -> Result<CText> {
        CString::new(text).map(CText).map_err(|error| {
            Error::new(
                ErrorKind::InvalidInput,
                operation,
                format!(
                    "the {what} has a NUL byte at position {}",
                    error.nul_position()
                ),
            )
        })
    }

    pub(crate) fn guid(guid: Guid) -> CText {
        // The textual form of a GUID has no NUL.
        CText(CString::new(guid.to_string()).unwrap_or_default())
    }

    pub(crate) fn component(name: &ComponentName) -> CText {
        // A component name has no control characters.
        CText(CString::new(name.as_str()).unwrap_or_default())
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr()
    }

    pub(super) fn as_mut_ptr(&self) -> *mut c_char {
        self.as_ptr().cast_mut()
    }
}

/// NULL for `None`, which C takes for "not given".
pub(super) fn or_null(text: Option<&CText>) -> *mut c_char {
    text.map_or(std::ptr::null_mut(), CText::as_mut_ptr)
}

pub(super) fn path_or_null(path: Option<&CPath>) -> *mut c_char {
    path.map_or(std::ptr::null_mut(), CPath::as_mut_ptr)
}

/// A parameter struct of C. A wrapper that is `Send`, for the closure that runs in the process of C.
pub(super) struct Param<T>(pub(super) T);

// SAFETY: the members are numbers, and pointers to texts, handles and atomic numbers, none of which is tied to a
// thread. The code that makes one keeps what it points to until the call is over.
unsafe impl<T> Send for Param<T> {}

impl<T> Param<T> {
    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        &raw mut self.0
    }
}

/// A buffer for a path that C writes. One more byte terminates it: some functions leave the terminator out when the
/// text just fits (hazard 12).
pub(super) struct PathBuffer(Box<[u8; PATH_MAX + 1]>);

impl PathBuffer {
    pub(super) fn new() -> PathBuffer {
        PathBuffer(Box::new([0; PATH_MAX + 1]))
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut c_char {
        self.0.as_mut_ptr().cast()
    }

    /// The length to tell C. The terminator lies behind it.
    pub(super) const LEN: usize = PATH_MAX;

    pub(super) fn into_path(self) -> PathBuf {
        until_nul(&self.0[..])
    }
}

/// The bytes before the first NUL, as a path.
pub(super) fn until_nul(bytes: &[u8]) -> PathBuf {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::ffi::OsString::from_vec(bytes[..end].to_vec()).into()
}

/// The `char device[64]` of C's parameter structs.
pub(super) fn device_name(device: &[c_char]) -> PathBuf {
    let bytes: Vec<u8> = device.iter().map(|c| c.to_ne_bytes()[0]).collect();
    until_nul(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_path_is_padded_to_what_c_over_reads() {
        let path = CPath::new("test", Path::new("/a")).unwrap();
        assert_eq!(path.0[..3], *b"/a\0");
        assert!(path.0[2..].iter().all(|b| *b == 0));
        assert_eq!(path.0.len(), 4096);
    }

    #[test]
    fn unusable_paths_are_named() {
        let long = "x".repeat(paths::MAX_PATH_BYTES);
        for (bytes, why) in [
            (&b""[..], "empty"),
            (b"/a\0b", "NUL byte at position 2"),
            (long.as_bytes(), "4000 bytes long"),
        ] {
            let error = CPath::new("test", Path::new(OsStr::from_bytes(bytes)))
                .err()
                .unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains(why), "{error}");
        }
        assert!(CPath::new("test", Path::new(&long[1..])).is_ok());
    }

    #[test]
    fn a_full_buffer_without_terminator_ends_at_its_end() {
        let mut buffer = PathBuffer::new();
        buffer.0[..PathBuffer::LEN].fill(b'x');
        assert_eq!(buffer.into_path().as_os_str().len(), PathBuffer::LEN);
    }
}
