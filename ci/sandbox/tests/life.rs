//! A sandbox begins, runs a program and ends, whatever is killed: nothing of it stays.
//!
//! No test waits for longer than a given time for anything.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

#[path = "faults/sandbox.rs"]
mod sandbox;
#[path = "../../../ploop/tests/fixture/test_list.rs"]
#[allow(dead_code, reason = "the tests use a part of it")]
mod test_list;

use sandbox::{PROGRAM, base};

type Test = test_list::Test<()>;

/// For all that a sandbox does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let tests = tests![
        &[] =>
            the_exit_code_is_the_program_s,
            a_program_that_is_not_there_is_told_of,
            a_program_has_its_input_directory_and_environment,
            the_world_has_ploop_in_it,
            the_host_sees_nothing_of_it,
            the_host_does_not_take_its_devices,
            two_sandboxes_do_not_see_each_other,
            signals_reach_the_program,
            ignored_signals_stay_ignored,
            what_the_program_left_is_ended,
            the_program_is_killed,
            the_launcher_is_killed,
            the_daemon_is_killed,
            the_daemon_hangs,
            launcher_and_daemon_are_killed,
            the_next_sandbox_cleans_up,
            another_base_is_left_alone,
            a_base_that_cannot_be_one,
            it_runs_in_a_chroot;
    ];
    let missing = sandbox::missing().map(str::to_owned);
    let run = |test: Test| {
        (test.body)();
        Ok(())
    };
    let trials = tests
        .into_iter()
        .map(|test| test.trial(missing.clone(), run))
        .collect();
    let mut arguments = Arguments::from_args();
    // The mounts of the host are compared, and one cleans up after the others.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A sandbox with this script in it, or with a program by its arguments.
fn sandbox<S: AsRef<OsStr>>(options: &[&str], program: impl IntoIterator<Item = S>) -> Command {
    // Whoever runs the tests may ignore some signals, as shells do for what is in the background.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=HUP,INT,QUIT,TERM", PROGRAM])
        .args(["run", "--preload", "", "--base"])
        .arg(base())
        .args(options)
        .arg("--")
        .args(program)
        .stdin(Stdio::null());
    command
}

/// The next line, if it comes in time.
fn line(output: &mut BufReader<ChildStdout>) -> String {
    if output.buffer().is_empty() {
        let mut polled = [PollFd::new(output.get_ref(), PollFlags::IN)];
        let patience = Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let ready = rustix::event::poll(&mut polled, Some(&patience)).expect("a poll");
        assert!(ready > 0, "no line in {PATIENCE:?}");
    }
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    line
}

/// A shell script in a sandbox. It says where the sandbox is before it does what it is for.
struct Sandbox {
    launcher: Child,
    output: BufReader<ChildStdout>,
    program: u32,
    directory: PathBuf,
    /// Numbers of its devices.
    devices: Vec<u32>,
    /// Numbers of its FUSE connections.
    connections: BTreeSet<String>,
    mounts_before: Vec<String>,
}

impl Sandbox {
    /// Starts one with a device in it.
    fn start(options: &[&str], script: &str) -> Sandbox {
        let mounts_before = mounts_of_the_host();
        let prologue = "minor=$(cat $PLOOP_SANDBOX_PROC_VZ/ploop_minor) || exit 99; N=$((minor / 16)); \
                        echo $$ $(dirname $PLOOP_SANDBOX_SOCKET) $N; ";
        let script = format!("{prologue}{script}");
        let mut launcher = sandbox(options, ["sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the launcher starts");
        let mut output = BufReader::new(launcher.stdout.take().expect("a pipe"));
        let line = line(&mut output);
        let mut words = line.split_whitespace();
        let mut word = || {
            words
                .next()
                .unwrap_or_else(|| panic!("not started: {line:?}"))
        };
        let mut sandbox = Sandbox {
            program: word().parse().expect("a process"),
            directory: word().into(),
            devices: vec![word().parse().expect("a device")],
            launcher,
            output,
            connections: BTreeSet::new(),
            mounts_before,
        };
        assert!(sandbox.directory.starts_with(base()));
        sandbox.connections = fuse_mounts(sandbox.daemon())
            .into_iter()
            .filter(|(point, _)| point.starts_with(&sandbox.directory))
            .map(|(_, number)| number)
            .collect();
        // What belongs into /sys, and the data of the device.
        assert_eq!(sandbox.connections.len(), 2);
        sandbox
    }

    fn daemon(&self) -> u32 {
        let wanted = format!("daemon\0{}\0", self.directory.display());
        let is_daemon = |process: &u32| {
            fs::read(format!("/proc/{process}/cmdline"))
                .is_ok_and(|line| line.ends_with(wanted.as_bytes()))
        };
        processes().find(is_daemon).expect("a daemon")
    }

    fn next_line(&mut self) -> String {
        line(&mut self.output).trim().to_owned()
    }

    /// Waits for the launcher, and checks that nothing is left of the sandbox.
    fn ends(mut self) -> ExitStatus {
        let status = wait(&mut self.launcher);
        self.is_gone();
        status
    }

    /// Within some time.
    fn is_gone(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = self.left();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "left: {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(mounts_of_the_host(), self.mounts_before);
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.directory.exists() {
            left.push(self.directory.display().to_string());
        }
        for device in &self.devices {
            for path in [
                format!("/sys/block/loop{device}"),
                format!("/dev/ploop{device}"),
            ] {
                if Path::new(&path).exists() {
                    left.push(path);
                }
            }
        }
        let directory = self.directory.to_str().expect("a name");
        left.extend(processes().filter_map(|process| {
            let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?;
            mounts
                .contains(directory)
                .then(|| format!("process {process}"))
        }));
        left.extend(self.lost_connections());
        left
    }

    /// FUSE connections of it that are mounted nowhere. One that is mounted has become somebody else's.
    fn lost_connections(&self) -> Vec<String> {
        let script = "mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null; ls /sys/fs/fuse/connections";
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", script])
            .output();
        let there = String::from_utf8(output.expect("unshare").stdout).expect("numbers");
        let mounted: BTreeSet<String> = processes()
            .flat_map(fuse_mounts)
            .map(|(_, number)| number)
            .collect();
        there
            .split_whitespace()
            .filter(|number| self.connections.contains(*number) && !mounted.contains(*number))
            .map(|number| format!("FUSE connection {number}"))
            .collect()
    }
}

/// The FUSE file systems that a process sees: where they are, and the numbers of their connections.
fn fuse_mounts(process: u32) -> Vec<(PathBuf, String)> {
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    let lines = mounts.lines().filter(|line| line.contains(" - fuse "));
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (_, number) = fields.get(2)?.split_once(':')?;
            Some((fields.get(4)?.into(), number.to_owned()))
        })
        .collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The mounts that these tests may have made on the host.
fn mounts_of_the_host() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let base = base();
    let base = base.to_str().expect("a name");
    mounts
        .lines()
        .filter(|line| line.starts_with("ploop-sandbox ") || line.contains(base))
        .map(str::to_owned)
        .collect()
}

fn send(process: u32, signal: Signal) {
    let pid = Pid::from_raw(process as i32).expect("a process");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

fn wait(child: &mut Child) -> ExitStatus {
    sandbox::finish(child, PATIENCE).expect("it ends in time")
}

/// Runs a script that is expected to end by itself.
fn run(script: &str) -> Output {
    let mut child = sandbox(&[], ["sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the launcher starts");
    wait(&mut child);
    child.wait_with_output().expect("its output")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn the_exit_code_is_the_program_s() {
    for (script, code) in [
        ("true", 0),
        ("exit 42", 42),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        assert_eq!(run(script).status.code(), Some(code), "{script}");
    }
}

fn a_program_that_is_not_there_is_told_of() {
    let output = sandbox(&[], ["/no/such/program"])
        .output()
        .expect("the launcher starts");
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("/no/such/program"));
}

fn a_program_has_its_input_directory_and_environment() {
    let directory = fs::canonicalize(std::env::temp_dir()).expect("a directory");
    let mut child = sandbox(&[], ["sh", "-c", "cat; pwd; echo $WORD >&2"])
        .current_dir(&directory)
        .env("WORD", "a word")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the launcher starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(b"input\n").expect("it reads");
    drop(input);
    wait(&mut child);
    let output = child.wait_with_output().expect("its output");
    assert_eq!(
        text(&output.stdout),
        format!("input\n{}\n", directory.display())
    );
    assert_eq!(text(&output.stderr), "a word\n");
}

fn the_world_has_ploop_in_it() {
    let output = run("set -e
        N=$(($(cat $PLOOP_SANDBOX_PROC_VZ/ploop_minor) / 16))
        test $N -ge 10000; test $N -le 65535
        test -b /dev/ploop$N
        test \"$(stat -c %a:%u /dev/ploop$N)\" = 600:0
        test \"$(readlink /sys/block/ploop$N)\" = ../devices/virtual/block/ploop$N
        test \"$(cat /sys/block/ploop$N/dev)\" = 182:$((N * 16))
        test \"$(cat /sys/module/ploop/parameters/large_disk_support)\" = 1
        ls /sys/block/ | grep -qx ploop$N
        test -d /sys/module/loop/ -o ! -d /sys/module/fuse/
        test -c /dev/null; test -d /dev/shm; : > /dev/null
        for disk in /sys/block/*; do test -e $disk/size; done");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn the_host_sees_nothing_of_it() {
    let mut sandbox = Sandbox::start(&[], "sleep 1000");
    assert_eq!(mounts_of_the_host(), sandbox.mounts_before);
    let device = sandbox.devices[0];
    assert!(!Path::new(&format!("/dev/ploop{device}")).exists());
    assert!(!Path::new(&format!("/sys/block/ploop{device}")).exists());
    assert!(sandbox.launcher.try_wait().expect("a child").is_none());
    send(sandbox.launcher.id(), Signal::TERM);
    assert_eq!(sandbox.ends().code(), Some(143));
}

/// A loop device without a file is given to `losetup -f` and `mount -o loop`.
fn the_host_does_not_take_its_devices() {
    let sandbox = Sandbox::start(&[], "sleep 1000");
    let device = sandbox.devices[0];
    let host = PathBuf::from(format!("/sys/block/loop{device}"));
    assert!(host.join("loop/backing_file").exists());
    let size = fs::read_to_string(host.join("size")).expect("a size");
    assert_eq!(size.trim(), "0");
    send(sandbox.program, Signal::KILL);
    assert_eq!(sandbox.ends().code(), Some(137));
}

fn two_sandboxes_do_not_see_each_other() {
    let list = "ls /sys/block | grep -c ploop; sleep 1000";
    let mut first = Sandbox::start(&[], list);
    let mut second = Sandbox::start(&[], list);
    assert_ne!(first.directory, second.directory);
    assert_ne!(first.devices, second.devices);
    assert_eq!(first.next_line(), "1");
    assert_eq!(second.next_line(), "1");
    send(first.program, Signal::KILL);
    assert_eq!(first.ends().code(), Some(137));
    let device = second.devices[0];
    assert!(Path::new(&format!("/sys/block/loop{device}")).exists());
    send(second.program, Signal::KILL);
    assert_eq!(second.ends().code(), Some(137));
}

fn signals_reach_the_program() {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
    ] {
        let script =
            format!("trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done");
        let mut sandbox = Sandbox::start(&[], &script);
        assert_eq!(sandbox.next_line(), "ready");
        send(sandbox.launcher.id(), signal);
        assert_eq!(sandbox.next_line(), "got");
        assert_eq!(sandbox.ends().code(), Some(7), "{name}");
    }
}

fn ignored_signals_stay_ignored() {
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", PROGRAM])
        .args(["run", "--preload", "", "--"])
        .args(["sh", "-c", "kill -HUP $PPID; sleep 0.5; exit 9"])
        .env("PLOOP_SANDBOX_BASE", base())
        .spawn()
        .expect("a shell");
    assert_eq!(wait(&mut child).code(), Some(9));
}

fn what_the_program_left_is_ended() {
    let prefix = format!("ploop-sandbox.{}", std::process::id());
    let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in("/run");
    let directory = directory.expect("a directory");
    let script = format!(
        "setsid sleep 1000 & unshare -m sleep 1000 & (trap '' TERM; sleep 1000; sleep 1000) & \
         mount -t tmpfs none {}; exit 3",
        directory.path().display()
    );
    let sandbox = Sandbox::start(&[], &script);
    assert_eq!(sandbox.ends().code(), Some(3));
}

fn the_program_is_killed() {
    let sandbox = Sandbox::start(&[], "sleep 1000");
    send(sandbox.program, Signal::KILL);
    assert_eq!(sandbox.ends().code(), Some(137));
}

fn the_launcher_is_killed() {
    let sandbox = Sandbox::start(&[], "sleep 1000");
    send(sandbox.launcher.id(), Signal::KILL);
    assert_eq!(sandbox.ends().code(), None);
}

fn the_daemon_is_killed() {
    let sandbox = Sandbox::start(&[], "sleep 1000");
    send(sandbox.daemon(), Signal::KILL);
    assert_eq!(sandbox.ends().code(), Some(70));
}

fn the_daemon_hangs() {
    let sandbox = Sandbox::start(
        &["--daemon-timeout", "2"],
        "while cat /sys/block/ploop$N/dev >/dev/null; do sleep 0.05; done; sleep 1000",
    );
    send(sandbox.daemon(), Signal::STOP);
    assert_eq!(sandbox.ends().code(), Some(70));
}

/// Kills both at once, so that neither can clean up.
fn kill_both(sandbox: &mut Sandbox) {
    let daemon = sandbox.daemon();
    send(daemon, Signal::STOP);
    send(sandbox.launcher.id(), Signal::KILL);
    send(daemon, Signal::KILL);
    wait(&mut sandbox.launcher);
    let until = Instant::now() + PATIENCE;
    // A zombie has let go of everything.
    let stat = || fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap_or_default();
    while !stat().is_empty() && !stat().contains(") Z ") {
        assert!(Instant::now() < until, "the daemon cannot be killed");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(sandbox.directory.exists());
}

fn clean(base: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["clean", "--base"]).arg(base);
    command.output().expect("clean")
}

fn launcher_and_daemon_are_killed() {
    let mut sandbox = Sandbox::start(&[], "setsid sleep 1000 & sleep 1000");
    kill_both(&mut sandbox);
    let output = clean(&base());
    assert!(output.status.success());
    assert!(text(&output.stdout).contains(sandbox.directory.to_str().expect("a name")));
    sandbox.is_gone();
    assert!(!base().exists());
}

fn another_base_is_left_alone() {
    let mut sandbox = Sandbox::start(&[], "sleep 1000");
    kill_both(&mut sandbox);
    let other = base().with_extension("other");
    let output = clean(&other);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    assert!(!other.exists(), "nothing is made to be cleaned");
    let output = Command::new(PROGRAM)
        .args(["run", "--preload", "", "--", "sh", "-c"])
        .arg("dirname $(dirname $PLOOP_SANDBOX_SOCKET)")
        .env("PLOOP_SANDBOX_BASE", &other)
        .output()
        .expect("a sandbox");
    assert_eq!(text(&output.stdout).trim(), other.to_str().expect("a name"));
    assert_eq!(text(&output.stderr), "", "it cleaned up");
    assert!(!other.exists());
    let device = sandbox.devices[0];
    assert!(sandbox.directory.exists());
    assert!(Path::new(&format!("/sys/block/loop{device}")).exists());
    assert!(clean(&base()).status.success());
    sandbox.is_gone();
}

fn a_base_that_cannot_be_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = directory.path().join("x".repeat(100));
    let open = directory.path().join("open");
    fs::create_dir(&open).expect("a directory");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("a mode");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("a file");
    for (base, why) in [
        (&long, "choose one of at most"),
        (&open, "others can write to it"),
        (&file, "cannot make"),
    ] {
        let output = Command::new(PROGRAM)
            .args(["run", "--preload", "", "--base"])
            .arg(base)
            .args(["--", "true"])
            .output()
            .expect("the launcher starts");
        assert_eq!(output.status.code(), Some(1), "{}", base.display());
        let text = text(&output.stderr);
        assert!(text.contains(why), "{text}");
        assert!(text.contains(base.to_str().expect("a name")), "{text}");
    }
}

fn the_next_sandbox_cleans_up() {
    let mut sandbox = Sandbox::start(&[], "sleep 1000");
    kill_both(&mut sandbox);
    assert!(run("true").status.success());
    sandbox.is_gone();
}

/// A process in a mount namespace of its own is told paths outside of the chroot.
fn it_runs_in_a_chroot() {
    let root = tempfile::tempdir().unwrap();
    let script = r#"mount --make-rprivate / && mount --rbind / "$0" && exec chroot "$0" "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(root.path())
        .args([PROGRAM, "run", "--preload", "", "--base"])
        .arg(base())
        .args(["--", "test", "-e", "/proc/self"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
