//! `info`.

use std::path::Path;
use std::process::ExitCode;

use ploop::image::{Descriptor, Disk, Partition, PartitionKind, Report};
use ploop::{Guid, Size};
use serde::Serialize;

use crate::cli;
use crate::output::{Output, Result, table};
use crate::source::Source;

/// What `info --json` prints.
#[derive(Serialize)]
struct Info<'a> {
    /// The descriptor or delta that was read.
    #[serde(serialize_with = "crate::output::path")]
    path: &'a Path,
    /// Of the disk in its present state, in bytes; null where it cannot be opened.
    size: Option<u64>,
    /// Null for a delta by itself.
    descriptor: Option<Descriptor>,
    partitions: Vec<Partition>,
    /// Why the disk or its partition table cannot be read.
    problems: Vec<String>,
    report: Report,
}

pub(crate) fn run(source: &cli::Source, output: &Output) -> Result {
    let source = Source::find(source)?;
    let descriptor = source.descriptor()?;
    let report = source.check();
    let mut problems = Vec::new();
    let mut partitions = Vec::new();
    // An image that is in use or damaged is shown as far as that goes.
    let disk = match source.open(None, true) {
        Ok(disk) => Some(disk),
        Err(failure) => {
            problems.push(failure.to_string());
            None
        }
    };
    match disk.as_ref().map(Disk::partitions) {
        Some(Ok(found)) => partitions = found,
        Some(Err(error)) => problems.push(error.to_string()),
        None => {}
    }
    let info = Info {
        path: source.path(),
        size: disk.map(|disk| disk.size().bytes()),
        descriptor,
        partitions,
        problems,
        report,
    };
    if output.is_json() {
        output.json(&info)?;
    } else {
        show(&info, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(info: &Info<'_>, output: &Output) -> Result<()> {
    output.line(info.path.display())?;
    let size = info.size.map(Size::from_bytes);
    match &info.descriptor {
        Some(descriptor) => {
            let size = size.unwrap_or(descriptor.size);
            let (mode, cluster) = (descriptor.mode, descriptor.cluster);
            let mode = mode.to_string().to_lowercase();
            output.line(format_args!(
                "Disk of {size:.2}, {mode}, clusters of {cluster}"
            ))?;
            if let Some(key) = &descriptor.encryption {
                output.line(format_args!("Encrypted: {key}"))?;
            }
            output.line("")?;
            output.line(snapshots(descriptor, &info.report))?;
        }
        None => {
            for delta in &info.report.deltas {
                if let Some(layout) = &delta.layout {
                    output.line(format_args!(
                        "Delta of a disk of {:.2}, format {}, clusters of {}, {:.2} allocated",
                        layout.size, layout.version, layout.cluster, delta.allocated
                    ))?;
                }
            }
        }
    }
    if !info.partitions.is_empty() {
        output.line("")?;
        output.line(partitions(&info.partitions))?;
    }
    for problem in &info.problems {
        output.line("")?;
        output.line(problem)?;
    }
    Ok(())
}

fn partitions(partitions: &[Partition]) -> String {
    let rows = partitions.iter().map(|partition| {
        let (kind, name) = match &partition.kind {
            PartitionKind::Gpt { kind, name, .. } => (kind.to_string(), name.clone()),
            PartitionKind::Mbr { kind, active } => {
                let active = if *active { ", active" } else { "" };
                (format!("0x{kind:02x}{active}"), String::new())
            }
            _ => Default::default(),
        };
        [
            partition.number.to_string(),
            format!("{:.2}", partition.size),
            partition.offset.to_string(),
            kind,
            name,
        ]
    });
    table(
        ["PARTITION", "SIZE", "OFFSET", "TYPE", "NAME"],
        &[0, 1, 2],
        rows,
    )
}

/// The tree of snapshots. The file decides how deep the tree is, so this does not recurse.
fn snapshots(descriptor: &Descriptor, report: &Report) -> String {
    let mut rows = Vec::new();
    let mut stack = vec![(Guid::NONE, String::new())];
    while let Some((guid, indent)) = stack.pop() {
        if guid != Guid::NONE {
            rows.push(row(descriptor, report, guid, &indent));
        }
        // Below a branch there is a bar, unless it was the last one.
        let below = indent.replace("├─ ", "│  ").replace("└─ ", "   ");
        let children: Vec<Guid> = descriptor.children(guid).collect();
        for (index, child) in children.iter().enumerate().rev() {
            let last = index + 1 == children.len();
            let branch = match (guid == Guid::NONE, last) {
                (true, _) => "",
                (false, true) => "└─ ",
                (false, false) => "├─ ",
            };
            stack.push((*child, format!("{below}{branch}")));
        }
    }
    table(["SNAPSHOT", "ALLOCATED", "FORMAT", "FILE"], &[1], rows)
}

fn row(descriptor: &Descriptor, report: &Report, guid: Guid, indent: &str) -> [String; 4] {
    let mut name = format!("{indent}{guid}");
    if guid == descriptor.top {
        name += " (top)";
    }
    if descriptor.snapshot(guid).is_some_and(|shot| shot.temporary) {
        name += " (temporary)";
    }
    let file = descriptor
        .image(guid)
        .and_then(|image| image.file.file_name())
        .unwrap_or_default();
    let file = Path::new(file).display().to_string();
    match report.deltas.iter().find(|delta| delta.guid == Some(guid)) {
        Some(delta) => {
            let format = match &delta.layout {
                Some(layout) => layout.version.to_string(),
                None => "raw".to_owned(),
            };
            [name, format!("{:.2}", delta.allocated), format, file]
        }
        None => [name, "unreadable".into(), String::new(), file],
    }
}
