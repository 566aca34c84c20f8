//! `create` and `import`: new images.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ploop::image::{self, CreateOptions, Image, ImageKind, OfflineImage, OpenOptions};
use ploop::{Descriptor, Guid, Size};
use serde::Serialize;

use crate::cli::{Create, Import, Shape};
use crate::output::{Failure, Output, Result};
use crate::progress::interrupt_flag;
use crate::snapshots::with_progress;

/// The name that libploop's callers give to the base.
const BASE: &str = "root.hds";

/// What `create` and `import` print with `--json`.
#[derive(Serialize)]
struct Made<'a> {
    #[serde(serialize_with = "crate::output::path")]
    descriptor: &'a Path,
}

pub(crate) fn create(create: &Create, output: &Output) -> Result {
    let options = options(&create.shape)?;
    let base = base_in(&create.directory)?;
    let image = image::create(base.path(), create.size, &options)?;
    made(base, &image, output)
}

pub(crate) fn import(import: &Import, output: &Output) -> Result {
    let options = options(&import.shape)?;
    if import.source == Path::new("-") {
        let base = base_in(&import.directory)?;
        let source = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let image = with_progress(output, "imported", |progress| {
            image::import(base.path(), source, &options, progress)
        })?;
        return made(base, &image, output);
    }
    let path = &import.source;
    let cannot = |error| Failure::Request(format!("{} cannot be read: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        // A device or a pipe, from its beginning to its end.
        let base = base_in(&import.directory)?;
        let source = File::open(path).map_err(cannot)?;
        let image = with_progress(output, "imported", |progress| {
            image::import(base.path(), source, &options, progress)
        })?;
        return made(base, &image, output);
    }
    let sectors = metadata.len().div_ceil(512);
    if sectors * 512 != metadata.len() {
        return Err(Failure::Request(format!(
            "{} has {} bytes, which is no number of sectors: this is no raw disk",
            path.display(),
            metadata.len()
        )));
    }
    // A raw file is a disk of one plain base: its holes are not read.
    let plain = Image::new(Guid::TOP, path, ImageKind::Plain);
    let descriptor = Descriptor::new(Size::from_sectors(sectors), plain);
    let disk = OpenOptions::new().open_descriptor(&descriptor, Guid::TOP)?;
    let base = base_in(&import.directory)?;
    let image = with_progress(output, "imported", |progress| {
        image::import_disk(base.path(), &disk, &options, progress)
    })?;
    made(base, &image, output)
}

fn options(shape: &Shape) -> Result<CreateOptions> {
    Ok(CreateOptions::new()
        .mode(shape.mode)
        .cluster(shape.cluster)
        .format(shape.format_version)
        .cancel(interrupt_flag()?))
}

/// The base of an image that is to be made, in a directory that is made for it and removed again if nothing comes of it.
struct Base {
    directory: PathBuf,
    path: PathBuf,
    is_new: bool,
}

impl Base {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        if self.is_new {
            // It is empty, unless somebody else has put something in.
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

fn base_in(directory: &Path) -> Result<Base> {
    let made = fs::create_dir(directory);
    let is_new = match made {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => {
            return Err(Failure::Request(format!(
                "directory {} cannot be made: {error}",
                directory.display()
            )));
        }
    };
    Ok(Base {
        directory: directory.to_owned(),
        path: directory.join(BASE),
        is_new,
    })
}

fn made(mut base: Base, image: &OfflineImage, output: &Output) -> Result {
    base.is_new = false;
    let descriptor = image.path();
    if output.is_json() {
        output.json(&Made { descriptor })?;
    } else {
        output.line(descriptor.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
