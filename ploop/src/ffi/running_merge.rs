//! The one request to the driver that libploop cannot be trusted with: `PLOOP_IOC_MERGE` of a device
//! whose merge was begun by a program that is gone.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IO('P', 12)`.
const PLOOP_IOC_MERGE: libc::c_ulong = 0x500c;

/// Waits until the clusters of the merge have moved, and takes the old top off the device.
///
/// libploop finds such a device in the first call about its image, compares it with the wrong delta,
/// fails, and frees a name twice (hazard 17).
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
            // Somebody else has finished it.
            Some(libc::EALREADY) => return Ok(()),
            _ => return Err(error),
        }
    }
}
