//! Long lists, which are printed while they are made: a table in parts, or JSON. An image may have millions of pieces.

use std::cell::RefCell;
use std::io::{BufWriter, Write as _};

use serde::ser::{Error as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use crate::output::{Failure, Output, Result, raw_stdout, table};

/// How many rows are in memory, and are aligned with each other.
const PART: usize = 1 << 14;
/// How much JSON is in memory.
const BUFFER: usize = 64 << 10;

/// A table of numbers, which are right-aligned, and a last column of text. The parts after the first are as wide as it
/// where they can be.
pub(crate) struct LongTable<'a, const N: usize> {
    output: &'a Output,
    header: [&'static str; N],
    right: &'static [usize],
    rows: Vec<[String; N]>,
    /// The widths of the parts that are printed.
    widths: Option<[usize; N]>,
}

impl<'a, const N: usize> LongTable<'a, N> {
    /// The columns named in `right` hold numbers.
    pub(crate) fn new(
        output: &'a Output,
        header: [&'static str; N],
        right: &'static [usize],
    ) -> LongTable<'a, N> {
        LongTable {
            output,
            header,
            right,
            rows: Vec::new(),
            widths: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.widths.is_none()
    }

    pub(crate) fn push(&mut self, row: [String; N]) -> Result<()> {
        self.rows.push(row);
        match self.rows.len() {
            PART.. => self.print_part(),
            _ => Ok(()),
        }
    }

    /// Prints what is left; of an empty table, the header.
    pub(crate) fn finish(mut self) -> Result<()> {
        match self.rows.is_empty() && self.widths.is_some() {
            true => Ok(()),
            false => self.print_part(),
        }
    }

    fn print_part(&mut self) -> Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        let mut widths = self.widths.unwrap_or(self.header.map(str::len));
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        let is_first = self.widths.replace(widths).is_none();
        if is_first {
            return self.output.line(table(self.header, self.right, rows));
        }
        for row in &mut rows {
            for index in self.right {
                row[*index] = format!("{:>1$}", row[*index], widths[*index]);
            }
        }
        let text = table(self.header, self.right, rows);
        let (_, text) = text.split_once('\n').unwrap_or_default();
        self.output.line(text)
    }
}

/// Prints a JSON list. Where an item is a failure, the list is not closed, and a short one is not printed at all.
pub(crate) fn print_json<T: Serialize>(items: impl Iterator<Item = Result<T>>) -> Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, raw_stdout()?);
    let list = JsonList {
        items: RefCell::new(items),
        failure: RefCell::new(None),
    };
    let written = serde_json::to_writer_pretty(&mut out, &list);
    if let Some(failure) = list.failure.into_inner() {
        // Not flushed.
        let _ = out.into_parts();
        return Err(failure);
    }
    written.map_err(std::io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

struct JsonList<I> {
    items: RefCell<I>,
    failure: RefCell<Option<Failure>>,
}

impl<T: Serialize, I: Iterator<Item = Result<T>>> Serialize for JsonList<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for item in self.items.borrow_mut().by_ref() {
            match item {
                Ok(item) => list.serialize_element(&item)?,
                Err(failure) => {
                    self.failure.replace(Some(failure));
                    return Err(S::Error::custom("the list cannot be completed"));
                }
            }
        }
        list.end()
    }
}
