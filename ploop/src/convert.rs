//! Changing how an image stores its clusters.

use std::fs;

use crate::change::{Change, DescriptorWrite};
use crate::ffi::{self, Call, LockedImage};
use crate::image::preallocate;
use crate::{Error, ErrorKind, ImageMode, Ploop, Result, paths};

impl Ploop {
    /// Converts the base of an image (`ploop_convert_image`).
    ///
    /// * To [`Preallocated`](ImageMode::Preallocated): allocates every cluster of the base.
    /// * To [`Raw`](ImageMode::Raw): writes the base anew as a plain disk image; deltas above stay
    ///   what they are. Needs room for the whole disk beside the old base while it works.
    /// * From preallocated to [`Expanded`](ImageMode::Expanded): changes the descriptor alone.
    ///
    /// Needs root and no driver; the image may not be attached. Takes as long as reading and writing the base, and no time
    /// where the image has this mode already.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) from raw, [`Busy`](ErrorKind::Busy) while attached,
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where libploop's temporary file `<base>.tmp` is
    /// there. After an error the image is as it was, possibly with more clusters allocated.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::ImageMode;
    ///
    /// image.convert(ImageMode::Preallocated)?;
    /// assert_eq!(image.descriptor()?.mode, ImageMode::Preallocated);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn convert(&mut self, mode: ImageMode) -> Result<()> {
        convert(&self.image, &LockedImage::CONVERT, mode)
    }
}

pub(crate) fn convert(
    image: &ffi::ImageHandle,
    call: &'static Call,
    mode: ImageMode,
) -> Result<()> {
    let change = Change::begin(image, call)?;
    if change.descriptor.mode == mode {
        return Ok(());
    }
    if change.descriptor.mode == ImageMode::Raw {
        return change.refuse(
            ErrorKind::Unsupported,
            format!("libploop cannot convert a raw image to {mode}"),
        );
    }
    let Some(base) = change.descriptor.base() else {
        return change.refuse(ErrorKind::Corrupt, "the descriptor names no base");
    };
    change.require_of_no_other_image(&[base.guid])?;
    change.require_sound_and_whole([base])?;
    let temporary = paths::staged(&base.file);
    if mode == ImageMode::Raw && fs::symlink_metadata(&temporary).is_ok() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            change.operation(),
            "libploop writes the new base under this name, and removes it when that fails; move it away",
        )
        .with_path(temporary));
    }
    // libploop does not look.
    if call.finds_device {
        if let Some(device) = change.any_device() {
            return change.refuse_attached(device, "it uses the deltas that are to be converted");
        }
    }
    if mode == ImageMode::Preallocated {
        preallocate(&base.file, false).map_err(|error| error.during(change.operation()))?;
    }
    change.run(DescriptorWrite::Staged, |locked| locked.convert(mode))
}
