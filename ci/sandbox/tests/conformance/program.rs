//! Programs that are run, each for a limited time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::sandbox;

pub(crate) type Arguments<'a> = &'a [&'a dyn AsRef<OsStr>];

pub(crate) struct Output {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed, to both streams.
    pub(crate) text: String,
}

impl Output {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32) {
        assert_eq!(self.code, Some(code), "it printed:\n{}", self.text);
    }
}

/// Runs the `ploop` tool.
#[track_caller]
pub(crate) fn ploop(arguments: Arguments<'_>) -> Output {
    run("ploop", arguments)
}

/// Runs a program, for a minute at the most.
#[track_caller]
pub(crate) fn run(program: impl AsRef<Path>, arguments: Arguments<'_>) -> Output {
    let mut command = Command::new(program.as_ref());
    // Debian's libploop reads 4096 bytes from where a path begins. Behind the arguments come the variables, and behind
    // these the stack ends.
    command
        .args(arguments)
        .env("PLOOP_CONFORMANCE_ROOM", "x".repeat(8192));
    let (code, text) = sandbox::output(&mut command);
    Output { code, text }
}

/// Is there such a program?
pub(crate) fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).exists())
}
