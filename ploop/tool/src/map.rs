//! `map`.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::State;
use crate::long_list::{LongTable, print_json};
use crate::output::{Output, Result};

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
    let entries = disk.mappings().map(|mapping| -> Result<Entry<'_>> {
        let mapping = mapping?;
        Ok(Entry {
            offset: mapping.offset,
            len: mapping.len,
            file: files[mapping.level],
            file_offset: mapping.file_offset,
        })
    });
    if output.is_json() {
        print_json(entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["OFFSET", "LENGTH", "IN FILE AT", "FILE"];
    let mut table = LongTable::new(output, header, &[0, 1, 2]);
    for entry in entries {
        let entry = entry?;
        let name = entry.file.file_name().unwrap_or_default();
        table.push([
            entry.offset.to_string(),
            entry.len.to_string(),
            entry.file_offset.to_string(),
            Path::new(name).display().to_string(),
        ])?;
    }
    table.finish()?;
    Ok(ExitCode::SUCCESS)
}
