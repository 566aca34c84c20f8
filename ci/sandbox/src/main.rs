//! A userspace stand-in for the ploop kernel driver: runs a program in a world in which ploop works.

#![deny(unsafe_code)]

mod block;
mod daemon;
mod data;
mod driver;
mod file_system;
mod fuse;
mod ioctl;
mod launcher;
mod loop_device;
mod mounts;
mod namespace;
mod partition;
mod processes;
mod requirements;
mod sandbox_directory;
mod server;
mod teardown;
mod tree;
mod watchdog;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::sandbox_directory::Base;

/// The code for "this machine cannot do it".
const IMPOSSIBLE: u8 = 3;
const LIBRARY: &str = "libploop_sandbox_preload.so";

/// A userspace stand-in for the ploop kernel driver.
#[derive(Parser)]
#[command(name = "ploop-sandbox", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

const EXIT_CODES: &str = "Exit codes of `run`: the program's, 128 and its number for a signal; 1 the sandbox could \
                          not be made; 3 the machine lacks something; 70 the sandbox failed, and the program did not.";

/// Where sandboxes are. Those in different places leave each other alone.
#[derive(Args)]
struct BaseOption {
    /// The directory in which sandboxes are made, and dead ones are looked for
    #[arg(
        long,
        env = "PLOOP_SANDBOX_BASE",
        value_name = "DIR",
        default_value = "/run/ploop-sandbox"
    )]
    base: PathBuf,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run a program in a sandbox of its own
    Run {
        #[command(flatten)]
        at: BaseOption,
        /// The preload library; found beside this program if not given, none if empty
        #[arg(long)]
        preload: Option<OsString>,
        /// After how many seconds without an answer the sandbox is ended
        #[arg(long, default_value_t = 60)]
        patience: u64,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Say whether a sandbox can run here, or else what is missing
    Check,
    /// Remove what sandboxes that died have left
    Clean(BaseOption),
    #[command(hide = true)]
    Daemon { state: PathBuf },
    #[command(hide = true)]
    Exec {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        preload: Option<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ploop-sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Subcommands) -> Result<u8> {
    match command {
        Subcommands::Run {
            at,
            preload,
            patience,
            command,
        } => {
            let options = launcher::Options {
                base: at.base,
                preload: library(preload)?,
                patience: Duration::from_secs(patience),
                command,
            };
            possible(|| launcher::run(&options))
        }
        Subcommands::Check => possible(|| Ok(0)),
        // Nothing was ever made there.
        Subcommands::Clean(at) if !at.base.exists() => Ok(0),
        Subcommands::Clean(at) => possible(|| {
            for line in teardown::clean(&Base::new(&at.base)?)? {
                println!("{line}");
            }
            Ok(0)
        }),
        Subcommands::Daemon { state } => daemon::run(state).map(|()| 0),
        Subcommands::Exec {
            state,
            preload,
            command,
        } => match launcher::become_program(&state, preload.as_deref(), &command) {
            Ok(()) => Ok(0),
            Err(error) => {
                eprintln!("ploop-sandbox: {error:#}");
                // As shells have it.
                Ok(127)
            }
        },
    }
}

fn possible(work: impl FnOnce() -> Result<u8>) -> Result<u8> {
    match requirements::enter_namespace() {
        Ok(()) => work(),
        Err(missing) => {
            eprintln!("ploop-sandbox: {missing}");
            Ok(IMPOSSIBLE)
        }
    }
}

/// Where the preload library is: as told, or beside this program.
fn library(told: Option<OsString>) -> Result<Option<PathBuf>> {
    if let Some(path) = told {
        if path.is_empty() {
            return Ok(None);
        }
        let path = Path::new(&path);
        let path = path
            .canonicalize()
            .with_context(|| format!("no library {}", path.display()))?;
        return Ok(Some(path));
    }
    let executable = std::env::current_exe().context("cannot find this program")?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    // Cargo puts tests into `deps`.
    let beside = [directory, directory.parent().unwrap_or(directory)];
    let found = beside
        .map(|directory| directory.join(LIBRARY))
        .into_iter()
        .find(|library| library.exists());
    found.map(Some).with_context(|| {
        format!(
            "{LIBRARY} is not beside {}: build it with `cargo build -p ploop-sandbox-preload`, or say where it is with --preload",
            executable.display()
        )
    })
}
