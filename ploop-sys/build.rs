//! Finds libploop and tells Cargo how to link it. The crate documentation lists the environment variables.

#[path = "build/archive.rs"]
mod archive;
#[path = "build/compiler.rs"]
mod compiler;
#[path = "build/env.rs"]
mod env;
#[cfg(feature = "bindgen")]
#[path = "build/generate.rs"]
#[allow(dead_code, reason = "`cargo xtask` uses the other half")]
mod generate;
#[path = "build/line.rs"]
mod line;
#[path = "build/link.rs"]
mod link;
#[path = "build/probe.rs"]
mod probe;
#[path = "build/shared_library.rs"]
mod shared_library;

use line::Line;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=abi");
    println!("cargo::rustc-check-cfg=cfg(ploop_generated)");
    println!("cargo::rustc-check-cfg=cfg(ploop_static)");
    println!("cargo::rustc-check-cfg=cfg(ploop_bound_header)");
    println!("cargo::rustc-check-cfg=cfg(ploop_abi, values(\"v1\", \"v7\"))");

    // A documentation build has neither the library nor its header and links nothing.
    if env::var("DOCS_RS").is_some_and(|value| env::is_on(&value)) {
        let line = line::LINES[0];
        emit_line(line, Some(line.bound_version));
        return;
    }

    match build() {
        Ok(()) => {}
        // Cargo turns these into one error and, unlike for a panic, does not bury it in the script's whole output.
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

fn build() -> Result<(), String> {
    let library = probe::find()?;
    link::emit(&library)?;

    emit_line(library.line, library.version.as_deref());
    // For this crate's own tests of this program.
    if let Ok(program) = std::env::current_exe() {
        println!(
            "cargo::rustc-env=PLOOP_SYS_BUILD_SCRIPT={}",
            program.display()
        );
    }
    if let Some(include) = &library.include {
        println!("cargo::metadata=include={}", include.display());
        // For this crate's own layout test: whether the bindings were made for this header.
        println!("cargo::rustc-env=PLOOP_SYS_INCLUDE={}", include.display());
        if library.version.as_deref() == Some(library.line.bound_version) {
            println!("cargo::rustc-cfg=ploop_bound_header");
        }
    }

    #[cfg(feature = "bindgen")]
    {
        let out = std::path::PathBuf::from(env::of_cargo("OUT_DIR")).join("bindings.rs");
        let descriptions = std::path::Path::new("abi");
        let text = generate::of_header(
            library.include.as_deref(),
            library.line.major(),
            descriptions,
            true,
        )?;
        std::fs::write(&out, text).map_err(|e| format!("cannot write {}: {e}", out.display()))?;
        println!("cargo::rustc-cfg=ploop_generated");
    }
    Ok(())
}

/// For the build scripts of crates that depend on this one, and for this crate itself.
fn emit_line(line: Line, version: Option<&str>) {
    if let Some(version) = version {
        println!("cargo::metadata=version={version}");
    }
    println!("cargo::metadata=abi={}", line.abi);
    println!(
        "cargo::metadata=capabilities={}",
        line.capabilities.join(",")
    );
    println!("cargo::rustc-cfg=ploop_abi=\"{}\"", line.abi);
    let version = version.unwrap_or("unknown");
    println!("cargo::rustc-env=PLOOP_SYS_VERSION={version}");
    println!("cargo::rustc-env=PLOOP_SYS_SONAME={}", line.soname);
}
