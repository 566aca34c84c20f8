//! `export`, and `qemu-img convert`.

use std::fs;
use std::path::Path;
use std::process::Command;

use ploop::Size;

use crate::images::{self, Cache};
use crate::turns::{self, Bars, Taken};
use crate::{PLOOP_IMAGE, images::M};

const ROUNDS: usize = 15;

pub(crate) fn table(dir: &Path, bars: &mut Bars) -> Result<(), String> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return Err("qemu-img is missing (package qemu-utils)".to_owned());
    }
    let image = dir.join("image.hds");
    let size = Size::from_gib(1);
    // Every other cluster, so that not all is in one piece.
    images::delta(&image, size, (0..(size.bytes() / M) as u32).step_by(2));
    let title = format!(
        "export of a disk of {size}, half of it allocated in clusters of 1 MiB: medians of {ROUNDS}"
    );
    bars.heading(&title, "qemu-img convert");
    for format in ["raw", "qcow2"] {
        for cache in [Cache::Warm, Cache::Cold] {
            // QEMU does not wait for the disk.
            pair(bars, &image, format, cache, "--no-sync", "unsafe");
        }
        // Both wait for the disk.
        pair(bars, &image, format, Cache::Warm, "--quiet", "writeback");
    }
    Ok(())
}

/// One way to export, with an option of ours and a cache mode of QEMU's.
fn pair(bars: &mut Bars, image: &Path, format: &str, cache: Cache, option: &str, mode: &str) {
    let out = image.with_file_name("out");
    let exporting = |command: &mut Command| -> Taken {
        let _ = fs::remove_file(&out);
        cache.prepare(image);
        turns::run(command)
    };
    let [ours, theirs] = turns::medians(
        ROUNDS,
        [
            &mut || {
                let mut command = Command::new(PLOOP_IMAGE);
                command.arg("export").args([image, &out]);
                exporting(command.args(["--format", format, option]))
            },
            &mut || {
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-f", "parallels", "-O", format, "-t", mode]);
                exporting(command.args([image, &out]))
            },
        ],
    );
    let _ = fs::remove_file(&out);
    let synced = if mode == "unsafe" { "" } else { ", synced" };
    let name = format!("{format}, {}{synced}", cache.name());
    bars.row(&format!("{name}: time"), ours.wall, theirs.wall, 1.0);
    bars.row(&format!("{name}: CPU time"), ours.cpu, theirs.cpu, 1.0);
}
