//! One call of C, guarded.

use std::os::fd::RawFd;

use super::heap_room;
use super::last_error;
use super::lock_watch::{self, Watch};
use super::own_descriptors::with_own_descriptors;
use super::process::{self, Running, Stdin};
use super::reply::Reply;
use crate::lock::Purpose;
use crate::{Error, ErrorKind, Result};

/// What must be known of a C function to call it safely. One constant for each, next to its call.
#[derive(Debug)]
pub(crate) struct Op {
    /// What the user was doing, for error messages: "create snapshot".
    pub(crate) name: &'static str,
    /// What C takes the lock of the descriptor for, if it does, and reads the descriptor again.
    pub(crate) purpose: Purpose,
    /// Takes libploop's system-wide lock to look for a device.
    pub(crate) finds_device: bool,
    /// Looks for the device of the handle's component; all others for one without a name.
    pub(crate) by_component: bool,
    /// Starts programs.
    pub(crate) forks: bool,
    /// May close file descriptor 0.
    pub(crate) closes_stdin: bool,
}

impl Op {
    pub(crate) const fn new(name: &'static str) -> Op {
        Op {
            name,
            purpose: Purpose::Devices,
            finds_device: false,
            by_component: false,
            forks: false,
            closes_stdin: false,
        }
    }

    /// Takes the lock of the descriptor.
    pub(crate) const fn looks(mut self) -> Op {
        self.purpose = Purpose::Look;
        self
    }

    /// Takes the lock of the descriptor, and changes the image.
    pub(crate) const fn changes(mut self) -> Op {
        self.purpose = Purpose::Change;
        self
    }

    pub(crate) const fn finds_device(mut self) -> Op {
        self.finds_device = true;
        self
    }

    pub(crate) const fn finds_device_if(mut self, finds: bool) -> Op {
        self.finds_device = finds;
        self
    }

    pub(crate) const fn by_component(mut self) -> Op {
        self.by_component = true;
        self
    }

    pub(crate) const fn forks(mut self) -> Op {
        self.forks = true;
        self
    }

    pub(crate) const fn forks_if(mut self, forks: bool) -> Op {
        self.forks = forks;
        self
    }

    pub(crate) const fn closes_stdin(mut self) -> Op {
        self.closes_stdin = true;
        self
    }
}

/// Calls C. The closure holds the call and nothing else: what it does before C could end in a stray
/// child.
pub(super) fn guarded(op: &Op, c: impl FnOnce() -> i32) -> Result<Reply> {
    guarded_keeping(op, &[], c)
}

/// [`guarded`], where the closure uses file descriptors of the caller.
pub(super) fn guarded_keeping(op: &Op, keep: &[RawFd], c: impl FnOnce() -> i32) -> Result<Reply> {
    // A merge of a running image closes descriptor 0, which is another thread's file perhaps (20).
    if !op.closes_stdin || !crate::kernel::is_driver_present() {
        return here(op, c);
    }
    lock_watch::prepare();
    with_own_descriptors(keep, || here(op, c)).map_err(|error| {
        let why = "libploop closes files of other threads here, and no thread with file descriptors of its own can be had";
        Error::io(op.name, why, error)
    })?
}

fn here(op: &Op, c: impl FnOnce() -> i32) -> Result<Reply> {
    require_children(op)?;
    let _running = Running::enter();
    let _stdin = op.closes_stdin.then(Stdin::keep);
    let _watch = (op.purpose != Purpose::Devices).then(Watch::begin);
    Ok(bare(op, c))
}

/// That libploop learns how its tools end.
pub(super) fn require_children(op: &Op) -> Result<()> {
    if op.forks && process::ignores_children() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            op.name,
            "this process ignores SIGCHLD, so libploop could not learn how its tools ended; set SIGCHLD to its default for the time of this call",
        ));
    }
    Ok(())
}

/// The call itself. It takes no lock of this crate, so a process that was just forked may make it.
pub(super) fn bare(op: &Op, c: impl FnOnce() -> i32) -> Reply {
    last_error::clear();
    heap_room::extend_heap();
    let caller = op.forks.then(std::process::id);
    let code = c();
    if caller.is_some_and(|pid| pid != std::process::id()) {
        // libploop forked, could not start the tool, and came back in the child: a second copy of
        // the program (hazard 21). It must not run any of the caller's code, destructors included.
        // SAFETY: `_exit` has no precondition. It runs no handlers of the parent.
        unsafe { libc::_exit(127) }
    }
    let message = if code == 0 { None } else { last_error::take() };
    Reply {
        operation: op.name,
        code,
        message,
        cause: None,
        descriptor_is_sound: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_comes_back_from_c_ends_there() {
        const FORKING: Op = Op::new("test").forks();
        let mut child = 0;
        let reply = guarded(&FORKING, || {
            // SAFETY: the child goes from here straight to `_exit`, as a failed `exec` in libploop
            // would.
            child = unsafe { libc::fork() };
            0
        })
        .unwrap();
        assert_eq!(reply.code, 0);
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: `child` is this process's own, not yet waited for; `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 127,
            "{status:#x}"
        );
    }

    #[test]
    fn a_silent_failure_has_no_words_of_an_earlier_one() {
        const OP: Op = Op::new("test");
        let mut out = [0; 8];
        let loud = guarded(&OP, || {
            // SAFETY: a NULL path is documented to fail; the buffer is as long as said.
            unsafe {
                ploop_sys::ploop_find_dev(std::ptr::null(), std::ptr::null(), out.as_mut_ptr(), 8)
            }
        })
        .unwrap();
        assert_eq!(loud.code, -1);
        assert!(loud.message.is_some());
        let silent = guarded(&OP, || 1).unwrap();
        assert_eq!(silent.message, None);
    }
}
