//! Readable memory behind what libploop allocates.
//!
//! Debian's build reads up to 4 KiB beyond its own copies of paths (hazard 0.8). They are on the heap,
//! where no caller can pad them, and a copy in the last page of a heap makes the process fault. So
//! before each call the heaps of the thread are made to go on for a while. What is read there is not
//! used.
//!
//! This knows how glibc arranges its heaps. It can go when Debian's libploop reads no further than its
//! copies. Other allocators are left as they are.

#[cfg(target_env = "gnu")]
use std::io;
#[cfg(target_env = "gnu")]
use std::os::unix::fs::FileExt;
#[cfg(target_env = "gnu")]
use std::sync::OnceLock;
#[cfg(target_env = "gnu")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Makes sure that there is memory behind what this thread allocates next.
///
/// The heap of the main thread is as long as the data segment. A block from its end is allocated and
/// freed: up to 128 KiB of that stay. The heaps of other threads are parts of areas that glibc reserves,
/// of which it makes accessible what it needs; what follows is made accessible here.
#[cfg(target_env = "gnu")]
pub(super) fn extend_heap() {
    let mut blocks = Blocks(std::ptr::null_mut());
    let mut last = None;
    // All that is free in the older heaps of the thread may have to be taken before a block comes from
    // the newest one, or from the end of the main one.
    for _ in 0..AREA / BLOCK + 1 {
        let Some(block) = blocks.add() else { break };
        match heap_of(block) {
            Heap::None | Heap::Main { is_last: true } => break,
            Heap::Main { is_last: false } => {}
            Heap::Other(area) => {
                last = Some(area);
                if area.is_newest() {
                    break;
                }
            }
        }
    }
    // An area is given back after the newer ones only, and there is a block in this one.
    while let Some(area) = last {
        area.extend();
        last = area.previous();
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn extend_heap() {}

#[cfg(target_env = "gnu")]
const BLOCK: usize = 100 << 10;

/// A heap of another thread than the main one is aligned to so much, and no longer.
#[cfg(target_env = "gnu")]
const AREA: usize = 64 << 20;

/// So much is accessible behind a heap, or up to the end of its area. It may grow during a call.
#[cfg(target_env = "gnu")]
const ROOM: usize = 2 << 20;

#[cfg(target_env = "gnu")]
const PAGE: usize = 4096;

#[cfg(target_env = "gnu")]
const WORD: usize = size_of::<usize>();

/// In the lowest bits of a size in glibc's heap.
#[cfg(target_env = "gnu")]
const FLAGS: usize = 7;

/// Blocks of memory, each with the one before in its first word. They are freed in the end.
#[cfg(target_env = "gnu")]
struct Blocks(*mut *mut libc::c_void);

#[cfg(target_env = "gnu")]
impl Blocks {
    /// The address of another block. None where there is none, or glibc's `malloc` is not in use.
    fn add(&mut self) -> Option<usize> {
        // SAFETY: asking for memory. `black_box` keeps the pairs from being optimised away.
        let block = unsafe { std::hint::black_box(libc::malloc(BLOCK)) };
        if block.is_null() {
            return None;
        }
        let link: *mut *mut libc::c_void = block.cast();
        // SAFETY: the block is this function's, larger than a pointer and aligned for one.
        unsafe { link.write(self.0.cast()) };
        self.0 = link;
        is_glibc_s(block).then(|| block.addr())
    }
}

#[cfg(target_env = "gnu")]
impl Drop for Blocks {
    fn drop(&mut self) {
        while !self.0.is_null() {
            let block = self.0;
            // SAFETY: it came from `malloc`, holds the link that was written there, and is freed once.
            unsafe {
                self.0 = block.read().cast();
                libc::free(block.cast());
            }
        }
    }
}

/// Whether `malloc` is glibc's, which a program can put another one in the place of. Then a block has
/// its size one word before it, as `malloc.c` documents. Asked once in a process.
#[cfg(target_env = "gnu")]
fn is_glibc_s(block: *mut libc::c_void) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // SAFETY: the block came from `malloc`.
        let usable = unsafe { libc::malloc_usable_size(block) };
        words(block.addr() - WORD).is_some_and(|[header]| (header & !FLAGS) == usable + WORD)
    })
}

/// Where a block of glibc's lies.
#[cfg(target_env = "gnu")]
enum Heap {
    /// It is mapped by itself, or the heap is not one of those described here.
    None,
    /// The last block of it ends where only the heap's rest begins, which it is added to when it is freed.
    Main {
        is_last: bool,
    },
    Other(Area),
}

#[cfg(target_env = "gnu")]
fn heap_of(block: usize) -> Heap {
    const OF_ANOTHER_THREAD: usize = 4;
    const MAPPED: usize = 2;
    let header = load(block - WORD);
    if header & MAPPED != 0 {
        return Heap::None;
    }
    let next = block - 2 * WORD + (header & !FLAGS);
    if header & OF_ANOTHER_THREAD == 0 {
        // SAFETY: asking for the end of the data segment changes nothing.
        let end = unsafe { libc::sbrk(0) }.addr();
        return Heap::Main {
            is_last: next + 2 * WORD > end || next + (load(next + WORD) & !FLAGS) >= end,
        };
    }
    match Area::at(block & !(AREA - 1)) {
        Some(area) if next <= area.end() => Heap::Other(area),
        _ => Heap::None,
    }
}

/// An area that glibc reserves for a heap, as the four words at its beginning tell: whose heap it is, the
/// area before it, the heap's size, and how much of the area can be accessed.
#[cfg(target_env = "gnu")]
#[derive(Clone, Copy)]
struct Area {
    start: usize,
    previous: usize,
    size: usize,
}

#[cfg(target_env = "gnu")]
impl Area {
    fn at(start: usize) -> Option<Area> {
        // An allocator with other settings than the usual ones has something else there, or nothing.
        let [_, previous, size, accessible] = words(start)?;
        let is_one = size % PAGE == 0 && 0 < size && size <= accessible && accessible <= AREA;
        is_one.then_some(Area {
            start,
            previous,
            size,
        })
    }

    fn end(self) -> usize {
        self.start + self.size
    }

    /// An older heap ends with a chunk of no size whose predecessor is in use.
    fn is_newest(self) -> bool {
        words(self.end() - WORD) != Some([1])
    }

    fn previous(self) -> Option<Area> {
        if self.previous == 0 || self.previous % AREA != 0 {
            return None;
        }
        Area::at(self.previous)
    }

    fn extend(self) {
        let (end, limit) = (self.end(), self.start + AREA);
        if end < limit {
            // SAFETY: glibc has reserved the range for this heap alone, and makes each part of it
            // accessible, in the same way, before it is used; whoever does so at the same time finds it
            // done. It holds nothing.
            unsafe {
                libc::mprotect(
                    std::ptr::with_exposed_provenance_mut(end),
                    ROOM.min(limit - end),
                    libc::PROT_READ | libc::PROT_WRITE,
                );
            }
        }
        if limit - end < PAGE && words::<1>(limit).is_none() {
            map_page(limit);
        }
    }
}

/// Makes a page readable at this address, if nothing is there.
#[cfg(target_env = "gnu")]
fn map_page(address: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let wanted = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: a new mapping, which takes nobody's place. Before Linux 4.17 the address is a wish, and
    // one that is elsewhere is given back; nobody else knows of it.
    unsafe {
        let page = libc::mmap(wanted, PAGE, libc::PROT_READ, flags, -1, 0);
        if page != libc::MAP_FAILED && page != wanted {
            libc::munmap(page, PAGE);
        }
    }
}

/// A word of glibc's own. Other threads may write to it at any time: a wrong answer costs room, no more.
#[cfg(target_env = "gnu")]
fn load(address: usize) -> usize {
    // SAFETY: all that is asked for lies beside a block of this module's, in the same heap, and is
    // aligned. It belongs to the allocator, and is read at once or not at all.
    unsafe {
        AtomicUsize::from_ptr(std::ptr::with_exposed_provenance_mut(address))
            .load(Ordering::Relaxed)
    }
}

/// The words from an address on, if they can be read.
#[cfg(target_env = "gnu")]
fn words<const N: usize>(address: usize) -> Option<[usize; N]> {
    let mut words = [0usize; N];
    let len = size_of_val(&words);
    let local = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address),
        iov_len: len,
    };
    // SAFETY: the kernel copies between the two, and fails where the address cannot be read.
    match unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) } {
        -1 if io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) => {
            words_of_file(address)
        }
        read => (read == len as isize).then_some(words),
    }
}

/// [`words`] before Linux 3.2, and where the call is forbidden, as in some containers.
#[cfg(target_env = "gnu")]
fn words_of_file<const N: usize>(address: usize) -> Option<[usize; N]> {
    let memory = std::fs::File::open("/proc/self/mem").ok()?;
    let mut words = [0usize; N];
    for (word, at) in words.iter_mut().zip((address..).step_by(WORD)) {
        let mut bytes = [0; WORD];
        memory.read_exact_at(&mut bytes, at as u64).ok()?;
        *word = usize::from_ne_bytes(bytes);
    }
    Some(words)
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
                assert!(words::<1>(end + PAGE).is_some(), "{end:x} in round {round}");
            }
        }
    }

    #[test]
    fn memory_is_read_in_two_ways() {
        let here = [47usize, 11];
        for read in [words, words_of_file] {
            assert_eq!(read((&raw const here).addr()), Some(here));
            assert_eq!(read(8), None);
        }
    }

    #[test]
    fn there_is_room_behind_every_copy() {
        // Every test has a thread of its own.
        assert_room();
        std::thread::spawn(assert_room).join().unwrap();
    }

    /// A thread whose heap is full gets another one, and what is freed at the end of the first is used
    /// again.
    #[test]
    fn there_is_room_behind_an_older_heap() {
        const ALONE: &str = "PLOOP_TEST_ALONE";
        // The threads of other tests would share its heaps.
        if std::env::var_os(ALONE).is_none() {
            let name = "ffi::heap_room::tests::there_is_room_behind_an_older_heap";
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            let output = alone.args(["--exact", name]).env(ALONE, "1").output();
            let output = output.unwrap();
            let words = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{words}");
            assert!(words.contains("1 passed"), "{words}");
            return;
        }
        for block in [30_000, 2000] {
            let test = move || end_of_an_older_heap(block);
            std::thread::spawn(test).join().unwrap();
        }
    }

    fn end_of_an_older_heap(block: usize) {
        let area_of = |block: &Vec<u8>| match heap_of(block.as_ptr().addr()) {
            Heap::Other(area) => area,
            _ => panic!("not in a heap of a thread's own"),
        };
        let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(AREA / block);
        let (older, _in_the_newest) = loop {
            let new = Vec::with_capacity(block);
            match blocks.last().map(area_of) {
                Some(area) if area.start != area_of(&new).start => break (area, new),
                _ => blocks.push(new),
            }
        };
        assert!(!older.is_newest());
        let free = 2 * PAGE / block + 1;
        blocks.truncate(blocks.len() - free);
        extend_heap();
        let mut copies = Vec::new();
        let reached_the_end = (0..10_000).any(|_| {
            copies.push(vec![1u8; 100]);
            let end = copies[copies.len() - 1].as_ptr().addr() + 100;
            assert!(words::<1>(end + PAGE).is_some(), "{end:x}");
            (older.end() - PAGE..older.end()).contains(&end)
        });
        assert!(reached_the_end, "blocks of {block}");
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
