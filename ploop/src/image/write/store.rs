//! What a delta is written to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file. Tests put something in its place that remembers in which order it was written.
pub(super) trait Store: Send {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Brings everything written so far to the disk, the length of the file, too.
    fn sync(&self) -> io::Result<()>;
}

impl Store for File {
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

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
