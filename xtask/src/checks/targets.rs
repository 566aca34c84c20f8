//! The step `targets`: compiles for machines with 64 bits and little-endian, 64 bits and big-endian, and 32 bits.
//! Nothing is linked, so their libraries are not needed.

use super::toolchain::Msrv;
use super::{Check, Settings};
use crate::run;
use anyhow::{Result, bail};

pub(super) const CHECK: Check = Check {
    name: "targets",
    title: "compiles for arm64, s390x and i386",
    missing,
    work,
};

/// The targets and what has to compile for each. Of those with 64 bits only the big-endian one compiles the tests, too.
/// The bindings of libploop are for 64 bits only.
const TARGETS: [(&str, &[&str]); 3] = [
    (
        "aarch64-unknown-linux-gnu",
        &["-p ploop --lib --all-features"],
    ),
    (
        "s390x-unknown-linux-gnu",
        &["-p ploop --all-targets --all-features"],
    ),
    (
        "i686-unknown-linux-gnu",
        &["-p ploop --all-targets --no-default-features --features image,image-write,serde"],
    ),
];

fn missing() -> Result<Option<String>> {
    let Some(toolchain) = Msrv::find()? else {
        return Msrv::missing();
    };
    let unknown: Vec<&str> = TARGETS
        .into_iter()
        .map(|(target, _)| target)
        .filter(|target| !toolchain.knows(target))
        .collect();
    Ok((!unknown.is_empty()).then(|| format!("no standard library of {}", unknown.join(", "))))
}

fn work(_: &Settings) -> Result<()> {
    let toolchain = Msrv::get()?;
    let mut failed = Vec::new();
    for (target, lines) in TARGETS {
        for line in lines {
            let mut command = toolchain.cargo(&format!("check --target {target} {line}"))?;
            // pkg-config would look for a libploop of that target, which is not needed.
            command
                .env("PLOOP_NO_PKG_CONFIG", "1")
                .env("PLOOP_STATIC", "0");
            if run::run(&mut command).is_err() {
                failed.push(target);
            }
        }
    }
    if !failed.is_empty() {
        bail!("does not compile for {}", failed.join(", "));
    }
    Ok(())
}
