//! Shows what an image consists of, and whether it is sound.
//!
//! ```text
//! cargo run --example inspect -- /vz/private/101/root.hdd/DiskDescriptor.xml
//! cargo run --example inspect -- --json root.hds
//! ```
//!
//! Ends with 1 if the image is damaged.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use ploop::image::{Descriptor, OpenOptions, Partition, Report, check, check_image};
use ploop::{Guid, Size};
use serde::Serialize;

/// Show what an image consists of, and whether it is sound
#[derive(Parser)]
struct Arguments {
    /// A DiskDescriptor.xml, or one delta by itself
    path: PathBuf,
    /// Print everything, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Everything {
    descriptor: Option<Descriptor>,
    partitions: Vec<Partition>,
    report: Report,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Arguments { path, json } = Arguments::parse();
    let options = OpenOptions::new().allow_in_use(true);
    let (descriptor, disk, report) = if path.extension().is_some_and(|it| it == "xml") {
        let descriptor = Descriptor::open(&path)?;
        let disk = options.open_descriptor(&descriptor, descriptor.top);
        (Some(descriptor), disk, check(&path))
    } else {
        (None, options.open_image(&path), check_image(&path))
    };
    let everything = Everything {
        descriptor,
        // The report says why a disk cannot be opened.
        partitions: disk.map_or(Ok(Vec::new()), |disk| disk.partitions())?,
        report,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&everything)?);
    } else {
        show(&path, &everything);
    }
    Ok(match everything.report.is_sound() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn show(path: &Path, everything: &Everything) {
    let report = &everything.report;
    if let Some(descriptor) = &everything.descriptor {
        println!(
            "{}: {}, {:.2} in clusters of {}",
            path.display(),
            descriptor.mode,
            descriptor.size,
            descriptor.cluster
        );
        draw(descriptor, report);
    }
    for partition in &everything.partitions {
        println!(
            "partition {}: {:.2} from {} on",
            partition.number,
            partition.size,
            Size::from_bytes(partition.offset)
        );
    }
    println!("{report}");
}

/// The tree of snapshots. The file decides how deep the tree is, so this does not recurse.
fn draw(descriptor: &Descriptor, report: &Report) {
    let mut stack = vec![(Guid::NONE, String::new())];
    while let Some((guid, indent)) = stack.pop() {
        if guid != Guid::NONE {
            line(descriptor, report, guid, &indent);
        }
        // Below a branch there is a bar, unless it was the last one.
        let below = indent.replace("├─ ", "│  ").replace("└─ ", "   ");
        let children: Vec<Guid> = descriptor.children(guid).collect();
        for (index, child) in children.iter().enumerate().rev() {
            let last = index + 1 == children.len();
            let branch = if last { "└─ " } else { "├─ " };
            stack.push((*child, format!("{below}{branch}")));
        }
    }
}

fn line(descriptor: &Descriptor, report: &Report, guid: Guid, indent: &str) {
    let file = descriptor
        .image(guid)
        .and_then(|image| image.file.file_name())
        .unwrap_or_default();
    let delta = report.deltas.iter().find(|delta| delta.guid == Some(guid));
    let allocated = delta.map_or("unreadable".into(), |delta| {
        format!("{:.2}", delta.allocated)
    });
    let top = if guid == descriptor.top { " (top)" } else { "" };
    println!(
        "{indent}{guid}{top}  {allocated}  {}",
        Path::new(file).display()
    );
}
