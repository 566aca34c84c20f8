// @generated from ploop-sys/abi/v7.h by `cargo xtask bindgen`. Do not edit.

use libc::{off_t, pid_t};
type __u32 = u32;
type __u64 = u64;

#[repr(C)]
#[derive(Default)]
pub struct __IncompleteArrayField<T>(::core::marker::PhantomData<T>, [T; 0]);
impl<T> __IncompleteArrayField<T> {
    #[inline]
    pub const fn new() -> Self {
        __IncompleteArrayField(::core::marker::PhantomData, [])
    }
    #[inline]
    pub fn as_ptr(&self) -> *const T {
        self as *const _ as *const T
    }
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self as *mut _ as *mut T
    }
    #[inline]
    pub unsafe fn as_slice(&self, len: usize) -> &[T] {
        ::core::slice::from_raw_parts(self.as_ptr(), len)
    }
    #[inline]
    pub unsafe fn as_mut_slice(&mut self, len: usize) -> &mut [T] {
        ::core::slice::from_raw_parts_mut(self.as_mut_ptr(), len)
    }
}
impl<T> ::core::fmt::Debug for __IncompleteArrayField<T> {
    fn fmt(&self, fmt: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        fmt.write_str("__IncompleteArrayField")
    }
}
pub const DISKDESCRIPTOR_XML: &::core::ffi::CStr = c"DiskDescriptor.xml";
pub const PLOOP_MAX_FS_SIZE: i64 = 54975581388800;
pub const PLOOP_SNAP_SKIP_TOPDELTA_DESTROY: i32 = 1;
pub const PLOOP_SNAP_SKIP_TOPDELTA_CREATE: i32 = 2;
pub const PLOOP_LOG_NOCONSOLE: i32 = -2;
pub const PLOOP_LOG_NOSTDOUT: i32 = -1;
pub const PLOOP_LOG_TIMESTAMPS: i32 = 4;
pub type __u8 = ::core::ffi::c_uchar;
pub const PLOOP_EXPANDED_MODE: ploop_image_mode = 0;
pub const PLOOP_EXPANDED_PREALLOCATED_MODE: ploop_image_mode = 1;
pub const PLOOP_RAW_MODE: ploop_image_mode = 2;
pub type ploop_image_mode = ::core::ffi::c_int;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct ploop_mount_param {
    /// returns device name
    pub device: [::core::ffi::c_char; 64usize],
    /// read-only mount
    pub ro: ::core::ffi::c_int,
    /// flags such as MS_NOATIME
    pub flags: ::core::ffi::c_int,
    /// do not partprobe device
    pub noprobe: ::core::ffi::c_int,
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
    pub __bindgen_anon_1: ploop_mount_param__bindgen_ty_1,
    /// out: fsck return code
    pub fsck_rc: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union ploop_mount_param__bindgen_ty_1 {
    pub fsck: ::core::ffi::c_int,
    /// enum e2fsck_flags
    pub fsck_flags: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_mount_param__bindgen_ty_1",
    ][::core::mem::size_of::<ploop_mount_param__bindgen_ty_1>() - 4usize];
    [
        "Alignment of ploop_mount_param__bindgen_ty_1",
    ][::core::mem::align_of::<ploop_mount_param__bindgen_ty_1>() - 4usize];
    [
        "Offset of field: ploop_mount_param__bindgen_ty_1::fsck",
    ][::core::mem::offset_of!(ploop_mount_param__bindgen_ty_1, fsck) - 0usize];
    [
        "Offset of field: ploop_mount_param__bindgen_ty_1::fsck_flags",
    ][::core::mem::offset_of!(ploop_mount_param__bindgen_ty_1, fsck_flags) - 0usize];
};
impl Default for ploop_mount_param__bindgen_ty_1 {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
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
        "Offset of field: ploop_mount_param::noprobe",
    ][::core::mem::offset_of!(ploop_mount_param, noprobe) - 72usize];
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
/// create a sparse image
pub const PLOOP_CREATE_SPARSE: ploop_create_flags = 2;
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
    pub keyid: *const ::core::ffi::c_char,
    pub fslabel: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_create_param",
    ][::core::mem::size_of::<ploop_create_param>() - 104usize];
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
        "Offset of field: ploop_create_param::keyid",
    ][::core::mem::offset_of!(ploop_create_param, keyid) - 56usize];
    [
        "Offset of field: ploop_create_param::fslabel",
    ][::core::mem::offset_of!(ploop_create_param, fslabel) - 64usize];
    [
        "Offset of field: ploop_create_param::dummy",
    ][::core::mem::offset_of!(ploop_create_param, dummy) - 72usize];
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
pub const PLOOP_REPLACE_RW: ploop_replace_flags = 2;
/// Bit values for ploop_replace_param.flag
pub type ploop_replace_flags = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_replace_param {
    /// A new image file name
    pub file: *mut ::core::ffi::c_char,
    /** Image to be replaced is specified by
 either guid, level, or current delta file*/
    pub guid: *mut ::core::ffi::c_char,
    pub level: ::core::ffi::c_int,
    pub cur_file: *mut ::core::ffi::c_char,
    pub flags: ::core::ffi::c_int,
    pub mode: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 28usize],
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
        "Offset of field: ploop_replace_param::mode",
    ][::core::mem::offset_of!(ploop_replace_param, mode) - 36usize];
    [
        "Offset of field: ploop_replace_param::dummy",
    ][::core::mem::offset_of!(ploop_replace_param, dummy) - 40usize];
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
    pub alien: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_image_data"][::core::mem::size_of::<ploop_image_data>() - 24usize];
    [
        "Alignment of ploop_image_data",
    ][::core::mem::align_of::<ploop_image_data>() - 8usize];
    [
        "Offset of field: ploop_image_data::guid",
    ][::core::mem::offset_of!(ploop_image_data, guid) - 0usize];
    [
        "Offset of field: ploop_image_data::file",
    ][::core::mem::offset_of!(ploop_image_data, file) - 8usize];
    [
        "Offset of field: ploop_image_data::alien",
    ][::core::mem::offset_of!(ploop_image_data, alien) - 16usize];
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
    pub alien: ::core::ffi::c_int,
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
    [
        "Offset of field: ploop_snapshot_data::alien",
    ][::core::mem::offset_of!(ploop_snapshot_data, alien) - 20usize];
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
pub struct encryption_data {
    pub keyid: *mut ::core::ffi::c_char,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of encryption_data"][::core::mem::size_of::<encryption_data>() - 8usize];
    [
        "Alignment of encryption_data",
    ][::core::mem::align_of::<encryption_data>() - 8usize];
    [
        "Offset of field: encryption_data::keyid",
    ][::core::mem::offset_of!(encryption_data, keyid) - 0usize];
};
impl Default for encryption_data {
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
pub struct volume_data {
    pub parent: *mut ::core::ffi::c_char,
    pub snap_guid: *mut ::core::ffi::c_char,
    pub ro: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of volume_data"][::core::mem::size_of::<volume_data>() - 24usize];
    ["Alignment of volume_data"][::core::mem::align_of::<volume_data>() - 8usize];
    [
        "Offset of field: volume_data::parent",
    ][::core::mem::offset_of!(volume_data, parent) - 0usize];
    [
        "Offset of field: volume_data::snap_guid",
    ][::core::mem::offset_of!(volume_data, snap_guid) - 8usize];
    [
        "Offset of field: volume_data::ro",
    ][::core::mem::offset_of!(volume_data, ro) - 16usize];
};
impl Default for volume_data {
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
    pub enc: *mut encryption_data,
    pub vol: *mut volume_data,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_disk_images_data",
    ][::core::mem::size_of::<ploop_disk_images_data>() - 136usize];
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
        "Offset of field: ploop_disk_images_data::enc",
    ][::core::mem::offset_of!(ploop_disk_images_data, enc) - 88usize];
    [
        "Offset of field: ploop_disk_images_data::vol",
    ][::core::mem::offset_of!(ploop_disk_images_data, vol) - 96usize];
    [
        "Offset of field: ploop_disk_images_data::dummy",
    ][::core::mem::offset_of!(ploop_disk_images_data, dummy) - 104usize];
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
    pub cbt_uuid: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_snapshot_param",
    ][::core::mem::size_of::<ploop_snapshot_param>() - 56usize];
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
        "Offset of field: ploop_snapshot_param::cbt_uuid",
    ][::core::mem::offset_of!(ploop_snapshot_param, cbt_uuid) - 16usize];
    [
        "Offset of field: ploop_snapshot_param::dummy",
    ][::core::mem::offset_of!(ploop_snapshot_param, dummy) - 24usize];
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
    pub cbt_uuid: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_tsnapshot_param",
    ][::core::mem::size_of::<ploop_tsnapshot_param>() - 136usize];
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
        "Offset of field: ploop_tsnapshot_param::cbt_uuid",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, cbt_uuid) - 96usize];
    [
        "Offset of field: ploop_tsnapshot_param::dummy",
    ][::core::mem::offset_of!(ploop_tsnapshot_param, dummy) - 104usize];
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
    pub unused2: *const ::core::ffi::c_char,
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
        "Offset of field: ploop_merge_param::unused2",
    ][::core::mem::offset_of!(ploop_merge_param, unused2) - 16usize];
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
    /// 0-compact only, 1-defrag&compact, 2-defrag only
    pub defrag: ::core::ffi::c_int,
    pub image_defrag_threshold: ::core::ffi::c_int,
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
        "Offset of field: ploop_discard_param::image_defrag_threshold",
    ][::core::mem::offset_of!(ploop_discard_param, image_defrag_threshold) - 36usize];
    [
        "Offset of field: ploop_discard_param::dummy",
    ][::core::mem::offset_of!(ploop_discard_param, dummy) - 40usize];
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
#[derive(Debug, Copy, Clone)]
pub struct ploop_fs_info {
    pub fs: ploop_info,
    pub dev: [::core::ffi::c_char; 64usize],
    pub part: [::core::ffi::c_char; 64usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_fs_info"][::core::mem::size_of::<ploop_fs_info>() - 168usize];
    ["Alignment of ploop_fs_info"][::core::mem::align_of::<ploop_fs_info>() - 8usize];
    [
        "Offset of field: ploop_fs_info::fs",
    ][::core::mem::offset_of!(ploop_fs_info, fs) - 0usize];
    [
        "Offset of field: ploop_fs_info::dev",
    ][::core::mem::offset_of!(ploop_fs_info, dev) - 40usize];
    [
        "Offset of field: ploop_fs_info::part",
    ][::core::mem::offset_of!(ploop_fs_info, part) - 104usize];
};
impl Default for ploop_fs_info {
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
    pub native_discard: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_discard_stat",
    ][::core::mem::size_of::<ploop_discard_stat>() - 40usize];
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
    [
        "Offset of field: ploop_discard_stat::native_discard",
    ][::core::mem::offset_of!(ploop_discard_stat, native_discard) - 32usize];
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
    /** File descriptor to read feedback
 from ploop_copy_receive()*/
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
    /** File descriptor to send feedback
 to ploop_copy_send()*/
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
#[derive(Debug, Copy, Clone)]
pub struct ploop_copy_param {
    pub ofd: ::core::ffi::c_int,
    pub async_: ::core::ffi::c_int,
    pub device: *const ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_copy_param"][::core::mem::size_of::<ploop_copy_param>() - 48usize];
    [
        "Alignment of ploop_copy_param",
    ][::core::mem::align_of::<ploop_copy_param>() - 8usize];
    [
        "Offset of field: ploop_copy_param::ofd",
    ][::core::mem::offset_of!(ploop_copy_param, ofd) - 0usize];
    [
        "Offset of field: ploop_copy_param::async_",
    ][::core::mem::offset_of!(ploop_copy_param, async_) - 4usize];
    [
        "Offset of field: ploop_copy_param::device",
    ][::core::mem::offset_of!(ploop_copy_param, device) - 8usize];
    [
        "Offset of field: ploop_copy_param::dummy",
    ][::core::mem::offset_of!(ploop_copy_param, dummy) - 16usize];
};
impl Default for ploop_copy_param {
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
pub const PLOOP_ENC_REENCRYPT: ::core::ffi::c_int = 1;
pub const PLOOP_ENC_WIPE: ::core::ffi::c_int = 2;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_encrypt_param {
    pub keyid: *const ::core::ffi::c_char,
    pub mnt_opts: *const ::core::ffi::c_char,
    pub flags: ::core::ffi::c_int,
    pub pad: [*mut ::core::ffi::c_void; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_encrypt_param",
    ][::core::mem::size_of::<ploop_encrypt_param>() - 56usize];
    [
        "Alignment of ploop_encrypt_param",
    ][::core::mem::align_of::<ploop_encrypt_param>() - 8usize];
    [
        "Offset of field: ploop_encrypt_param::keyid",
    ][::core::mem::offset_of!(ploop_encrypt_param, keyid) - 0usize];
    [
        "Offset of field: ploop_encrypt_param::mnt_opts",
    ][::core::mem::offset_of!(ploop_encrypt_param, mnt_opts) - 8usize];
    [
        "Offset of field: ploop_encrypt_param::flags",
    ][::core::mem::offset_of!(ploop_encrypt_param, flags) - 16usize];
    [
        "Offset of field: ploop_encrypt_param::pad",
    ][::core::mem::offset_of!(ploop_encrypt_param, pad) - 24usize];
};
impl Default for ploop_encrypt_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Default)]
pub struct ploop_bitmap {
    pub uuid: [__u8; 16usize],
    pub size_sec: __u64,
    pub cluster_sec: __u64,
    pub granularity_sec: __u32,
    pub l1_size: __u32,
    pub map: __IncompleteArrayField<__u64>,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_bitmap"][::core::mem::size_of::<ploop_bitmap>() - 40usize];
    ["Alignment of ploop_bitmap"][::core::mem::align_of::<ploop_bitmap>() - 8usize];
    [
        "Offset of field: ploop_bitmap::uuid",
    ][::core::mem::offset_of!(ploop_bitmap, uuid) - 0usize];
    [
        "Offset of field: ploop_bitmap::size_sec",
    ][::core::mem::offset_of!(ploop_bitmap, size_sec) - 16usize];
    [
        "Offset of field: ploop_bitmap::cluster_sec",
    ][::core::mem::offset_of!(ploop_bitmap, cluster_sec) - 24usize];
    [
        "Offset of field: ploop_bitmap::granularity_sec",
    ][::core::mem::offset_of!(ploop_bitmap, granularity_sec) - 32usize];
    [
        "Offset of field: ploop_bitmap::l1_size",
    ][::core::mem::offset_of!(ploop_bitmap, l1_size) - 36usize];
    [
        "Offset of field: ploop_bitmap::map",
    ][::core::mem::offset_of!(ploop_bitmap, map) - 40usize];
};
pub const SYSEXIT_CREAT: _bindgen_ty_2 = 1;
pub const SYSEXIT_DEVICE: _bindgen_ty_2 = 2;
pub const SYSEXIT_DEVIOC: _bindgen_ty_2 = 3;
pub const SYSEXIT_OPEN: _bindgen_ty_2 = 4;
pub const SYSEXIT_MALLOC: _bindgen_ty_2 = 5;
pub const SYSEXIT_READ: _bindgen_ty_2 = 6;
pub const SYSEXIT_WRITE: _bindgen_ty_2 = 7;
pub const SYSEXIT_RESERVED_8: _bindgen_ty_2 = 8;
pub const SYSEXIT_SYSFS: _bindgen_ty_2 = 9;
pub const SYSEXIT_RESERVED_10: _bindgen_ty_2 = 10;
pub const SYSEXIT_PLOOPFMT: _bindgen_ty_2 = 11;
pub const SYSEXIT_SYS: _bindgen_ty_2 = 12;
pub const SYSEXIT_PROTOCOL: _bindgen_ty_2 = 13;
pub const SYSEXIT_LOOP: _bindgen_ty_2 = 14;
pub const SYSEXIT_FSTAT: _bindgen_ty_2 = 15;
pub const SYSEXIT_FSYNC: _bindgen_ty_2 = 16;
pub const SYSEXIT_EBUSY: _bindgen_ty_2 = 17;
pub const SYSEXIT_FLOCK: _bindgen_ty_2 = 18;
pub const SYSEXIT_FTRUNCATE: _bindgen_ty_2 = 19;
pub const SYSEXIT_FALLOCATE: _bindgen_ty_2 = 20;
pub const SYSEXIT_MOUNT: _bindgen_ty_2 = 21;
pub const SYSEXIT_UMOUNT: _bindgen_ty_2 = 22;
pub const SYSEXIT_LOCK: _bindgen_ty_2 = 23;
pub const SYSEXIT_MKFS: _bindgen_ty_2 = 24;
pub const SYSEXIT_RESERVED_25: _bindgen_ty_2 = 25;
pub const SYSEXIT_RESIZE_FS: _bindgen_ty_2 = 26;
pub const SYSEXIT_MKDIR: _bindgen_ty_2 = 27;
pub const SYSEXIT_RENAME: _bindgen_ty_2 = 28;
pub const SYSEXIT_ABORT: _bindgen_ty_2 = 29;
pub const SYSEXIT_RELOC: _bindgen_ty_2 = 30;
pub const SYSEXIT_RESERVED_31: _bindgen_ty_2 = 31;
pub const SYSEXIT_RESERVED_32: _bindgen_ty_2 = 32;
pub const SYSEXIT_CHANGE_GPT: _bindgen_ty_2 = 33;
pub const SYSEXIT_RESERVED_34: _bindgen_ty_2 = 34;
pub const SYSEXIT_UNLINK: _bindgen_ty_2 = 35;
pub const SYSEXIT_MKNOD: _bindgen_ty_2 = 36;
pub const SYSEXIT_PLOOPINUSE: _bindgen_ty_2 = 37;
pub const SYSEXIT_PARAM: _bindgen_ty_2 = 38;
pub const SYSEXIT_DISKDESCR: _bindgen_ty_2 = 39;
pub const SYSEXIT_DEV_NOT_MOUNTED: _bindgen_ty_2 = 40;
pub const SYSEXIT_FSCK: _bindgen_ty_2 = 41;
pub const SYSEXIT_RESERVED_42: _bindgen_ty_2 = 42;
pub const SYSEXIT_NOSNAP: _bindgen_ty_2 = 43;
pub const SYSEXIT_NOCBT: _bindgen_ty_2 = 44;
pub const SYSEXIT_CRYPT: _bindgen_ty_2 = 45;
pub const SYSEXIT_UMOUNT_BUSY: _bindgen_ty_2 = 46;
pub type _bindgen_ty_2 = ::core::ffi::c_int;
unsafe extern "C" {
    pub fn ploop_set_component_name(
        di: *mut ploop_disk_images_data,
        component_name: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_set_umount_timeout(
        di: *mut ploop_disk_images_data,
        timeout: ::core::ffi::c_int,
    );
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
    pub fn ploop_get_part(
        di: *mut ploop_disk_images_data,
        dev: *const ::core::ffi::c_char,
        partname: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_devname(
        di: *mut ploop_disk_images_data,
        dev: *const ::core::ffi::c_char,
        devname: *mut ::core::ffi::c_char,
        dlen: ::core::ffi::c_int,
        partname: *mut ::core::ffi::c_char,
        plen: ::core::ffi::c_int,
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
    pub fn ploop_init_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_init_device(
        device: *const ::core::ffi::c_char,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_mount_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_mount_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_store_statfs_info(
        mnt: *const ::core::ffi::c_char,
        image: *mut ::core::ffi::c_char,
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
    pub fn ploop_resize_blkdev(
        device: *const ::core::ffi::c_char,
        new_size: off_t,
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
    pub fn ploop_get_fs_info(
        descr: *const ::core::ffi::c_char,
        info: *mut ploop_fs_info,
        size: ::core::ffi::c_int,
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
    pub fn ploop_read_dd(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_set_encryption_keyid(
        di: *mut ploop_disk_images_data,
        keyid: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_encrypt_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_encrypt_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_drop_cbt(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_clone_dd(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
        target: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_used_bitmap_from_image(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ploop_bitmap;
    pub fn ploop_get_tracking_bitmap_from_image(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ploop_bitmap;
    pub fn ploop_release_bitmap(bmap: *mut ploop_bitmap);
    pub fn ploop_image_defrag(
        image: *const ::core::ffi::c_char,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_suspend_device(part: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    pub fn ploop_resume_device(part: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    /// deprecated
    pub fn ploop_get_base_delta_uuid(
        di: *mut ploop_disk_images_data,
    ) -> *mut ::core::ffi::c_char;
    pub fn ploop_copy_receive(arg: *mut ploop_copy_receive_param) -> ::core::ffi::c_int;
    pub fn ploop_copy_send(arg: *mut ploop_copy_send_param) -> ::core::ffi::c_int;
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
