//! Images in pure Rust: nothing here needs libploop, a kernel driver or root.

#![forbid(unsafe_code)]

mod descriptor;
mod file;
mod header;
mod xml;

pub use descriptor::{Descriptor, Geometry, Image, ImageKind, Snapshot};
pub use header::{Header, HeaderFlags};
