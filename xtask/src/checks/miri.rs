//! The step `miri`: looks for undefined behaviour in the reader of images. Miri has no `ioctl` and no memory files, and
//! takes a hundred times as long. So it runs the unit tests and the tests of parsers, but not those of disks.

use super::Check;
use super::toolchain::{has_nightly_cargo, nightly_cargo};
use crate::run;

pub(super) const CHECK: Check = Check {
    name: "miri",
    title: "undefined behaviour in the reader of images",
    missing: || {
        Ok((!has_nightly_cargo("miri")).then(|| {
            "no `cargo +nightly miri`: `rustup toolchain install nightly -c miri,rust-src`"
                .to_owned()
        }))
    },
    work: |_| {
        let line = "miri test --locked -p ploop --no-default-features --features image \
                    --lib --test guid --test descriptor";
        run::run(
            nightly_cargo()
                .args(line.split_whitespace())
                .args(["--", "--skip", "linear_time"])
                .env("MIRIFLAGS", "-Zmiri-disable-isolation")
                .env("PROPTEST_CASES", "8"),
        )
    },
};
