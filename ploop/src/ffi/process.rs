//! What of the process libploop shares with everybody else in it.

use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, ErrorKind, Result};

/// Calls under way, and what they leave to be mended.
struct Shared {
    calls: usize,
    /// Changes of the log file that wait for the calls to end.
    waiting: usize,
    /// Two calls were under way at once, so the handler that stands may be libploop's.
    overlapped: bool,
    /// What handled SIGRTMIN before the first call.
    standing: Option<libc::sigaction>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared {
    calls: 0,
    waiting: 0,
    overlapped: false,
    standing: None,
});
static QUIET: Condvar = Condvar::new();

/// A panic cannot happen while these are held; should one, the numbers are right all the same.
fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call of C under way. Dropping it says the call is over.
pub(super) struct Running(());

impl Running {
    /// Waits only for a change of the log file, which is short.
    pub(super) fn enter() -> Running {
        prepare();
        let mut shared = shared();
        shared.calls += 1;
        shared.overlapped |= shared.calls > 1;
        Running(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut shared = shared();
        shared.calls -= 1;
        if shared.calls == 0 {
            if std::mem::take(&mut shared.overlapped) {
                // Each descriptor lock saves and restores the handler without regard to other
                // threads (hazard 0.1): of two that overlap, the later one restores the other's.
                if let Some(action) = &shared.standing {
                    set_action(libc::SIGRTMIN(), action);
                }
            }
            if shared.waiting > 0 {
                QUIET.notify_all();
            }
        }
    }
}

/// Runs `change` while no call of C is under way: the log file may not be exchanged under a thread
/// that is writing to it. Gives up after `timeout`.
pub(super) fn while_quiet<T>(
    operation: &'static str,
    timeout: Duration,
    change: impl FnOnce() -> T,
) -> Result<T> {
    prepare();
    let end = Instant::now() + timeout;
    let mut shared = shared();
    while shared.calls > 0 {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(
                ErrorKind::Locked,
                operation,
                format!(
                    "{} operations were under way in this process for {timeout:?}; libploop cannot do this beside them, so try again when they are over",
                    shared.calls
                ),
            ));
        }
        shared.waiting += 1;
        shared = QUIET
            .wait_timeout(shared, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        shared.waiting -= 1;
    }
    Ok(change())
}

/// Once per process: a handler for SIGRTMIN that does nothing.
///
/// libploop's descriptor lock arms a process-wide timer that sends SIGRTMIN, and puts the previous
/// handler back when it is done. Where that is the default action, a timer of another thread that
/// fires afterwards kills the process (hazard 0.1). A handler of the application stays in place.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        extern "C" fn nothing(_signal: libc::c_int) {}

        let signal = libc::SIGRTMIN();
        let mut current = action_of(signal);
        if current.sa_sigaction == libc::SIG_DFL {
            current.sa_sigaction = nothing as *const () as libc::sighandler_t;
            current.sa_flags = libc::SA_RESTART;
            set_action(signal, &current);
        }
        shared().standing = Some(current);
    });
}

/// Whether this process has said that it does not want to hear of its children. libploop cannot
/// wait for its tools then, and takes each of them for failed.
pub(super) fn ignores_children() -> bool {
    let action = action_of(libc::SIGCHLD);
    action.sa_sigaction == libc::SIG_IGN || action.sa_flags & libc::SA_NOCLDWAIT != 0
}

fn action_of(signal: libc::c_int) -> libc::sigaction {
    // SAFETY: `sigaction` is plain data, for which all zeroes is a value; with a NULL new action the
    // call only fills it in. It cannot fail for these signals, and zeroes mean SIG_DFL if it did.
    unsafe {
        let mut action = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action);
        action
    }
}

fn set_action(signal: libc::c_int, action: &libc::sigaction) {
    // SAFETY: the action is one the kernel handed out, with at most its handler replaced by the default
    // or by a function that does nothing and is therefore safe in any signal context.
    unsafe {
        libc::sigaction(signal, action, std::ptr::null_mut());
    }
}

/// Of a process that was just forked: the handlers are the parent's, and have no business here.
pub(super) fn forget_handlers() {
    for signal in 1..=libc::SIGRTMAX() {
        let mut action = action_of(signal);
        if ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction) {
            action.sa_sigaction = libc::SIG_DFL;
            set_action(signal, &action);
        }
    }
}

/// All signals, held back from this thread and from what it forks, until this is dropped.
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

    /// Waits until the blocked SIGCHLD comes, at most for so long.
    pub(super) fn wait_for_child(&self, at_most: Duration) {
        let time = libc::timespec {
            tv_sec: at_most.as_secs() as libc::time_t,
            tv_nsec: at_most.subsec_nanos().into(),
        };
        // SAFETY: the set and the time outlive the call; where it came is not asked.
        unsafe { libc::sigtimedwait(&only(libc::SIGCHLD), std::ptr::null_mut(), &time) };
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one found in `begin`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// SIGPIPE, held back from this thread while C writes to a pipe: where the reader is gone, the signal
/// kills a program that has not said otherwise, and C looks at the result of the write anyway.
pub(super) struct BrokenPipes {
    mask: libc::sigset_t,
    /// One that was waiting before is not ours to take.
    pending: bool,
}

impl BrokenPipes {
    pub(super) fn hold_back() -> BrokenPipes {
        // SAFETY: signal sets are plain data, for which all zeroes is a value; the calls fill them in
        // or read them, and concern this thread alone.
        unsafe {
            let mut mask = std::mem::zeroed();
            let pending = is_pending(libc::SIGPIPE);
            libc::pthread_sigmask(libc::SIG_BLOCK, &only(libc::SIGPIPE), &mut mask);
            BrokenPipes { mask, pending }
        }
    }
}

impl Drop for BrokenPipes {
    fn drop(&mut self) {
        // SAFETY: as in `hold_back`; the mask is the one found there. The wait ends at once.
        unsafe {
            if !self.pending && is_pending(libc::SIGPIPE) {
                let at_once = std::mem::zeroed();
                libc::sigtimedwait(&only(libc::SIGPIPE), std::ptr::null_mut(), &at_once);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut());
        }
    }
}

fn only(signal: libc::c_int) -> libc::sigset_t {
    // SAFETY: the set is plain data that the calls fill in; the signal exists.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        set
    }
}

fn is_pending(signal: libc::c_int) -> bool {
    // SAFETY: the set is plain data that the call fills in.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigpending(&mut set) == 0 && libc::sigismember(&set, signal) == 1
    }
}

/// Standard input, kept aside while a call runs that may close file descriptor 0: an online merge
/// does, and a conversion to raw that runs out of memory (hazard 20).
pub(super) struct Stdin(Option<libc::c_int>);

impl Stdin {
    pub(super) fn keep() -> Stdin {
        // SAFETY: duplicating a descriptor number has no precondition; where 0 is closed the call
        // fails, and there is nothing to keep.
        let copy = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) };
        Stdin((copy >= 0).then_some(copy))
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        let Some(copy) = self.0 else { return };
        // SAFETY: `copy` is ours, made in `keep` and closed only here. 0 is written only where it is
        // closed, so no descriptor anybody opened meanwhile is lost.
        unsafe {
            if libc::fcntl(0, libc::F_GETFD) == -1 {
                libc::dup2(copy, 0);
            }
            libc::close(copy);
        }
    }
}
