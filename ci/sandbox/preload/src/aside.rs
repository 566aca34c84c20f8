//! Stepping aside: a descriptor of the program's holds open what the daemon has to have to itself. Its place is taken by
//! `/dev/null` meanwhile, and afterwards the file is opened anew, by its path.

use crate::{errno, real};
use libc::c_int;
use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A descriptor whose place `/dev/null` has taken.
pub(crate) struct Aside {
    descriptor: c_int,
    /// Of the open file: access mode, O_DIRECT and so on.
    flags: c_int,
    close_on_exec: bool,
    position: libc::off_t,
}

impl Aside {
    /// Steps aside. Returns the open file too, which has to be dropped for it to be closed. The error is an `errno`.
    pub(crate) fn step(descriptor: c_int) -> Result<(Aside, OwnedFd), c_int> {
        // SAFETY: no pointers; the kernel checks the number.
        let (flags, descriptor_flags, position) = unsafe {
            (
                libc::fcntl(descriptor, libc::F_GETFL),
                libc::fcntl(descriptor, libc::F_GETFD),
                libc::lseek(descriptor, 0, libc::SEEK_CUR),
            )
        };
        if flags < 0 || descriptor_flags < 0 {
            return Err(errno::get());
        }
        // SAFETY: no pointers.
        let held = owned(unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) })?;
        let null = open(c"/dev/null", libc::O_RDWR)?;
        place(&null, descriptor, true)?;
        Ok((
            Aside {
                descriptor,
                flags,
                close_on_exec: descriptor_flags & libc::FD_CLOEXEC != 0,
                position: position.max(0),
            },
            held,
        ))
    }

    /// Takes the place again. If the file cannot be opened any more, `/dev/null` stays there, and the program's next call
    /// fails.
    pub(crate) fn back(self, path: &CStr) {
        // Those that only mean something when a file is made are never among an open file's.
        let Ok(file) = open(path, self.flags) else {
            return;
        };
        // SAFETY: no pointers.
        unsafe { libc::lseek(file.as_raw_fd(), self.position, libc::SEEK_SET) };
        // Where that fails there is nothing better to do.
        let _ = place(&file, self.descriptor, self.close_on_exec);
    }

    /// The descriptor that stepped aside.
    pub(crate) fn descriptor(&self) -> c_int {
        self.descriptor
    }
}

fn open(path: &CStr, flags: c_int) -> Result<OwnedFd, c_int> {
    let Some(open) = real::open() else {
        return Err(libc::ENOSYS);
    };
    // SAFETY: a C string; no file is made, so no mode is needed.
    owned(unsafe { open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// Puts a file in the place of what `descriptor` is now.
fn place(file: &OwnedFd, descriptor: c_int, close_on_exec: bool) -> Result<(), c_int> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no pointers. The number is the program's, and the program is in a call about it.
    let placed = unsafe { libc::dup3(file.as_raw_fd(), descriptor, flags) };
    if placed < 0 {
        return Err(errno::get());
    }
    Ok(())
}

fn owned(descriptor: c_int) -> Result<OwnedFd, c_int> {
    if descriptor < 0 {
        return Err(errno::get());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The path of an open file, as the kernel knows it.
pub(crate) fn path(descriptor: c_int) -> Option<std::ffi::CString> {
    let link = std::ffi::CString::new(format!("/proc/self/fd/{descriptor}")).ok()?;
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    let readlink = real::readlink()?;
    // SAFETY: a C string, and a buffer of that size.
    let len = unsafe { readlink(link.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let path = buffer.get(..usize::try_from(len).ok()?)?;
    // Cut off, perhaps.
    if path.len() == buffer.len() {
        return None;
    }
    std::ffi::CString::new(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _};
    use std::os::fd::IntoRawFd as _;

    #[test]
    fn a_descriptor_steps_aside_and_back() {
        let mut file = std::fs::File::open("/proc/self/maps").unwrap();
        file.seek(std::io::SeekFrom::Start(7)).unwrap();
        let path = path(file.as_raw_fd()).unwrap();
        assert!(path.to_bytes().ends_with(b"/maps"));
        let number = file.into_raw_fd();
        let (aside, held) = Aside::step(number).unwrap();
        drop(held);
        assert_eq!(aside.descriptor(), number);
        assert_eq!(super::path(number).unwrap().as_c_str(), c"/dev/null");
        aside.back(&path);
        assert_eq!(super::path(number).unwrap(), path);
        // SAFETY: the number is this test's own.
        let mut file = unsafe { std::fs::File::from_raw_fd(number) };
        assert_eq!(file.stream_position().unwrap(), 7);
        assert_eq!(file.read(&mut [0; 4]).unwrap(), 4);
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        assert_eq!(Aside::step(-1).err(), Some(libc::EBADF));
    }
}
