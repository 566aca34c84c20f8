//! [`Contents`]: reading the data of a file, ahead of whoever takes it.

use std::ops::Range;
use std::sync::mpsc;
use std::thread;

use crate::file_system::{DataRun, FileSystem};
use crate::output::Result;

/// The pieces in which the data of a file is read, and how many of them are in memory.
const BUFFER: usize = 1 << 20;
const BUFFERS: usize = 4;

/// The data of a file from an offset on, with holes as zeros or without them.
pub(crate) struct Contents<'a> {
    file_system: &'a FileSystem,
    runs: &'a [DataRun],
    /// What is left, as offsets in the file.
    left: Range<u64>,
    run: usize,
    with_holes: bool,
}

/// A part of the data of a file, as it was read.
struct ReadPart {
    /// Where it is in the file.
    offset: u64,
    /// It may be longer than the part.
    buffer: Vec<u8>,
    len: usize,
}

impl<'a> Contents<'a> {
    pub(crate) fn new(
        file_system: &'a FileSystem,
        runs: &'a [DataRun],
        range: Range<u64>,
    ) -> Contents<'a> {
        Contents {
            file_system,
            runs,
            left: range,
            run: 0,
            with_holes: true,
        }
    }

    pub(crate) fn without_holes(self) -> Contents<'a> {
        Contents {
            with_holes: false,
            ..self
        }
    }

    /// Gives all parts to `take` in order, each with its offset in the file. While it has one, a thread reads the next
    /// ones: an image that is not in memory is read as fast as its disk goes, whatever `take` waits for.
    pub(crate) fn for_each(self, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let len = self.left.end.saturating_sub(self.left.start);
        // What fits into one buffer is read before a thread has started.
        if len <= BUFFER as u64 {
            let mut buffer = vec![0; len as usize];
            let mut contents = self;
            while let Some((offset, len)) = contents.read_part(&mut buffer)? {
                take(offset, &buffer[..len])?;
            }
            return Ok(());
        }
        thread::scope(move |scope| {
            let (read, parts) = mpsc::sync_channel(BUFFERS);
            let (used, free) = mpsc::sync_channel(BUFFERS);
            scope.spawn(move || {
                // An error of a channel says that nobody wants more, because `take` has failed.
                let mut new = (0..BUFFERS).map(|_| vec![0; BUFFER]);
                let mut contents = self;
                while let Some(mut buffer) = new.next().or_else(|| free.recv().ok()) {
                    let part = match contents.read_part(&mut buffer) {
                        Ok(None) => break,
                        Ok(Some((offset, len))) => Ok(ReadPart {
                            offset,
                            buffer,
                            len,
                        }),
                        Err(failure) => Err(failure),
                    };
                    let is_last = part.is_err();
                    if read.send(part).is_err() || is_last {
                        break;
                    }
                }
            });
            for part in parts {
                let ReadPart {
                    offset,
                    buffer,
                    len,
                } = part?;
                take(offset, &buffer[..len])?;
                // The thread may have ended.
                let _ = used.send(buffer);
            }
            Ok(())
        })
    }

    /// Reads what follows, at most one run or hole, and returns its offset and length. `None` at the end.
    fn read_part(&mut self, buffer: &mut [u8]) -> Result<Option<(u64, usize)>> {
        let run = self.runs.get(self.run);
        let next = run.map_or(self.left.end, |run| run.offset);
        let start = self.left.start;
        if start < next && self.with_holes {
            let part = (next - start).min(buffer.len() as u64) as usize;
            buffer[..part].fill(0);
            self.left.start += part as u64;
            return Ok(Some((start, part)));
        }
        let Some(run) = run else {
            return Ok(None);
        };
        let start = start.max(run.offset);
        let end = run.offset + run.len;
        let part = (end - start).min(buffer.len() as u64) as usize;
        let at = run.at + (start - run.offset);
        self.file_system.read_at(at, &mut buffer[..part])?;
        self.left.start = start + part as u64;
        if self.left.start == end {
            self.run += 1;
        }
        Ok(Some((start, part)))
    }
}
