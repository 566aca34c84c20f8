//! What a sandbox needs of the machine: capabilities, device nodes, tools, a mount namespace. `ploop-sandbox check`
//! tells what is missing.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use crate::{file_system, fuse, namespace, processes};

/// The tools and Debian's packages of them.
const TOOLS: [(&str, &str); 4] = [
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("parted", "parted"),
];
/// The tools that libploop 7 runs in addition, and Debian's packages of them. Other lines do without.
const TOOLS_OF_7: [(&str, &str); 2] = [("sgdisk", "gdisk"), ("partprobe", "parted")];
const SYS_ADMIN: u32 = 21;
const MKNOD: u32 = 27;

/// Puts this process into a mount namespace of its own. The error names everything that is missing, each with what to
/// do about it.
pub(crate) fn enter_namespace() -> Result<(), String> {
    let mut missing = Vec::new();
    for (capability, name) in [(SYS_ADMIN, "CAP_SYS_ADMIN"), (MKNOD, "CAP_MKNOD")] {
        if !has_capability(capability) {
            missing.push(format!("{name} (run it as root)"));
        }
    }
    for (node, module) in [("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")] {
        // Without the capabilities, a node that is there cannot be opened: that is said already.
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
            // The root directory cannot be made private where it is no mount point.
            let hint = if error.downcast_ref() == Some(&Errno::INVAL) {
                "in a chroot, the root directory has to be a mount point: `mount --rbind DIR DIR` before `chroot DIR`"
            } else {
                "run it outside of a container, or in a privileged one"
            };
            missing.push(format!("a mount namespace ({error:#}: {hint})"));
        } else if !fuse::can_abort() {
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

/// What a program with libploop 7 lacks here, as one line; None if that is nothing.
pub(crate) fn missing_for_libploop_7() -> Option<String> {
    let missing: Vec<String> = TOOLS_OF_7
        .into_iter()
        .filter(|(tool, _)| !file_system::tool(tool).is_absolute())
        .map(|(tool, package)| format!("{tool} (install {package})"))
        .collect();
    (!missing.is_empty()).then(|| format!("libploop 7 alone also needs: {}", missing.join(", ")))
}

fn has_capability(number: u32) -> bool {
    let [effective] = processes::status_masks("self", ["CapEff:"]).unwrap_or_default();
    effective & 1 << number != 0
}
