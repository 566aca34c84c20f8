//! A process that cannot signal others: C in a child with a process namespace of its own.
//!
//! Kernels before 3.5, and containers that forbid it, have no system call filters (see
//! [`kill_filter`](super::kill_filter)). There C runs as the first process of a PID namespace:
//! `kill(-1, …)` reaches only what is in it, and `waitpid(-1, …)` only what it forked itself.
//!
//! ```text
//! caller ── fork ──▶ keeper ── clone(CLONE_NEWPID) ──▶ process 1: C ── fork ──▶ trim
//! ```
//!
//! `fork` is libc's, which leaves the allocator and the streams usable in a child of a program with
//! threads; it happens while no other thread is in libploop, whose locks, and those of libxml2, would
//! stay locked in the child. `clone` is the bare system call, so it is left to the keeper, which has one
//! thread and holds nothing. (`unshare` takes CLONE_NEWPID only since Linux 3.8.)
//!
//! Who is killed: where the caller dies, C goes on and ends what it began. Process 1 of a namespace does
//! not die of signals that have their default action. Where it is killed all the same, the kernel kills
//! what it forked, and it is gone only when that is; but a trim process that waits for the driver cannot
//! be killed. So nobody waits for it: the keeper ends when process 1 has no memory any more.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use super::call::{Op, bare, require_children};
use super::copy_calls::pipe;
use super::heap_room;
use super::own_descriptors::close_others;
use super::process::{self, SignalsBlocked};
use super::reply::Reply;
use crate::{Error, ErrorKind, Result};

/// How often the caller hands its flag on, and the keeper looks whether C still runs.
const TICK: Duration = Duration::from_millis(100);

/// An `int` that a child shares with its parent. C reads it.
struct SharedInt(NonNull<AtomicI32>);

impl SharedInt {
    fn new() -> io::Result<SharedInt> {
        // SAFETY: a new mapping concerns no other memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<AtomicI32>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(at.cast()) {
            Some(int) if at != libc::MAP_FAILED => Ok(SharedInt(int)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn get(&self) -> &AtomicI32 {
        // SAFETY: the mapping is aligned to a page, zeroed, and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedInt {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<AtomicI32>()) };
    }
}

/// Calls C in a namespace of its own. `stop` is handed on while C runs: the closure gets the address of an
/// `int` that follows it. Waits at most for `timeout` until no other call of C is under way.
///
/// # Errors
///
/// Those of a system without PID namespaces, or that forbids them, as [`ErrorKind::Unsupported`].
pub(super) fn call(
    op: &Op,
    timeout: Duration,
    stop: impl Fn() -> bool,
    c: impl FnOnce(*const c_int) -> i32,
) -> Result<Reply> {
    require_children(op)?;
    let failed = |what: &str, error: io::Error| Error::io(op.name, what, error);
    let (answer, answer_in) = pipe().map_err(|error| failed("no pipe could be made", error))?;
    let shared = SharedInt::new().map_err(|error| failed("no memory could be shared", error))?;
    let follow = || shared.get().store(stop().into(), Ordering::Relaxed);
    follow();
    // What it asks once in a process is asked here.
    heap_room::extend_heap();

    let blocked = SignalsBlocked::begin();
    // SAFETY: the child uses memory it inherited, the allocator, and libploop, in which no thread was. It
    // takes no lock of this crate, runs no destructor of the caller's, and ends in `_exit`.
    let keeper = process::while_quiet(op.name, timeout, || unsafe { libc::fork() })?;
    if keeper == 0 {
        process::forget_handlers();
        let answer_in = File::from(answer_in);
        keep(op, blocked, answer_in, || {
            c(shared.get().as_ptr().cast_const())
        });
        // SAFETY: `_exit` has no precondition; nothing of the parent's is flushed or run.
        unsafe { libc::_exit(0) }
    }
    let error = io::Error::last_os_error();
    drop(blocked);
    if keeper < 0 {
        return Err(failed("no process could be started", error));
    }
    drop(answer_in);
    let mut keeper = Keeper {
        pid: keeper,
        ended: false,
    };
    let reply = receive(op, &mut keeper, &answer, follow);
    while !keeper.has_ended(0) {}
    reply
}

/// The caller's child.
struct Keeper {
    pid: libc::pid_t,
    ended: bool,
}

impl Keeper {
    /// Also where somebody else in this process has waited for it.
    fn has_ended(&mut self, flags: c_int) -> bool {
        if !self.ended {
            self.ended = match wait_for(self.pid, flags) {
                Ok(pid) => pid != 0,
                Err(error) => error.kind() != io::ErrorKind::Interrupted,
            };
        }
        self.ended
    }
}

/// The keeper: starts C, and ends when it is over, or can never be.
fn keep(op: &Op, blocked: SignalsBlocked, mut answer: File, c: impl FnOnce() -> i32) {
    // An image's device, inherited here, could not be stopped while C runs.
    let child = close_others(&[answer.as_raw_fd()]).and_then(|()| {
        // SAFETY: this process has one thread and holds no locks; the child has a copy of its memory.
        match unsafe { clone_into_namespace() } {
            -1 => Err(io::Error::last_os_error()),
            child => Ok(child),
        }
    });
    // The caller sees that nothing came where it cannot be told.
    match child {
        Err(error) => {
            let _ = Answer::NotStarted(error.raw_os_error().unwrap_or(0)).send(&mut answer);
        }
        Ok(0) => {
            drop(blocked);
            let reply = bare(op, c);
            let _ =
                Answer::Returned(reply.code, reply.message.unwrap_or_default()).send(&mut answer);
        }
        Ok(child) => {
            drop(answer);
            while !has_ended(child) {
                blocked.wait_for_child(TICK);
            }
        }
    }
}

/// # Safety
///
/// The process has one thread, and goes on in the child as after `fork`.
unsafe fn clone_into_namespace() -> libc::pid_t {
    let flags = libc::c_long::from(libc::CLONE_NEWPID | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // The first two arguments, flags and stack, are the other way round on one architecture.
    let (first, second) = match cfg!(target_arch = "s390x") {
        true => (none, flags),
        false => (flags, none),
    };
    // SAFETY: without a stack the child goes on with a copy of this one; the rest concerns flags that
    // are not set.
    unsafe { libc::syscall(libc::SYS_clone, first, second, none, none, none) as libc::pid_t }
}

/// Whether a child has ended, or is about to and waits for processes that cannot be killed: it has no
/// memory any more then.
fn has_ended(child: libc::pid_t) -> bool {
    match wait_for(child, libc::WNOHANG) {
        Ok(0) => fs::read_to_string(format!("/proc/{child}/statm"))
            .is_ok_and(|pages| pages.starts_with("0 ")),
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::Interrupted,
    }
}

fn wait_for(child: libc::pid_t, flags: c_int) -> io::Result<libc::pid_t> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(child, &mut status, flags) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// What comes back through the pipe. Not up to its end: a process that C left behind may have it open.
enum Answer {
    /// There is no such process; with the system's error.
    NotStarted(i32),
    Returned(i32, String),
}

impl Answer {
    fn send(&self, pipe: &mut File) -> io::Result<()> {
        let (kind, number, text) = match self {
            Answer::NotStarted(errno) => (0, errno, ""),
            Answer::Returned(code, text) => (1, code, text.as_str()),
        };
        let mut bytes = vec![kind];
        bytes.extend(number.to_ne_bytes());
        bytes.extend(text.len().to_ne_bytes());
        bytes.extend(text.as_bytes());
        pipe.write_all(&bytes)
    }

    fn receive(mut pipe: &File) -> io::Result<Answer> {
        let (mut kind, mut number, mut len) = ([0], [0; 4], [0; size_of::<usize>()]);
        pipe.read_exact(&mut kind)?;
        pipe.read_exact(&mut number)?;
        pipe.read_exact(&mut len)?;
        let mut text = vec![0; usize::from_ne_bytes(len)];
        pipe.read_exact(&mut text)?;
        let number = i32::from_ne_bytes(number);
        Ok(match kind {
            [0] => Answer::NotStarted(number),
            _ => Answer::Returned(number, String::from_utf8_lossy(&text).into_owned()),
        })
    }
}

fn receive(op: &Op, keeper: &mut Keeper, answer: &OwnedFd, follow: impl Fn()) -> Result<Reply> {
    loop {
        // What it wrote is in the pipe before it has ended.
        let ended = keeper.has_ended(libc::WNOHANG);
        if is_readable(answer, if ended { Duration::ZERO } else { TICK }) {
            break;
        }
        if ended {
            return Err(died(op));
        }
        follow();
    }
    let answer = answer
        .try_clone()
        .and_then(|pipe| Answer::receive(&File::from(pipe)));
    match answer {
        Ok(Answer::Returned(code, text)) => Ok(Reply {
            operation: op.name,
            code,
            message: Some(text).filter(|text| !text.is_empty()),
            cause: None,
            descriptor_is_sound: false,
        }),
        Ok(Answer::NotStarted(errno)) => {
            let error = io::Error::from_raw_os_error(errno);
            Err(Error::new(
                ErrorKind::Unsupported,
                op.name,
                format!("no process in a PID namespace of its own could be started: {error}"),
            ))
        }
        Err(_) => Err(died(op)),
    }
}

fn died(op: &Op) -> Error {
    Error::new(
        ErrorKind::Other,
        op.name,
        "the process in which libploop ran was killed, and the device may be left in the middle; unmount the image, which ends what was begun",
    )
}

fn is_readable(pipe: &OwnedFd, at_most: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: pipe.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one descriptor long and outlives the call.
    unsafe { libc::poll(&mut poll, 1, at_most.as_millis() as c_int) == 1 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const OP: Op = Op::new("test").forks();
    const LONG: Duration = Duration::from_secs(60);

    /// `None` where this process may not make namespaces, and was told so.
    fn run_with(
        stop: impl Fn() -> bool,
        c: impl FnOnce(*const c_int) -> i32,
    ) -> Option<Result<Reply>> {
        const CAP_SYS_ADMIN: u32 = 21;
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
        let result = call(&OP, LONG, stop, c);
        if capabilities >> CAP_SYS_ADMIN & 1 == 1 {
            return Some(result);
        }
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("not permitted"), "{error}");
        None
    }

    fn run(c: impl FnOnce(*const c_int) -> i32) -> Option<Result<Reply>> {
        run_with(|| false, c)
    }

    #[track_caller]
    fn assert_code(reply: Option<Result<Reply>>, code: i32) {
        if let Some(reply) = reply {
            assert_eq!(reply.unwrap().code, code);
        }
    }

    #[track_caller]
    fn assert_died(reply: Option<Result<Reply>>) {
        if let Some(reply) = reply {
            let error = reply.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Other);
            assert!(error.message().contains("was killed"), "{error}");
        }
    }

    fn errno() -> i32 {
        io::Error::last_os_error().raw_os_error().unwrap_or(0)
    }

    /// What the child forks and does not wait for. Nothing but system calls.
    fn sleeping_child() -> libc::pid_t {
        // SAFETY: the child makes system calls until it ends or is killed.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::sleep(100);
                libc::_exit(0);
            }
            child
        }
    }

    #[test]
    fn everybody_is_what_is_in_the_namespace() {
        let mut other = Command::new("sleep").arg("100").spawn().unwrap();
        let reply = run(|_| {
            // SAFETY: plain system calls.
            unsafe {
                if libc::getpid() != 1 || libc::kill(-1, 0) != -1 || errno() != libc::ESRCH {
                    return 1;
                }
                let own = sleeping_child();
                if libc::kill(-1, libc::SIGKILL) != 0 {
                    return 2;
                }
                let mut status = 0;
                if libc::waitpid(own, &mut status, 0) != own
                    || libc::WTERMSIG(status) != libc::SIGKILL
                {
                    return 3;
                }
                0
            }
        });
        assert_code(reply, 0);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn no_child_of_others_is_waited_for_but_one_s_own_is() {
        let mut other = Command::new("true").spawn().unwrap();
        let reply = run(|_| {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            if unsafe { libc::waitpid(-1, &mut status, 0) } != -1 || errno() != libc::ECHILD {
                return 1;
            }
            // Starting programs works as outside, threads and all.
            let own = Command::new("true").status();
            i32::from(!own.is_ok_and(|status| status.success()))
        });
        assert_code(reply, 0);
        assert!(other.wait().unwrap().success());
    }

    #[test]
    fn the_code_and_the_words_come_back() {
        assert_code(run(|_| 41), 41);
        let mut out = [0; 8];
        let reply = run(|_| {
            // SAFETY: a NULL path is documented to fail; the buffer is as long as said.
            unsafe {
                ploop_sys::ploop_find_dev(std::ptr::null(), std::ptr::null(), out.as_mut_ptr(), 8)
            }
        });
        if let Some(reply) = reply {
            let reply = reply.unwrap();
            assert_eq!(reply.code, -1);
            assert!(reply.message.is_some());
        }
        // This thread has no words of it.
        assert_eq!(super::super::last_error::take(), None);
    }

    #[test]
    fn the_flag_is_handed_on() {
        let stop = AtomicBool::new(false);
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(200));
                stop.store(true, Ordering::Relaxed);
            });
            let reply = run_with(
                || stop.load(Ordering::Relaxed),
                |flag| {
                    for _ in 0..6000 {
                        // SAFETY: the `int` is shared with the caller, which writes to it.
                        if unsafe { flag.read_volatile() } != 0 {
                            return 7;
                        }
                        thread::sleep(Duration::from_millis(10));
                    }
                    0
                },
            );
            assert_code(reply, 7);
        });
        assert!(begin.elapsed() >= Duration::from_millis(200));
    }

    /// What it left behind has the pipe open, and dies with it.
    #[test]
    fn a_killed_process_is_an_error() {
        assert_died(run(|_| {
            sleeping_child();
            // SAFETY: there is nothing to clean up.
            unsafe { libc::abort() }
        }));
    }

    /// A process that is not gone when it is killed, as one that waits for the driver, keeps process 1 from
    /// being gone; here because it is traced.
    #[test]
    fn what_cannot_be_killed_is_not_waited_for() {
        let (seen, traced) = (SharedInt::new().unwrap(), SharedInt::new().unwrap());
        let (seen, traced) = (seen.get(), traced.get());
        let begin = Instant::now();
        let trace = || {
            let child = seen.load(Ordering::Relaxed);
            if child != 0 && traced.load(Ordering::Relaxed) == 0 {
                // SAFETY: it concerns the child alone, which does nothing but sleep.
                let code = unsafe { libc::ptrace(libc::PTRACE_SEIZE, child, 0, 0) };
                traced.store(if code == 0 { 1 } else { -1 }, Ordering::Relaxed);
            }
            false
        };
        let reply = run_with(trace, |_| {
            // SAFETY: the child makes system calls until it is killed.
            if unsafe { libc::fork() } == 0 {
                // Its number outside.
                let name = fs::read_link("/proc/self").unwrap();
                seen.store(name.to_str().unwrap().parse().unwrap(), Ordering::Relaxed);
                thread::sleep(LONG);
            }
            while traced.load(Ordering::Relaxed) == 0 {
                thread::sleep(Duration::from_millis(10));
            }
            // SAFETY: there is nothing to clean up.
            unsafe { libc::abort() }
        });
        if reply.is_some() {
            assert_eq!(traced.load(Ordering::Relaxed), 1);
            // It is there until now.
            let child = seen.load(Ordering::Relaxed);
            assert_eq!(wait_for(child, libc::__WALL).unwrap(), child);
        }
        assert_died(reply);
        assert!(begin.elapsed() < LONG / 2);
    }

    #[test]
    fn a_copy_that_comes_back_from_c_ends_there() {
        let reply = run(|_| {
            // SAFETY: the child goes from here straight to `_exit`, as a failed `exec` in libploop would.
            let child = unsafe { libc::fork() };
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            if child != 0 && unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return 1;
            }
            libc::WEXITSTATUS(status)
        });
        assert_code(reply, 127);
    }

    #[test]
    fn files_of_others_are_not_kept_open() {
        let (read, write) = pipe().unwrap();
        let write = std::sync::Mutex::new(Some(write));
        let round = AtomicI32::new(0);
        let reply = run_with(
            || {
                // The second time the child is there. The caller has no other end then.
                if round.fetch_add(1, Ordering::Relaxed) == 1 {
                    drop(write.lock().unwrap().take());
                    assert!(is_readable(&read, LONG), "the child still has it");
                }
                false
            },
            |_| {
                thread::sleep(Duration::from_secs(1));
                0
            },
        );
        if reply.is_some() {
            assert!(write.lock().unwrap().is_none());
        }
        assert_code(reply, 0);
    }
}
