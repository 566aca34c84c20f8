//! Every operation that needs no driver, checked by what the image holds afterwards: each test keeps
//! in memory what each state of the disk should read as, and compares it with what two readers that
//! do not know libploop find in the files.
#![cfg(feature = "libploop")]

mod clone;
mod convert;
mod copy;
mod create;
mod delete;
mod descriptors;
#[path = "../fixture/directory.rs"]
mod directory;
#[path = "../filled_image/mod.rs"]
mod filled_image;
#[path = "../fixture/line.rs"]
mod line;
mod look;
mod merge;
mod names;
#[path = "../old_kernel/mod.rs"]
mod old_kernel;
#[path = "../fixture/pipe.rs"]
mod pipe;
#[path = "../fixture/refused.rs"]
mod refused;
mod replace;
mod snapshot;
mod tables;
#[path = "../written_image/mod.rs"]
mod written_image;

/// All of it.
#[test]
fn on_an_old_kernel() {
    old_kernel::run_again(&[]);
}
