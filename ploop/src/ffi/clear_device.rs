//! `PLOOP_IOC_CLEAR`, sent by this crate: it takes the component name off a device without deltas.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IO('P', 1)`.
const PLOOP_IOC_CLEAR: libc::c_ulong = 0x5001;

/// Clears a device that has no deltas and does not run. `ploop_umount` does the same, but that of libploop 7 looks for the
/// top delta first, and fails.
pub(crate) fn clear_device(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    // SAFETY: the request has no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), PLOOP_IOC_CLEAR as _, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
