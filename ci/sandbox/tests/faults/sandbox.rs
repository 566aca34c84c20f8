//! Parts of a test that run in a sandbox of their own, and what a sandbox may not leave behind.
//!
//! A test program starts itself again below the launcher and names the part in the environment. No
//! wait is without a limit: not even for a process that was killed, which may hang in the kernel.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, thread};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ploop-sandbox");

const PART: &str = "PLOOP_FAULT_PART";
const DIRECTORY: &str = "PLOOP_FAULT_DIRECTORY";

/// A number from the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// Where sandboxes are made. The test program has a base of its own, so that nobody else cleans up there; what it starts
/// has the same.
const BASE: &str = "PLOOP_SANDBOX_BASE";

pub(crate) fn base() -> PathBuf {
    match env::var_os(BASE) {
        Some(base) if env::var_os(PART).is_some() => base.into(),
        _ => format!("/run/ploop-sandbox.{}", std::process::id()).into(),
    }
}

/// Set by the launcher.
const SOCKET: &str = "PLOOP_SANDBOX_SOCKET";

/// A part: its name and what it does in its directory.
pub(crate) type Part = (&'static str, fn(&Path));

/// Runs the part this process was started for, if it was.
pub(crate) fn run_part(parts: &[Part]) {
    let Ok(name) = env::var(PART) else { return };
    let directory = PathBuf::from(env::var_os(DIRECTORY).unwrap_or_default());
    match parts.iter().find(|(part, _)| *part == name) {
        Some((_, body)) => {
            if let Some(socket) = env::var_os(SOCKET) {
                let state = Path::new(&socket).parent().unwrap_or(Path::new("/"));
                eprintln!("{IN_SANDBOX}{}", state.display());
            }
            body(&directory);
            std::process::exit(0);
        }
        None => {
            eprintln!("there is no part {name}");
            std::process::exit(102);
        }
    }
}

/// Says something that is worth showing when all goes well.
#[allow(unused_macros, reason = "each test program uses a part of it")]
macro_rules! note {
    ($($words:tt)*) => {
        eprintln!("{}{}", $crate::sandbox::NOTE, format_args!($($words)*))
    };
}
#[allow(unused_imports, reason = "each test program uses a part of it")]
pub(crate) use note;

pub(crate) const NOTE: &str = "| ";

/// Shows what was noted.
pub(crate) fn show(output: &str) {
    for line in output.lines().filter_map(|line| line.strip_prefix(NOTE)) {
        println!("{line}");
    }
}

/// The library to preload: beside this program if Cargo built it for the tests, beside the sandbox's if it
/// was asked to build it.
fn library() -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    [&own, Path::new(PROGRAM)]
        .into_iter()
        .filter_map(|path| Some(path.parent()?.join("libploop_sandbox_preload.so")))
        .find(|path| path.exists())
}

/// Tests as the runner takes them: ignored, with the reason, where no sandbox can be had.
pub(crate) fn trials(tests: &[(&'static str, fn())]) -> Vec<Trial> {
    let missing = missing();
    let trial = |(name, body): &(&'static str, fn())| {
        let body = *body;
        Trial::test(*name, move || {
            body();
            Ok(())
        })
        .with_ignored_flag(missing.is_some())
        .with_kind(missing.unwrap_or_default())
    };
    tests.iter().map(trial).collect()
}

/// Why no sandbox can run here, in the words of `ploop-sandbox check`.
pub(crate) fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let check = || {
        if env::var_os(SOCKET).is_some() {
            return Some("needs sandboxes of its own, and this is one".to_owned());
        }
        if library().is_none() {
            return Some("no sandbox: the library to preload is not built".to_owned());
        }
        let mut check = Command::new(PROGRAM);
        check.arg("check").stdin(Stdio::null());
        let output = match check.output() {
            Err(error) => return Some(format!("{PROGRAM} cannot be started: {error}")),
            Ok(output) if output.status.success() => return None,
            Ok(output) => output,
        };
        // A kind is one line.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        Some(format!("no sandbox: {}", words.join(" ")))
    };
    MISSING.get_or_init(check).as_deref()
}

/// A directory for images; the driver refuses tmpfs.
pub(crate) fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// This program again, for a part.
pub(crate) fn part(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    for_part(&mut command, name, directory);
    command
}

fn for_part(command: &mut Command, name: &str, directory: &Path) {
    command
        .env(PART, name)
        .env(DIRECTORY, directory)
        .env(BASE, base())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
}

/// This program again, for a part, in a sandbox.
pub(crate) fn sandboxed(name: &str, directory: &Path) -> Command {
    let mut command = with_this_program();
    for_part(&mut command, name, directory);
    command
}

/// A sandbox, and this program again in it.
pub(crate) fn with_this_program() -> Command {
    with_this_program_and(&[])
}

/// A sandbox with these options, and this program again in it.
pub(crate) fn with_this_program_and(options: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("run").args(options);
    if let Some(library) = library() {
        command.arg("--preload").arg(library);
    }
    command
        .arg("--")
        .arg(env::current_exe().unwrap())
        .env(BASE, base());
    command
}

/// This program again, for a part, with mounts of its own that end with it.
pub(crate) fn with_own_mounts(name: &str, directory: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(env::current_exe().unwrap());
    for_part(&mut command, name, directory);
    command
}

/// A part that runs.
pub(crate) struct RunningPart {
    what: String,
    child: Child,
    log: PathBuf,
    _log_directory: TempDir,
}

impl RunningPart {
    /// Standard error goes to a log, standard output too unless `piped`.
    pub(crate) fn start(mut command: Command, piped: bool) -> RunningPart {
        let what = format!("{command:?}");
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let sink = || {
            let file = File::options().create(true).append(true).open(&log);
            Stdio::from(file.unwrap())
        };
        let stdout = if piped { Stdio::piped() } else { sink() };
        let child = command.stdout(stdout).stderr(sink()).spawn().unwrap();
        RunningPart {
            what,
            child,
            log,
            _log_directory: directory,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, or why it was ended.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        finish(&mut self.child, limit)
            .map_err(|why| format!("{} {why}; it said:\n{}", self.what, self.output()))
    }

    /// Asserts that it succeeds within the limit and leaves nothing behind. Returns what it said.
    #[track_caller]
    pub(crate) fn succeed(mut self, limit: Duration) -> String {
        let status = self.finish(limit).unwrap_or_else(|why| panic!("{why}"));
        let output = self.output();
        assert!(
            status.success(),
            "{} ended with {status}; it said:\n{output}",
            self.what
        );
        self.left_nothing();
        output
    }

    /// Asserts that nothing of the sandbox is left: no directory, loop device or process.
    #[track_caller]
    pub(crate) fn left_nothing(&self) {
        let output = self.output();
        for state in output
            .lines()
            .filter_map(|line| line.strip_prefix(IN_SANDBOX))
        {
            let end = Instant::now() + Duration::from_secs(30);
            let mut left = traces(state);
            while !left.is_empty() && Instant::now() < end {
                thread::sleep(Duration::from_millis(100));
                left = traces(state);
            }
            assert!(left.is_empty(), "{} left {left:?}", self.what);
        }
    }
}

/// Precedes the directory of the sandbox that a part runs in.
const IN_SANDBOX: &str = "in sandbox ";

/// What is on the host of the sandbox with this state directory.
fn traces(state: &str) -> Vec<String> {
    let mut traces = Vec::new();
    if Path::new(state).exists() {
        traces.push(state.to_owned());
    }
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        let backing = backing.unwrap_or_default();
        if backing.starts_with(state) {
            traces.push(format!("{:?} on {}", entry.file_name(), backing.trim()));
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let has = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(state)
        };
        if has("environ") || has("cmdline") {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            traces.push(format!("process {:?} {}", entry.file_name(), name.trim()));
        }
    }
    traces
}

impl Drop for RunningPart {
    fn drop(&mut self) {
        // Where a test panicked.
        let _ = finish(&mut self.child, Duration::ZERO);
    }
}

/// Waits for a child, and ends it where it is still running at its limit.
pub(crate) fn finish(child: &mut Child, limit: Duration) -> Result<ExitStatus, &'static str> {
    if let Some(status) = wait(child, limit) {
        return Ok(status);
    }
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if wait(child, Duration::from_secs(20)).is_some() {
        return Err("was still running at its limit");
    }
    let _ = child.kill();
    match wait(child, Duration::from_secs(10)) {
        Some(_) => Err("was still running at its limit, and SIGTERM did not end it"),
        None => Err("hangs in the kernel"),
    }
}

/// Waits for a child, but not longer than that.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a program that has to succeed.
#[track_caller]
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let (code, text) = run(program, arguments);
    assert_eq!(code, Some(0), "{program} {arguments:?} said:\n{text}");
    text
}

/// How a program ends, and what it says, within five minutes.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    output(Command::new(program).args(arguments))
}

/// How a command ends, and what it says, within five minutes.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> (Option<i32>, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let sink = || Stdio::from(File::options().append(true).open(log.path()).unwrap());
    let program = command.get_program().to_owned();
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(sink())
        .stderr(sink())
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?} cannot be started: {error}"));
    // For one that hangs: on a busy machine, what takes a second may take a minute.
    let status = finish(&mut child, Duration::from_secs(300));
    let text = String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned();
    match status {
        Ok(status) => (status.code(), text),
        Err(why) => panic!("{program:?} {why}; it said:\n{text}"),
    }
}

/// The daemon of a sandbox: the one of the launcher's descendants that runs the same program.
pub(crate) fn daemon_of(launcher: u32) -> Option<Pid> {
    let program = fs::canonicalize(PROGRAM).ok()?;
    let mut families = vec![launcher];
    let mut found = None;
    while let Some(parent) = families.pop() {
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if parent_of(pid) != Some(parent) {
                continue;
            }
            families.push(pid);
            if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program) {
                found = Pid::from_raw(pid as i32);
            }
        }
    }
    found
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Lines of a pipe, with a limit for each. The thread that reads ends with the pipe.
pub(crate) struct Lines(std::sync::mpsc::Receiver<String>);

impl Lines {
    pub(crate) fn of(stdout: ChildStdout) -> Lines {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(receiver)
    }

    /// The next line; `None` at the end and after the limit.
    pub(crate) fn next(&self, limit: Duration) -> Option<String> {
        self.0.recv_timeout(limit).ok()
    }
}
