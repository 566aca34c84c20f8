//! The step `semver`: whether the version number allows the changes since the last release, by cargo-semver-checks.

use super::toolchain::has_cargo;
use super::{Check, Settings};
use crate::run;
use anyhow::{Context as _, Result};

pub(super) const CHECK: Check = Check {
    name: "semver",
    title: "the version allows the changes since the last tag",
    missing,
    work,
};

/// The tag of the last release.
fn tag() -> Result<Option<String>> {
    let tags = run::output(run::command("git").args([
        "tag",
        "--merged",
        "HEAD",
        "--sort=-version:refname",
        "--list",
        "v*",
    ]))?;
    Ok(tags.lines().next().map(str::to_owned))
}

fn missing() -> Result<Option<String>> {
    Ok(if tag()?.is_none() {
        Some("no release yet: no tag v*".to_owned())
    } else if !has_cargo("semver-checks") {
        Some("no cargo-semver-checks: `cargo install cargo-semver-checks --locked`".to_owned())
    } else {
        None
    })
}

fn work(_: &Settings) -> Result<()> {
    let tag = tag()?.context("the tag is gone")?;
    run::run(run::plain_cargo().args([
        "semver-checks",
        "--baseline-rev",
        &tag,
        "-p",
        "ploop-sys",
        "-p",
        "ploop",
    ]))
}
