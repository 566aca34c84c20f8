//! [`LockedImage`]: an image whose lock is held, and the only way to C functions with libploop's handle
//! (`ploop_open_dd`, `ploop_close_dd`). So an image has one operation at a time, among all that use libploop.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use ploop_sys as sys;

use super::call::{Call, execute, execute_keeping};
use super::call_result::CallResult;
use super::line;
use super::text::{CPath, CText};
use crate::canonical::{CanonicalDescriptor, DescriptorCopy};
use crate::image::descriptor::DescriptorFile;
use crate::image::{Descriptor, descriptor};
use crate::lock::{self, ImageLock, ImageLockGuard, Purpose};
use crate::parents::Parents;
use crate::{ComponentName, Error, ErrorKind, Result, paths};

/// C's handle of an image (`struct ploop_disk_images_data`), for one call: C does not reset every field when it reads
/// the descriptor again, and a change that failed leaves its traces there. C does not lock it (hazard 2).
struct Handle(NonNull<sys::ploop_disk_images_data>);

// SAFETY: the handle is heap memory and not tied to a thread; libploop's state per thread (error text, cancel flag)
// is not part of it. It is not `Sync`, and is used only in the call for which it was made.
unsafe impl Send for Handle {}

impl Handle {
    /// Called in the process of C. The error is C's code.
    fn open(
        path: &CPath,
        component: Option<&CText>,
        umount_timeout: Option<i32>,
    ) -> Result<Handle, i32> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the path is terminated; C writes one pointer to `handle`, and only on success.
        let code = unsafe { sys::ploop_open_dd(&mut handle, path.as_ptr()) };
        let handle = match NonNull::new(handle) {
            Some(handle) if code == 0 => Handle(handle),
            _ => return Err(if code == 0 { -1 } else { code }),
        };
        if let Some(component) = component {
            // SAFETY: the handle was just made; the name is terminated and copied by C.
            let code =
                unsafe { sys::ploop_set_component_name(handle.0.as_ptr(), component.as_ptr()) };
            if code != 0 {
                return Err(code);
            }
        }
        if let Some(seconds) = umount_timeout {
            // SAFETY: the handle was just made.
            unsafe { line::set_umount_timeout(handle.0.as_ptr(), seconds) }
        }
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ploop_open_dd` and is freed only here; no pointer into the handle is kept.
        unsafe { sys::ploop_close_dd(self.0.as_ptr()) }
    }
}

/// An opened image: the path of its descriptor, and its lock.
pub(crate) struct ImageHandle {
    /// Of the descriptor, by a path without symbolic links that C takes.
    lock: ImageLock,
    component: Option<ComponentName>,
    timeout: Option<Duration>,
    /// In seconds.
    umount_timeout: Option<i32>,
}

impl ImageHandle {
    /// Resolves `path` as C does, so that this crate checks the file that C works on.
    pub(crate) fn open(operation: &'static str, path: &Path) -> Result<ImageHandle> {
        paths::require_c_path(operation, path)?;
        let resolved = match std::fs::canonicalize(path) {
            Ok(resolved) => resolved,
            Err(error) => return Err(refused_by_c(operation, path, error)),
        };
        descriptor::require_readable(&resolved)
            .map_err(|error| error.during(operation).with_path(path))?;
        paths::require_c_path(operation, &resolved)?;
        Ok(ImageHandle {
            lock: ImageLock::of(&resolved),
            component: None,
            timeout: None,
            umount_timeout: None,
        })
    }

    /// Another handle of the same image.
    pub(crate) fn another(&self) -> ImageHandle {
        ImageHandle {
            lock: ImageLock::of(self.path()),
            component: self.component.clone(),
            timeout: self.timeout,
            umount_timeout: self.umount_timeout,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.lock.descriptor()
    }

    pub(crate) fn component(&self) -> Option<&ComponentName> {
        self.component.as_ref()
    }

    pub(crate) fn set_component(&mut self, component: Option<ComponentName>) {
        self.component = component;
    }

    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(lock::timeout)
    }

    pub(crate) fn umount_timeout(&self) -> Option<i32> {
        self.umount_timeout
    }

    /// Only where `Feature::UmountTimeout` is there.
    pub(crate) fn set_umount_timeout(&mut self, seconds: Option<i32>) {
        self.umount_timeout = seconds;
    }

    /// Waits for the image's lock, for the lock timeout at most. The call then finds what was read through the
    /// [`LockedImage`], unless another program takes the lock in the moment of the
    /// [hand-over](ImageLockGuard::hand_over).
    pub(crate) fn lock<'a>(&'a self, call: &'static Call) -> Result<LockedImage<'a>> {
        if call.purpose == Purpose::Change {
            // Before anything is changed, so also before `execute` asks.
            line::require_line(call.name)?;
        }
        let timeout = self.timeout();
        let guard = self
            .lock
            .acquire(call.name, call.purpose, call.finds_device, timeout)
            .map_err(|error| error.of_image(self.path()))?;
        Ok(LockedImage {
            guard: Arc::new(guard),
            image: self,
            call,
            is_canonical: false,
            parents: None,
            has_no_data: false,
        })
    }
}

/// The error for a path that does not resolve, with libploop's code and message.
fn refused_by_c(operation: &'static str, path: &Path, error: io::Error) -> Error {
    let open = || -> Result<()> {
        const OPEN: Call = Call::new("open");
        let c_path = CPath::new(operation, path)?;
        let mut result = execute(&OPEN, || {
            Handle::open(&c_path, None, None).err().unwrap_or(0)
        })?;
        result.operation = operation;
        result.done(path)
    };
    match open() {
        Err(refused) => refused,
        Ok(()) => Error::io(operation, "the path does not resolve", error).with_path(path),
    }
}

/// An image whose lock is held, for one [`Call`]. The C functions are its methods, in `image_calls`,
/// `calls_without_handle` and `discard_calls`.
pub(crate) struct LockedImage<'a> {
    pub(super) image: &'a ImageHandle,
    pub(super) call: &'static Call,
    guard: Arc<ImageLockGuard>,
    /// Whether this crate has written the descriptor. If not, C reads a copy.
    is_canonical: bool,
    /// Those of a volume that stands upon other images.
    parents: Option<Parents>,
    has_no_data: bool,
}

impl LockedImage<'_> {
    pub(crate) fn path(&self) -> &Path {
        self.image.path()
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.call.name
    }

    /// The name of the device that the call will look for; empty for one without.
    pub(crate) fn component(&self) -> &[u8] {
        match &self.image.component {
            Some(component) if self.call.by_component => component.as_str().as_bytes(),
            _ => &[],
        }
    }

    /// Whether the call attaches the image where no device has it.
    pub(crate) fn may_attach(&self) -> bool {
        self.call.attaches
    }

    /// Whether the lock of the descriptor is held.
    pub(crate) fn has_descriptor_lock(&self) -> bool {
        self.call.purpose != Purpose::Devices
    }

    /// How long this operation waits for others.
    pub(crate) fn timeout(&self) -> Duration {
        self.image.timeout()
    }

    /// The image's locks, to hold them until after the call.
    pub(crate) fn lock_guard(&self) -> Arc<ImageLockGuard> {
        Arc::clone(&self.guard)
    }

    pub(super) fn c_path(&self) -> Result<CPath> {
        CPath::new(self.call.name, self.image.path())
    }

    /// The descriptor as it is on disk now.
    pub(crate) fn descriptor(&self) -> Result<Descriptor> {
        let path = self.image.path();
        descriptor::text(path)
            .and_then(|text| {
                let form = line::descriptor_form();
                let descriptor = Descriptor::parse_as(&text, descriptor::directory(path), form)?;
                descriptor.require_for_changes(form)?;
                Ok(descriptor)
            })
            .map_err(|error| error.during(self.call.name).with_path(path))
    }

    /// [`descriptor`](LockedImage::descriptor), with the text of the file and the fields libploop does not know.
    pub(crate) fn descriptor_file(&self) -> Result<DescriptorFile> {
        let path = self.image.path();
        DescriptorFile::read_as(path, line::descriptor_form())
            .map_err(|error| error.during(self.call.name).with_path(path))
    }

    /// Replaces the descriptor by its canonical form, which C may read in place. `always`: where it is in place, too.
    pub(crate) fn put_in_place(
        &mut self,
        canonical: &CanonicalDescriptor,
        always: bool,
    ) -> Result<()> {
        canonical.put_in_place(self.call.name, always)?;
        self.is_canonical = true;
        Ok(())
    }

    /// Says that the call works on descriptors, headers and tables alone, and on no device.
    pub(crate) fn set_without_data(&mut self) {
        self.has_no_data = true;
    }

    /// Locks and checks the images upon which a volume stands, whose descriptors C reads, too.
    pub(crate) fn lock_parents(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.parents = self.parents_of(descriptor, true)?;
        Ok(())
    }

    /// The images upon which a volume stands, once they are [locked](LockedImage::lock_parents).
    pub(crate) fn parents(&self) -> Option<&Parents> {
        self.parents.as_ref()
    }

    fn parents_of(&self, descriptor: &Descriptor, mends: bool) -> Result<Option<Parents>> {
        let (name, path) = (self.call.name, self.path());
        if let Some(parent) = descriptor
            .stands_upon()
            .filter(|_| !self.call.knows_parents)
        {
            let why = format!(
                "the image is a volume whose lower deltas belong to another one, {}",
                parent.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, name, why).with_path(path));
        }
        let form = line::descriptor_form();
        Parents::lock(name, form, path, descriptor, self.timeout(), mends)
    }

    /// Runs a C function with the handle. libploop takes its own lock anew, so it is given back here; the other
    /// locks are held on, so that the result can be checked before another operation begins.
    pub(super) fn call(
        &self,
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32 + Send,
    ) -> Result<CallResult> {
        self.call_keeping(&[], c)
    }

    /// [`call`](LockedImage::call) with a closure that uses file descriptors of the caller.
    pub(super) fn call_keeping(
        &self,
        keep: &[RawFd],
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32 + Send,
    ) -> Result<CallResult> {
        let mut _parents = None;
        let copy = if self.is_canonical {
            None
        } else {
            _parents = self.parents_of(&self.descriptor()?, false)?;
            let form = line::descriptor_form();
            DescriptorCopy::unless_canonical(self.call.name, self.image.path(), form)?
        };
        let path = match &copy {
            Some(copy) => CPath::new(self.call.name, copy.path())?,
            None => self.c_path()?,
        };
        let component = self.image.component().map(CText::component);
        let umount_timeout = self.image.umount_timeout;
        // Closed after the call, and never by a child that C left behind in it.
        let mut handle = None;
        let (guard, lock) = (&self.guard, self.guard.libploop_file());
        let keep: Vec<RawFd> = keep.iter().copied().chain(lock).collect();
        let call = self.call.brief_if(self.call.is_brief && self.has_no_data);
        let result = execute_keeping(&call, &keep, || {
            // As late as possible: until C has the lock, another program that uses libploop may get it.
            guard.hand_over();
            if let Some(lock) = lock {
                // SAFETY: the file descriptor table is that of this call alone, and only this closure uses the number.
                unsafe { libc::close(lock) };
            }
            match Handle::open(&path, component.as_ref(), umount_timeout) {
                Ok(opened) => c(handle.insert(opened).0.as_ptr()),
                Err(code) => code,
            }
        });
        let mut result = result?;
        if !matches!(result.code, 0 | 1) {
            result.cause = self.descriptor().err();
            result.descriptor_is_sound = result.cause.is_none();
        }
        Ok(result)
    }
}
