//! libploop 1.12 to 1.15 (`libploop.so.1`).

use ploop_sys as sys;

use super::{GetPart, Line, SuspendDevice};
use crate::ffi::text::{CPath, CText, Param, or_null, path_or_null};
use crate::image::descriptor::DescriptorForm;

pub(super) const LINE: Line = Line {
    number: 1,
    descriptor: DescriptorForm::PARALLELS,
    misplaces_v1_clusters: false,
    marks_before_merging: false,
    copies: true,
    upgrades_v1_at_mount: false,
    aligns_partitions: false,
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

/// libploop has no such function in this line: it does not rewrite images, so nobody calls it.
pub(in crate::ffi) unsafe fn init_image(
    _di: *mut sys::ploop_disk_images_data,
    _param: *mut sys::ploop_create_param,
) -> i32 {
    sys::SYSEXIT_PARAM
}

/// libploop has no such function in this line: `Feature::Init` says so, and nobody calls it.
pub(in crate::ffi) unsafe fn init_device(
    _device: &CText,
    _param: *mut sys::ploop_create_param,
) -> i32 {
    sys::SYSEXIT_PARAM
}

/// The parameters of the calls, one after the other, that merge a chain of deltas, the lowest first.
pub(in crate::ffi) fn merge_params(
    chain: &[CText],
    new_delta: Option<&CPath>,
) -> Vec<Param<sys::ploop_merge_param>> {
    let [lowest, .., highest] = chain else {
        return Vec::new();
    };
    // With a new delta and one end alone C crashes (3).
    let is_range = chain.len() > 2 || new_delta.is_some();
    vec![Param(sys::ploop_merge_param {
        guid: highest.as_ptr(),
        guid2: or_null(is_range.then_some(lowest)),
        new_delta: path_or_null(new_delta),
        ..Default::default()
    })]
}

/// libploop has no such setting in this line: `Feature::UmountTimeout` says so, and nobody has one.
pub(in crate::ffi) unsafe fn set_umount_timeout(_di: *mut sys::ploop_disk_images_data, _: i32) {}

/// libploop does not track changes in this line: `Feature::Tracking` says so, and nobody asks for it.
pub(in crate::ffi) unsafe fn drop_cbt(_di: *mut sys::ploop_disk_images_data) -> i32 {
    sys::SYSEXIT_PARAM
}

/// libploop suspends no devices in this line: `Feature::Suspend` says so, and nobody asks for it.
pub(in crate::ffi) fn suspend_device(_suspends: bool) -> Option<SuspendDevice> {
    None
}

/// libploop has no such function in this line, and no encryption.
pub(in crate::ffi) fn get_part() -> Option<GetPart> {
    None
}

/// As [`drop_cbt`].
pub(in crate::ffi) fn set_cbt_uuid(_param: &mut sys::ploop_snapshot_param, _id: &CText) {}

/// As [`drop_cbt`].
pub(in crate::ffi) fn set_temporary_cbt_uuid(_param: &mut sys::ploop_tsnapshot_param, _id: &CText) {
}

/// libploop does not encrypt in this line: `Feature::Encryption` says so, and nobody asks for it.
pub(in crate::ffi) unsafe fn encrypt_image(
    _di: *mut sys::ploop_disk_images_data,
    _key: &CText,
    _mount_options: Option<&CText>,
    _flags: i32,
) -> i32 {
    sys::SYSEXIT_PARAM
}

/// As [`encrypt_image`].
pub(in crate::ffi) unsafe fn set_encryption_keyid(
    _di: *mut sys::ploop_disk_images_data,
    _key: &CText,
) -> i32 {
    sys::SYSEXIT_PARAM
}

/// libploop has neither in this line: `Feature::FsLabel` and `Feature::Encryption` say so, and nobody asks for them.
pub(in crate::ffi) fn set_label_and_key(
    _param: &mut sys::ploop_create_param,
    _label: Option<&CText>,
    _key: Option<&CText>,
) {
}

/// libploop does not say in this line.
pub(in crate::ffi) fn forget_native_discard(_stat: &mut sys::ploop_discard_stat) {}

/// As [`forget_native_discard`].
pub(in crate::ffi) fn native_discard(_stat: &sys::ploop_discard_stat) -> Option<bool> {
    None
}
