//! What libploop 7 has and libploop 1 has not: there each call is refused, says why, and changes nothing.
//!
//! Tests that mount are listed as ignored where there is no driver or no root, and with libploop 1 what it cannot do.

mod capabilities;
#[path = "../kernel/container.rs"]
mod container;
mod creation;
mod cut_volumes;
mod devices;
mod discards;
mod encryption;
#[path = "../filled_image/mod.rs"]
mod filled_image;
#[path = "../fixture/mod.rs"]
mod fixture;
mod init;
mod made_volumes;
mod mounts;
mod running_tracking;
mod tracking;
mod unmounts;
#[path = "../volume_files/mod.rs"]
mod volume_files;
mod volumes;
#[path = "../written_bitmap/mod.rs"]
mod written_bitmap;

use std::process::ExitCode;

use fixture::harness::Need;
use fixture::line;

/// What takes a mounted image.
const MOUNTS: &[Need] = &[Need::Driver, Need::Root];

/// What a stub does not do: raw images, bitmaps of changes.
const REAL: &[Need] = &[Need::RealLibrary];

/// What takes libploop 7, with and without a mounted image.
const LINE_7: &[Need] = &[Need::LineSeven];
const MOUNTS_OF_LINE_7: &[Need] = &[Need::LineSeven, Need::Driver, Need::Root];

/// Whether libploop is of line 7.
fn is_line_7() -> bool {
    ploop::sys::SONAME == "libploop.so.7"
}

fn main() -> ExitCode {
    let sections = [
        capabilities::tests(),
        creation::tests(),
        discards::tests(),
        encryption::tests(),
        init::tests(),
        mounts::tests(),
        unmounts::tests(),
        tracking::tests(),
        running_tracking::tests(),
        devices::tests(),
        volumes::tests(),
        made_volumes::tests(),
        cut_volumes::tests(),
    ];
    fixture::harness::run(sections.into_iter().flatten().collect())
}
