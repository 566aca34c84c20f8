//! `diff`.

use std::process::ExitCode;

use ploop::Size;
use ploop::image::Extent;

use crate::cli::Diff;
use crate::output::{Output, Result, table};
use crate::source::Source;

pub(crate) fn run(diff: &Diff, output: &Output) -> Result {
    let source = Source::find(&diff.source);
    let earlier = source.open(Some(diff.from), diff.in_use)?;
    let later = source.open(diff.to, diff.in_use)?;
    let changes: Vec<Extent> = later
        .changes_since(&earlier)
        .collect::<ploop::Result<_>>()?;
    if output.is_json() {
        output.json(&changes)?;
        return Ok(ExitCode::SUCCESS);
    }
    if changes.is_empty() {
        output.line("The two states are equal.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = changes
        .iter()
        .map(|it| [it.offset.to_string(), it.len.to_string()]);
    output.line(table(["OFFSET", "LENGTH"], &[0, 1], rows))?;
    let total = Size::from_bytes(changes.iter().map(|it| it.len).sum());
    output.line(format_args!("{total:.2} changed"))?;
    Ok(ExitCode::SUCCESS)
}
