//! `ploop-sandbox`: runs a program in a mount namespace in which a userspace stand-in takes the place of the ploop
//! kernel driver.

#![deny(unsafe_code)]

mod block;
mod daemon;
mod driver;
mod file_system;
mod fuse;
mod ioctl;
mod launcher;
mod lock;
mod loop_device;
mod mounts;
mod namespace;
mod partition;
mod processes;
mod requirements;
mod sandbox_directory;
mod server;
mod spliced_answer;
mod teardown;
mod tree;
mod virtual_disk;
mod watchdog;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::driver::Generation;
use crate::sandbox_directory::Base;

/// The exit code where the machine lacks something that a sandbox needs.
const REQUIREMENT_MISSING: u8 = 3;
const PRELOAD_LIBRARY: &str = "libploop_sandbox_preload.so";

/// A userspace stand-in for the ploop kernel driver.
#[derive(Parser)]
#[command(name = "ploop-sandbox", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

const EXIT_CODES: &str = "Exit codes of `run`: that of the program, or 128 plus the number of the signal that ended it; \
                          1 the sandbox could not be made; 3 the machine lacks something; 70 the sandbox failed, and \
                          the program did not.";

/// The base directory. Sandboxes of different base directories leave each other alone.
#[derive(Args)]
struct BaseOption {
    /// The directory in which sandboxes are made and dead ones are cleaned up
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
        base: BaseOption,
        /// The preload library; by default the one beside this program, and none if empty
        #[arg(long)]
        preload: Option<OsString>,
        /// The driver to stand for: that of Virtuozzo 7 has more ioctls and more files in sysfs; by default the one
        /// that fits the libploop in use
        #[arg(long, value_name = "6|7")]
        driver: Option<Generation>,
        /// The sandbox is ended when its daemon has not answered for so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        daemon_timeout: u64,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Say whether a sandbox can run here, or else what is missing
    Check,
    /// Remove what sandboxes that died have left
    Clean(BaseOption),
    #[command(hide = true)]
    Daemon {
        directory: PathBuf,
        #[arg(long)]
        driver: Option<Generation>,
    },
    #[command(hide = true)]
    Exec {
        #[arg(long)]
        directory: PathBuf,
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
            base,
            preload,
            driver,
            daemon_timeout,
            command,
        } => {
            let executable = own_executable()?;
            let options = launcher::Options {
                base: base.base,
                preload: preload_library(preload, &executable)?,
                generation: driver,
                daemon_timeout: Duration::from_secs(daemon_timeout),
                command,
                executable,
            };
            in_namespace(|| launcher::run(&options))
        }
        Subcommands::Check => in_namespace(|| {
            if let Some(missing) = requirements::missing_for_libploop_7() {
                eprintln!("ploop-sandbox: {missing}");
            }
            Ok(0)
        }),
        // Nothing was ever made there.
        Subcommands::Clean(base) if !base.base.exists() => Ok(0),
        Subcommands::Clean(base) => in_namespace(|| {
            for line in teardown::clean(&Base::new(&base.base)?)? {
                println!("{line}");
            }
            Ok(0)
        }),
        Subcommands::Daemon { directory, driver } => daemon::run(directory, driver).map(|()| 0),
        Subcommands::Exec {
            directory,
            preload,
            command,
        } => match launcher::become_program(&directory, preload.as_deref(), &command) {
            Ok(()) => Ok(0),
            Err(error) => {
                eprintln!("ploop-sandbox: {error:#}");
                // The exit code of shells for a command that cannot be run.
                Ok(127)
            }
        },
    }
}

/// Does the work in a mount namespace of its own, if the machine has what a sandbox needs.
fn in_namespace(work: impl FnOnce() -> Result<u8>) -> Result<u8> {
    match requirements::enter_namespace() {
        Ok(()) => work(),
        Err(missing) => {
            eprintln!("ploop-sandbox: {missing}");
            Ok(REQUIREMENT_MISSING)
        }
    }
}

/// The path of this program. Only before a namespace is made: afterwards the kernel names the file by the mounts of the
/// old one, which in a chroot is a path outside of it.
fn own_executable() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}

/// The path of the preload library: the one given, or the one beside this program.
fn preload_library(given: Option<OsString>, executable: &Path) -> Result<Option<PathBuf>> {
    if let Some(path) = given {
        if path.is_empty() {
            return Ok(None);
        }
        let path = Path::new(&path);
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find the preload library {}", path.display()))?;
        return Ok(Some(path));
    }
    let directory = executable.parent().unwrap_or(Path::new("/"));
    // Cargo puts tests into `deps`.
    let beside = [directory, directory.parent().unwrap_or(directory)];
    let found = beside
        .map(|directory| directory.join(PRELOAD_LIBRARY))
        .into_iter()
        .find(|library| library.exists());
    found.map(Some).with_context(|| {
        format!(
            "{PRELOAD_LIBRARY} is not beside {}: build it with `cargo build -p ploop-sandbox-preload`, or name it with --preload",
            executable.display()
        )
    })
}
