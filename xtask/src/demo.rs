//! `cargo xtask demo`: the examples, run.

use crate::{Install, run, setup};
use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "test"], options.install.no_install)?;
    lifecycle()
}

pub(crate) fn lifecycle() -> Result<()> {
    run::run(&mut run::cargo("run -p ploop --example lifecycle"))
}
