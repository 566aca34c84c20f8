//! The step `msrv`: compiles the workspace with the oldest Rust that it supports. The lint `incompatible_msrv` knows
//! newer functions of the library, but not newer constructs of the language.

use super::Check;
use super::toolchain::Msrv;
use crate::run;

pub(super) const CHECK: Check = Check {
    name: "msrv",
    title: "compiles with the oldest Rust",
    missing: Msrv::missing,
    // The command needs a newer one, for its reader of ext4.
    work: |_| {
        run::run(&mut Msrv::get()?.cargo("check --workspace --exclude ploop-image --all-targets")?)
    },
};
