//! Files that are mounted on others (`mount --bind FILE FILE`).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Whether another file is mounted on the file to which this path leads (`mount --bind FILE FILE`). It may have a name
/// elsewhere, which its link count does not show.
pub(crate) fn is_mounted_on(path: &Path) -> bool {
    let Ok(file) = fs::canonicalize(path) else {
        return false;
    };
    let Some(directory) = file.parent() else {
        return true;
    };
    match (mount_id(&file), mount_id(directory)) {
        (Some(file), Some(directory)) => file != directory,
        _ => is_in_mount_table(&file),
    }
}

/// Since Linux 5.8.
fn mount_id(path: &Path) -> Option<u64> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    let has = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    has.then_some(found.stx_mnt_id)
}

fn is_in_mount_table(file: &Path) -> bool {
    let mut point = Vec::new();
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => point.extend(format!("\\{byte:03o}").bytes()),
            _ => point.push(*byte),
        }
    }
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b' ').nth(4) == Some(&point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_in_both_ways() {
        for (path, expected) in [
            ("/proc", true),
            ("/proc/self/status", false),
            ("/etc/none", false),
        ] {
            assert_eq!(is_mounted_on(Path::new(path)), expected, "{path}");
            assert_eq!(is_in_mount_table(Path::new(path)), expected, "{path}");
        }
    }
}
