//! [`Call`]: what a C function needs; and [`execute`], which runs it.

use std::os::fd::RawFd;

use super::call_result::CallResult;
use super::{line, process};
use crate::lock::Purpose;
use crate::{Error, Result};

/// What a C function needs. There is one constant for each function, next to the call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The operation, for error messages: "create a snapshot of".
    pub(crate) name: &'static str,
    /// What C locks the descriptor for. With the lock it reads the descriptor again.
    pub(crate) purpose: Purpose,
    /// Looks for a device, under libploop's system-wide lock.
    pub(crate) finds_device: bool,
    /// Looks for the device with the handle's component name; other calls look for one without a name.
    pub(crate) by_component: bool,
    /// Works on any delta, not only the top.
    pub(crate) any_delta: bool,
    /// Detaches the device.
    pub(crate) detaches: bool,
    /// Merges temporary snapshots that are not in use, under way or at the end.
    pub(crate) merges_temporary: bool,
    /// Kills every process when it cannot fork (hazard 22).
    pub(crate) discards: bool,
    /// Runs `lsof` where a file system cannot be unmounted, and logs what that says.
    pub(crate) names_users: bool,
    /// Does to a volume that stands upon other images what it does to any image, and nothing to those.
    pub(crate) knows_parents: bool,
}

impl Call {
    pub(crate) const fn new(name: &'static str) -> Call {
        Call {
            name,
            purpose: Purpose::Devices,
            finds_device: false,
            by_component: false,
            any_delta: false,
            detaches: false,
            merges_temporary: false,
            discards: false,
            names_users: false,
            knows_parents: false,
        }
    }

    /// Locks the descriptor, and changes nothing.
    pub(crate) const fn looks(mut self) -> Call {
        self.purpose = Purpose::Look;
        self
    }

    /// Locks the descriptor, and changes the image.
    pub(crate) const fn changes(mut self) -> Call {
        self.purpose = Purpose::Change;
        self
    }

    pub(crate) const fn finds_device(mut self) -> Call {
        self.finds_device = true;
        self
    }

    pub(crate) const fn finds_device_if(mut self, finds: bool) -> Call {
        self.finds_device = finds;
        self
    }

    pub(crate) const fn by_component(self) -> Call {
        self.by_component_if(true)
    }

    pub(crate) const fn by_component_if(mut self, by_component: bool) -> Call {
        self.by_component = by_component;
        self
    }

    pub(crate) const fn any_delta(mut self) -> Call {
        self.any_delta = true;
        self
    }

    pub(crate) const fn detaches(mut self) -> Call {
        self.detaches = true;
        self
    }

    pub(crate) const fn merges_temporary(mut self) -> Call {
        self.merges_temporary = true;
        self
    }

    pub(crate) const fn discards(mut self) -> Call {
        self.discards = true;
        self
    }

    pub(crate) const fn names_users(mut self) -> Call {
        self.names_users = true;
        self
    }

    pub(crate) const fn knows_parents(mut self) -> Call {
        self.knows_parents = true;
        self
    }
}

/// Runs a C function in [a process of its own](process). The closure calls C and does little else: should
/// libploop's child return from C by mistake (hazard 21), nothing else may run in it.
pub(super) fn execute(call: &Call, c: impl FnOnce() -> i32 + Send) -> Result<CallResult> {
    execute_keeping(call, &[], c)
}

/// [`execute`] of a closure that uses file descriptors of the caller. None of them may be a standard stream.
pub(super) fn execute_keeping(
    call: &Call,
    keep: &[RawFd],
    c: impl FnOnce() -> i32 + Send,
) -> Result<CallResult> {
    line::require_line(call.name)?;
    process::run(call, keep, c)
        .map_err(|error| Error::io(call.name, "libploop could not be called", error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call::new("test");

    #[test]
    fn a_child_that_comes_back_from_c_ends_there() {
        let result = execute(&CALL, || {
            // SAFETY: the child goes from here straight to `_exit`, as a failed `exec` in libploop
            // would.
            let child = unsafe { libc::fork() };
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            if child != 0 && unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return -1;
            }
            libc::WEXITSTATUS(status)
        })
        .unwrap();
        assert_eq!(result.code, 127);
    }

    #[test]
    fn a_silent_failure_has_no_words_of_an_earlier_one() {
        let open = || {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the path is terminated; where it does not resolve no handle is made.
            unsafe { ploop_sys::ploop_open_dd(&mut handle, c"/none/xml".as_ptr()) }
        };
        let loud = execute(&CALL, open).unwrap();
        assert_eq!(loud.code, ploop_sys::SYSEXIT_DISKDESCR);
        assert!(loud.message.is_some());
        let silent = execute(&CALL, || 1).unwrap();
        assert_eq!(silent.message, None);
    }
}
