//! Shows what an image consists of and whether it is sound.
//!
//! ```text
//! cargo run --example inspect -- /vz/private/101/root.hdd/DiskDescriptor.xml
//! cargo run --example inspect -- --json root.hds
//! ```
//!
//! Takes a descriptor or a single delta. Ends with 1 where the image is damaged.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ploop::Guid;
use ploop::image::{Descriptor, OpenOptions, Report, check, check_image};
use serde::Serialize;

fn main() -> ExitCode {
    let mut json = false;
    let mut path = None;
    for argument in std::env::args_os().skip(1) {
        if argument == "--json" {
            json = true;
        } else if path.is_none() && !argument.to_string_lossy().starts_with("--") {
            path = Some(PathBuf::from(argument));
        } else {
            return usage();
        }
    }
    let Some(path) = path else {
        return usage();
    };
    match inspect(&path, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: inspect [--json] DiskDescriptor.xml|DELTA");
    ExitCode::from(2)
}

/// Everything there is to say, for programs.
#[derive(Serialize)]
struct Everything {
    descriptor: Option<Descriptor>,
    partitions: Vec<ploop::image::Partition>,
    report: Report,
}

fn inspect(path: &Path, json: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let descriptor = if path.extension().is_some_and(|extension| extension == "xml") {
        Some(Descriptor::open(path)?)
    } else {
        None
    };
    let options = OpenOptions::new().allow_in_use(true);
    let (disk, report) = match &descriptor {
        Some(found) => (options.open_descriptor(found, found.top), check(path)),
        None => (options.open_image(path), check_image(path)),
    };
    let partitions = match &disk {
        Ok(disk) => disk.partitions()?,
        // The report says why.
        Err(_) => Vec::new(),
    };
    let sound = report.is_sound();
    if json {
        let everything = Everything {
            descriptor,
            partitions,
            report,
        };
        println!("{}", serde_json::to_string_pretty(&everything)?);
        return Ok(sound);
    }
    if let Some(descriptor) = &descriptor {
        println!(
            "{}: {}, {} in clusters of {}",
            path.display(),
            descriptor.mode,
            descriptor.size,
            descriptor.cluster
        );
        draw(descriptor, &report, Guid::NONE, "");
    }
    for partition in &partitions {
        println!(
            "partition {}: {} from {} on",
            partition.number,
            partition.size,
            ploop::Size::from_bytes(partition.offset)
        );
    }
    println!("{report}");
    Ok(sound)
}

/// The snapshots above `parent`. The depth of the tree is that of what was validated, but a file
/// decides on it: a stack of its own, instead of the program's.
fn draw(descriptor: &Descriptor, report: &Report, parent: Guid, indent: &str) {
    let mut stack = vec![(parent, indent.to_owned())];
    // The line that shows a snapshot, drawn when it is taken from the stack.
    let mut first = true;
    while let Some((guid, indent)) = stack.pop() {
        if !first {
            line(descriptor, report, guid, &indent);
        }
        let below = if first {
            String::new()
        } else {
            // What stands below a branch is a bar, unless it was the last.
            indent.replace("├─ ", "│  ").replace("└─ ", "   ")
        };
        first = false;
        let children: Vec<Guid> = descriptor.children(guid).collect();
        for (index, child) in children.iter().enumerate().rev() {
            let branch = if index + 1 == children.len() {
                "└─ "
            } else {
                "├─ "
            };
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
    let allocated = delta.map_or("unreadable".to_owned(), |delta| delta.allocated.to_string());
    let top = if guid == descriptor.top { " (top)" } else { "" };
    println!(
        "{indent}{guid}{top}  {allocated}  {}",
        Path::new(file).display()
    );
}
