//! `check`.

use std::fs;
use std::process::ExitCode;

use ploop::image::{Issue, Report, Severity};

use crate::cli;
use crate::output::{ERROR, Failure, GOOD, NOTE, Output, Result, WARNING};
use crate::source::Source;

/// The statuses of a check that found something.
const DAMAGED: u8 = 2;
const SPACE_LOST: u8 = 3;

pub(crate) fn run(source: &cli::Source, output: &Output) -> Result {
    // What is not there is not damaged.
    if let Err(error) = fs::symlink_metadata(&source.path) {
        return Err(Failure::Request(format!(
            "{}: {error}",
            source.path.display()
        )));
    }
    let report = Source::find(source)?.check();
    if output.is_json() {
        output.json(&report)?;
    } else {
        show(&report, output)?;
    }
    Ok(status(&report))
}

/// Damage is what cannot be read for certain; what remains of the warnings is space, unless one says more.
fn status(report: &Report) -> ExitCode {
    let is_space = |issue| {
        matches!(
            issue,
            Issue::LostClusters | Issue::UnalignedTail | Issue::Orphan | Issue::EmptyFlag
        )
    };
    if !report.is_sound() {
        return ExitCode::from(DAMAGED);
    }
    let loses_space = report
        .findings
        .iter()
        .any(|it| it.severity == Severity::Warning && is_space(it.issue));
    match loses_space {
        true => ExitCode::from(SPACE_LOST),
        false => ExitCode::SUCCESS,
    }
}

fn show(report: &Report, output: &Output) -> Result<()> {
    for finding in &report.findings {
        let style = match finding.severity {
            Severity::Error => ERROR,
            Severity::Warning => WARNING,
            Severity::Note => NOTE,
        };
        let text = finding.to_string();
        // The severity is the first word.
        let rest = text
            .strip_prefix(&finding.severity.to_string())
            .unwrap_or(&text);
        output.line(format_args!("{style}{}{style:#}{rest}", finding.severity))?;
    }
    let (style, words) = match report.worst() {
        Some(Severity::Error) => (ERROR, "The image is damaged."),
        Some(Severity::Warning) => (WARNING, "The image is sound, with reservations."),
        Some(Severity::Note) | None => (GOOD, "The image is sound."),
    };
    output.line(format_args!("{style}{words}{style:#}"))
}
