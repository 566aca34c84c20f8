//! [`Call`]: what a C function needs; and [`execute`], which runs it.

use std::os::fd::RawFd;

use super::call_result::CallResult;
use super::{line, process};
use crate::lock::Purpose;
use crate::{Error, Result};

/// What a C function needs. There is one constant for each function, next to the call.
#[derive(Debug, Clone, Copy)]
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
    /// Attaches the image where no device has it, for good or for the time of the call.
    pub(crate) attaches: bool,
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
    /// Takes a moment where no device has the image and no data is merged, starts no tools, and prints nothing unless
    /// libploop is to say what it does.
    pub(crate) is_brief: bool,
}

impl Call {
    pub(crate) const fn new(name: &'static str) -> Call {
        Call {
            name,
            purpose: Purpose::Devices,
            finds_device: false,
            by_component: false,
            any_delta: false,
            attaches: false,
            detaches: false,
            merges_temporary: false,
            discards: false,
            names_users: false,
            knows_parents: false,
            is_brief: false,
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

    pub(crate) const fn attaches(mut self) -> Call {
        self.attaches = true;
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

    pub(crate) const fn brief(self) -> Call {
        self.brief_if(true)
    }

    pub(crate) const fn brief_if(mut self, is_brief: bool) -> Call {
        self.is_brief = is_brief;
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
    fn a_brief_call_prints_without_a_reader() {
        const MUCH: usize = 4 << 20;
        let result = execute(&CALL.brief(), || {
            let mut left = MUCH;
            while left > 0 {
                let line = b"0123456789abcdef0123456789abcde\n";
                // SAFETY: the text outlives the call.
                let written = unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
                if written == -1 {
                    break;
                }
                left -= line.len();
            }
            i32::from(left == 0)
        })
        .unwrap();
        assert_eq!(result.code, 0, "nobody reads, so there is an end");
        let output = result.output.unwrap();
        assert!(output.ends_with("0123456789abcde"), "{output}");
        assert!(output.len() < MUCH);
    }

    /// A signal handler would use the memory that C has from this thread.
    #[test]
    fn signals_wait_for_the_end_of_a_brief_call() {
        use std::sync::atomic::{AtomicU32, Ordering};

        static HANDLED: AtomicU32 = AtomicU32::new(0);
        extern "C" fn handler(_signal: libc::c_int) {
            HANDLED.fetch_add(1, Ordering::SeqCst);
        }
        super::super::signals::set(
            libc::SIGUSR2,
            handler as *const () as libc::sighandler_t,
            libc::SA_RESTART,
        );
        // SAFETY: plain system calls, of which none fails.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        let result = execute(&CALL.brief(), || {
            // SAFETY: a plain system call.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR2) };
            std::thread::sleep(std::time::Duration::from_millis(50));
            i32::from(sent != 0 || HANDLED.load(Ordering::SeqCst) != 0)
        })
        .unwrap();
        assert_eq!(result.code, 0);
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
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
