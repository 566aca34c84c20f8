//! The command next to the programs that do the same: `qemu-img convert`, QEMU's FUSE export, GNU tar.
//!
//! ```text
//! cargo bench -p ploop-image --bench command                  all tables
//! cargo bench -p ploop-image --bench command -- export tar    some: export, mount, tar, memory
//! cargo bench -p ploop-image --bench command -- --bars        says which bars are met; fails where one is missed
//! ```
//!
//! The sides take turns in one run, so that whatever else the machine does meets both; the tables have the medians.
//! Needs 8 GiB in the temporary directory (`TMPDIR`), which has to be on a disk. `mount` needs FUSE, and root or
//! fusermount3; `tar` needs root and a loop device. Where they are missing, the table is left out and says so, and with
//! `--bars` that is a failure.

mod export;
mod images;
mod memory;
mod mount;
mod tar;
mod turns;

use std::path::Path;
use std::process::ExitCode;

use turns::Bars;

/// The program that is measured.
const PLOOP_IMAGE: &str = env!("CARGO_BIN_EXE_ploop-image");

/// Prints a table. The error says what is missing.
type Table = fn(&Path, &mut Bars) -> Result<(), String>;

const TABLES: [(&str, Table); 4] = [
    ("export", export::table),
    ("mount", mount::table),
    ("tar", tar::table),
    ("memory", memory::table),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, command @ ..] = &arguments[..] {
        if first == memory::PEAK_OF {
            return memory::tell_peak(command);
        }
    }
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --benches` is no reason to work for minutes.
    if !has("--bench") {
        return ExitCode::SUCCESS;
    }
    let is_chosen = |name: &str| arguments.iter().all(|it| it.starts_with("--")) || has(name);
    let dir = tempfile::tempdir().unwrap();
    let mut bars = Bars::default();
    for (name, table) in TABLES {
        if is_chosen(name) {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            if let Err(missing) = table(&dir, &mut bars) {
                println!("{name} is left out: {missing}");
                bars.miss(format!("{name}: {missing}"));
            }
            println!();
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    if has("--bars") {
        return bars.verdict();
    }
    ExitCode::SUCCESS
}
