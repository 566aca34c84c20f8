//! The steps `licences` and `advisories`: licences, origins and advisories of the dependencies, by cargo-deny.
//! `ci/deny.toml` has the rules.

use super::Check;
use super::toolchain::has_cargo;
use crate::run;
use anyhow::Result;
use std::process::{Command, Stdio};

pub(super) const LICENCES: Check = Check {
    name: "licences",
    title: "licences and origins of the dependencies",
    missing: || Ok(tool_missing()),
    work: |_| run::run(deny("check").args(["bans", "licenses", "sources"])),
};

pub(super) const ADVISORIES: Check = Check {
    name: "advisories",
    title: "advisories against the dependencies",
    missing: database_missing,
    work: |_| run::run(deny("check").args(["--disable-fetch", "advisories"])),
};

/// cargo-deny for everything in the lock file, with all features.
fn deny(word: &str) -> Command {
    let mut command = run::plain_cargo();
    command.args(["deny", "--locked", "--all-features"]);
    command.args(["--config", "ci/deny.toml", word]);
    command
}

fn tool_missing() -> Option<String> {
    (!has_cargo("deny")).then(|| "no cargo-deny: `cargo install cargo-deny --locked`".to_owned())
}

fn database_missing() -> Result<Option<String>> {
    if let Some(reason) = tool_missing() {
        return Ok(Some(reason));
    }
    let fetched = deny("fetch")
        .arg("db")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok((!fetched.success()).then(|| "the advisory database cannot be fetched".to_owned()))
}
