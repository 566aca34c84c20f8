//! Changes without libploop (`OfflineImage`), beside those of the real libploop.
#![cfg(all(feature = "libploop", feature = "image-write"))]

mod compact;
mod convert;
mod create;
#[path = "../filled_image/mod.rs"]
mod filled_image;
mod grow;
mod history;
#[path = "../fixture/line.rs"]
mod line;
mod refusals;
mod restore;
mod upgrade;
#[path = "../written_bitmap/mod.rs"]
mod written_bitmap;
