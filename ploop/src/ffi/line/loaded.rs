//! The library that is loaded. It need not be the one that the program was built with: the dynamic linker goes by the
//! file's name, and `LD_PRELOAD` comes before it. A call of another line would pass it structures that it does not
//! know, so before the first call the line is told by functions that only some lines export.

use std::ffi::{CStr, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::OnceLock;

use ploop_sys as sys;

use super::LINE;
use crate::{Error, ErrorKind, Result};

/// Where a late function is; `None` if the library that was linked does not have it.
#[cfg(libploop_static)]
pub(super) fn address(name: &CStr) -> Option<NonNull<c_void>> {
    let functions: &[(&CStr, *const ())] =
        &include!(concat!(env!("OUT_DIR"), "/late_functions.rs"));
    let (_, address) = functions.iter().find(|(function, _)| *function == name)?;
    NonNull::new(address.cast::<c_void>().cast_mut())
}

/// Where a function is; `None` if no library that is loaded has it.
#[cfg(not(libploop_static))]
pub(super) fn address(name: &CStr) -> Option<NonNull<c_void>> {
    // A program that calls nothing of libploop would be linked without it.
    std::hint::black_box(sys::ploop_open_dd as *const ());
    // SAFETY: the name is terminated. The function looks it up, and calls nothing.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Whether the library has a late function.
pub(crate) fn exports(late_function: &CStr) -> bool {
    address(late_function).is_some()
}

/// Refuses every call where the library is not of the line that the program was built for.
pub(crate) fn require_line(operation: &'static str) -> Result<()> {
    if cfg!(libploop_static) {
        // It is part of the program.
        return Ok(());
    }
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    let loaded = *LOADED.get_or_init(|| Loaded::find(|name| address(name).is_some()));
    if loaded == Loaded::Line(LINE.number) {
        return Ok(());
    }
    let file = file().map_or_else(String::new, |file| format!(" ({})", file.display()));
    Err(Error::new(
        ErrorKind::Unsupported,
        operation,
        format!(
            "this program was built for libploop {} ({}), but what is loaded is {}{file}",
            sys::VERSION,
            sys::SONAME,
            loaded.name()
        ),
    )
    .with_advice(
        "build the program with the libploop that it is to run with, and look for others in LD_LIBRARY_PATH and LD_PRELOAD",
    ))
}

/// What is loaded, by the functions that it exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Line(u32),
    /// 7.0.92 to 7.0.94, whose structures are smaller than those of the later 7.0.x.
    Before7_0_95,
    /// Two libraries, of different lines: some calls would reach one, some the other.
    Several,
    Unknown,
}

impl Loaded {
    fn find(exports: impl Fn(&CStr) -> bool) -> Loaded {
        // From 8.0.7 on; from 7.0.92 on; before 7.0.
        let later_than_7 = exports(c"ploop_dm_message");
        let since_7 = exports(c"ploop_set_umount_timeout");
        let line_1 = exports(c"ploop_store_diskdescriptor");
        match (later_than_7, since_7, line_1) {
            (true, _, false) => Loaded::Line(9),
            (false, true, false) if exports(c"ploop_volume_create") => Loaded::Line(7),
            (false, true, false) => Loaded::Before7_0_95,
            (false, false, true) => Loaded::Line(1),
            (false, false, false) => Loaded::Unknown,
            (_, _, true) => Loaded::Several,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Loaded::Line(1) => "libploop 1.x",
            Loaded::Line(7) => "libploop 7.0",
            Loaded::Line(_) => "libploop 8 or 9",
            Loaded::Before7_0_95 => "older than libploop 7.0.95",
            Loaded::Several => "more than one libploop, of different lines",
            Loaded::Unknown => "no libploop that this crate knows",
        }
    }
}

/// The file that holds the function which opens an image.
pub(crate) fn file() -> Option<PathBuf> {
    let address = address(c"ploop_open_dd")?;
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the function writes the structure where it finds the address, and returns 0 where it does not.
    let info = unsafe {
        if libc::dladdr(address.as_ptr(), found.as_mut_ptr()) == 0 {
            return None;
        }
        found.assume_init()
    };
    let name = NonNull::new(info.dli_fname.cast_mut())?;
    // SAFETY: the name belongs to the library, which stays loaded, and is terminated.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where these functions, and those that all lines have, are exported.
    fn found(exported: &[&CStr]) -> Loaded {
        Loaded::find(|name| exported.contains(&name))
    }

    #[test]
    fn a_line_is_told_by_its_functions() {
        let store = c"ploop_store_diskdescriptor";
        let timeout = c"ploop_set_umount_timeout";
        let volume = c"ploop_volume_create";
        let message = c"ploop_dm_message";
        for (exported, loaded) in [
            (&[store][..], Loaded::Line(1)),
            (&[timeout, volume], Loaded::Line(7)),
            (&[timeout], Loaded::Before7_0_95),
            (&[timeout, volume, message], Loaded::Line(9)),
            (&[store, timeout, volume], Loaded::Several),
            (&[store, message], Loaded::Several),
            (&[], Loaded::Unknown),
        ] {
            assert_eq!(found(exported), loaded, "{exported:?}");
        }
    }

    #[test]
    #[cfg_attr(libploop_static, ignore = "libploop is part of this program")]
    fn the_library_of_the_tests_is_of_the_line_they_were_built_for() {
        require_line("test").unwrap();
        let file = file().unwrap();
        assert!(
            file.to_string_lossy().contains("libploop"),
            "{}",
            file.display()
        );
    }
}
