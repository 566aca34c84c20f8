//! Whether this process uses libploop.

use crate::daemon::{self, SentDescriptor, Wait};
use crate::{errno, settings};
use libc::{c_int, c_void};
use ploop_sandbox_wire::{Node, Request, call};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

static USED: AtomicBool = AtomicBool::new(false);

/// Remembers that the process uses libploop. Called for what only users of ploop do, it also finds statically linked
/// libploop.
pub(crate) fn note_use() {
    USED.store(true, Ordering::Relaxed);
}

/// Whether libploop is loaded, or the driver was used. False is not remembered, because a library can be loaded later.
/// Callers ask only when the answer matters.
pub(crate) fn is_used() -> bool {
    if USED.load(Ordering::Relaxed) {
        return true;
    }
    // Not `dlsym`: it finds no library that was loaded locally (plug-ins, Python's ctypes), and its failure replaces
    // the text of the program's `dlerror`.
    let mut line: Option<u64> = None;
    // SAFETY: the callback has the right type, and writes to the data, which is of its type and outlives the call.
    let found =
        unsafe { libc::dl_iterate_phdr(Some(is_libploop), (&raw mut line).cast::<c_void>()) } != 0;
    if found {
        note_use();
        if let Some(line) = line {
            errno::preserve_errno(|| tell_line(line));
        }
    }
    found
}

/// Tells the daemon which libploop this is: the drivers of Virtuozzo 7 and of OpenVZ 6 differ.
fn tell_line(line: u64) {
    // Without a word, the daemon stands for the driver of OpenVZ 6.
    if line < 7 || settings::settings().is_none() {
        return;
    }
    let request = Request {
        argument: line,
        ..Request::new(call::LIBPLOOP, Node::None, Vec::new())
    };
    // Where that fails, the daemon cannot be reached, and nothing else will work either.
    let _ = daemon::ask(&request, SentDescriptor::None, Wait::Reply);
}

/// The number in `libploop.so.7` or `libploop.so.7.0.280`.
fn line_in(name: &[u8]) -> Option<u64> {
    let rest = name.strip_prefix(b"libploop.so.")?;
    let digits = rest.split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

unsafe extern "C" fn is_libploop(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    line: *mut c_void,
) -> c_int {
    // SAFETY: the dynamic linker passes a valid structure to its callback.
    let name = unsafe { (*info).dlpi_name };
    if name.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is a C string that lives as long as the library is loaded.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let is_libploop = name.starts_with(b"libploop.so");
    if is_libploop {
        // SAFETY: the data of this callback, as `is_used` passes it.
        unsafe { *line.cast::<Option<u64>>() = line_in(name) };
    }
    c_int::from(is_libploop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_in_the_name() {
        for (name, line) in [
            ("libploop.so.1", Some(1)),
            ("libploop.so.7", Some(7)),
            ("libploop.so.7.0.280", Some(7)),
            ("libploop.so", None),
            ("libploop.so.", None),
            ("libploop.so.x", None),
        ] {
            assert_eq!(line_in(name.as_bytes()), line, "{name}");
        }
    }
}
