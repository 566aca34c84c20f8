//! How `serde` stores values: numbers that may also be text, and paths that need not be UTF-8.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::{Error, Result};

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

/// For `#[serde(with = "crate::stored::paths")]` at a `PathBuf`, or at an `Option` or `Vec` of them; an `Option`
/// needs `#[serde(default)]` as well.
///
/// A path is a text. One that is not UTF-8 is a list of its bytes, as is every path in a binary format.
pub(crate) mod paths {
    use super::{Deserialize, Deserializer, Paths, Result, Serialize, Serializer};

    pub(crate) fn serialize<T: Paths, S: Serializer>(
        paths: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        paths.clone().into_stored().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Paths, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        T::Stored::deserialize(deserializer).map(T::from_stored)
    }
}

pub(crate) trait Paths: Clone {
    type Stored: Serialize + DeserializeOwned;

    fn into_stored(self) -> Self::Stored;
    fn from_stored(stored: Self::Stored) -> Self;
}

impl Paths for PathBuf {
    type Stored = StoredPath;

    fn into_stored(self) -> StoredPath {
        StoredPath(self)
    }

    fn from_stored(stored: StoredPath) -> PathBuf {
        stored.0
    }
}

impl Paths for Option<PathBuf> {
    type Stored = Option<StoredPath>;

    fn into_stored(self) -> Option<StoredPath> {
        self.map(StoredPath)
    }

    fn from_stored(stored: Option<StoredPath>) -> Option<PathBuf> {
        stored.map(|path| path.0)
    }
}

impl Paths for Vec<PathBuf> {
    type Stored = Vec<StoredPath>;

    fn into_stored(self) -> Vec<StoredPath> {
        self.into_iter().map(StoredPath).collect()
    }

    fn from_stored(stored: Vec<StoredPath>) -> Vec<PathBuf> {
        stored.into_iter().map(|path| path.0).collect()
    }
}

pub(crate) struct StoredPath(PathBuf);

impl Serialize for StoredPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) if serializer.is_human_readable() => serializer.serialize_str(text),
            _ => self.0.as_os_str().as_bytes().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StoredPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StoredPath, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "a path: a text, or a list of bytes")]
        enum Readable {
            Text(PathBuf),
            Bytes(Vec<u8>),
        }

        let from_bytes = |bytes| OsString::from_vec(bytes).into();
        let path = if deserializer.is_human_readable() {
            match Readable::deserialize(deserializer)? {
                Readable::Text(path) => path,
                Readable::Bytes(bytes) => from_bytes(bytes),
            }
        } else {
            from_bytes(Vec::deserialize(deserializer)?)
        };
        Ok(StoredPath(path))
    }
}
