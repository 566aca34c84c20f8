//! libploop 1.12 to 1.15 (`libploop.so.1`).

use ploop_sys as sys;

use super::Line;
use crate::ffi::text::CText;
use crate::image::descriptor::DescriptorForm;

pub(super) const LINE: Line = Line {
    number: 1,
    descriptor: DescriptorForm::PARALLELS,
    merges_ranges: true,
    copies: true,
    upgrades_v1_at_mount: false,
    compares_replacement: true,
    discards_by_component: true,
    keeps_extensions: false,
};

pub(in crate::ffi) use ploop_sys::{
    ploop_copy_receive as copy_receive, ploop_copy_send as copy_send,
};

pub(in crate::ffi) fn set_fsck(param: &mut sys::ploop_mount_param, fsck: i32) {
    param.fsck = fsck;
}

/// libploop has no such setting in this line: `Feature::NoProbe` says so, and nobody asks for it.
pub(in crate::ffi) fn set_no_probe(_param: &mut sys::ploop_mount_param, _no_probe: bool) {}

/// Merges all from `from` down to its ancestor `to`.
pub(in crate::ffi) fn set_merge_range(
    param: &mut sys::ploop_merge_param,
    from: &CText,
    to: &CText,
) {
    param.guid = from.as_ptr();
    param.guid2 = to.as_ptr();
}

/// libploop has no such setting in this line: `Feature::UmountTimeout` says so, and nobody has one.
pub(in crate::ffi) unsafe fn set_umount_timeout(_di: *mut sys::ploop_disk_images_data, _: i32) {}

/// libploop does not track changes in this line: `Feature::Tracking` says so, and nobody asks for it.
pub(in crate::ffi) unsafe fn drop_cbt(_di: *mut sys::ploop_disk_images_data) -> i32 {
    sys::SYSEXIT_PARAM
}

/// As [`drop_cbt`].
pub(in crate::ffi) fn set_cbt_uuid(_param: &mut sys::ploop_snapshot_param, _id: &CText) {}

/// As [`drop_cbt`].
pub(in crate::ffi) fn set_temporary_cbt_uuid(_param: &mut sys::ploop_tsnapshot_param, _id: &CText) {
}
