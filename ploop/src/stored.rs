//! How `serde` stores values: numbers that may also be text, and paths that need not be UTF-8.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};

use crate::{Error, Result};

#[cfg(feature = "image")]
pub(crate) mod paths;

/// A number, for which formats for people may have a text.
pub(crate) fn number_or_text<'de, T, D>(
    deserializer: D,
    expected: &'static str,
    from_number: fn(u64) -> Result<T>,
) -> Result<T, D::Error>
where
    T: FromStr<Err = Error>,
    D: Deserializer<'de>,
{
    struct NumberOrText<T> {
        expected: &'static str,
        from_number: fn(u64) -> Result<T>,
    }

    impl<T: FromStr<Err = Error>> Visitor<'_> for NumberOrText<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_u64<E: de::Error>(self, n: u64) -> Result<T, E> {
            (self.from_number)(n).map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
            match u64::try_from(n) {
                Ok(n) => self.visit_u64(n),
                Err(_) => Err(E::invalid_value(de::Unexpected::Signed(n), &self)),
            }
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    let visitor = NumberOrText {
        expected,
        from_number,
    };
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(visitor)
    } else {
        deserializer.deserialize_u64(visitor)
    }
}
