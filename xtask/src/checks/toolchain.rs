//! Finds the oldest supported Rust, the nightly toolchain, and subcommands of Cargo.

use crate::{packages, run};
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// A toolchain of the oldest Rust that the workspace supports.
pub(super) struct Msrv {
    /// The program and its first arguments.
    cargo: Vec<OsString>,
    rustc: Vec<OsString>,
}

impl Msrv {
    /// Looks at the toolchain that runs this, at rustup's, at the one that `ci/rust.sh` unpacked, and at the system's.
    pub(super) fn find() -> Result<Option<Msrv>> {
        let version = packages::rust_version()?;
        let minor = format!("{}.{}", version.major, version.minor);
        let unpacked = run::root().join("target").join(format!("rust-{minor}/bin"));
        let rustup = |program: &str| -> Vec<OsString> {
            ["rustup", "run", &minor, program].map(Into::into).into()
        };
        let at = |directory: &Path, program: &str| vec![directory.join(program).into()];
        let candidates = [
            (vec!["cargo".into()], vec!["rustc".into()]),
            (rustup("cargo"), rustup("rustc")),
            (at(&unpacked, "cargo"), at(&unpacked, "rustc")),
            (
                at(Path::new("/usr/bin"), "cargo"),
                at(Path::new("/usr/bin"), "rustc"),
            ),
        ];
        for (cargo, rustc) in candidates {
            let wanted = [format!("cargo {minor}."), format!("rustc {minor}.")];
            let both = [&cargo, &rustc].into_iter().zip(&wanted);
            if both.into_iter().all(|(words, wanted)| {
                output(command(words).arg("--version"))
                    .is_some_and(|output| output.starts_with(wanted))
            }) {
                return Ok(Some(Msrv { cargo, rustc }));
            }
        }
        Ok(None)
    }

    /// As [`Msrv::find`], where it was found before.
    pub(super) fn get() -> Result<Msrv> {
        Msrv::find()?.context("the toolchain is gone")
    }

    /// Why there is none.
    pub(super) fn missing() -> Result<Option<String>> {
        if Msrv::find()?.is_some() {
            return Ok(None);
        }
        let version = packages::rust_version()?;
        let version = format!("{}.{}", version.major, version.minor);
        Ok(Some(format!(
            "no Rust {version}: `ci/setup.sh rust` on Debian, `rustup toolchain install {version}` elsewhere"
        )))
    }

    /// Its Cargo, with the committed lock file and a target directory of its own.
    pub(super) fn cargo(&self, line: &str) -> Result<Command> {
        let mut command = command(&self.cargo);
        let mut words = line.split_whitespace();
        command.args(words.next()).arg("--locked").args(words);
        command.env(
            "CARGO_TARGET_DIR",
            packages::metadata()?.target_directory.join("msrv"),
        );
        Ok(command)
    }

    /// Whether it has the standard library of a target.
    pub(super) fn knows(&self, target: &str) -> bool {
        output(command(&self.rustc).args(["--print", "target-libdir", "--target", target]))
            .is_some_and(|directory| {
                Path::new(directory.trim())
                    .read_dir()
                    .is_ok_and(|mut entries| entries.next().is_some())
            })
    }
}

/// A program of another toolchain, without the variables that rustup and Cargo set for this program.
fn command(words: &[OsString]) -> Command {
    let mut command = run::command(&words[0]);
    command.args(&words[1..]);
    for name in [
        "CARGO",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}

/// The output of a program, if there is the program and it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Whether there is the subcommand `cargo WORD`.
pub(super) fn has_cargo(word: &str) -> bool {
    output(run::plain_cargo().args([word, "--version"])).is_some()
}

/// Cargo of the nightly toolchain: the one that runs this, if it is nightly, or rustup's.
pub(super) fn nightly_cargo() -> Command {
    let own = output(run::plain_cargo().arg("--version"));
    if own.is_some_and(|version| version.contains("-nightly")) {
        return run::plain_cargo();
    }
    command(&["rustup", "run", "nightly", "cargo"].map(OsString::from))
}

/// Whether the nightly toolchain has the subcommand `cargo WORD`.
pub(super) fn has_nightly_cargo(word: &str) -> bool {
    output(nightly_cargo().args([word, "--version"])).is_some()
}
