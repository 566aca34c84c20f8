//! What a text names that cannot be read as a descriptor: a damaged one may be the only one that names a delta.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// No descriptor is larger.
pub(crate) const LARGEST_DESCRIPTOR: u64 = 16 << 20;

/// In the names of a descriptor's root element.
const ROOT: &[u8] = b"_disk_image";

/// The text of a file, of which nothing is known but that it is no sound descriptor, without the zeros that most
/// encodings put between the letters of a name.
pub(crate) struct DamagedText {
    text: Vec<u8>,
    /// More zeros in a row than any encoding has.
    has_gap: bool,
}

impl DamagedText {
    /// `None` where the file is too large to be a descriptor at all.
    pub(crate) fn read(file: &Path) -> io::Result<Option<DamagedText>> {
        match fs::metadata(file)?.len() {
            ..=LARGEST_DESCRIPTOR => Ok(Some(DamagedText::new(fs::read(file)?))),
            _ => Ok(None),
        }
    }

    fn new(mut text: Vec<u8>) -> DamagedText {
        let has_gap = text.windows(4).any(|bytes| bytes == [0; 4]);
        text.retain(|byte| *byte != 0);
        DamagedText { text, has_gap }
    }

    /// Whether it has the name of this file in it, in whatever encoding.
    pub(crate) fn mentions(&self, file: &Path) -> bool {
        let name = file.file_name().unwrap_or_default();
        let mut spellings = vec![name.as_bytes().to_vec()];
        if let Some(name) = name.to_str() {
            let escaped = name.replace('&', "&amp;").replace('<', "&lt;");
            for encode in [u16::to_le_bytes, u16::to_be_bytes] {
                let bytes = escaped.encode_utf16().flat_map(encode);
                spellings.push(bytes.filter(|byte| *byte != 0).collect());
            }
            spellings.push(escaped.into_bytes());
        }
        spellings.sort();
        spellings.dedup();
        spellings.iter().any(|name| self.has(name))
    }

    /// Whether it is the text of a descriptor, as far as there is one.
    pub(crate) fn is_of_descriptor(&self) -> bool {
        self.has(ROOT)
    }

    /// Whether any file may be one that `file`, whose text this is, has named: it is a descriptor without its end, whose
    /// root element is not closed, or one with a gap; or it has the name of one, and is no text of anything else either.
    pub(crate) fn may_have_named_any(&self, file: &Path) -> bool {
        let is_cut_off = self.occurrences(ROOT).take(2).count() == 1;
        is_cut_off
            || self.has_gap && self.is_of_descriptor()
            || is_named_like_descriptor(file) && !self.has_root_element()
    }

    /// Whether it is XML at the beginning: there are no letters before the name of the first element.
    fn has_root_element(&self) -> bool {
        const BYTE_ORDER_MARKS: [u8; 5] = [0xef, 0xbb, 0xbf, 0xfe, 0xff];
        let is_space = |byte: &u8| byte.is_ascii_whitespace() || BYTE_ORDER_MARKS.contains(byte);
        let mut rest = &self.text[..];
        loop {
            rest = &rest[rest.iter().take_while(|byte| is_space(byte)).count()..];
            let end: &[u8] = match rest {
                [b'<', b'?', ..] => b"?>",
                [b'<', b'!', b'-', b'-', ..] => b"-->",
                [b'<', b'!', ..] => b">",
                [b'<', first, name @ ..] => {
                    let is_end = |byte: &u8| matches!(byte, b'>' | b'/') || is_space(byte);
                    return first.is_ascii_alphabetic() && name.iter().any(is_end);
                }
                _ => return false,
            };
            match find(rest, end).next() {
                Some(at) => rest = &rest[at + end.len()..],
                None => return false,
            }
        }
    }

    fn has(&self, word: &[u8]) -> bool {
        self.occurrences(word).next().is_some()
    }

    fn occurrences<'a>(&'a self, word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        find(&self.text, word)
    }
}

/// Whether a file is called as descriptors and copies of them are: `DiskDescriptor.xml`, `OLD.XML`, `a.xml.bak`, `a.xml~`.
/// What this crate and libploop make beside a descriptor is none.
pub(crate) fn is_named_like_descriptor(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default();
    let name = name.as_bytes().to_ascii_lowercase();
    let has = |word: &[u8]| find(&name, word).next().is_some();
    has(b".xml") && !name.ends_with(b".lck") && !has(b".xml.ploop-")
}

/// Where a text has a word.
fn find<'a>(text: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let is_word = move |at: &usize| !word.is_empty() && text[*at..].starts_with(word);
    (0..text.len()).filter(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "<?xml version=\"1.0\"?>\n<!-- a --><Parallels_disk_image Version=\"1.0\">\n<File>root.hds</File></Parallels_disk_image>\n";

    fn utf_16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn what_may_have_named_any() {
        let any = |name: &str, text: &[u8]| {
            DamagedText::new(text.to_vec()).may_have_named_any(Path::new(name))
        };
        let open = WHOLE.find("_image").unwrap() + 6;
        for len in 0..WHOLE.len() {
            let text = &WHOLE[..len];
            let is_whole = len > WHOLE.rfind("_image").unwrap() + 5;
            for text in [text.as_bytes().to_vec(), utf_16(text)] {
                assert_eq!(any("a.xml", &text), !is_whole, "{len}");
                assert_eq!(any("notes", &text), len >= open && !is_whole, "{len}");
            }
        }
        let utf_32: Vec<u8> = WHOLE.chars().flat_map(|it| [it as u8, 0, 0, 0]).collect();
        for (text, expected) in [
            (&[0; 700][..], true),
            (b"\x1f\x8b\x08\0\x01<a>", true),
            (b"\x4c\x6f\xa7\x94\x93", true),
            (b"words", true),
            (b"<?xml version='1.0'?><!DOCTYPE a><a/>", false),
            (b"\xef\xbb\xbf <a>", false),
            (b"<1>", true),
            (&utf_32, false),
        ] {
            for name in ["a.xml", "A.XML", "a.xml.bak", "a.xml~"] {
                assert_eq!(any(name, text), expected, "{name} {text:?}");
            }
            for name in ["a", "a.xml.lck", "a.xml.op.lck", "a.xml.ploop-files"] {
                assert!(!any(name, text), "{name} {text:?}");
            }
        }
        let mut torn = WHOLE.repeat(2).into_bytes();
        torn[90..100].fill(0);
        assert!(any("notes", &torn));
    }

    #[test]
    fn names_in_any_encoding() {
        let text = "<File>a&amp;é.hds</File>";
        let big_endian = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for text in [text.as_bytes().to_vec(), utf_16(text), big_endian] {
            let text = DamagedText::new(text);
            assert!(text.mentions(Path::new("/x/a&é.hds")));
            assert!(!text.mentions(Path::new("/x/b.hds")) && !text.mentions(Path::new("/")));
        }
    }
}
