//! The calls of libploop and the guards around them, on a stub of libploop 7 (`cargo xtask stub`): it records each
//! parameter, answers as a script says, and imitates what is dangerous in the real one.
//!
//! Here it is shown what the crate makes of it; what the real library does is in `hazards`, for each line. The tests run
//! where the program is linked with the stub:
//!
//! ```text
//! cargo xtask stub --line 7
//! PLOOP_LIB_DIR=target/stub/7 LD_LIBRARY_PATH=target/stub/7 CARGO_TARGET_DIR=target/line-stub \
//!     cargo test -p ploop --test line_stub
//! ```

#[path = "../fixture/mod.rs"]
mod fixture;

mod calls;
mod guards;
mod process;
mod results;
mod stub;

use std::process::ExitCode;

fn main() -> ExitCode {
    ploop::durability::set_sync(false);
    let directory = tempfile::tempdir().unwrap();
    stub::use_directory(directory.path());
    let sections = [
        calls::tests(),
        results::tests(),
        process::tests(),
        guards::tests(),
    ];
    fixture::harness::run(sections.into_iter().flatten().collect())
}
