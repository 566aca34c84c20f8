//! `cargo xtask bindgen`: generates the committed bindings of libploop, or checks them.

use crate::{Install, run, setup};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use similar::TextDiff;
use std::path::PathBuf;

/// The generator that the feature `bindgen` of ploop-sys uses, too.
#[path = "../../ploop-sys/build/generate.rs"]
pub(crate) mod generate;

/// A committed file of bindings, and what it is made from.
pub(crate) struct Bindings {
    /// The major number of the soname.
    pub(crate) line: u32,
    /// The file in the repository.
    pub(crate) file: &'static str,
    origin: Origin,
}

enum Origin {
    /// The installed header, which has to be that of this version.
    InstalledHeader(&'static str),
    /// A description of the interface in the repository.
    Description(&'static str),
}

pub(crate) const BINDINGS: [Bindings; 3] = [
    Bindings {
        line: 1,
        file: "ploop-sys/src/bindings/v1_15.rs",
        origin: Origin::InstalledHeader("1.15"),
    },
    Bindings {
        line: 7,
        file: "ploop-sys/src/bindings/v7_0.rs",
        origin: Origin::Description("ploop-sys/abi/v7.h"),
    },
    Bindings {
        line: 9,
        file: "ploop-sys/src/bindings/v9_0.rs",
        origin: Origin::Description("ploop-sys/abi/v9.h"),
    },
];

#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing: print how the committed bindings differ from what they are made from, and fail if they do
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
    for bindings in &BINDINGS {
        let file = bindings.file;
        let path = run::root().join(file);
        let fresh = bindings.generated()?;
        if std::fs::read_to_string(&path).is_ok_and(|old| old == fresh) {
            println!("{file} matches {} already", bindings.origin());
            continue;
        }
        std::fs::write(&path, fresh).with_context(|| format!("cannot write {file}"))?;
        println!("{file} written");
    }
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    let mut stale = Vec::new();
    for bindings in &BINDINGS {
        let file = bindings.file;
        let committed = bindings.committed()?;
        match difference(file, &committed, &bindings.generated()?) {
            None => println!("{file} matches {}", bindings.origin()),
            Some(diff) => {
                print!("{diff}");
                stale.push(file);
            }
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    bail!(
        "{} does not match what it is made from: update it with `cargo xtask bindgen`",
        stale.join(" and ")
    )
}

/// The unified diff from the committed to the generated bindings.
fn difference(file: &str, committed: &str, fresh: &str) -> Option<String> {
    if committed == fresh {
        return None;
    }
    let diff = TextDiff::from_lines(committed, fresh);
    let mut unified = diff.unified_diff();
    Some(unified.header(file, "generated").to_string())
}

impl Bindings {
    pub(crate) fn committed(&self) -> Result<String> {
        std::fs::read_to_string(run::root().join(self.file))
            .with_context(|| format!("cannot read {}", self.file))
    }

    fn origin(&self) -> &'static str {
        match self.origin {
            Origin::InstalledHeader(_) => "the header",
            Origin::Description(file) => file,
        }
    }

    fn generated(&self) -> Result<String> {
        let text = match self.origin {
            Origin::InstalledHeader(version) => {
                self.require_installed(version)?;
                let include = std::env::var_os("PLOOP_INCLUDE_DIR").map(PathBuf::from);
                let descriptions = run::root().join("ploop-sys/abi");
                generate::of_header(include.as_deref(), self.line, &descriptions, false)
            }
            Origin::Description(file) => generate::of_description(&run::root().join(file)),
        };
        text.map_err(|e| anyhow!(e))
    }

    /// The header of another version would make other bindings.
    fn require_installed(&self, wanted: &str) -> Result<()> {
        let pkg_config = std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
        let version = run::output(run::command(pkg_config).args(["--modversion", "ploop"]))?;
        if version.trim() != wanted {
            bail!(
                "the installed libploop is {}, and {} is made from the header of {wanted}",
                version.trim(),
                self.file
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pub const A: i32 = 1;\npub const B: i32 = 2;\npub const C: i32 = 3;\n";

    #[test]
    fn equal_texts_have_no_difference() {
        assert_eq!(difference("a.rs", TEXT, TEXT), None);
    }

    #[test]
    fn every_changed_byte_is_a_difference() {
        for at in 0..TEXT.len() {
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            let diff = difference("a.rs", &changed, TEXT).expect("a changed byte is not seen");
            assert!(diff.starts_with("--- a.rs"), "{diff}");
            assert!(diff.contains("\n@@ "), "{diff}");
        }
    }

    #[test]
    fn the_difference_is_a_unified_diff() {
        let diff = difference("a.rs", &TEXT.replace("= 2", "= 7"), TEXT).unwrap();
        assert!(diff.contains("\n-pub const B: i32 = 7;\n+pub const B: i32 = 2;\n"));
    }
}
