//! The watchdog: pings the daemon, and aborts the FUSE connections when it has died or does not answer, so that no
//! process waits for it in the kernel.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ploop_sandbox_wire::{Node, Reply, Request, call};

use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, mounts, processes};

const INTERVAL: Duration = Duration::from_millis(500);

/// How a daemon failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DaemonFailure {
    /// It has ended, or is ending.
    Died,
    /// It did not answer a ping, or a data request, in time.
    Hung,
}

/// Watches a daemon until this is dropped or the daemon fails.
pub(crate) struct Watchdog {
    _stop: mpsc::Sender<()>,
    failure: mpsc::Receiver<DaemonFailure>,
}

impl Watchdog {
    /// When the daemon fails, the connections are aborted and `wake` gets a byte.
    pub(crate) fn start(
        sandbox: SandboxDirectory,
        daemon: u32,
        timeout: Duration,
        mut wake: UnixStream,
    ) -> io::Result<Watchdog> {
        let (stop, stopped) = mpsc::channel();
        let (report, failure) = mpsc::channel();
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                if let Some(failure) = watch(&sandbox, daemon, timeout, &stopped) {
                    abort(&sandbox);
                    // Fails where the watchdog was dropped meanwhile.
                    let _ = report.send(failure);
                    let _ = wake.write_all(&[0]);
                }
            })?;
        Ok(Watchdog {
            _stop: stop,
            failure,
        })
    }

    /// How the daemon failed, if it has and this was not asked before.
    pub(crate) fn failure(&self) -> Option<DaemonFailure> {
        self.failure.try_recv().ok()
    }
}

fn watch(
    sandbox: &SandboxDirectory,
    daemon: u32,
    timeout: Duration,
    stopped: &mpsc::Receiver<()>,
) -> Option<DaemonFailure> {
    let mut answered = Instant::now();
    loop {
        match stopped.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return None,
        }
        // A daemon that is ending cannot end while one of its threads waits for an answer of the daemon.
        if !processes::is_alive(daemon) {
            return Some(DaemonFailure::Died);
        }
        match ping(sandbox, timeout) {
            Ok(waited) if waited < timeout => answered = Instant::now(),
            _ if answered.elapsed() >= timeout => return Some(DaemonFailure::Hung),
            _ => {}
        }
    }
}

/// The age of the oldest unanswered data request.
fn ping(sandbox: &SandboxDirectory, timeout: Duration) -> io::Result<Duration> {
    let mut stream = UnixStream::connect(sandbox.socket())?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let request = Request::new(call::PING, Node::None, Vec::new());
    stream.write_all(&request.to_bytes())?;
    let seconds = u64::try_from(Reply::read(&mut stream)?.result).unwrap_or(0);
    Ok(Duration::from_secs(seconds))
}

/// Aborts all FUSE connections of a sandbox, in whatever namespace they are mounted.
pub(crate) fn abort(sandbox: &SandboxDirectory) {
    for namespace in processes::namespaces_of(sandbox) {
        fuse::abort_below(&namespace.mounts, sandbox.dir());
    }
    if let Ok(mounts) = mounts::current() {
        fuse::abort_below(&mounts, sandbox.dir());
    }
}
