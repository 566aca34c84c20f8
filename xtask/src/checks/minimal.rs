//! The step `minimal`: builds with the lowest version of each direct dependency that the manifests allow.

use super::{Check, Settings, always};
use crate::{packages, run};
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::path::Path;

pub(super) const CHECK: Check = Check {
    name: "minimal",
    title: "compiles with the lowest versions of its dependencies",
    missing: always,
    work,
};

fn work(_: &Settings) -> Result<()> {
    let directory = packages::metadata()?.target_directory.join("minimal");
    let copy = directory.join("workspace");
    copy_workspace(copy.as_std_path())?;
    fs::remove_file(copy.join("Cargo.lock"))?;
    // The option is not stable, but works with a stable toolchain like this.
    run::run(
        run::plain_cargo()
            .args(["generate-lockfile", "-Z", "direct-minimal-versions"])
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(&copy),
    )?;
    run::run(
        run::cargo("check --workspace --all-targets")
            .env("CARGO_TARGET_DIR", directory.join("target"))
            .current_dir(&copy),
    )
}

/// Copies the files of the working copy with their times, so that Cargo compiles only what has changed.
fn copy_workspace(to: &Path) -> Result<()> {
    let root = run::root();
    let list = run::output(run::command("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    for name in list.lines() {
        let (from, to) = (root.join(name), to.join(name));
        // Removed, but not in Git's index.
        if !from.exists() {
            continue;
        }
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        let copied = File::options().write(true).open(&to)?;
        copied.set_modified(fs::metadata(&from)?.modified()?)?;
    }
    Ok(())
}
