//! Environment variables. Cargo is told of each, so that the script runs again when one changes.

use std::ffi::{OsStr, OsString};

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

/// A variable that is a switch: `0`, `no`, `false` and `off` are off, anything else is on.
pub(crate) fn switch(name: &str) -> Option<bool> {
    target_var(name).map(|value| is_on(&value))
}

pub(crate) fn is_on(value: &OsStr) -> bool {
    let value = value.to_string_lossy().to_ascii_lowercase();
    !matches!(value.as_str(), "" | "0" | "no" | "false" | "off")
}

/// A variable that Cargo always sets for a build script; empty where something else runs this.
pub(crate) fn of_cargo(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
