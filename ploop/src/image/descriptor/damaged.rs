//! What a text names that cannot be read as a descriptor: a damaged one may be the only one that names a delta.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// No descriptor is larger.
pub(crate) const LARGEST_DESCRIPTOR: u64 = 16 << 20;

/// The text of a file, of which nothing is known but that it is no sound descriptor; `None` where it is too large to be
/// one at all.
pub(crate) fn text(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(file)?.len() {
        ..=LARGEST_DESCRIPTOR => fs::read(file).map(Some),
        _ => Ok(None),
    }
}

/// Whether a text, in whatever encoding a descriptor can have, has the name of this file in it.
pub(crate) fn mentions(text: &[u8], file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().as_bytes();
    !name.is_empty() && occurrences(text, name).next().is_some()
}

/// Whether a text is a descriptor without its end, in which there may have been any name: its root element, such as
/// `Parallels_disk_image`, is not closed.
pub(crate) fn is_cut_off(text: &[u8]) -> bool {
    occurrences(text, b"_disk_image").take(2).count() == 1
}

/// Where a text has a word, one byte or two bytes a character.
fn occurrences<'a>(text: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let wide: Vec<u8> = word.iter().flat_map(|byte| [*byte, 0]).collect();
    // Of the other byte order, this is all but the last zero.
    let wide = wide.strip_suffix(&[0]).unwrap_or(&wide).to_owned();
    (0..text.len())
        .filter(move |at| text[*at..].starts_with(word) || text[*at..].starts_with(&wide))
}
