//! What the commands print: text for people, JSON for programs, failures.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use ploop::Error;
use serde::{Serialize, Serializer};

/// Why a command could not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The image.
    Image(Error),
    /// The place where the result goes.
    Output(io::Error),
    /// What the user asked for does not exist: a partition, say.
    Request(String),
    /// The standard error is a file of an image, and nothing can be said.
    ErrorStream,
}

impl Failure {
    /// Whether the output is a pipe that nobody reads any more.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        match self {
            Failure::Image(error) => {
                let errno = error.raw_os_error().map(io::Error::from_raw_os_error);
                errno.is_some_and(|it| it.kind() == io::ErrorKind::BrokenPipe)
            }
            Failure::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Failure::Request(_) | Failure::ErrorStream => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Image(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Image(error) => error.fmt(f),
            Failure::Output(error) => write!(f, "the output cannot be written: {error}"),
            Failure::Request(message) => f.write_str(message),
            Failure::ErrorStream => f.write_str("the standard error is a file of an image"),
        }
    }
}

pub(crate) type Result<T = ExitCode> = std::result::Result<T, Failure>;

pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const NOTE: Style = AnsiColor::Cyan.on_default();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();

/// How the user wants to be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

/// A failure as JSON.
#[derive(Serialize)]
struct FailureReport<'a> {
    error: String,
    /// As `ploop::ErrorKind`; null where the image is not to blame.
    kind: Option<String>,
    path: Option<std::borrow::Cow<'a, str>>,
    offset: Option<u64>,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress is shown: to people, at a terminal.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && !self.json
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> Result<()> {
        // All of it or nothing.
        let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()?;
        Ok(())
    }

    /// A line of text. Escape sequences are removed where this is no terminal.
    pub(crate) fn line(&self, line: impl fmt::Display) -> Result<()> {
        writeln!(anstream::stdout().lock(), "{line}")?;
        Ok(())
    }

    /// Something that the result lacks.
    pub(crate) fn warning(&self, message: impl fmt::Display) {
        // Nobody is left to be told where this cannot be written.
        let mut err = anstream::stderr().lock();
        let _ = writeln!(err, "{WARNING}warning{WARNING:#}: {message}");
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        if matches!(failure, Failure::ErrorStream) {
            return;
        }
        // Nobody is left to be told where this cannot be written.
        if self.json {
            let (kind, path, offset) = match failure {
                Failure::Image(error) => (
                    Some(error.kind().to_string()),
                    error.path().map(|path| path.to_string_lossy()),
                    error.offset(),
                ),
                Failure::Output(_) | Failure::Request(_) | Failure::ErrorStream => {
                    (None, None, None)
                }
            };
            let report = FailureReport {
                error: failure.to_string(),
                kind,
                path,
                offset,
            };
            let mut err = io::stderr().lock();
            let _ = serde_json::to_writer(&mut err, &report);
            let _ = writeln!(err);
        } else {
            let _ = writeln!(
                anstream::stderr().lock(),
                "{ERROR}error{ERROR:#}: {failure}"
            );
        }
    }
}

/// A path in JSON, as `ploop` has it: a string, or a list of bytes where it is not UTF-8.
pub(crate) fn path<S: Serializer>(
    path: &Path,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    JsonPath(path).serialize(serializer)
}

/// Paths in JSON.
pub(crate) fn paths<S: Serializer>(
    paths: &[PathBuf],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|it| JsonPath(it)))
}

struct JsonPath<'a>(&'a Path);

impl Serialize for JsonPath<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => self.0.as_os_str().as_bytes().serialize(serializer),
        }
    }
}

/// The standard output for data: not `Stdout`, which looks for ends of lines.
pub(crate) fn raw_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// A table without lines, its columns two spaces apart. The columns named in `right` hold numbers.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
