//! Writes the disk of an image into a plain, sparse file.
//!
//! ```text
//! cargo run --release --example export -- DiskDescriptor.xml disk.raw
//! cargo run --release --example export -- --snapshot GUID DiskDescriptor.xml disk.raw
//! cargo run --release --example export -- --force root.hds disk.raw
//! ```

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ploop::Guid;
use ploop::image::{ExportOptions, OpenOptions};

/// Write the disk of an image into a plain, sparse file
#[derive(Parser)]
struct Arguments {
    /// A DiskDescriptor.xml, or one delta by itself
    source: PathBuf,
    target: PathBuf,
    /// The disk as of this snapshot
    #[arg(long)]
    snapshot: Option<Guid>,
    /// Read an image that is marked as in use, and replace the target
    #[arg(long)]
    force: bool,
    /// Return before the data is on the disk
    #[arg(long)]
    no_sync: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let source = &arguments.source;
    let open = OpenOptions::new().allow_in_use(arguments.force);
    let disk = match arguments.snapshot {
        Some(guid) => open.open_snapshot(source, guid)?,
        None if source.extension().is_some_and(|it| it == "xml") => open.open(source)?,
        None => open.open_image(source)?,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    )?);
    let options = ExportOptions::new()
        .overwrite(arguments.force)
        .sync(!arguments.no_sync);
    disk.export(&arguments.target, &options, |progress| {
        bar.set_length(progress.total.bytes());
        bar.set_position(progress.copied.bytes());
    })?;
    bar.finish();
    Ok(())
}
