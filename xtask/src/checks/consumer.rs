//! The step `consumer`: a crate outside of the workspace depends on `ploop` by git, as the README says, and gets the
//! newest versions of the dependencies.

use super::{Check, Settings, always};
use crate::packages;
use crate::run;
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;

pub(super) const CHECK: Check = Check {
    name: "consumer",
    title: "a crate elsewhere depends on the last commit by git",
    missing: always,
    work,
};

/// Crates: name, features of the dependency, program, and the output of the program.
const CRATES: [(&str, &str, &str, &str); 2] = [
    (
        "whole",
        "",
        r#"use ploop::{CreateParam, Ploop, Size};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::path::PathBuf::from(std::env::args_os().nth(1).ok_or("no directory")?);
    let param = CreateParam::new(directory.join("root.hds"), Size::from_mib(64)).fs(None);
    let mut image = Ploop::create(&param)?;
    let snapshot = image.snapshot()?;
    let depth = image.descriptor()?.depth(snapshot);
    image.delete_snapshot(snapshot)?;
    let after = image.descriptor()?;
    println!("{depth:?} {}", after.images.len());
    Ok(())
}
"#,
        "Some(0) 1\n",
    ),
    (
        "image",
        r#", default-features = false, features = ["image"]"#,
        r#"use ploop::image::{Disk, check};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::path::PathBuf::from(std::env::args_os().nth(1).ok_or("no directory")?);
    let descriptor = directory.join("DiskDescriptor.xml");
    let disk = Disk::open(&descriptor)?;
    println!("{} {}", disk.size().bytes(), check(&descriptor).is_clean());
    Ok(())
}
"#,
        "67108864 true\n",
    ),
];

fn work(_: &Settings) -> Result<()> {
    let target = packages::metadata()?.target_directory.join("consumer");
    let repository = git(&["rev-parse", "--path-format=absolute", "--git-common-dir"])?;
    let commit = git(&["rev-parse", "HEAD"])?;
    if !git(&["status", "--porcelain"])?.is_empty() {
        println!("changes that are not committed are not checked");
    }
    // Not below the workspace: Cargo would take it for a member.
    let elsewhere = run::output(run::command("mktemp").arg("-d"))?;
    let elsewhere = Path::new(elsewhere.trim_end());
    let result = CRATES
        .into_iter()
        .try_for_each(|(name, features, program, expected)| {
            let directory = elsewhere.join(name);
            fs::create_dir_all(directory.join("src"))?;
            fs::write(
                directory.join("Cargo.toml"),
                format!(
                    "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[dependencies]\n\
                     ploop = {{ git = \"file://{repository}\", rev = \"{commit}\"{features} }}\n"
                ),
            )?;
            fs::write(directory.join("src/main.rs"), program)?;
            // The second reads the image that the first has made.
            let said = run::output(
                run::plain_cargo()
                    .args(["run", "--", &elsewhere.to_string_lossy()])
                    .env("CARGO_TARGET_DIR", &target)
                    .current_dir(&directory),
            )?;
            if said != expected {
                bail!("the program of crate {name} printed {said:?} instead of {expected:?}");
            }
            Ok(())
        });
    fs::remove_dir_all(elsewhere)?;
    result
}

fn git(words: &[&str]) -> Result<String> {
    Ok(run::output(run::command("git").args(words))?
        .trim_end()
        .to_owned())
}
