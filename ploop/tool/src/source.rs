//! What PATH names: a descriptor, a directory that holds one, or one delta.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ploop::image::{Descriptor, Disk, OpenOptions, Report};
use ploop::{Guid, image};

use crate::cli::{self, State};
use crate::output::{Failure, Result};

/// The name that libploop gives to descriptors.
pub(crate) const DESCRIPTOR: &str = "DiskDescriptor.xml";

/// An image, by what was named.
pub(crate) enum Source {
    Descriptor(PathBuf),
    /// One delta by itself.
    Delta(PathBuf),
}

impl Source {
    pub(crate) fn find(source: &cli::Source) -> Source {
        let path = &source.path;
        if path.is_dir() {
            return Source::Descriptor(path.join(DESCRIPTOR));
        }
        match begins_like_xml(path) {
            true => Source::Descriptor(path.clone()),
            false => Source::Delta(path.clone()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Source::Descriptor(path) | Source::Delta(path) => path,
        }
    }

    /// `None` for a delta by itself.
    pub(crate) fn descriptor(&self) -> Result<Option<Descriptor>> {
        match self {
            Source::Descriptor(path) => Ok(Some(Descriptor::open(path)?)),
            Source::Delta(_) => Ok(None),
        }
    }

    pub(crate) fn check(&self) -> Report {
        match self {
            Source::Descriptor(path) => image::check(path),
            Source::Delta(path) => image::check_image(path),
        }
    }

    /// Opens the disk as of a snapshot, or in its present state.
    pub(crate) fn open(&self, snapshot: Option<Guid>, in_use: bool) -> Result<Disk> {
        self.open_with(snapshot, &OpenOptions::new().allow_in_use(in_use))
    }

    fn open_with(&self, snapshot: Option<Guid>, options: &OpenOptions) -> Result<Disk> {
        Ok(match (self, snapshot) {
            (Source::Descriptor(path), Some(guid)) => options.open_snapshot(path, guid)?,
            (Source::Descriptor(path), None) => options.open(path)?,
            (Source::Delta(path), None) => options.open_image(path)?,
            (Source::Delta(path), Some(_)) => {
                return Err(Failure::Request(format!(
                    "{} is one delta, and knows no snapshots; name the descriptor",
                    path.display()
                )));
            }
        })
    }
}

impl State {
    pub(crate) fn open(&self) -> Result<Disk> {
        let options = OpenOptions::new()
            .allow_in_use(self.in_use)
            .salvage(self.salvage);
        Source::find(&self.source).open_with(self.snapshot, &options)
    }
}

/// Whether a file begins with `<`, in UTF-8 or UTF-16, with or without a byte order mark: no delta does.
fn begins_like_xml(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    let is_mark = |byte: &u8| matches!(byte, 0xef | 0xbb | 0xbf | 0xfe | 0xff | 0);
    let is_space = u8::is_ascii_whitespace;
    let first = start.iter().find(|byte| !is_mark(byte) && !is_space(byte));
    // One that cannot be read is named as the user named it, by the error.
    read.is_err() || first == Some(&b'<')
}
