//! Asks the compiler that links where it finds a library.

use crate::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file of a library that the linker would take, `libploop.so` or `libploop.a`. `None` where nobody knows.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let by_flags = directories_of_rustflags()
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    by_flags.or_else(|| {
        linkers()
            .into_iter()
            .find_map(|linker| answer(linker, name))
    })
}

/// A directory that the compiler searches for libraries.
pub(crate) fn library_directory() -> Option<PathBuf> {
    find("libc.so.6")?.parent().map(Path::to_owned)
}

fn answer(linker: OsString, name: &str) -> Option<PathBuf> {
    let output = Command::new(linker)
        .arg(format!("-print-file-name={name}"))
        .output()
        .ok()?;
    // For a library that it does not find it prints the name alone.
    let file = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && file.is_absolute() && file.is_file()).then_some(file)
}

/// The programs that may link for this target. Without a word about a foreign target nobody knows its linker.
fn linkers() -> Vec<OsString> {
    let target = env::of_cargo("TARGET");
    let mut found: Vec<OsString> = ["RUSTC_LINKER", &format!("CC_{target}"), "TARGET_CC"]
        .into_iter()
        .filter_map(env::var)
        .collect();
    found.extend(env::var(&format!("CC_{}", target.replace('-', "_"))));
    if target == env::of_cargo("HOST") {
        found.extend(env::var("CC"));
        found.push("cc".into());
    }
    found
}

/// The directories that RUSTFLAGS gives the linker: `-L DIR`, `-Lnative=DIR`.
fn directories_of_rustflags() -> Vec<PathBuf> {
    let flags = env::of_cargo("CARGO_ENCODED_RUSTFLAGS");
    let mut words = flags.split('\x1f');
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let Some(rest) = word.strip_prefix("-L") else {
            continue;
        };
        let dir = if rest.is_empty() {
            words.next().unwrap_or_default()
        } else {
            rest
        };
        let dir = match dir.split_once('=') {
            Some(("native" | "all", dir)) => dir,
            Some(_) => continue,
            None => dir,
        };
        found.push(PathBuf::from(dir));
    }
    found.retain(|dir| dir.is_absolute());
    found
}
