//! The workspace, compiled by the oldest Rust it promises to build with. The linter knows which functions of the library
//! are newer (`incompatible_msrv`), but not which constructs of the language.

use super::Check;
use super::toolchain::Msrv;
use crate::run;

pub(super) const CHECK: Check = Check {
    name: "msrv",
    title: "compiles with the oldest Rust",
    missing: Msrv::missing,
    work: |_| run::run(&mut Msrv::get()?.cargo("check --workspace --all-targets")?),
};
