//! Reads and writes the program's memory by system calls, so that an invalid address is an error and no crash.

use libc::{c_ulong, c_void, iovec};

/// The bytes at `address`; None if not all of them are readable.
pub(crate) fn read(address: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    transfer(bytes.as_mut_ptr(), address, len, false).then_some(bytes)
}

/// Writes bytes to `address`; false if not all of that is writable.
pub(crate) fn write(address: u64, bytes: &[u8]) -> bool {
    transfer(bytes.as_ptr().cast_mut(), address, bytes.len(), true)
}

fn transfer(own: *mut u8, address: u64, len: usize, to_address: bool) -> bool {
    if len == 0 {
        return true;
    }
    if address == 0 {
        return false;
    }
    let remote = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    let own_vec = iovec {
        iov_base: own.cast::<c_void>(),
        iov_len: len,
    };
    let remote_vec = iovec {
        iov_base: remote.cast::<c_void>(),
        iov_len: len,
    };
    const ONE: c_ulong = 1;
    // SAFETY: `own` has `len` bytes. The kernel checks the other address, which the program passed to be read or
    // written.
    let moved = unsafe {
        let me = libc::getpid();
        if to_address {
            libc::process_vm_writev(me, &own_vec, ONE, &remote_vec, ONE, 0)
        } else {
            libc::process_vm_readv(me, &own_vec, ONE, &remote_vec, ONE, 0)
        }
    };
    if moved >= 0 {
        return moved as usize == len;
    }
    if !matches!(crate::errno::get(), libc::ENOSYS | libc::EPERM) {
        return false;
    }
    // Some containers forbid the call. Then the address is taken for valid, as libc does.
    // SAFETY: the bytes are the program's by its contract with `ioctl`; `own` is this library's, so they do not
    // overlap.
    unsafe {
        if to_address {
            std::ptr::copy_nonoverlapping(own, remote, len);
        } else {
            std::ptr::copy_nonoverlapping(remote, own, len);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_and_written() {
        let mut bytes = [1u8, 2, 3];
        let address = bytes.as_mut_ptr().expose_provenance() as u64;
        assert_eq!(read(address, 3), Some(vec![1, 2, 3]));
        assert!(write(address, &[4, 5]));
        assert_eq!(bytes, [4, 5, 3]);
    }

    #[test]
    fn an_invalid_address_is_an_error() {
        assert_eq!(read(0, 4), None);
        assert_eq!(read(8, 4), None);
        assert!(!write(8, &[1]));
        let text = "constant".as_ptr().expose_provenance() as u64;
        assert!(!write(text, &[1]));
        assert_eq!(read(8, 0), Some(Vec::new()));
    }
}
