//! Rust toolchains beside the one that runs this, and Cargo's further commands.

use crate::{packages, run};
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// A toolchain of the version that the workspace promises to build with.
pub(super) struct Msrv {
    /// Words before Cargo's own.
    cargo: Vec<OsString>,
    rustc: Vec<OsString>,
}

impl Msrv {
    /// The one that runs this, rustup's, the one that `ci/rust.sh` unpacked, or what the system has installed.
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
                said(command(words).arg("--version")).is_some_and(|said| said.starts_with(wanted))
            }) {
                return Ok(Some(Msrv { cargo, rustc }));
            }
        }
        Ok(None)
    }

    /// As [`Msrv::find`], where it is known to be there.
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

    /// Has it the standard library of that target?
    pub(super) fn knows(&self, target: &str) -> bool {
        said(command(&self.rustc).args(["--print", "target-libdir", "--target", target]))
            .is_some_and(|directory| {
                Path::new(directory.trim())
                    .read_dir()
                    .is_ok_and(|mut entries| entries.next().is_some())
            })
    }
}

/// A program of another toolchain. What rustup and Cargo tell this program is not for it.
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

/// What a program says, if it is there and succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Is there a `cargo WORD`?
pub(super) fn has_cargo(word: &str) -> bool {
    said(run::plain_cargo().args([word, "--version"])).is_some()
}

/// Cargo of the nightly toolchain: the one that runs this if it is that, or rustup's.
pub(super) fn nightly_cargo() -> Command {
    let own = said(run::plain_cargo().arg("--version"));
    if own.is_some_and(|version| version.contains("-nightly")) {
        return run::plain_cargo();
    }
    command(&["rustup", "run", "nightly", "cargo"].map(OsString::from))
}

/// Has it a `cargo WORD`?
pub(super) fn has_nightly_cargo(word: &str) -> bool {
    said(nightly_cargo().args([word, "--version"])).is_some()
}
