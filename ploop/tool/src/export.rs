//! `export`.

use std::path::Path;
use std::process::ExitCode;

use ploop::Size;
use ploop::image::{Disk, ExportOptions, LostExtent};
use serde::Serialize;

use crate::cli::{Export, Format};
use crate::output::{Failure, Output, Result, raw_stdout};
use crate::progress::{bar, interrupt_flag};
use crate::qcow2::Qcow2File;

pub(crate) fn run(export: &Export, output: &Output) -> Result {
    let disk = export.state.open()?;
    let mut options = ExportOptions::new()
        .overwrite(export.overwrite)
        .sync(!export.no_sync)
        .cancel(interrupt_flag()?);
    let part = export.partition.map(|number| partition(&disk, number));
    let part = part.transpose()?;
    if let Some((offset, size)) = part {
        options = options.part(offset, size);
    }
    let bar = bar(output, "exported");
    let progress = |progress: ploop::image::Progress| {
        bar.set_length(progress.total.bytes());
        bar.set_position(progress.copied.bytes());
    };
    match export.format {
        Format::Qcow2 if export.out == Path::new("-") => {
            return Err(Failure::Request(
                "a qcow2 image is not written in order, so it cannot go to the standard output; name a file".to_owned(),
            ));
        }
        Format::Qcow2 => {
            disk.require_other_file(&export.out, export.overwrite)?;
            let size = part.map_or(disk.size(), |(_, size)| size);
            let target = Qcow2File::create(&export.out, size, export.overwrite)?;
            disk.copy_to(&target, &options, progress)?;
            target.publish(!export.no_sync)?;
        }
        Format::Raw if export.out == Path::new("-") => {
            let out = raw_stdout()?;
            export.state.require_other_output(&out)?;
            disk.stream(out, &options, progress)?;
        }
        Format::Raw => disk.export(&export.out, &options, progress)?,
    }
    bar.finish_and_clear();
    report_lost(&disk, export, output)?;
    Ok(ExitCode::SUCCESS)
}

/// What `export --json` prints.
#[derive(Serialize)]
struct Exported {
    /// What was read as zeros, with `--salvage`.
    lost: Vec<LostExtent>,
}

fn report_lost(disk: &Disk, export: &Export, output: &Output) -> Result<()> {
    let lost = disk.lost();
    if output.is_json() && export.out != Path::new("-") {
        return output.json(&Exported { lost });
    }
    for it in lost {
        let (len, file) = (Size::from_bytes(it.len), it.file.display());
        output.warning(format_args!(
            "{len} at offset {} are lost: {file}: {}",
            it.offset, it.reason
        ));
    }
    Ok(())
}

/// Where a partition begins, and its size.
pub(crate) fn partition(disk: &Disk, number: u32) -> Result<(u64, Size)> {
    let partitions = disk.partitions()?;
    match partitions.iter().find(|it| it.number == number) {
        Some(partition) => Ok((partition.offset, partition.size)),
        None if partitions.is_empty() => Err(Failure::Request(
            "the disk has no partition table; leave --partition out".to_owned(),
        )),
        None => {
            let numbers: Vec<String> = partitions.iter().map(|it| it.number.to_string()).collect();
            Err(Failure::Request(format!(
                "there is no partition {number}; the disk has {}",
                numbers.join(", ")
            )))
        }
    }
}
