//! The file system under the images: an ext4 on a loop device, bound to a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::sandbox::tool;

/// A mounted one. Dropping it unmounts it.
pub(crate) struct Host {
    pub(crate) target: PathBuf,
}

impl Host {
    /// Makes a file with an empty file system.
    pub(crate) fn format(disk: &Path, size: u64) {
        File::create(disk).unwrap().set_len(size).unwrap();
        let options = [
            "-q",
            "-F",
            "-J",
            "size=4",
            "-E",
            "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
        ];
        tool(
            "mkfs.ext4",
            &[&options[..], &[disk.to_str().unwrap()]].concat(),
        );
    }

    /// Mounts it, which replays its journal.
    pub(crate) fn mount(disk: &Path, target: &Path) -> Host {
        fs::create_dir_all(target).unwrap();
        // Not by `mount -o loop`, which asks all loop devices whether they have this file: one of a sandbox whose daemon
        // hangs does not answer.
        let (disk, at) = (disk.to_str().unwrap(), target.to_str().unwrap());
        let device = LoopDevice(tool("losetup", &["--find", "--show", disk]));
        tool("mount", &[device.0.trim(), at]);
        Host {
            target: target.to_owned(),
        }
    }
}

/// It is detached at once: the kernel frees it when what is mounted on it is unmounted, also if this process is killed.
struct LoopDevice(String);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        tool("losetup", &["--detach", self.0.trim()]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::empty());
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}
