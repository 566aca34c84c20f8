//! Finds libploop and tells Cargo how to link it. The crate documentation lists the environment variables.

#[path = "build/env.rs"]
mod env;
#[cfg(feature = "bindgen")]
#[path = "build/generate.rs"]
mod generate;
#[path = "build/link.rs"]
mod link;
#[path = "build/probe.rs"]
mod probe;

/// The ABI line of the committed bindings: struct layouts and functions of libploop 1.x (soname `libploop.so.1`).
const ABI: &str = "v1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rustc-check-cfg=cfg(ploop_generated)");

    // A documentation build has neither the library nor its header and links nothing.
    if env::var("DOCS_RS").is_some() {
        emit_version(probe::BOUND_VERSION);
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

    emit_version(&library.version);
    if let Some(include) = &library.include {
        println!("cargo::metadata=include={}", include.display());
        // For this crate's own layout test.
        println!("cargo::rustc-env=PLOOP_SYS_INCLUDE={}", include.display());
    }

    #[cfg(feature = "bindgen")]
    {
        let out = std::path::PathBuf::from(env::required("OUT_DIR")?).join("bindings.rs");
        let text = generate::bindings(library.include.as_deref())?;
        std::fs::write(&out, text).map_err(|e| format!("cannot write {}: {e}", out.display()))?;
        println!("cargo::rustc-cfg=ploop_generated");
    }
    Ok(())
}

/// For the build scripts of crates that depend on this one, and for this crate itself.
fn emit_version(version: &str) {
    println!("cargo::metadata=version={version}");
    println!("cargo::metadata=abi={ABI}");
    println!("cargo::rustc-env=PLOOP_SYS_VERSION={version}");
}
