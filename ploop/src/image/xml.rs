//! Reading the XML of a descriptor: encodings, limits against hostile files, and values as libploop reads them.

use std::borrow::Cow;

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, ErrorKind, Guid, Result};

const OPERATION: &str = "read descriptor";

/// Elements and texts. A delta has twenty, so this is enough for 25 000 of them, and takes 40 MiB.
const MAX_NODES: u32 = 1 << 19;
/// The limit of libxml2, with which libploop reads.
const MAX_DEPTH: usize = 256;
/// The parser compares all attributes of an element with each other, and copies the name spaces of an element to all
/// below it: both are quadratic. Descriptors have hardly any of either.
const MAX_ATTRIBUTES: usize = 128;
const MAX_NAME_SPACES: usize = 16;

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

/// The text of a file, without a byte order mark and the zeros that some programs leave at its end.
///
/// libxml2, with which libploop reads, knows many encodings, in which the same bytes are another text. Only three are
/// taken, which all readers read alike.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>> {
    if bytes.is_empty() {
        return Err(corrupt("the file is empty"));
    }
    let end = bytes.iter().rposition(|byte| *byte != 0);
    let Some(end) = end else {
        return Err(corrupt(
            "the file holds nothing but zeros, as after a power cut",
        ));
    };
    let (text, known): (Cow<'_, str>, &[&str]) = match utf_16(bytes) {
        Some(unit) => (
            from_utf_16(bytes, unit)?.into(),
            &["utf-16", "utf-16le", "utf-16be"],
        ),
        None => {
            let text = std::str::from_utf8(&bytes[..=end]).map_err(|error| {
                corrupt("the file is not UTF-8").with_offset(error.valid_up_to() as u64)
            })?;
            let ascii: &[&str] = if text.is_ascii() { &ASCII } else { &["utf-8"] };
            (text.strip_prefix('\u{feff}').unwrap_or(text).into(), ascii)
        }
    };
    if let Some(encoding) = declared_encoding(&text) {
        if !known.iter().any(|name| encoding.eq_ignore_ascii_case(name)) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                format!(
                    "the file says that its encoding is {}; only UTF-8, UTF-16 and US-ASCII are read, and only where the bytes are in that encoding; convert the file with iconv(1)",
                    excerpt(encoding)
                ),
            ));
        }
    }
    Ok(text)
}

const ASCII: [&str; 3] = ["utf-8", "us-ascii", "ascii"];

/// The byte order of UTF-16, if this is UTF-16: it begins with a byte order mark or with `<?`.
fn utf_16(bytes: &[u8]) -> Option<fn([u8; 2]) -> u16> {
    match bytes {
        [0xff, 0xfe, ..] | [b'<', 0, b'?', 0, ..] => Some(u16::from_le_bytes),
        [0xfe, 0xff, ..] | [0, b'<', 0, b'?', ..] => Some(u16::from_be_bytes),
        _ => None,
    }
}

fn from_utf_16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String> {
    let not = || corrupt("the file is not UTF-16, though it begins like it");
    if bytes.len() % 2 != 0 {
        return Err(not());
    }
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let text = char::decode_utf16(units)
        .collect::<std::result::Result<String, _>>()
        .map_err(|_| not())?;
    let text = text.trim_end_matches('\0');
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned())
}

fn declared_encoding(text: &str) -> Option<&str> {
    let declaration = text.strip_prefix("<?xml")?.split_once("?>")?.0;
    let value = declaration.split_once("encoding")?.1.trim_start();
    let value = value.strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    value[1..].split_once(quote).map(|(encoding, _)| encoding)
}

/// Parses a document, in time and memory proportional to its length.
pub(super) fn parse(text: &str) -> Result<Document<'_>> {
    let crowded = text
        .split('<')
        .any(|tag| tag.bytes().filter(|byte| *byte == b'=').count() > MAX_ATTRIBUTES);
    if crowded {
        return Err(corrupt(format!(
            "an element has more than {MAX_ATTRIBUTES} attributes"
        )));
    }
    if text.matches("xmlns").nth(MAX_NAME_SPACES).is_some() {
        return Err(corrupt(format!(
            "the file declares more than {MAX_NAME_SPACES} name spaces"
        )));
    }
    if ["<!ENTITY", "<!ATTLIST"]
        .iter()
        .any(|what| text.contains(what))
    {
        return Err(corrupt(
            "the file defines entities or attributes of its own, no descriptor does",
        ));
    }
    let options = ParsingOptions {
        // A DTD that defines anything was refused above, so there are only the five entities of XML.
        allow_dtd: true,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::NodesLimitReached => corrupt(format!(
            "the file has more than {MAX_NODES} elements and texts"
        )),
        error => corrupt(format!("not XML: {}", cut(&error.to_string()))),
    })?;
    check_depth(document.root_element())?;
    Ok(document)
}

fn check_depth(root: Node<'_, '_>) -> Result<()> {
    let mut depth = 0;
    let mut node = root;
    loop {
        if depth > MAX_DEPTH {
            return Err(corrupt(format!(
                "elements are nested more than {MAX_DEPTH} deep"
            )));
        }
        if let Some(child) = node.first_child() {
            node = child;
            depth += 1;
            continue;
        }
        loop {
            if node == root {
                return Ok(());
            }
            if let Some(sibling) = node.next_sibling() {
                node = sibling;
                break;
            }
            match node.parent() {
                Some(parent) => node = parent,
                None => return Ok(()),
            }
            depth -= 1;
        }
    }
}

/// An element. Errors have its name.
#[derive(Clone, Copy)]
pub(super) struct Element<'a, 'input> {
    node: Node<'a, 'input>,
}

impl<'a, 'input> Element<'a, 'input> {
    pub(super) fn root(document: &'a Document<'input>) -> Element<'a, 'input> {
        Element {
            node: document.root_element(),
        }
    }

    fn name(&self) -> &'a str {
        self.node.tag_name().name()
    }

    pub(super) fn children<'n>(
        &self,
        name: &'n str,
    ) -> impl Iterator<Item = Element<'a, 'input>> + use<'a, 'input, 'n> {
        self.node
            .children()
            .filter(move |node| node.is_element() && node.tag_name().name() == name)
            .map(|node| Element { node })
    }

    /// The first child of that name: libploop ignores others.
    pub(super) fn optional(&self, name: &str) -> Option<Element<'a, 'input>> {
        self.children(name).next()
    }

    pub(super) fn required(&self, name: &str) -> Result<Element<'a, 'input>> {
        self.optional(name)
            .ok_or_else(|| corrupt(format!("{} has no {name}", cut(self.name()))))
    }

    /// The text of all children with other names than these.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(super) fn others(&self, names: &[&str]) -> impl Iterator<Item = &'a str> {
        self.node
            .children()
            .filter(|node| node.is_element() && !names.contains(&node.tag_name().name()))
            .map(|node| &node.document().input_text()[node.range()])
    }

    /// The whole file.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(super) fn document_text(&self) -> &'input str {
        self.node.document().input_text()
    }

    /// The name and the attributes, as in the file.
    #[cfg(any(feature = "libploop", feature = "image-write"))]
    pub(super) fn tag(&self) -> String {
        let text = self.node.document().input_text();
        let mut tag = self.name().to_owned();
        for attribute in self.node.attributes() {
            tag.push(' ');
            tag.push_str(&text[attribute.range()]);
        }
        tag
    }

    /// The first text in the element. libploop reads no more, where a comment or an element splits the text.
    pub(super) fn text(&self) -> Result<&'a str> {
        let source = &self.node.document().input_text()[self.node.range()];
        if source.contains("<![CDATA[") {
            // libploop does not read it, and the parser used here cannot tell it from other text.
            return Err(corrupt(format!(
                "{} holds a CDATA section, which libploop does not read",
                cut(self.name())
            )));
        }
        let first = self.node.children().find(|node| node.is_text());
        Ok(first.and_then(|node| node.text()).unwrap_or(""))
    }

    /// A number: decimal, hexadecimal after `0x`, octal after `0`. White space around it is ignored.
    pub(super) fn number(&self) -> Result<u64> {
        let text = self.text()?;
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        let (digits, radix) = match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&text[2..], 16),
            [b'0', _, ..] => (&text[1..], 8),
            _ => (text, 10),
        };
        // `from_str_radix` takes a sign.
        let value = if digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
            u64::from_str_radix(digits, radix).ok()
        } else {
            None
        };
        value.ok_or_else(|| {
            corrupt(format!(
                "{}: {} is not a number below 2^64",
                self.name(),
                excerpt(text)
            ))
        })
    }

    pub(super) fn optional_number(&self, name: &str) -> Result<Option<u64>> {
        self.optional(name)
            .map(|element| element.number())
            .transpose()
    }

    /// A GUID in braces: libploop reads no other form.
    pub(super) fn guid(&self) -> Result<Guid> {
        let text = self.text()?;
        text.starts_with('{')
            .then(|| text.parse().ok())
            .flatten()
            .ok_or_else(|| {
                let parent = self.node.parent().map_or("", |node| node.tag_name().name());
                corrupt(format!(
                    "{parent}: the {} {} is not of the form {{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}}",
                    self.name(),
                    excerpt(text)
                ))
            })
    }
}

/// A text from the file for an error message: quoted, of limited length.
pub(super) fn excerpt(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(120).map_or(text.len(), |(i, _)| i);
    &text[..end]
}
