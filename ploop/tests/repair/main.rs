//! Repair of images (`OfflineImage::repair`), and undoing it.
#![cfg(feature = "image-write")]

mod damaged_image;
mod descriptors;
mod geometry;
mod headers;
mod random_damage;
mod tables;
mod undo;
#[path = "../written_image/mod.rs"]
mod written_image;
