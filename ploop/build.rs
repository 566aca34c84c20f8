//! Tells the crate for which line of libploop it is built.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(libploop_line, values(\"1\", \"7\"))");
    // ploop-sys says it; without the feature `libploop` there is none.
    if let Ok(abi) = std::env::var("DEP_PLOOP_ABI") {
        println!(
            "cargo::rustc-cfg=libploop_line=\"{}\"",
            abi.trim_start_matches('v')
        );
    }
}
