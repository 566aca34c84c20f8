//! Reads beyond a buffer (hazard 0.8): a SIGSEGV handler that makes the memory behind it readable.
//!
//! Debian's build copies 4096 bytes from several paths, however short they are: where `get_basedir` has `strncpy`,
//! it has `memcpy`. Some of these paths are libploop's own copies, which no caller can pad. Where such a copy lies at
//! the end of accessible memory, the process faults. The handler then puts a page there for the rest of the call,
//! and the copying goes on. The bytes that it copies are not used.
//!
//! This does not depend on the allocator, and happens in the process of C only. It can be removed when Debian's
//! libploop reads no further than its paths.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;

use super::signals;

/// How many pages one call may get. Copying paths takes fewer: with more, the fault has another reason.
const PAGES: usize = 64;

/// Set in the address of a page that was mapped before, without access.
const WAS_RESERVED: usize = 1;

thread_local! {
    /// The pages made readable so far, and how many they are. The process has one thread.
    static READABLE: Cell<([usize; PAGES], usize)> = const { Cell::new(([0; PAGES], 0)) };
}

pub(super) fn page_size() -> usize {
    // SAFETY: the function has no precondition.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Installs the handler. Called in the process of C, before C.
pub(super) fn begin() {
    READABLE.set(([0; PAGES], 0));
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    signals::set(
        libc::SIGSEGV,
        handler as *const () as libc::sighandler_t,
        libc::SA_SIGINFO,
    );
}

/// Unmaps the pages again. Called after C.
pub(super) fn end() {
    let (pages, count) = READABLE.get();
    for page in pages[..count]
        .iter()
        .filter(|page| *page & WAS_RESERVED == 0)
    {
        // SAFETY: the page was put there by `make_readable`, and nothing is in it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(*page), page_size()) };
    }
}

/// The handler. It makes system calls only.
extern "C" fn on_fault(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: the kernel passes a valid structure, which has an address for this signal.
    let address = unsafe { (*info).si_addr() }.addr();
    if !make_readable(address & !(page_size() - 1)) {
        // The fault happens again, and ends the process.
        signals::set(libc::SIGSEGV, libc::SIG_DFL, 0);
    }
    // SAFETY: the function returns this thread's own `errno`, never NULL.
    unsafe { *libc::__errno_location() = errno }
}

/// Makes a page readable, if it follows accessible memory. `false` where the fault is not an over-read.
fn make_readable(page: usize) -> bool {
    const READ: c_int = libc::PROT_READ;
    let size = page_size();
    let (mut pages, count) = READABLE.get();
    // A page that faults again is written to.
    let again = pages[..count]
        .iter()
        .any(|other| other & !WAS_RESERVED == page);
    if count == PAGES || again || !is_mapped(page.wrapping_sub(size)) {
        return false;
    }
    let wanted: *mut c_void = std::ptr::with_exposed_provenance_mut(page);
    if is_mapped(page) {
        pages[count] = page | WAS_RESERVED;
        READABLE.set((pages, count + 1));
        // It was reserved by an allocator, or is the guard page of a stack. An allocator makes it writable before it
        // uses it.
        // SAFETY: reading does not change what is there.
        return unsafe { libc::mprotect(wanted, size, READ) } == 0;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping, which replaces none. Before Linux 4.17 the address is only a hint; a mapping at another
    // address is unmapped again, and nobody else knows of it.
    unsafe {
        let at = libc::mmap(wanted, size, READ, flags, -1, 0);
        if at != wanted {
            if at != libc::MAP_FAILED {
                libc::munmap(at, size);
            }
            return false;
        }
    }
    pages[count] = page;
    READABLE.set((pages, count + 1));
    true
}

fn is_mapped(page: usize) -> bool {
    let mut present = 0;
    // SAFETY: the kernel writes one byte, for the one page, and fails where nothing is mapped.
    unsafe {
        libc::mincore(
            std::ptr::with_exposed_provenance_mut(page),
            page_size(),
            &mut present,
        ) == 0
    }
}
