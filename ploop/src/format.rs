//! How an image is laid out and what is in it.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// How the base of an image stores its clusters.
///
/// Reads and writes the names goploop uses: `expanded`, `preallocated`, `raw`, of any case.
///
/// ```
/// use ploop::ImageMode;
///
/// assert_eq!("EXPANDED".parse::<ImageMode>()?, ImageMode::Expanded);
/// assert_eq!(ImageMode::Raw.to_string(), "Raw");
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum ImageMode {
    /// Clusters are allocated when they are first written.
    #[default]
    Expanded,
    /// As expanded, with every cluster allocated from the start.
    Preallocated,
    /// The base is a plain disk image without a block allocation table; deltas above it are
    /// expanded.
    Raw,
}

impl fmt::Display for ImageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ImageMode::Expanded => "Expanded",
            ImageMode::Preallocated => "Preallocated",
            ImageMode::Raw => "Raw",
        })
    }
}

impl FromStr for ImageMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageMode> {
        [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw]
            .into_iter()
            .find(|mode| mode.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    "parse image mode",
                    format!("{text:?} is none of expanded, preallocated and raw"),
                )
            })
    }
}

/// The version of the image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FormatVersion {
    /// Up to 2 TiB; every driver knows it.
    V1,
    /// Up to 4 PiB with 1 MiB clusters; needs a driver with large disk support.
    V2,
}

impl FormatVersion {
    /// 1 or 2.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            FormatVersion::V1 => 1,
            FormatVersion::V2 => 2,
        }
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.number())
    }
}

impl TryFrom<u32> for FormatVersion {
    type Error = Error;

    fn try_from(number: u32) -> Result<FormatVersion> {
        match number {
            1 => Ok(FormatVersion::V1),
            2 => Ok(FormatVersion::V2),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "choose format version",
                format!("{number} is neither 1 nor 2"),
            )),
        }
    }
}

/// A file system that libploop can make in a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum FsType {
    /// The only one libploop 1.15 has options for.
    #[default]
    Ext4,
}

impl FsType {
    /// The name as `mount` takes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_go_there_and_back() {
        for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
            assert_eq!(mode.to_string().parse::<ImageMode>().unwrap(), mode);
            assert_eq!(
                mode.to_string()
                    .to_uppercase()
                    .parse::<ImageMode>()
                    .unwrap(),
                mode
            );
        }
        let error = "sparse".parse::<ImageMode>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("\"sparse\""));
    }
}
