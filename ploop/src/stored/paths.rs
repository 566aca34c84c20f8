//! For `#[serde(with = "crate::stored::paths")]` at a `PathBuf`, or at an `Option` or `Vec` of them; an `Option`
//! needs `#[serde(default)]` as well.
//!
//! A path is a text. One that is not UTF-8 is a list of its bytes, as is every path in a binary format.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::Result;

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
