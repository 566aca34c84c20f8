//! `repair` and `restore-descriptor`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use ploop::image::{
    self, OfflineImage, RepairChoice, RepairItem, RepairOptions, RepairOutcome, RepairReport,
    Severity,
};
use serde::Serialize;

use crate::cli::{Repair, RestoreDescriptor};
use crate::create::print_descriptor;
use crate::output::{ERROR, GOOD, NOTE, Output, Result, WARNING};
use crate::progress::interrupt_flag;
use crate::snapshots::{open, with_progress};
use crate::source::{DESCRIPTOR, Source};
use crate::streams;

/// The status of a repair that has left something.
const LEFT: u8 = 1;

/// What `repair --revert` prints with `--json`.
#[derive(Serialize)]
struct Reverted<'a> {
    #[serde(serialize_with = "crate::output::paths")]
    files: &'a [PathBuf],
}

pub(crate) fn run(repair: &Repair, output: &Output) -> Result {
    let undo = [&repair.undo, &repair.revert];
    streams::require_none_of(|| undo.into_iter().flatten().cloned().collect())?;
    let mut image = open_damaged(repair)?;
    if let Some(undo) = &repair.revert {
        let files = image.undo_repair(undo)?;
        if output.is_json() {
            output.json(&Reverted { files: &files })?;
        } else {
            for file in files {
                let file = file.display();
                output.line(format_args!("{file} is as before the repair"))?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = options(repair);
    let report = with_progress(output, "repaired", |progress| {
        image.repair(&options, progress)
    })?;
    if output.is_json() {
        output.json(&report)?;
    } else {
        show(&report, output)?;
    }
    Ok(match report.is_complete() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(LEFT),
    })
}

/// As other commands open an image, but the descriptor may begin with anything.
fn open_damaged(repair: &Repair) -> Result<OfflineImage> {
    let path = &repair.source.path;
    if path.extension() != Some(OsStr::new("xml")) {
        return open(&repair.source);
    }
    Source::Descriptor(path.clone()).require_other_streams()?;
    let mut image = OfflineImage::open(path)?;
    image.set_cancel(Some(interrupt_flag()?));
    Ok(image)
}

fn options(repair: &Repair) -> RepairOptions {
    let choices = [
        (repair.clear_entries, RepairChoice::ClearEntries),
        (repair.copy_shared, RepairChoice::CopyShared),
        (repair.rebuild_headers, RepairChoice::RebuildHeaders),
        (repair.drop_extensions, RepairChoice::DropExtensions),
        (repair.drop_missing, RepairChoice::DropMissing),
        (repair.pad_raw, RepairChoice::PadRaw),
        (repair.fill_holes, RepairChoice::FillHoles),
        (repair.remove_orphans, RepairChoice::RemoveOrphans),
    ];
    let mut options = RepairOptions::new().dry_run(repair.dry_run);
    for (is_allowed, choice) in choices {
        if is_allowed {
            options = options.allow(choice);
        }
    }
    if let Some(geometry) = repair.geometry {
        options = options.geometry(geometry);
    }
    match &repair.undo {
        Some(file) => options.undo(file),
        None => options,
    }
}

fn show(report: &RepairReport, output: &Output) -> Result<()> {
    if report.recovered {
        output.line(match report.dry_run {
            true => "An operation that was interrupted would be finished or taken back first.",
            false => "An operation that was interrupted was finished or taken back first.",
        })?;
    }
    for item in &report.items {
        show_item(item, report.dry_run, output)?;
    }
    let (style, words) = match (report.is_complete(), report.dry_run, report.is_sound) {
        (true, true, _) if report.items.is_empty() => (GOOD, "Nothing is to be repaired."),
        (true, true, _) => (GOOD, "All would be repaired."),
        (true, false, _) => (GOOD, "The image is sound."),
        (false, true, _) => (WARNING, "Something would be left."),
        (false, false, true) => (WARNING, "The image is sound, with reservations."),
        (false, false, false) => (ERROR, "The image is damaged."),
    };
    output.line(format_args!("{style}{words}{style:#}"))
}

fn show_item(item: &RepairItem, dry_run: bool, output: &Output) -> Result<()> {
    let style = match item.severity {
        Severity::Error => ERROR,
        Severity::Warning => WARNING,
        Severity::Note => NOTE,
    };
    let mut place = String::new();
    if let Some(file) = &item.file {
        place = format!("{}: ", file.display());
        if let Some(offset) = item.offset {
            place = format!("{} at offset {offset}: ", file.display());
        }
    }
    let severity = item.severity;
    let message = &item.message;
    output.line(format_args!("{style}{severity}{style:#}: {place}{message}"))?;
    match &item.outcome {
        RepairOutcome::Repaired { how } => {
            let verb = if dry_run {
                "would be repaired"
            } else {
                "repaired"
            };
            output.line(format_args!("  {GOOD}{verb}{GOOD:#}: {how}"))
        }
        RepairOutcome::NeedsChoice { choice, effect } => output.line(format_args!(
            "  {WARNING}with --{choice}{WARNING:#}: {effect}"
        )),
        RepairOutcome::Left { reason } => {
            output.line(format_args!("  {ERROR}left{ERROR:#}: {reason}"))
        }
        other => output.line(format_args!("  {other}")),
    }
}

pub(crate) fn restore_descriptor(restore: &RestoreDescriptor, output: &Output) -> Result {
    let path: PathBuf = match restore.path.is_dir() {
        true => restore.path.join(DESCRIPTOR),
        false => restore.path.clone(),
    };
    streams::require_none_of(|| restore.deltas.clone())?;
    let image = image::restore_descriptor(path, &restore.deltas)?;
    print_descriptor(&image, output)
}
