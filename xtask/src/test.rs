//! `cargo xtask test`: every test, and a list of those that could not run.
//!
//! Everything is built by one command, and its programs run at the same time. Cargo itself runs what only it can: the
//! documentation's tests, and those of the crate without the C library, whose features need a build of their own.

use crate::jobs::{self, Done, Job, Share};
use crate::library::{self, Library};
use crate::packages::{self, Kind, Program};
use crate::report::{self, Report};
use crate::sandbox::{self, Sandbox};
use crate::stub::{self, StubTests};
use crate::{Install, run, setup, steps};
use anyhow::{Result, bail};
use clap::Args;
use std::cmp::Reverse;
use std::ffi::OsString;
use std::num::NonZero;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Args, Default)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Print the time of every program, not of the slowest only
    #[arg(long)]
    timings: bool,
    /// How many test programs run at the same time (default: one more than there are processors, since each waits at times)
    #[arg(short, long, value_name = "NUMBER")]
    jobs: Option<NonZero<usize>>,
    /// Arguments for the test programs: a name to filter by, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "test", "sandbox"], options.install.no_install)?;
    match library::run_with_named()? {
        true => Ok(()),
        false => all(options),
    }
}

const BUILD: &str = "test --no-run --workspace";

/// Without the C library, as those use the crate who want none, and with what no user has by default. The unit tests and
/// test programs that need neither are the same with all features, of which they use the same part: one of the programs is
/// enough here.
const CARGO: [&str; 3] = [
    "test --doc --workspace --no-fail-fast",
    "test -p ploop --no-default-features --features image,image-write --no-fail-fast --test image",
    "test -p ploop --no-default-features --features image,image-write --no-fail-fast --doc",
];

/// The test programs that run in a sandbox of their own, too, each with arguments of its own: those that need the driver,
/// and those that have to pass on a host with one.
const SANDBOXED: [(&str, &[&str]); 6] = [
    ("kernel", &[]),
    ("hazards", &[]),
    // Whatever the kernel's age, there is a driver or there is none.
    ("operations", &["--skip", "on_an_old_kernel"]),
    ("threads", &[]),
    ("line7", &[]),
    ("examples", &[]),
];

/// Programs that are not like the others, in the order in which they begin: what takes longest comes first.
const SHARES: [(&str, Share); 10] = [
    // One of its tests waits for a minute.
    ("hazards", Share::Waits),
    // Most of its time it waits for the sandbox and for file systems.
    ("conformance", Share::Waits),
    ("kernel", Share::One),
    ("faults", Share::One),
    ("cuts", Share::One),
    ("bad_input", Share::One),
    ("other_tools", Share::One),
    ("operations", Share::One),
    // Looks for what others may have left on this host.
    ("life", Share::Alone),
    // Measures what others would disturb.
    ("stress", Share::Alone),
];

/// The programs that run one test after another, so that the time of each is known.
const SEQUENTIAL: [&str; 3] = ["conformance", "life", "stress"];

/// How long a program in the sandbox may take: one that hangs must not eat the run.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How many are named at the end.
const SLOWEST: usize = 10;

pub(crate) fn all(options: &Options) -> Result<()> {
    let library = Library::linked()?;
    println!("Tests of {library}");
    let started = Instant::now();
    let mut run = Run::default();
    let programs = packages::build(&mut run::cargo(BUILD))?;
    run.took(started.elapsed(), None, "build");

    let mut sandboxed = None;
    if sandbox::driver_is_there() {
        println!("No sandbox: the kernel has the driver.");
    } else {
        let sandbox = Sandbox::among(&programs)?;
        match sandbox.missing()? {
            Some(reason) => {
                println!("No sandbox: {reason}");
                for (name, _) in SANDBOXED {
                    let name = format!("all of {name}, with the driver");
                    run.outside.not_run(&reason, &name);
                }
            }
            None => sandboxed = Some(sandbox),
        }
    }
    let mut jobs = jobs(&programs, sandboxed.as_ref(), &options.arguments)?;
    // Where a library is named, the tests of all are of that one.
    if !library::is_named() {
        let begun = Instant::now();
        jobs.extend(on_stub(&options.arguments)?);
        run.took(begun.elapsed(), None, "build of the stub and its tests");
    }
    // With --nocapture, one at a time.
    let shows = options.arguments.iter().any(|word| word == "--nocapture");
    let at_once = match options.jobs {
        Some(jobs) => jobs.get(),
        None if shows => 1,
        None => thread::available_parallelism().map_or(2, |processors| processors.get() + 1),
    };
    println!("{} test programs, {at_once} at a time:", jobs.len());
    jobs::run(jobs, at_once, |done| {
        run.ended(done, shows);
        Ok(())
    })?;
    let result = run.finish(options, started.elapsed());
    println!("Tests of {library}");
    result
}

/// The tests on the stub. As root, if that takes no password: libploop's lock of all devices is root's.
fn on_stub(arguments: &[String]) -> Result<Vec<Job>> {
    let tests = StubTests::build()?;
    let job = |program: &Program| {
        let mut words = sandbox::as_root(false);
        words.extend(["env".into(), variable("LD_LIBRARY_PATH", &tests.library)]);
        words.extend([variable("CARGO_MANIFEST_DIR", &program.package)]);
        words.push(program.path.clone().into());
        words.extend(arguments.iter().map(OsString::from));
        let mut command = sandbox::command(words)?;
        command.current_dir(&program.package);
        Ok(Job {
            name: stub::title(program),
            command,
            share: Share::One,
        })
    };
    tests.programs.iter().map(job).collect()
}

/// For `env`.
fn variable(name: &str, value: &Path) -> OsString {
    let mut word = OsString::from(format!("{name}="));
    word.push(value);
    word
}

/// Everything that is to run, the longest first.
fn jobs(programs: &[Program], sandbox: Option<&Sandbox>, arguments: &[String]) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for program in programs {
        if !matches!(program.kind, Kind::Test | Kind::UnitTest) || program.name == stub::TESTS {
            continue;
        }
        let (rank, share) = rank(program);
        let mut add = |name: String, mut command: std::process::Command| {
            command.args(arguments);
            let job = Job {
                name,
                command,
                share,
            };
            jobs.push((rank, job));
        };
        let name = program.title();
        let sandboxed = SANDBOXED
            .iter()
            .find(|(name, _)| program.kind == Kind::Test && program.name == *name);
        if let (Some((_, own)), Some(sandbox)) = (sandboxed, sandbox) {
            let mut command = sandbox.command(&program.path, Some(&program.package), LIMIT)?;
            command.args(*own);
            add(format!("{name}{IN_SANDBOX}"), command);
        }
        let mut command = run::command(&program.path);
        command
            .current_dir(&program.package)
            .env("CARGO_MANIFEST_DIR", &program.package);
        add(name, command);
    }
    for line in CARGO {
        let mut command = run::cargo(line);
        if !arguments.is_empty() {
            command.arg("--").args(arguments);
        }
        let job = Job {
            name: format!("cargo {line}"),
            command,
            share: Share::Cargo,
        };
        // Compilers are busy while others wait.
        jobs.push((0, job));
    }
    jobs.sort_by_key(|(rank, _)| *rank);
    Ok(jobs.into_iter().map(|(_, job)| job).collect())
}

const IN_SANDBOX: &str = ", in the sandbox";

fn rank(program: &Program) -> (usize, Share) {
    let named = |(name, _): &(&str, Share)| program.kind == Kind::Test && program.name == *name;
    match SHARES.iter().position(named) {
        Some(place) => (place, SHARES[place].1),
        None => (SHARES.len(), Share::One),
    }
}

/// What has run so far.
#[derive(Default)]
struct Run {
    outside: Report,
    /// In the sandbox.
    inside: Report,
    /// The programs that failed, and the tests in each that did.
    failed: Vec<(String, Vec<String>)>,
    timings: Vec<Timing>,
}

struct Timing {
    time: Duration,
    processor: Option<Duration>,
    what: String,
}

impl Run {
    fn took(&mut self, time: Duration, processor: Option<Duration>, what: &str) {
        self.timings.push(Timing {
            time,
            processor,
            what: what.to_owned(),
        });
    }

    /// A line about a program, and what it printed if it failed or if that is wanted.
    fn ended(&mut self, done: Done, shows: bool) {
        let mut report = Report::of(done.lines.iter().map(|(_, line)| line.as_str()));
        let succeeded = done.status.success();
        if !succeeded && report.failed == 0 {
            // It did not come to its last line.
            report.failed = 1;
        }
        self.took(done.time, Some(done.processor), &done.name);
        if SEQUENTIAL
            .iter()
            .any(|name| done.name.ends_with(&format!(": {name}")))
        {
            self.single_tests(&done);
        }
        // With a filter, most have nothing to do.
        if !succeeded || !report.is_empty() {
            println!(
                "{} {:>9}  {}: {}",
                if succeeded { "ok    " } else { "FAILED" },
                steps::seconds(done.time),
                done.name,
                report.counts(),
            );
        }
        if !succeeded || shows && !report.is_empty() {
            done.print_output();
        }
        if !succeeded {
            self.failed
                .push((done.name.clone(), report.failures.clone()));
        }
        if done.name.ends_with(IN_SANDBOX) {
            self.inside.extend(report);
        } else {
            self.outside.extend(report);
        }
    }

    fn single_tests(&mut self, done: &Done) {
        let mut before = Duration::ZERO;
        for (at, line) in &done.lines {
            if let Some((name, _)) = report::ended(line) {
                let what = format!("{}: {name}", done.name);
                self.took(at.saturating_sub(before), None, &what);
                before = *at;
            }
        }
    }

    fn finish(mut self, options: &Options, elapsed: Duration) -> Result<()> {
        self.timings.sort_by_key(|timing| Reverse(timing.time));
        let most = match options.timings {
            true => usize::MAX,
            false => SLOWEST,
        };
        println!(
            "\n{}, with the processor's time:",
            if options.timings {
                "Times"
            } else {
                "The slowest programs and tests"
            }
        );
        for timing in self.timings.iter().take(most) {
            let processor = timing.processor.map_or(String::new(), steps::seconds);
            println!(
                "{:>12} {processor:>12}  {}",
                steps::seconds(timing.time),
                timing.what
            );
        }
        let mut report = self.outside;
        report.add(self.inside);
        print!("\n{}", report.skips());
        println!("Elapsed: {}", steps::seconds(elapsed));
        println!("{}", report.counts());
        if !self.failed.is_empty() {
            bail!("{}", failures(&self.failed));
        }
        if report.passed == 0 && options.arguments.is_empty() {
            bail!("no test ran");
        }
        Ok(())
    }
}

/// The programs that failed, each with its failed tests: what the run ends with.
fn failures(programs: &[(String, Vec<String>)]) -> String {
    let mut text = "failed:".to_owned();
    for (program, tests) in programs {
        text += &format!("\n  {program}");
        if tests.is_empty() {
            text += " (it did not run to its end)";
        }
        for test in tests {
            text += &format!("\n    {test}");
        }
    }
    text
}
