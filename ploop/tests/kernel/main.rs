//! What needs the kernel driver: mounting, resizing, and everything on a running image. Each test
//! keeps files of known bytes in the image and compares them after every step.
//!
//! Where there is no driver, or no root, the tests are listed as ignored, with that reason. In the
//! sandbox (`ci/sandbox`) there is one.

#[path = "../fixture/mod.rs"]
mod fixture;

mod container;
mod copies;
mod creation;
mod discards;
mod formats;
mod goploop;
mod looks;
mod merges;
mod mounts;
#[path = "../old_kernel/mod.rs"]
mod old_kernel;
#[cfg(feature = "image-write")]
mod repairs;
mod replaces;
mod resizes;
mod snapshots;
mod temporary;

use std::process::ExitCode;

use fixture::harness::Need;

/// What every test here takes.
const NEEDS: &[Need] = &[Need::Driver, Need::Root];

fn main() -> ExitCode {
    let sections = [
        goploop::tests(),
        creation::tests(),
        mounts::tests(),
        formats::tests(),
        resizes::tests(),
        snapshots::tests(),
        temporary::tests(),
        merges::tests(),
        replaces::tests(),
        discards::tests(),
        copies::tests(),
        looks::tests(),
        #[cfg(feature = "image-write")]
        repairs::tests(),
    ];
    fixture::harness::run(sections.into_iter().flatten().collect())
}
