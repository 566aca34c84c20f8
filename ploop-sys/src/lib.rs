//! Raw bindings of **libploop**, the C library that manages ploop images: OpenVZ's and Virtuozzo's disks in a file.
//!
//! Everything here is `unsafe` and named as in C. Comments, where there are any, are the header's. The safe crate is `ploop`.
//!
//! libploop trusts its arguments. Several calls abort or crash on values they do not expect, read beyond the end of short
//! path buffers, must not run on two threads at once, or delete files. Members of a structure that are not filled in have
//! to be zero, the `dummy` members too: `Default` makes them so.
//!
//! # Versions
//!
//! The bindings are those of libploop 1.15. bindgen made them, and they are committed, so that a build needs neither libclang
//! nor the C header. They fit libploop 1.12 to 1.15 (`libploop.so.1`). The build refuses others, since 7.x and 9.x have other
//! structures. Sizes and offsets are asserted at compile time. They are those of 64-bit Linux, the only platform supported.
//!
//! A library older than 1.15 may lack functions; a call of one then fails to link. It ignores members it does not know:
//! before 1.13, for example, `ploop_merge_param::guid2`.
//!
//! # Build
//!
//! pkg-config finds the library (`ploop.pc`): package `libploop-dev` on Debian and Ubuntu, `ploop-devel` on RHEL-like
//! systems. These environment variables change that. Each is read with the target as prefix first
//! (`X86_64_UNKNOWN_LINUX_GNU_PLOOP_LIB_DIR`), then as it is. An empty one counts as unset.
//!
//! | variable | effect |
//! |---|---|
//! | `PLOOP_LIB_DIR` | directory of `libploop.so` or `libploop.a`; pkg-config is not asked |
//! | `PLOOP_INCLUDE_DIR` | directory that holds `ploop/libploop.h`, for the feature `bindgen` and for `DEP_PLOOP_INCLUDE` |
//! | `PLOOP_STATIC` | `0`: shared, anything else: static, whatever the features say |
//! | `PLOOP_NO_PKG_CONFIG` | anything but `0`: pkg-config is not run. Without `PLOOP_LIB_DIR`, the linker then has to find the library, and its version is not checked |
//!
//! pkg-config itself obeys the variables of the `pkg-config` crate, such as `PKG_CONFIG_PATH` and `PKG_CONFIG_SYSROOT_DIR`, in
//! cross builds too; all of them may have the target in their name. With `DOCS_RS` set, no library is looked for and none is
//! linked.
//!
//! Build scripts of crates that depend on this one get `DEP_PLOOP_VERSION` (`1.15`), `DEP_PLOOP_ABI` (`v1`) and, if the
//! header was found, `DEP_PLOOP_INCLUDE`.
//!
//! # Features
//!
//! * `static` links `libploop.a`. libxml2, which it needs, stays a shared library, unless `LIBXML_2.0_STATIC=1` tells
//!   pkg-config otherwise. On Debian `libploop-dev` is enough; `libxml2-dev` is not needed.
//! * `bindgen` generates the bindings from the installed header at build time. It needs libclang.
//!
//! # Licence
//!
//! These bindings are MIT or Apache-2.0, at your choice. The library is not: its header says GNU GPL, version 2 or later,
//! and Debian's copyright file says the same of all of libploop 1.15. A program that links it, shared or static, has to be
//! distributed on terms that the GPL allows.

#![no_std]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "ploop-sys supports 64-bit Linux only: the sizes and offsets of libploop's structures are those of LP64"
);

// C's names are kept, and what has no comment in the header has none here. The only `unsafe` in generated code is in
// `Default`, which writes zeros: a value of every integer, array and pointer.
#[cfg(not(ploop_generated))]
#[allow(missing_docs, non_camel_case_types, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]
#[cfg_attr(ploop_abi = "v1", path = "bindings/v1_15.rs")]
#[cfg_attr(ploop_abi = "v7", path = "bindings/v7_0.rs")]
#[rustfmt::skip]
mod bindings;

#[cfg(ploop_generated)]
#[allow(
    missing_docs,
    non_camel_case_types,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

/// The version of the libploop that this crate was built against, from its `.pc` file or its file name; where there is
/// neither, the version of the bindings.
pub const VERSION: &str = env!("PLOOP_SYS_VERSION");

/// The soname of the libploop that this crate was built against: the line whose structures the bindings have.
pub const SONAME: &str = env!("PLOOP_SYS_SONAME");
