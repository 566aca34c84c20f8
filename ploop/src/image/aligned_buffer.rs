//! [`AlignedBuffer`]: memory for copies of files. It begins with a page, because the kernel then copies a cached file in
//! half of the time.

use std::fmt::{self, Debug};
use std::ops::{Deref, DerefMut};

/// As of the pages of nearly every host. Larger pages need no more.
const PAGE: usize = 4096;

/// Zeros at first.
pub(super) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    pub(super) fn new(len: usize) -> AlignedBuffer {
        let memory = vec![0; len + PAGE];
        // Never behind the memory: that is longer by a page.
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        AlignedBuffer { memory, start, len }
    }
}

impl Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_a_page_and_has_its_length() {
        for len in [0, 1, 4095, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}
