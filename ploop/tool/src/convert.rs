//! `resize` and `convert`: the size of the disk, and how the image stores it.

use std::process::ExitCode;

use ploop::FormatVersion;

use crate::cli::{Convert, Resize};
use crate::output::{Failure, Output, Result};
use crate::snapshots::{open, with_progress};

pub(crate) fn resize(resize: &Resize) -> Result {
    open(&resize.source)?.grow(resize.size)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn convert(convert: &Convert, output: &Output) -> Result {
    let mut image = open(&convert.source)?;
    match convert.format_version {
        Some(FormatVersion::V2) => image.upgrade()?,
        Some(_) => {
            return Err(Failure::Request(
                "an image is converted to format v2 only; to get one of v1, export it and import it again".to_owned(),
            ));
        }
        None => {}
    }
    if let Some(mode) = convert.mode {
        with_progress(output, "converted", |progress| {
            image.convert(mode, progress)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
