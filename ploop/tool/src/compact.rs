//! `compact`.

use std::process::ExitCode;

use ploop::Size;
use ploop::image::{CompactOptions, CompactReport, CompactedDelta};
use serde::Serialize;

use crate::cli::Compact;
use crate::free_space::{self, FileSystemSpace};
use crate::output::{Output, Result, table};
use crate::snapshots::{open, with_progress};

/// What `compact --json` prints.
#[derive(Serialize)]
struct Compacted {
    #[serde(flatten)]
    report: CompactReport,
    /// With `--free`, those that are on the disk.
    file_systems: Vec<FileSystemSpace>,
}

pub(crate) fn run(compact: &Compact, output: &Output) -> Result {
    let options = CompactOptions::new().dry_run(compact.dry_run);
    let mut image = open(&compact.source)?;
    let mut file_systems = Vec::new();
    let report = with_progress(output, "compacted", |progress| match compact.free {
        true => {
            let find = |disk: &_, free: &mut _| {
                file_systems = free_space::find(disk, free)?;
                Ok(())
            };
            image.compact_with_free(&options, find, progress)
        }
        false => image.compact(&options, progress),
    })?;
    let compacted = Compacted {
        report,
        file_systems,
    };
    if output.is_json() {
        output.json(&compacted)?;
    } else {
        show(compact, &compacted, output)?;
    }
    let is_known = compacted.file_systems.iter().all(|it| it.free.is_some());
    let is_done = !compact.free || is_known && !compacted.file_systems.is_empty();
    Ok(match is_done {
        true => ExitCode::SUCCESS,
        // Something was asked for that could not be done.
        false => ExitCode::FAILURE,
    })
}

fn show(compact: &Compact, compacted: &Compacted, output: &Output) -> Result<()> {
    let size = |size: Size| format!("{size:.2}");
    let row = |delta: &CompactedDelta| {
        let name = delta.file.file_name().unwrap_or_default();
        [
            size(delta.zeros),
            size(delta.same),
            size(delta.free),
            size(delta.lost),
            size(delta.freed()),
            name.to_string_lossy().into_owned(),
        ]
    };
    let report = &compacted.report;
    let header = ["ZEROS", "SAME AS BELOW", "FREE", "LOST", "FREED", "FILE"];
    let rows = report.deltas.iter().map(row);
    output.line(table(header, &[0, 1, 2, 3, 4], rows))?;
    let verb = match compact.dry_run {
        true => "would be",
        false => "were",
    };
    output.line(format_args!("{:.2} {verb} freed", report.freed()))?;
    for it in &compacted.file_systems {
        let place = match it.partition {
            Some(number) => format!("partition {number}"),
            None => "the disk".to_owned(),
        };
        match (it.free, &it.problem) {
            (Some(free), _) => output.line(format_args!(
                "The file system of {place} has {:.2} free",
                Size::from_bytes(free)
            ))?,
            (None, problem) => output.warning(format_args!(
                "what the file system of {place} has free was left as it is: {}",
                problem.as_deref().unwrap_or_default()
            )),
        }
    }
    if compact.free && compacted.file_systems.is_empty() {
        output.warning("there is no ext2, ext3 or ext4 file system on the disk");
    }
    Ok(())
}
