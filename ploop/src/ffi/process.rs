//! What of the process libploop shares with everybody else in it.

#[cfg(target_env = "gnu")]
use std::{io, os::unix::fs::FileExt};

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

/// Makes sure that the heap of this thread goes on for a while behind what is allocated next.
///
/// Debian's build reads up to 4 KiB beyond its own copies of paths (hazard 0.8). They are on the heap,
/// where no caller can pad them, and a copy in the heap's last page makes the process fault. So blocks
/// from the end of the heap are allocated and freed. In the heap of the main thread up to 128 KiB of
/// that stay; in those of other threads all of it can be read from then on, but glibc makes them longer
/// by no more than it needs at a time, so there it takes more.
///
/// Other allocators than glibc's are left as they are.
#[cfg(target_env = "gnu")]
pub(super) fn extend_heap() {
    const BLOCK: usize = 100 << 10;
    let mut blocks = [std::ptr::null_mut(); 64];
    let mut at_the_end = 0;
    for block in &mut blocks {
        // SAFETY: the blocks are freed below and not written to. `black_box` keeps the pairs from being
        // optimised away.
        *block = unsafe { std::hint::black_box(libc::malloc(BLOCK)) };
        if block.is_null() || !is_glibc_s(*block) {
            break;
        }
        // One from the middle of the heap says nothing about its end.
        let (is_last, wanted) = match heap_of(block.addr()) {
            Heap::None => break,
            Heap::Main { is_last } => (is_last, 1),
            Heap::Other { room, .. } if room >= OTHERS_ROOM => break,
            Heap::Other { is_last, .. } => (is_last, OTHERS_ROOM.div_ceil(BLOCK) + 1),
        };
        at_the_end += usize::from(is_last);
        if at_the_end >= wanted {
            break;
        }
    }
    for block in blocks {
        // SAFETY: it is NULL or came from `malloc` above, and is freed once.
        unsafe { libc::free(block) }
    }
}

/// What is to be readable behind the heap of another thread than the main one.
#[cfg(target_env = "gnu")]
const OTHERS_ROOM: usize = 2 << 20;

#[cfg(not(target_env = "gnu"))]
pub(super) fn extend_heap() {}

#[cfg(target_env = "gnu")]
const WORD: usize = size_of::<usize>();

/// In the lowest bits of a size in glibc's heap.
#[cfg(target_env = "gnu")]
const FLAGS: usize = 7;

/// Whether `malloc` is glibc's, which a program can put another one in the place of. Then a block has
/// its size one word before it, as `malloc.c` documents. Asked once in a process.
#[cfg(target_env = "gnu")]
fn is_glibc_s(block: *mut libc::c_void) -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        // SAFETY: the block came from `malloc`.
        let usable = unsafe { libc::malloc_usable_size(block) };
        word(block.addr() - WORD).is_some_and(|header| (header & !FLAGS) == usable + WORD)
    })
}

/// Where a block of glibc's lies. The last of a heap ends where only the heap's rest begins, which it is
/// added to when it is freed.
#[cfg(target_env = "gnu")]
enum Heap {
    /// It is mapped by itself, or the heap is not one of those described here.
    None,
    Main {
        is_last: bool,
    },
    /// With so much behind the heap's end that can be read.
    Other {
        is_last: bool,
        room: usize,
    },
}

#[cfg(target_env = "gnu")]
fn heap_of(block: usize) -> Heap {
    const OF_ANOTHER_THREAD: usize = 4;
    const MAPPED: usize = 2;
    /// A heap of another thread is aligned to so much, and begins with four words, of which the third is
    /// its size, and the fourth how much of it can be read.
    const AREA: usize = 64 << 20;
    // Other threads may write to these words at any time: a wrong answer costs room, no more.
    let load = |address: usize| {
        // SAFETY: all that is asked for lies in a heap, in or before its last chunk, and is aligned. It
        // belongs to the allocator, and is read at once or not at all.
        unsafe {
            std::sync::atomic::AtomicUsize::from_ptr(std::ptr::with_exposed_provenance_mut(address))
                .load(std::sync::atomic::Ordering::Relaxed)
        }
    };
    let header = load(block - WORD);
    if header & MAPPED != 0 {
        return Heap::None;
    }
    let next = block - 2 * WORD + (header & !FLAGS);
    let is_last = |end| next + 2 * WORD > end || next + (load(next + WORD) & !FLAGS) >= end;
    if header & OF_ANOTHER_THREAD == 0 {
        // SAFETY: asking for the end of the data segment changes nothing.
        let end = unsafe { libc::sbrk(0) }.addr();
        return Heap::Main {
            is_last: is_last(end),
        };
    }
    let start = block & !(AREA - 1);
    let (size, readable) = (load(start + 2 * WORD), load(start + 3 * WORD));
    if next > start + size || size > readable || readable > AREA {
        return Heap::None;
    }
    // Where the area ends, the next heap begins elsewhere.
    let room = if AREA - size < 2 * OTHERS_ROOM {
        usize::MAX
    } else {
        readable - size
    };
    Heap::Other {
        is_last: is_last(start + size),
        room,
    }
}

/// The word at an address, if it can be read.
#[cfg(target_env = "gnu")]
fn word(address: usize) -> Option<usize> {
    let mut word = 0usize;
    let local = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: size_of::<usize>(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address),
        iov_len: size_of::<usize>(),
    };
    // SAFETY: the kernel copies between the two, and fails where the address cannot be read.
    match unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) } {
        -1 if io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) => {
            word_of_file(address)
        }
        read => (read == size_of::<usize>() as isize).then_some(word),
    }
}

/// [`word`] before Linux 3.2, and where the call is forbidden, as in some containers.
#[cfg(target_env = "gnu")]
fn word_of_file(address: usize) -> Option<usize> {
    let memory = std::fs::File::open("/proc/self/mem").ok()?;
    let mut bytes = [0; size_of::<usize>()];
    memory.read_exact_at(&mut bytes, address as u64).ok()?;
    Some(usize::from_ne_bytes(bytes))
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

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Copies of a path, wherever the allocator puts them: behind each there is what libploop reads.
    fn assert_room() {
        // Holes for blocks of any size, so that the first one comes from the middle.
        let mut holes: Vec<Vec<u8>> = (0..64).map(|n| Vec::with_capacity(n * 2000 + 1)).collect();
        for round in 0..200 {
            holes.remove(round % 7);
            holes.push(Vec::with_capacity(round * 37 % 120_000 + 1));
            extend_heap();
            // What a large descriptor takes in between.
            let _elements: Vec<Vec<u8>> = (0..5000).map(|_| vec![0; 180]).collect();
            let copies: Vec<Box<[u8]>> = (0..20).map(|n| vec![1; 20 + n * 13].into()).collect();
            for copy in &copies {
                let end = copy.as_ptr().addr() + copy.len();
                assert!(word(end + 4096).is_some(), "{end:x} in round {round}");
            }
        }
    }

    #[test]
    fn memory_is_read_in_two_ways() {
        let here = 47usize;
        for read in [word, word_of_file] {
            assert_eq!(read((&raw const here).addr()), Some(47));
            assert_eq!(read(8), None);
        }
    }

    #[test]
    fn there_is_room_behind_every_copy() {
        // Every test has a thread of its own.
        assert_room();
        std::thread::spawn(assert_room).join().unwrap();
    }

    /// Many threads on the same heaps take room from each other, and nothing else.
    #[test]
    fn threads_that_share_a_heap_leave_it_whole() {
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    let mut kept: Vec<Vec<u8>> = Vec::new();
                    for round in 0..300 {
                        extend_heap();
                        kept.push(vec![round as u8; round * 97 % 30_000 + 1]);
                        if kept.len() > 20 {
                            let old = kept.remove(round % 20);
                            assert!(old.iter().all(|byte| *byte == old[0]));
                        }
                    }
                });
            }
        });
    }
}
