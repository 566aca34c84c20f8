//! [`Storage`]: the file of a delta that is written to, or a fake of it in tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

/// A file. The fake of the tests records the order of writes and syncs.
pub(in crate::image) trait Storage: Send {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file longer by space that is allocated and reads as zero. [`io::ErrorKind::Unsupported`] where the file
    /// system cannot do it.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Zeroes a range of the file, which stays allocated.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Syncs everything written so far, and the length of the file.
    fn sync(&self) -> io::Result<()>;
    /// The file itself.
    fn file(&self) -> &File;
}

impl Storage for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        retry_on_intr(|| fallocate(self, FallocateFlags::empty(), offset, len)).map_err(|error| {
            match error {
                Errno::OPNOTSUPP | Errno::NOSYS => io::ErrorKind::Unsupported.into(),
                error => error.into(),
            }
        })
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(self, flags, offset, len)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(self, offset, len),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn file(&self) -> &File {
        self
    }
}

/// Writes zeros. A hole would do for a reader, but the driver cannot write to one.
pub(in crate::image) fn write_zeros(
    storage: &dyn Storage,
    mut offset: u64,
    len: u64,
) -> io::Result<()> {
    let end = offset + len;
    let zeros = vec![0; len.min(1 << 20) as usize];
    while offset < end {
        let part = zeros.len().min((end - offset) as usize);
        storage.write(&zeros[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}
