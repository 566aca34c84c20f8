//! `cargo xtask bench`: the benchmarks, with what they measure with and against.

use crate::steps::{self, Step};
use crate::{Install, run, setup};
use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Which (default: all)
    #[arg(value_name = "BENCHMARK", value_parser = PossibleValuesParser::new(BENCHMARKS.map(|b| b.name)))]
    names: Vec<String>,
}

struct Benchmark {
    name: &'static str,
    title: &'static str,
    /// What Cargo is told.
    target: &'static str,
    arguments: &'static [&'static str],
}

const BENCHMARKS: [Benchmark; 3] = [
    Benchmark {
        name: "overhead",
        title: "safe calls and libploop's own",
        target: "-p ploop --bench overhead",
        // Raw and safe calls by turns: their quotient means something on a busy machine, too.
        arguments: &["--bars"],
    },
    Benchmark {
        name: "image",
        title: "reading images, and QEMU's tools",
        // As those use it who want no C library.
        target: "-p ploop --bench image --no-default-features --features image",
        arguments: &[],
    },
    Benchmark {
        name: "io",
        title: "the sandbox, a plain loop device, and QEMU's FUSE export",
        target: "-p ploop-sandbox --bench io",
        arguments: &[],
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
    // All are built before any is measured, so that the tables stand together.
    for benchmark in chosen.clone() {
        run::run(&mut run::cargo(&format!(
            "bench --no-run {}",
            benchmark.target
        )))?;
    }
    steps::run(
        chosen
            .map(|benchmark| {
                Step::new(benchmark.name, benchmark.title, || {
                    run::run(
                        run::cargo(&format!("bench --quiet {} --", benchmark.target))
                            .args(benchmark.arguments),
                    )
                })
            })
            .collect(),
    )
}
