//! libploop's error text: a buffer per thread, written by whatever logs an error, never cleared.

use std::ffi::CStr;

use ploop_sys as sys;

/// Forgets the thread's error text, so that one found later belongs to the call in between
/// (hazard 0.4: the text outlives its call, and some failures write none). `errno` as well: libploop
/// appends its text to messages about failures that did not set it.
pub(super) fn clear() {
    // SAFETY: the function returns this thread's own buffer of 8192 bytes, never NULL. The buffer is
    // writable memory of the library; `const` only keeps callers from changing the text by accident,
    // and nothing else touches it while this thread is here.
    unsafe {
        let text = sys::ploop_get_last_error().cast_mut();
        *text = 0;
    }
    // SAFETY: the function returns this thread's own `errno`, never NULL.
    unsafe { *libc::__errno_location() = 0 }
}

/// Leaves a text, as a call would.
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

/// The text the calls since [`clear`] left on this thread.
pub(super) fn take() -> Option<String> {
    // SAFETY: as in `clear`; the text is always terminated, and it is copied before anything could
    // overwrite it.
    let text = unsafe { CStr::from_ptr(sys::ploop_get_last_error()) };
    let text = text.to_string_lossy();
    let text = without_place(text.trim());
    (!text.is_empty()).then(|| text.to_owned())
}

/// Debian builds libploop with DEBUG, so its messages begin with the place in the C source:
/// `Error in create_snapshot (snapshot.c:12): …`. It tells a caller nothing.
fn without_place(text: &str) -> &str {
    text.strip_prefix("Error in ")
        .and_then(|rest| rest.split_once("): "))
        .filter(|(place, _)| place.contains(".c:") && !place.contains('/'))
        .map_or(text, |(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_in_the_source_is_cut_off() {
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
            assert_eq!(without_place(text), message);
        }
    }

    #[test]
    fn the_text_of_an_earlier_call_is_forgotten() {
        let mut out = [0; 8];
        // SAFETY: a NULL path is documented to fail with a message; the buffer is as long as said.
        let ret =
            unsafe { sys::ploop_find_dev(std::ptr::null(), std::ptr::null(), out.as_mut_ptr(), 8) };
        assert_eq!(ret, -1);
        clear();
        assert_eq!(take(), None);
    }
}
