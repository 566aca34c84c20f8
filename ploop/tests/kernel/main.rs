//! What needs the kernel driver: mounting, resizing, and everything on a running image. Each test
//! keeps files of known bytes in the image and compares them after every step.
//!
//! They are ignored where they are not asked for: `cargo test -p ploop --test kernel -- --ignored`
//! runs them, as root, on an OpenVZ or Virtuozzo kernel with the driver loaded.
#![cfg(feature = "libploop")]

mod container;
mod goploop;
mod mounts;
mod running;
