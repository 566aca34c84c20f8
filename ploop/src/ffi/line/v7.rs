//! libploop 7.0.95 and later (`libploop.so.7`), the line of Virtuozzo 7.

use ploop_sys as sys;

use super::Line;
use crate::ffi::text::CText;
use crate::image::descriptor::DescriptorForm;

pub(super) const LINE: Line = Line {
    number: 7,
    descriptor: DescriptorForm {
        root: "Virtuozzo_disk_image",
        has_key_and_volume: true,
        has_parent_names: true,
    },
    merges_ranges: false,
    copies: false,
    upgrades_v1_at_mount: true,
    compares_replacement: false,
    discards_by_component: false,
    keeps_extensions: true,
};

#[allow(deprecated)]
pub(in crate::ffi) use ploop_sys::{
    ploop_copy_receive as copy_receive, ploop_copy_send as copy_send,
};

pub(in crate::ffi) fn set_fsck(param: &mut sys::ploop_mount_param, fsck: i32) {
    param.__bindgen_anon_1.fsck_flags = fsck;
}

pub(in crate::ffi) fn set_no_probe(param: &mut sys::ploop_mount_param, no_probe: bool) {
    param.noprobe = no_probe.into();
}

/// There are no ranges in this line: `LINE.merges_ranges` says so, and nobody asks for one.
pub(in crate::ffi) fn set_merge_range(
    param: &mut sys::ploop_merge_param,
    from: &CText,
    _to: &CText,
) {
    param.guid = from.as_ptr();
}

/// # Safety
///
/// The handle is live, and nobody else uses it.
pub(in crate::ffi) unsafe fn set_umount_timeout(
    di: *mut sys::ploop_disk_images_data,
    seconds: i32,
) {
    // SAFETY: as this function; C stores the number in the handle.
    unsafe { sys::ploop_set_umount_timeout(di, seconds) }
}

/// # Safety
///
/// The handle is live, and nobody else uses it.
pub(in crate::ffi) unsafe fn drop_cbt(di: *mut sys::ploop_disk_images_data) -> i32 {
    // SAFETY: as this function.
    unsafe { sys::ploop_drop_cbt(di) }
}

pub(in crate::ffi) fn set_cbt_uuid(param: &mut sys::ploop_snapshot_param, id: &CText) {
    param.cbt_uuid = id.as_mut_ptr();
}

pub(in crate::ffi) fn set_temporary_cbt_uuid(param: &mut sys::ploop_tsnapshot_param, id: &CText) {
    param.cbt_uuid = id.as_mut_ptr();
}
