//! Images in pure Rust.
