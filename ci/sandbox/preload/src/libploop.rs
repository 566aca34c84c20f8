//! Whether this process uses libploop.

use libc::{c_int, c_void};
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
    // SAFETY: the callback has the right type, and uses no data.
    let found = unsafe { libc::dl_iterate_phdr(Some(is_libploop), std::ptr::null_mut()) } != 0;
    if found {
        note_use();
    }
    found
}

unsafe extern "C" fn is_libploop(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the dynamic linker passes a valid structure to its callback.
    let name = unsafe { (*info).dlpi_name };
    if name.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is a C string that lives as long as the library is loaded.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    c_int::from(name.starts_with(b"libploop.so"))
}
