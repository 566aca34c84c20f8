//! What the libploop that is linked can do.

use crate::{Error, ErrorKind, ffi};

/// The error where the library is too old, or of another line. `what` says it of the library: "has no such setting".
pub(crate) fn missing(operation: &'static str, what: &str, since: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        operation,
        format!(
            "libploop {} {what}; libploop 7 has it, from {since} on",
            ffi::VERSION
        ),
    )
}
