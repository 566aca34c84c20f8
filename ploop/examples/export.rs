//! Writes the disk of an image into a plain, sparse file.
//!
//! ```text
//! cargo run --release --example export -- DiskDescriptor.xml disk.raw
//! cargo run --release --example export -- --snapshot GUID DiskDescriptor.xml disk.raw
//! cargo run --release --example export -- --force root.hds disk.raw
//! ```
//!
//! Takes a descriptor or a single delta. `--force` also exports an image marked as in use, and
//! replaces the target.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use ploop::Guid;
use ploop::image::{ExportOptions, OpenOptions};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let mut force = false;
    let mut no_sync = false;
    let mut snapshot = None;
    let mut paths = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--force") => force = true,
            Some("--no-sync") => no_sync = true,
            Some("--snapshot") => snapshot = arguments.next().and_then(|n| n.into_string().ok()),
            Some(option) if option.starts_with("--") => return usage(),
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let [source, target] = &paths[..] else {
        return usage();
    };
    let options = ExportOptions::new().overwrite(force).sync(!no_sync);
    match export(source, target, snapshot.as_deref(), force, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: export [--force] [--no-sync] [--snapshot GUID] DiskDescriptor.xml|DELTA TARGET"
    );
    ExitCode::from(2)
}

fn export(
    source: &Path,
    target: &Path,
    snapshot: Option<&str>,
    force: bool,
    options: &ExportOptions,
) -> Result<(), Box<dyn Error>> {
    let open = OpenOptions::new().allow_in_use(force);
    let described = source
        .extension()
        .is_some_and(|extension| extension == "xml");
    let disk = match snapshot {
        Some(guid) => open.open_snapshot(source, guid.parse::<Guid>()?)?,
        None if described => open.open(source)?,
        None => open.open_image(source)?,
    };
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    )?);
    disk.export(target, options, |progress| {
        bar.set_length(progress.total.bytes());
        bar.set_position(progress.copied.bytes());
    })?;
    bar.finish();
    Ok(())
}
