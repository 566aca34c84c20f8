//! What PATH names: a descriptor, a directory that holds one, or one delta.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
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

    /// Refuses a standard output or standard error that is a file of the image, where words would come to lie upon data.
    fn require_other_streams(&self) -> Result<()> {
        let mut streams = vec![
            File::from(io::stdout().as_fd().try_clone_to_owned()?),
            File::from(io::stderr().as_fd().try_clone_to_owned()?),
        ];
        streams.retain(|it| it.metadata().is_ok_and(|it| it.is_file()));
        if streams.is_empty() {
            return Ok(());
        }
        let files = self.named_files();
        streams.iter().try_for_each(|it| require_none(it, &files))
    }

    /// The descriptor, and the deltas that it names.
    fn named_files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path().to_owned()];
        if let Ok(Some(descriptor)) = self.descriptor() {
            files.extend(descriptor.all_images().map(|it| it.file.clone()));
        }
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
        require_none(output, &files)
    }
}

/// Refuses an output that is one of these files.
fn require_none(output: &File, files: &[PathBuf]) -> Result<()> {
    let identity = |it: &fs::Metadata| (it.dev(), it.ino());
    let output = identity(&output.metadata()?);
    let mut files = files.iter();
    match files.find(|it| fs::metadata(it).is_ok_and(|it| identity(&it) == output)) {
        Some(file) => Err(Failure::Request(format!(
            "the output is {}, a file of the image",
            file.display()
        ))),
        None => Ok(()),
    }
}

/// The copies of a descriptor that other programs keep in a directory, such as `DiskDescriptor.xml.orig` and `.Backup`.
fn descriptors_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
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
