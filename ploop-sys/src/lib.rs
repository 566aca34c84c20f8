//! Raw bindings of **libploop**, the C library that manages ploop images: OpenVZ's and Virtuozzo's disks in a file.
//!
//! Everything here is `unsafe` and named as in C. The safe crate is `ploop`.
//!
//! libploop trusts its arguments. Several calls abort or crash on values they do not expect, read beyond the end of short
//! path buffers, must not run on two threads at once, or delete files. Members of a structure that are not filled in have
//! to be zero, the `dummy` members too: `Default` makes them so.
//!
//! # Versions
//!
//! libploop has lines: versions with one soname, whose structures the same bindings fit. The build looks at the
//! file that it links, and takes the bindings of that line.
//!
//! | line | versions | bindings | comments |
//! |---|---|---|---|
//! | 1, `libploop.so.1` | 1.12 to 1.15 | those of 1.15, made from its header | the header's |
//! | 7, `libploop.so.7` | 7.0.95 and later, below 7.1 | those of 7.0.280, made from a description of the interface (`abi/v7.h`) | ours; "since 7.0.N" where 7.0.95 did not have it |
//! | 8 and 9, `libploop.so.8` and `.9` | none yet: the build refuses them | those of 9.0.30 are kept beside the others (`abi/v9.h`) | ours |
//!
//! The build refuses older versions. Those below 1.12 lack functions that are bound; below 7.0.95 the structures that the
//! library allocates are smaller, and a program would read members that are not there. bindgen has made all bindings, and they are committed, so that a build needs neither libclang nor
//! the C header. Sizes and offsets are asserted at compile time. They are those of 64-bit Linux, the only platform
//! supported.
//!
//! A program may meet another version of its line than it was built with, for the dynamic linker goes by the soname:
//!
//! * Structures that the program allocates (parameters, results) are as large as the largest version has them. An older
//!   library does not know the last members and ignores them.
//! * Structures that the library allocates (the handle, deltas, snapshots) have the same members in all versions of line 7
//!   that are supported. In line 1, `ploop_disk_images_data::max_delta_size` is there since 1.13.
//! * A function that the library does not have keeps the program from starting. Line 7 has a module `late` of the functions
//!   that 7.0.95 does not have: their types, and since when they are there. Look them up by `dlsym`, and do not call them
//!   as they are bound.
//!
//! Another line cannot be told by its soname alone where its file was renamed or comes by `LD_PRELOAD`: of
//! `ploop_dm_message`, `ploop_set_umount_timeout` and `ploop_store_diskdescriptor` a shared library exports the first since
//! 8.0.7, the second since 7.0.92, and the third before 7.0. The crate `ploop` looks before its first call.
//!
//! # Build
//!
//! pkg-config finds the library (`ploop.pc`): package `libploop-dev` on Debian and Ubuntu, `ploop-devel` on RHEL-like
//! systems. These environment variables change that. Each is read with the target as prefix first
//! (`X86_64_UNKNOWN_LINUX_GNU_PLOOP_LIB_DIR`), then as it is. An empty one counts as unset; of a switch, `0`, `no`, `false`
//! and `off` are off, and anything else is on.
//!
//! | variable | effect |
//! |---|---|
//! | `PLOOP_LIB_DIR` | directory of `libploop.so` or `libploop.a`, the whole path; pkg-config is not asked |
//! | `PLOOP_INCLUDE_DIR` | directory that holds `ploop/libploop.h`, the whole path, for the feature `bindgen` and for `DEP_PLOOP_INCLUDE` |
//! | `PLOOP_STATIC` | off: shared, on: static, whatever the features say. Without it, and without the feature, the library is shared if there is a shared one |
//! | `PLOOP_NO_PKG_CONFIG` | on: pkg-config is not run. Without `PLOOP_LIB_DIR`, the compiler is asked which library the linker will take (`cc -print-file-name=libploop.so`). If it knows none, line 1 is assumed, and a warning says so |
//!
//! A program finds a shared library outside the system's directories by `LD_LIBRARY_PATH`, as any program:
//! `PLOOP_LIB_DIR=/opt/ploop/lib LD_LIBRARY_PATH=/opt/ploop/lib cargo run`.
//!
//! pkg-config itself obeys the variables of the `pkg-config` crate, such as `PKG_CONFIG_PATH` and `PKG_CONFIG_SYSROOT_DIR`, in
//! cross builds too; all of them may have the target in their name. With `DOCS_RS` on, no library is looked for and none is
//! linked.
//!
//! Build scripts of crates that depend on this one get
//!
//! | variable | value |
//! |---|---|
//! | `DEP_PLOOP_ABI` | the line: `v1` or `v7` |
//! | `DEP_PLOOP_CAPABILITIES` | what is bound in this line and not in every other, with commas between them |
//! | `DEP_PLOOP_VERSION` | [`VERSION`], if it is known |
//! | `DEP_PLOOP_INCLUDE` | the directory of the header, if it was found |
//! | `DEP_PLOOP_LINKAGE` | `shared` or `static` |
//! | `DEP_PLOOP_LATE` | the late functions in a static library, with commas between them: a program is linked to these, and `dlsym` does not find them |
//!
//! The capabilities are `copy_streams` (`ploop_copy_send` and `ploop_copy_receive` work) and `merge_ranges`
//! (`ploop_merge_param::guid2`) in line 1; `bitmaps`, `clones`, `copy_iterations` (`ploop_copy_start` and those after it),
//! `defragmentation`, `encryption`, `suspend`, `tracking`, `umount_timeout` and `volumes` in line 7. A build script makes
//! cfgs of them:
//!
//! ```
//! println!("cargo::rustc-check-cfg=cfg(ploop_has, values(any()))");
//! let capabilities = std::env::var("DEP_PLOOP_CAPABILITIES").unwrap_or_default();
//! for name in capabilities.split(',').filter(|name| !name.is_empty()) {
//!     println!("cargo::rustc-cfg=ploop_has=\"{name}\"");
//! }
//! ```
//!
//! The build script of this crate runs again when the library, its `.pc` file or, with the feature `bindgen`, a header changes.
//!
//! # Features
//!
//! * `static` links `libploop.a`. What that needs stays shared, unless `PKG_CONFIG_ALL_STATIC=1` or, for one of them,
//!   `LIBXML_2.0_STATIC=1` tells pkg-config otherwise: libxml2; and for line 7 libcrypto, libuuid and libdevmapper, too. On
//!   Debian `libploop-dev` is enough for line 1; `libxml2-dev` is not needed. The `libploop.a` of some versions of line 7
//!   (seen in 7.0.166 and 7.0.280) cannot be linked: it holds a source file, `defrag.c`, in the place of an object. The
//!   build says so. A program that is static as a whole (`crt-static`) needs all of them as static libraries.
//! * `bindgen` generates the bindings from the installed header at build time. It needs libclang.
//!
//! # Licence
//!
//! These bindings are MIT or Apache-2.0, at your choice. The library is not: its headers say GNU GPL, version 2 or later,
//! and Debian's copyright file says the same of all of libploop 1.15. A program that links it, shared or static, has to be
//! distributed on terms that the GPL allows.

#![no_std]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "ploop-sys supports 64-bit Linux only: the sizes and offsets of libploop's structures are those of LP64"
);

// C's names are kept, and what has no comment in the header or description has none here. The only `unsafe` in generated code is in
// `Default`, which writes zeros: a value of every integer, array and pointer.
#[cfg(not(ploop_generated))]
#[allow(missing_docs, non_camel_case_types, clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]
#[cfg_attr(ploop_abi = "v1", path = "bindings/v1_15.rs")]
#[cfg_attr(ploop_abi = "v7", path = "bindings/v7_0.rs")]
#[rustfmt::skip]
mod bindings;

#[cfg(ploop_generated)]
#[allow(
    missing_docs,
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

/// The version of the libploop that this crate was built against, as its `.pc` file or else its file name says. Where neither
/// does, the newest version that brought a function which the library has: the library is that or a later one. `unknown` if
/// the build did not see the library.
pub const VERSION: &str = env!("PLOOP_SYS_VERSION");

/// The soname of the libploop that this crate was built against: the line whose structures the bindings have.
pub const SONAME: &str = env!("PLOOP_SYS_SONAME");
