//! `ComponentName`: the name of one of several attachments of an image.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// The name under which an image is attached, to tell several attachments of one image apart.
///
/// 1 to 63 bytes: the driver keeps 64 with a terminator, and libploop cuts longer ones at mount time
/// and never finds them again. No control characters, since the name is read back from a line of
/// sysfs, and no leading `~`, with which libploop marks its own.
///
/// ```
/// use ploop::ComponentName;
///
/// let name: ComponentName = "backup-2024".parse()?;
/// assert_eq!(name.as_str(), "backup-2024");
/// assert!("x".repeat(64).parse::<ComponentName>().is_err());
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct ComponentName(String);

impl ComponentName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a name outside the rules above.
    pub fn new(name: impl Into<String>) -> Result<ComponentName> {
        let name = name.into();
        let problem = if name.is_empty() {
            "is empty".to_owned()
        } else if name.len() > Self::MAX_LEN {
            format!(
                "is {} bytes long; at most {} fit",
                name.len(),
                Self::MAX_LEN
            )
        } else if name.chars().any(char::is_control) {
            "has a control character".to_owned()
        } else if name.starts_with('~') {
            "begins with '~', which libploop uses for its own".to_owned()
        } else {
            return Ok(ComponentName(name));
        };
        Err(Error::new(
            ErrorKind::InvalidInput,
            "choose component name",
            format!("{name:?} {problem}"),
        ))
    }

    /// How names begin that this crate gives a device for the time of a call.
    #[cfg(feature = "libploop")]
    pub(crate) const ONE_CALL: &str = "create-";

    /// One that no other device has.
    #[cfg(feature = "libploop")]
    pub(crate) fn for_one_call() -> ComponentName {
        let id = crate::Guid::generate();
        ComponentName(format!("{}{}", Self::ONE_CALL, id.as_uuid().simple()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ComponentName {
    type Err = Error;

    fn from_str(name: &str) -> Result<ComponentName> {
        ComponentName::new(name)
    }
}

impl TryFrom<String> for ComponentName {
    type Error = Error;

    fn try_from(name: String) -> Result<ComponentName> {
        ComponentName::new(name)
    }
}

impl TryFrom<&str> for ComponentName {
    type Error = Error;

    fn try_from(name: &str) -> Result<ComponentName> {
        ComponentName::new(name)
    }
}

impl From<ComponentName> for String {
    fn from(name: ComponentName) -> String {
        name.0
    }
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_driver() {
        assert!(ComponentName::new("x".repeat(63)).is_ok());
        for (bad, why) in [
            (String::new(), "empty"),
            ("x".repeat(64), "64 bytes"),
            ("ä".repeat(32), "64 bytes"),
            ("a\0b".into(), "control"),
            ("a\nb".into(), "control"),
            ("~a".into(), "'~'"),
        ] {
            let error = ComponentName::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains(why), "{error}");
        }
    }
}
