//! `cargo xtask ci`: the checks of CI, in steps.

use crate::cycles::ModuleDirectory;
use crate::packages::{self, Kind};
use crate::steps::{self, Step};
use crate::{Install, bindgen, checks, demo, jobs, run, setup, test, valgrind};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// Leave a step out (may be repeated)
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(names()))]
    skip: Vec<String>,
    /// Run this step alone (may be repeated)
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(names()))]
    only: Vec<String>,
    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    fuzz_seconds: u64,
    /// Print the steps and do nothing
    #[arg(long)]
    list: bool,
}

fn names() -> Vec<&'static str> {
    let settings = checks::Settings { fuzz_seconds: 0 };
    all(settings).into_iter().map(|step| step.name).collect()
}

fn all<'a>(settings: checks::Settings) -> Vec<Step<'a>> {
    let mut steps = vec![
        Step::new(
            "tidy",
            "files at the top, places of unsafe code, cycles of modules",
            tidy,
        ),
        Step::new("fmt", "formatting", || {
            run::run(&mut run::cargo("fmt --all --check"))
        }),
        Step::new("clippy", "lints, all targets and features", || {
            clippy("--workspace --all-targets --all-features")
        }),
        Step::new("features", "lints, each combination of features", features),
        Step::new("docs", "documentation without a warning", docs),
        Step::new(
            "docs-rs",
            "documentation where no libploop is installed",
            docs_rs,
        ),
        Step::new("test", "all tests", || test::all(&test::Options::default())),
        Step::new("demo", "the examples", demo::examples),
        Step::new(
            "bindgen",
            "committed bindings match the header",
            bindgen::check,
        ),
        Step::new(
            "rust-versions",
            "no dependency needs a newer Rust",
            packages::check_rust_versions,
        ),
        Step::new(
            "hidden",
            "builds where no libploop is installed",
            hidden_library,
        ),
        Step::new(
            "static",
            "a static program runs without libploop.so",
            static_program,
        ),
        Step::new("valgrind", "memory errors in offline tests", valgrind::run),
    ];
    steps.extend(checks::steps(settings));
    steps
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps: Vec<_> = all(checks::Settings {
        fuzz_seconds: options.fuzz_seconds,
    })
    .into_iter()
    .filter(|step| {
        let named = |list: &[String]| list.iter().any(|name| name == step.name);
        !named(&options.skip) && (options.only.is_empty() || named(&options.only))
    })
    .collect();
    if options.list {
        for step in steps {
            println!("{:13} {}", step.name, step.title);
        }
        return Ok(());
    }
    setup::ensure(
        &["build", "test", "sandbox", "bindgen", "ci"],
        options.install.no_install,
    )?;
    if !options.install.no_install
        && steps
            .iter()
            .any(|step| checks::NEED_RUST.contains(&step.name))
    {
        setup::offer("rust")?;
    }
    let skipped = checks::leave_out(&mut steps, &options.only)?;
    let second = SecondProcess::start(&mut steps, options)?;
    let result = steps::run(steps);
    let second_result = second.map_or(Ok(()), SecondProcess::finish);
    for line in skipped {
        println!("skipped: {line}");
    }
    match (result, second_result) {
        (Err(error), Err(other)) => bail!("{error:#}; {other:#}"),
        (result, other) => result.and(other),
    }
}

/// The steps that build in target directories of their own, and so never wait for the build of another step.
const OWN_TARGET_DIRECTORY: [&str; 6] = [
    "docs-rs", "hidden", "msrv", "targets", "minimal", "consumer",
];

/// A second `cargo xtask ci` at the same time, for the steps that build in directories of their own. Most steps compile
/// one crate after the other for much of their time, and leave processors idle.
struct SecondProcess {
    child: Child,
    output: File,
    steps: Vec<&'static str>,
}

impl SecondProcess {
    /// Moves its steps out of `steps`. None if that would leave either process without steps, or there is one
    /// processor.
    fn start(steps: &mut Vec<Step<'_>>, options: &Options) -> Result<Option<SecondProcess>> {
        let is_own = |step: &Step<'_>| OWN_TARGET_DIRECTORY.contains(&step.name);
        let names: Vec<_> = steps
            .iter()
            .filter(|step| is_own(step))
            .map(|step| step.name)
            .collect();
        if names.is_empty() || names.len() == steps.len() || jobs::processors() == 1 {
            return Ok(None);
        }
        steps.retain(|step| !is_own(step));
        let path = packages::metadata()?
            .target_directory
            .join("ci-second-process.log");
        let output = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("cannot make {path}"))?;
        let child = run::command(std::env::current_exe()?)
            .args(["ci", "--no-install"])
            .args(names.iter().flat_map(|name| ["--only", name]))
            .arg(format!("--fuzz-seconds={}", options.fuzz_seconds))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()
            .context("cannot run the other steps")?;
        println!(
            "beside the others, and shown after them: {}",
            names.join(", ")
        );
        Ok(Some(SecondProcess {
            child,
            output,
            steps: names,
        }))
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        self.output.rewind()?;
        io::copy(&mut self.output, &mut io::stdout())?;
        if !status.success() {
            bail!("of {}: see above", self.steps.join(", "));
        }
        Ok(())
    }
}

/// What has to be at the top of the workspace.
const TOP: [&str; 9] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "ci",
    "ploop",
    "ploop-sys",
];

fn tidy() -> Result<()> {
    let root = run::root();
    for entry in root.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = TOP.contains(&name.as_str()) || ["xtask", "target"].contains(&name.as_str());
        if !known && !name.starts_with('.') {
            bail!("{name} does not belong at the top of the workspace");
        }
    }
    for name in TOP {
        if !root.join(name).exists() {
            bail!("{name} is missing");
        }
    }
    // The lint `unsafe_code` says the same, unless somebody allows it.
    let mut outside = Vec::new();
    let (source, ffi) = (root.join("ploop/src"), root.join("ploop/src/ffi"));
    for_each_source(&source, &mut |path, text| {
        if path.starts_with(&ffi) || path == ffi.with_extension("rs") {
            return;
        }
        for (number, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.into_iter().any(|word| word == "unsafe") {
                let path = path.strip_prefix(&root).unwrap_or(path);
                outside.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    })?;
    if !outside.is_empty() {
        bail!("unsafe outside ploop/src/ffi: {}", outside.join(", "));
    }
    no_cycles()
}

/// The directories whose modules must not form cycles, with the paths of their modules.
const MODULE_DIRECTORIES: [(&str, &[&str]); 4] = [
    ("ploop/src", &[]),
    ("ci/sandbox/src", &[]),
    ("ci/sandbox/src/driver", &["driver"]),
    ("ci/sandbox/preload/src", &[]),
];

fn no_cycles() -> Result<()> {
    let mut cycles = Vec::new();
    for (directory, path) in MODULE_DIRECTORIES {
        let modules = ModuleDirectory {
            directory: run::root().join(directory),
            path: path.iter().map(|&name| name.to_owned()).collect(),
        };
        let found = modules.cycles()?;
        cycles.extend(found.iter().map(|cycle| format!("{directory}: {cycle}")));
    }
    if !cycles.is_empty() {
        bail!("modules that use each other:\n{}", cycles.join("\n"));
    }
    Ok(())
}

fn for_each_source(directory: &Path, visit: &mut dyn FnMut(&Path, &str)) -> Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            for_each_source(&path, visit)?;
        } else if path.extension() == Some(OsStr::new("rs")) {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            visit(&path, &text);
        }
    }
    Ok(())
}

fn clippy(what: &str) -> Result<()> {
    run::run(run::cargo(&format!("clippy {what}")).args(["--", "-D", "warnings"]))
}

fn features() -> Result<()> {
    let mut failed = Vec::new();
    for what in [
        "-p ploop --lib --no-default-features",
        "-p ploop --lib --no-default-features --features libploop",
        "-p ploop --lib --no-default-features --features serde",
        "-p ploop --all-targets --no-default-features --features image",
        "-p ploop --all-targets --no-default-features --features image,serde",
        "-p ploop --all-targets --no-default-features --features image,image-write",
        "-p ploop-sys --all-targets",
        "-p ploop-sys --all-targets --features static",
        "-p ploop-sys --all-targets --features bindgen",
    ] {
        // One combination that fails does not hide the next.
        if clippy(what).is_err() {
            failed.push(what);
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    // The feature `image` alone must not need the C library.
    let tree = run::output(&mut run::cargo(
        "tree -p ploop --edges normal,build --prefix none --no-default-features --features image",
    ))?;
    if let Some(line) = tree.lines().find(|l| l.starts_with("ploop-sys ")) {
        bail!("feature `image` alone brings {line}");
    }
    Ok(())
}

fn docs() -> Result<()> {
    for line in [
        // What needs the C library is not there, and nothing may link to it.
        "doc -p ploop --no-deps --no-default-features --features image",
        "doc --workspace --no-deps",
    ] {
        run::run(run::cargo(line).env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    Ok(())
}

/// Hides an installed libploop from a command. It gets its own target directory, so that nothing built before counts.
fn hide_library(command: &mut Command) -> Result<&mut Command> {
    let directory = packages::metadata()?.target_directory.join("hidden");
    for name in [
        "PLOOP_LIB_DIR",
        "PLOOP_INCLUDE_DIR",
        "PLOOP_STATIC",
        "PLOOP_NO_PKG_CONFIG",
        "PKG_CONFIG_PATH",
    ] {
        command.env_remove(name);
    }
    Ok(command
        .env("PKG_CONFIG_LIBDIR", "/nonexistent")
        .env("CARGO_TARGET_DIR", directory))
}

fn docs_rs() -> Result<()> {
    run::run(
        hide_library(&mut run::cargo(
            "doc -p ploop -p ploop-sys --no-deps --all-features",
        ))?
        .env("DOCS_RS", "1")
        .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn hidden_library() -> Result<()> {
    // Images need no libploop.
    run::run(hide_library(&mut run::cargo(
        "check -p ploop --no-default-features --features image",
    ))?)?;
    // The rest has to fail and say what is missing.
    let mut command = run::cargo("check -p ploop-sys");
    println!("$ {} (has to fail)", run::shown(&command));
    let output = hide_library(&mut command)?.output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        bail!("ploop-sys built although libploop is hidden");
    }
    for word in [
        "libploop-dev",
        "ploop-devel",
        "ploop.pc",
        "PLOOP_LIB_DIR",
        "features = [\"image\"]",
    ] {
        if !words.contains(word) {
            bail!("the message for a missing library does not say {word}:\n{words}");
        }
    }
    Ok(())
}

/// An example of `ploop-sys` has to run both linked dynamically and statically. `ldd` has to show libploop.so for the
/// first, or else its absence in the second would prove nothing.
fn static_program() -> Result<()> {
    const EXAMPLE: &str = "raw";
    for (features, shared) in [("", true), (" --features static", false)] {
        let line = format!("build -p ploop-sys --example {EXAMPLE}{features}");
        let program = packages::build_one(
            run::cargo(&line).env_remove("PLOOP_STATIC"),
            Kind::Example,
            EXAMPLE,
        )?;
        let libraries = run::output(run::command("ldd").arg(&program))?;
        let named: Vec<&str> = libraries
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        println!("needs {}", named.join(", "));
        let found = named.iter().any(|name| name.starts_with("libploop.so"));
        if found != shared {
            bail!(
                "{}: libploop.so is {} in ldd",
                line,
                if found { "there" } else { "not there" }
            );
        }
        run::run(&mut run::command(program))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_runs_beside_the_others_is_a_step() {
        for name in super::OWN_TARGET_DIRECTORY {
            assert!(super::names().contains(&name), "{name}");
        }
    }

    /// A step that the workflow does not name would not run before a merge.
    #[test]
    fn every_step_has_a_job() {
        let workflow = crate::run::root().join(".github/workflows/ci.yml");
        let text = std::fs::read_to_string(workflow).unwrap();
        let mut named: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("steps: "))
            .flat_map(str::split_whitespace)
            .collect();
        named.sort_unstable();
        let mut steps = super::names();
        steps.sort_unstable();
        assert_eq!(named, steps);
    }
}
