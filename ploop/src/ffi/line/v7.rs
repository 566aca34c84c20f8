//! libploop 7.0.95 and later (`libploop.so.7`), the line of Virtuozzo 7.

use ploop_sys as sys;

use super::late::late;
use super::{GetPart, Line, SuspendDevice};
use crate::ffi::text::{CPath, CText, Param, or_null, path_or_null};
use crate::image::descriptor::DescriptorForm;

pub(super) const LINE: Line = Line {
    number: 7,
    descriptor: DescriptorForm {
        root: "Virtuozzo_disk_image",
        has_key_and_volume: true,
        has_parent_names: true,
    },
    misplaces_v1_clusters: true,
    marks_before_merging: true,
    copies: false,
    upgrades_v1_at_mount: true,
    aligns_partitions: true,
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

/// # Safety
///
/// The handle is live, and nobody else uses it. The texts in the parameters are terminated.
pub(in crate::ffi) unsafe fn init_image(
    di: *mut sys::ploop_disk_images_data,
    param: *mut sys::ploop_create_param,
) -> i32 {
    match super::late::late!(ploop_init_image) {
        // SAFETY: as this function.
        Some(init) => unsafe {
            // Without it the handle has no images yet, and nothing is done.
            match sys::ploop_read_dd(di) {
                0 => init(di, param),
                code => code,
            }
        },
        // Older than what rewrites images.
        None => sys::SYSEXIT_PARAM,
    }
}

/// # Safety
///
/// The texts in the parameters are terminated.
pub(in crate::ffi) unsafe fn init_device(
    device: &CText,
    param: *mut sys::ploop_create_param,
) -> i32 {
    // SAFETY: as this function; C only reads the name.
    unsafe { sys::ploop_init_device(device.as_ptr(), param) }
}

/// The parameters of the calls, one after the other, that merge a chain of deltas, the lowest first. Each delta is
/// merged into the one below, whose file then has its GUID: so each is copied once.
pub(in crate::ffi) fn merge_params(
    chain: &[CText],
    new_delta: Option<&CPath>,
) -> Vec<Param<sys::ploop_merge_param>> {
    let upper = chain.iter().skip(1).enumerate();
    upper
        .map(|(at, guid)| {
            Param(sys::ploop_merge_param {
                guid: guid.as_ptr(),
                new_delta: path_or_null(new_delta.filter(|_| at == 0)),
                ..Default::default()
            })
        })
        .collect()
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

/// The function that freezes what is on a partition, or the one that thaws it.
pub(in crate::ffi) fn suspend_device(suspends: bool) -> Option<SuspendDevice> {
    match suspends {
        true => late!(ploop_suspend_device),
        false => late!(ploop_resume_device),
    }
}

pub(in crate::ffi) fn get_part() -> Option<GetPart> {
    Some(sys::ploop_get_part)
}

pub(in crate::ffi) fn set_cbt_uuid(param: &mut sys::ploop_snapshot_param, id: &CText) {
    param.cbt_uuid = id.as_mut_ptr();
}

pub(in crate::ffi) fn set_temporary_cbt_uuid(param: &mut sys::ploop_tsnapshot_param, id: &CText) {
    param.cbt_uuid = id.as_mut_ptr();
}

/// `flags`: 1 to encrypt anew, 2 to wipe.
///
/// # Safety
///
/// The handle is live, and nobody else uses it.
pub(in crate::ffi) unsafe fn encrypt_image(
    di: *mut sys::ploop_disk_images_data,
    key: &CText,
    mount_options: Option<&CText>,
    flags: i32,
) -> i32 {
    let mut param = sys::ploop_encrypt_param {
        keyid: key.as_ptr(),
        mnt_opts: or_null(mount_options),
        flags,
        ..Default::default()
    };
    // SAFETY: as this function; C only reads the texts.
    unsafe { sys::ploop_encrypt_image(di, &mut param) }
}

/// # Safety
///
/// The handle is live, and nobody else uses it.
pub(in crate::ffi) unsafe fn set_encryption_keyid(
    di: *mut sys::ploop_disk_images_data,
    key: &CText,
) -> i32 {
    // SAFETY: as this function; C copies the text.
    unsafe { sys::ploop_set_encryption_keyid(di, key.as_ptr()) }
}

pub(in crate::ffi) fn set_label_and_key(
    param: &mut sys::ploop_create_param,
    label: Option<&CText>,
    key: Option<&CText>,
) {
    param.fslabel = or_null(label);
    param.keyid = or_null(key);
}

/// What no version writes there, for [`native_discard`].
const UNWRITTEN: i32 = -1;

/// Versions before 7.0.253 leave the member as it was.
pub(in crate::ffi) fn forget_native_discard(stat: &mut sys::ploop_discard_stat) {
    stat.native_discard = UNWRITTEN;
}

/// `None` where the library did not write it.
pub(in crate::ffi) fn native_discard(stat: &sys::ploop_discard_stat) -> Option<bool> {
    (stat.native_discard != UNWRITTEN).then_some(stat.native_discard != 0)
}
