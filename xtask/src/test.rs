//! `cargo xtask test`: every test, and a list of those that could not run.

use crate::report::Report;
use crate::{Install, run, setup, steps};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::process::Stdio;
use std::time::Instant;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Arguments for the test programs: a name to filter by, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "test"], options.install.no_install)?;
    all(&options.arguments)
}

/// The workspace with its default features, documentation tests included; then the crate as those use it who want no C.
const RUNS: [&str; 2] = [
    "test --workspace --no-fail-fast",
    "test -p ploop --no-fail-fast --no-default-features --features image,image-write",
];

pub(crate) fn all(arguments: &[String]) -> Result<()> {
    let started = Instant::now();
    let mut report = Report::default();
    let mut failed = Vec::new();
    for (number, line) in RUNS.into_iter().enumerate() {
        println!(
            "\ntests, run {} of {}: cargo {line}",
            number + 1,
            RUNS.len()
        );
        let mut command = run::cargo(line);
        if !arguments.is_empty() {
            command.arg("--").args(arguments);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run cargo {line}"))?;
        let output = child.stdout.take().context("no output to read")?;
        report
            .follow(output, &mut std::io::stdout())
            .context("reading what the tests print")?;
        if !child.wait()?.success() {
            failed.push(line);
        }
    }
    print!("\n{}", report.summary());
    println!("Elapsed: {}", steps::seconds(started.elapsed()));
    if !failed.is_empty() {
        bail!("failed: cargo {}", failed.join("; cargo "));
    }
    if report.passed == 0 && arguments.is_empty() {
        bail!("no test ran");
    }
    Ok(())
}
