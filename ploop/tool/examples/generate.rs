//! Writes the man pages and shell completions of `ploop-image` into a directory: `cargo xtask man DIRECTORY`.

#[path = "../src/cli.rs"]
mod cli;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, ValueEnum as _};
use clap_complete::Shell;

/// Write the man pages and shell completions of ploop-image
#[derive(Parser)]
struct Arguments {
    directory: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { directory } = Arguments::parse();
    let command = cli::Cli::command();
    let man = directory.join("man1");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(command.clone(), &man)?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut command.clone(), "ploop-image", &completions)?;
    }
    Ok(())
}
