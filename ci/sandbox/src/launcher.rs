//! Runs a program in a sandbox, and takes the sandbox down when it has ended.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ploop_sandbox_wire as wire;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::daemon::{READY, STOP};
use crate::sandbox_directory::{Base, Lock, SandboxDirectory};
use crate::teardown::{self, PATIENCE};
use crate::watchdog::{Trouble, Watchdog};
use crate::{mounts, namespace, processes};

/// The exit code where the sandbox failed, and the program did not.
const FAILED: u8 = 70;
/// How long a program that was told to end by a signal gets.
const GRACE: Duration = Duration::from_secs(10);
/// Ends a wait, so that clocks are looked at.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// The signals that are handed on.
const FORWARDED: [NixSignal; 4] = [
    NixSignal::SIGHUP,
    NixSignal::SIGINT,
    NixSignal::SIGQUIT,
    NixSignal::SIGTERM,
];

/// What to run, and how.
pub(crate) struct Options {
    /// Where the sandbox is made, and dead ones are looked for.
    pub(crate) base: PathBuf,
    /// The library; none for a program that is not to see the driver.
    pub(crate) preload: Option<PathBuf>,
    /// How long the daemon may leave somebody waiting.
    pub(crate) patience: Duration,
    pub(crate) command: Vec<OsString>,
}

/// Runs a program; this process is in a mount namespace of its own. The result is its exit code.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let signals = forwarded();
    // The mask is taken back by whoever starts the program.
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot make a descriptor of signals")?;
    let base = Base::new(&options.base)?;
    for line in teardown::clean(&base)? {
        eprintln!("ploop-sandbox: {line}");
    }
    let (state, lock) = SandboxDirectory::create(&base)?;
    let code = live(&state, &lock, &signals, options);
    for problem in teardown::rest(&state) {
        eprintln!("ploop-sandbox: {problem}");
    }
    code
}

/// From nothing to a state in which only what lies around has to be removed.
fn live(
    state: &SandboxDirectory,
    lock: &Lock,
    signals: &SignalFd,
    options: &Options,
) -> Result<u8> {
    namespace::build(state)?;
    let mut daemon = Daemon::start(state, lock)?;
    let result = daemon
        .wait_until_ready()
        .and_then(|()| program(state, &daemon, signals, options));
    let is_well = !matches!(result, Err(_) | Ok((_, Some(_))));
    daemon.end(state, is_well);
    let (code, trouble) = result?;
    match trouble {
        None => Ok(code.unwrap_or(FAILED)),
        Some(trouble) => {
            eprintln!(
                "ploop-sandbox: the daemon {}: the sandbox was ended",
                match trouble {
                    Trouble::Died => "died",
                    Trouble::Hung => "did not answer",
                }
            );
            Ok(code.filter(|code| *code != 0).unwrap_or(FAILED))
        }
    }
}

/// Runs the program and ends what it started. Its exit code, if it ended by itself, and what
/// happened to the daemon.
fn program(
    state: &SandboxDirectory,
    daemon: &Daemon,
    signals: &SignalFd,
    options: &Options,
) -> Result<(Option<u8>, Option<Trouble>)> {
    let before: HashSet<u32> = mounts::own()?.into_iter().map(|mount| mount.id).collect();
    let (wake, woken) = UnixStream::pair()?;
    let watch = Watchdog::start(state.clone(), daemon.id(), options.patience, woken)?;
    let mut program = start(state, options)?;
    let (mut code, mut trouble) = wait(&mut program, daemon, signals, &watch, &wake)?;

    let spare = [daemon.id()];
    processes::end(state, &spare, trouble.is_none());
    if code.is_none() {
        // It was killed, if it can be.
        code = wait_at_most(&mut program, PATIENCE)?.map(exit_code);
        if trouble.is_some() {
            code = None;
        }
    }
    let unmounted = teardown::within(PATIENCE, move || teardown::unmount_new(&before));
    trouble = trouble.or(watch.trouble());
    if !unmounted && trouble.is_none() {
        trouble = Some(Trouble::Hung);
    }
    Ok((code, trouble))
}

fn start(state: &SandboxDirectory, options: &Options) -> Result<Child> {
    let mut command = Command::new(own_executable()?);
    command.arg("exec").arg("--state").arg(state.dir());
    if let Some(preload) = &options.preload {
        command.arg("--preload").arg(preload);
    }
    command.arg("--").args(&options.command);
    command.spawn().context("cannot start the program")
}

/// The launcher's other half: becomes the program.
pub(crate) fn become_program(
    state: &Path,
    preload: Option<&Path>,
    command: &[OsString],
) -> Result<()> {
    forwarded()
        .thread_unblock()
        .context("cannot unblock signals")?;
    let state = SandboxDirectory::new(state.to_owned());
    let [name, arguments @ ..] = command else {
        bail!("no command");
    };
    let mut program = Command::new(name);
    program.args(arguments);
    program.env(wire::SOCKET, state.socket());
    program.env(wire::PROC_VZ, state.tree().join("vz"));
    // Debian's libploop copies 4 KiB from where an argument begins. In a small environment the stack ends
    // before that, and `ploop init` dies.
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

/// Until the program ends, or has to be ended.
fn wait(
    program: &mut Child,
    daemon: &Daemon,
    signals: &SignalFd,
    watch: &Watchdog,
    wake: &UnixStream,
) -> Result<(Option<u8>, Option<Trouble>)> {
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
            // The kernel's own come from a terminal, which has sent them to the program too.
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
            return Ok((Some(exit_code(status)), watch.trouble()));
        }
        if let Some(trouble) = watch.trouble() {
            return Ok((None, Some(trouble)));
        }
        if daemon_is_gone {
            return Ok((None, Some(Trouble::Died)));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok((None, None));
        }
    }
}

/// The daemon, as the launcher has it.
struct Daemon {
    child: Child,
    pidfd: OwnedFd,
    stream: UnixStream,
}

impl Daemon {
    fn start(state: &SandboxDirectory, lock: &Lock) -> Result<Daemon> {
        let (stream, other) = UnixStream::pair()?;
        let child = Command::new(own_executable()?)
            .arg("daemon")
            .arg(state.dir())
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
        self.stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(&self.stream)
            .read_line(&mut line)
            .context("the daemon does not answer")?;
        if line.trim() != READY {
            bail!("the daemon did not start");
        }
        Ok(())
    }

    /// Has it stop all devices, and kills it where it cannot.
    fn end(mut self, state: &SandboxDirectory, is_well: bool) {
        if is_well && writeln!(self.stream, "{STOP}").is_ok() {
            // A little longer than the daemon itself waits.
            let patience = PATIENCE + Duration::from_secs(5);
            if matches!(wait_at_most(&mut self.child, patience), Ok(Some(_))) {
                return;
            }
        }
        crate::watchdog::abort(state);
        teardown::kill(self.id());
        // It is gone, or waits in the kernel, where nobody waits for it.
        let _ = wait_at_most(&mut self.child, Duration::from_secs(5));
    }
}

fn wait_at_most(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + patience;
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

/// The signals to hand on, but for those that are ignored, as under nohup.
fn forwarded() -> SigSet {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    FORWARDED
        .into_iter()
        .filter(|signal| ignored & 1 << (*signal as i32 - 1) == 0)
        .collect()
}

fn own_executable() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}
