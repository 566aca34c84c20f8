//! Maintainers' commands of the ploop workspace: `cargo xtask COMMAND`.
//!
//! Building this needs only the Rust toolchain. A command names what else it needs and has `ci/setup.sh` install it.

mod abi;
mod bench;
mod bindgen;
mod checks;
mod ci;
mod cycles;
mod demo;
mod jobs;
mod library;
mod man;
mod packages;
mod report;
mod run;
mod sandbox;
mod setup;
mod steps;
mod stub;
mod test;
mod valgrind;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Maintainers' commands of the ploop workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 success; 1 a check or a test failed; 2 wrong usage; \
                          3 something has to be installed and may not or cannot be. \
                          `sandbox` exits as its program does.";

#[derive(Subcommand)]
enum Command {
    /// Generate ploop-sys's committed bindings from the installed libploop header
    Bindgen(bindgen::Options),
    /// Compare a committed binding with headers of libploop, or tell since which version each function and member is there
    Abi(abi::Options),
    /// Build the library's examples and show real images being managed
    Demo(demo::Options),
    /// Run a program in the sandbox, where ploop works without the kernel driver
    Sandbox(sandbox::Options),
    /// Build a stub of a line of libploop, for tests of what the crate does with it
    Stub(stub::Options),
    /// Run all tests, and say which could not run and why
    Test(test::Options),
    /// Run the benchmarks and print their tables
    Bench(bench::Options),
    /// Write the man pages and shell completions of ploop-image
    Man(man::Options),
    /// Run all checks of CI, the tests included
    Ci(ci::Options),
}

/// The option of every command that may install something.
#[derive(Args, Default)]
struct Install {
    /// Install nothing: fail if something is missing
    #[arg(long)]
    no_install: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bindgen(options) => bindgen::run(&options),
        Command::Abi(options) => abi::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Sandbox(options) => match sandbox::run(&options) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Stub(options) => stub::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Man(options) => man::run(&options),
        Command::Ci(options) => ci::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<setup::Missing>() { 3 } else { 1 })
        }
    }
}
