//! The daemon of a sandbox: a process with the driver, its FUSE file systems and its socket.

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

use crate::driver::{Driver, Generation, list_attached_in};
use crate::fuse::Connection;
use crate::sandbox_directory::{Lock, SandboxDirectory};
use crate::teardown::{self, TIMEOUT};
use crate::tree::{self, Tree};
use crate::{mounts, namespace, processes, server};

/// The line by which the daemon says that a program can start.
pub(crate) const READY: &str = "ready";
/// The line by which the launcher says that the program has ended.
pub(crate) const STOP: &str = "stop";

/// Runs the daemon. Its standard input is the sandbox's lock, its standard output a socket to the launcher.
pub(crate) fn run(dir: PathBuf, generation: Option<Generation>) -> Result<()> {
    // A thread that panics may leave requests unanswered for ever. A daemon that dies does not.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        process::abort();
    }));
    // Ctrl-Z at a terminal stops the launcher, and must not stop the daemon.
    rustix::process::setsid().context("cannot make a session")?;
    // A core dump would be as large as the buffers, and delay the end of the sandbox.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // The kernel must not free memory for this process by writing to a device that waits for this process. The call
    // needs a privilege; the daemon works without.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    let _lock = Lock(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let mut launcher = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;

    let sandbox = Arc::new(SandboxDirectory::new(dir));
    let attached = sandbox.attached();
    list_attached_in(&attached).with_context(|| format!("cannot make {}", attached.display()))?;
    let driver = Arc::new(Driver::new(Arc::clone(&sandbox), generation));
    let tree = Tree::new(Arc::clone(&sandbox), Arc::clone(&driver));
    let tree = Connection::open()
        .and_then(|connection| connection.mount(tree, &sandbox.tree(), tree::THREADS))
        .with_context(|| format!("cannot mount {}", sandbox.tree().display()))?;
    namespace::cover_sysfs(&sandbox)?;
    server::start(&sandbox, Arc::clone(&driver)).context("cannot make the socket")?;
    let before: HashSet<u32> = mounts::current()?
        .into_iter()
        .map(|mount| mount.id)
        .collect();
    writeln!(launcher, "{READY}").context("the launcher is gone")?;

    let mut line = String::new();
    let read = BufReader::new(&launcher).read_line(&mut line);
    let launcher_died = !read.is_ok_and(|len| len > 0);
    if launcher_died {
        // Nobody else is left to clean up.
        teardown::with_timeout(TIMEOUT, teardown::thaw);
        processes::end(&sandbox, &[], true);
        teardown::with_timeout(TIMEOUT, move || teardown::unmount_new(&before));
    }
    teardown::with_timeout(TIMEOUT, move || driver.shut_down());
    // The launcher may have been killed meanwhile.
    if launcher_died || server::has_hung_up(&launcher) {
        for problem in teardown::remove(&sandbox) {
            eprintln!("ploop-sandbox: {problem}");
        }
    }
    drop(tree);
    // A return would drop what threads still use.
    process::exit(0)
}
