//! What is known about the ploop driver, a test for each line of it, by the real libploop and by raw ioctls.
//!
//! Where the kernel has the driver, that is what is tested. Elsewhere the program runs itself again inside the sandbox;
//! what the sandbox knowingly does otherwise is shown as ignored there, with the reason.

mod allocation;
mod changed_blocks;
mod devices;
mod discard;
mod driver;
mod exit_codes;
mod files;
mod harness;
mod image;
mod in_use;
mod ioctl;
mod ioctls;
mod maintenance;
mod merges;
mod mounts;
mod operations;
mod program;
mod running;
#[path = "../faults/sandbox.rs"]
mod sandbox;
mod sysfs;
mod tables;
#[path = "../../../../ploop/tests/fixture/test_list.rs"]
mod test_list;
mod virtuozzo_7;

use std::process::ExitCode;

fn main() -> ExitCode {
    let sections = [
        devices::tests(),
        sysfs::tests(),
        ioctls::tests(),
        in_use::tests(),
        running::tests(),
        files::tests(),
        allocation::tests(),
        merges::tests(),
        maintenance::tests(),
        tables::tests(),
        discard::tests(),
        mounts::tests(),
        operations::tests(),
        exit_codes::tests(),
        virtuozzo_7::tests(),
        changed_blocks::tests(),
    ];
    harness::run(sections.into_iter().flatten().collect())
}
