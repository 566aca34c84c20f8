//! libploop's error text (`ploop_get_last_error`): a buffer per thread, which libploop never clears.

use std::ffi::CStr;

use ploop_sys as sys;

/// Clears the thread's error text, so that a text found later is of the call in between (hazard 0.4: the text outlives
/// its call, and some failures write none). Clears `errno` as well: libploop appends its text to messages of failures
/// that did not set it.
pub(super) fn clear() {
    // SAFETY: the function returns this thread's own buffer of 8192 bytes, never NULL. The memory is writable, in
    // spite of `const`, and only this thread uses it.
    unsafe {
        let text = sys::ploop_get_last_error().cast_mut();
        *text = 0;
    }
    // SAFETY: the function returns this thread's own `errno`, never NULL.
    unsafe { *libc::__errno_location() = 0 }
}

/// Writes an error text, as a call of libploop would.
pub(super) fn put(text: &[u8]) {
    const SIZE: usize = 8192;
    let text = &text[..text.len().min(SIZE - 1)];
    // SAFETY: as in `clear`; the text and its terminator fit.
    unsafe {
        let buffer = sys::ploop_get_last_error().cast_mut().cast::<u8>();
        buffer.copy_from_nonoverlapping(text.as_ptr(), text.len());
        *buffer.add(text.len()) = 0;
    }
}

/// The error text that calls on this thread have left since [`clear`].
pub(super) fn take() -> Option<String> {
    // SAFETY: as in `clear`; the text is always terminated, and is copied before the next call.
    let text = unsafe { CStr::from_ptr(sys::ploop_get_last_error()) };
    let text = text.to_string_lossy();
    let text = without_location(text.trim());
    (!text.is_empty()).then(|| text.to_owned())
}

/// Without the location in the C source, with which messages of Debian's build (DEBUG) begin:
/// `Error in create_snapshot (snapshot.c:12): …`.
fn without_location(text: &str) -> &str {
    text.strip_prefix("Error in ")
        .and_then(|rest| rest.split_once("): "))
        .filter(|(location, _)| location.contains(".c:") && !location.contains('/'))
        .map_or(text, |(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_location_in_the_source_is_cut_off() {
        for (text, message) in [
            (
                "Error in f (di.c:12): Can't resolve /a: gone",
                "Can't resolve /a: gone",
            ),
            ("Error in flock(/a (x): y", "Error in flock(/a (x): y"),
            (
                "Error in realpath(/tmp/a.c:1): no",
                "Error in realpath(/tmp/a.c:1): no",
            ),
            ("plain", "plain"),
        ] {
            assert_eq!(without_location(text), message);
        }
    }

    #[test]
    fn the_text_of_an_earlier_call_is_forgotten() {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the path is terminated; where it does not resolve no handle is made.
        let ret = unsafe { sys::ploop_open_dd(&mut handle, c"/none/xml".as_ptr()) };
        assert_eq!(ret, sys::SYSEXIT_DISKDESCR);
        clear();
        assert_eq!(take(), None);
    }
}
