//! The watchdog: sees to it that nobody waits for a daemon that does not answer.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ploop_sandbox_wire::{Node, Reply, Request, call};

use crate::sandbox_directory::SandboxDirectory;
use crate::{fuse, mounts, processes};

const INTERVAL: Duration = Duration::from_millis(500);

/// Why a daemon is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is gone, or going.
    Died,
    /// It does not answer, or somebody waits for a device's data.
    Hung,
}

/// Watches a daemon until it is dropped, or there is trouble.
pub(crate) struct Watchdog {
    _stop: mpsc::Sender<()>,
    trouble: mpsc::Receiver<Trouble>,
}

impl Watchdog {
    /// `wake` gets a byte when there is trouble; the connections are aborted by then.
    pub(crate) fn start(
        state: SandboxDirectory,
        daemon: u32,
        patience: Duration,
        mut wake: UnixStream,
    ) -> io::Result<Watchdog> {
        let (stop, stopped) = mpsc::channel();
        let (report, trouble) = mpsc::channel();
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                if let Some(found) = watch(&state, daemon, patience, &stopped) {
                    abort(&state);
                    // Nobody listens any more: all is over anyway.
                    let _ = report.send(found);
                    let _ = wake.write_all(&[0]);
                }
            })?;
        Ok(Watchdog {
            _stop: stop,
            trouble,
        })
    }

    /// What there is, if there is any.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.trouble.try_recv().ok()
    }
}

fn watch(
    state: &SandboxDirectory,
    daemon: u32,
    patience: Duration,
    stopped: &mpsc::Receiver<()>,
) -> Option<Trouble> {
    let mut answered = Instant::now();
    loop {
        match stopped.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return None,
        }
        // A daemon of which a thread waits for the daemon itself does not end without help.
        if !processes::is_alive(daemon) {
            return Some(Trouble::Died);
        }
        match ping(state, patience) {
            Ok(waited) if waited < patience => answered = Instant::now(),
            _ if answered.elapsed() >= patience => return Some(Trouble::Hung),
            _ => {}
        }
    }
}

/// For how long somebody has waited for a device's data.
fn ping(state: &SandboxDirectory, patience: Duration) -> io::Result<Duration> {
    let mut stream = UnixStream::connect(state.socket())?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let request = Request {
        call: call::PING,
        node: Node::None,
        argument: 0,
        payload: Vec::new(),
    };
    stream.write_all(&request.to_bytes())?;
    let seconds = u64::try_from(Reply::read(&mut stream)?.result).unwrap_or(0);
    Ok(Duration::from_secs(seconds))
}

/// Aborts all FUSE connections of a sandbox, wherever they are mounted.
pub(crate) fn abort(state: &SandboxDirectory) {
    for namespace in processes::namespaces_of(state) {
        fuse::abort_below(&namespace.mounts, state.dir());
    }
    if let Ok(mounts) = mounts::own() {
        fuse::abort_below(&mounts, state.dir());
    }
}

/// Whether connections can be aborted at all.
pub(crate) fn is_possible() -> bool {
    fs::read_dir("/sys/fs/fuse/connections").is_ok()
}
