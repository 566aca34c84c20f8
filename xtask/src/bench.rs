//! `cargo xtask bench`: runs the benchmarks, in the sandbox where they need a driver.

use crate::packages::{self, Kind, Program};
use crate::sandbox::{self, Sandbox};
use crate::steps::{self, Step};
use crate::{Install, run, setup};
use anyhow::{Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::process::Command;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// The benchmarks to run (default: all)
    #[arg(value_name = "BENCHMARK", value_parser = PossibleValuesParser::new(BENCHMARKS.map(|b| b.name)))]
    names: Vec<String>,
}

struct Benchmark {
    name: &'static str,
    title: &'static str,
    /// The options of Cargo that choose it.
    target: &'static str,
    arguments: &'static [&'static str],
    /// Runs in a sandbox, unless the kernel has the driver.
    needs_driver: bool,
}

const BENCHMARKS: [Benchmark; 6] = [
    Benchmark {
        name: "overhead",
        title: "safe calls and libploop's own",
        target: "-p ploop --bench overhead",
        // Raw and safe calls in turns, so that their ratio means something on a busy machine, too.
        arguments: &["--bars"],
        needs_driver: false,
    },
    Benchmark {
        name: "mounted",
        title: "mounts and mounted images, safe calls and libploop's own",
        target: "-p ploop --bench mounted",
        arguments: &["--bars"],
        needs_driver: true,
    },
    Benchmark {
        name: "image",
        title: "reading images, and QEMU's tools",
        // Without the C library, as it is used elsewhere.
        target: "-p ploop --bench image --no-default-features --features image",
        arguments: &["--bars"],
        needs_driver: false,
    },
    Benchmark {
        name: "offline",
        title: "changes without the driver, and libploop's own",
        target: "-p ploop --bench offline --features image-write",
        arguments: &["--bars"],
        needs_driver: false,
    },
    Benchmark {
        name: "command",
        title: "ploop-image, and qemu-img, QEMU's FUSE export and tar",
        target: "-p ploop-image --bench command",
        arguments: &["--bars"],
        needs_driver: false,
    },
    Benchmark {
        name: "io",
        title: "the sandbox, a plain loop device, and QEMU's FUSE export",
        target: "-p ploop-sandbox --bench io",
        arguments: &[],
        needs_driver: false,
    },
];

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(
        &["build", "test", "sandbox", "bench"],
        options.install.no_install,
    )?;
    let chosen = BENCHMARKS.iter().filter(|benchmark| {
        options.names.is_empty() || options.names.iter().any(|name| name == benchmark.name)
    });
    // All are built before the first runs, so that the tables are printed together.
    let mut built = Vec::new();
    for benchmark in chosen {
        let line = format!("bench --no-run {}", benchmark.target);
        built.push((benchmark, packages::build(&mut run::cargo(&line))?));
    }
    steps::run(
        built
            .iter()
            .map(|(benchmark, programs)| {
                Step::new(benchmark.name, benchmark.title, || {
                    run::run(&mut benchmark.command(programs)?)
                })
            })
            .collect(),
    )
}

/// How long a benchmark in the sandbox may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);

impl Benchmark {
    fn command(&self, programs: &[Program]) -> Result<Command> {
        if !self.needs_driver || sandbox::driver_is_there() {
            let mut command = run::cargo(&format!("bench --quiet {} --", self.target));
            command.args(self.arguments);
            return Ok(command);
        }
        let sandbox = Sandbox::build()?;
        if let Some(reason) = sandbox.missing()? {
            bail!("no ploop driver, and no sandbox: {reason}");
        }
        let program = packages::find(programs, Kind::Benchmark, self.name)?;
        let mut command = sandbox.command(&program.path, Some(&program.package), LIMIT)?;
        // The argument that Cargo gives a benchmark.
        command.args(self.arguments).arg("--bench");
        Ok(command)
    }
}
