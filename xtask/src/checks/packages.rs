//! The packages, made, unpacked elsewhere, built and tested there: whatever they need has to be in them.
//!
//! All tests, examples and benchmarks are compiled. The step `test` runs every one of the tests in the workspace for minutes;
//! here those run that take little: of `ploop-sys` all, of `ploop` the documentation (the README's program with it) and what
//! needs no C library.

use super::{Check, Settings, always};
use crate::{packages, run};
use anyhow::{Context as _, Result, bail};
use std::fs;

pub(super) const CHECK: Check = Check {
    name: "packages",
    title: "the packages alone build and pass their tests",
    missing: always,
    work,
};

/// Of each package: its name, and files that it must hold.
const PACKAGES: [(&str, &[&str]); 2] = [
    (
        "ploop-sys",
        &[
            "Cargo.toml",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "README.md",
            "build.rs",
            "src/bindings/v1_15.rs",
            "src/lib.rs",
        ],
    ),
    (
        "ploop",
        &[
            "Cargo.toml",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "README.md",
            "src/lib.rs",
        ],
    ),
];

const FOREIGN: [&str; 3] = ["target/", "fuzz/", ".git"];

fn work(_: &Settings) -> Result<()> {
    for (package, files) in PACKAGES {
        packages::check_files(package, files, &FOREIGN)?;
    }
    // Not the lock file: it would have to find `ploop-sys` in the registry.
    run::run(&mut run::cargo(
        "package --no-verify --allow-dirty --exclude-lockfile -p ploop-sys -p ploop",
    ))?;
    let target = packages::metadata()?.target_directory;
    let directory = target.join("packages");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let mut members = Vec::new();
    for (name, _) in PACKAGES {
        let version = version(name)?;
        let archive = target.join(format!("package/{name}-{version}.crate"));
        run::run(
            run::command("tar")
                .arg("xzf")
                .arg(&archive)
                .arg("-C")
                .arg(&directory),
        )?;
        let unpacked = format!("{name}-{version}");
        if !directory.join(&unpacked).join("Cargo.toml").exists() {
            bail!("{archive} does not hold {unpacked}");
        }
        members.push((name, unpacked));
    }
    // A workspace, so that Cargo takes neither for a member of the one around it; and with its lock file.
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [");
    for (_, unpacked) in &members {
        manifest += &format!("\"{unpacked}\", ");
    }
    manifest += "]\n\n[patch.crates-io]\n";
    for (name, unpacked) in &members {
        manifest += &format!("{name} = {{ path = \"{unpacked}\" }}\n");
    }
    // The profiles of this workspace: what they compile can be used again.
    let own = fs::read_to_string(run::root().join("Cargo.toml"))?;
    if let Some(at) = own.find("\n[profile.") {
        manifest += &own[at..];
    }
    fs::write(directory.join("Cargo.toml"), manifest)?;
    fs::copy(run::root().join("Cargo.lock"), directory.join("Cargo.lock"))?;
    for line in [
        "check --workspace --all-targets",
        "test -p ploop-sys --no-fail-fast",
        "test -p ploop --no-fail-fast --doc",
        "test -p ploop --no-fail-fast --no-default-features --features image",
    ] {
        run::run(
            run::plain_cargo()
                .args(line.split_whitespace())
                // The dependencies are the same and need not be compiled again.
                .env("CARGO_TARGET_DIR", &target)
                .current_dir(&directory),
        )?;
    }
    Ok(())
}

fn version(package: &str) -> Result<String> {
    packages::metadata()?
        .workspace_packages()
        .into_iter()
        .find(|found| found.name == package)
        .map(|found| found.version.to_string())
        .with_context(|| format!("there is no package {package}"))
}
