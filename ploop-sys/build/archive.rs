//! What a static library (`ar`) says about itself: the functions in its index, and members that are no objects.

use std::path::Path;

#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// The names in the index, each with a zero byte at its end.
    names: Vec<u8>,
    /// The first member that is not an object: the linker passes it over.
    pub(crate) not_an_object: Option<String>,
}

impl Archive {
    pub(crate) fn read(file: &Path) -> Result<Archive, String> {
        let bytes =
            std::fs::read(file).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
        Archive::parse(&bytes)
            .ok_or_else(|| format!("{} is not a whole static library (ar)", file.display()))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Archive> {
        const HEADER: usize = 60;
        let mut rest = bytes.strip_prefix(b"!<arch>\n")?;
        let mut archive = Archive::default();
        while !rest.is_empty() {
            let (header, after) = (rest.get(..HEADER)?, &rest[HEADER..]);
            let text = |range: std::ops::Range<usize>| {
                let text = std::str::from_utf8(&header[range]).ok()?;
                Some(text.trim_end())
            };
            let (name, size) = (text(0..16)?, text(48..58)?.parse::<usize>().ok()?);
            let content = after.get(..size)?;
            match name {
                "/" => archive.names = names_of_index(content)?.to_vec(),
                // Long names of members.
                "//" => {}
                _ if content.starts_with(b"\x7fELF") => {}
                _ if archive.not_an_object.is_some() => {}
                _ => archive.not_an_object = Some(name.trim_end_matches('/').to_owned()),
            }
            // Members begin at even offsets.
            rest = after.get(size + size % 2..).unwrap_or_default();
        }
        Some(archive)
    }

    pub(crate) fn has(&self, function: &str) -> bool {
        self.names
            .split(|byte| *byte == 0)
            .any(|name| name == function.as_bytes())
    }
}

/// The index begins with the number of its entries and their offsets.
fn names_of_index(index: &[u8]) -> Option<&[u8]> {
    let count = u32::from_be_bytes(index.get(..4)?.try_into().ok()?);
    index.get(4 + 4 * usize::try_from(count).ok()?..)
}
