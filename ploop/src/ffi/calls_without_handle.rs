//! The C functions that take no handle of an image: `ploop_create_image`, `ploop_create_dd`,
//! `ploop_get_info_by_descr`, `ploop_umount` of a device, `ploop_get_dev_by_mnt`, `ploop_get_partition_by_mnt`,
//! `ploop_find_top_delta_name_and_format` and `ploop_get_max_size`. Also libploop's flags and modes.

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ploop_sys as sys;

use super::call::{Call, execute};
use super::image_calls::AttachFirst;
use super::line;
use super::locked_image::LockedImage;
use super::text::{CPath, CText, Param, PathBuffer, or_null};
use crate::lock::{TimedLock, timeout, wait_for_devices};
use crate::{Error, ErrorKind, FsInfo, ImageMode, Result};

pub(crate) use ploop_sys::VERSION;

pub(crate) const CREATE_NO_LAZY: u32 = sys::PLOOP_CREATE_NOLAZY as u32;
/// libploop 7's `PLOOP_CREATE_SPARSE`.
pub(crate) const CREATE_SPARSE: u32 = 2;
pub(crate) const REPLACE_KEEP_NAME: u32 = sys::PLOOP_REPLACE_KEEP_NAME as u32;

/// The flags of a switch are those of libploop.
const _: () = {
    use crate::SwitchFlag;

    assert!(SwitchFlag::SKIP_DESTROY.bits() == sys::PLOOP_SNAP_SKIP_TOPDELTA_DESTROY as u32);
    assert!(SwitchFlag::SKIP_CREATE.bits() == sys::PLOOP_SNAP_SKIP_TOPDELTA_CREATE as u32);
};

/// libploop 7's `enum e2fsck_flags`. libploop 1 takes every number but 0 for the first.
pub(crate) const FSCK_PREEN: u32 = 1;
pub(crate) const FSCK_FORCE: u32 = 2;
pub(crate) const FSCK_FORCE_REPAIR: u32 = 4;
pub(crate) const FSCK_RO: u32 = 8;

pub(super) fn c_mode(mode: ImageMode) -> i32 {
    match mode {
        ImageMode::Expanded => sys::PLOOP_EXPANDED_MODE,
        ImageMode::Preallocated => sys::PLOOP_EXPANDED_PREALLOCATED_MODE,
        ImageMode::Raw => sys::PLOOP_RAW_MODE,
    }
}

/// The parameters of `ploop_create_image`. Sizes are in sectors, `fs_block_size` in bytes.
pub(crate) struct CreateArgs<'a> {
    pub(crate) image: &'a CPath,
    pub(crate) size: u64,
    pub(crate) mode: ImageMode,
    pub(crate) fs_type: Option<&'a CText>,
    /// Only where the library has it.
    pub(crate) fs_label: Option<&'a CText>,
    /// Only where the library has it.
    pub(crate) encryption_key: Option<&'a CText>,
    pub(crate) without_partition: bool,
    pub(crate) block_size: u32,
    pub(crate) fs_block_size: u32,
    /// 0 for the driver's default; anything but 0, 1 and 2 crashes C (hazard 4).
    pub(crate) version: u32,
    pub(crate) flags: u32,
}

impl CreateArgs<'_> {
    fn param(&self) -> Param<sys::ploop_create_param> {
        let mut param = sys::ploop_create_param {
            size: self.size,
            mode: c_mode(self.mode),
            image: self.image.as_mut_ptr(),
            fstype: or_null(self.fs_type),
            without_partition: self.without_partition.into(),
            blocksize: self.block_size,
            fsblocksize: self.fs_block_size,
            fmt_version: self.version.min(2) as i32,
            flags: self.flags,
            ..Default::default()
        };
        line::set_label_and_key(&mut param, self.fs_label, self.encryption_key);
        Param(param)
    }
}

/// Creates an image. The caller names the operation, which takes more than this call.
pub(crate) fn create_image(
    operation: &'static str,
    path: &Path,
    args: &CreateArgs<'_>,
) -> Result<()> {
    let is_sparse = args.mode == ImageMode::Expanded && args.fs_type.is_none();
    let call = Call::new(operation)
        .finds_device_if(args.fs_type.is_some())
        .brief_if(is_sparse && args.encryption_key.is_none());
    if call.finds_device {
        wait_for_devices(operation, path, timeout())?;
    }
    let mut param = args.param();
    // SAFETY: the texts in `param` are terminated and outlive the call; the image's path has the 4096
    // readable bytes that Debian's build copies (hazard 0.8); the version is 0, 1 or 2.
    execute(&call, || unsafe {
        sys::ploop_create_image(param.as_mut_ptr())
    })?
    .done(path)
}

/// Creates a descriptor only. `args.image` is stored as it is.
pub(crate) fn create_descriptor(
    path: &Path,
    descriptor: &CPath,
    args: &CreateArgs<'_>,
) -> Result<()> {
    const CALL: Call = Call::new("create descriptor").brief();
    let mut param = args.param();
    // SAFETY: as in `create_image`; the descriptor's path has 4096 readable bytes as well.
    execute(&CALL, || unsafe {
        sys::ploop_create_dd(descriptor.as_ptr(), param.as_mut_ptr())
    })?
    .done(path)
}

impl LockedImage<'_> {
    /// The name is that of the operation of which this is a part.
    pub(crate) const INIT_NEW: Call = Call::new("create image").changes().finds_device();
    pub(crate) const INIT: Call = Call::new("make a file system in").changes().finds_device();

    /// Makes partition, file system and balloon in an image that has none (`ploop_init_image`). Only where
    /// `Feature::Init` is there. Returns the locked image, so that the result can be checked.
    pub(crate) fn init(self, args: &CreateArgs<'_>) -> Result<Self> {
        let mut param = args.param();
        let result = self.call(|di| {
            // SAFETY: the handle is live and used by this thread only; the texts in `param` are terminated and outlive
            // the call.
            unsafe { line::init_image(di, param.as_mut_ptr()) }
        })?;
        result.done(self.path())?;
        Ok(self)
    }

    pub(crate) const FS_INFO: Call = Call::new("get file system info of")
        .looks()
        .finds_device()
        .attaches()
        .names_users()
        .knows_parents();

    /// C opens the descriptor and locks it by itself here.
    pub(crate) fn fs_info(self, attach: Option<&AttachFirst>) -> Result<FsInfo> {
        let descriptor = self.c_path()?;
        let mut info = sys::ploop_info::default();
        // SAFETY: the path is terminated and has the 4096 readable bytes that Debian's build copies; C fills in
        // `info`.
        let result = self.call_attached(attach, |_| unsafe {
            sys::ploop_get_info_by_descr(descriptor.as_ptr(), &mut info)
        })?;
        if result.code == 1 {
            // Elsewhere this code is SYSEXIT_CREAT.
            return Err(result.into_error(self.path()).meaning(
                ErrorKind::NotMounted,
                "the image is attached to a device but its file system is not mounted, so there is nothing to ask",
            ));
        }
        result.done(self.path())?;
        Ok(FsInfo {
            block_size: info.fs_bsize,
            blocks: info.fs_blocks,
            blocks_free: info.fs_bfree,
            inodes: info.fs_inodes,
            inodes_free: info.fs_ifree,
        })
    }
}

/// Detaches a device, and unmounts its file system.
pub(crate) fn umount_device(device: &Path, name: &CText) -> Result<()> {
    const CALL: Call = Call::new("unmount device").names_users();
    // SAFETY: the name is terminated and longer than the 5 bytes C compares (hazard 13); a NULL handle
    // is allowed, and one that was not read would crash (hazard 5).
    execute(&CALL, || unsafe {
        sys::ploop_umount(name.as_ptr(), std::ptr::null_mut())
    })?
    .done(device)
}

type LookUp = unsafe extern "C" fn(*const c_char, *mut c_char, i32) -> i32;

/// Held by look-ups by mount point: they read `/proc/mounts` with `getmntent`, which has one static buffer.
static MOUNT_TABLE: TimedLock = TimedLock::new();

fn by_mount(call: &'static Call, path: &Path, mount: &CPath, c: LookUp) -> Result<Option<PathBuf>> {
    MOUNT_TABLE.with_lock(call.name, Duration::MAX, || {
        let mut out = PathBuffer::new();
        // SAFETY: `c` is one of the two functions below, which read a terminated path and write at
        // most the given number of bytes; no other thread is in `getmntent` by way of this crate.
        let result = execute(call, || unsafe {
            c(mount.as_ptr(), out.as_mut_ptr(), PathBuffer::LEN as i32)
        })?;
        Ok(result.found(path)?.then(|| out.into_path()))
    })
}

pub(crate) fn device_by_mount(path: &Path, mount: &CPath) -> Result<Option<PathBuf>> {
    const CALL: Call = Call::new("find the device of");
    by_mount(&CALL, path, mount, sys::ploop_get_dev_by_mnt)
}

pub(crate) fn partition_by_mount(path: &Path, mount: &CPath) -> Result<Option<PathBuf>> {
    const CALL: Call = Call::new("find the partition of");
    by_mount(&CALL, path, mount, sys::ploop_get_partition_by_mnt)
}

/// The top delta of a device, and the name of its format.
pub(crate) fn top_delta_of_device(device: &Path, name: &CText) -> Result<(PathBuf, String)> {
    const CALL: Call = Call::new("find the top delta of");
    let mut image = PathBuffer::new();
    let mut format = PathBuffer::new();
    // SAFETY: the name is terminated and longer than 5 bytes (hazard 13); both buffers have the lengths
    // given, and a terminator behind them that C does not know of (hazard 12).
    execute(&CALL, || unsafe {
        sys::ploop_find_top_delta_name_and_format(
            name.as_ptr(),
            image.as_mut_ptr(),
            PathBuffer::LEN,
            format.as_mut_ptr(),
            PathBuffer::LEN,
        )
    })?
    .done(device)?;
    Ok((
        image.into_path(),
        format.into_path().to_string_lossy().into_owned(),
    ))
}

/// The partition of a device, or what takes its place; `None` where the library has no such function.
pub(crate) fn partition_of_device(device: &Path, name: &CText) -> Option<Result<PathBuf>> {
    const CALL: Call = Call::new("find the partition of");
    let c = line::get_part()?;
    let mut part = PathBuffer::new();
    // SAFETY: no handle is needed; the name is terminated; the buffer has the length given.
    let result = execute(&CALL, || unsafe {
        let (di, len) = (std::ptr::null_mut(), PathBuffer::LEN as i32);
        c(di, name.as_ptr(), part.as_mut_ptr(), len)
    });
    let done = result.and_then(|result| result.done(device));
    Some(done.map(|()| part.into_path()))
}

/// Freezes what is on a partition, or thaws it. Only where `Feature::Suspend` is there.
pub(crate) fn suspend_device(part: &Path, name: &CText, suspends: bool) -> Result<()> {
    const SUSPEND: Call = Call::new("suspend device");
    const RESUME: Call = Call::new("resume device");
    let call = if suspends { &SUSPEND } else { &RESUME };
    let c = line::suspend_device(suspends).ok_or_else(|| {
        let message = "the libploop that is loaded has no such function";
        Error::new(ErrorKind::Unsupported, call.name, message).with_path(part)
    })?;
    // SAFETY: the name is terminated.
    execute(call, || unsafe { c(name.as_ptr()) })?.done(part)
}

/// Makes partition and file system on a device. Only where `Feature::Init` is there.
pub(crate) fn init_device(device: &Path, name: &CText, args: &CreateArgs<'_>) -> Result<()> {
    const CALL: Call = Call::new("make a file system on");
    let mut param = args.param();
    // SAFETY: the name and the texts in `param` are terminated and outlive the call.
    execute(&CALL, || unsafe {
        line::init_device(name, param.as_mut_ptr())
    })?
    .done(device)
}

/// The largest image, in sectors, for the driver's default format.
pub(crate) fn max_size(block_size: u32) -> Result<u64> {
    const CALL: Call = Call::new("get maximum size");
    let mut max = 0;
    // SAFETY: C writes one number to `max`.
    execute(&CALL, || unsafe {
        sys::ploop_get_max_size(block_size, &mut max)
    })?
    .done(Path::new(""))?;
    Ok(max)
}

/// Whether images can be attached and mounted.
pub(crate) fn is_driver_present() -> bool {
    exists(Path::new("/proc/vz/ploop_minor"))
}

/// Whether a path exists. Asked by `access` of the C library, which the sandbox replaces.
pub(crate) fn exists(path: &Path) -> bool {
    CPath::new("look for a file", path).is_ok_and(|path| {
        // SAFETY: the path is terminated.
        unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
    })
}
