//! The standard output and the standard error are no file of an image: words would come to lie upon data.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ploop::image::Header;

use crate::output::{Failure, Result};
use crate::source;

/// How much of a file is read to tell that it is a descriptor: the name of the root element comes first.
const START: u64 = 4096;

/// Refuses a stream that is a delta or a descriptor, whatever image it is of, or that a descriptor beside it names: a raw
/// base looks like any other file.
pub(crate) fn require_no_image_file() -> Result<()> {
    each(|metadata, stream| {
        let path = stream.read_link().unwrap_or_else(|_| stream.to_owned());
        let is_named = || found_in(metadata, &source::files_beside(&path)).is_some();
        let what = format!("{}, a file of an image", path.display());
        (is_delta_or_descriptor(stream) || is_named()).then_some(what)
    })
}

/// Refuses a stream that is one of these files, which are looked for only if a stream is a file at all.
pub(crate) fn require_none_of(files: impl Fn() -> Vec<PathBuf>) -> Result<()> {
    each(|metadata, _| found_in(metadata, &files()))
}

/// Refuses an output that is one of these files.
pub(crate) fn require_other(output: &File, files: &[PathBuf]) -> Result<()> {
    match found_in(&output.metadata()?, files) {
        Some(what) => Err(refused(&what)),
        None => Ok(()),
    }
}

fn found_in(output: &Metadata, files: &[PathBuf]) -> Option<String> {
    let identity = |it: &Metadata| (it.dev(), it.ino());
    let is_it = |it: &&PathBuf| {
        it.metadata()
            .is_ok_and(|it| identity(&it) == identity(output))
    };
    let file = files.iter().find(is_it)?;
    Some(format!("{}, a file of the image", file.display()))
}

/// Looks at the streams that are files, by what they are and by a path to them.
fn each(what: impl Fn(&Metadata, &Path) -> Option<String>) -> Result<()> {
    let found = |stream: OwnedFd| -> io::Result<Option<String>> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", stream.as_raw_fd()));
        let metadata = File::from(stream.try_clone()?).metadata()?;
        Ok(metadata.is_file().then(|| what(&metadata, &path)).flatten())
    };
    if found(io::stderr().as_fd().try_clone_to_owned()?)?.is_some() {
        return Err(Failure::ErrorStream);
    }
    match found(io::stdout().as_fd().try_clone_to_owned()?)? {
        Some(what) => Err(refused(&what)),
        None => Ok(()),
    }
}

fn refused(what: &str) -> Failure {
    Failure::Request(format!("the output is {what}"))
}

fn is_delta_or_descriptor(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    // Every other one is zero in UTF-16.
    start.retain(|byte| *byte != 0);
    let is_xml = || start.iter().find(|it| it.is_ascii_punctuation()) == Some(&b'<');
    let has_root = || start.windows(11).any(|it| it == b"_disk_image");
    read.is_ok() && (Header::read(path).is_ok() || is_xml() && has_root())
}
