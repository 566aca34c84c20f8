//! Releases a descriptor of the program for a while, so that it does not keep a device or file system busy that the
//! daemon has to stop or unmount. The number names `/dev/null` meanwhile; afterwards the file is opened again by its
//! path.

use crate::{errno, kernel, real};
use libc::c_int;
use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// A descriptor number that names `/dev/null` for a while.
pub(crate) struct ReleasedDescriptor {
    descriptor: c_int,
    /// Flags of the open file: access mode, O_DIRECT and so on.
    flags: c_int,
    close_on_exec: bool,
    position: libc::off_t,
}

impl ReleasedDescriptor {
    /// Releases a descriptor. Returns the open file, too; it is closed when that is dropped. The error is an `errno`.
    pub(crate) fn release(descriptor: c_int) -> Result<(ReleasedDescriptor, OwnedFd), c_int> {
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
        let file = kernel::owned(unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) })?;
        let null = kernel::open(c"/dev/null".as_ptr(), libc::O_RDWR)?;
        replace(&null, descriptor, true)?;
        Ok((
            ReleasedDescriptor {
                descriptor,
                flags,
                close_on_exec: descriptor_flags & libc::FD_CLOEXEC != 0,
                position: position.max(0),
            },
            file,
        ))
    }

    /// Opens the file again, under the old number. If it cannot be opened any more, the number goes on naming
    /// `/dev/null`, and the program's next call fails.
    pub(crate) fn reopen(self, path: &CStr) {
        // O_CREAT and its like are never among the flags of an open file.
        let Ok(file) = kernel::open(path.as_ptr(), self.flags) else {
            return;
        };
        // SAFETY: no pointers.
        unsafe { libc::lseek(file.as_raw_fd(), self.position, libc::SEEK_SET) };
        // Where that fails, nothing more can be done.
        let _ = replace(&file, self.descriptor, self.close_on_exec);
    }

    /// The number.
    pub(crate) fn descriptor(&self) -> c_int {
        self.descriptor
    }
}

/// Makes a descriptor number name this file.
fn replace(file: &OwnedFd, descriptor: c_int, close_on_exec: bool) -> Result<(), c_int> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no pointers. The number is the program's, and the program is in a call about it.
    let placed = unsafe { libc::dup3(file.as_raw_fd(), descriptor, flags) };
    if placed < 0 {
        return Err(errno::get());
    }
    Ok(())
}

/// The path of an open file, as the kernel knows it.
pub(crate) fn path(descriptor: c_int) -> Option<std::ffi::CString> {
    let link = std::ffi::CString::new(format!("/proc/self/fd/{descriptor}")).ok()?;
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    let readlink = real::readlink()?;
    // SAFETY: a C string, and a buffer of that size.
    let len = unsafe { readlink(link.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let path = buffer.get(..usize::try_from(len).ok()?)?;
    // A path that fills the buffer may be cut off.
    if path.len() == buffer.len() {
        return None;
    }
    std::ffi::CString::new(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _};
    use std::os::fd::{FromRawFd as _, IntoRawFd as _};

    #[test]
    fn a_descriptor_is_released_and_reopened() {
        let mut file = std::fs::File::open("/proc/self/maps").unwrap();
        file.seek(std::io::SeekFrom::Start(7)).unwrap();
        let path = path(file.as_raw_fd()).unwrap();
        assert!(path.to_bytes().ends_with(b"/maps"));
        let number = file.into_raw_fd();
        let (released, file) = ReleasedDescriptor::release(number).unwrap();
        drop(file);
        assert_eq!(released.descriptor(), number);
        assert_eq!(super::path(number).unwrap().as_c_str(), c"/dev/null");
        released.reopen(&path);
        assert_eq!(super::path(number).unwrap(), path);
        // SAFETY: the number is this test's own.
        let mut file = unsafe { std::fs::File::from_raw_fd(number) };
        assert_eq!(file.stream_position().unwrap(), 7);
        assert_eq!(file.read(&mut [0; 4]).unwrap(), 4);
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        assert_eq!(ReleasedDescriptor::release(-1).err(), Some(libc::EBADF));
    }
}
