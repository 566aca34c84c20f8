//! What Cargo says of the workspace: its dependencies, its programs, its packages' files.

use crate::run;
use anyhow::{Context as _, Result, bail};
use cargo_metadata::semver::Version;
use cargo_metadata::{Artifact, Message, Metadata, MetadataCommand, TargetKind};
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub(crate) fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(run::root().join("Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cargo metadata")
}

/// The Rust version that the workspace promises to build with.
pub(crate) fn rust_version() -> Result<Version> {
    metadata()?
        .workspace_packages()
        .into_iter()
        .filter_map(|package| package.rust_version.clone())
        .min()
        .context("the workspace states no rust-version")
}

/// The command `ploop-image` needs a newer Rust than the library, for its reader of ext4.
const OF_THE_COMMAND: [&str; 2] = ["ploop-image", "rust-fs-ext4"];

/// No package of the lock file may say that it needs a newer Rust, but those of the command alone.
pub(crate) fn check_rust_versions() -> Result<()> {
    let metadata = metadata()?;
    let own = rust_version()?;
    let mut silent = Vec::new();
    let mut newer = Vec::new();
    for package in &metadata.packages {
        match &package.rust_version {
            None => silent.push(package.name.as_str()),
            Some(_) if OF_THE_COMMAND.contains(&package.name.as_str()) => {}
            Some(version) if *version > own => newer.push(format!(
                "{} {} needs Rust {version}",
                package.name, package.version
            )),
            Some(_) => {}
        }
    }
    println!(
        "{} packages against Rust {own}; {} of them state no version: {}",
        metadata.packages.len(),
        silent.len(),
        silent.join(", ")
    );
    if !newer.is_empty() {
        bail!("{}", newer.join("; "));
    }
    Ok(())
}

/// The names of the test programs of these packages.
pub(crate) fn tests(of: &[&str]) -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata.workspace_packages();
    let packages = packages
        .iter()
        .filter(|package| of.contains(&package.name.as_str()));
    let targets = packages.flat_map(|package| &package.targets);
    let tests = targets.filter(|target| target.kind.contains(&TargetKind::Test));
    Ok(tests.map(|target| target.name.clone()).collect())
}

/// A program that Cargo built, or a library that is loaded by a program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The directory of its package, where Cargo would run it if it is a test.
    pub(crate) package: PathBuf,
}

impl Program {
    /// The package and the program.
    pub(crate) fn title(&self) -> String {
        let package = self.package.file_name().unwrap_or_default();
        let package = package.to_string_lossy();
        match self.kind {
            Kind::UnitTest => format!("{package}: inside {}", self.name),
            _ => format!("{package}: {}", self.name),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Example,
    /// A test program, by the name of its file.
    Test,
    /// A benchmark, by the name of its file.
    Benchmark,
    /// The tests inside a library or program, by its name.
    UnitTest,
    Binary,
    /// A shared library for C.
    Library,
}

impl Kind {
    fn of(artifact: &Artifact) -> Option<Kind> {
        let is = |kind: &TargetKind| artifact.target.kind.contains(kind);
        match artifact.profile.test {
            true if is(&TargetKind::Test) => Some(Kind::Test),
            true if is(&TargetKind::Bench) => Some(Kind::Benchmark),
            true => Some(Kind::UnitTest),
            false if is(&TargetKind::Example) => Some(Kind::Example),
            false if is(&TargetKind::Bin) => Some(Kind::Binary),
            false if is(&TargetKind::CDyLib) => Some(Kind::Library),
            false => None,
        }
    }
}

/// Runs a building command and returns what it built.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Program>> {
    let name = run::shown(command);
    println!("$ {name}");
    let mut child = command
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let output = child.stdout.take().context("no output to read")?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        let Message::CompilerArtifact(artifact) = message? else {
            continue;
        };
        let Some(kind) = Kind::of(&artifact) else {
            continue;
        };
        let library = || {
            let mut files = artifact.filenames.iter();
            files.find(|file| file.extension() == Some("so")).cloned()
        };
        let path = match kind {
            Kind::Library => library(),
            _ => artifact.executable.clone(),
        };
        let Some(path) = path else {
            continue;
        };
        programs.push(Program {
            kind,
            name: artifact.target.name,
            path: path.into(),
            package: artifact
                .manifest_path
                .parent()
                .context("a package without a directory")?
                .into(),
        });
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    if programs.is_empty() {
        bail!("{name}: built no program");
    }
    Ok(programs)
}

/// The one program of this kind called `name`.
pub(crate) fn find<'a>(programs: &'a [Program], kind: Kind, name: &str) -> Result<&'a Program> {
    programs
        .iter()
        .find(|program| program.kind == kind && program.name == name)
        .with_context(|| format!("{name} was not built"))
}

/// Builds the one program of this kind called `name`.
pub(crate) fn build_one(command: &mut Command, kind: Kind, name: &str) -> Result<PathBuf> {
    Ok(find(&build(command)?, kind, name)?.path.clone())
}

/// A package must hold `files`, and nothing that begins with one of `foreign`.
pub(crate) fn check_files(package: &str, files: &[&str], foreign: &[&str]) -> Result<()> {
    let list = run::output(&mut run::cargo(&format!(
        "package --list --allow-dirty -p {package}"
    )))?;
    let list: Vec<&str> = list.lines().collect();
    println!("{package}: {} files", list.len());
    for file in files {
        if !list.contains(file) {
            bail!("package {package} lacks {file}");
        }
    }
    for file in list {
        if foreign.iter().any(|prefix| file.starts_with(prefix)) {
            bail!("package {package} holds {file}");
        }
    }
    Ok(())
}
