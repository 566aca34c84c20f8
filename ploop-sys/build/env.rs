//! Environment variables. Cargo is told of each, so that the script runs again when one changes.

use std::ffi::OsString;

/// A variable.
pub(crate) fn var(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name)
}

/// A variable with the target as prefix (`X86_64_UNKNOWN_LINUX_GNU_PLOOP_LIB_DIR`), for builds for several targets; if
/// there is none, the variable without prefix. An empty value counts as unset.
pub(crate) fn target_var(name: &str) -> Option<OsString> {
    let target = std::env::var("TARGET").unwrap_or_default();
    let prefix = target.to_uppercase().replace(['-', '.'], "_");
    // Both are read, so that Cargo watches both.
    let (own, common) = (var(&format!("{prefix}_{name}")), var(name));
    own.filter(|v| !v.is_empty())
        .or_else(|| common.filter(|v| !v.is_empty()))
}

/// A variable that is a switch: `0` is off, anything else is on.
pub(crate) fn switch(name: &str) -> Option<bool> {
    target_var(name).map(|v| v != "0")
}

/// A variable that Cargo always sets for a build script.
#[cfg(feature = "bindgen")]
pub(crate) fn required(name: &str) -> Result<OsString, String> {
    std::env::var_os(name).ok_or_else(|| format!("{name} is not set: run this by Cargo"))
}
