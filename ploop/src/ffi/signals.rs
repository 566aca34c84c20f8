//! Signals: handlers in the process in which libploop runs, and masks in the threads that wait for it.

use std::ffi::c_int;
use std::marker::PhantomData;

/// Signals by which the kernel reports a fault. The program's handlers for them are not for the process of C.
const FAULTS: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

extern "C" fn do_nothing(_signal: c_int) {}

/// Replaces the program's handlers in a new process by one that does nothing. Tools that libploop starts get the
/// default action, as always after `exec`.
pub(super) fn reset() {
    let handler = do_nothing as *const () as libc::sighandler_t;
    for signal in 1..=libc::SIGRTMAX() {
        let Some(found) = handler_of(signal) else {
            continue;
        };
        let is_handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&found);
        match signal {
            // While it is ignored, `waitpid` does not say how a tool ended.
            libc::SIGCHLD => set(signal, libc::SIG_DFL, 0),
            // With a handler, `write` fails instead, and C checks for that.
            libc::SIGPIPE | libc::SIGXFSZ => set(signal, handler, libc::SA_RESTART),
            // Interrupts a wait: for the lock (by libploop's timer), or for the driver (by this crate).
            _ if signal == libc::SIGRTMIN() => set(signal, handler, 0),
            _ if is_handled && FAULTS.contains(&signal) => set(signal, libc::SIG_DFL, 0),
            _ if is_handled => set(signal, handler, libc::SA_RESTART),
            _ => {}
        }
    }
}

/// `None` for the two signals that libc reserves.
fn handler_of(signal: c_int) -> Option<libc::sighandler_t> {
    // SAFETY: `sigaction` is plain data, for which all zeroes is a value; with a NULL new action the
    // call only fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action) == 0).then_some(action.sa_sigaction)
    }
}

/// Gives a signal a handler that does nothing: it interrupts a wait.
pub(super) fn set_nothing(signal: c_int) {
    set(signal, do_nothing as *const () as libc::sighandler_t, 0);
}

pub(super) fn set(signal: c_int, handler: libc::sighandler_t, flags: c_int) {
    // SAFETY: as in `handler_of`; the handler is the default, or a function of this crate that is async-signal-safe
    // and has the signature that the flags say.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Unblocks all signals.
pub(super) fn unblock() {
    // SAFETY: the set is plain data that the first call fills in; the second concerns this thread.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Blocks all signals in this thread, and in those it starts, until this is dropped.
pub(super) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(super) fn begin() -> SignalsBlocked {
        // SAFETY: signal sets are plain data, for which all zeroes is a value; the calls fill them in
        // or read them, and concern this thread alone.
        unsafe {
            let (mut all, mut mask) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut mask);
            SignalsBlocked(mask)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one found in `begin`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Blocks SIGPIPE and SIGXFSZ in this thread until this is dropped. A write to a pipe without a reader, or beyond the
/// process's limit of file size, then only fails.
pub(crate) struct WriteSignalsBlocked {
    blocked: libc::sigset_t,
    mask: libc::sigset_t,
    /// A mask is that of one thread.
    _not_send: PhantomData<*const ()>,
}

impl WriteSignalsBlocked {
    pub(crate) fn begin() -> WriteSignalsBlocked {
        // SAFETY: signal sets are plain data, for which all zeroes is a value; the calls fill them in or
        // read them, and concern this thread alone.
        unsafe {
            let (mut blocked, mut mask) = (std::mem::zeroed(), std::mem::zeroed());
            let mut pending = std::mem::zeroed();
            libc::sigemptyset(&mut blocked);
            libc::sigpending(&mut pending);
            for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
                // A signal that was pending before is for the program.
                if libc::sigismember(&pending, signal) == 0 {
                    libc::sigaddset(&mut blocked, signal);
                }
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, &mut mask);
            WriteSignalsBlocked {
                blocked,
                mask,
                _not_send: PhantomData,
            }
        }
    }
}

impl Drop for WriteSignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as in `begin`, where the mask was read. `sigtimedwait` returns at once.
        unsafe {
            let at_once: libc::timespec = std::mem::zeroed();
            while libc::sigtimedwait(&self.blocked, std::ptr::null_mut(), &at_once) > 0 {}
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut());
        }
    }
}
