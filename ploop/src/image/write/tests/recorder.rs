//! A file that records what is done to it, so that a test can tell what a kill at any point leaves.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::image::write::Storage;

/// The unit that a disk writes as a whole.
pub(in crate::image) const SECTOR: usize = 512;

/// What was done to a file.
pub(in crate::image) type Log = Arc<Mutex<Vec<Step>>>;

/// A file that records what is done to it.
pub(in crate::image) struct Recorder {
    file: File,
    log: Log,
}

#[derive(Debug, Clone)]
pub(in crate::image) enum Step {
    Write(u64, Vec<u8>),
    Allocate(u64),
    SetLen(u64),
    Sync,
    /// A flush has returned.
    Flushed,
}

impl Recorder {
    pub(in crate::image) fn of(path: &Path) -> (Recorder, Log) {
        let log = Log::default();
        let file = OpenOptions::new().read(true).write(true).open(path);
        let recorder = Recorder {
            file: file.unwrap(),
            log: log.clone(),
        };
        (recorder, log)
    }

    fn note(&self, step: Step) {
        self.log.lock().unwrap().push(step);
    }
}

impl Storage for Recorder {
    fn len(&self) -> io::Result<u64> {
        Storage::len(&self.file)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Step::SetLen(len));
        Storage::set_len(&self.file, len)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(Step::Write(offset, data.to_vec()));
        self.file.write(data, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Step::Allocate(offset + len));
        self.file.allocate(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Step::Write(offset, vec![0; len as usize]));
        self.file.zero(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }

    fn file(&self) -> &File {
        &self.file
    }
}

/// Like [`Vec::resize`] with zeroes, which goes byte by byte in a build that is not optimized.
fn set_len(file: &mut Vec<u8>, len: usize) {
    file.truncate(len);
    file.extend_from_slice(&vec![0; len - file.len()]);
}

/// The file after some steps. Of the writes since the last sync, `kept` says which reached the disk.
pub(in crate::image) fn replay(
    start: &[u8],
    steps: &[Step],
    mut kept: impl FnMut() -> bool,
) -> Vec<u8> {
    let synced = steps
        .iter()
        .rposition(|step| matches!(step, Step::Sync))
        .unwrap_or(0);
    let mut file = start.to_vec();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Write(offset, data) => {
                // The disk writes whole sectors.
                for (index, part) in data.chunks(SECTOR).enumerate() {
                    if at < synced || kept() {
                        let offset = *offset as usize + index * SECTOR;
                        if file.len() < offset + part.len() {
                            set_len(&mut file, offset + part.len());
                        }
                        file[offset..offset + part.len()].copy_from_slice(part);
                    }
                }
            }
            Step::Allocate(len) if at < synced || kept() => {
                let len = file.len().max(*len as usize);
                set_len(&mut file, len);
            }
            Step::SetLen(len) if at < synced || kept() => set_len(&mut file, *len as usize),
            Step::Allocate(_) | Step::SetLen(_) | Step::Sync | Step::Flushed => {}
        }
    }
    file
}
