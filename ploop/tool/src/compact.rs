//! `compact`.

use std::process::ExitCode;

use ploop::Size;
use ploop::image::{CompactOptions, CompactedDelta};

use crate::cli::Compact;
use crate::output::{Output, Result, table};
use crate::snapshots::{open, with_progress};

pub(crate) fn run(compact: &Compact, output: &Output) -> Result {
    let options = CompactOptions::new().dry_run(compact.dry_run);
    let mut image = open(&compact.source)?;
    let report = with_progress(output, "compacted", |progress| {
        image.compact(&options, progress)
    })?;
    if output.is_json() {
        output.json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = |size: Size| format!("{size:.2}");
    let row = |delta: &CompactedDelta| {
        let name = delta.file.file_name().unwrap_or_default();
        [
            size(delta.zeros),
            size(delta.same),
            size(delta.lost),
            size(delta.freed()),
            name.to_string_lossy().into_owned(),
        ]
    };
    let header = ["ZEROS", "SAME AS BELOW", "LOST", "FREED", "FILE"];
    output.line(table(header, &[0, 1, 2, 3], report.deltas.iter().map(row)))?;
    let verb = match compact.dry_run {
        true => "would be",
        false => "were",
    };
    output.line(format_args!("{:.2} {verb} freed", report.freed()))?;
    Ok(ExitCode::SUCCESS)
}
