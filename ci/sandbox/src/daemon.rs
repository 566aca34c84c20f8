//! The daemon of a sandbox: the driver, and all that talks to it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::process::DumpableBehavior;

use crate::driver::{Driver, list_attached_in};
use crate::sandbox_directory::{Lock, SandboxDirectory};
use crate::teardown::{self, PATIENCE};
use crate::tree::{self, Tree};
use crate::{fuse, mounts, namespace, processes, server};

/// What the daemon says when a program can start, and what it is told when that has ended.
pub(crate) const READY: &str = "ready";
pub(crate) const STOP: &str = "stop";

/// Runs it. Standard input is the sandbox's lock, standard output the way to the launcher.
pub(crate) fn run(dir: PathBuf) -> Result<()> {
    // A thread that panics may leave requests unanswered for ever; a daemon that dies does not.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        process::abort();
    }));
    // Whoever stops the launcher at a terminal does not stop the daemon.
    rustix::process::setsid().context("cannot make a session")?;
    // A dump would be as large as the buffers, and ends a sandbox late.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Memory is not to be freed by writing to a device that waits for this process. Where the
    // privilege is missing, so be it.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    let _lock = Lock(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let mut launcher = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;

    let state = Arc::new(SandboxDirectory::new(dir));
    let attached = state.attached();
    list_attached_in(&attached).with_context(|| format!("cannot make {}", attached.display()))?;
    let driver = Arc::new(Driver::new(Arc::clone(&state)));
    let tree = Tree::new(Arc::clone(&state), Arc::clone(&driver));
    let tree = fuse::mount(tree, &state.tree(), tree::THREADS)
        .with_context(|| format!("cannot mount {}", state.tree().display()))?;
    namespace::cover(&state)?;
    server::start(&state, Arc::clone(&driver)).context("cannot make the socket")?;
    let before: HashSet<u32> = mounts::own()?.into_iter().map(|mount| mount.id).collect();
    writeln!(launcher, "{READY}").context("the launcher is gone")?;

    let mut line = String::new();
    let told = BufReader::new(&launcher).read_line(&mut line);
    let is_alone = !told.is_ok_and(|len| len > 0);
    if is_alone {
        // The launcher was killed: this is all that is left to clean up.
        processes::end(&state, &[], true);
        teardown::within(PATIENCE, move || teardown::unmount_new(&before));
    }
    teardown::within(PATIENCE, move || driver.shut_down());
    // It may have been killed meanwhile.
    if is_alone || server::has_hung_up(&launcher) {
        for problem in teardown::rest(&state) {
            eprintln!("ploop-sandbox: {problem}");
        }
    }
    drop(tree);
    // Not a return, which would wait for nothing, but drop what threads still use.
    process::exit(0)
}
