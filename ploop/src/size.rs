//! Sizes that carry their unit.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;
/// libploop, the descriptor and the kernel driver count 512-byte sectors.
const SECTOR: u64 = 512;

/// An amount of bytes.
///
/// libploop counts in 512-byte sectors, its command line in KiB and its statistics in bytes; here
/// the unit is named where a number enters or leaves.
///
/// The constructors saturate at [`Size::MAX`], which no operation accepts, so an overflow ends in
/// [`ErrorKind::InvalidInput`] and never in a wrapped, small size. [`FromStr`] reports it at once.
///
/// ```
/// use ploop::Size;
///
/// assert_eq!(Size::from_gib(10).bytes(), 10 << 30);
/// assert_eq!("1.5G".parse::<Size>()?, Size::from_mib(1536));
/// assert_eq!(Size::from_mib(384).to_string(), "384 MiB");
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Size(u64);

impl Size {
    /// Zero bytes.
    pub const ZERO: Size = Size(0);
    /// The largest representable size; no image can be so large.
    pub const MAX: Size = Size(u64::MAX);

    /// A size of `n` bytes.
    #[must_use]
    pub const fn from_bytes(n: u64) -> Size {
        Size(n)
    }

    /// A size of `n` × 512 bytes, saturating.
    #[must_use]
    pub const fn from_sectors(n: u64) -> Size {
        Size(n.saturating_mul(SECTOR))
    }

    /// A size of `n` × 1024 bytes, saturating.
    #[must_use]
    pub const fn from_kib(n: u64) -> Size {
        Size(n.saturating_mul(KIB))
    }

    /// A size of `n` × 1024² bytes, saturating.
    #[must_use]
    pub const fn from_mib(n: u64) -> Size {
        Size(n.saturating_mul(MIB))
    }

    /// A size of `n` × 1024³ bytes, saturating.
    #[must_use]
    pub const fn from_gib(n: u64) -> Size {
        Size(n.saturating_mul(GIB))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in 512-byte sectors; a started sector counts.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.0.div_ceil(SECTOR)
    }

    /// Whether this is zero bytes.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` where it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Size) -> Option<Size> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Size(n)),
            None => None,
        }
    }

    /// The difference, or `None` where `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Size) -> Option<Size> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(Size(n)),
            None => None,
        }
    }
}

impl fmt::Display for Size {
    /// The largest binary unit in which at least one whole unit fits, with up to two decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            PIB.. => (PIB, "PiB"),
            TIB.. => (TIB, "TiB"),
            GIB.. => (GIB, "GiB"),
            MIB.. => (MIB, "MiB"),
            KIB.. => (KIB, "KiB"),
            _ => return f.pad(&format!("{} B", self.0)),
        };
        let hundredths = u128::from(self.0 % unit) * 100 / u128::from(unit);
        let whole = self.0 / unit;
        f.pad(&match (hundredths / 10, hundredths % 10) {
            (0, 0) => format!("{whole} {name}"),
            (tenths, 0) => format!("{whole}.{tenths} {name}"),
            (tenths, rest) => format!("{whole}.{tenths}{rest} {name}"),
        })
    }
}

impl FromStr for Size {
    type Err = Error;

    /// Reads a number with an optional unit: `4096`, `512s` (sectors), `64K`, `1.5GiB`, `10 G`.
    ///
    /// Units are binary and their case does not matter; without one the number is bytes. A decimal
    /// fraction must come out at whole bytes.
    fn from_str(text: &str) -> Result<Size> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "parse size",
                format!("{text:?} is not a size below 16 EiB: write a number and a unit, as in \"10G\" or \"512MiB\""),
            )
        })
    }
}

fn parse(text: &str) -> Option<Size> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "s" => SECTOR,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => TIB,
        "p" | "pb" | "pib" => PIB,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let fraction_digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 18)?;
    let scale = 10u128.checked_pow(fraction_digits)?;
    let fraction = u128::from(fraction.parse::<u64>().ok()?).checked_mul(u128::from(unit))?;
    if fraction % scale != 0 {
        return None;
    }
    u128::from(whole.parse::<u64>().ok()?)
        .checked_mul(u128::from(unit))?
        .checked_add(fraction / scale)
        .and_then(|n| u64::try_from(n).ok())
        .map(Size)
}

/// The size of a cluster, the unit in which an image is allocated: a power of two from 32 KiB to
/// 64 MiB. The default is 1 MiB.
///
/// ```
/// use ploop::ClusterSize;
///
/// assert_eq!(ClusterSize::from_bytes(1 << 20)?, ClusterSize::DEFAULT);
/// assert!(ClusterSize::from_bytes(96 * 1024).is_err());
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u64", into = "u64"))]
pub struct ClusterSize(u32);

impl ClusterSize {
    /// 32 KiB.
    pub const MIN: ClusterSize = ClusterSize(32 << 10);
    /// 1 MiB, what libploop uses when it is not told.
    pub const DEFAULT: ClusterSize = ClusterSize(1 << 20);
    /// 64 MiB.
    pub const MAX: ClusterSize = ClusterSize(64 << 20);

    /// A cluster of `n` bytes, or [`ErrorKind::InvalidInput`] where `n` is not a power of two from
    /// 32 KiB to 64 MiB.
    pub fn from_bytes(n: u64) -> Result<ClusterSize> {
        match u32::try_from(n) {
            Ok(n) if n.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&n) => {
                Ok(ClusterSize(n))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "choose cluster size",
                format!("{n} bytes is not a power of two from 32 KiB to 64 MiB"),
            )),
        }
    }

    /// A cluster of `n` × 512 bytes; errors as [`ClusterSize::from_bytes`].
    pub fn from_sectors(n: u64) -> Result<ClusterSize> {
        Self::from_bytes(n.saturating_mul(SECTOR))
    }

    /// A cluster of 2^`log` sectors, as goploop's `CLog`: 6 (32 KiB) to 17 (64 MiB).
    pub fn from_log2_sectors(log: u32) -> Result<ClusterSize> {
        Self::from_bytes(1u64.checked_shl(log.saturating_add(9)).unwrap_or(u64::MAX))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The size in 512-byte sectors.
    #[must_use]
    pub const fn sectors(self) -> u32 {
        self.0 / SECTOR as u32
    }
}

impl Default for ClusterSize {
    fn default() -> ClusterSize {
        ClusterSize::DEFAULT
    }
}

impl From<ClusterSize> for Size {
    fn from(cluster: ClusterSize) -> Size {
        Size::from_bytes(cluster.bytes())
    }
}

impl From<ClusterSize> for u64 {
    fn from(cluster: ClusterSize) -> u64 {
        cluster.bytes()
    }
}

impl TryFrom<u64> for ClusterSize {
    type Error = Error;

    fn try_from(bytes: u64) -> Result<ClusterSize> {
        ClusterSize::from_bytes(bytes)
    }
}

impl TryFrom<Size> for ClusterSize {
    type Error = Error;

    fn try_from(size: Size) -> Result<ClusterSize> {
        ClusterSize::from_bytes(size.bytes())
    }
}

impl FromStr for ClusterSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<ClusterSize> {
        text.parse::<Size>()?.try_into()
    }
}

impl fmt::Display for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Size::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8s", 4096),
            ("64K", 65536),
            ("64 kib", 65536),
            ("1.5G", 1536 << 20),
            ("10G", 10 << 30),
            ("16TiB", 16 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.2.3",
            "1.",
            ".5G",
            "0.3",
            "10X",
            "16384P",
            "18446744073709551616",
            "0x10",
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.message().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn display_names_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (384 << 20, "384 MiB"),
            ((1 << 40) + (1 << 38), "1.25 TiB"),
            (u64::MAX, "16383.99 PiB"),
        ] {
            assert_eq!(Size::from_bytes(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}|", Size::from_gib(1)), "    1 GiB|");
    }

    #[test]
    fn constructors_saturate() {
        assert_eq!(Size::from_gib(u64::MAX), Size::MAX);
        assert_eq!(Size::from_sectors(u64::MAX), Size::MAX);
    }

    #[test]
    fn clusters_are_powers_of_two_in_range() {
        let mut accepted = 0;
        for log in 0..40 {
            for off in [-1i64, 0, 1] {
                let n = ((1i64 << log) + off) as u64;
                if ClusterSize::from_bytes(n).is_ok() {
                    assert!(off == 0 && (15..=26).contains(&log), "{n}");
                    accepted += 1;
                }
            }
        }
        assert_eq!(accepted, 12);
        assert_eq!(
            ClusterSize::from_log2_sectors(11).unwrap(),
            ClusterSize::DEFAULT
        );
        assert!(ClusterSize::from_log2_sectors(u32::MAX).is_err());
    }
}
