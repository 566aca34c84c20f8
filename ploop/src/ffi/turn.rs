//! Whose turn it is: one operation at a time on one image, and none while another process works
//! on it.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use ploop_sys as sys;

use super::call::{Op, guarded, guarded_keeping};
use super::reply::Reply;
use super::text::{CPath, CText};
use crate::canonical::{Canonical, DescriptorCopy};
use crate::image::{Descriptor, descriptor};
use crate::lock::{self, Held, ImageLock};
use crate::{Error, ErrorKind, Result, paths};

/// C's handle of an image. Exclusive: C has no lock for it (hazard 2).
struct Handle(NonNull<sys::ploop_disk_images_data>);

// SAFETY: the handle is heap memory without ties to the thread that made it; what libploop keeps per
// thread (error text, cancel flag) is not part of it. It is not `Sync`, and used through `&mut` only.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ploop_open_dd`, is freed only here, and nothing that C handed
        // out of it was kept.
        unsafe { sys::ploop_close_dd(self.0.as_ptr()) }
    }
}

/// An image that was opened: its descriptor, and C's handle of it once a call needed one.
pub(crate) struct Image {
    /// Resolved, and checked to be one that C takes.
    path: PathBuf,
    component: Option<CText>,
    timeout: Option<Duration>,
    lock: ImageLock,
    /// Kept between calls that only look. C does not reset every field when it reads the descriptor
    /// again, and a failed change stays in it, so whatever changes the image starts with a new one.
    handle: Option<Handle>,
}

impl Image {
    /// `path` is resolved as C does it, so that what is checked here is what C works on.
    pub(crate) fn open(operation: &'static str, path: &Path) -> Result<Image> {
        paths::require_passable(operation, path)?;
        let resolved = match std::fs::canonicalize(path) {
            Ok(resolved) => resolved,
            Err(error) => return Err(refused_by_c(operation, path, error)),
        };
        descriptor::require_readable(&resolved)
            .map_err(|error| error.during(operation).with_path(path))?;
        paths::require_passable(operation, &resolved)?;
        Ok(Image {
            lock: ImageLock::of(&resolved),
            path: resolved,
            component: None,
            timeout: None,
            handle: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn set_component(&mut self, component: Option<CText>) {
        self.component = component;
        // C has no way to take a name back.
        self.handle = None;
    }

    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or_else(lock::timeout)
    }

    /// Waits for the image's turn, at most for the lock timeout. What is read through the [`Turn`]
    /// before its call is what the call will find, save for a process that takes the lock in the
    /// moment in which C takes it over.
    pub(crate) fn turn<'a>(&'a mut self, op: &'static Op) -> Result<Turn<'a>> {
        let timeout = self.timeout();
        let held = self
            .lock
            .acquire(op.name, op.purpose, op.finds_device, timeout)?;
        Ok(Turn {
            held: Arc::new(held),
            image: self,
            op,
            is_canonical: false,
        })
    }

    fn handle(&mut self, operation: &'static str) -> Result<NonNull<sys::ploop_disk_images_data>> {
        match &self.handle {
            Some(handle) => Ok(handle.0),
            None => {
                let handle = self.handle_of(operation, &self.path)?;
                Ok(self.handle.insert(handle).0)
            }
        }
    }

    fn handle_of(&self, operation: &'static str, path: &Path) -> Result<Handle> {
        let handle = open_dd(operation, path)?;
        if let Some(component) = &self.component {
            const SET: Op = Op::new("set component name");
            // SAFETY: the handle was just made; the name is terminated and copied by C.
            guarded(&SET, || unsafe {
                sys::ploop_set_component_name(handle.0.as_ptr(), component.as_ptr())
            })?
            .done(&self.path)?;
        }
        Ok(handle)
    }
}

fn open_dd(operation: &'static str, path: &Path) -> Result<Handle> {
    const OPEN: Op = Op::new("open");
    let c_path = CPath::new(operation, path)?;
    let mut handle = std::ptr::null_mut();
    let mut reply = guarded(&OPEN, || {
        // SAFETY: the path is terminated; C writes one pointer to `handle`, and only on success.
        unsafe { sys::ploop_open_dd(&mut handle, c_path.as_ptr()) }
    })?;
    reply.operation = operation;
    reply.done(path)?;
    NonNull::new(handle)
        .map(Handle)
        .ok_or_else(|| Error::new(ErrorKind::Other, operation, "libploop gave no handle"))
}

/// A path that does not resolve gets the code and the words libploop has for it.
fn refused_by_c(operation: &'static str, path: &Path, error: io::Error) -> Error {
    match open_dd(operation, path) {
        Err(refused) => refused,
        Ok(_) => Error::io(operation, "the path does not resolve", error).with_path(path),
    }
}

/// The image's turn: the only way to C for operations on an image. The C functions are methods of
/// it, in `image_calls` and their neighbours.
pub(crate) struct Turn<'a> {
    pub(super) image: &'a mut Image,
    pub(super) op: &'static Op,
    held: Arc<Held>,
    /// Whether C may read the descriptor where it is.
    is_canonical: bool,
}

impl Turn<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.image.path
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.op.name
    }

    /// The name of the device that the call will look for; empty for one without.
    pub(crate) fn component(&self) -> &[u8] {
        match &self.image.component {
            Some(component) if self.op.by_component => component.as_bytes(),
            _ => &[],
        }
    }

    /// The image's locks, for those who have something to do after the call.
    pub(crate) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held)
    }

    /// How long this operation waits for others.
    pub(super) fn timeout(&self) -> Duration {
        self.image.timeout()
    }

    pub(super) fn c_path(&self) -> Result<CPath> {
        CPath::new(self.op.name, &self.image.path)
    }

    /// The descriptor as it is on disk now.
    pub(crate) fn descriptor(&self) -> Result<Descriptor> {
        Ok(self.descriptor_and_text()?.0)
    }

    pub(crate) fn descriptor_and_text(&self) -> Result<(Descriptor, Vec<u8>)> {
        let path = &self.image.path;
        descriptor::text(path)
            .and_then(|text| Ok((Descriptor::parse(&text, descriptor::directory(path))?, text)))
            .map_err(|error| error.during(self.op.name).with_path(path))
    }

    /// C's handle as it was left is not good enough for this call: see [`Image::handle`].
    pub(super) fn with_new_handle(mut self) -> Self {
        self.forget_handle();
        self
    }

    /// The descriptor is another one now.
    pub(crate) fn forget_handle(&mut self) {
        self.image.handle = None;
    }

    /// The descriptor as it is to be given to C.
    pub(crate) fn canonical(&self) -> Result<Canonical> {
        Canonical::read(self.op.name, &self.image.path)
    }

    /// Has C read the descriptor where it is.
    pub(crate) fn put_in_place(&mut self, canonical: &Canonical) -> Result<()> {
        canonical.put_in_place(self.op.name)?;
        self.is_canonical = true;
        Ok(())
    }

    /// Calls C with the handle. The lock passes to C here. The turn stays, so that the result can be
    /// looked at before another thread changes it.
    pub(super) fn call(
        &mut self,
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32,
    ) -> Result<Reply> {
        self.call_keeping(&[], c)
    }

    /// [`call`](Turn::call), where the closure uses file descriptors of the caller.
    pub(super) fn call_keeping(
        &mut self,
        keep: &[RawFd],
        c: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32,
    ) -> Result<Reply> {
        self.call_by(|op, handle| guarded_keeping(op, keep, || c(handle)))
    }

    /// [`call`](Turn::call), where `guarded` takes the place of [`guarded_keeping`].
    pub(super) fn call_by(
        &mut self,
        guarded: impl FnOnce(&'static Op, *mut sys::ploop_disk_images_data) -> Result<Reply>,
    ) -> Result<Reply> {
        let copy = if self.is_canonical {
            None
        } else {
            DescriptorCopy::unless_canonical(self.op.name, &self.image.path)?
        };
        if let Some(copy) = &copy {
            self.image.handle = Some(self.image.handle_of(self.op.name, copy.path())?);
        }
        let handle = self.image.handle(self.op.name)?.as_ptr();
        self.held.hand_over();
        let reply = guarded(self.op, handle);
        if copy.is_some() {
            self.forget_handle();
        }
        let mut reply = reply?;
        if !matches!(reply.code, 0 | 1) {
            self.forget_handle();
            reply.cause = self.descriptor().err();
            reply.descriptor_is_sound = reply.cause.is_none();
        }
        Ok(reply)
    }
}
