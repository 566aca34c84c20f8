//! Readable memory behind what libploop allocates.
//!
//! Debian's build copies up to 4096 bytes from several paths, however short they are (hazard 0.8):
//! where `get_basedir` has `strncpy`, it has `memcpy`. Some of them are libploop's own copies, which no
//! caller can pad; where such a copy lies at the end of accessible memory, the process faults. Then a
//! page is put there, for as long as the call takes, and the copying goes on. What is read there is not
//! used.
//!
//! This knows nothing of the allocator, and is in force in the process of C alone. It can go when
//! Debian's libploop reads no further than its paths.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;

use super::signals;

/// More than one fault each would be of the pages of a call that has not just paths to copy.
const PAGES: usize = 64;

/// Marks a page that was there and could not be read.
const LENT: usize = 1;

thread_local! {
    /// What was put behind others' memory, in the order in which it was. The process has one thread.
    static GIVEN: Cell<([usize; PAGES], usize)> = const { Cell::new(([0; PAGES], 0)) };
}

pub(super) fn page_size() -> usize {
    // SAFETY: the function has no precondition.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// In the process of C, before the call.
pub(super) fn begin() {
    GIVEN.set(([0; PAGES], 0));
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    signals::set(
        libc::SIGSEGV,
        handler as *const () as libc::sighandler_t,
        libc::SA_SIGINFO,
    );
}

/// After the call: takes the pages away again.
pub(super) fn end() {
    let (pages, count) = GIVEN.get();
    for page in pages[..count].iter().filter(|page| *page & LENT == 0) {
        // SAFETY: the page was put there by `give`, and nothing is in it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(*page), page_size()) };
    }
}

/// Nothing but system calls.
extern "C" fn on_fault(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: the kernel passes a valid structure, which has an address for this signal.
    let address = unsafe { (*info).si_addr() }.addr();
    if !give(address & !(page_size() - 1)) {
        // Happens once more, and ends the process.
        signals::set(libc::SIGSEGV, libc::SIG_DFL, 0);
    }
    // SAFETY: the function returns this thread's own `errno`, never NULL.
    unsafe { *libc::__errno_location() = errno }
}

/// Makes a page readable that follows accessible memory and is not.
fn give(page: usize) -> bool {
    const READ: c_int = libc::PROT_READ;
    let size = page_size();
    let (mut pages, count) = GIVEN.get();
    // One that faults again is being written to, or is something else's.
    let again = pages[..count].iter().any(|given| given & !LENT == page);
    if count == PAGES || again || !is_mapped(page.wrapping_sub(size)) {
        return false;
    }
    let wanted: *mut c_void = std::ptr::with_exposed_provenance_mut(page);
    if is_mapped(page) {
        pages[count] = page | LENT;
        GIVEN.set((pages, count + 1));
        // Reserved by an allocator, or below a thread's stack. It can be read from now on; whoever
        // reserved it makes it writable before it is used.
        // SAFETY: reading does not change what is there.
        return unsafe { libc::mprotect(wanted, size, READ) } == 0;
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping, which takes nobody's place. Before Linux 4.17 the address is a wish, and
    // one that is elsewhere is given back; nobody else knows of it.
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
    GIVEN.set((pages, count + 1));
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
