//! [`Code`]: libploop's return codes (`SYSEXIT_*`).

use std::fmt;

use crate::ErrorKind;

macro_rules! codes {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Code {
            $(
                #[doc = $doc]
                #[doc = concat!(" (`SYSEXIT_", stringify!($name), "`, ", $value, ")")]
                pub const $name: Code = Code($value);
            )*

            /// Every named code.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The C name without its prefix `SYSEXIT_`, or `None` for -1 and numbers that have none.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

/// A return code of libploop.
///
/// libploop may return any number; those that it names are constants here.
///
/// ```
/// use ploop::Code;
///
/// assert_eq!(Code::LOCK.get(), 23);
/// assert_eq!(Code::LOCK.to_string(), "SYSEXIT_LOCK = 23");
/// assert_eq!(Code::NOSNAP.name(), Some("NOSNAP"));
/// assert_eq!(Code::NOSNAP.kind(), ploop::ErrorKind::NoSnapshot);
/// assert_eq!(Code::from(-1).name(), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Code(i32);

codes! {
    CREAT = 1, "An image file could not be created";
    DEVICE = 2, "A device could not be opened";
    DEVIOC = 3, "The driver refused a request";
    OPEN = 4, "A file could not be opened";
    MALLOC = 5, "Memory could not be allocated";
    READ = 6, "A read failed";
    WRITE = 7, "A write failed";
    RESERVED_8 = 8, "Reserved";
    SYSFS = 9, "The driver's sysfs entries could not be read";
    RESERVED_10 = 10, "Reserved";
    PLOOPFMT = 11, "An image has an unexpected format";
    SYS = 12, "A system call or tool failed";
    PROTOCOL = 13, "The copy stream is malformed";
    LOOP = 14, "The driver's state did not converge";
    FSTAT = 15, "A file could not be examined";
    FSYNC = 16, "Data could not be brought to the disk";
    EBUSY = 17, "Something is in use";
    FLOCK = 18, "A file lock failed";
    FTRUNCATE = 19, "A file could not be truncated";
    FALLOCATE = 20, "Space could not be allocated";
    MOUNT = 21, "The file system could not be mounted";
    UMOUNT = 22, "The file system could not be unmounted";
    LOCK = 23, "The image could not be locked";
    MKFS = 24, "The file system could not be made";
    RESERVED_25 = 25, "Reserved";
    RESIZE_FS = 26, "The file system could not be resized";
    MKDIR = 27, "A directory could not be made";
    RENAME = 28, "A file could not be renamed";
    ABORT = 29, "The operation was aborted";
    RELOC = 30, "Blocks could not be relocated";
    RESERVED_31 = 31, "Reserved";
    RESERVED_32 = 32, "Reserved";
    CHANGE_GPT = 33, "The partition table could not be changed";
    RESERVED_34 = 34, "Reserved";
    UNLINK = 35, "A file could not be removed";
    MKNOD = 36, "A device node could not be made";
    PLOOPINUSE = 37, "The image is in use";
    PARAM = 38, "A parameter is invalid";
    DISKDESCR = 39, "The disk descriptor is missing or invalid";
    DEV_NOT_MOUNTED = 40, "The image is not mounted";
    FSCK = 41, "The file system check found errors it did not mend";
    RESERVED_42 = 42, "Reserved";
    NOSNAP = 43, "The snapshot does not exist";
    NOCBT = 44, "Changed-block tracking is not active (libploop 7 and later)";
    CRYPT = 45, "Encryption failed (libploop 7 and later)";
    UMOUNT_BUSY = 46, "The file system is busy and cannot be unmounted (libploop 7 and later)";
}

impl Code {
    /// The number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }

    /// The kind of an error with this code, where nothing else says more. A code that libploop uses for
    /// several kinds of failure is [`ErrorKind::Other`].
    #[must_use]
    pub const fn kind(self) -> ErrorKind {
        match self {
            Code::DEVICE | Code::DEVIOC | Code::SYSFS => ErrorKind::NoDriver,
            Code::CREAT
            | Code::OPEN
            | Code::READ
            | Code::WRITE
            | Code::FSTAT
            | Code::FSYNC
            | Code::FLOCK
            | Code::FTRUNCATE
            | Code::FALLOCATE
            | Code::MKDIR
            | Code::RENAME
            | Code::UNLINK
            | Code::MKNOD => ErrorKind::Io,
            Code::PLOOPFMT | Code::DISKDESCR | Code::FSCK | Code::PROTOCOL => ErrorKind::Corrupt,
            Code::EBUSY | Code::PLOOPINUSE | Code::UMOUNT | Code::UMOUNT_BUSY => ErrorKind::Busy,
            Code::LOCK => ErrorKind::Locked,
            Code::MKFS | Code::RESIZE_FS | Code::CHANGE_GPT => ErrorKind::Tool,
            Code::PARAM => ErrorKind::InvalidInput,
            Code::DEV_NOT_MOUNTED => ErrorKind::NotMounted,
            Code::NOSNAP => ErrorKind::NoSnapshot,
            Code::NOCBT => ErrorKind::NotTracked,
            Code::CRYPT => ErrorKind::Tool,
            _ => ErrorKind::Other,
        }
    }
}

impl From<i32> for Code {
    fn from(code: i32) -> Code {
        Code(code)
    }
}

impl From<Code> for i32 {
    fn from(code: Code) -> i32 {
        code.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "SYSEXIT_{name} = {}", self.0),
            None => write!(f, "libploop returned {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_number_and_name() {
        let numbers: Vec<i32> = Code::ALL.iter().map(|code| code.get()).collect();
        assert_eq!(numbers, (1..=46).collect::<Vec<_>>());
        for code in Code::ALL {
            let name = code.name().unwrap();
            assert_eq!(code.to_string(), format!("SYSEXIT_{name} = {}", code.get()));
        }
    }

    #[test]
    fn unknown_codes_are_carried_along() {
        for code in [-1, 0, 47, 255, i32::MIN, i32::MAX] {
            assert_eq!(Code(code).name(), None);
            assert_eq!(Code(code).kind(), ErrorKind::Other);
            assert_eq!(Code(code).to_string(), format!("libploop returned {code}"));
        }
    }
}
