//! `create` and `import`: new images.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ploop::image::{self, CreateOptions, Image, ImageKind, OfflineImage, OpenOptions};
use ploop::{Descriptor, Guid, Size};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::cli::{Create, Import, Shape};
use crate::output::{Failure, Output, Result};
use crate::progress::interrupt_flag;
use crate::snapshots::with_progress;
use crate::streams;

/// The name that libploop's callers give to the base.
const BASE: &str = "root.hds";

/// What `create` and `import` print with `--json`.
#[derive(Serialize)]
struct Made<'a> {
    #[serde(serialize_with = "crate::output::path")]
    descriptor: &'a Path,
}

pub(crate) fn create(create: &Create, output: &Output) -> Result {
    let options = options(&create.shape).cancel(interrupt_flag()?);
    let base = base_in(&create.directory)?;
    let image = image::create(base.path(), create.size, &options)?;
    made(base, &image, output)
}

pub(crate) fn import(import: &Import, output: &Output) -> Result {
    let interrupted = interrupt_flag()?;
    let options = options(&import.shape).cancel(Arc::clone(&interrupted));
    if import.source == Path::new("-") {
        let base = base_in(&import.directory)?;
        let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let source = Waiting { file, interrupted };
        let image = with_progress(output, "imported", |progress| {
            image::import(base.path(), source, &options, progress)
        })?;
        return made(base, &image, output);
    }
    let path = &import.source;
    streams::require_none_of(|| vec![path.clone()])?;
    let cannot = |error| Failure::Request(format!("{} cannot be read: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        // A device or a pipe, from its beginning to its end.
        let base = base_in(&import.directory)?;
        let file = open_at_once(path).map_err(cannot)?;
        let source = Waiting { file, interrupted };
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
    // A raw file is a disk of one raw base: its holes are not read.
    let plain = Image::new(Guid::TOP, path, ImageKind::Plain);
    let descriptor = Descriptor::new(Size::from_sectors(sectors), plain);
    let disk = OpenOptions::new().open_descriptor(&descriptor, Guid::TOP)?;
    let base = base_in(&import.directory)?;
    let image = with_progress(output, "imported", |progress| {
        image::import_disk(base.path(), &disk, &options, progress)
    })?;
    made(base, &image, output)
}

fn options(shape: &Shape) -> CreateOptions {
    CreateOptions::new()
        .mode(shape.mode)
        .cluster(shape.cluster)
        .format(shape.format_version)
}

/// Opens a pipe that nobody writes to yet without waiting for that; the reads wait.
fn open_at_once(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// A source that may have to be waited for: a read would go on waiting after a signal.
struct Waiting {
    file: File,
    interrupted: Arc<AtomicBool>,
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const INTERVAL: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(io::Error::other("a signal has ended this"));
            }
            let mut files = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut files, Some(&INTERVAL)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(buffer),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
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
    print_descriptor(image, output)
}

/// Prints the descriptor of an image that was made.
pub(crate) fn print_descriptor(image: &OfflineImage, output: &Output) -> Result {
    let descriptor = image.path();
    if output.is_json() {
        output.json(&Made { descriptor })?;
    } else {
        output.line(descriptor.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
