//! Late functions (`ploop_sys::late`): those that the first versions of a line do not have. All versions of a line have one
//! soname, so a program that is built with 7.0.280 may be run with 7.0.95. One that is linked to a late function would not
//! even start there. So these are looked up in the library that is loaded, when they are needed. Whether they are there
//! was asked before: that is a `Feature`.

use std::ffi::{CStr, c_void};

/// A late function, as `Option<unsafe extern "C" fn(…) -> …>`: `None` where the library that is loaded does not have it.
macro_rules! late {
    ($function:ident) => {{
        const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
            concat!(stringify!($function), "\0").as_bytes(),
        ) {
            Ok(name) => name,
            Err(_) => panic!("an identifier has no zero byte"),
        };
        // SAFETY: the bindings give the function of this name this type.
        unsafe { $crate::ffi::line::late::find::<ploop_sys::late::$function>(NAME) }
    }};
}
pub(in crate::ffi) use late;

/// For [`late!`].
///
/// # Safety
///
/// `F` has to be the type of the pointers to the function of this name.
pub(in crate::ffi) unsafe fn find<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    let address = super::loaded::address(name)?;
    // SAFETY: the address is that of a function whose pointers have type `F`, as the caller promises, and is not null.
    Some(unsafe { std::mem::transmute_copy(&address) })
}

#[cfg(test)]
mod tests {
    use ploop_sys as sys;

    use super::*;
    use crate::ffi::line::loaded;

    /// `7.0.95` is less than `7.0.163.2`.
    fn numbers(version: &str) -> Vec<u32> {
        version.split('.').map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    #[cfg_attr(libploop_static, ignore = "libploop is part of this program")]
    fn a_library_has_the_functions_of_its_version() {
        let file = loaded::file().unwrap().canonicalize().unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let version = name.strip_prefix("libploop.so.").map(numbers);
        // A name such as `libploop.so.7` does not tell the version.
        let version = version.filter(|version| version.len() >= 3);
        let mut found = 0;
        for (name, since) in sys::late::SINCE {
            let is_there = loaded::address(name).is_some();
            found += usize::from(is_there);
            if let Some(version) = &version {
                assert_eq!(is_there, *version >= numbers(since), "{name:?}");
            }
        }
        println!(
            "{found} of {} in {}",
            sys::late::SINCE.len(),
            file.display()
        );
        let devname = late!(ploop_get_devname);
        assert_eq!(
            devname.is_some(),
            loaded::address(c"ploop_get_devname").is_some()
        );
    }

    #[test]
    #[cfg_attr(not(libploop_static), ignore = "libploop is no part of this program")]
    fn late_functions_of_a_static_library_are_found() {
        let found = |name: &CStr| loaded::address(name).is_some();
        let count = sys::late::SINCE
            .iter()
            .filter(|(name, _)| found(name))
            .count();
        // The table has what the library had; its version says what that was.
        let version = numbers(sys::VERSION);
        let new = |since: &str| numbers(since) <= version;
        let expected = sys::late::SINCE
            .iter()
            .filter(|(_, since)| new(since))
            .count();
        assert_eq!(count, expected, "{}", sys::VERSION);
        let address = late!(ploop_get_fs_info).map(|function| function as usize);
        assert_eq!(address.is_some(), found(c"ploop_get_fs_info"));
        assert!(!found(c"ploop_open_dd"));
    }

    #[test]
    #[cfg_attr(libploop_static, ignore = "libploop is part of this program")]
    fn this_program_is_linked_to_no_late_function() {
        let output = std::process::Command::new("nm")
            .args(["-D", "--undefined-only", "-j"])
            .arg(std::env::current_exe().unwrap())
            .output()
            .expect("this test needs nm (binutils)");
        let text = String::from_utf8(output.stdout).unwrap();
        let linked: Vec<&str> = text.lines().collect();
        assert!(linked.contains(&"ploop_open_dd"), "{linked:?}");
        for (name, _) in sys::late::SINCE {
            assert!(!linked.contains(&name.to_str().unwrap()), "{name:?}");
        }
    }
}
