//! What libploop and its tools print: captured by two pipes, and sent to the log.
//!
//! The caller reads the pipes while C runs. At libploop's level of timestamps its lines begin with a time, and a line
//! without one is a tool's. libploop's errors are what it prints on standard error: their words say so in some builds
//! only. Lines go to the [log facade](::log), and where [`log`](crate::log) was told so to the log file and to the
//! program's output. What the tools print is also kept for the error.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ploop_sys as sys;
use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

use super::fd_table::above_streams;
use super::process::EndNotifier;
use super::signals;

/// How much of what the tools print is kept: the end of it.
const MAX_TOOL_OUTPUT: usize = 64 << 10;
/// A longer line is cut into several.
const MAX_LINE: usize = 8 << 10;
/// How much is read when C has ended: what libploop left running may print without end.
const MAX_READ_AT_END: usize = 1 << 20;

/// libploop's level at which nothing goes to the console.
pub(crate) const NO_CONSOLE: i32 = -2;
/// libploop's level at which each line begins with the time.
pub(crate) const TIMESTAMPS: i32 = 4;

static VERBOSE: AtomicI32 = AtomicI32::new(NO_CONSOLE);
static LOG_LEVEL: AtomicI32 = AtomicI32::new(3);
static LOG_FILE: Mutex<Option<File>> = Mutex::new(None);
/// How many calls are running.
static CALLS_RUNNING: Mutex<usize> = Mutex::new(0);

pub(crate) fn set_verbose_level(level: i32) {
    VERBOSE.store(level, Ordering::Relaxed);
}

pub(crate) fn set_log_level(level: i32) {
    LOG_LEVEL.store(level, Ordering::Relaxed);
}

pub(crate) fn set_log_file(file: Option<File>) {
    *log_file() = file;
}

fn log_file() -> MutexGuard<'static, Option<File>> {
    LOG_FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has libploop print what it does, if anybody wants it, until the guard is dropped.
pub(super) fn raise_verbosity(is_wanted: bool) -> RaisedVerbosity {
    let is_wanted = is_wanted
        || VERBOSE.load(Ordering::Relaxed) > NO_CONSOLE
        || log_file().is_some()
        || facade::is_wanted();
    let mut running = CALLS_RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    *running += 1;
    if is_wanted {
        flush_standard_output();
        set_level(TIMESTAMPS);
    }
    RaisedVerbosity(is_wanted)
}

pub(super) struct RaisedVerbosity(bool);

impl RaisedVerbosity {
    pub(super) fn is_raised(&self) -> bool {
        self.0
    }
}

impl Drop for RaisedVerbosity {
    fn drop(&mut self) {
        let mut running = CALLS_RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        *running -= 1;
        if *running == 0 {
            // For code that calls libploop without this crate.
            set_level(NO_CONSOLE);
        }
    }
}

fn set_level(level: i32) {
    // SAFETY: C stores the number in an aligned `int` that other threads only read; they see the old level or
    // the new one.
    unsafe { sys::ploop_set_verbose_level(level) }
}

/// Writes what the program has left in the buffer of C's `stdout`. It would come out among libploop's lines.
fn flush_standard_output() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: the stream is C's own, for the life of the process.
    unsafe { libc::fflush(stdout) };
}

/// Standard output or standard error of C.
struct Stream {
    pipe: OwnedFd,
    is_of_errors: bool,
    /// What was read of a line that has no end yet.
    line: Vec<u8>,
    /// The time of libploop's last line, which orders a tool's lines after it.
    time: (u64, u32),
}

/// A line, and what it is ordered by.
struct Line {
    time: (u64, u32),
    is_error: bool,
    text: Vec<u8>,
}

/// The pipes, and what was read from them.
pub(super) struct Capture {
    streams: [Stream; 2],
    done: OwnedFd,
    /// Of both streams; they go to the log in the order of their times.
    lines: Vec<Line>,
    tool_output: Vec<u8>,
    /// Whether libploop is repeating what `lsof` said.
    repeats_lsof: bool,
}

/// The ends of the pipes that C writes to.
pub(super) struct Outputs {
    output: OwnedFd,
    errors: OwnedFd,
}

impl Outputs {
    /// For standard output and standard error.
    pub(super) fn numbers(&self) -> [RawFd; 2] {
        [&self.output, &self.errors].map(AsRawFd::as_raw_fd)
    }

    /// What is printed while nobody reads, and does not fit into the pipes, is lost.
    pub(super) fn never_wait(&self) -> io::Result<()> {
        for pipe in [&self.output, &self.errors] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(())
    }
}

/// A pipe of which one end is read without waiting, and the other has a number above those of the standard streams.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let input = if input.as_raw_fd() > libc::STDERR_FILENO {
        input
    } else {
        above_streams(std::os::fd::AsFd::as_fd(&input))?
    };
    Ok((output, input))
}

impl Capture {
    pub(super) fn new() -> io::Result<(Capture, Outputs)> {
        let stream = |pipe, is_of_errors| Stream {
            pipe,
            is_of_errors,
            line: Vec::new(),
            time: (0, 0),
        };
        let (from_output, output) = pipe()?;
        let (from_errors, errors) = pipe()?;
        let capture = Capture {
            streams: [stream(from_output, false), stream(from_errors, true)],
            done: eventfd(0, EventfdFlags::CLOEXEC)?,
            lines: Vec::new(),
            tool_output: Vec::new(),
            repeats_lsof: false,
        };
        Ok((capture, Outputs { output, errors }))
    }

    pub(super) fn end_notifier(&self) -> io::Result<EndNotifier> {
        Ok(EndNotifier(self.done.try_clone()?))
    }

    /// Reads until C has ended. Calls `tick` whenever nothing was printed for a while.
    pub(super) fn follow(&mut self, tick: Option<&dyn Fn()>) {
        const TICK: Duration = Duration::from_millis(200);
        loop {
            let [output, errors] = &self.streams;
            let mut polls = [&output.pipe, &errors.pipe, &self.done].map(|fd| libc::pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            let timeout = tick.map_or(-1, |_| TICK.as_millis() as libc::c_int);
            // SAFETY: the three descriptors are open, and the array outlives the call.
            let ready = unsafe { libc::poll(polls.as_mut_ptr(), 3, timeout) };
            if ready == 0 {
                if let Some(tick) = tick {
                    tick();
                }
            }
            if ready > 0 && polls[2].revents != 0 {
                for stream in &mut self.streams {
                    stream.read(MAX_READ_AT_END, &mut self.lines);
                    stream.end_line(&mut self.lines);
                }
                self.pass_on();
                return;
            }
            if ready > 0 {
                for stream in &mut self.streams {
                    stream.read(MAX_LINE, &mut self.lines);
                }
                self.pass_on();
            }
        }
    }

    /// Sends the lines to the log.
    fn pass_on(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.sort_by_key(|line| line.time);
        for line in lines {
            let text = String::from_utf8_lossy(&line.text);
            match libploop_line(&text) {
                Some((time, text)) => {
                    log_libploop_line(time, text, line.is_error);
                    self.keep_if_of_lsof(text);
                }
                None => {
                    log_tool_line(&text);
                    self.keep(&line.text);
                }
            }
        }
    }

    /// libploop runs `lsof` where a file system is busy, and logs its output line by line between two of its own.
    fn keep_if_of_lsof(&mut self, text: &str) {
        if text.starts_with("--- lsof ") && text.ends_with(" output ---") {
            self.repeats_lsof = true;
        } else if text == "--- lsof finished ---" || text.starts_with("Command lsof ") {
            self.repeats_lsof = false;
        } else if self.repeats_lsof {
            self.keep(text.as_bytes());
        }
    }

    fn keep(&mut self, line: &[u8]) {
        self.tool_output.extend_from_slice(line);
        self.tool_output.push(b'\n');
        if self.tool_output.len() > 2 * MAX_TOOL_OUTPUT {
            self.tool_output
                .drain(..self.tool_output.len() - MAX_TOOL_OUTPUT);
        }
    }

    /// What the tools printed.
    pub(super) fn into_tool_output(self) -> Option<String> {
        let from = self.tool_output.len().saturating_sub(MAX_TOOL_OUTPUT);
        let words = String::from_utf8_lossy(&self.tool_output[from..]);
        let words = words.trim();
        (!words.is_empty()).then(|| words.to_owned())
    }
}

impl Stream {
    fn read(&mut self, mut at_most: usize, lines: &mut Vec<Line>) {
        let mut buffer = [0; MAX_LINE];
        while at_most > 0 {
            match rustix::io::read(&self.pipe, &mut buffer[..]) {
                Ok(0) => return,
                Ok(read) => {
                    at_most = at_most.saturating_sub(read);
                    for byte in &buffer[..read] {
                        match byte {
                            b'\n' | b'\r' => self.end_line(lines),
                            _ => self.line.push(*byte),
                        }
                        if self.line.len() == MAX_LINE {
                            self.end_line(lines);
                        }
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn end_line(&mut self, lines: &mut Vec<Line>) {
        if self.line.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.line);
        if let Some((time, _)) = libploop_line(&String::from_utf8_lossy(&text)) {
            self.time = seconds_and_micros(time).unwrap_or(self.time);
        }
        lines.push(Line {
            time: self.time,
            is_error: self.is_of_errors,
            text,
        });
    }
}

fn seconds_and_micros(time: &str) -> Option<(u64, u32)> {
    let (seconds, micros) = time.trim_start_matches(' ').split_once('.')?;
    Some((seconds.parse().ok()?, micros.parse().ok()?))
}

/// The time and the text of `[ 0.123456] text`.
fn libploop_line(line: &str) -> Option<(&str, &str)> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (seconds, micros) = time.trim_start_matches(' ').split_once('.')?;
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_time =
        !seconds.is_empty() && micros.len() == 6 && is_number(seconds) && is_number(micros);
    is_time.then_some((time, text))
}

/// How lines of each level begin, for libploop does not print the level. All others are of level 0, or errors.
const PREFIXES: [(i32, &[&str]); 3] = [
    (
        1,
        &[
            "Running: ",
            "Call FITRIM",
            "Call BLKDISCARD",
            "Filling hole",
            "Warning: ",
            "Dropping image ",
            "Can't find running ploop device",
            "Update GPT partition",
            "Killing process ",
            "--- ",
        ],
    ),
    (
        3,
        &[
            "Trying to find free extents",
            "Waiting",
            "Killing the trim process",
            "Reopen rw ",
            "Adding snapshot ",
            "del snapshot ",
            "update partition table",
            "RCV type=",
            "send_thread exited",
            "pcopy ",
            "Retrying umount ",
        ],
    ),
    (4, &["psend: "]),
];

fn level(text: &str) -> i32 {
    PREFIXES
        .iter()
        .find(|(_, prefixes)| prefixes.iter().any(|prefix| text.starts_with(prefix)))
        .map_or(0, |(level, _)| *level)
}

fn log_libploop_line(time: &str, text: &str, is_error: bool) {
    let level = if is_error { -1 } else { level(text) };
    let verbose = VERBOSE.load(Ordering::Relaxed);
    if verbose > NO_CONSOLE && verbose >= level {
        let line = if verbose >= TIMESTAMPS {
            format!("[{time}] {text}\n")
        } else {
            format!("{text}\n")
        };
        // Errors of writing are ignored, as libploop does.
        let _ = match level {
            ..0 => io::stderr().write_all(line.as_bytes()),
            _ => io::stdout().write_all(line.as_bytes()),
        };
    }
    if level <= LOG_LEVEL.load(Ordering::Relaxed) {
        if let Some(file) = &mut *log_file() {
            let line = format!("{} : {text}\n", now());
            let _signals = signals::WriteSignalsBlocked::begin();
            let _ = file.write_all(line.as_bytes());
        }
    }
    facade::libploop(level, text);
}

fn log_tool_line(text: &str) {
    if VERBOSE.load(Ordering::Relaxed) >= 0 {
        let _ = io::stdout().write_all(format!("{text}\n").as_bytes());
    }
    facade::tool(text);
}

/// The time as libploop writes it to its log: `2026-01-31T12:00:00+0100`.
fn now() -> String {
    let mut text = [0u8; 64];
    // SAFETY: all is plain data that the calls fill in; the format is terminated, and the buffer as long
    // as said.
    let len = unsafe {
        let time = libc::time(std::ptr::null_mut());
        let mut parts = std::mem::zeroed();
        libc::localtime_r(&time, &mut parts);
        libc::strftime(
            text.as_mut_ptr().cast(),
            text.len(),
            c"%Y-%m-%dT%H:%M:%S%z".as_ptr(),
            &parts,
        )
    };
    String::from_utf8_lossy(&text[..len]).into_owned()
}

#[cfg(feature = "log")]
mod facade {
    use log::{Level, LevelFilter, log};

    pub(super) fn is_wanted() -> bool {
        log::max_level() != LevelFilter::Off
    }

    pub(super) fn libploop(level: i32, text: &str) {
        let level = match level {
            ..0 => Level::Error,
            0 => Level::Info,
            1 => Level::Debug,
            _ => Level::Trace,
        };
        log!(target: "ploop::libploop", level, "{text}");
    }

    pub(super) fn tool(text: &str) {
        log!(target: "ploop::tools", Level::Info, "{text}");
    }
}

#[cfg(not(feature = "log"))]
mod facade {
    pub(super) fn is_wanted() -> bool {
        false
    }

    pub(super) fn libploop(_level: i32, _text: &str) {}

    pub(super) fn tool(_text: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libploop_s_lines_are_told_from_a_tool_s() {
        for (line, expected) in [
            (
                "[ 0.123456] Running: mkfs",
                Some((" 0.123456", "Running: mkfs")),
            ),
            ("[1234.000001] a] b", Some(("1234.000001", "a] b"))),
            ("[ 1.2] a", None),
            ("[.123456] a", None),
            ("mke2fs 1.47.0 (5-Feb-2023)", None),
            ("[ 0.123456]", None),
            ("", None),
        ] {
            assert_eq!(libploop_line(line), expected, "{line}");
        }
    }

    #[test]
    fn levels_are_known_by_the_words() {
        for (text, expected) in [
            ("Running: mkfs", 1),
            ("Opening delta /a", 0),
            ("Waiting", 3),
            ("psend: a", 4),
        ] {
            assert_eq!(level(text), expected, "{text}");
        }
    }

    #[test]
    fn what_lsof_said_is_a_tool_s() {
        let (mut capture, _outputs) = Capture::new().unwrap();
        for line in [
            "[ 0.000001] Unmounting file system at /mnt",
            "[ 6.000001] --- lsof /mnt output ---",
            "[ 6.000002] COMMAND PID USER",
            "[ 6.000003] sh      7   root",
            "[ 6.000004] --- lsof finished ---",
            "[ 6.000005] Failed to umount /mnt: Device or resource busy",
            "[ 9.000001] --- lsof /dev/ploop1 output ---",
            "[ 9.000002] udevd   9   root",
            "[ 9.000003] Command lsof exited with status 1",
            "[ 9.000004] PLOOP_IOC_STOP: Device or resource busy",
        ] {
            let stream = &mut capture.streams[1];
            stream.line = line.into();
            stream.end_line(&mut capture.lines);
        }
        capture.pass_on();
        assert_eq!(
            capture.into_tool_output().unwrap(),
            "COMMAND PID USER\nsh      7   root\nudevd   9   root"
        );
    }

    #[test]
    fn the_streams_are_put_in_order_by_time() {
        let (mut capture, _outputs) = Capture::new().unwrap();
        for (number, line) in [
            (0, "[ 9.000001] Running: mkfs"),
            (0, "of the tool"),
            (0, "[12.000001] done"),
            (1, "[ 9.000003] failed"),
        ] {
            let stream = &mut capture.streams[number];
            stream.line = line.into();
            stream.end_line(&mut capture.lines);
        }
        capture.lines.sort_by_key(|line| line.time);
        let lines = capture.lines.iter();
        let found: Vec<_> = lines
            .map(|line| (std::str::from_utf8(&line.text).unwrap(), line.is_error))
            .collect();
        let expected = [
            ("[ 9.000001] Running: mkfs", false),
            ("of the tool", false),
            ("[ 9.000003] failed", true),
            ("[12.000001] done", false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_last_words_of_many_are_kept() {
        let (mut capture, outputs) = Capture::new().unwrap();
        let done = capture.end_notifier().unwrap();
        let writer = std::thread::spawn(move || {
            let mut input = File::from(outputs.output);
            for n in 0..50_000 {
                writeln!(input, "line {n}").unwrap();
            }
            drop(done);
            // The pipe stays open.
            input
        });
        capture.follow(None);
        drop(writer.join().unwrap());
        let words = capture.into_tool_output().unwrap();
        assert!(words.len() <= MAX_TOOL_OUTPUT, "{}", words.len());
        assert!(words.ends_with("line 49998\nline 49999"), "{words}");
    }
}
