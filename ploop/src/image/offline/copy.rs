//! Copying clusters from file to file, by several threads and in the kernel where it can (`copy_file_range`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use rustix::io::Errno;

use super::change::OfflineChange;
use crate::image::chain::{Chain, Level};
use crate::{Error, Result};

/// How much one thread copies at a time.
const CHUNK: u64 = 4 << 20;
/// How much one thread reads at a time: it stays in the cache until it is written.
const BUFFER: usize = 512 << 10;
/// Less than this is copied by one thread.
const SHARED_FROM: u64 = 16 << 20;
const MAX_THREADS: usize = 8;

/// A part of a file, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The level of the chain whose file it is in.
    pub(super) level: usize,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
}

/// What is to be copied.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    len: u64,
}

impl Pieces {
    /// Adds a piece, to the last one if it continues that.
    pub(super) fn add(&mut self, piece: Piece) {
        self.len += piece.len;
        match self.pieces.last_mut() {
            Some(last)
                if last.level == piece.level
                    && last.from + last.len == piece.from
                    && last.to + last.len == piece.to =>
            {
                last.len += piece.len;
            }
            _ => self.pieces.push(piece),
        }
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn clear(&mut self) {
        *self = Pieces::default();
    }

    fn chunks(&self) -> Vec<Piece> {
        let mut chunks = Vec::new();
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.len {
                let len = (piece.len - done).min(CHUNK);
                chunks.push(Piece {
                    from: piece.from + done,
                    to: piece.to + done,
                    len,
                    ..*piece
                });
                done += len;
            }
        }
        chunks
    }
}

/// Copies from the files of a chain into another file.
pub(super) struct Copier<'a> {
    operation: &'static str,
    source: &'a Chain,
    target: &'a File,
    target_path: &'a Path,
    cancel: Option<&'a AtomicBool>,
    /// Whether the kernel can copy between these files.
    in_kernel: AtomicBool,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        change: &OfflineChange<'a>,
        source: &'a Chain,
        target: &'a File,
        target_path: &'a Path,
    ) -> Copier<'a> {
        Copier {
            operation: change.operation(),
            source,
            target,
            target_path,
            cancel: change.cancel_flag(),
            in_kernel: AtomicBool::new(true),
        }
    }

    /// Copies all, and tells of the bytes on this thread.
    pub(super) fn copy(&self, pieces: &Pieces, copied: &mut dyn FnMut(u64)) -> Result<()> {
        let chunks = pieces.chunks();
        let threads = match pieces.len() {
            ..SHARED_FROM => 1,
            _ => thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)),
        };
        if threads == 1 {
            let mut buffer = Vec::new();
            return chunks.iter().try_for_each(|chunk| {
                self.copy_chunk(chunk, &mut buffer)?;
                copied(chunk.len);
                Ok(())
            });
        }
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let work = |sender: mpsc::SyncSender<u64>| {
            let mut buffer = Vec::new();
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.copy_chunk(chunk, &mut buffer) {
                    // Where the progress function has panicked, the receiver is gone.
                    Ok(()) if sender.send(chunk.len).is_ok() => {}
                    Ok(()) => return,
                    Err(error) => {
                        next.store(chunks.len(), Ordering::Relaxed);
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                        return;
                    }
                }
            }
        };
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(64);
            for _ in 0..threads {
                let sender = sender.clone();
                scope.spawn(|| work(sender));
            }
            drop(sender);
            receiver.into_iter().for_each(&mut *copied);
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn copy_chunk(&self, chunk: &Piece, buffer: &mut Vec<u8>) -> Result<()> {
        if self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(super::change::cancelled(self.operation));
        }
        let level = &self.source.levels()[chunk.level];
        let mut done = 0;
        while done < chunk.len {
            let (from, to) = (chunk.from + done, chunk.to + done);
            done += match self.copy_in_kernel(level.file(), from, to, chunk.len - done)? {
                Some(len) => len,
                None => self.copy_by_hand(level, from, to, chunk.len - done, buffer)?,
            };
        }
        Ok(())
    }

    /// `None` where the kernel cannot do it.
    fn copy_in_kernel(&self, source: &File, from: u64, to: u64, len: u64) -> Result<Option<u64>> {
        if !self.in_kernel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (mut from, mut to) = (from, to);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), self.target, Some(&mut to), len)
        {
            // The end of the file, which reading tells better.
            Ok(0) => Ok(None),
            Ok(copied) => Ok(Some(copied as u64)),
            Err(Errno::INTR) => Ok(Some(0)),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                Err(self.write_failed(error.into(), to))
            }
            // Another file system, an old kernel, or something that reading and writing tell better.
            Err(_) => {
                self.in_kernel.store(false, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    fn copy_by_hand(
        &self,
        level: &Level,
        from: u64,
        to: u64,
        len: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<u64> {
        buffer.resize(BUFFER, 0);
        let part = &mut buffer[..len.min(BUFFER as u64) as usize];
        level.file().read_exact_at(part, from).map_err(|error| {
            Error::io(self.operation, "the data cannot be read", error)
                .with_path(level.path())
                .with_offset(from)
        })?;
        self.target
            .write_all_at(part, to)
            .map_err(|error| self.write_failed(error, to))?;
        Ok(part.len() as u64)
    }

    fn write_failed(&self, error: io::Error, offset: u64) -> Error {
        Error::io(self.operation, "the data cannot be written", error)
            .with_path(self.target_path)
            .with_offset(offset)
    }
}
