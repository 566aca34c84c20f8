//! `cargo xtask bindgen`: generates the committed bindings of libploop, or checks them.

use crate::{Install, run, setup};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use similar::TextDiff;
use std::path::PathBuf;

/// The generator that the feature `bindgen` of ploop-sys uses, too.
#[path = "../../ploop-sys/build/generate.rs"]
mod generate;

/// The version of the header that the committed bindings are made from.
const VERSION: &str = "1.15";
const FILE: &str = "ploop-sys/src/bindings/v1_15.rs";

#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing: print how the committed bindings differ from the header, and fail if they do
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "bindgen"], options.install.no_install)?;
    if options.check { check() } else { write() }
}

fn write() -> Result<()> {
    let path = run::root().join(FILE);
    let fresh = generated()?;
    if std::fs::read_to_string(&path).is_ok_and(|old| old == fresh) {
        println!("{FILE} matches the header already");
        return Ok(());
    }
    std::fs::write(&path, fresh).with_context(|| format!("cannot write {FILE}"))?;
    println!("{FILE} written");
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    let committed = std::fs::read_to_string(run::root().join(FILE))
        .with_context(|| format!("cannot read {FILE}"))?;
    match difference(&committed, &generated()?) {
        None => {
            println!("{FILE} matches the header");
            Ok(())
        }
        Some(diff) => {
            print!("{diff}");
            bail!("{FILE} does not match the header: update it with `cargo xtask bindgen`");
        }
    }
}

/// The unified diff from the committed to the generated bindings.
fn difference(committed: &str, fresh: &str) -> Option<String> {
    if committed == fresh {
        return None;
    }
    let diff = TextDiff::from_lines(committed, fresh);
    let mut unified = diff.unified_diff();
    Some(unified.header(FILE, "generated").to_string())
}

fn generated() -> Result<String> {
    // The header of another version would make other bindings.
    let version = run::output(
        run::command(std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into()))
            .args(["--modversion", "ploop"]),
    )?;
    if version.trim() != VERSION {
        bail!(
            "the installed libploop is {}, and {FILE} is made from the header of {VERSION}",
            version.trim()
        );
    }
    let include = std::env::var_os("PLOOP_INCLUDE_DIR").map(PathBuf::from);
    generate::bindings(include.as_deref()).map_err(|e| anyhow!(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pub const A: i32 = 1;\npub const B: i32 = 2;\npub const C: i32 = 3;\n";

    #[test]
    fn equal_texts_have_no_difference() {
        assert_eq!(difference(TEXT, TEXT), None);
    }

    #[test]
    fn every_changed_byte_is_a_difference() {
        for at in 0..TEXT.len() {
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            let diff = difference(&changed, TEXT).expect("a changed byte is not seen");
            assert!(diff.starts_with("--- ploop-sys/"), "{diff}");
            assert!(diff.contains("\n@@ "), "{diff}");
        }
    }

    #[test]
    fn the_difference_is_a_unified_diff() {
        let diff = difference(&TEXT.replace("= 2", "= 7"), TEXT).unwrap();
        assert!(diff.contains("\n-pub const B: i32 = 7;\n+pub const B: i32 = 2;\n"));
    }
}
