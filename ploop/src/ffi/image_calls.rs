//! The C functions that take libploop's handle of an image: `ploop_mount_image`, `ploop_umount_image`,
//! `ploop_resize_image`, `ploop_create_snapshot`, `ploop_create_temporary_snapshot`, `ploop_switch_snapshot_ex`,
//! `ploop_delete_snapshot`, `ploop_merge_snapshot`, `ploop_replace_image`, `ploop_convert_image` and
//! `ploop_set_max_delta_size`. `ploop_discard` is in `discard_calls`.

use std::path::PathBuf;
use std::ptr;

use ploop_sys as sys;

use super::call::Call;
use super::call_result::CallResult;
use super::calls_without_handle::c_mode;
use super::fd_table::FdChannel;
use super::line;
use super::locked_image::LockedImage;
use super::text::{CPath, CText, Param, device_name, or_null, path_or_null};
use crate::{Error, ImageMode, Result};

/// The parameters of `ploop_mount_image`.
#[derive(Default)]
pub(crate) struct MountArgs<'a> {
    pub(crate) target: Option<&'a CPath>,
    pub(crate) guid: Option<&'a CText>,
    pub(crate) data: Option<&'a CText>,
    pub(crate) read_only: bool,
    pub(crate) flags: i32,
    pub(crate) quota: bool,
    /// 0 for no check. More than [`FSCK_PREEN`](super::FSCK_PREEN) and `no_probe` only where the library has them.
    pub(crate) fsck: i32,
    pub(crate) no_probe: bool,
    /// Mount once without `guid`, which makes libploop rewrite the deltas, when it was seen that this image can be
    /// mounted.
    pub(crate) upgrade_format: bool,
}

/// How to attach an image for a call of libploop that would attach it by itself, and rewrite it from format v1 to v2.
/// It leaves the deltas as they are where it is told which one to attach.
pub(crate) struct AttachFirst {
    pub(crate) top: CText,
    /// For a call that does not mount the file system of a device that it finds.
    pub(crate) target: Option<CPath>,
}

/// The result of `ploop_mount_image`.
pub(crate) struct MountResult {
    pub(crate) device: PathBuf,
    pub(crate) fsck: i32,
}

/// The delta that `ploop_replace_image` replaces.
pub(crate) enum ReplaceWhich<'a> {
    Guid(&'a CText),
    Level(i32),
}

impl LockedImage<'_> {
    pub(crate) const MOUNT: Call = Call::new("mount")
        .changes()
        .finds_device()
        .attaches()
        .by_component()
        .any_delta()
        .merges_temporary()
        .knows_parents();
    pub(crate) const UMOUNT: Call = Call::new("unmount")
        .changes()
        .finds_device()
        .by_component()
        .detaches()
        .names_users()
        .knows_parents();
    pub(crate) const RESIZE: Call = Call::new("resize")
        .changes()
        .finds_device()
        .attaches()
        .names_users()
        .knows_parents();
    pub(crate) const SNAPSHOT: Call = Call::new("create a snapshot of")
        .changes()
        .brief()
        .finds_device()
        .merges_temporary()
        .knows_parents();
    pub(crate) const TEMPORARY_SNAPSHOT: Call = Call::new("create a temporary snapshot of")
        .changes()
        .finds_device()
        .merges_temporary();
    pub(crate) const SWITCH: Call = Call::new("switch to a snapshot of")
        .changes()
        .brief()
        .finds_device()
        .knows_parents();
    pub(crate) const DELETE: Call = Call::new("delete a snapshot of")
        .changes()
        .brief()
        .finds_device()
        .merges_temporary()
        .knows_parents();
    pub(crate) const MERGE: Call = Call::new("merge").changes().finds_device().knows_parents();
    pub(crate) const REPLACE: Call = Call::new("replace").changes().finds_device().brief();
    pub(crate) const CONVERT: Call = Self::CONVERT_NEW.finds_device();
    /// For an image that is being made: no device can have it, so nobody has to be root to look for one.
    pub(crate) const CONVERT_NEW: Call = Call::new("convert").changes();
    pub(crate) const IS_MOUNTED: Call = Call::new("look for a device of");
    pub(crate) const DEVICES: Call = Call::new("list the devices of");
    pub(crate) const DEVICE: Call = Call::new("find the device of").looks().by_component();
    pub(crate) const IMAGE_INFO: Call = Call::new("get image info of").looks();
    pub(crate) const TOP_DELTA_FILE: Call = Call::new("get the top delta file of").looks();
    pub(crate) const BASE_DELTA_FILE: Call = Call::new("get the base delta file of").looks();
    pub(crate) const MAX_DELTA_SIZE: Call = Call::new("set the maximum delta size of")
        .changes()
        .brief()
        .finds_device()
        .knows_parents();
    pub(crate) const USED_BITMAP: Call = Call::new("read the used bitmap of").looks();
    pub(crate) const TRACKING_BITMAP: Call = Call::new("read the tracking bitmap of").looks();
    pub(crate) const ENCRYPT: Call = Call::new("encrypt").changes().finds_device().names_users();
    pub(crate) const SET_KEY: Call = Call::new("set the encryption key of").changes().brief();
    pub(crate) const DROP_TRACKING: Call =
        Call::new("drop the tracking of").changes().finds_device();
    pub(crate) const CLONE: Call = Call::new("clone descriptor").looks();
    pub(crate) const DESCRIPTOR: Call = Call::new("read descriptor").looks();

    pub(crate) fn mount(self, args: &MountArgs<'_>) -> Result<MountResult> {
        let mut param = Param(sys::ploop_mount_param {
            ro: args.read_only.into(),
            flags: args.flags,
            target: path_or_null(args.target),
            guid: or_null(args.guid),
            quota: args.quota.into(),
            mount_data: or_null(args.data),
            ..Default::default()
        });
        line::set_fsck(&mut param.0, args.fsck);
        line::set_no_probe(&mut param.0, args.no_probe);
        let result = self.call(|di| {
            // SAFETY: the handle is live and used by this thread only; every pointer in `param` is NULL or
            // a terminated text that outlives the call, and C only reads what they point to.
            let mut mount = || unsafe { sys::ploop_mount_image(di, param.as_mut_ptr()) };
            let code = mount();
            if code != 0 || !args.upgrade_format {
                return code;
            }
            // SAFETY: the handle is live and used by this thread only.
            let code = unsafe { sys::ploop_umount_image(di) };
            if code != 0 {
                return code;
            }
            // It was checked a moment ago.
            line::set_fsck(&mut param.0, 0);
            param.0.guid = ptr::null_mut();
            // SAFETY: as above.
            unsafe { sys::ploop_mount_image(di, param.as_mut_ptr()) }
        })?;
        result.done(self.path())?;
        Ok(MountResult {
            device: device_name(&param.0.device),
            fsck: param.0.fsck_rc,
        })
    }

    pub(crate) fn umount(self) -> Result<()> {
        // SAFETY: the handle is live and used by this thread only.
        let result = self.call(|di| unsafe { sys::ploop_umount_image(di) })?;
        result.done(self.path())
    }

    /// [`call`](LockedImage::call), while the image is attached.
    pub(super) fn call_attached(
        &self,
        attach: Option<&AttachFirst>,
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32 + Send,
    ) -> Result<CallResult> {
        let Some(AttachFirst { top, target }) = attach else {
            return self.call(c);
        };
        let mut param = Param(sys::ploop_mount_param {
            guid: top.as_mut_ptr(),
            target: path_or_null(target.as_ref()),
            ..Default::default()
        });
        self.call(|di| {
            // SAFETY: as in `mount`.
            let code = unsafe { sys::ploop_mount_image(di, param.as_mut_ptr()) };
            if code != 0 {
                return code;
            }
            let code = c(di);
            // SAFETY: the handle is live and used by this thread only.
            let detached = unsafe { sys::ploop_umount_image(di) };
            if code == 0 { detached } else { code }
        })
    }

    /// `size` in sectors, 0 for as small as possible.
    pub(crate) fn resize(
        self,
        size: u64,
        offline: bool,
        mount_namespace: i32,
        attach: Option<&AttachFirst>,
    ) -> Result<()> {
        let mut param = Param(sys::ploop_resize_param {
            size,
            offline_resize: offline.into(),
            mntns_pid: mount_namespace,
            ..Default::default()
        });
        // SAFETY: the handle is live and used by this thread only; `param` holds numbers.
        let result = self.call_attached(attach, |di| unsafe {
            sys::ploop_resize_image(di, param.as_mut_ptr())
        })?;
        result.done(self.path())
    }

    /// `tracking` only where `Feature::Tracking` is there.
    pub(crate) fn create_snapshot(
        self,
        guid: &CText,
        directory: Option<&CPath>,
        tracking: Option<&CText>,
    ) -> Result<()> {
        let mut param = Param(sys::ploop_snapshot_param {
            guid: guid.as_mut_ptr(),
            snap_dir: path_or_null(directory),
            ..Default::default()
        });
        if let Some(id) = tracking {
            line::set_cbt_uuid(&mut param.0, id);
        }
        // SAFETY: the handle is live and used by this thread only; the texts are terminated, outlive
        // the call, do not come from the handle (hazard 1), and are only read.
        let result =
            self.call(|di| unsafe { sys::ploop_create_snapshot(di, param.as_mut_ptr()) })?;
        result.done(self.path())
    }

    /// Returns the device, and with `hold` the file descriptor that keeps the snapshot.
    pub(crate) fn create_temporary_snapshot(
        self,
        guid: &CText,
        component: &CText,
        target: Option<&CPath>,
        directory: Option<&CPath>,
        tracking: Option<&CText>,
        hold: bool,
    ) -> Result<(PathBuf, Option<std::os::fd::OwnedFd>)> {
        use std::os::fd::{AsFd, FromRawFd, OwnedFd};

        let operation = self.operation();
        let no_holder = |error| {
            Error::io(
                operation,
                "the snapshot's holder cannot be handed over",
                error,
            )
        };
        let holder_channel = FdChannel::new().map_err(no_holder)?;
        let mut holder = -1;
        let mut param = Param(sys::ploop_tsnapshot_param {
            guid: guid.as_mut_ptr(),
            component_name: component.as_mut_ptr(),
            target: path_or_null(target),
            snap_dir: path_or_null(directory),
            ..Default::default()
        });
        if let Some(id) = tracking {
            line::set_temporary_cbt_uuid(&mut param.0, id);
        }
        // SAFETY: the handle is live and used by one thread only; the texts are terminated, outlive the
        // call and are only read; `holder_out` is NULL or points to an `int` that outlives it. On
        // success C has opened the holder for its caller, which owns it; a copy of it is sent to the program.
        let result = self.call_keeping(&[holder_channel.number()], |di| unsafe {
            let holder_out = if hold {
                &raw mut holder
            } else {
                ptr::null_mut()
            };
            let code = sys::ploop_create_temporary_snapshot(di, param.as_mut_ptr(), holder_out);
            if code == 0 && !holder_out.is_null() && *holder_out >= 0 {
                // The receiver reports a failure.
                let _ = holder_channel.send(OwnedFd::from_raw_fd(*holder_out).as_fd());
            }
            code
        })?;
        result.done(self.path())?;
        let holder = if hold {
            Some(holder_channel.receive().map_err(no_holder)?)
        } else {
            None
        };
        Ok((device_name(&param.0.device), holder))
    }

    /// `keep_as` is the new GUID of the old top delta, if the flags say that it is kept. Returns the locked image, also
    /// after a failure, so that the result can be checked.
    pub(crate) fn switch_snapshot(
        self,
        guid: &CText,
        keep_as: Option<&CText>,
        flags: i32,
    ) -> (Self, Result<()>) {
        let mut param = Param(sys::ploop_snapshot_switch_param {
            guid: guid.as_ptr(),
            guid_old: or_null(keep_as),
            flags,
            ..Default::default()
        });
        // SAFETY: the handle is live and used by this thread only; the texts are terminated, outlive
        // the call, do not come from the handle (hazard 1), and are only read.
        let result =
            self.call(|di| unsafe { sys::ploop_switch_snapshot_ex(di, param.as_mut_ptr()) });
        let result = result.and_then(|result| result.done(self.path()));
        (self, result)
    }

    /// Returns the locked image, also after a failure, so that the result can be checked.
    pub(crate) fn delete_snapshot(self, guid: &CText) -> (Self, Result<()>) {
        // SAFETY: the handle is live and used by this thread only; the text is terminated, outlives
        // the call, does not come from the handle (hazard 1), and is only read.
        let result = self.call(|di| unsafe { sys::ploop_delete_snapshot(di, guid.as_ptr()) });
        let result = result.and_then(|result| result.done(self.path()));
        (self, result)
    }

    /// Merges the deltas of a chain, the lowest first.
    pub(crate) fn merge(self, chain: &[CText], new_delta: Option<&CPath>) -> Result<()> {
        let mut params = line::merge_params(chain, new_delta);
        let result = self.call(|di| {
            for param in &mut params {
                // SAFETY: the handle is live and used by this thread only; the texts are NULL or terminated,
                // outlive the call, do not come from the handle (hazard 1), and are only read.
                let code = unsafe { sys::ploop_merge_snapshot(di, param.as_mut_ptr()) };
                if code != 0 {
                    return code;
                }
            }
            0
        })?;
        result.done(self.path())
    }

    /// Returns the locked image, so that the result can be checked.
    pub(crate) fn replace(
        self,
        file: &CPath,
        which: &ReplaceWhich<'_>,
        flags: i32,
    ) -> Result<Self> {
        let mut param = Param(sys::ploop_replace_param {
            file: file.as_mut_ptr(),
            flags,
            ..Default::default()
        });
        match which {
            ReplaceWhich::Guid(guid) => param.0.guid = guid.as_mut_ptr(),
            ReplaceWhich::Level(level) => param.0.level = *level,
        }
        // SAFETY: the handle is live and used by this thread only; the texts are terminated, outlive
        // the call, do not come from the handle (hazard 1), and are only read.
        let result = self.call(|di| unsafe { sys::ploop_replace_image(di, param.as_mut_ptr()) })?;
        result.done(self.path())?;
        Ok(self)
    }

    /// Only where `Feature::Encryption` is there. Returns the locked image, so that the result can be checked.
    pub(crate) fn encrypt(
        self,
        key: &CText,
        mount_options: Option<&CText>,
        reencrypt: bool,
        wipe: bool,
    ) -> Result<Self> {
        let flags = i32::from(reencrypt) | i32::from(wipe) << 1;
        // SAFETY: the handle is live and used by this thread only; the texts are NULL or terminated, outlive the call, do
        // not come from the handle (hazard 1), and are only read.
        let result =
            self.call(|di| unsafe { line::encrypt_image(di, key, mount_options, flags) })?;
        result.done(self.path())?;
        Ok(self)
    }

    /// Only where `Feature::Encryption` is there. Returns the locked image, so that the result can be checked.
    pub(crate) fn set_encryption_key(self, key: &CText) -> Result<Self> {
        // SAFETY: the handle is live and used by this thread only; the text is terminated, and copied by C.
        let result = self.call(|di| unsafe { line::set_encryption_keyid(di, key) })?;
        result.done(self.path())?;
        Ok(self)
    }

    /// Of a device. Only where `Feature::Tracking` is there.
    pub(crate) fn drop_tracking(self) -> Result<()> {
        // SAFETY: the handle is live and used by this thread only.
        let result = self.call(|di| unsafe { line::drop_cbt(di) })?;
        result.done(self.path())
    }

    pub(crate) fn convert(self, mode: ImageMode) -> Result<()> {
        // SAFETY: the handle is live and used by this thread only.
        let result = self.call(|di| unsafe { sys::ploop_convert_image(di, c_mode(mode), 0) })?;
        result.done(self.path())
    }

    /// `sectors` is 0 for no limit. Returns the locked image, so that the result can be checked.
    pub(crate) fn set_max_delta_size(self, sectors: u64) -> Result<Self> {
        // SAFETY: the handle is live and used by this thread only.
        let result = self.call(|di| unsafe { sys::ploop_set_max_delta_size(di, sectors) })?;
        result.done(self.path())?;
        Ok(self)
    }
}
