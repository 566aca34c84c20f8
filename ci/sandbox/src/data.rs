//! The FUSE file that holds a device's virtual disk: what the loop device reads and writes.

use std::io;

/// What a device's FUSE file reads and writes.
pub(crate) trait Data: Send + Sync + 'static {
    /// Of the virtual disk, in bytes; 0 when stopped.
    fn size(&self) -> u64;
    /// `buffer` lies within [`Data::size`].
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// `data` lies within [`Data::size`].
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// What was written is on the disk when this returns.
    fn flush(&self) -> io::Result<()>;
    /// A discard, or zeroes to be written. `done` may be answered later, by another thread.
    fn punch(&self, offset: u64, len: u64, done: Done);
}

/// The answer that a [`Data::punch`] owes. Dropped without one, it is EIO.
pub(crate) struct Done(Option<Box<dyn FnOnce(io::Result<()>) + Send>>);

impl Done {
    /// For tests of a [`Data`], too: calls `answer` with the result.
    pub(crate) fn new(answer: impl FnOnce(io::Result<()>) + Send + 'static) -> Done {
        Done(Some(Box::new(answer)))
    }

    pub(crate) fn answer(mut self, result: io::Result<()>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(io::Error::other("a discard was dropped")));
        }
    }
}
