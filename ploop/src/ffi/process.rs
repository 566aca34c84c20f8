//! The process in which libploop runs: one for each call, with the memory of the program (`clone` with `CLONE_VM`).
//!
//! ```text
//! caller ── thread ──▶ worker ── clone(CLONE_VM) ──▶ C ── fork ──▶ tools
//! ```
//!
//! While C runs, the worker waits with all signals blocked. C uses the worker's thread-local memory, as a child of
//! `vfork` does, and the program's heap: handles and results need no copying. The caller reads what C and its tools
//! print, and takes the program's signals. In a [brief call](Call::is_brief) there is nothing to read, and signals can
//! wait for a moment: there the caller is the worker.
//!
//! The process shares nothing that libploop disturbs, or that disturbs libploop:
//!
//! * File descriptors: standard input is empty, and output and errors are [captured](super::output). Nothing else is
//!   open, so libploop cannot close another thread's file.
//! * Children: the program cannot wait for libploop's, nor libploop for the program's.
//! * Signals: the program's handlers do not run, and its timers do not interrupt C. The timer of libploop's lock
//!   reaches the thread that waits. SIGPIPE and SIGXFSZ become errors of `write`.
//! * The working directory, the umask, a [system call filter](super::kill_filter).
//!
//! When the program is killed, C is killed, too. When C is killed or crashes, the memory it shares with the program
//! can no longer be trusted, and the program ends in the same way.
//!
//! Emulators (valgrind, qemu-user) give such a process a copy of the memory. There C runs in a thread
//! with a file descriptor table of its own.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::thread;

use super::call::Call;
use super::call_result::CallResult;
use super::output::{self, Capture};
use super::signals::{self, SignalsBlocked};
use super::{fd_table, kill_filter, last_error, over_read};
use crate::{Error, ErrorKind, Result};

/// What the process of C is to do, and what it answers.
struct Job<'a, C> {
    c: Option<C>,
    keep: &'a [RawFd],
    /// For standard output and standard error.
    outputs: [RawFd; 2],
    filtered: bool,
    parent: libc::pid_t,
    answer: Option<io::Result<(i32, Option<String>)>>,
}

/// Runs `c`. The outer error says that no process could be started; then `c` did not run.
pub(super) fn run<C: FnOnce() -> i32 + Send>(
    call: &Call,
    keep: &[RawFd],
    c: C,
) -> io::Result<Result<CallResult>> {
    let verbosity = output::raise_verbosity(call.names_users);
    let (mut capture, outputs) = Capture::new()?;
    let process = AtomicI32::new(0);
    let notifier = capture.end_notifier()?;
    let job = Job {
        c: Some(c),
        keep,
        outputs: outputs.numbers(),
        filtered: call.discards,
        parent: std::process::id() as libc::pid_t,
        answer: None,
    };
    let is_alone = call.is_brief && !verbosity.is_raised();
    if is_alone {
        outputs.never_wait()?;
    }
    let work = || {
        let answer = in_process(call, job, &process);
        // In this order: once nobody can write to the pipes, `poll` reports them all the time.
        drop(notifier);
        drop(outputs);
        answer
    };
    // A worker inherits the signal mask of this thread.
    let blocked = SignalsBlocked::begin();
    let answer = if is_alone {
        let answer = work();
        drop(blocked);
        capture.follow(None);
        answer?
    } else {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("ploop-call".into())
                .spawn_scoped(scope, work)?;
            drop(blocked);
            let release =
                || super::discard_calls::interrupt_abandoned_wait(process.load(Ordering::Relaxed));
            capture.follow(if call.discards { Some(&release) } else { None });
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?
    };
    Ok(answer.map(|(code, message)| CallResult {
        operation: call.name,
        code,
        message,
        output: capture.into_tool_output(),
        cause: None,
        descriptor_is_sound: false,
    }))
}

/// Runs the job in a process of its own. The worker thread is in here while C runs.
fn in_process<C: FnOnce() -> i32 + Send>(
    call: &Call,
    mut job: Job<'_, C>,
    process: &AtomicI32,
) -> io::Result<Result<(i32, Option<String>)>> {
    if !is_memory_shared()? {
        // In another thread: the file descriptors that this one owns are in the program's table.
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                fd_table::unshare()?;
                job.enter(false);
                io::Result::Ok(())
            })?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
    } else {
        let stack = Stack::new()?;
        job.start(&stack, 0, process)?;
        if job.filtered && matches!(job.answer, Some(Err(_))) && job.c.is_some() {
            // There is no filter: C runs as process 1 of a PID namespace, where it can signal and wait for its own
            // children only. A child of C that waits for the driver cannot be killed, so the worker waits by
            // CLONE_VFORK for C alone. Such a wait cannot be interrupted; so this is not the normal way.
            let no_filter = job.answer.take();
            job.filtered = false;
            if let Err(error) = job.start(&stack, libc::CLONE_NEWPID | libc::CLONE_VFORK, process) {
                return Ok(Err(cannot_contain(call, no_filter, &error)));
            }
        }
    }
    match job.answer {
        Some(answer) => answer.map(Ok),
        None => Err(io::ErrorKind::Interrupted.into()),
    }
}

fn cannot_contain<T>(call: &Call, no_filter: Option<io::Result<T>>, error: &io::Error) -> Error {
    let no_filter = no_filter
        .and_then(io::Result::err)
        .map_or_else(String::new, |error| format!(" ({error})"));
    Error::new(
        ErrorKind::Unsupported,
        call.name,
        format!(
            "libploop kills every process when it cannot fork here, and on this system that cannot be prevented: no system call filter could be installed{no_filter}, and no process in a PID namespace of its own could be started: {error}"
        ),
    )
}

impl<C: FnOnce() -> i32 + Send> Job<'_, C> {
    /// Starts the process, and waits for its end.
    fn start(&mut self, stack: &Stack, flags: c_int, process: &AtomicI32) -> io::Result<()> {
        extern "C" fn main<C: FnOnce() -> i32 + Send>(job: *mut c_void) -> c_int {
            // SAFETY: `start` passes its own job, which nobody else uses until this process has ended.
            let job = unsafe { &mut *job.cast::<Job<'_, C>>() };
            job.enter(true);
            // SAFETY: `_exit` has no precondition: nothing of the program's is flushed or run. Threads
            // that C has left end with it.
            unsafe { libc::_exit(0) }
        }
        let job: *mut Self = self;
        // SAFETY: the child runs on a stack of its own and shares this thread's local memory, which
        // this thread leaves alone until the child has ended: it has all signals blocked, and is inside
        // one system call. The job outlives the child.
        let child = unsafe {
            libc::clone(
                main::<C>,
                stack.top(),
                libc::CLONE_VM | flags,
                job.cast::<c_void>(),
            )
        };
        if child == -1 {
            return Err(io::Error::last_os_error());
        }
        process.store(child, Ordering::Relaxed);
        let status = if flags & libc::CLONE_VFORK == 0 {
            wait_for(child)
        } else {
            // C has ended, and uses the memory no more. What remains is to reap it.
            thread::spawn(move || wait_for(child));
            0
        };
        process.store(0, Ordering::Relaxed);
        if self.answer.is_none() {
            die_like(status);
        }
        Ok(())
    }

    /// In the process: prepares it, and calls C.
    fn enter(&mut self, own_process: bool) {
        self.answer = Some(match self.prepare(own_process) {
            Ok(()) => self.call(),
            Err(error) => Err(error),
        });
    }

    fn prepare(&mut self, own_process: bool) -> io::Result<()> {
        if own_process {
            end_with_parent(self.parent);
            signals::reset();
        }
        fd_table::replace(self.outputs, self.keep)?;
        if self.filtered {
            kill_filter::install()?;
        }
        if own_process {
            over_read::begin();
            signals::unblock();
        }
        Ok(())
    }

    fn call(&mut self) -> io::Result<(i32, Option<String>)> {
        let Some(c) = self.c.take() else {
            return Err(io::ErrorKind::Other.into());
        };
        last_error::clear();
        let process = std::process::id();
        let code = c();
        if process != std::process::id() {
            // libploop forked, could not start the tool, and returned in the child, a second copy of the program
            // (hazard 21). No code of the caller may run in it, destructors included.
            // SAFETY: `_exit` has no precondition. It runs no handlers of the parent.
            unsafe { libc::_exit(127) }
        }
        over_read::end();
        let message = if code == 0 { None } else { last_error::take() };
        Ok((code, message))
    }
}

/// Has the kernel kill this process when the program dies.
fn end_with_parent(parent: libc::pid_t) {
    // SAFETY: plain system calls. In a PID namespace of its own the parent is 0.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let now = libc::getppid();
        if now != parent && now != 0 {
            libc::_exit(1);
        }
    }
}

/// Waits for a child, and returns its wait status; 0 where another thread has waited for it.
pub(super) fn wait_for(child: libc::pid_t) -> c_int {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(child, &mut status, libc::__WALL) };
        if waited != -1 {
            return status;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return 0;
        }
    }
}

/// Ends the program as C ended: C may have died with the heap locked.
fn die_like(status: c_int) -> ! {
    let signal = if libc::WIFSIGNALED(status) {
        libc::WTERMSIG(status)
    } else {
        libc::SIGABRT
    };
    // SAFETY: plain system calls, on signal sets that are theirs to fill in.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
    signals::unblock();
    std::process::abort()
}

/// Whether `CLONE_VM` shares memory here: not under valgrind and qemu-user. Tried once.
fn is_memory_shared() -> io::Result<bool> {
    extern "C" fn mark(word: *mut c_void) -> c_int {
        // SAFETY: the word is the atomic number below.
        unsafe { &*word.cast::<AtomicI32>() }.store(1, Ordering::Relaxed);
        0
    }
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(answer) = ANSWER.get() {
        return Ok(*answer);
    }
    let stack = Stack::new()?;
    let word = AtomicI32::new(0);
    // SAFETY: the child has a stack of its own, writes one number, and has ended when this returns.
    // Emulators know these flags together as `vfork`.
    let child = unsafe {
        libc::clone(
            mark,
            stack.top(),
            libc::CLONE_VM | libc::CLONE_VFORK,
            (&raw const word).cast_mut().cast(),
        )
    };
    if child == -1 {
        // There was no memory or process number; the next try may succeed.
        return Err(io::Error::last_os_error());
    }
    if libc::WIFSIGNALED(wait_for(child)) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(*ANSWER.get_or_init(|| word.load(Ordering::Relaxed) == 1))
}

/// The stack of C, with a page below that cannot be accessed.
struct Stack(*mut c_void);

/// A stack that nobody uses, kept for the next call. Mapping and unmapping one takes a quarter of the time of a
/// call that does no work, because each processor that runs the program is interrupted.
static SPARE_STACK: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

impl Stack {
    /// As the main thread of a program usually has. Pages that are not used cost nothing.
    const SIZE: usize = 8 << 20;

    fn new() -> io::Result<Stack> {
        let spare = SPARE_STACK.swap(std::ptr::null_mut(), Ordering::Acquire);
        if !spare.is_null() {
            return Ok(Stack(spare));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping concerns no other memory; its lowest page is taken back.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), Stack::SIZE, access, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            if libc::mprotect(at, over_read::page_size(), libc::PROT_NONE) == -1 {
                let error = io::Error::last_os_error();
                libc::munmap(at, Stack::SIZE);
                return Err(error);
            }
            Ok(Stack(at))
        }
    }

    fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(Stack::SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let other = SPARE_STACK.swap(self.0, Ordering::Release);
        if !other.is_null() {
            // SAFETY: the mapping was made in `new`, what ran on it has ended, and nobody else has it now.
            unsafe { libc::munmap(other, Stack::SIZE) };
        }
    }
}

/// Tells [`Capture::follow`] that C has ended, when this is dropped.
pub(super) struct EndNotifier(pub(super) OwnedFd);

impl Drop for EndNotifier {
    fn drop(&mut self) {
        // An eventfd takes this without waiting.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}
