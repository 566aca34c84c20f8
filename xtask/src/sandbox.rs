//! `cargo xtask sandbox`, and the commands by which tests, benchmarks and examples run in the sandbox.

use crate::packages::{self, Kind, Program};
use crate::{Install, run, setup};
use anyhow::{Context as _, Result};
use clap::Args;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
    /// The directory in which the sandbox is made; sandboxes of different directories leave each other alone
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// The program and its arguments; it runs as root, in the current directory
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(&["build", "sandbox"], options.install.no_install)?;
    let sandbox = Sandbox::build()?;
    let mut words = as_root(true);
    words.extend(sandbox.run(options.base.as_deref()));
    words.extend(options.command.iter().cloned());
    let mut command = command(words)?;
    // In the user's directory, not the root of the workspace, and without the variables that Cargo sets for this
    // package.
    command.current_dir(std::env::current_dir().context("cannot tell the current directory")?);
    for (name, _) in std::env::vars_os() {
        if is_cargos(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let status = command.status().context("cannot run ploop-sandbox")?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Whether Cargo sets this variable for this package.
fn is_cargos(name: &str) -> bool {
    name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Whether the kernel has the ploop driver.
pub(crate) fn driver_is_there() -> bool {
    Path::new("/proc/vz/ploop_minor").exists()
}

/// The built sandbox.
pub(crate) struct Sandbox {
    program: PathBuf,
    /// The preload library.
    library: PathBuf,
}

impl Sandbox {
    /// Builds it, optimized, because its daemon copies every byte of the disks.
    pub(crate) fn build() -> Result<Sandbox> {
        let line = "build --quiet --release -p ploop-sandbox -p ploop-sandbox-preload";
        Sandbox::among(&packages::build(&mut run::cargo(line))?)
    }

    /// The sandbox among built programs.
    pub(crate) fn among(programs: &[Program]) -> Result<Sandbox> {
        let path = |kind, name| packages::find(programs, kind, name).map(|it| it.path.clone());
        Ok(Sandbox {
            program: path(Kind::Binary, "ploop-sandbox")?,
            library: path(Kind::Library, "ploop_sandbox_preload")?,
        })
    }

    /// The words before the program that runs inside; `base` is the directory in which the sandbox is made.
    fn run(&self, base: Option<&Path>) -> Vec<OsString> {
        let (program, library) = (self.program.clone(), self.library.clone());
        let mut words = vec![
            program.into(),
            "run".into(),
            "--preload".into(),
            library.into(),
        ];
        if let Some(base) = base {
            words.extend(["--base".into(), base.into()]);
        }
        words.push("--".into());
        words
    }

    /// Why no sandbox can run here, if none can.
    pub(crate) fn missing(&self) -> Result<Option<String>> {
        let mut words = as_root(false);
        words.extend([self.program.clone().into(), "check".into()]);
        let output = command(words)?
            .stdin(Stdio::null())
            .output()
            .context("cannot run ploop-sandbox check")?;
        if output.status.success() {
            return Ok(None);
        }
        let text = [output.stderr, output.stdout].concat();
        let text = String::from_utf8_lossy(&text);
        // The last line; libraries may have printed others before.
        let reason = text.lines().rfind(|line| !line.trim().is_empty());
        let reason = reason.map(|line| line.trim_start_matches("ploop-sandbox: ").to_owned());
        Ok(Some(reason.unwrap_or_else(|| {
            format!("ploop-sandbox check: {}", output.status)
        })))
    }

    /// A command that runs a program in a sandbox of its own, and ends it after a time limit. A test runs in the
    /// directory of its package, as under Cargo.
    pub(crate) fn command(
        &self,
        program: &Path,
        package: Option<&Path>,
        limit: Duration,
    ) -> Result<Command> {
        let mut words = as_root(false);
        // `timeout` ends the sandbox, which ends everything in it. In the foreground, so that an interrupt from the
        // terminal reaches the sandbox, too.
        words.extend(
            ["timeout", "--foreground", "--kill-after=60"]
                .map(OsString::from)
                .into_iter()
                .chain([format!("{}", limit.as_secs()).into()]),
        );
        words.extend(self.run(None));
        if let Some(package) = package {
            // sudo removes it from the environment.
            let mut word = OsString::from("CARGO_MANIFEST_DIR=");
            word.push(package);
            words.extend(["env".into(), word]);
        }
        words.push(program.into());
        let mut command = command(words)?;
        if let Some(package) = package {
            command.current_dir(package);
        }
        Ok(command)
    }
}

/// The words before a command that has to run as root: none if this is root, or if there is no sudo; then the
/// sandbox says what is missing. Without `asking`, sudo must not ask for a password.
pub(crate) fn as_root(asking: bool) -> Vec<OsString> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let works = |arguments: &[&str]| {
        Command::new("sudo")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let mut words = Vec::new();
    if is_root
        || !works(if asking {
            &["--version"]
        } else {
            &["-n", "true"]
        })
    {
        return words;
    }
    words.push("sudo".into());
    if !asking {
        words.push("-n".into());
    }
    // sudo clears the environment, and may refuse to keep it. These variables are needed to find programs and
    // Cargo.
    words.extend(["--".into(), "env".into()]);
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["PATH", "HOME", "TMPDIR", "LANG", "TERM", "LD_LIBRARY_PATH"].contains(&&*text)
            || ["CARGO", "RUST", "PLOOP", "PROPTEST"]
                .iter()
                .any(|start| text.starts_with(start))
                && !is_cargos(&text);
        if kept {
            let mut word = name;
            word.push("=");
            word.push(value);
            words.push(word);
        }
    }
    words
}

pub(crate) fn command(words: Vec<OsString>) -> Result<Command> {
    let mut words = words.into_iter();
    let mut command = run::command(words.next().context("no program")?);
    command.args(words);
    Ok(command)
}
