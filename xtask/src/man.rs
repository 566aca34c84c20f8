//! `cargo xtask man`: the man pages and shell completions of `ploop-image`, for packages.

use crate::run;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Options {
    /// Where they go: man1/ and completions/ are made there
    directory: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let directory = std::path::absolute(&options.directory)?;
    let mut command = run::cargo("run --quiet -p ploop-image --example generate --");
    run::run(command.arg(&directory))?;
    println!("{} written", directory.display());
    Ok(())
}
