//! Encrypted images: the name of the key, encrypting, changing the key, decrypting.

use std::fs;
use std::path::{Path, PathBuf};

use crate::change::{Change, DescriptorWrite};
use crate::ffi::{CText, LockedImage};
use crate::image::Disk;
use crate::temporary_mount::TemporaryMount;
use crate::tools::{require_crypt_helper, require_tools_for_fs};
use crate::{Descriptor, Error, ErrorKind, Feature, Guid, Ploop, Result, kernel, paths};

/// The name of a key and `KEYID=` fit libploop's buffer of 256 bytes, which it does not check.
const MAX_KEY: usize = 249;

/// libploop builds the options of a mount in 1024 bytes.
const MAX_DATA: usize = 900;

/// What [`Ploop::encrypt`] does.
///
/// ```
/// use ploop::EncryptParam;
///
/// let param = EncryptParam::new("7a5e3c1d-backup-key").wipe(true);
/// let back = EncryptParam::decrypt();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct EncryptParam {
    key: Option<String>,
    #[cfg_attr(feature = "serde", serde(default))]
    reencrypt: bool,
    #[cfg_attr(feature = "serde", serde(default))]
    wipe: bool,
    data: Option<String>,
}

impl EncryptParam {
    /// Encrypts an image with the key of this name, or, where it is encrypted already, changes its key to this one.
    /// Which key a name stands for is the business of the helper program.
    pub fn new(key: &str) -> EncryptParam {
        EncryptParam {
            key: Some(key.to_owned()),
            ..EncryptParam::decrypt()
        }
    }

    /// Decrypts an image.
    pub fn decrypt() -> EncryptParam {
        EncryptParam {
            key: None,
            reencrypt: false,
            wipe: false,
            data: None,
        }
    }

    /// Write an encrypted image anew, and do not only change the key of what is written there
    /// (`PLOOP_ENC_REENCRYPT`).
    pub fn reencrypt(mut self, reencrypt: bool) -> EncryptParam {
        self.reencrypt = reencrypt;
        self
    }

    /// Overwrite what is not encrypted, with `shred`: the old base once the encrypted one is in its place; or, where
    /// decrypting fails, what was decrypted so far (`PLOOP_ENC_WIPE`). On flash, and on file systems that do not write
    /// in place, that is no guarantee.
    pub fn wipe(mut self, wipe: bool) -> EncryptParam {
        self.wipe = wipe;
        self
    }

    /// More options for the mounts of both file systems, separated by commas; at most 900 bytes.
    pub fn data(mut self, data: &str) -> EncryptParam {
        self.data = Some(data.to_owned());
        self
    }
}

impl Ploop {
    /// Encrypts an image, changes its key, or decrypts it (`ploop_encrypt_image`).
    ///
    /// To encrypt and to decrypt, libploop makes a new image in the directory `enc` beside the base, with a file system
    /// of its own, copies all files with `rsync`, and puts the new base and descriptor in the place of the old ones. So
    /// the image may not be mounted and may have no snapshots; afterwards it is [expanded](crate::ImageMode::Expanded), of the format that
    /// the driver prefers, with an ext4 in a partition, whatever it was; it needs room for all its files on the host; and
    /// it takes as long as copying them. Changing the key takes a moment, and works on a running image with snapshots.
    ///
    /// Needs the driver, root, libploop's helper program `/usr/libexec/ploop/crypthelper`, `rsync`, `shred` and the tools
    /// of a [creation](Ploop::create). With libploop 7.
    ///
    /// # Errors
    ///
    /// [`Tool`](ErrorKind::Tool) where the helper or a tool is missing, before anything is changed, and with code
    /// [`CRYPT`](crate::Code::CRYPT) where the helper fails; [`InvalidInput`](ErrorKind::InvalidInput) for a name of a
    /// key that libploop could not use, and for decrypting what is not encrypted; [`Busy`](ErrorKind::Busy) while
    /// attached; [`Unsupported`](ErrorKind::Unsupported) for an image with snapshots or with its base in another
    /// directory, and with libploop 1; [`AlreadyExists`](ErrorKind::AlreadyExists) where `enc` is there, or
    /// `<base>.orig`, under which the old base waits to be wiped: libploop would remove either. After an error the
    /// image is as it was. A power cut between the last two renames leaves the new base in its place and the new
    /// descriptor in `enc`: move it to the place of the old one.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::EncryptParam;
    ///
    /// image.encrypt(&EncryptParam::new("key-of-101").wipe(true))?;
    /// assert_eq!(image.descriptor()?.encryption.as_deref(), Some("key-of-101"));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn encrypt(&mut self, param: &EncryptParam) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::ENCRYPT)?;
        let operation = change.operation();
        Feature::Encryption.require(operation, change.path())?;
        let images = change.descriptor.images.iter();
        let guids: Vec<Guid> = images.map(|image| image.guid).collect();
        change.require_of_no_other_image(&guids)?;
        let key = param.key.as_deref().unwrap_or("");
        if param.key.is_some() {
            require_key(&change, key)?;
        }
        let data = (param.data.as_deref())
            .map(|data| CText::new(operation, "mount data", data))
            .transpose()?;
        if param
            .data
            .as_ref()
            .is_some_and(|data| data.len() > MAX_DATA)
        {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!("the mount data is longer than {MAX_DATA} bytes"),
            );
        }
        let is_encrypted = change.descriptor.encryption.is_some();
        if !is_encrypted && param.key.is_none() {
            return change.refuse(ErrorKind::InvalidInput, "the image is not encrypted");
        }
        let writes_anew = !is_encrypted || param.key.is_none() || param.reencrypt;
        require_crypt_helper(operation, change.path())?;
        let staging = match writes_anew {
            true => Some(NewImage::check(&change, param)?),
            false => None,
        };
        kernel::require_driver(operation, change.path())?;
        change.require_attachable(change.descriptor.top)?;
        let c_key = CText::new(operation, "name of the key", key)?;
        let limit = change.descriptor.max_delta_size;
        let leftover = TemporaryMount::beside(&change.descriptor);
        let write = match writes_anew {
            true => DescriptorWrite::Maybe,
            false => DescriptorWrite::Staged,
        };
        let result = change.run(write, |locked| {
            let locked = locked.encrypt(&c_key, data.as_ref(), param.reencrypt, param.wipe)?;
            let now = locked.descriptor()?;
            require_stored(&locked, &now, param.key.as_deref())
        });
        if result.is_err() {
            leftover.remove();
        }
        result?;
        if let Some(staging) = staging {
            staging.remove();
            if limit.is_some() {
                // The new descriptor has none.
                self.set_max_delta_size(limit)?;
            }
        }
        Ok(())
    }

    /// Sets the name of an encrypted image's key in the descriptor (`ploop_set_encryption_keyid`), where the key has got
    /// another name: it encrypts nothing. Needs no driver.
    ///
    /// libploop would also write the name into the descriptor of an image that is not encrypted, and could not mount it
    /// any more. Here the image must have the name of a key already, or its disk must begin as one encrypted with LUKS
    /// does: then a program that does not know of keys, libploop 1 for example, has dropped the name.
    ///
    /// Since libploop 7.0.40.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an image that is not encrypted, and for a name that libploop could
    /// not use; [`Unsupported`](ErrorKind::Unsupported) with libploop 1. After an error the descriptor is as it was.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// image.set_encryption_key("new-name-of-the-key")?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn set_encryption_key(&mut self, key: &str) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::SET_KEY)?;
        let operation = change.operation();
        Feature::Encryption.require(operation, change.path())?;
        require_key(&change, key)?;
        if change.descriptor.encryption.is_none() && !begins_with_luks(change.path()) {
            return change.refuse(
                ErrorKind::InvalidInput,
                "the image is not encrypted, and with the name of a key it could not be mounted any more; Ploop::encrypt encrypts it",
            );
        }
        let c_key = CText::new(operation, "name of the key", key)?;
        change.run(DescriptorWrite::Direct, |locked| {
            let locked = locked.set_encryption_key(&c_key)?;
            let now = locked.descriptor()?;
            require_stored(&locked, &now, Some(key))
        })
    }
}

/// libploop also reports success where it could not write the descriptor (25).
pub(crate) fn require_stored(
    locked: &LockedImage<'_>,
    now: &Descriptor,
    key: Option<&str>,
) -> Result<()> {
    if now.encryption.as_deref() == key {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Io,
        locked.operation(),
        "libploop could not write the descriptor and did not say so: it does not have the name of the key",
    )
    .with_path(locked.path()))
}

/// That libploop can store the name of a key, and hand it to its helper.
fn require_key(change: &Change<'_>, key: &str) -> Result<()> {
    match fault_of_key(key) {
        Some(fault) => change.refuse(ErrorKind::InvalidInput, fault),
        None => Ok(()),
    }
}

/// Why a text cannot be the name of a key.
pub(crate) fn fault_of_key(key: &str) -> Option<String> {
    let fault = if key.is_empty() {
        "the name of the key is empty".to_owned()
    } else if key.len() > MAX_KEY {
        format!(
            "the name of the key is {} bytes long; libploop has room for {MAX_KEY}",
            key.len()
        )
    } else if key.trim() != key || key.chars().any(char::is_control) {
        "the name of the key begins or ends with a space, or has a control character, and would be read back as another one".to_owned()
    } else if key.parse::<Guid>().is_ok_and(|guid| guid == Guid::NONE) {
        "the GUID of all zeroes stands for no key".to_owned()
    } else {
        return None;
    };
    Some(fault)
}

/// Whether the disk begins with the header of LUKS, in clear text whatever the key is.
fn begins_with_luks(descriptor: &Path) -> bool {
    let mut magic = [0; 6];
    Disk::open(descriptor).is_ok_and(|disk| disk.read_at(&mut magic, 0).is_ok_and(|len| len == 6))
        && magic == *b"LUKS\xba\xbe"
}

/// The directory in which libploop makes the new image, and removes after a failure, with all that is in it.
struct NewImage(PathBuf);

impl NewImage {
    /// The checks of an image that is to be written anew.
    fn check(change: &Change<'_>, param: &EncryptParam) -> Result<NewImage> {
        let operation = change.operation();
        let descriptor = &change.descriptor;
        if let Some(device) = change.any_device() {
            return change.refuse_attached(device, "its files are to be copied");
        }
        let ([image], false) = (&descriptor.images[..], descriptor.snapshots.len() > 1) else {
            return change.refuse(
                ErrorKind::Unsupported,
                "the image has snapshots, whose deltas libploop would leave behind unencrypted; merge or delete them first",
            );
        };
        let home = paths::directory_of(change.path());
        let directory = paths::directory_of(&image.file);
        let is_link = fs::symlink_metadata(&image.file).is_ok_and(|it| it.is_symlink());
        if is_link || fs::canonicalize(directory).ok().as_deref() != Some(home) {
            return change.refuse(
                ErrorKind::Unsupported,
                "the base is a link or in another directory, and the new descriptor would not name it",
            );
        }
        let enc = directory.join("enc");
        let mut taken = vec![enc.clone()];
        if param.wipe && descriptor.encryption.is_none() {
            let mut name = image.file.clone().into_os_string();
            name.push(".orig");
            taken.push(name.into());
        }
        for path in taken {
            if fs::symlink_metadata(&path).is_ok() {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    operation,
                    "libploop makes the new image, or keeps the old one, under this name, and would remove what is here; move it away",
                )
                .with_path(path));
            }
        }
        kernel::require_tools_or_driver(|| {
            require_tools_for_fs(operation)?;
            change.require_tools(&["rsync", "rm"])?;
            match param.wipe {
                true => change.require_tools(&["shred"]),
                false => Ok(()),
            }
        })?;
        Ok(NewImage(enc))
    }

    /// Removes what libploop leaves in it after a success: a lock, and the statistics of the file system.
    fn remove(self) {
        let _ = fs::remove_dir_all(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keys_fit_the_descriptor_and_the_helper() {
        let long = "x".repeat(MAX_KEY);
        for good in [
            "a",
            "key of 101",
            "{5fbaabe3-6958-40ff-92a7-860e329aab41}",
            "ключ",
            &long,
        ] {
            assert_eq!(fault_of_key(good), None, "{good}");
        }
        let longer = "x".repeat(MAX_KEY + 1);
        let none = Guid::NONE.to_string();
        for bad in ["", " a", "a\n", "a\0b", "\u{7f}", &longer, &none] {
            assert!(fault_of_key(bad).is_some(), "{bad:?}");
        }
    }
}
