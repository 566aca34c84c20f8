//! [`NamedFiles`]: the files that a descriptor names, or what may be one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::descriptor::Descriptor;
use super::descriptor::damaged::{DamagedText, LARGEST_DESCRIPTOR, is_named_like_descriptor};
use crate::identity::Identity;
use crate::{Error, ErrorKind, Result};

/// How many descriptors of one directory are read, for the files they have.
pub(crate) const MAX_DESCRIPTORS: usize = 1000;

/// What a file names that may be a descriptor.
pub(crate) enum NamedFiles {
    /// Those of a descriptor, with their directories resolved, and what the names lead to: a file may have another path, such
    /// as one through a bind mount.
    Listed(BTreeSet<PathBuf>, BTreeSet<Identity>),
    /// What has its name in a text that is no descriptor, or that of a damaged one.
    Mentioned(DamagedText),
    /// Any file may be one. The text, if it is known.
    Any(Option<DamagedText>),
    /// None.
    Nothing,
}

impl NamedFiles {
    /// What this file names. An error where it cannot be read.
    pub(crate) fn of(file: &Path) -> Result<NamedFiles> {
        let mut named = match Descriptor::open(file) {
            Ok(descriptor) => NamedFiles::listed(&descriptor),
            Err(error) => return NamedFiles::of_damaged(file, error),
        };
        // Names may be those of files beside a link, for whoever does not follow it first.
        let is_link = file.symlink_metadata().is_ok_and(|it| it.is_symlink());
        if let (NamedFiles::Listed(files, _), true) = (&mut named, is_link) {
            let beside = |it: &PathBuf| Some(resolved(&file.with_file_name(it.file_name()?)));
            let beside: Vec<PathBuf> = files.iter().filter_map(beside).collect();
            files.extend(beside);
        }
        Ok(named)
    }

    pub(crate) fn listed(descriptor: &Descriptor) -> NamedFiles {
        let images = descriptor.all_images();
        let files = images.map(|image| resolved(&image.file)).collect();
        let identities = descriptor.all_images();
        let identities = identities.filter_map(|image| Identity::of(&image.file).ok());
        NamedFiles::Listed(files, identities.collect())
    }

    /// What a file names that was read as a descriptor, with this error.
    pub(crate) fn of_damaged(file: &Path, error: Error) -> Result<NamedFiles> {
        let leads_nowhere = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => Ok(NamedFiles::Nothing),
            _ if leads_nowhere => Ok(NamedFiles::Nothing),
            // Not one, or a damaged one.
            ErrorKind::Corrupt | ErrorKind::Unsupported => Ok(match DamagedText::read(file) {
                Ok(Some(text)) if text.may_have_named_any(file) => NamedFiles::Any(Some(text)),
                Ok(Some(text)) => NamedFiles::Mentioned(text),
                Ok(None) => NamedFiles::Any(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => NamedFiles::Nothing,
                Err(_) => NamedFiles::Any(None),
            }),
            _ => Err(error),
        }
    }

    /// Whether this file, by a path whose directory is resolved, may be one of them.
    pub(crate) fn may_include(&self, file: &Path) -> bool {
        match self {
            NamedFiles::Listed(files, identities) => {
                files.contains(file) || Identity::of(file).is_ok_and(|it| identities.contains(&it))
            }
            NamedFiles::Mentioned(text) => text.mentions(file),
            NamedFiles::Any(_) => true,
            NamedFiles::Nothing => false,
        }
    }
}

/// A path with its directory resolved, if that is there.
pub(crate) fn resolved(file: &Path) -> PathBuf {
    let directory = file.parent().and_then(|it| it.canonicalize().ok());
    match (directory, file.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => file.to_owned(),
    }
}

/// Whether a file, or that to which a link leads, is called like a descriptor, or begins like one.
pub(super) fn may_be_descriptor(file: &Path) -> bool {
    if is_named_like_descriptor(file) {
        return true;
    }
    let is_file = |len: u64| (1..=LARGEST_DESCRIPTOR).contains(&len);
    if !fs::metadata(file).is_ok_and(|it| it.is_file() && is_file(it.len())) {
        return false;
    }
    let mut start = Vec::new();
    let read = File::open(file).and_then(|file| file.take(64).read_to_end(&mut start));
    let letter = |byte: &&u8| !matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    let mut letters = start.iter().filter(letter);
    // Whoever cannot read it does not know.
    read.is_err() || letters.find(|it| !it.is_ascii_whitespace()) == Some(&b'<')
}
