//! The programs that libploop starts, and where it looks for them.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::ffi::LINE;
use crate::{Error, ErrorKind, Result};

/// Where libploop looks, in its order. It looks for names with `2fs` in `/usr/libexec` first.
const DIRECTORIES: [&str; 5] = ["/sbin", "/bin", "/usr/sbin", "/usr/bin", "/usr/local/sbin"];

/// The programs that every line starts.
const OF_ALL_LINES: [&str; 7] = [
    "parted",
    "mkfs",
    "mkfs.ext4",
    "tune2fs",
    "resize2fs",
    "fsck.ext4",
    "lsof",
];

/// Those that line 7 starts besides.
const OF_LINE_7: [&str; 3] = ["sgdisk", "partprobe", "dumpe2fs"];

/// The programs that this line of libploop starts.
pub(crate) fn of_this_line() -> impl Iterator<Item = &'static str> {
    let more: &[&str] = match LINE.number {
        ..7 => &[],
        _ => &OF_LINE_7,
    };
    OF_ALL_LINES.iter().chain(more).copied()
}

/// Those that this line starts to attach a device. The kernel reads the partition table by itself with line 1.
pub(crate) const fn to_attach() -> &'static [&'static str] {
    match LINE.number {
        ..7 => &[],
        _ => &["partprobe"],
    }
}

/// Those that this line starts besides `parted` to make or change a partition table.
pub(crate) const fn to_partition() -> &'static [&'static str] {
    match LINE.number {
        ..7 => &[],
        _ => &["sgdisk", "partprobe"],
    }
}

/// Where libploop finds a tool.
pub(crate) fn path_of(tool: &str) -> Option<PathBuf> {
    let first = tool.contains("2fs").then_some("/usr/libexec");
    first
        .into_iter()
        .chain(DIRECTORIES)
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| rustix::fs::access(path, Access::EXEC_OK).is_ok())
}

/// The program with which libploop 7 encrypts, by its only path.
const CRYPT_HELPER: &str = "/usr/libexec/ploop/crypthelper";

/// Requires the helper without which an encrypted image can be neither made nor mounted. libploop attaches the image
/// first, and misses the helper then.
pub(crate) fn require_crypt_helper(operation: &'static str, path: &Path) -> Result<()> {
    if rustix::fs::access(CRYPT_HELPER, Access::EXEC_OK).is_ok() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Tool,
        operation,
        format!("libploop needs its helper program {CRYPT_HELPER} for encrypted images, and it is not there"),
    )
    .with_path(path))
}

/// Requires that these tools are installed. libploop forks before it looks for them, and without the tool its child
/// returns as a second copy of the program (21).
pub(crate) fn require_tools(operation: &'static str, tools: &[&str]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .copied()
        .filter(|tool| path_of(tool).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = match LINE.number {
        ..7 => "e2fsprogs and parted",
        _ => "e2fsprogs, parted and gdisk",
    };
    Err(Error::new(
        ErrorKind::Tool,
        operation,
        format!(
            "libploop needs {} in {}; install the packages {packages}",
            missing.join(", "),
            DIRECTORIES.join(", ")
        ),
    ))
}

/// [`require_tools`] of those that this line starts to make a partition table and a file system.
pub(crate) fn require_tools_for_fs(operation: &'static str) -> Result<()> {
    let tools: &[&str] = &["parted", "mkfs", "mkfs.ext4", "tune2fs"];
    require_tools(operation, &[tools, to_partition()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tools_are_named() {
        require_tools("test", &["sh"]).unwrap();
        let error = require_tools("test", &["sh", "no-such-tool"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool);
        assert!(error.message().contains("needs no-such-tool in"), "{error}");
    }
}
