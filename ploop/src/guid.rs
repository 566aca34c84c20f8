//! `Guid`: the name of a snapshot and of its delta.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// The name of a snapshot, and of the delta that holds it.
///
/// Always shown as libploop writes it: lower case, in braces. libploop ignores case when it looks a GUID up, but not
/// when it protects the running top delta, so every spelling is brought to this form before it reaches C.
///
/// ```
/// use ploop::Guid;
///
/// let guid: Guid = "5FBAABE3-6958-40FF-92A7-860E329AAB41".parse()?;
/// assert_eq!(guid, Guid::TOP);
/// assert_eq!(guid.to_string(), "{5fbaabe3-6958-40ff-92a7-860e329aab41}");
/// assert_eq!(Guid::generate().as_uuid().get_version_num(), 4);
/// assert_ne!(Guid::generate(), Guid::NONE);
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(Uuid);

impl Guid {
    /// The top delta, the one that is written to. The same in every image.
    pub const TOP: Guid = Guid(Uuid::from_u128(0x5fbaabe3_6958_40ff_92a7_860e329aab41));
    /// No delta: the parent of the base.
    pub const NONE: Guid = Guid(Uuid::nil());

    /// A new random (version 4) GUID. Instead of C's `ploop_uuid_generate`, which aborts the
    /// process when its buffer is short and opens `/dev/urandom` each time.
    ///
    /// The kernel is asked for each of them. Nothing random is kept in the process, so that neither a
    /// `fork` nor a copy of a running machine can produce one twice.
    #[must_use]
    #[inline]
    pub fn generate() -> Guid {
        #[cfg(feature = "image")]
        if let Some(guid) = generate_directly() {
            return guid;
        }
        Guid(Uuid::new_v4())
    }

    /// The GUID as a [`Uuid`].
    #[must_use]
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

/// By one system call, without the detours `uuid` takes for systems that lack it.
#[cfg(feature = "image")]
#[inline]
fn generate_directly() -> Option<Guid> {
    use rustix::rand::{GetRandomFlags, getrandom};

    let mut bytes = [0; 16];
    let len = getrandom(&mut bytes[..], GetRandomFlags::empty()).ok()?;
    (len == bytes.len()).then(|| Guid(uuid::Builder::from_random_bytes(bytes).into_uuid()))
}

impl From<Uuid> for Guid {
    fn from(uuid: Uuid) -> Guid {
        Guid(uuid)
    }
}

impl From<Guid> for Uuid {
    fn from(guid: Guid) -> Uuid {
        guid.0
    }
}

impl FromStr for Guid {
    type Err = Error;

    /// Takes `8-4-4-4-12` hexadecimal digits of any case, with or without braces.
    fn from_str(text: &str) -> Result<Guid> {
        let bare = match (text.strip_prefix('{'), text.strip_suffix('}')) {
            (Some(_), Some(_)) => &text[1..text.len() - 1],
            _ => text,
        };
        // `Uuid` also reads other notations, which libploop does not know.
        match Uuid::try_parse(bare) {
            Ok(uuid) if bare.len() == 36 => Ok(Guid(uuid)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "parse GUID",
                format!("{text:?} is not of the form {{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}}"),
            )),
        }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.pad(self.0.braced().encode_lower(&mut buffer))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Guid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Guid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Guid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_the_canonical_one() {
        let canonical = "{0123abcd-4567-89ab-cdef-0123456789ab}";
        for text in [
            canonical,
            "{0123ABCD-4567-89AB-CDEF-0123456789AB}",
            "0123abcd-4567-89ab-cdef-0123456789ab",
            "0123ABcd-4567-89AB-cdef-0123456789AB",
        ] {
            assert_eq!(text.parse::<Guid>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn other_notations_are_refused() {
        for text in [
            "",
            "{}",
            "{",
            "}{",
            "{0123abcd-4567-89ab-cdef-0123456789ab",
            "0123abcd-4567-89ab-cdef-0123456789ab}",
            "{{0123abcd-4567-89ab-cdef-0123456789ab}}",
            "0123abcd456789abcdef0123456789ab",
            "urn:uuid:0123abcd-4567-89ab-cdef-0123456789ab",
            "0123abcg-4567-89ab-cdef-0123456789ab",
            "0123abcd-4567-89ab-cdef-0123456789ab ",
        ] {
            let error = text.parse::<Guid>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn generated_guids_are_version_4_and_differ() {
        let (a, b) = (Guid::generate(), Guid::generate());
        assert_ne!(a, b);
        assert_eq!(a.as_uuid().get_version_num(), 4);
        assert_eq!(a.to_string().len(), 38);
    }
}
