//! Finds libploop.
fn main() {
    println!("cargo:rustc-link-lib=ploop");
}
