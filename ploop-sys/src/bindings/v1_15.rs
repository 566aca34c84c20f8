// @generated from <ploop/libploop.h> by `cargo xtask bindgen`. Do not edit.

use libc::{off_t, pid_t};
type __u32 = u32;
type __u64 = u64;

pub const DISKDESCRIPTOR_XML: &::core::ffi::CStr = c"DiskDescriptor.xml";
pub const PLOOP_SNAP_SKIP_TOPDELTA_DESTROY: i32 = 1;
pub const PLOOP_SNAP_SKIP_TOPDELTA_CREATE: i32 = 2;
pub const PLOOP_LOG_NOCONSOLE: i32 = -2;
pub const PLOOP_LOG_NOSTDOUT: i32 = -1;
pub const PLOOP_LOG_TIMESTAMPS: i32 = 4;
pub const PLOOP_EXPANDED_MODE: ploop_image_mode = 0;
pub const PLOOP_EXPANDED_PREALLOCATED_MODE: ploop_image_mode = 1;
pub const PLOOP_RAW_MODE: ploop_image_mode = 2;
pub type ploop_image_mode = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_mount_param {
    /// returns device name
    pub device: [::core::ffi::c_char; 64usize],
    /// read-only mount
    pub ro: ::core::ffi::c_int,
    /// flags such as MS_NOATIME
    pub flags: ::core::ffi::c_int,
    pub unused1: ::core::ffi::c_int,
    /// filesystem type; default if not set
    pub fstype: *mut ::core::ffi::c_char,
    /// mount point
    pub target: *mut ::core::ffi::c_char,
    /// UUID; top if not set
    pub guid: *mut ::core::ffi::c_char,
    /// enable inner FS quota
    pub quota: ::core::ffi::c_int,
    pub mount_data: *mut ::core::ffi::c_char,
    /// blocksize for raw image
    pub blocksize: ::core::ffi::c_uint,
    pub fsck: ::core::ffi::c_int,
    /// out: fsck return code
    pub fsck_rc: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_mount_param",
    ][::core::mem::size_of::<ploop_mount_param>() - 168usize];
    [
        "Alignment of ploop_mount_param",
    ][::core::mem::align_of::<ploop_mount_param>() - 8usize];
    [
        "Offset of field: ploop_mount_param::device",
    ][::core::mem::offset_of!(ploop_mount_param, device) - 0usize];
    [
        "Offset of field: ploop_mount_param::ro",
    ][::core::mem::offset_of!(ploop_mount_param, ro) - 64usize];
    [
        "Offset of field: ploop_mount_param::flags",
    ][::core::mem::offset_of!(ploop_mount_param, flags) - 68usize];
    [
        "Offset of field: ploop_mount_param::unused1",
    ][::core::mem::offset_of!(ploop_mount_param, unused1) - 72usize];
    [
        "Offset of field: ploop_mount_param::fstype",
    ][::core::mem::offset_of!(ploop_mount_param, fstype) - 80usize];
    [
        "Offset of field: ploop_mount_param::target",
    ][::core::mem::offset_of!(ploop_mount_param, target) - 88usize];
    [
        "Offset of field: ploop_mount_param::guid",
    ][::core::mem::offset_of!(ploop_mount_param, guid) - 96usize];
    [
        "Offset of field: ploop_mount_param::quota",
    ][::core::mem::offset_of!(ploop_mount_param, quota) - 104usize];
    [
        "Offset of field: ploop_mount_param::mount_data",
    ][::core::mem::offset_of!(ploop_mount_param, mount_data) - 112usize];
    [
        "Offset of field: ploop_mount_param::blocksize",
    ][::core::mem::offset_of!(ploop_mount_param, blocksize) - 120usize];
    [
        "Offset of field: ploop_mount_param::fsck",
    ][::core::mem::offset_of!(ploop_mount_param, fsck) - 124usize];
    [
        "Offset of field: ploop_mount_param::fsck_rc",
    ][::core::mem::offset_of!(ploop_mount_param, fsck_rc) - 128usize];
    [
        "Offset of field: ploop_mount_param::dummy",
    ][::core::mem::offset_of!(ploop_mount_param, dummy) - 132usize];
};
impl Default for ploop_mount_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// do NOT use lazy init
pub const PLOOP_CREATE_NOLAZY: ploop_create_flags = 1;
/// Bit values for ploop_create_param.flags
pub type ploop_create_flags = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_create_param {
    pub size: ::core::ffi::c_ulonglong,
    pub mode: ::core::ffi::c_int,
    pub image: *mut ::core::ffi::c_char,
    pub fstype: *mut ::core::ffi::c_char,
    pub without_partition: ::core::ffi::c_int,
    pub blocksize: ::core::ffi::c_uint,
    pub fsblocksize: ::core::ffi::c_uint,
    pub fmt_version: ::core::ffi::c_int,
    pub flags: ::core::ffi::c_uint,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_create_param",
    ][::core::mem::size_of::<ploop_create_param>() - 88usize];
    [
        "Alignment of ploop_create_param",
    ][::core::mem::align_of::<ploop_create_param>() - 8usize];
    [
        "Offset of field: ploop_create_param::size",
    ][::core::mem::offset_of!(ploop_create_param, size) - 0usize];
    [
        "Offset of field: ploop_create_param::mode",
    ][::core::mem::offset_of!(ploop_create_param, mode) - 8usize];
    [
        "Offset of field: ploop_create_param::image",
    ][::core::mem::offset_of!(ploop_create_param, image) - 16usize];
    [
        "Offset of field: ploop_create_param::fstype",
    ][::core::mem::offset_of!(ploop_create_param, fstype) - 24usize];
    [
        "Offset of field: ploop_create_param::without_partition",
    ][::core::mem::offset_of!(ploop_create_param, without_partition) - 32usize];
    [
        "Offset of field: ploop_create_param::blocksize",
    ][::core::mem::offset_of!(ploop_create_param, blocksize) - 36usize];
    [
        "Offset of field: ploop_create_param::fsblocksize",
    ][::core::mem::offset_of!(ploop_create_param, fsblocksize) - 40usize];
    [
        "Offset of field: ploop_create_param::fmt_version",
    ][::core::mem::offset_of!(ploop_create_param, fmt_version) - 44usize];
    [
        "Offset of field: ploop_create_param::flags",
    ][::core::mem::offset_of!(ploop_create_param, flags) - 48usize];
    [
        "Offset of field: ploop_create_param::dummy",
    ][::core::mem::offset_of!(ploop_create_param, dummy) - 52usize];
};
impl Default for ploop_create_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub const PLOOP_REPLACE_KEEP_NAME: ploop_replace_flags = 1;
/// Bit values for ploop_replace_param.flag
pub type ploop_replace_flags = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_replace_param {
    /// A new image file name
    pub file: *mut ::core::ffi::c_char,
    /// Image to be replaced is specified by
    /// either guid, level, or current delta file
    pub guid: *mut ::core::ffi::c_char,
    pub level: ::core::ffi::c_int,
    pub cur_file: *mut ::core::ffi::c_char,
    pub flags: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_replace_param",
    ][::core::mem::size_of::<ploop_replace_param>() - 72usize];
    [
        "Alignment of ploop_replace_param",
    ][::core::mem::align_of::<ploop_replace_param>() - 8usize];
    [
        "Offset of field: ploop_replace_param::file",
    ][::core::mem::offset_of!(ploop_replace_param, file) - 0usize];
    [
        "Offset of field: ploop_replace_param::guid",
    ][::core::mem::offset_of!(ploop_replace_param, guid) - 8usize];
    [
        "Offset of field: ploop_replace_param::level",
    ][::core::mem::offset_of!(ploop_replace_param, level) - 16usize];
    [
        "Offset of field: ploop_replace_param::cur_file",
    ][::core::mem::offset_of!(ploop_replace_param, cur_file) - 24usize];
    [
        "Offset of field: ploop_replace_param::flags",
    ][::core::mem::offset_of!(ploop_replace_param, flags) - 32usize];
    [
        "Offset of field: ploop_replace_param::dummy",
    ][::core::mem::offset_of!(ploop_replace_param, dummy) - 36usize];
};
impl Default for ploop_replace_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_image_data {
    pub guid: *mut ::core::ffi::c_char,
    pub file: *mut ::core::ffi::c_char,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_image_data"][::core::mem::size_of::<ploop_image_data>() - 16usize];
    [
        "Alignment of ploop_image_data",
    ][::core::mem::align_of::<ploop_image_data>() - 8usize];
    [
        "Offset of field: ploop_image_data::guid",
    ][::core::mem::offset_of!(ploop_image_data, guid) - 0usize];
    [
        "Offset of field: ploop_image_data::file",
    ][::core::mem::offset_of!(ploop_image_data, file) - 8usize];
};
impl Default for ploop_image_data {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_snapshot_data {
    pub guid: *mut ::core::ffi::c_char,
    pub parent_guid: *mut ::core::ffi::c_char,
    pub temporary: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_snapshot_data",
    ][::core::mem::size_of::<ploop_snapshot_data>() - 24usize];
    [
        "Alignment of ploop_snapshot_data",
    ][::core::mem::align_of::<ploop_snapshot_data>() - 8usize];
    [
        "Offset of field: ploop_snapshot_data::guid",
    ][::core::mem::offset_of!(ploop_snapshot_data, guid) - 0usize];
    [
        "Offset of field: ploop_snapshot_data::parent_guid",
    ][::core::mem::offset_of!(ploop_snapshot_data, parent_guid) - 8usize];
    [
        "Offset of field: ploop_snapshot_data::temporary",
    ][::core::mem::offset_of!(ploop_snapshot_data, temporary) - 16usize];
};
impl Default for ploop_snapshot_data {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug)]
pub struct ploop_disk_images_runtime_data {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_disk_images_data {
    pub size: ::core::ffi::c_ulonglong,
    pub heads: ::core::ffi::c_uint,
    pub cylinders: ::core::ffi::c_uint,
    pub sectors: ::core::ffi::c_uint,
    pub mode: ::core::ffi::c_int,
    pub nimages: ::core::ffi::c_int,
    pub images: *mut *mut ploop_image_data,
    pub top_guid: *mut ::core::ffi::c_char,
    pub nsnapshots: ::core::ffi::c_int,
    pub snapshots: *mut *mut ploop_snapshot_data,
    pub runtime: *mut ploop_disk_images_runtime_data,
    pub blocksize: ::core::ffi::c_uint,
    pub max_delta_size: ::core::ffi::c_ulonglong,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_disk_images_data",
    ][::core::mem::size_of::<ploop_disk_images_data>() - 120usize];
    [
        "Alignment of ploop_disk_images_data",
    ][::core::mem::align_of::<ploop_disk_images_data>() - 8usize];
    [
        "Offset of field: ploop_disk_images_data::size",
    ][::core::mem::offset_of!(ploop_disk_images_data, size) - 0usize];
    [
        "Offset of field: ploop_disk_images_data::heads",
    ][::core::mem::offset_of!(ploop_disk_images_data, heads) - 8usize];
    [
        "Offset of field: ploop_disk_images_data::cylinders",
    ][::core::mem::offset_of!(ploop_disk_images_data, cylinders) - 12usize];
    [
        "Offset of field: ploop_disk_images_data::sectors",
    ][::core::mem::offset_of!(ploop_disk_images_data, sectors) - 16usize];
    [
        "Offset of field: ploop_disk_images_data::mode",
    ][::core::mem::offset_of!(ploop_disk_images_data, mode) - 20usize];
    [
        "Offset of field: ploop_disk_images_data::nimages",
    ][::core::mem::offset_of!(ploop_disk_images_data, nimages) - 24usize];
    [
        "Offset of field: ploop_disk_images_data::images",
    ][::core::mem::offset_of!(ploop_disk_images_data, images) - 32usize];
    [
        "Offset of field: ploop_disk_images_data::top_guid",
    ][::core::mem::offset_of!(ploop_disk_images_data, top_guid) - 40usize];
    [
        "Offset of field: ploop_disk_images_data::nsnapshots",
    ][::core::mem::offset_of!(ploop_disk_images_data, nsnapshots) - 48usize];
    [
        "Offset of field: ploop_disk_images_data::snapshots",
    ][::core::mem::offset_of!(ploop_disk_images_data, snapshots) - 56usize];
    [
        "Offset of field: ploop_disk_images_data::runtime",
    ][::core::mem::offset_of!(ploop_disk_images_data, runtime) - 64usize];
    [
        "Offset of field: ploop_disk_images_data::blocksize",
    ][::core::mem::offset_of!(ploop_disk_images_data, blocksize) - 72usize];
    [
        "Offset of field: ploop_disk_images_data::max_delta_size",
    ][::core::mem::offset_of!(ploop_disk_images_data, max_delta_size) - 80usize];
    [
        "Offset of field: ploop_disk_images_data::dummy",
    ][::core::mem::offset_of!(ploop_disk_images_data, dummy) - 88usize];
};
impl Default for ploop_disk_images_data {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_resize_param {
    pub size: ::core::ffi::c_ulonglong,
    pub offline_resize: ::core::ffi::c_int,
    pub mntns_pid: pid_t,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_resize_param",
    ][::core::mem::size_of::<ploop_resize_param>() - 48usize];
    [
        "Alignment of ploop_resize_param",
    ][::core::mem::align_of::<ploop_resize_param>() - 8usize];
    [
        "Offset of field: ploop_resize_param::size",
    ][::core::mem::offset_of!(ploop_resize_param, size) - 0usize];
    [
        "Offset of field: ploop_resize_param::offline_resize",
    ][::core::mem::offset_of!(ploop_resize_param, offline_resize) - 8usize];
    [
        "Offset of field: ploop_resize_param::mntns_pid",
    ][::core::mem::offset_of!(ploop_resize_param, mntns_pid) - 12usize];
    [
        "Offset of field: ploop_resize_param::dummy",
    ][::core::mem::offset_of!(ploop_resize_param, dummy) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_snapshot_param {
    /// guid for new snapshot, autogenerated if NULL
    pub guid: *mut ::core::ffi::c_char,
    /// folder for new delta
    pub snap_dir: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_snapshot_param",
    ][::core::mem::size_of::<ploop_snapshot_param>() - 48usize];
    [
        "Alignment of ploop_snapshot_param",
    ][::core::mem::align_of::<ploop_snapshot_param>() - 8usize];
    [
        "Offset of field: ploop_snapshot_param::guid",
    ][::core::mem::offset_of!(ploop_snapshot_param, guid) - 0usize];
    [
        "Offset of field: ploop_snapshot_param::snap_dir",
    ][::core::mem::offset_of!(ploop_snapshot_param, snap_dir) - 8usize];
    [
        "Offset of field: ploop_snapshot_param::dummy",
    ][::core::mem::offset_of!(ploop_snapshot_param, dummy) - 16usize];
};
impl Default for ploop_snapshot_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_tsnapshot_param {
    pub guid: *mut ::core::ffi::c_char,
    pub component_name: *mut ::core::ffi::c_char,
    pub target: *mut ::core::ffi::c_char,
    /// out: assigned device
    pub device: [::core::ffi::c_char; 64usize],
    /// folder for new delta
    pub snap_dir: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_tsnapshot_param",
    ][::core::mem::size_of::<ploop_tsnapshot_param>() - 128usize];
    [
        "Alignment of ploop_tsnapshot_param",
    ][::core::mem::align_of::<ploop_tsnapshot_param>() - 8usize];
    [
        "Offset of field: ploop_tsnapshot_param::guid",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, guid) - 0usize];
    [
        "Offset of field: ploop_tsnapshot_param::component_name",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, component_name) - 8usize];
    [
        "Offset of field: ploop_tsnapshot_param::target",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, target) - 16usize];
    [
        "Offset of field: ploop_tsnapshot_param::device",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, device) - 24usize];
    [
        "Offset of field: ploop_tsnapshot_param::snap_dir",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, snap_dir) - 88usize];
    [
        "Offset of field: ploop_tsnapshot_param::dummy",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, dummy) - 96usize];
};
impl Default for ploop_tsnapshot_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_snapshot_switch_param {
    pub guid: *const ::core::ffi::c_char,
    /// guid for old top delta when SKIP_TOPDELTA_DESTROY is used
    pub guid_old: *const ::core::ffi::c_char,
    pub flags: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_snapshot_switch_param",
    ][::core::mem::size_of::<ploop_snapshot_switch_param>() - 56usize];
    [
        "Alignment of ploop_snapshot_switch_param",
    ][::core::mem::align_of::<ploop_snapshot_switch_param>() - 8usize];
    [
        "Offset of field: ploop_snapshot_switch_param::guid",
    ][::core::mem::offset_of!(ploop_snapshot_switch_param, guid) - 0usize];
    [
        "Offset of field: ploop_snapshot_switch_param::guid_old",
    ][::core::mem::offset_of!(ploop_snapshot_switch_param, guid_old) - 8usize];
    [
        "Offset of field: ploop_snapshot_switch_param::flags",
    ][::core::mem::offset_of!(ploop_snapshot_switch_param, flags) - 16usize];
    [
        "Offset of field: ploop_snapshot_switch_param::dummy",
    ][::core::mem::offset_of!(ploop_snapshot_switch_param, dummy) - 20usize];
};
impl Default for ploop_snapshot_switch_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_merge_param {
    pub unused1: ::core::ffi::c_int,
    pub merge_all: ::core::ffi::c_int,
    pub guid: *const ::core::ffi::c_char,
    /// NULL, or an ancestor of above guid
    pub guid2: *const ::core::ffi::c_char,
    pub new_delta: *const ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_merge_param"][::core::mem::size_of::<ploop_merge_param>() - 64usize];
    [
        "Alignment of ploop_merge_param",
    ][::core::mem::align_of::<ploop_merge_param>() - 8usize];
    [
        "Offset of field: ploop_merge_param::unused1",
    ][::core::mem::offset_of!(ploop_merge_param, unused1) - 0usize];
    [
        "Offset of field: ploop_merge_param::merge_all",
    ][::core::mem::offset_of!(ploop_merge_param, merge_all) - 4usize];
    [
        "Offset of field: ploop_merge_param::guid",
    ][::core::mem::offset_of!(ploop_merge_param, guid) - 8usize];
    [
        "Offset of field: ploop_merge_param::guid2",
    ][::core::mem::offset_of!(ploop_merge_param, guid2) - 16usize];
    [
        "Offset of field: ploop_merge_param::new_delta",
    ][::core::mem::offset_of!(ploop_merge_param, new_delta) - 24usize];
    [
        "Offset of field: ploop_merge_param::dummy",
    ][::core::mem::offset_of!(ploop_merge_param, dummy) - 32usize];
};
impl Default for ploop_merge_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_discard_param {
    pub minlen_b: __u64,
    pub to_free: __u64,
    pub automount: ::core::ffi::c_int,
    pub stop: *const ::core::ffi::c_int,
    pub defrag: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_discard_param",
    ][::core::mem::size_of::<ploop_discard_param>() - 72usize];
    [
        "Alignment of ploop_discard_param",
    ][::core::mem::align_of::<ploop_discard_param>() - 8usize];
    [
        "Offset of field: ploop_discard_param::minlen_b",
    ][::core::mem::offset_of!(ploop_discard_param, minlen_b) - 0usize];
    [
        "Offset of field: ploop_discard_param::to_free",
    ][::core::mem::offset_of!(ploop_discard_param, to_free) - 8usize];
    [
        "Offset of field: ploop_discard_param::automount",
    ][::core::mem::offset_of!(ploop_discard_param, automount) - 16usize];
    [
        "Offset of field: ploop_discard_param::stop",
    ][::core::mem::offset_of!(ploop_discard_param, stop) - 24usize];
    [
        "Offset of field: ploop_discard_param::defrag",
    ][::core::mem::offset_of!(ploop_discard_param, defrag) - 32usize];
    [
        "Offset of field: ploop_discard_param::dummy",
    ][::core::mem::offset_of!(ploop_discard_param, dummy) - 36usize];
};
impl Default for ploop_discard_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_info {
    pub fs_bsize: ::core::ffi::c_ulonglong,
    pub fs_blocks: ::core::ffi::c_ulonglong,
    pub fs_bfree: ::core::ffi::c_ulonglong,
    pub fs_inodes: ::core::ffi::c_ulonglong,
    pub fs_ifree: ::core::ffi::c_ulonglong,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_info"][::core::mem::size_of::<ploop_info>() - 40usize];
    ["Alignment of ploop_info"][::core::mem::align_of::<ploop_info>() - 8usize];
    [
        "Offset of field: ploop_info::fs_bsize",
    ][::core::mem::offset_of!(ploop_info, fs_bsize) - 0usize];
    [
        "Offset of field: ploop_info::fs_blocks",
    ][::core::mem::offset_of!(ploop_info, fs_blocks) - 8usize];
    [
        "Offset of field: ploop_info::fs_bfree",
    ][::core::mem::offset_of!(ploop_info, fs_bfree) - 16usize];
    [
        "Offset of field: ploop_info::fs_inodes",
    ][::core::mem::offset_of!(ploop_info, fs_inodes) - 24usize];
    [
        "Offset of field: ploop_info::fs_ifree",
    ][::core::mem::offset_of!(ploop_info, fs_ifree) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_spec {
    pub size: off_t,
    pub blocksize: __u32,
    pub fmt_version: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_spec"][::core::mem::size_of::<ploop_spec>() - 48usize];
    ["Alignment of ploop_spec"][::core::mem::align_of::<ploop_spec>() - 8usize];
    [
        "Offset of field: ploop_spec::size",
    ][::core::mem::offset_of!(ploop_spec, size) - 0usize];
    [
        "Offset of field: ploop_spec::blocksize",
    ][::core::mem::offset_of!(ploop_spec, blocksize) - 8usize];
    [
        "Offset of field: ploop_spec::fmt_version",
    ][::core::mem::offset_of!(ploop_spec, fmt_version) - 12usize];
    [
        "Offset of field: ploop_spec::dummy",
    ][::core::mem::offset_of!(ploop_spec, dummy) - 16usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_discard_stat {
    pub data_size: off_t,
    pub ploop_size: off_t,
    pub image_size: off_t,
    pub balloon_size: off_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_discard_stat",
    ][::core::mem::size_of::<ploop_discard_stat>() - 32usize];
    [
        "Alignment of ploop_discard_stat",
    ][::core::mem::align_of::<ploop_discard_stat>() - 8usize];
    [
        "Offset of field: ploop_discard_stat::data_size",
    ][::core::mem::offset_of!(ploop_discard_stat, data_size) - 0usize];
    [
        "Offset of field: ploop_discard_stat::ploop_size",
    ][::core::mem::offset_of!(ploop_discard_stat, ploop_size) - 8usize];
    [
        "Offset of field: ploop_discard_stat::image_size",
    ][::core::mem::offset_of!(ploop_discard_stat, image_size) - 16usize];
    [
        "Offset of field: ploop_discard_stat::balloon_size",
    ][::core::mem::offset_of!(ploop_discard_stat, balloon_size) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_copy_send_param {
    /// ploop device ("/dev/ploopNNNN") to read
    pub device: *const ::core::ffi::c_char,
    /// File descriptor to write to
    pub ofd: ::core::ffi::c_int,
    /// command to run to stop disk activity
    pub flush_cmd: *const ::core::ffi::c_char,
    /// File descriptor to read feedback
    /// from ploop_copy_receive()
    pub feedback_fd: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_copy_send_param",
    ][::core::mem::size_of::<ploop_copy_send_param>() - 64usize];
    [
        "Alignment of ploop_copy_send_param",
    ][::core::mem::align_of::<ploop_copy_send_param>() - 8usize];
    [
        "Offset of field: ploop_copy_send_param::device",
    ][::core::mem::offset_of!(ploop_copy_send_param, device) - 0usize];
    [
        "Offset of field: ploop_copy_send_param::ofd",
    ][::core::mem::offset_of!(ploop_copy_send_param, ofd) - 8usize];
    [
        "Offset of field: ploop_copy_send_param::flush_cmd",
    ][::core::mem::offset_of!(ploop_copy_send_param, flush_cmd) - 16usize];
    [
        "Offset of field: ploop_copy_send_param::feedback_fd",
    ][::core::mem::offset_of!(ploop_copy_send_param, feedback_fd) - 24usize];
    [
        "Offset of field: ploop_copy_send_param::dummy",
    ][::core::mem::offset_of!(ploop_copy_send_param, dummy) - 28usize];
};
impl Default for ploop_copy_send_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_copy_receive_param {
    /// File name to write to
    pub file: *const ::core::ffi::c_char,
    /// File descriptor to read from
    pub ifd: ::core::ffi::c_int,
    /// File descriptor to send feedback
    /// to ploop_copy_send()
    pub feedback_fd: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_copy_receive_param",
    ][::core::mem::size_of::<ploop_copy_receive_param>() - 48usize];
    [
        "Alignment of ploop_copy_receive_param",
    ][::core::mem::align_of::<ploop_copy_receive_param>() - 8usize];
    [
        "Offset of field: ploop_copy_receive_param::file",
    ][::core::mem::offset_of!(ploop_copy_receive_param, file) - 0usize];
    [
        "Offset of field: ploop_copy_receive_param::ifd",
    ][::core::mem::offset_of!(ploop_copy_receive_param, ifd) - 8usize];
    [
        "Offset of field: ploop_copy_receive_param::feedback_fd",
    ][::core::mem::offset_of!(ploop_copy_receive_param, feedback_fd) - 12usize];
    [
        "Offset of field: ploop_copy_receive_param::dummy",
    ][::core::mem::offset_of!(ploop_copy_receive_param, dummy) - 16usize];
};
impl Default for ploop_copy_receive_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_copy_param {
    pub ofd: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_copy_param"][::core::mem::size_of::<ploop_copy_param>() - 36usize];
    [
        "Alignment of ploop_copy_param",
    ][::core::mem::align_of::<ploop_copy_param>() - 4usize];
    [
        "Offset of field: ploop_copy_param::ofd",
    ][::core::mem::offset_of!(ploop_copy_param, ofd) - 0usize];
    [
        "Offset of field: ploop_copy_param::dummy",
    ][::core::mem::offset_of!(ploop_copy_param, dummy) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_copy_stat {
    pub xferred_total: __u64,
    pub xferred: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_copy_stat"][::core::mem::size_of::<ploop_copy_stat>() - 16usize];
    [
        "Alignment of ploop_copy_stat",
    ][::core::mem::align_of::<ploop_copy_stat>() - 8usize];
    [
        "Offset of field: ploop_copy_stat::xferred_total",
    ][::core::mem::offset_of!(ploop_copy_stat, xferred_total) - 0usize];
    [
        "Offset of field: ploop_copy_stat::xferred",
    ][::core::mem::offset_of!(ploop_copy_stat, xferred) - 8usize];
};
pub const SYSEXIT_CREAT: ::core::ffi::c_int = 1;
pub const SYSEXIT_DEVICE: ::core::ffi::c_int = 2;
pub const SYSEXIT_DEVIOC: ::core::ffi::c_int = 3;
pub const SYSEXIT_OPEN: ::core::ffi::c_int = 4;
pub const SYSEXIT_MALLOC: ::core::ffi::c_int = 5;
pub const SYSEXIT_READ: ::core::ffi::c_int = 6;
pub const SYSEXIT_WRITE: ::core::ffi::c_int = 7;
pub const SYSEXIT_RESERVED_8: ::core::ffi::c_int = 8;
pub const SYSEXIT_SYSFS: ::core::ffi::c_int = 9;
pub const SYSEXIT_RESERVED_10: ::core::ffi::c_int = 10;
pub const SYSEXIT_PLOOPFMT: ::core::ffi::c_int = 11;
pub const SYSEXIT_SYS: ::core::ffi::c_int = 12;
pub const SYSEXIT_PROTOCOL: ::core::ffi::c_int = 13;
pub const SYSEXIT_LOOP: ::core::ffi::c_int = 14;
pub const SYSEXIT_FSTAT: ::core::ffi::c_int = 15;
pub const SYSEXIT_FSYNC: ::core::ffi::c_int = 16;
pub const SYSEXIT_EBUSY: ::core::ffi::c_int = 17;
pub const SYSEXIT_FLOCK: ::core::ffi::c_int = 18;
pub const SYSEXIT_FTRUNCATE: ::core::ffi::c_int = 19;
pub const SYSEXIT_FALLOCATE: ::core::ffi::c_int = 20;
pub const SYSEXIT_MOUNT: ::core::ffi::c_int = 21;
pub const SYSEXIT_UMOUNT: ::core::ffi::c_int = 22;
pub const SYSEXIT_LOCK: ::core::ffi::c_int = 23;
pub const SYSEXIT_MKFS: ::core::ffi::c_int = 24;
pub const SYSEXIT_RESERVED_25: ::core::ffi::c_int = 25;
pub const SYSEXIT_RESIZE_FS: ::core::ffi::c_int = 26;
pub const SYSEXIT_MKDIR: ::core::ffi::c_int = 27;
pub const SYSEXIT_RENAME: ::core::ffi::c_int = 28;
pub const SYSEXIT_ABORT: ::core::ffi::c_int = 29;
pub const SYSEXIT_RELOC: ::core::ffi::c_int = 30;
pub const SYSEXIT_RESERVED_31: ::core::ffi::c_int = 31;
pub const SYSEXIT_RESERVED_32: ::core::ffi::c_int = 32;
pub const SYSEXIT_CHANGE_GPT: ::core::ffi::c_int = 33;
pub const SYSEXIT_RESERVED_34: ::core::ffi::c_int = 34;
pub const SYSEXIT_UNLINK: ::core::ffi::c_int = 35;
pub const SYSEXIT_MKNOD: ::core::ffi::c_int = 36;
pub const SYSEXIT_PLOOPINUSE: ::core::ffi::c_int = 37;
pub const SYSEXIT_PARAM: ::core::ffi::c_int = 38;
pub const SYSEXIT_DISKDESCR: ::core::ffi::c_int = 39;
pub const SYSEXIT_DEV_NOT_MOUNTED: ::core::ffi::c_int = 40;
pub const SYSEXIT_FSCK: ::core::ffi::c_int = 41;
pub const SYSEXIT_RESERVED_42: ::core::ffi::c_int = 42;
pub const SYSEXIT_NOSNAP: ::core::ffi::c_int = 43;
unsafe extern "C" {
    pub fn ploop_set_component_name(
        di: *mut ploop_disk_images_data,
        component_name: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_top_delta_fname(
        di: *mut ploop_disk_images_data,
        out: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_base_delta_fname(
        di: *mut ploop_disk_images_data,
        out: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_find_dev(
        component_name: *const ::core::ffi::c_char,
        delta: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_dev_by_mnt(
        path: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_mnt_by_dev(
        dev: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_dev(
        di: *mut ploop_disk_images_data,
        out: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_devs(
        di: *mut ploop_disk_images_data,
        out: *mut *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_is_mounted(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_free_array(array: *mut *mut ::core::ffi::c_char);
    pub fn ploop_get_partition_by_mnt(
        path: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_create_image(param: *mut ploop_create_param) -> ::core::ffi::c_int;
    pub fn ploop_mount_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_mount_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_umount(
        device: *const ::core::ffi::c_char,
        di: *mut ploop_disk_images_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_umount_image(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_replace_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_replace_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_resize_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_resize_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_convert_image(
        di: *mut ploop_disk_images_data,
        mode: ::core::ffi::c_int,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_info_by_descr(
        descr: *const ::core::ffi::c_char,
        info: *mut ploop_info,
    ) -> ::core::ffi::c_int;
    pub fn ploop_create_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_snapshot_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_create_temporary_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_tsnapshot_param,
        holder_fd: *mut ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_merge_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_merge_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_switch_snapshot_ex(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_snapshot_switch_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_switch_snapshot(
        di: *mut ploop_disk_images_data,
        uuid: *const ::core::ffi::c_char,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_delete_snapshot(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_delete_top_delta(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_find_top_delta_name_and_format(
        device: *const ::core::ffi::c_char,
        image: *mut ::core::ffi::c_char,
        image_size: usize,
        format: *mut ::core::ffi::c_char,
        format_size: usize,
    ) -> ::core::ffi::c_int;
    pub fn ploop_find_parent_by_guid(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ::core::ffi::c_char;
    pub fn ploop_uuid_generate(
        uuid: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_is_large_disk_supported() -> ::core::ffi::c_int;
    pub fn ploop_get_spec(
        di: *mut ploop_disk_images_data,
        spec: *mut ploop_spec,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_max_size(
        blocksize: ::core::ffi::c_uint,
        max: *mut ::core::ffi::c_ulonglong,
    ) -> ::core::ffi::c_int;
    pub fn ploop_set_max_delta_size(
        di: *mut ploop_disk_images_data,
        size: ::core::ffi::c_ulonglong,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_last_error() -> *const ::core::ffi::c_char;
    pub fn ploop_set_log_file(fname: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    /// set log file logging level
    pub fn ploop_set_log_level(level: ::core::ffi::c_int);
    /// set console logging level
    pub fn ploop_set_verbose_level(level: ::core::ffi::c_int);
    /// Cancelation API
    pub fn ploop_cancel_operation();
    /// pcopy routines
    pub fn ploop_copy_send(arg: *mut ploop_copy_send_param) -> ::core::ffi::c_int;
    pub fn ploop_copy_receive(arg: *mut ploop_copy_receive_param) -> ::core::ffi::c_int;
    pub fn ploop_discard_get_stat(
        di: *mut ploop_disk_images_data,
        pd_stat: *mut ploop_discard_stat,
    ) -> ::core::ffi::c_int;
    pub fn ploop_discard(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_discard_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_open_dd(
        di: *mut *mut ploop_disk_images_data,
        fname: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_close_dd(di: *mut ploop_disk_images_data);
    pub fn ploop_create_dd(
        ddxml: *const ::core::ffi::c_char,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    /// deprecated
    pub fn ploop_store_diskdescriptor(
        fname: *const ::core::ffi::c_char,
        di: *mut ploop_disk_images_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_free_diskdescriptor(di: *mut ploop_disk_images_data);
    pub fn ploop_read_disk_descr(
        di: *mut *mut ploop_disk_images_data,
        file: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_base_delta_uuid(
        di: *mut ploop_disk_images_data,
    ) -> *mut ::core::ffi::c_char;
    pub fn ploop_send(
        device: *const ::core::ffi::c_char,
        ofd: ::core::ffi::c_int,
        flush_cmd: *const ::core::ffi::c_char,
        is_pipe: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_receive(dst: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    pub fn ploop_complete_running_operation(
        device: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
