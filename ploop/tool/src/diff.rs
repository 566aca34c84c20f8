//! `diff`.

use std::process::ExitCode;

use ploop::Size;

use crate::cli::Diff;
use crate::long_list::{LongTable, print_json};
use crate::output::{Output, Result};
use crate::source::Source;

pub(crate) fn run(diff: &Diff, output: &Output) -> Result {
    let source = Source::find(&diff.source);
    let earlier = source.open(Some(diff.from), diff.in_use)?;
    let later = source.open(diff.to, diff.in_use)?;
    let changes = later.changes_since(&earlier);
    if output.is_json() {
        print_json(changes.map(|change| Ok(change?)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = LongTable::new(output, ["OFFSET", "LENGTH"], &[0, 1]);
    let mut total = Size::from_bytes(0);
    for change in changes {
        let change = change?;
        total += Size::from_bytes(change.len);
        table.push([change.offset.to_string(), change.len.to_string()])?;
    }
    if table.is_empty() {
        output.line("The two states are equal.")?;
        return Ok(ExitCode::SUCCESS);
    }
    table.finish()?;
    output.line(format_args!("{total:.2} changed"))?;
    Ok(ExitCode::SUCCESS)
}
