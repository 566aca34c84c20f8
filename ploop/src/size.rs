//! `Size` and `ClusterSize`: amounts of bytes whose unit is named.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;
const UNITS: [(u64, &str); 5] = [
    (PIB, "PiB"),
    (TIB, "TiB"),
    (GIB, "GiB"),
    (MIB, "MiB"),
    (KIB, "KiB"),
];
/// libploop, the descriptor and the kernel driver count 512-byte sectors.
const SECTOR: u64 = 512;

/// An amount of bytes.
///
/// libploop counts in 512-byte sectors, its command line in KiB and its statistics in bytes; here
/// the unit is named where a number enters or leaves.
///
/// Nothing wraps or panics: constructors, `+` and `*` stop at [`Size::MAX`] and `-` at [`Size::ZERO`], which no
/// operation accepts as the size of an image, so an overflow ends in [`ErrorKind::InvalidInput`] and never in a
/// wrapped size. [`checked_add`](Size::checked_add) and [`checked_sub`](Size::checked_sub) tell.
///
/// [`Display`](fmt::Display) is exact, and [`FromStr`] reads it back: the largest unit in which up to three decimals
/// are enough. With a precision it is for people: so many decimals of the largest unit that fits, rounded.
///
/// ```
/// use ploop::Size;
///
/// assert_eq!(Size::from_gib(10).bytes(), 10 << 30);
/// assert_eq!("1.5G".parse::<Size>()?, Size::from_mib(1536));
/// assert_eq!(Size::from_mib(384) + Size::from_kib(64) * 2, "393344K".parse()?);
/// assert_eq!(Size::from_bytes(513).sectors(), 2);
/// assert_eq!(Size::from_sectors(2048).checked_sub(Size::from_gib(1)), None);
/// assert_eq!(Size::MAX.checked_add(Size::from_kib(1)), None);
/// assert!((Size::from_kib(1) - Size::from_kib(2)).is_zero());
///
/// let size = Size::from_bytes(10_000_001);
/// assert_eq!(size.to_string(), "10000001 B");
/// assert_eq!(size.to_string().parse::<Size>()?, size);
/// assert_eq!(format!("{size:.1}"), "9.5 MiB");
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// With `serde` it is a number of bytes; formats for people are read with a text as well, such as `"10G"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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

impl Add for Size {
    type Output = Size;

    fn add(self, other: Size) -> Size {
        Size(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Size) {
        *self = *self + other;
    }
}

impl Sub for Size {
    type Output = Size;

    fn sub(self, other: Size) -> Size {
        Size(self.0.saturating_sub(other.0))
    }
}

impl SubAssign for Size {
    fn sub_assign(&mut self, other: Size) {
        *self = *self - other;
    }
}

impl Mul<u64> for Size {
    type Output = Size;

    fn mul(self, n: u64) -> Size {
        Size(self.0.saturating_mul(n))
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Size>>(sizes: I) -> Size {
        sizes.fold(Size::ZERO, Add::add)
    }
}

impl<'a> Sum<&'a Size> for Size {
    fn sum<I: Iterator<Item = &'a Size>>(sizes: I) -> Size {
        sizes.copied().sum()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match f.precision() {
            Some(digits) => self.rounded(digits),
            None => self.exact(),
        };
        // As `pad`, which would cut the text at the precision; a number is right-aligned.
        f.pad_integral(true, "", &text)
    }
}

impl Size {
    fn exact(self) -> String {
        for (unit, name) in UNITS {
            let (whole, rest) = (self.0 / unit, u128::from(self.0 % unit) * 1000);
            if whole > 0 && rest % u128::from(unit) == 0 {
                let decimals = format!("{whole}.{:03}", rest / u128::from(unit));
                let decimals = decimals.trim_end_matches('0').trim_end_matches('.');
                return format!("{decimals} {name}");
            }
        }
        format!("{} B", self.0)
    }

    fn rounded(self, digits: usize) -> String {
        let Some(at) = UNITS.iter().position(|(unit, _)| self.0 >= *unit) else {
            return self.exact();
        };
        // With 18 decimals, numbers of 128 bits hold the largest size.
        let digits = digits.min(18);
        let scale = 10u128.pow(digits as u32);
        let unit = u128::from(UNITS[at].0);
        let scaled = (u128::from(self.0) * scale + unit / 2) / unit;
        // 1023.99 KiB, rounded, is 1.0 MiB.
        let (scaled, at) = match at.checked_sub(1) {
            Some(larger) if scaled >= 1024 * scale => (scale, larger),
            _ => (scaled, at),
        };
        let (whole, rest, name) = (scaled / scale, scaled % scale, UNITS[at].1);
        if digits == 0 {
            return format!("{whole} {name}");
        }
        format!("{whole}.{rest:0digits$} {name}")
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        crate::stored::number_or_text(
            deserializer,
            "a number of bytes, or a size such as \"10G\"",
            |n| Ok(Size(n)),
        )
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
/// assert_eq!("64K".parse::<ClusterSize>()?, ClusterSize::from_sectors(128)?);
/// assert_eq!(ClusterSize::from_log2_sectors(11)?.bytes(), 1 << 20);
/// assert!(ClusterSize::from_bytes(96 * 1024).is_err());
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(into = "u64"))]
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

    /// The smallest that is not smaller than `size`, or the largest there is.
    #[cfg(feature = "image")]
    pub(crate) fn at_least(size: Size) -> ClusterSize {
        let bytes = size.bytes().clamp(Self::MIN.bytes(), Self::MAX.bytes());
        ClusterSize((bytes as u32).next_power_of_two())
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

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ClusterSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ClusterSize, D::Error> {
        let size = Size::deserialize(deserializer)?;
        size.try_into().map_err(serde::de::Error::custom)
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
    fn display_is_exact_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1537 << 10, "1537 KiB"),
            (10_000_001, "10000001 B"),
            (384 << 20, "384 MiB"),
            ((1 << 40) + (1 << 37), "1.125 TiB"),
            ((1 << 40) + (1 << 36), "1088 GiB"),
            (u64::MAX, "18446744073709551615 B"),
        ] {
            assert_eq!(Size::from_bytes(bytes).to_string(), text);
        }
        assert_eq!(
            format!("{:>9}|{0:<9}|{0:9}", Size::from_gib(1)),
            "    1 GiB|1 GiB    |    1 GiB"
        );
        assert_eq!(format!("{:-^9}", ClusterSize::DEFAULT), "--1 MiB--");
    }

    #[test]
    fn a_precision_rounds() {
        for (bytes, digits, text) in [
            (0, 2, "0 B"),
            (1023, 2, "1023 B"),
            (600 << 20, 0, "600 MiB"),
            (1536, 0, "2 KiB"),
            (1536, 3, "1.500 KiB"),
            ((1 << 20) - 1, 1, "1.0 MiB"),
            ((1 << 20) - 1, 6, "1023.999023 KiB"),
            (u64::MAX, 1, "16384.0 PiB"),
            (u64::MAX, 40, "16383.999999999999999112 PiB"),
        ] {
            assert_eq!(format!("{:.*}", digits, Size(bytes)), text);
        }
        assert_eq!(format!("{:>9.1}|", Size(1500)), "  1.5 KiB|");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn what_is_printed_is_read_back(bytes: u64, shift in 0..64u32) {
            for size in [bytes, bytes >> shift, bytes >> shift << shift].map(Size) {
                proptest::prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
            }
        }

        #[test]
        fn a_precision_is_at_most_half_a_digit_off(bytes: u64, shift in 0..64u32, digits in 0..6usize) {
            let bytes = bytes >> shift;
            let text = format!("{:.*}", digits, Size(bytes));
            let (number, unit) = text.split_once(' ').unwrap();
            let unit = UNITS.iter().find(|(_, name)| *name == unit).map_or(1, |(unit, _)| *unit);
            let shown: f64 = number.parse().unwrap();
            let off = (shown - bytes as f64 / unit as f64).abs();
            proptest::prop_assert!(off <= 0.501 * 10f64.powi(-(digits as i32)), "{}", text);
        }
    }

    #[test]
    fn sums_and_differences_stop_at_the_ends() {
        let (one, two) = (Size::from_kib(1), Size::from_kib(2));
        assert_eq!(one + one, two);
        assert_eq!(two - one, one);
        assert_eq!(one * 2, two);
        assert_eq!(Size::MAX + one, Size::MAX);
        assert_eq!(Size::MAX * 2, Size::MAX);
        assert_eq!(one - two, Size::ZERO);
        assert_eq!([one, two].iter().sum::<Size>(), Size::from_kib(3));
        assert_eq!([Size::MAX, two].into_iter().sum::<Size>(), Size::MAX);
        let mut size = one;
        size += two;
        size -= one;
        assert_eq!(size, two);
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
