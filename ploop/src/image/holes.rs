//! Holes of files (`SEEK_DATA`, `SEEK_HOLE`), and zeros in memory.

use std::fs::File;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Whether a range of the file is a hole. `false` where the file system cannot tell.
pub(super) fn is_hole(file: &File, offset: u64, len: u64) -> bool {
    match next_data(file, offset) {
        Some(data) => data >= offset.saturating_add(len),
        None => true,
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [first, rest @ ..] => {
            // Compares each byte with the one before it, by `memcmp`, which is fast in every build.
            *first == 0 && rest == &bytes[..rest.len()]
        }
        [] => true,
    }
}

/// The parts of a range of the file that have data, as (offset, length). The whole range where the file system cannot
/// tell.
pub(super) fn data(file: &File, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let end = offset.saturating_add(len);
    let mut at = offset;
    let mut known = DataRun::default();
    std::iter::from_fn(move || {
        let (start, stop) = known.next(file, at, end)?;
        at = stop;
        Some((start, stop - start))
    })
}

/// The last range of data that was found in a file. Finding its end may take as long as the file is long, so it is
/// remembered from one read to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DataRun {
    start: u64,
    end: u64,
}

impl DataRun {
    /// The first data from `at` on and before `end`, as (start, end).
    pub(super) fn next(&mut self, file: &File, at: u64, end: u64) -> Option<(u64, u64)> {
        if at >= end {
            return None;
        }
        if !(self.start..self.end).contains(&at) {
            let start = next_data(file, at).filter(|start| *start < end)?;
            let stop = match seek(file, SeekFrom::Hole(start)) {
                // The file may shrink meanwhile; the range must not be empty.
                Ok(hole) if hole > start => hole,
                _ => end,
            };
            *self = DataRun { start, end: stop };
        }
        Some((at.max(self.start), end.min(self.end)))
    }
}

/// The offset of the next data; `None` where there is none up to the end of the file.
fn next_data(file: &File, offset: u64) -> Option<u64> {
    // Changes the position of the file, which is not used here.
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Some(data.max(offset)),
        Err(Errno::NXIO) => None,
        Err(_) => Some(offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_not_zero_is_seen_wherever_it_is() {
        let mut bytes = [0; 100];
        assert!(is_zero(&bytes) && is_zero(&[]) && is_zero(&[0]) && !is_zero(&[1]));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
        assert!(!is_zero(&[7; 100]));
    }
}
