//! The end of a wait for a lock that was lost between our poll and libploop's own attempt.
//!
//! The poll in [`turn`](super::turn) makes the lock timeout honest, but the lock is free for a
//! moment before C takes it. If another process gets in between, C waits for it. Its own limit of
//! 60 seconds is a signal sent to the process, which the kernel gives to the main thread, not to the
//! one that waits (hazard 0.2). So after 60 seconds this watch sends the signal to the waiting
//! thread, and only while that thread is inside `flock`.

use std::fs;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// libploop checks after each interruption whether its 60 seconds are over.
const LIMIT: Duration = Duration::from_millis(60_500);
const TICK: Duration = Duration::from_secs(1);
/// How long the watch stays awake without work, so that a series of calls need not wake it each.
const LINGER: Duration = Duration::from_secs(10);

struct Watched {
    thread: libc::pthread_t,
    tid: libc::pid_t,
    since: Instant,
}

struct State {
    /// The process that the thread runs in: it does not outlive a fork.
    started: Option<u32>,
    parked: bool,
    watched: Vec<Watched>,
}

static STATE: Mutex<State> = Mutex::new(State {
    started: None,
    parked: false,
    watched: Vec::new(),
});
static WAKE: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With the thread that watches.
fn prepared() -> MutexGuard<'static, State> {
    let mut state = state();
    let process = std::process::id();
    if state.started != Some(process) {
        state.watched.clear();
        // Where no thread can be started, a lost race waits for the holder: no harm but time.
        state.started = thread::Builder::new()
            .name("ploop-lock-watch".into())
            .spawn(watch)
            .is_ok()
            .then_some(process);
    }
    state
}

/// Starts the thread that watches, which lives on with the file descriptors of the one that starts it.
pub(super) fn prepare() {
    drop(prepared());
}

/// The current thread, watched until this is dropped.
pub(super) struct Watch(libc::pthread_t);

impl Watch {
    pub(super) fn begin() -> Watch {
        thread_local! {
            static TID: libc::pid_t = {
                // SAFETY: `gettid` has no precondition and cannot fail.
                unsafe { libc::gettid() }
            };
        }
        // SAFETY: `pthread_self` has no precondition and cannot fail.
        let this = unsafe { libc::pthread_self() };
        let mut state = prepared();
        state.watched.push(Watched {
            thread: this,
            tid: TID.with(|tid| *tid),
            since: Instant::now(),
        });
        if state.parked {
            WAKE.notify_one();
        }
        Watch(this)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = state();
        if let Some(at) = state.watched.iter().position(|w| w.thread == self.0) {
            state.watched.swap_remove(at);
        }
    }
}

fn watch() {
    let mut state = state();
    let mut last_work = Instant::now();
    loop {
        if !state.watched.is_empty() {
            last_work = Instant::now();
        }
        if last_work.elapsed() > LINGER {
            state.parked = true;
            state = WAKE.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.parked = false;
            last_work = Instant::now();
        } else {
            state = WAKE
                .wait_timeout(state, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        for late in state.watched.iter().filter(|w| w.since.elapsed() > LIMIT) {
            if waits_in_flock(late.tid) {
                // SAFETY: the thread is alive: it takes its entry off this list, under the mutex
                // held here, before it can end. SIGRTMIN has a handler for the life of the process.
                unsafe {
                    libc::pthread_kill(late.thread, libc::SIGRTMIN());
                }
            }
        }
    }
}

/// Any other system call of a long operation must not be interrupted.
fn waits_in_flock(tid: libc::pid_t) -> bool {
    fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))
        .ok()
        .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .is_some_and(|number: libc::c_long| number == libc::SYS_flock)
}
