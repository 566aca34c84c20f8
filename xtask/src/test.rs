//! `cargo xtask test`: every test, and a list of those that could not run.

use crate::packages::{self, Program, Wanted};
use crate::report::Report;
use crate::sandbox::{self, Sandbox};
use crate::{Install, run, setup, steps};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Arguments for the test programs: a name to filter by, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "test", "sandbox"], options.install.no_install)?;
    all(&options.arguments)
}

/// The workspace with its default features, documentation tests included; then the crate as those use it who want no C.
const RUNS: [&str; 2] = [
    "test --workspace --no-fail-fast",
    "test -p ploop --no-fail-fast --no-default-features --features image,image-write",
];

/// The test programs that need the driver, as Cargo names them. Each runs in a sandbox of its own.
const SANDBOXED: [&str; 2] = ["-p ploop --test kernel", "-p ploop --test hazards"];

/// How long one of them may take: a program that hangs must not eat the run.
const LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn all(arguments: &[String]) -> Result<()> {
    let started = Instant::now();
    let mut report = Report::default();
    let mut failed = Vec::new();
    for (number, line) in RUNS.into_iter().enumerate() {
        headline(number, &format!("cargo {line}"));
        let mut command = run::cargo(line);
        if !arguments.is_empty() {
            command.arg("--").args(arguments);
        }
        if !follow(&mut command, &mut report)? {
            failed.push(format!("cargo {line}"));
        }
    }
    headline(RUNS.len(), "what needs the ploop driver, in the sandbox");
    sandboxed(arguments, &mut report, &mut failed)?;
    print!("\n{}", report.summary());
    println!("Elapsed: {}", steps::seconds(started.elapsed()));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    if report.passed == 0 && arguments.is_empty() {
        bail!("no test ran");
    }
    Ok(())
}

fn headline(number: usize, what: &str) {
    println!("\ntests, run {} of {}: {what}", number + 1, RUNS.len() + 1);
}

/// Runs a command, passes its output on and counts. Did it succeed?
fn follow(command: &mut Command, report: &mut Report) -> Result<bool> {
    let name = run::shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let output = child.stdout.take().context("no output to read")?;
    report
        .follow(output, &mut std::io::stdout())
        .context("reading what the tests print")?;
    Ok(child.wait()?.success())
}

/// The tests that need the driver. They were ignored so far; those that run now are that no more.
fn sandboxed(arguments: &[String], report: &mut Report, failed: &mut Vec<String>) -> Result<()> {
    if sandbox::driver_is_there() {
        println!("not in the sandbox: the kernel has the driver, and they have run");
        return Ok(());
    }
    let sandbox = Sandbox::build()?;
    if let Some(reason) = sandbox.missing()? {
        println!("not run: {reason}");
        for line in SANDBOXED {
            report.not_run(&reason, &format!("all of {line}"));
        }
        return Ok(());
    }
    let mut inside = Report::default();
    for line in SANDBOXED {
        // Built outside: Cargo needs no sandbox, and does not run as root.
        let programs = packages::build(
            &mut run::cargo(&format!("test --no-run {line}")),
            Wanted::Tests,
        )?;
        for Program {
            name,
            path,
            package,
        } in &programs
        {
            println!("\nin the sandbox: {name}");
            let mut command = sandbox.command(path, Some(package), LIMIT)?;
            command.args(arguments);
            if !follow(&mut command, &mut inside)? {
                failed.push(format!("{line}, in the sandbox"));
            }
        }
    }
    report.add(inside);
    Ok(())
}
