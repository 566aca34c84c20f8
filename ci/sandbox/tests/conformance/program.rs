//! Programs that are run, each for a limited time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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

#[track_caller]
pub(crate) fn run(program: impl AsRef<Path>, arguments: Arguments<'_>) -> Output {
    run_for(Duration::from_secs(60), program, arguments)
}

/// Runs a program. It panics if the program takes longer than `limit`; what cannot be killed is left behind.
#[track_caller]
pub(crate) fn run_for(
    limit: Duration,
    program: impl AsRef<Path>,
    arguments: Arguments<'_>,
) -> Output {
    let program = program.as_ref();
    let mut log = tempfile::tempfile().unwrap();
    let sink = |log: &File| Stdio::from(log.try_clone().unwrap());
    let mut child = Command::new(program)
        .args(arguments)
        // Debian's libploop reads 4096 bytes from where a path begins. Behind the arguments come the variables, and behind
        // these the stack ends.
        .env("PLOOP_CONFORMANCE_ROOM", "x".repeat(8192))
        .stdin(Stdio::null())
        .stdout(sink(&log))
        .stderr(sink(&log))
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()));
    let status = ends(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
        ends(&mut child, Duration::from_secs(5));
    }
    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).unwrap();
    log.read_to_string(&mut text).unwrap();
    let Some(status) = status else {
        let arguments: Vec<&OsStr> = arguments.iter().map(|a| a.as_ref()).collect();
        panic!(
            "{} {arguments:?} is still running after {limit:?}; it printed:\n{text}",
            program.display()
        );
    };
    Output {
        code: status.code(),
        text,
    }
}

/// Waits for a process, but not for long.
pub(crate) fn ends(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Asks a process to end.
pub(crate) fn terminate(child: &Child) {
    // SAFETY: a signal to a child that was not waited for, so its number is still its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
}

/// Is there such a program?
pub(crate) fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).exists())
}
