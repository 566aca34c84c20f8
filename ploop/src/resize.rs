//! Changing the size of an image and its file system.

use std::path::PathBuf;

use crate::change::{Change, DescriptorWrite};
use crate::durability::sync_files;
use crate::ffi::LockedImage;
use crate::temporary_mount::TemporaryMount;
use crate::{ErrorKind, FsType, ImageMode, Ploop, Result, Size, kernel, tools};

/// Whether [`Ploop::resize`] works on the mounted file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ResizeMode {
    /// On the mounted file system, or one that is mounted for the purpose. Shrinking inflates the
    /// balloon: the file system shows less space, the image can be compacted, and the device keeps
    /// its size.
    Online,
    /// On a file system that is not mounted. Shrinking shrinks the file system itself.
    Offline,
}

/// What [`Ploop::resize_with`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct ResizeParam {
    /// `null` is as small as possible. A missing size is an error.
    #[cfg_attr(
        feature = "serde",
        serde(deserialize_with = "serde::Deserialize::deserialize")
    )]
    size: Option<Size>,
    mode: ResizeMode,
    mount_namespace: Option<u32>,
}

impl ResizeParam {
    /// To this size, rounded up to a whole cluster.
    pub fn to(size: Size, mode: ResizeMode) -> ResizeParam {
        ResizeParam {
            size: Some(size),
            mode,
            mount_namespace: None,
        }
    }

    /// As small as the data allows.
    pub fn to_minimum(mode: ResizeMode) -> ResizeParam {
        ResizeParam {
            size: None,
            mode,
            mount_namespace: None,
        }
    }

    /// The process in whose mount namespace the image is mounted.
    pub fn mount_namespace(mut self, pid: u32) -> ResizeParam {
        self.mount_namespace = Some(pid);
        self
    }
}

impl Ploop {
    /// Grows or shrinks the image with its file system (`ploop_resize_image`). See
    /// [`resize_with`](Ploop::resize_with).
    ///
    /// # Errors
    ///
    /// As [`resize_with`](Ploop::resize_with).
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::{ResizeMode, Size};
    ///
    /// image.resize(Size::from_gib(20), ResizeMode::Online)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn resize(&mut self, size: Size, mode: ResizeMode) -> Result<()> {
        self.resize_with(&ResizeParam::to(size, mode))
    }

    /// Grows or shrinks the image with its file system (`ploop_resize_image`).
    ///
    /// Needs the driver, root, and the tools `resize2fs`, `tune2fs`, `dumpe2fs` and `fsck.ext4`. An image that is not
    /// mounted is mounted beside its base meanwhile. Takes as long as `resize2fs` and, for shrinking, as long as
    /// allocating the space that is given up.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a size of four clusters or less and one above the format's
    /// maximum, [`Busy`](ErrorKind::Busy) for an offline resize of a mounted image and while the balloon is in use,
    /// [`Unsupported`](ErrorKind::Unsupported) for shrinking a raw image without snapshots, and for a file system
    /// that is mounted without a balloon, [`NoDriver`](ErrorKind::NoDriver), [`Tool`](ErrorKind::Tool) where one is
    /// missing. Nothing was done then. Where the data does not fit: [`InvalidInput`](ErrorKind::InvalidInput) online,
    /// [`Tool`](ErrorKind::Tool) with the code [`RESIZE_FS`](crate::Code::RESIZE_FS) offline, and
    /// [`NoSpace`](ErrorKind::NoSpace) where there is nothing left to take. After such an error the data is whole. The
    /// size may have changed in part; the same call continues from there.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::{ResizeMode, ResizeParam};
    ///
    /// image.resize_with(&ResizeParam::to_minimum(ResizeMode::Offline))?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn resize_with(&mut self, param: &ResizeParam) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::RESIZE)?;
        let descriptor = &change.descriptor;
        let cluster = Size::from(descriptor.cluster);
        if let Some(size) = param.size {
            if size.bytes() <= 4 * cluster.bytes() {
                return change.refuse(
                    ErrorKind::InvalidInput,
                    format!("the size {size} must be more than four clusters of {cluster}; use ResizeParam::to_minimum for as small as possible"),
                );
            }
            let max = kernel::max_size_of(
                crate::FormatVersion::V2,
                descriptor.cluster,
                Some(FsType::Ext4),
            );
            if size > max {
                return change.refuse(
                    ErrorKind::InvalidInput,
                    format!("the size {size} is above {max}, the maximum for an ext4 file system"),
                );
            }
        }
        let mount_namespace = match param.mount_namespace.map(i32::try_from) {
            None => 0,
            Some(Ok(pid)) if pid > 0 => pid,
            Some(_) => {
                return change.refuse(
                    ErrorKind::InvalidInput,
                    "the mount namespace is not named by a process",
                );
            }
        };
        change.require_of_no_other_image(&[change.descriptor.top])?;
        change.require_attachable(descriptor.top)?;
        kernel::require_tools_or_driver(|| {
            let tools: &[&str] = &["resize2fs", "tune2fs", "dumpe2fs", "fsck.ext4"];
            change.require_tools(&[tools, tools::to_partition()].concat())
        })?;
        let offline = param.mode == ResizeMode::Offline;
        let shrinks = param.size.is_none_or(|size| size <= descriptor.size);
        if descriptor.mode == ImageMode::Raw && descriptor.images.len() == 1 && shrinks {
            // A17: offline, the partition comes out a cluster shorter than the file system in it.
            return change.refuse(
                ErrorKind::Unsupported,
                "a raw image cannot be shrunk: the driver has no balloon for it, and libploop would cut off the end of its file system; take a snapshot first, and shrink it online",
            );
        }
        // libploop would ignore the word and resize online.
        if offline {
            if let Some(device) = change.any_device() {
                return change
                    .refuse_while_attached(device, "use ResizeMode::Online, or unmount it");
            }
        }
        let leftover = TemporaryMount::beside(&change.descriptor);
        let attach = change.attach_first(self.component());
        let sectors = param.size.map_or(0, Size::sectors);
        let operation = change.operation();
        let written = change
            .descriptor
            .top_image()
            .map(|image| image.file.clone());
        let result = change.run(DescriptorWrite::Maybe, |locked| {
            locked.resize(sectors, offline, mount_namespace, attach.as_ref())
        });
        match &result {
            Ok(()) => {
                // Shrinking changes what is in it alone, and not the descriptor.
                let files = written.iter().map(PathBuf::as_path);
                sync_files(operation, files)?;
            }
            Err(_) => leftover.remove(),
        }
        result
    }
}
