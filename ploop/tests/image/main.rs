//! What is read of images, without libploop: descriptors, deltas, disks, and what the check finds.
#![cfg(feature = "image")]

mod as_found;
mod bitmap;
mod check;
mod descriptor;
mod disk;
mod layers;
#[cfg(feature = "libploop")]
#[path = "../old_kernel/mod.rs"]
mod old_kernel;
mod partitions;
mod salvage;
mod split;
mod volumes;
#[path = "../work_done/mod.rs"]
mod work_done;
#[path = "../written_bitmap/mod.rs"]
mod written_bitmap;
#[path = "../written_image/mod.rs"]
mod written_image;
