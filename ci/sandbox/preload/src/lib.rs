//! The preload library (`LD_PRELOAD`): replaces functions of libc, so that a program, and libploop in it, reaches the
//! sandbox in the place of the ploop driver.
//!
//! Where [`wire::SOCKET`](ploop_sandbox_wire::SOCKET) is not set, each of its functions calls libc's and does nothing
//! else. Otherwise:
//!
//! | call | what it does here |
//! |---|---|
//! | `ioctl` of the driver (`PLOOP_IOC_*`), and `BLKRRPART`, on a device of the sandbox | the daemon answers it (`ioctl`) |
//! | `ioctl` of Virtuozzo's block layer (`BLKCBT*`) on a device of the sandbox | the daemon answers it (`ioctl`) |
//! | `ioctl` of OpenVZ's ext4, and ext4's growth without CAP_SYS_RESOURCE | imitated (`ext4`) |
//! | `open`, `stat` and the like below `/proc/vz` | are redirected to the directory that the daemon serves (`files`) |
//! | `open` of a device of the sandbox | tells the daemon, which looks for partitions then (`files`) |
//! | `open`, `fopen` of a list of mounts | opens a copy with the driver's numbers and options (`mounts`) |
//! | `stat` and the like of the sandbox's devices, and of files on them | tell the driver's numbers (`stat`) |
//! | `mknod`, `chmod` of the driver's nodes | do nothing: the daemon makes the nodes (`files`) |
//! | `close`, `waitpid` | release the balloon where the file system has to be unmounted to grow (`ext4`) |
//! | `mount` with `balloon_ino=` | mounts without that option, and tells the daemon (`mounts`) |
//! | removing, renaming, shortening an attached file, allocating space in it | fails (`attached`) |
//! | calls that name the balloon | fail, and `readdir` leaves it out (`balloon`) |
//!
//! Numbers are translated, lists of mounts rewritten and OpenVZ's ext4 imitated only in processes that use libploop
//! (see `libploop`). mkfs, parted and other tools work on the real devices behind the nodes, under their real numbers.
//!
//! Not replaced: the calls of a statically linked program, raw system calls (`syscall`, Go without cgo), and calls that
//! libc makes inside itself (the shell of `popen` is a process of its own, and uses this library again). A path that
//! points to no memory crashes the program here, where the kernel would answer EFAULT; a null pointer is passed on.
//!
//! Rules for changes:
//!
//! * A function of libc that this library replaces is called through `real`.
//! * No function may panic, because that would end the program.
//! * `errno` is what the call itself leaves there.
//! * A call that is only passed on allocates nothing: allocators open files and read links before they work.
//! * No value with a destructor lives across such a call. Many functions of libc are cancellation points, and a
//!   cancelled thread unwinds through them.

mod attached;
mod balloon;
mod daemon;
mod errno;
mod ext4;
mod files;
mod ioctl;
mod kernel;
mod libploop;
mod locks;
mod memory;
mod mounts;
mod paths;
mod real;
mod released;
mod settings;
mod stat;

/// Looks up all functions of libc when the library is loaded. Later, in a signal handler or a forked child, the lock of
/// the dynamic linker must not be taken.
extern "C" fn load() {
    real::resolve_all();
    if settings::settings().is_some() {
        attached::map();
        libploop::is_used();
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;
