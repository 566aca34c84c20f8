//! The lock files that the process has open.

use crate::kernel;
use libc::c_int;
use std::ffi::CString;

/// libploop opens few files, and those early.
const NUMBERS: c_int = 64;

/// The descriptors of files that are called like lock files of libploop's. Whoever has a copy of one holds the lock.
pub(crate) fn open_lock_files() -> Vec<c_int> {
    let is_lock_file = |number: &c_int| {
        let Ok(path) = CString::new(format!("/proc/self/fd/{number}")) else {
            return false;
        };
        let mut link = [0; libc::PATH_MAX as usize];
        let len = kernel::read_link(path.as_ptr(), &mut link);
        len.and_then(|len| link.get(..len))
            .is_some_and(|link| link.ends_with(b".lck"))
    };
    (0..NUMBERS).filter(is_lock_file).collect()
}
