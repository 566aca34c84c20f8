//! The writes of a repair, in their order.
//!
//! At each moment each file has some first steps of its list, and after a power cut, of those behind the last sync, any.
//! None of that is worse than before: copies and space come first; then the header, but for its marks; then the entries, each
//! of which leads to what is there already; then the file is cut, where no entry leads any more; the marks come last.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::delta::{ClusterCopy, EntryChange, FileChange};
use crate::identity::Identity;
use crate::image::descriptor;
use crate::image::header::{Header, at};
use crate::image::write::{Storage, WritableDelta, write_zeros};
use crate::side_files::directory_of;
use crate::{Error, ErrorKind, Result, durability};

/// A write to a file, or a sync of it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    SetLen(u64),
    /// Gives holes space.
    Fill(u64, u64),
    Copy(ClusterCopy),
    Header([u8; Header::LEN]),
    /// Entries that follow each other.
    Entries(Vec<EntryChange>),
    Sync,
}

impl FileChange {
    /// What is to be done, in this order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        // A step that does nothing needs no sync.
        let sync = |steps: &mut Vec<Step>| {
            if !matches!(steps.last(), None | Some(Step::Sync)) {
                steps.push(Step::Sync);
            }
        };
        if self.longest > self.old_len {
            steps.push(Step::SetLen(self.longest));
        }
        let fills = self.fills.iter();
        steps.extend(fills.map(|part| Step::Fill(part.start, part.end - part.start)));
        steps.extend(self.copies.iter().map(|copy| Step::Copy(*copy)));
        sync(&mut steps);
        if let Some(header) = &self.header {
            let mut first = header.new;
            for field in at::MARKS {
                first[field.clone()].copy_from_slice(&header.old[field]);
            }
            if first != header.old {
                steps.push(Step::Header(first));
            }
        }
        sync(&mut steps);
        for run in self.entry_runs() {
            // A sector is written whole or not at all, and nothing more is.
            for part in run.chunk_by(|first, second| first.offset / 512 == second.offset / 512) {
                steps.push(Step::Entries(part.to_vec()));
            }
        }
        sync(&mut steps);
        if self.new_len < self.longest {
            steps.push(Step::SetLen(self.new_len));
        }
        sync(&mut steps);
        if let Some(header) = &self.header {
            steps.push(Step::Header(header.new));
        }
        sync(&mut steps);
        steps
    }
}

impl Step {
    /// Does it.
    pub(super) fn run(&self, file: &File, cluster: u64) -> io::Result<()> {
        match self {
            Step::SetLen(len) => set_len(file, *len),
            Step::Fill(offset, len) => fill(file, *offset, *len),
            Step::Copy(copy) => {
                let mut bytes = vec![0; cluster as usize];
                file.read_exact_at(&mut bytes, copy.from)?;
                file.write_all_at(&bytes, copy.to)
            }
            Step::Header(bytes) => file.write_all_at(bytes, 0),
            Step::Entries(entries) => {
                let Some(first) = entries.first() else {
                    return Ok(());
                };
                let bytes = entries.iter().flat_map(|entry| entry.new.to_le_bytes());
                let bytes: Vec<u8> = bytes.collect();
                file.write_all_at(&bytes, first.offset)
            }
            Step::Sync => file.sync_all(),
        }
    }
}

/// Space that is added must not be a hole: the driver could not write to it.
fn set_len(file: &File, len: u64) -> io::Result<()> {
    let old = file.metadata()?.len();
    if len <= old {
        return file.set_len(len);
    }
    fill(file, old, len - old)
}

/// Gives a part of a file space, which reads as zeros where there was none.
fn fill(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match Storage::allocate(file, offset, len) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file, offset, len),
        done => done,
    }
}

/// All that a repair changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) files: Vec<FileChange>,
    /// The text of the descriptor as it is.
    pub(super) old_descriptor: Vec<u8>,
    /// What it is to be, if that is something else.
    pub(super) new_descriptor: Option<String>,
    /// Files that are removed.
    pub(super) removed: Vec<PathBuf>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.new_descriptor.is_none() && self.removed.is_empty()
    }

    /// Does all of it. `before` is asked before each step of a file; an error of it ends the work there.
    pub(super) fn run(
        &self,
        operation: &'static str,
        path: &Path,
        mut before: impl FnMut(&FileChange, &Step) -> Result<()>,
    ) -> Result<()> {
        for change in &self.files {
            let file = open(operation, change)?;
            for step in change.steps() {
                before(change, &step)?;
                step.run(&file, change.cluster).map_err(|error| {
                    let what = "the file cannot be repaired";
                    Error::io(operation, what, error).with_path(&change.path)
                })?;
            }
        }
        if let Some(text) = &self.new_descriptor {
            descriptor::replace(path, text).map_err(|error| {
                let what = "the new descriptor cannot be put in place";
                Error::io(operation, what, error).with_path(path)
            })?;
        }
        for file in &self.removed {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let what = "the orphan cannot be removed";
                    return Err(Error::io(operation, what, error).with_path(file));
                }
                _ => {}
            }
        }
        let directories = self.removed.iter().map(|file| directory_of(file));
        durability::sync_directories(operation, directories)
    }
}

/// Opens the file that was looked at, and no other that has its name by now.
pub(super) fn open(operation: &'static str, change: &FileChange) -> Result<File> {
    let file = WritableDelta::open_file(&change.path).map_err(|error| error.during(operation))?;
    let metadata = file.metadata().map_err(|error| {
        Error::io(operation, "the file cannot be examined", error).with_path(&change.path)
    })?;
    if Identity::from(&metadata) != change.identity || metadata.len() != change.old_len {
        let why = "another program has changed the file meanwhile";
        return Err(Error::new(ErrorKind::Busy, operation, why).with_path(&change.path));
    }
    Ok(file)
}
