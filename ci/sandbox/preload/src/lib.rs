//! Leads the calls through which libploop reaches the ploop driver to the sandbox.
//!
//! The dynamic linker puts this library before libc (`LD_PRELOAD`); what it defines is what the program calls. Where
//! [`wire::SOCKET`](ploop_sandbox_wire::SOCKET) is not set, each of its functions calls libc's and does nothing else.
//! Otherwise:
//!
//! | call | what becomes of it |
//! |---|---|
//! | `ioctl` of the driver's, or BLKRRPART, on a device of the sandbox | the daemon answers it (`ioctl`) |
//! | `ioctl` of OpenVZ's ext4, and ext4's growth where the privilege for it is missing | `ext4` |
//! | `open`, `stat` and the like below `/proc/vz` | the directory that the daemon serves (`files`) |
//! | `open` of a device of the sandbox | the daemon is told, for partitions are found by who opens it (`files`) |
//! | `open`, `fopen` of the list of mounts | a copy with the driver's numbers and options (`mounts`) |
//! | `stat` and the like of the sandbox's devices, and of files on them | the driver's numbers (`stat`) |
//! | `mknod`, `chmod` of the driver's nodes | nothing: the nodes are the daemon's (`files`) |
//! | `close`, `waitpid` | the balloon steps aside where the file system has to be unmounted to grow (`ext4`) |
//! | `mount` with `balloon_ino=` | without that option, which the daemon is told (`mounts`) |
//! | removing, renaming, shortening, giving space to a file that is attached | refused (`attached`) |
//! | what names the balloon, or lists its directory | refused, or without it (`balloon`) |
//!
//! Numbers are translated, the list of mounts is rewritten and OpenVZ's ext4 is imitated in processes that use libploop
//! alone (see `libploop`): mkfs, parted and the rest work on the real devices behind the nodes, under their real numbers.
//!
//! A program linked statically with libc never comes here, nor does a raw system call (`syscall`, Go without cgo), nor
//! a call that libc makes inside itself (`popen`'s shell is a process of its own and comes here again). Of a path
//! that points to no memory at all a program crashes here, where the kernel would answer EFAULT; a null pointer is
//! passed on.
//!
//! The rules inside: libc's own functions are called through `real` wherever this library defines them too. No
//! function here may panic, for that would end the program. `errno` is what the call leaves there, not what the work
//! around it does. What is only passed on allocates nothing: allocators open files and read links before there is
//! memory. Destructors must not be alive where libc's function is called in passing: these functions are
//! cancellation points, and a cancelled thread unwinds through them.

mod aside;
mod attached;
mod balloon;
mod daemon;
mod errno;
mod ext4;
mod files;
mod ioctl;
mod kernel;
mod libploop;
mod memory;
mod mounts;
mod paths;
mod real;
mod settings;
mod stat;

/// Looks everything up when the library is loaded: no lock of the dynamic linker's is taken later, in a signal handler
/// or in the child of a fork.
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
