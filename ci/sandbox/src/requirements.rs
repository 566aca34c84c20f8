//! What a sandbox needs of the machine.

use std::fs::{self, File};
use std::path::Path;

use crate::{file_system, namespace, watchdog};

/// With the package that has them in Debian.
const TOOLS: [(&str, &str); 4] = [
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("parted", "parted"),
];
/// Numbers of capabilities.
const SYS_ADMIN: u32 = 21;
const MKNOD: u32 = 27;

/// What is missing, each with what to do about it. Puts this process into a mount namespace of its
/// own where nothing is.
pub(crate) fn enter_namespace() -> Result<(), String> {
    let mut missing = Vec::new();
    for (capability, name) in [(SYS_ADMIN, "CAP_SYS_ADMIN"), (MKNOD, "CAP_MKNOD")] {
        if !has_capability(capability) {
            missing.push(format!("{name} (run it as root)"));
        }
    }
    for (node, module) in [("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")] {
        // The rights to it are a matter of the capabilities.
        if let Err(error) = File::options().read(true).write(true).open(node) {
            if !missing.is_empty() && Path::new(node).exists() {
                continue;
            }
            missing.push(format!(
                "{node} ({error}: load the kernel module with `modprobe {module}`, or give the container the device)"
            ));
        }
    }
    for (tool, package) in TOOLS {
        if !file_system::tool(tool).is_absolute() {
            missing.push(format!("{tool} (install {package})"));
        }
    }
    if missing.is_empty() {
        if let Err(error) = namespace::enter() {
            missing.push(format!("a mount namespace ({error:#}: run it outside of a container, or in a privileged one)"));
        } else if !watchdog::is_possible() {
            missing.push(
                "/sys/fs/fuse/connections (load the kernel module with `modprobe fuse`)".to_owned(),
            );
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "a sandbox cannot run here; missing: {}",
            missing.join(", ")
        ))
    }
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << number != 0)
}
