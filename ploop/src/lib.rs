//! Ploop images from Rust.

mod error;
mod format;
mod guid;
#[cfg(feature = "image")]
pub mod image;
mod size;

pub use error::{Code, Error, ErrorKind, Result};
pub use format::{FormatVersion, ImageMode};
pub use guid::Guid;
#[cfg(feature = "image")]
pub use image::Descriptor;
pub use size::{ClusterSize, Size};
