//! The functions of libc that this library replaces, looked up by `dlsym`.

use crate::errno::{self, Failure};
use libc::{
    DIR, FILE, c_char, c_int, c_uint, c_ulong, c_void, dev_t, dirent, mode_t, off_t, size_t,
    ssize_t,
};
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Not looked up yet. No function has this address.
const UNKNOWN: *mut c_void = std::ptr::without_provenance_mut(1);

macro_rules! real {
    ($($name:ident: fn($($argument:tt)*) -> $result:ty;)+) => {
        $(
            /// libc's function of this name, if it has one.
            pub(crate) fn $name() -> Option<unsafe extern "C-unwind" fn($($argument)*) -> $result> {
                static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(UNKNOWN);
                let address = address(&ADDRESS, concat!(stringify!($name), "\0").as_bytes());
                // SAFETY: null becomes None, anything else is the function of that name, whose type is what the
                // system's headers say.
                unsafe {
                    std::mem::transmute::<
                        *mut c_void,
                        Option<unsafe extern "C-unwind" fn($($argument)*) -> $result>,
                    >(address)
                }
            }
        )+

        /// Looks all of them up.
        pub(crate) fn resolve_all() {
            $($name();)+
        }
    };
}

real! {
    ioctl: fn(c_int, c_ulong, ...) -> c_int;
    open: fn(*const c_char, c_int, ...) -> c_int;
    open64: fn(*const c_char, c_int, ...) -> c_int;
    __open_2: fn(*const c_char, c_int) -> c_int;
    __open64_2: fn(*const c_char, c_int) -> c_int;
    openat: fn(c_int, *const c_char, c_int, ...) -> c_int;
    openat64: fn(c_int, *const c_char, c_int, ...) -> c_int;
    __openat_2: fn(c_int, *const c_char, c_int) -> c_int;
    __openat64_2: fn(c_int, *const c_char, c_int) -> c_int;
    fopen: fn(*const c_char, *const c_char) -> *mut FILE;
    fopen64: fn(*const c_char, *const c_char) -> *mut FILE;
    setmntent: fn(*const c_char, *const c_char) -> *mut FILE;
    creat: fn(*const c_char, mode_t) -> c_int;
    creat64: fn(*const c_char, mode_t) -> c_int;
    unlink: fn(*const c_char) -> c_int;
    unlinkat: fn(c_int, *const c_char, c_int) -> c_int;
    remove: fn(*const c_char) -> c_int;
    rename: fn(*const c_char, *const c_char) -> c_int;
    renameat: fn(c_int, *const c_char, c_int, *const c_char) -> c_int;
    renameat2: fn(c_int, *const c_char, c_int, *const c_char, c_uint) -> c_int;
    truncate: fn(*const c_char, off_t) -> c_int;
    truncate64: fn(*const c_char, off_t) -> c_int;
    ftruncate: fn(c_int, off_t) -> c_int;
    ftruncate64: fn(c_int, off_t) -> c_int;
    fallocate: fn(c_int, c_int, off_t, off_t) -> c_int;
    fallocate64: fn(c_int, c_int, off_t, off_t) -> c_int;
    posix_fallocate: fn(c_int, off_t, off_t) -> c_int;
    posix_fallocate64: fn(c_int, off_t, off_t) -> c_int;
    readdir: fn(*mut DIR) -> *mut dirent;
    readdir64: fn(*mut DIR) -> *mut dirent;
    opendir: fn(*const c_char) -> *mut DIR;
    access: fn(*const c_char, c_int) -> c_int;
    faccessat: fn(c_int, *const c_char, c_int, c_int) -> c_int;
    readlink: fn(*const c_char, *mut c_char, size_t) -> ssize_t;
    __readlink_chk: fn(*const c_char, *mut c_char, size_t, size_t) -> ssize_t;
    readlinkat: fn(c_int, *const c_char, *mut c_char, size_t) -> ssize_t;
    __readlinkat_chk: fn(c_int, *const c_char, *mut c_char, size_t, size_t) -> ssize_t;
    stat: fn(*const c_char, *mut libc::stat) -> c_int;
    stat64: fn(*const c_char, *mut libc::stat) -> c_int;
    lstat: fn(*const c_char, *mut libc::stat) -> c_int;
    lstat64: fn(*const c_char, *mut libc::stat) -> c_int;
    fstat: fn(c_int, *mut libc::stat) -> c_int;
    fstat64: fn(c_int, *mut libc::stat) -> c_int;
    fstatat: fn(c_int, *const c_char, *mut libc::stat, c_int) -> c_int;
    fstatat64: fn(c_int, *const c_char, *mut libc::stat, c_int) -> c_int;
    statx: fn(c_int, *const c_char, c_int, c_uint, *mut libc::statx) -> c_int;
    mknod: fn(*const c_char, mode_t, dev_t) -> c_int;
    mknodat: fn(c_int, *const c_char, mode_t, dev_t) -> c_int;
    chmod: fn(*const c_char, mode_t) -> c_int;
    mount: fn(*const c_char, *const c_char, *const c_char, c_ulong, *const c_void) -> c_int;
    close: fn(c_int) -> c_int;
    waitpid: fn(libc::pid_t, *mut c_int, c_int) -> libc::pid_t;
}

fn address(known: &AtomicPtr<c_void>, name: &[u8]) -> *mut c_void {
    let address = known.load(Ordering::Relaxed);
    if address != UNKNOWN {
        return address;
    }
    let Ok(name) = CStr::from_bytes_with_nul(name) else {
        return std::ptr::null_mut();
    };
    // SAFETY: a C string, and a handle that `dlsym` knows.
    let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    known.store(address, Ordering::Relaxed);
    address
}

/// The result of a function that libc does not have: ENOSYS.
pub(crate) fn missing<T: Failure>() -> T {
    errno::fail(libc::ENOSYS)
}
