//! The size of the disk by the files of the deltas, which the descriptor may contradict.

use std::fs;

use super::{Descriptor, Image};
use crate::image::Header;
use crate::{Error, Guid, ImageMode, Result, Size};

impl Descriptor {
    /// Whether this is the raw base of a raw image.
    pub(crate) fn is_raw_base(&self, guid: Guid) -> bool {
        self.mode == ImageMode::Raw && self.parent(guid).is_none()
    }

    /// The size of the disk as of a snapshot.
    pub(crate) fn size_of(&self, operation: &'static str, image: &Image) -> Result<Size> {
        if self.is_raw_base(image.guid) {
            let len = fs::metadata(&image.file).map(|metadata| metadata.len());
            let len = len.map_err(|error| {
                let what = "the raw base cannot be examined";
                Error::io(operation, what, error).with_path(&image.file)
            })?;
            return Ok(Size::from_bytes(len.next_multiple_of(512)));
        }
        let header = Header::read(&image.file).map_err(|error| error.during(operation))?;
        Ok(header.size)
    }
}
