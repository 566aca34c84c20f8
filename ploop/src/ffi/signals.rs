//! Signals, as the process has them in which libploop runs.

use std::ffi::c_int;
use std::marker::PhantomData;

/// Signals by which the kernel reports a fault. Whoever handled them did so for the program.
const FAULTS: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

pub(super) extern "C" fn nothing(_signal: c_int) {}

/// Of a process that was just made: no handler of the program is left. What it handles does nothing
/// here; programs that are started have the default action then, as ever.
pub(super) fn reset() {
    let handler = nothing as *const () as libc::sighandler_t;
    for signal in 1..=libc::SIGRTMAX() {
        let Some(found) = handler_of(signal) else {
            continue;
        };
        let is_handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&found);
        match signal {
            // libploop could not learn how its tools ended if they were ignored.
            libc::SIGCHLD => set(signal, libc::SIG_DFL, 0),
            // `write` fails then, and C looks at its result.
            libc::SIGPIPE | libc::SIGXFSZ => set(signal, handler, libc::SA_RESTART),
            // Ends a wait: of libploop's lock by its own timer, of the driver by this crate.
            _ if signal == libc::SIGRTMIN() => set(signal, handler, 0),
            _ if is_handled && FAULTS.contains(&signal) => set(signal, libc::SIG_DFL, 0),
            _ if is_handled => set(signal, handler, libc::SA_RESTART),
            _ => {}
        }
    }
}

/// `None` for the two that libc keeps to itself.
fn handler_of(signal: c_int) -> Option<libc::sighandler_t> {
    // SAFETY: `sigaction` is plain data, for which all zeroes is a value; with a NULL new action the
    // call only fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action) == 0).then_some(action.sa_sigaction)
    }
}

pub(super) fn set(signal: c_int, handler: libc::sighandler_t, flags: c_int) {
    // SAFETY: as above; the handler is the default, or a function of this crate that is safe in any
    // signal context and of the kind that the flags say.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Lets all signals through.
pub(super) fn unblock() {
    // SAFETY: the set is plain data that the first call fills in; the second concerns this thread.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// All signals, held back from this thread and from those it starts, until this is dropped.
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

/// The signals that a write may raise, held back from this thread until this is dropped: where a pipe has
/// no reader, or a file gets too long for the limit of the process, the write fails.
pub(crate) struct WriteSignalsBlocked {
    held: libc::sigset_t,
    mask: libc::sigset_t,
    /// A mask is that of one thread.
    _not_send: PhantomData<*const ()>,
}

impl WriteSignalsBlocked {
    pub(crate) fn begin() -> WriteSignalsBlocked {
        // SAFETY: signal sets are plain data, for which all zeroes is a value; the calls fill them in or
        // read them, and concern this thread alone.
        unsafe {
            let (mut held, mut mask) = (std::mem::zeroed(), std::mem::zeroed());
            let mut pending = std::mem::zeroed();
            libc::sigemptyset(&mut held);
            libc::sigpending(&mut pending);
            for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
                // One that was waiting before is not ours to take.
                if libc::sigismember(&pending, signal) == 0 {
                    libc::sigaddset(&mut held, signal);
                }
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &held, &mut mask);
            WriteSignalsBlocked {
                held,
                mask,
                _not_send: PhantomData,
            }
        }
    }
}

impl Drop for WriteSignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: as above; the mask is the one found then. The wait ends at once.
        unsafe {
            let at_once: libc::timespec = std::mem::zeroed();
            while libc::sigtimedwait(&self.held, std::ptr::null_mut(), &at_once) > 0 {}
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut());
        }
    }
}
