//! The part of XML that descriptors use, with bounds on everything.

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, ErrorKind, Guid, Result};

const OPERATION: &str = "read descriptor";

/// Elements and texts. Twenty make up a delta, so this is room for 25 000 of them, in 40 MiB.
const MAX_NODES: u32 = 1 << 19;
/// As libxml2, which libploop reads with.
const MAX_DEPTH: usize = 256;
/// The parser compares each attribute of an element with each, and hands the name spaces of an
/// element on to all below it: both are quadratic. Descriptors have hardly any of either.
const MAX_ATTRIBUTES: usize = 128;
const MAX_NAME_SPACES: usize = 16;

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

/// The text of a file, without a byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Result<&str> {
    if bytes.is_empty() {
        return Err(corrupt("the file is empty"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        corrupt("the file is not UTF-8").with_offset(error.valid_up_to() as u64)
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Bytes that are valid UTF-8 mean something else in another encoding, except in ASCII.
    if !text.is_ascii() {
        if let Some(encoding) = declared_encoding(text) {
            if !encoding.eq_ignore_ascii_case("utf-8") {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    OPERATION,
                    format!("the file is encoded in {}, not UTF-8", excerpt(encoding)),
                ));
            }
        }
    }
    Ok(text)
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
    let options = ParsingOptions {
        // Without a DTD there are no entities but the five of XML itself.
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::DtdDetected => {
            corrupt("the file has a document type declaration, no descriptor has")
        }
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

/// An element, whose name is part of what goes wrong with it.
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

    /// The only child of that name.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Element<'a, 'input>>> {
        let mut children = self.children(name);
        let first = children.next();
        if children.next().is_some() {
            return Err(corrupt(format!(
                "{} has more than one {name}",
                cut(self.name())
            )));
        }
        Ok(first)
    }

    pub(super) fn required(&self, name: &str) -> Result<Element<'a, 'input>> {
        self.optional(name)?
            .ok_or_else(|| corrupt(format!("{} has no {name}", cut(self.name()))))
    }

    /// The text in the element, and nothing else: libploop reads the first piece of a text that a
    /// comment interrupts, and no CDATA section at all.
    pub(super) fn text(&self) -> Result<&'a str> {
        let source = &self.node.document().input_text()[self.node.range()];
        let inside = source
            .split_once('>')
            .map_or("", |(_, rest)| rest.rsplit_once("</").map_or("", |p| p.0));
        if inside.contains('<') {
            return Err(corrupt(format!(
                "{} holds more than a text",
                cut(self.name())
            )));
        }
        Ok(self.node.text().unwrap_or(""))
    }

    /// Decimal, hexadecimal after `0x`, octal after `0`.
    pub(super) fn number(&self) -> Result<u64> {
        let text = self.text()?;
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
        self.optional(name)?
            .map(|element| element.number())
            .transpose()
    }

    /// A GUID in braces: libploop takes no other form.
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

/// A text from the file for an error message: quoted, of bounded length.
pub(super) fn excerpt(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(120).map_or(text.len(), |(i, _)| i);
    &text[..end]
}
