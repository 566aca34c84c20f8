// @generated from ploop-sys/abi/v9.h by `cargo xtask bindgen`. Do not edit.

use libc::{dev_t, off_t, pid_t};

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
pub const PLOOP_LOG_NOCONSOLE: i32 = -2;
pub const PLOOP_LOG_NOSTDOUT: i32 = -1;
pub const PLOOP_LOG_TIMESTAMPS: i32 = 4;
pub const DISKDESCRIPTOR_XML: &::core::ffi::CStr = c"DiskDescriptor.xml";
pub const PLOOP_IMAGE_NAME: &::core::ffi::CStr = c"root.hds";
pub const QCOW_IMAGE_NAME: &::core::ffi::CStr = c"root.hdd";
pub const PLOOP_MAX_FS_SIZE: i64 = 54975581388800;
pub const PLOOP_SNAP_SKIP_TOPDELTA_DESTROY: i32 = 1;
pub const PLOOP_SNAP_SKIP_TOPDELTA_CREATE: i32 = 2;
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
/// The image has no changed-block tracking.
pub const SYSEXIT_NOCBT: ::core::ffi::c_int = 44;
/// The encryption helper failed, or is not installed.
pub const SYSEXIT_CRYPT: ::core::ffi::c_int = 45;
/// The file system was busy until the timeout of the unmount ran out.
pub const SYSEXIT_UMOUNT_BUSY: ::core::ffi::c_int = 46;
/// Clusters are allocated when they are written to.
pub const PLOOP_EXPANDED_MODE: ploop_image_mode = 0;
/// All clusters are allocated at creation.
pub const PLOOP_EXPANDED_PREALLOCATED_MODE: ploop_image_mode = 1;
/// No format: the disk's bytes alone.
pub const PLOOP_RAW_MODE: ploop_image_mode = 2;
pub type ploop_image_mode = ::core::ffi::c_int;
/// One delta.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_image_data {
    /// The snapshot whose data it holds.
    pub guid: *mut ::core::ffi::c_char,
    /// Its file.
    pub file: *mut ::core::ffi::c_char,
    /// It belongs to another image: a volume's parent.
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
/// One snapshot.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_snapshot_data {
    pub guid: *mut ::core::ffi::c_char,
    pub parent_guid: *mut ::core::ffi::c_char,
    /// It is to be merged as soon as nothing uses it.
    pub temporary: ::core::ffi::c_int,
    /// It belongs to another image: a volume's parent.
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
/// Element `Encryption` of a descriptor.
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
/// Element `Volume` of a descriptor.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct volume_data {
    /// The image that this one was cloned from.
    pub parent: *mut ::core::ffi::c_char,
    /// The snapshot of the parent that this one continues.
    pub snap_guid: *mut ::core::ffi::c_char,
    /// Nothing may write to it, since another volume continues it.
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
/// A handle. The library allocates it; `ploop_close_dd` frees it.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_disk_images_data {
    /// Sectors of 512 bytes.
    pub size: ::core::ffi::c_ulonglong,
    pub heads: ::core::ffi::c_uint,
    pub cylinders: ::core::ffi::c_uint,
    pub sectors: ::core::ffi::c_uint,
    /// A value of `ploop_image_mode`.
    pub mode: ::core::ffi::c_int,
    /// 0 until the descriptor has been read.
    pub nimages: ::core::ffi::c_int,
    pub images: *mut *mut ploop_image_data,
    pub top_guid: *mut ::core::ffi::c_char,
    pub nsnapshots: ::core::ffi::c_int,
    pub snapshots: *mut *mut ploop_snapshot_data,
    pub runtime: *mut ploop_disk_images_runtime_data,
    /// Sectors in a cluster.
    pub blocksize: ::core::ffi::c_uint,
    pub max_delta_size: ::core::ffi::c_ulonglong,
    /// Null if the image is not encrypted.
    pub enc: *mut encryption_data,
    /// Null if the image is no volume.
    pub vol: *mut volume_data,
    /// The GUID of the tracking of changes; null if there is none. Since 8.0.89.
    pub cbt_uuid: *mut ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_disk_images_data",
    ][::core::mem::size_of::<ploop_disk_images_data>() - 144usize];
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
        "Offset of field: ploop_disk_images_data::cbt_uuid",
    ][::core::mem::offset_of!(ploop_disk_images_data, cbt_uuid) - 104usize];
    [
        "Offset of field: ploop_disk_images_data::dummy",
    ][::core::mem::offset_of!(ploop_disk_images_data, dummy) - 112usize];
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
/// Size and format of an image.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_spec {
    /// Sectors of 512 bytes.
    pub size: off_t,
    /// Sectors in a cluster.
    pub blocksize: u32,
    /// 1 or 2; 0 for a raw image and for qcow2.
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
/// The file system's inode tables are written at once.
pub const PLOOP_CREATE_NOLAZY: ploop_create_flags = 1;
/// A raw image gets a hole instead of zeros.
pub const PLOOP_CREATE_SPARSE: ploop_create_flags = 2;
pub type ploop_create_flags = ::core::ffi::c_int;
pub const PLOOP_FMT: ploop_image_type = 0;
pub const QCOW_FMT: ploop_image_type = 1;
/// The format of an image file.
pub type ploop_image_type = ::core::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_create_param {
    /// Sectors of 512 bytes.
    pub size: ::core::ffi::c_ulonglong,
    /// A value of `ploop_image_mode`.
    pub mode: ::core::ffi::c_int,
    /// The file of the base delta.
    pub image: *mut ::core::ffi::c_char,
    /// The file system to make; null for none.
    pub fstype: *mut ::core::ffi::c_char,
    /// The file system takes the whole device.
    pub without_partition: ::core::ffi::c_int,
    /// Sectors in a cluster; 0 for 2048.
    pub blocksize: ::core::ffi::c_uint,
    /// Bytes in a block of the file system; 0 for 4096.
    pub fsblocksize: ::core::ffi::c_uint,
    /// 1, or 0 and 2 for 2.
    pub fmt_version: ::core::ffi::c_int,
    /// Bits of `ploop_create_flags`.
    pub flags: ::core::ffi::c_uint,
    /// The key to encrypt with; null for none.
    pub keyid: *const ::core::ffi::c_char,
    /// The file system's label; null for none.
    pub fslabel: *mut ::core::ffi::c_char,
    /// A value of `ploop_image_type`.
    pub image_fmt: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_create_param",
    ][::core::mem::size_of::<ploop_create_param>() - 112usize];
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
        "Offset of field: ploop_create_param::image_fmt",
    ][::core::mem::offset_of!(ploop_create_param, image_fmt) - 72usize];
    [
        "Offset of field: ploop_create_param::dummy",
    ][::core::mem::offset_of!(ploop_create_param, dummy) - 76usize];
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
/// `-p`
pub const E2FSCK_PREEN: e2fsck_flags = 1;
/// `-f`
pub const E2FSCK_FORCE: e2fsck_flags = 2;
/// `-y`
pub const E2FSCK_FORCE_REPAIR: e2fsck_flags = 4;
/// `-n`
pub const E2FSCK_RO: e2fsck_flags = 8;
/// Flags of the file system's check; named by those of `fsck.ext4`.
pub type e2fsck_flags = ::core::ffi::c_int;
/// Journalled.
pub const PLOOP_JQUOTA: quota_type = 1;
/// Journalled.
pub const PLOOP_QUOTA: quota_type = 2;
/// Kinds of quota.
pub type quota_type = ::core::ffi::c_int;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct ploop_mount_param {
    /// Out: the device. In: empty, or the device to use.
    pub device: [::core::ffi::c_char; 64usize],
    pub ro: ::core::ffi::c_int,
    /// `MS_NOATIME`, `MS_REMOUNT`.
    pub flags: ::core::ffi::c_int,
    /// Do not have the kernel read the partition table again. Since 9.0.6.
    pub noprobe: ::core::ffi::c_int,
    /// Not read: the file system is looked at.
    pub fstype: *mut ::core::ffi::c_char,
    /// The directory to mount on; null to attach only.
    pub target: *mut ::core::ffi::c_char,
    /// The snapshot; null for the top.
    pub guid: *mut ::core::ffi::c_char,
    /// A value of `quota_type`; 0 for none.
    pub quota: ::core::ffi::c_int,
    /// More mount options.
    pub mount_data: *mut ::core::ffi::c_char,
    /// Sectors in a cluster of a raw image.
    pub blocksize: ::core::ffi::c_uint,
    pub __bindgen_anon_1: ploop_mount_param__bindgen_ty_1,
    /// Out: the exit status of the check.
    pub fsck_rc: ::core::ffi::c_int,
    /// Mount a file system that has no balloon file, too.
    pub skip_balloon: ::core::ffi::c_int,
    /// Mount on a directory beside the image where there is no `target`.
    pub automount: ::core::ffi::c_int,
    /// Out: the inode of the balloon file.
    pub balloon_ino: ::core::ffi::c_ulonglong,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union ploop_mount_param__bindgen_ty_1 {
    /// Check the file system before the mount.
    pub fsck: ::core::ffi::c_int,
    /// Bits of `e2fsck_flags`.
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
    ][::core::mem::size_of::<ploop_mount_param>() - 184usize];
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
        "Offset of field: ploop_mount_param::skip_balloon",
    ][::core::mem::offset_of!(ploop_mount_param, skip_balloon) - 132usize];
    [
        "Offset of field: ploop_mount_param::automount",
    ][::core::mem::offset_of!(ploop_mount_param, automount) - 136usize];
    [
        "Offset of field: ploop_mount_param::balloon_ino",
    ][::core::mem::offset_of!(ploop_mount_param, balloon_ino) - 144usize];
    [
        "Offset of field: ploop_mount_param::dummy",
    ][::core::mem::offset_of!(ploop_mount_param, dummy) - 152usize];
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
/// A target that was put on top of a device.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_tg_data {
    pub devname: [::core::ffi::c_char; 64usize],
    pub devtg: [::core::ffi::c_char; 64usize],
    pub part: [::core::ffi::c_char; 64usize],
    /// The lock of the image, held until `ploop_tg_deinit`.
    pub lckfd: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_tg_data"][::core::mem::size_of::<ploop_tg_data>() - 196usize];
    ["Alignment of ploop_tg_data"][::core::mem::align_of::<ploop_tg_data>() - 4usize];
    [
        "Offset of field: ploop_tg_data::devname",
    ][::core::mem::offset_of!(ploop_tg_data, devname) - 0usize];
    [
        "Offset of field: ploop_tg_data::devtg",
    ][::core::mem::offset_of!(ploop_tg_data, devtg) - 64usize];
    [
        "Offset of field: ploop_tg_data::part",
    ][::core::mem::offset_of!(ploop_tg_data, part) - 128usize];
    [
        "Offset of field: ploop_tg_data::lckfd",
    ][::core::mem::offset_of!(ploop_tg_data, lckfd) - 192usize];
};
impl Default for ploop_tg_data {
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
pub struct ploop_tg_info {
    pub status: [::core::ffi::c_char; 64usize],
    pub open_count: ::core::ffi::c_int,
    pub ro: ::core::ffi::c_int,
    pub blocksize: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_tg_info"][::core::mem::size_of::<ploop_tg_info>() - 76usize];
    ["Alignment of ploop_tg_info"][::core::mem::align_of::<ploop_tg_info>() - 4usize];
    [
        "Offset of field: ploop_tg_info::status",
    ][::core::mem::offset_of!(ploop_tg_info, status) - 0usize];
    [
        "Offset of field: ploop_tg_info::open_count",
    ][::core::mem::offset_of!(ploop_tg_info, open_count) - 64usize];
    [
        "Offset of field: ploop_tg_info::ro",
    ][::core::mem::offset_of!(ploop_tg_info, ro) - 68usize];
    [
        "Offset of field: ploop_tg_info::blocksize",
    ][::core::mem::offset_of!(ploop_tg_info, blocksize) - 72usize];
};
impl Default for ploop_tg_info {
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
    /// Bytes.
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
    /// The device; empty if the numbers are those of the last unmount.
    pub dev: [::core::ffi::c_char; 64usize],
    /// The partition; empty if the numbers are those of the last unmount.
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
/// What a partition's file system needs to be mounted.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_mnt_info {
    /// In: a value of `quota_type`.
    pub quota: ::core::ffi::c_int,
    /// In.
    pub ro: ::core::ffi::c_int,
    /// Out: `ext4` or `xfs`.
    pub fstype: [::core::ffi::c_char; 5usize],
    /// Out: the file system's UUID.
    pub uuid: [::core::ffi::c_char; 38usize],
    /// Out: the mount options.
    pub opts: *const ::core::ffi::c_char,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_mnt_info"][::core::mem::size_of::<ploop_mnt_info>() - 96usize];
    ["Alignment of ploop_mnt_info"][::core::mem::align_of::<ploop_mnt_info>() - 8usize];
    [
        "Offset of field: ploop_mnt_info::quota",
    ][::core::mem::offset_of!(ploop_mnt_info, quota) - 0usize];
    [
        "Offset of field: ploop_mnt_info::ro",
    ][::core::mem::offset_of!(ploop_mnt_info, ro) - 4usize];
    [
        "Offset of field: ploop_mnt_info::fstype",
    ][::core::mem::offset_of!(ploop_mnt_info, fstype) - 8usize];
    [
        "Offset of field: ploop_mnt_info::uuid",
    ][::core::mem::offset_of!(ploop_mnt_info, uuid) - 13usize];
    [
        "Offset of field: ploop_mnt_info::opts",
    ][::core::mem::offset_of!(ploop_mnt_info, opts) - 56usize];
    [
        "Offset of field: ploop_mnt_info::dummy",
    ][::core::mem::offset_of!(ploop_mnt_info, dummy) - 64usize];
};
impl Default for ploop_mnt_info {
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
    /// Sectors of 512 bytes.
    pub size: ::core::ffi::c_ulonglong,
    /// Make device and file system smaller, instead of filling a balloon. Only where the image is not mounted.
    pub offline_resize: ::core::ffi::c_int,
    /// A process in whose mount namespace the image is mounted; 0 for the caller's own.
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
/// The new file gets the name of the old one.
pub const PLOOP_REPLACE_KEEP_NAME: ploop_replace_flags = 1;
/// The device may write to the new file.
pub const PLOOP_REPLACE_RW: ploop_replace_flags = 2;
pub type ploop_replace_flags = ::core::ffi::c_int;
/// The delta to replace is named by one of `guid`, `cur_file` and `level`.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_replace_param {
    /// The new file.
    pub file: *mut ::core::ffi::c_char,
    pub guid: *mut ::core::ffi::c_char,
    pub level: ::core::ffi::c_int,
    pub cur_file: *mut ::core::ffi::c_char,
    /// Bits of `ploop_replace_flags`.
    pub flags: ::core::ffi::c_int,
    /// Of the new file, a value of `ploop_image_mode`.
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
pub struct ploop_snapshot_param {
    /// The GUID of the snapshot; null for a random one.
    pub guid: *mut ::core::ffi::c_char,
    /// The directory of the new delta; null for that of the base.
    pub snap_dir: *mut ::core::ffi::c_char,
    /// Begin to track changes under this GUID; null for not.
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
    /// Where to mount the snapshot; null to attach only.
    pub target: *mut ::core::ffi::c_char,
    /// Out: the device of the snapshot.
    pub device: [::core::ffi::c_char; 64usize],
    /// The directory of the new delta; null for that of the base.
    pub snap_dir: *mut ::core::ffi::c_char,
    /// Begin to track changes under this GUID; null for not.
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
    pub guid_old: *const ::core::ffi::c_char,
    /// `PLOOP_SNAP_SKIP_…`
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
/// There are no ranges since 7.0: each call merges one delta, or all.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_merge_param {
    pub unused1: ::core::ffi::c_int,
    /// Merge the whole chain.
    pub merge_all: ::core::ffi::c_int,
    /// Merge this delta into its parent; null for the top.
    pub guid: *const ::core::ffi::c_char,
    /// The lower end of a range in libploop 1.13 to 1.15. Not read here.
    pub unused2: *const ::core::ffi::c_char,
    /// Must be null: a merge into a new file fails.
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
    /// The smallest extent to discard, in bytes.
    pub minlen_b: u64,
    /// End after so many bytes; 0 for no limit.
    pub to_free: u64,
    /// Mount the image if it is not mounted.
    pub automount: ::core::ffi::c_int,
    /// Ends the work once it points to another number than 0.
    pub stop: *const ::core::ffi::c_int,
    /// Defragment the file system: 0 no, 1 before discarding, 2 instead of discarding.
    pub defrag: ::core::ffi::c_int,
    /// Defragment the image if it has more extents than this for each cluster.
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
/// Bytes.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_discard_stat {
    pub data_size: off_t,
    pub ploop_size: off_t,
    pub image_size: off_t,
    pub balloon_size: off_t,
    /// The host's file system takes discards. Always 1.
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
/// Since 8.0.93.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_compact_param {
    /// What `ploop_open_dd` takes.
    pub path: *const ::core::ffi::c_char,
    /// Defragment the file system first.
    pub defrag: ::core::ffi::c_int,
    /// Only say what would be done.
    pub dry: ::core::ffi::c_int,
    /// Do nothing if less than this can be gained, in percent of the image.
    pub threshold: ::core::ffi::c_int,
    /// In percent of the image.
    pub delta: ::core::ffi::c_int,
    /// Not null. The number is set to 0 first; another number ends the work.
    pub stop: *mut ::core::ffi::c_int,
    /// Not null. Out: the number of the partition that is worked on, and 0 in the end.
    pub compact_dev: *mut dev_t,
    pub dummy: [::core::ffi::c_char; 32usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_compact_param",
    ][::core::mem::size_of::<ploop_compact_param>() - 72usize];
    [
        "Alignment of ploop_compact_param",
    ][::core::mem::align_of::<ploop_compact_param>() - 8usize];
    [
        "Offset of field: ploop_compact_param::path",
    ][::core::mem::offset_of!(ploop_compact_param, path) - 0usize];
    [
        "Offset of field: ploop_compact_param::defrag",
    ][::core::mem::offset_of!(ploop_compact_param, defrag) - 8usize];
    [
        "Offset of field: ploop_compact_param::dry",
    ][::core::mem::offset_of!(ploop_compact_param, dry) - 12usize];
    [
        "Offset of field: ploop_compact_param::threshold",
    ][::core::mem::offset_of!(ploop_compact_param, threshold) - 16usize];
    [
        "Offset of field: ploop_compact_param::delta",
    ][::core::mem::offset_of!(ploop_compact_param, delta) - 20usize];
    [
        "Offset of field: ploop_compact_param::stop",
    ][::core::mem::offset_of!(ploop_compact_param, stop) - 24usize];
    [
        "Offset of field: ploop_compact_param::compact_dev",
    ][::core::mem::offset_of!(ploop_compact_param, compact_dev) - 32usize];
    [
        "Offset of field: ploop_compact_param::dummy",
    ][::core::mem::offset_of!(ploop_compact_param, dummy) - 40usize];
};
impl Default for ploop_compact_param {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// Of `ploop_copy_receiver`.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_copy_receive_param {
    /// The file to create.
    pub file: *const ::core::ffi::c_char,
    pub ifd: ::core::ffi::c_int,
    /// To the sender; -1 for none.
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
/// Of `ploop_copy_init`.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_copy_param {
    pub ofd: ::core::ffi::c_int,
    /// Write in a thread of its own.
    pub async_: ::core::ffi::c_int,
    /// The device, where there is no handle.
    pub device: *const ::core::ffi::c_char,
    /// A value of `ploop_image_type`. Since 8.0.98.
    pub image_fmt: ::core::ffi::c_int,
    pub dummy: [::core::ffi::c_char; 28usize],
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
        "Offset of field: ploop_copy_param::image_fmt",
    ][::core::mem::offset_of!(ploop_copy_param, image_fmt) - 16usize];
    [
        "Offset of field: ploop_copy_param::dummy",
    ][::core::mem::offset_of!(ploop_copy_param, dummy) - 20usize];
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
/// Bytes.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ploop_copy_stat {
    pub xferred_total: u64,
    pub xferred: u64,
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
/// A bitmap of the blocks of an image, in pages of `cluster_sec` sectors: an entry of `map` is 0 for a page of zeros, 1 for
/// a page of ones, and otherwise the address of a page.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ploop_bitmap {
    /// The GUID of the tracking, as bytes.
    pub uuid: [u8; 16usize],
    /// The image's size, in sectors.
    pub size_sec: u64,
    /// Sectors in a page.
    pub cluster_sec: u64,
    /// Sectors for each bit.
    pub granularity_sec: u32,
    /// The number of entries of `map`.
    pub l1_size: u32,
    pub map: __IncompleteArrayField<u64>,
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
/// Encrypt with another key.
pub const PLOOP_ENC_REENCRYPT: ::core::ffi::c_int = 1;
/// Overwrite the old file before it is removed.
pub const PLOOP_ENC_WIPE: ::core::ffi::c_int = 2;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_encrypt_param {
    /// The key; null to decrypt.
    pub keyid: *const ::core::ffi::c_char,
    /// Options for the mounts; null for none.
    pub mnt_opts: *const ::core::ffi::c_char,
    /// `PLOOP_ENC_…`
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
/// The head of a list.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_volume_list_head {
    pub slh_first: *mut ploop_volume_tree_element,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_volume_list_head",
    ][::core::mem::size_of::<ploop_volume_list_head>() - 8usize];
    [
        "Alignment of ploop_volume_list_head",
    ][::core::mem::align_of::<ploop_volume_list_head>() - 8usize];
    [
        "Offset of field: ploop_volume_list_head::slh_first",
    ][::core::mem::offset_of!(ploop_volume_list_head, slh_first) - 0usize];
};
impl Default for ploop_volume_list_head {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
/// A volume, the ones that continue it, and the next that continues the same.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_volume_tree_element {
    pub next: ploop_volume_tree_element__bindgen_ty_1,
    pub children: ploop_volume_list_head,
    pub path: *mut ::core::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ploop_volume_tree_element__bindgen_ty_1 {
    pub sle_next: *mut ploop_volume_tree_element,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of ploop_volume_tree_element__bindgen_ty_1",
    ][::core::mem::size_of::<ploop_volume_tree_element__bindgen_ty_1>() - 8usize];
    [
        "Alignment of ploop_volume_tree_element__bindgen_ty_1",
    ][::core::mem::align_of::<ploop_volume_tree_element__bindgen_ty_1>() - 8usize];
    [
        "Offset of field: ploop_volume_tree_element__bindgen_ty_1::sle_next",
    ][::core::mem::offset_of!(ploop_volume_tree_element__bindgen_ty_1, sle_next)
        - 0usize];
};
impl Default for ploop_volume_tree_element__bindgen_ty_1 {
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
        "Size of ploop_volume_tree_element",
    ][::core::mem::size_of::<ploop_volume_tree_element>() - 24usize];
    [
        "Alignment of ploop_volume_tree_element",
    ][::core::mem::align_of::<ploop_volume_tree_element>() - 8usize];
    [
        "Offset of field: ploop_volume_tree_element::next",
    ][::core::mem::offset_of!(ploop_volume_tree_element, next) - 0usize];
    [
        "Offset of field: ploop_volume_tree_element::children",
    ][::core::mem::offset_of!(ploop_volume_tree_element, children) - 8usize];
    [
        "Offset of field: ploop_volume_tree_element::path",
    ][::core::mem::offset_of!(ploop_volume_tree_element, path) - 16usize];
};
impl Default for ploop_volume_tree_element {
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
pub struct ploop_volume_data {
    /// The directory of the descriptor.
    pub m_path: *const ::core::ffi::c_char,
    /// The directory of the image.
    pub i_path: *const ::core::ffi::c_char,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_volume_data"][::core::mem::size_of::<ploop_volume_data>() - 16usize];
    [
        "Alignment of ploop_volume_data",
    ][::core::mem::align_of::<ploop_volume_data>() - 8usize];
    [
        "Offset of field: ploop_volume_data::m_path",
    ][::core::mem::offset_of!(ploop_volume_data, m_path) - 0usize];
    [
        "Offset of field: ploop_volume_data::i_path",
    ][::core::mem::offset_of!(ploop_volume_data, i_path) - 8usize];
};
impl Default for ploop_volume_data {
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
pub struct ploop_volume_info {
    /// The length of its top delta, in bytes.
    pub size: off_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ploop_volume_info"][::core::mem::size_of::<ploop_volume_info>() - 8usize];
    [
        "Alignment of ploop_volume_info",
    ][::core::mem::align_of::<ploop_volume_info>() - 8usize];
    [
        "Offset of field: ploop_volume_info::size",
    ][::core::mem::offset_of!(ploop_volume_info, size) - 0usize];
};
#[repr(C)]
#[derive(Debug)]
pub struct ploop_copy_handle {
    _unused: [u8; 0],
}
unsafe extern "C" {
    /// What the last failed call of this thread said. It belongs to the library and holds until the thread's next call.
    pub fn ploop_get_last_error() -> *const ::core::ffi::c_char;
    /// Also writes messages to this file; null for none.
    pub fn ploop_set_log_file(fname: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    /// How much is written to the log file.
    pub fn ploop_set_log_level(level: ::core::ffi::c_int);
    /// How much is printed.
    pub fn ploop_set_verbose_level(level: ::core::ffi::c_int);
    /// Ends the operation of the calling thread at its next chance: for signal handlers.
    pub fn ploop_cancel_operation();
    /// Makes a handle: of a descriptor, of the directory that holds one, or of an image. A descriptor is not read yet.
    pub fn ploop_open_dd(
        di: *mut *mut ploop_disk_images_data,
        fname: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Makes a handle of deltas without a descriptor: the list begins with the base and ends with null. Since 9.0.25.
    pub fn ploop_make_dd_from_imgs(
        di: *mut *mut ploop_disk_images_data,
        imgs: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Makes a handle of the deltas of a device. Since 9.0.25.
    pub fn ploop_make_dd_from_device(
        di: *mut *mut ploop_disk_images_data,
        device: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Reads the descriptor of a handle.
    pub fn ploop_read_dd(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    /// Frees a handle; null is allowed.
    pub fn ploop_close_dd(di: *mut ploop_disk_images_data);
    /// Which of several attachments of one image the handle speaks of.
    pub fn ploop_set_component_name(
        di: *mut ploop_disk_images_data,
        component_name: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_spec(
        di: *mut ploop_disk_images_data,
        spec: *mut ploop_spec,
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
    /// A pointer into the handle, or null.
    pub fn ploop_find_parent_by_guid(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ::core::ffi::c_char;
    /// Deprecated. A pointer into the handle, or null.
    pub fn ploop_get_base_delta_uuid(
        di: *mut ploop_disk_images_data,
    ) -> *mut ::core::ffi::c_char;
    /// Writes a GUID in braces: 38 characters and the terminator.
    pub fn ploop_uuid_generate(
        uuid: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// Creates an image and its descriptor.
    pub fn ploop_create_image(param: *mut ploop_create_param) -> ::core::ffi::c_int;
    /// Creates a descriptor alone.
    pub fn ploop_create_dd(
        ddxml: *const ::core::ffi::c_char,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    /// Makes partition and file system anew in an image that exists.
    pub fn ploop_init_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    /// Makes partition and file system on a device.
    pub fn ploop_init_device(
        device: *const ::core::ffi::c_char,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    /// The largest image of the default format, in sectors.
    pub fn ploop_get_max_size(
        blocksize: ::core::ffi::c_uint,
        max: *mut ::core::ffi::c_ulonglong,
    ) -> ::core::ffi::c_int;
    /// Always 1.
    pub fn ploop_is_large_disk_supported() -> ::core::ffi::c_int;
    pub fn ploop_mount_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_mount_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_mount_param,
    ) -> ::core::ffi::c_int;
    /// `di` may be null; if not, its descriptor has to have been read.
    pub fn ploop_umount(
        device: *const ::core::ffi::c_char,
        di: *mut ploop_disk_images_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_umount_image(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    /// For how many seconds an unmount tries again while the file system is busy.
    pub fn ploop_set_umount_timeout(
        di: *mut ploop_disk_images_data,
        timeout: ::core::ffi::c_int,
    );
    /// Deprecated. Ends what a program that died left half done on a device.
    pub fn ploop_complete_running_operation(
        device: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Suspends a device: `/dev/mapper/ploopN`, not its partition.
    pub fn ploop_suspend_device(
        devname: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Resumes a device.
    pub fn ploop_resume_device(
        devname: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_is_mounted(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_find_dev(
        component_name: *const ::core::ffi::c_char,
        delta: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_dev(
        di: *mut ploop_disk_images_data,
        out: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// All devices of an image. `ploop_free_array` frees the list, which ends with null.
    pub fn ploop_get_devs(
        di: *mut ploop_disk_images_data,
        out: *mut *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_free_array(array: *mut *mut ::core::ffi::c_char);
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
    pub fn ploop_get_partition_by_mnt(
        path: *const ::core::ffi::c_char,
        buf: *mut ::core::ffi::c_char,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// The partition of a device; for an encrypted image the decrypted one. `di` may be null.
    pub fn ploop_get_part(
        di: *mut ploop_disk_images_data,
        dev: *const ::core::ffi::c_char,
        partname: *mut ::core::ffi::c_char,
        len: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// The device and the partition that hold the file system; for an encrypted image the decrypted ones. `di` may be null.
    pub fn ploop_get_devname(
        di: *mut ploop_disk_images_data,
        dev: *const ::core::ffi::c_char,
        devname: *mut ::core::ffi::c_char,
        dlen: ::core::ffi::c_int,
        partname: *mut ::core::ffi::c_char,
        plen: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// The file of a device's top delta, and its format.
    pub fn ploop_find_top_delta_name_and_format(
        device: *const ::core::ffi::c_char,
        image: *mut ::core::ffi::c_char,
        image_size: usize,
        format: *mut ::core::ffi::c_char,
        format_size: usize,
    ) -> ::core::ffi::c_int;
    /// The files of a device's deltas, base first. `ploop_free_array` frees the list, which ends with null.
    pub fn ploop_get_names(
        devname: *const ::core::ffi::c_char,
        names: *mut *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Sends a message to a device's target. `ploop_free_dm_message` frees the answer.
    pub fn ploop_dm_message(
        devname: *const ::core::ffi::c_char,
        msg: *const ::core::ffi::c_char,
        out: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_free_dm_message(msg: *mut ::core::ffi::c_char);
    /// Puts a target on top of a device. With these parameters since 9.0.12.
    pub fn ploop_tg_init(
        dev: *const ::core::ffi::c_char,
        tg: *const ::core::ffi::c_char,
        tg_blocksize: ::core::ffi::c_uint,
        out: *mut ploop_tg_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_tg_deinit(
        devtg: *const ::core::ffi::c_char,
        data: *mut ploop_tg_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_tg_info(
        devname: *const ::core::ffi::c_char,
        param: *mut ploop_tg_info,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_info_by_descr(
        descr: *const ::core::ffi::c_char,
        info: *mut ploop_info,
    ) -> ::core::ffi::c_int;
    /// As `ploop_get_info_by_descr`, and the device. `size` is that of the structure.
    pub fn ploop_get_fs_info(
        descr: *const ::core::ffi::c_char,
        info: *mut ploop_fs_info,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// Stores the numbers of a mounted file system beside an image, where `ploop_get_info_by_descr` finds them. Since
    /// 9.0.23.
    pub fn ploop_store_statfs_info(
        mnt: *const ::core::ffi::c_char,
        image: *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_get_mnt_info(
        partname: *const ::core::ffi::c_char,
        info: *mut ploop_mnt_info,
    ) -> ::core::ffi::c_int;
    pub fn ploop_resize_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_resize_param,
    ) -> ::core::ffi::c_int;
    /// Grows the last partition of a device and the file system in it.
    pub fn ploop_resize_blkdev(
        device: *const ::core::ffi::c_char,
        new_size: off_t,
    ) -> ::core::ffi::c_int;
    pub fn ploop_convert_image(
        di: *mut ploop_disk_images_data,
        mode: ::core::ffi::c_int,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_replace_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_replace_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_set_max_delta_size(
        di: *mut ploop_disk_images_data,
        size: ::core::ffi::c_ulonglong,
    ) -> ::core::ffi::c_int;
    pub fn ploop_create_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_snapshot_param,
    ) -> ::core::ffi::c_int;
    /// `holder_fd` may be null. If not, it gets a descriptor of the device: as long as it is open, the snapshot stays.
    pub fn ploop_create_temporary_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_tsnapshot_param,
        holder_fd: *mut ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_switch_snapshot(
        di: *mut ploop_disk_images_data,
        uuid: *const ::core::ffi::c_char,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_switch_snapshot_ex(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_snapshot_switch_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_delete_snapshot(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub fn ploop_delete_top_delta(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    pub fn ploop_merge_snapshot(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_merge_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_discard_get_stat(
        di: *mut ploop_disk_images_data,
        pd_stat: *mut ploop_discard_stat,
    ) -> ::core::ffi::c_int;
    pub fn ploop_discard(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_discard_param,
    ) -> ::core::ffi::c_int;
    /// Moves a delta's clusters to the holes in its file.
    pub fn ploop_image_defrag(
        image: *const ::core::ffi::c_char,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// Discards what the file system does not use, if that is worth it. Since 8.0.93.
    pub fn ploop_compact(param: *mut ploop_compact_param) -> ::core::ffi::c_int;
    /// Receives what `ploop_copy_start` and the calls after it send.
    pub fn ploop_copy_receiver(arg: *mut ploop_copy_receive_param) -> ::core::ffi::c_int;
    /// Copies a descriptor up to a snapshot to another directory: its deltas stay those of this image.
    pub fn ploop_clone_dd(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
        target: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Removes the tracking of changes.
    pub fn ploop_drop_cbt(di: *mut ploop_disk_images_data) -> ::core::ffi::c_int;
    /// The clusters that a delta has itself; null on failure. Not to be relied on: with clusters of 1 MiB it sees no cluster
    /// beyond the 496th of a disk of 4 GiB, and for a disk of fewer than 64 clusters it writes beyond the end of the bitmap.
    pub fn ploop_get_used_bitmap_from_image(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ploop_bitmap;
    /// The blocks written since the tracking began; null on failure.
    pub fn ploop_get_tracking_bitmap_from_image(
        di: *mut ploop_disk_images_data,
        guid: *const ::core::ffi::c_char,
    ) -> *mut ploop_bitmap;
    /// Frees a bitmap.
    pub fn ploop_release_bitmap(bmap: *mut ploop_bitmap);
    /// Stores a key's name in the descriptor; null removes it. The data stay as they are.
    pub fn ploop_set_encryption_keyid(
        di: *mut ploop_disk_images_data,
        keyid: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Encrypts, re-encrypts or decrypts an image.
    pub fn ploop_encrypt_image(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_encrypt_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_volume_create(
        vol: *mut ploop_volume_data,
        param: *mut ploop_create_param,
    ) -> ::core::ffi::c_int;
    pub fn ploop_volume_clone(
        src: *const ::core::ffi::c_char,
        vol: *mut ploop_volume_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_volume_snapshot(
        src: *const ::core::ffi::c_char,
        vol: *mut ploop_volume_data,
    ) -> ::core::ffi::c_int;
    pub fn ploop_volume_delete(path: *const ::core::ffi::c_char) -> ::core::ffi::c_int;
    pub fn ploop_volume_switch(
        from: *const ::core::ffi::c_char,
        to: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// `size` is that of the structure.
    pub fn ploop_volume_get_info(
        path: *const ::core::ffi::c_char,
        info: *mut ploop_volume_info,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    /// `size` is that of an element. `ploop_volume_clear_tree` frees the tree.
    pub fn ploop_volume_get_tree(
        path: *const ::core::ffi::c_char,
        root: *mut ploop_volume_list_head,
        size: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
    pub fn ploop_volume_clear_tree(root: *mut ploop_volume_list_head);
    /// Opens a handle and reads the descriptor at once. Exported, but not declared by the header.
    pub fn ploop_read_disk_descr(
        di: *mut *mut ploop_disk_images_data,
        file: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    /// Begins to copy the image of a device to `param->ofd`: of the handle's device, or of `param->device` where `di` is
    /// null. Exported, but not declared by the header.
    pub fn ploop_copy_init(
        di: *mut ploop_disk_images_data,
        param: *mut ploop_copy_param,
        h: *mut *mut ploop_copy_handle,
    ) -> ::core::ffi::c_int;
    /// Sends the whole image while it goes on being written to. Exported, but not declared by the header.
    pub fn ploop_copy_start(
        h: *mut ploop_copy_handle,
        stat: *mut ploop_copy_stat,
    ) -> ::core::ffi::c_int;
    /// Sends what was written since the last round. Exported, but not declared by the header.
    pub fn ploop_copy_next_iteration(
        h: *mut ploop_copy_handle,
        stat: *mut ploop_copy_stat,
    ) -> ::core::ffi::c_int;
    /// The last round, for which the file system is frozen. Exported, but not declared by the header.
    pub fn ploop_copy_stop(
        h: *mut ploop_copy_handle,
        stat: *mut ploop_copy_stat,
    ) -> ::core::ffi::c_int;
    /// Ends a copy and frees its handle. Exported, but not declared by the header.
    pub fn ploop_copy_deinit(h: *mut ploop_copy_handle);
}
/// Functions that the first versions of the line do not have. A program that calls one of them as it is bound
/// above does not start where the library lacks it. Look it up by `dlsym` instead; these are the types.
pub mod late {
    use super::*;

    /// The names, and the first versions that have them.
    pub const SINCE: [(&::core::ffi::CStr, &str); 4] = [
        (c"ploop_make_dd_from_imgs", "9.0.25"),
        (c"ploop_make_dd_from_device", "9.0.25"),
        (c"ploop_store_statfs_info", "9.0.23"),
        (c"ploop_compact", "8.0.93"),
    ];
    pub type ploop_make_dd_from_imgs = unsafe extern "C" fn(
        di: *mut *mut ploop_disk_images_data,
        imgs: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub type ploop_make_dd_from_device = unsafe extern "C" fn(
        di: *mut *mut ploop_disk_images_data,
        device: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub type ploop_store_statfs_info = unsafe extern "C" fn(
        mnt: *const ::core::ffi::c_char,
        image: *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
    pub type ploop_compact = unsafe extern "C" fn(param: *mut ploop_compact_param) -> ::core::ffi::c_int;
}
