//! `map`.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::State;
use crate::output::{Output, Result, table};

/// An element of what `map --json` prints. All numbers are bytes.
#[derive(Serialize)]
struct Entry<'a> {
    offset: u64,
    len: u64,
    #[serde(serialize_with = "crate::output::path")]
    file: &'a Path,
    file_offset: u64,
}

pub(crate) fn run(state: &State, output: &Output) -> Result {
    let disk = state.open()?;
    let files: Vec<&Path> = disk.files().collect();
    let mut entries = Vec::new();
    for mapping in disk.mappings() {
        let mapping = mapping?;
        entries.push(Entry {
            offset: mapping.offset,
            len: mapping.len,
            file: files[mapping.level],
            file_offset: mapping.file_offset,
        });
    }
    if output.is_json() {
        output.json(&entries)?;
    } else {
        let rows = entries.iter().map(|entry| {
            let name = entry.file.file_name().unwrap_or_default();
            [
                entry.offset.to_string(),
                entry.len.to_string(),
                entry.file_offset.to_string(),
                Path::new(name).display().to_string(),
            ]
        });
        output.line(table(
            ["OFFSET", "LENGTH", "IN FILE AT", "FILE"],
            &[0, 1, 2],
            rows,
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
