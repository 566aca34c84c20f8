//! Tells the crate for which line of libploop it is built, and how that is linked.

use std::fmt::Write as _;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(libploop_line, values(\"1\", \"7\"))");
    println!("cargo::rustc-check-cfg=cfg(libploop_static)");
    // ploop-sys says it; without the feature `libploop` there is none.
    let Ok(abi) = std::env::var("DEP_PLOOP_ABI") else {
        return;
    };
    println!(
        "cargo::rustc-cfg=libploop_line=\"{}\"",
        abi.trim_start_matches('v')
    );
    if std::env::var("DEP_PLOOP_LINKAGE").is_ok_and(|linkage| linkage == "static") {
        println!("cargo::rustc-cfg=libploop_static");
        write_late_functions(&std::env::var("DEP_PLOOP_LATE").unwrap_or_default());
    }
}

/// Writes the table of the late functions in a static library: the program is linked to them.
fn write_late_functions(names: &str) {
    let mut table = String::from("[\n");
    for name in names.split(',').filter(|name| !name.is_empty()) {
        let _ = writeln!(table, "    (c\"{name}\", sys::{name} as *const ()),");
    }
    table.push_str("]\n");
    let file = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    if let Err(error) = std::fs::write(file.join("late_functions.rs"), table) {
        println!("cargo::error=cannot write the table of late functions: {error}");
    }
}
