//! The step `fuzz`: runs each fuzz target from the committed corpus. New inputs go to the target directory.

use super::toolchain::has_cargo;
use super::{Check, Settings};
use crate::{packages, run};
use anyhow::{Result, bail};
use std::fs;

pub(super) const CHECK: Check = Check {
    name: "fuzz",
    title: "each fuzz target for a while",
    missing: || {
        Ok((!has_cargo("fuzz"))
            .then(|| "no cargo-fuzz: `cargo install cargo-fuzz --locked`".to_owned()))
    },
    work,
};

const TARGETS: [&str; 6] = ["descriptor", "delta", "check", "copy", "undo", "repair"];

fn work(settings: &Settings) -> Result<()> {
    let directory = packages::metadata()?.target_directory.join("fuzz");
    let mut failed = Vec::new();
    for target in TARGETS {
        let found = directory.join("corpus").join(target);
        fs::create_dir_all(&found)?;
        let mut command = run::plain_cargo();
        command
            .args(["fuzz", "run", "--fuzz-dir", "ploop/fuzz", "--target-dir"])
            .arg(directory.join("build"))
            .args([target, found.as_str()])
            .arg(format!("ploop/fuzz/corpus/{target}"))
            .args(["--", "-rss_limit_mb=256", "-print_final_stats=1"])
            .arg(format!("-max_total_time={}", settings.fuzz_seconds))
            // The option of the sanitizer is not stable, but its runtime comes with every toolchain.
            .env("RUSTC_BOOTSTRAP", "1")
            // By default the sanitizer keeps as much freed memory as the limit allows.
            .env("ASAN_OPTIONS", "quarantine_size_mb=16");
        if run::run(&mut command).is_err() {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!(
            "{}; the inputs are in ploop/fuzz/artifacts",
            failed.join(", ")
        );
    }
    Ok(())
}
