//! What PATH names: a descriptor, a directory that holds one, or one delta.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use ploop::image::{Descriptor, Disk, OpenOptions, Report};
use ploop::{Guid, image};

use crate::cli::{self, State};
use crate::output::{Failure, Result};
use crate::streams;

/// The name that libploop gives to descriptors.
pub(crate) const DESCRIPTOR: &str = "DiskDescriptor.xml";

/// An image, by what was named.
pub(crate) enum Source {
    Descriptor(PathBuf),
    /// One delta by itself.
    Delta(PathBuf),
}

impl Source {
    pub(crate) fn find(source: &cli::Source) -> Result<Source> {
        let found = Source::look(source)?;
        found.require_other_streams()?;
        Ok(found)
    }

    fn look(source: &cli::Source) -> Result<Source> {
        let path = &source.path;
        // Some would be waited for. A path that is not there is an error of whoever opens it.
        if let Ok(metadata) = fs::metadata(path) {
            let kind = metadata.file_type();
            if kind.is_fifo() || kind.is_socket() || kind.is_char_device() {
                return Err(Failure::Request(format!(
                    "{}: this is a pipe, a socket or a character device, and no image",
                    path.display()
                )));
            }
        }
        if path.is_dir() {
            let descriptor = path.join(DESCRIPTOR);
            let others = match descriptor.exists() {
                true => Vec::new(),
                false => descriptors_in(path),
            };
            return match &others[..] {
                // One that is missing is an error of whoever opens it.
                [] => Ok(Source::Descriptor(descriptor)),
                others => Err(Failure::Request(format!(
                    "{} has no {DESCRIPTOR}; name one of these, which look like descriptors: {}",
                    path.display(),
                    others.join(", ")
                ))),
            };
        }
        // What a power cut has filled with zeros begins with none.
        let is_descriptor = path.file_name().is_some_and(|name| name == DESCRIPTOR);
        Ok(match is_descriptor || begins_like_xml(path) {
            true => Source::Descriptor(path.clone()),
            false => Source::Delta(path.clone()),
        })
    }

    /// The standard output and the standard error are no file of the image.
    pub(crate) fn require_other_streams(&self) -> Result<()> {
        streams::require_none_of(|| self.named_files())
    }

    /// The descriptor, and the deltas that it names; of a delta by itself, those of all images beside it.
    fn named_files(&self) -> Vec<PathBuf> {
        let mut files = match self {
            Source::Descriptor(path) => files_of(path),
            Source::Delta(path) => files_beside(path),
        };
        files.push(self.path().to_owned());
        files
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
        Source::find(&self.source)?.open_with(self.snapshot, &options)
    }

    /// Refuses an output that is a file of the image, by whatever name it was opened.
    pub(crate) fn require_other_output(&self, output: &File) -> Result<()> {
        let mut files = Source::find(&self.source)?.named_files();
        files.extend(self.open()?.files().map(Path::to_owned));
        streams::require_other(output, &files)
    }
}

/// The descriptors in the directory of a file, and the deltas that they name.
pub(crate) fn files_beside(file: &Path) -> Vec<PathBuf> {
    // A link leads to a directory of its own.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let entries = file.parent().map(fs::read_dir).into_iter().flatten();
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    let is_xml = |it: &PathBuf| {
        let extension = it.extension();
        extension.is_some_and(|it| it.eq_ignore_ascii_case("xml")) && it.is_file()
    };
    paths.filter(is_xml).flat_map(|it| files_of(&it)).collect()
}

/// A descriptor, and the deltas that it names, if it is one that can be read.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let descriptor = Descriptor::open(path).ok();
    let images = descriptor.iter().flat_map(Descriptor::all_images);
    let mut files: Vec<PathBuf> = images.map(|it| it.file.clone()).collect();
    files.extend(descriptor.is_some().then(|| path.to_owned()));
    files
}

/// The copies of a descriptor that other programs keep in a directory, such as `DiskDescriptor.xml.orig` and `.Backup`.
fn descriptors_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| (entry.file_name(), entry.path()))
        .filter(|(name, path)| {
            let is_copy = name.as_encoded_bytes().starts_with(DESCRIPTOR.as_bytes());
            // A pipe would not end.
            is_copy && path.is_file() && begins_like_xml(path)
        })
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
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
