//! Environment variables, each announced to Cargo so that a change runs the script again.

use std::ffi::OsString;

/// A variable as it is.
pub(crate) fn plain(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name)
}

/// A variable that the user sets: first with the target as prefix (`X86_64_UNKNOWN_LINUX_GNU_PLOOP_LIB_DIR`),
/// which is how a build for several targets gives each its own, then without. An empty value counts as unset.
pub(crate) fn of_target(name: &str) -> Option<OsString> {
    let target = std::env::var("TARGET").unwrap_or_default();
    let prefix = target.to_uppercase().replace(['-', '.'], "_");
    // Both are looked up, so that Cargo watches both.
    let (own, common) = (plain(&format!("{prefix}_{name}")), plain(name));
    own.filter(|v| !v.is_empty())
        .or_else(|| common.filter(|v| !v.is_empty()))
}

/// A switch: `Some(false)` only for `0`.
pub(crate) fn switch(name: &str) -> Option<bool> {
    of_target(name).map(|v| v != "0")
}

/// A variable that Cargo always sets for a build script.
#[cfg(feature = "bindgen")]
pub(crate) fn required(name: &str) -> Result<OsString, String> {
    std::env::var_os(name).ok_or_else(|| format!("{name} is not set: run this by Cargo"))
}
