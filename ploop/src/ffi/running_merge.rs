//! `PLOOP_IOC_MERGE`, sent by this crate: it finishes a merge that a killed program has left running in the driver.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IO('P', 12)`.
const PLOOP_IOC_MERGE: libc::c_ulong = 0x500c;

/// Waits until the driver has moved all clusters and has taken the old top off the device.
///
/// libploop cannot do it: it compares such a device with the wrong delta, fails, and frees a name twice (hazard 17).
pub(crate) fn finish_merge(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    loop {
        // SAFETY: the request has no argument.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), PLOOP_IOC_MERGE as _, 0) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Another process has finished it.
            Some(libc::EALREADY) => return Ok(()),
            _ => return Err(error),
        }
    }
}
