//! The launcher: makes a sandbox, runs a program in it, forwards signals, and removes the sandbox when the program has
//! ended.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ploop_sandbox_wire as wire;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::daemon::{READY, STOP};
use crate::driver::Generation;
use crate::sandbox_directory::{Base, Lock, SandboxDirectory};
use crate::teardown::{self, TIMEOUT};
use crate::watchdog::{DaemonFailure, Watchdog};
use crate::{mounts, namespace, processes};

/// The exit code where the sandbox failed, and the program did not.
const SANDBOX_FAILED: u8 = 70;
/// How long the program may take to end after the first forwarded signal.
const GRACE: Duration = Duration::from_secs(10);
/// How often the deadline and the watchdog are looked at.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// The signals that are forwarded to the program.
const FORWARDED: [NixSignal; 4] = [
    NixSignal::SIGHUP,
    NixSignal::SIGINT,
    NixSignal::SIGQUIT,
    NixSignal::SIGTERM,
];

/// What to run, and how.
pub(crate) struct Options {
    /// The directory in which the sandbox is made and dead ones are cleaned up.
    pub(crate) base: PathBuf,
    /// The preload library; none for a program that is not to see the driver.
    pub(crate) preload: Option<PathBuf>,
    /// Which driver to stand for; that of the libploop in use if it is none.
    pub(crate) generation: Option<Generation>,
    /// How long the daemon may leave a request unanswered.
    pub(crate) daemon_timeout: Duration,
    pub(crate) command: Vec<OsString>,
    /// This program, which the daemon is, too.
    pub(crate) executable: PathBuf,
}

/// Runs a program and returns its exit code. This process is in a mount namespace of its own already.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let signals = forwarded();
    // `become_program` unblocks them.
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot make a signalfd")?;
    let base = Base::new(&options.base)?;
    for line in teardown::clean(&base)? {
        eprintln!("ploop-sandbox: {line}");
    }
    let (sandbox, lock) = SandboxDirectory::create(&base)?;
    let code = run_in(&sandbox, &lock, &signals, options);
    for problem in teardown::remove(&sandbox) {
        eprintln!("ploop-sandbox: {problem}");
    }
    code
}

/// Sets the sandbox up, starts its daemon, runs the program and ends the daemon.
fn run_in(
    sandbox: &SandboxDirectory,
    lock: &Lock,
    signals: &SignalFd,
    options: &Options,
) -> Result<u8> {
    namespace::set_up(sandbox)?;
    let mut daemon = Daemon::start(sandbox, lock, options)?;
    let result = daemon
        .wait_until_ready()
        .and_then(|()| run_program(sandbox, &daemon, signals, options));
    let is_healthy = matches!(result, Ok((_, None)));
    daemon.end(sandbox, is_healthy);
    let (code, failure) = result?;
    match failure {
        None => Ok(code.unwrap_or(SANDBOX_FAILED)),
        Some(failure) => {
            eprintln!(
                "ploop-sandbox: the daemon {}: the sandbox was ended",
                match failure {
                    DaemonFailure::Died => "died",
                    DaemonFailure::Hung => "did not answer",
                }
            );
            Ok(code.filter(|code| *code != 0).unwrap_or(SANDBOX_FAILED))
        }
    }
}

/// Runs the program and ends what it started. Returns its exit code, if it ended by itself, and how the daemon failed,
/// if it did.
fn run_program(
    sandbox: &SandboxDirectory,
    daemon: &Daemon,
    signals: &SignalFd,
    options: &Options,
) -> Result<(Option<u8>, Option<DaemonFailure>)> {
    let before: HashSet<u32> = mounts::current()?
        .into_iter()
        .map(|mount| mount.id)
        .collect();
    let (wake, woken) = UnixStream::pair()?;
    let watchdog = Watchdog::start(sandbox.clone(), daemon.id(), options.daemon_timeout, woken)?;
    let mut program = start_program(sandbox, options)?;
    let (mut code, mut failure) = wait(&mut program, daemon, signals, &watchdog, &wake)?;

    // A process that waits for a frozen file system cannot be killed.
    teardown::with_timeout(TIMEOUT, teardown::thaw);
    let spare = [daemon.id()];
    processes::end(sandbox, &spare, failure.is_none());
    if code.is_none() {
        // `processes::end` has killed it.
        code = wait_at_most(&mut program, TIMEOUT)?.map(exit_code);
        if failure.is_some() {
            code = None;
        }
    }
    let unmounted = teardown::with_timeout(TIMEOUT, move || teardown::unmount_new(&before));
    failure = failure.or(watchdog.failure());
    if !unmounted && failure.is_none() {
        failure = Some(DaemonFailure::Hung);
    }
    Ok((code, failure))
}

fn start_program(sandbox: &SandboxDirectory, options: &Options) -> Result<Child> {
    let mut command = Command::new(&options.executable);
    command.arg("exec").arg("--directory").arg(sandbox.dir());
    if let Some(preload) = &options.preload {
        command.arg("--preload").arg(preload);
    }
    command.arg("--").args(&options.command);
    command.spawn().context("cannot start the program")
}

/// `ploop-sandbox exec`: sets the variables of the preload library and becomes the program by `execvp`.
pub(crate) fn become_program(
    directory: &Path,
    preload: Option<&Path>,
    command: &[OsString],
) -> Result<()> {
    forwarded()
        .thread_unblock()
        .context("cannot unblock signals")?;
    let sandbox = SandboxDirectory::new(directory.to_owned());
    let [name, arguments @ ..] = command else {
        bail!("no command");
    };
    let mut program = Command::new(name);
    program.args(arguments);
    program.env(wire::SOCKET, sandbox.socket());
    program.env(wire::PROC_VZ, sandbox.tree().join("vz"));
    // Debian's libploop copies 4 KiB from where an argument begins. With a small environment the stack ends before
    // that, and `ploop init` crashes.
    program.env("PLOOP_SANDBOX_ROOM", " ".repeat(8 << 10));
    if let Some(preload) = preload {
        let mut list = preload.as_os_str().to_owned();
        if let Some(more) = std::env::var_os("LD_PRELOAD").filter(|more| !more.is_empty()) {
            list.push(":");
            list.push(more);
        }
        program.env("LD_PRELOAD", list);
    }
    Err(program.exec()).with_context(|| format!("cannot run {}", name.to_string_lossy()))
}

/// Waits until the program ends or has to be ended.
fn wait(
    program: &mut Child,
    daemon: &Daemon,
    signals: &SignalFd,
    watchdog: &Watchdog,
    wake: &UnixStream,
) -> Result<(Option<u8>, Option<DaemonFailure>)> {
    let process = pidfd(program.id())?;
    let mut deadline: Option<Instant> = None;
    loop {
        let descriptors = [
            process.as_fd(),
            signals.as_fd(),
            daemon.pidfd.as_fd(),
            wake.as_fd(),
        ];
        let mut polled = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match rustix::event::poll(&mut polled, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the program"),
        }
        let daemon_is_gone = !polled[2].revents().is_empty();
        while let Some(signal) = signals.read_signal().context("cannot read signals")? {
            // Those of the kernel come from the terminal, which sends them to the program, too.
            const SI_KERNEL: i32 = 0x80;
            if signal.ssi_code != SI_KERNEL {
                let number = signal.ssi_signo as i32;
                if let Some(signal) = Signal::from_named_raw(number) {
                    processes::signal(program.id(), &[signal]);
                    deadline.get_or_insert(Instant::now() + GRACE);
                }
            }
        }
        if let Some(status) = program.try_wait().context("cannot wait for the program")? {
            return Ok((Some(exit_code(status)), watchdog.failure()));
        }
        if let Some(failure) = watchdog.failure() {
            return Ok((None, Some(failure)));
        }
        if daemon_is_gone {
            return Ok((None, Some(DaemonFailure::Died)));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok((None, None));
        }
    }
}

/// The daemon, seen from the launcher.
struct Daemon {
    child: Child,
    pidfd: OwnedFd,
    stream: UnixStream,
}

impl Daemon {
    fn start(sandbox: &SandboxDirectory, lock: &Lock, options: &Options) -> Result<Daemon> {
        let (stream, other) = UnixStream::pair()?;
        let mut command = Command::new(&options.executable);
        command.arg("daemon").arg(sandbox.dir());
        if let Some(name) = options.generation.and_then(|it| it.to_possible_value()) {
            command.arg("--driver").arg(name.get_name());
        }
        let child = command
            .stdin(lock.0.try_clone()?)
            .stdout(Stdio::from(OwnedFd::from(other)))
            .env_remove("LD_PRELOAD")
            .current_dir("/")
            .spawn()
            .context("cannot start the daemon")?;
        let pidfd = pidfd(child.id())?;
        Ok(Daemon {
            child,
            pidfd,
            stream,
        })
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        self.stream.set_read_timeout(Some(TIMEOUT))?;
        let mut line = String::new();
        BufReader::new(&self.stream)
            .read_line(&mut line)
            .context("the daemon does not answer")?;
        if line.trim() != READY {
            bail!("the daemon did not start");
        }
        Ok(())
    }

    /// Has it stop all devices; kills it if it fails to.
    fn end(mut self, sandbox: &SandboxDirectory, is_healthy: bool) {
        if is_healthy && writeln!(self.stream, "{STOP}").is_ok() {
            // A little longer than the daemon itself waits.
            let timeout = TIMEOUT + Duration::from_secs(5);
            if matches!(wait_at_most(&mut self.child, timeout), Ok(Some(_))) {
                return;
            }
        }
        crate::watchdog::abort(sandbox);
        processes::signal(self.id(), &[Signal::KILL]);
        // A process that hangs in the kernel is left behind.
        let _ = wait_at_most(&mut self.child, Duration::from_secs(5));
    }
}

fn wait_at_most(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + timeout;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= until {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn pidfd(process: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    rustix::process::pidfd_open(pid.context("no process")?, PidfdFlags::empty())
        .context("cannot open a process")
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    }
}

/// The signals to forward: not those that are ignored, as under nohup.
fn forwarded() -> SigSet {
    let [ignored] = processes::status_masks("self", ["SigIgn:"]).unwrap_or_default();
    FORWARDED
        .into_iter()
        .filter(|signal| ignored & 1 << (*signal as i32 - 1) == 0)
        .collect()
}
