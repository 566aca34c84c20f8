//! `ImageMode`, `FormatVersion` and `FsType`: how an image is laid out and what is in it.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// How the base of an image stores its clusters. A descriptor can say nothing else, so there will be no more of them.
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
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
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
///
/// With `serde` it is the number; formats for people are read with the text as well.
///
/// ```
/// use ploop::FormatVersion;
///
/// assert_eq!(FormatVersion::V2.to_string(), "v2");
/// assert_eq!("v2".parse::<FormatVersion>()?, FormatVersion::V2);
/// assert_eq!(FormatVersion::try_from(1)?.number(), 1);
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FormatVersion {
    /// Up to 2 TiB; every driver knows it.
    V1,
    /// Up to 1 PiB with 1 MiB clusters for a new image, and 4 PiB for one that is read; needs a driver with large disk
    /// support.
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
        f.pad(match self {
            FormatVersion::V1 => "v1",
            FormatVersion::V2 => "v2",
        })
    }
}

impl From<FormatVersion> for u32 {
    fn from(version: FormatVersion) -> u32 {
        version.number()
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

impl FromStr for FormatVersion {
    type Err = Error;

    /// Reads `1`, `v1`, `V1` and the same of 2.
    fn from_str(text: &str) -> Result<FormatVersion> {
        match text.strip_prefix(['v', 'V']).unwrap_or(text) {
            "1" => Ok(FormatVersion::V1),
            "2" => Ok(FormatVersion::V2),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "parse format version",
                format!("{text:?} is neither v1 nor v2"),
            )),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for FormatVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.number().into())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for FormatVersion {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<FormatVersion, D::Error> {
        crate::stored::number_or_text(deserializer, "1, 2, \"v1\" or \"v2\"", |number| {
            u32::try_from(number).unwrap_or(u32::MAX).try_into()
        })
    }
}

/// A file system that libploop can make in a new image.
///
/// ```
/// use ploop::FsType;
///
/// assert_eq!("ext4".parse::<FsType>()?, FsType::Ext4);
/// assert_eq!(FsType::default().as_str(), "ext4");
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
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

impl FromStr for FsType {
    type Err = Error;

    fn from_str(text: &str) -> Result<FsType> {
        match text {
            "ext4" => Ok(FsType::Ext4),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "parse file system type",
                format!("{text:?} is not ext4, the only one that libploop can make"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_the_letter() {
        for version in [FormatVersion::V1, FormatVersion::V2] {
            for text in [
                version.to_string(),
                format!("V{}", version.number()),
                version.number().to_string(),
            ] {
                assert_eq!(text.parse::<FormatVersion>().unwrap(), version);
            }
            assert_eq!(FormatVersion::try_from(version.number()).unwrap(), version);
        }
        for text in ["", "v", "3", "vv1", "v1 "] {
            let error = text.parse::<FormatVersion>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

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
