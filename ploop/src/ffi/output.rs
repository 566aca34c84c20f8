//! What libploop and the tools that it starts print.
//!
//! Both go to one pipe, which the caller reads while C runs. libploop's own lines begin with a time
//! then; whatever does not is a tool's. Lines go to the [log facade](::log), to libploop's log file,
//! and to the program's own output, as far as [`log`](crate::log) was told so; a tool's stay for the
//! error as well.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ploop_sys as sys;

use super::copy_calls::pipe;
use super::fd_table::above_streams;
use super::process::Done;
use super::signals;

/// So much of a tool's words is kept, the last ones.
const KEPT: usize = 64 << 10;
/// A line that is longer is cut.
const LONGEST_LINE: usize = 8 << 10;
/// So much is read when C has ended: what it left running may go on printing.
const REST: usize = 1 << 20;

/// libploop's level at which nothing goes to the console.
pub(crate) const NO_CONSOLE: i32 = -2;
/// The one at which the time stands before each line.
pub(crate) const TIMESTAMPS: i32 = 4;

static VERBOSE: AtomicI32 = AtomicI32::new(NO_CONSOLE);
static LOG_LEVEL: AtomicI32 = AtomicI32::new(3);
static LOG_FILE: Mutex<Option<File>> = Mutex::new(None);
/// Calls under way.
static LISTENERS: Mutex<usize> = Mutex::new(0);

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

/// Has libploop say what it does, where somebody wants to know, until this is dropped.
pub(super) fn listen() -> Listening {
    let is_wanted =
        VERBOSE.load(Ordering::Relaxed) > NO_CONSOLE || log_file().is_some() || facade::is_wanted();
    let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    *listeners += 1;
    if is_wanted {
        flush_standard_output();
        set_level(TIMESTAMPS);
    }
    Listening(())
}

pub(super) struct Listening(());

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        *listeners -= 1;
        if *listeners == 0 {
            // Whoever calls libploop without this crate is not to find it talkative.
            set_level(NO_CONSOLE);
        }
    }
}

fn set_level(level: i32) {
    // SAFETY: C stores the number in an aligned `int` that others only read; whichever value they see
    // is a level.
    unsafe { sys::ploop_set_verbose_level(level) }
}

/// What the program has printed by way of C's `stdout`, and C has not written, would go with libploop's
/// lines.
fn flush_standard_output() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: the stream is C's own, for the life of the process.
    unsafe { libc::fflush(stdout) };
}

/// The pipe, and what came out of it.
pub(super) struct Capture {
    pipe: OwnedFd,
    done: OwnedFd,
    line: Vec<u8>,
    words: Vec<u8>,
}

impl Capture {
    /// The second is the end that C writes to.
    pub(super) fn new() -> io::Result<(Capture, OwnedFd)> {
        let (output, input) = pipe()?;
        rustix::io::ioctl_fionbio(&output, true)?;
        // SAFETY: the call has no precondition; what it returns is nobody else's.
        let done = unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                done => OwnedFd::from_raw_fd(done),
            }
        };
        let capture = Capture {
            pipe: output,
            done,
            line: Vec::new(),
            words: Vec::new(),
        };
        let input = if input.as_raw_fd() > libc::STDERR_FILENO {
            input
        } else {
            above_streams(std::os::fd::AsFd::as_fd(&input))?
        };
        Ok((capture, input))
    }

    pub(super) fn done(&self) -> io::Result<Done> {
        Ok(Done(self.done.try_clone()?))
    }

    /// Reads until C has ended. Calls `tick` now and then if there is one.
    pub(super) fn follow(&mut self, tick: Option<&dyn Fn()>) {
        const TICK: Duration = Duration::from_millis(200);
        loop {
            let mut polls = [&self.pipe, &self.done].map(|fd| libc::pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            let timeout = tick.map_or(-1, |_| TICK.as_millis() as libc::c_int);
            // SAFETY: the two descriptors are open, and the array outlives the call.
            let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, timeout) };
            if ready == 0 {
                if let Some(tick) = tick {
                    tick();
                }
            }
            if ready > 0 && polls[0].revents != 0 {
                self.read(LONGEST_LINE);
            }
            if ready > 0 && polls[1].revents != 0 {
                self.read(REST);
                self.end_line();
                return;
            }
        }
    }

    fn read(&mut self, mut at_most: usize) {
        let mut buffer = [0; LONGEST_LINE];
        while at_most > 0 {
            match rustix::io::read(&self.pipe, &mut buffer[..]) {
                Ok(0) => return,
                Ok(read) => {
                    at_most = at_most.saturating_sub(read);
                    for byte in &buffer[..read] {
                        match byte {
                            b'\n' | b'\r' => self.end_line(),
                            _ => self.line.push(*byte),
                        }
                        if self.line.len() == LONGEST_LINE {
                            self.end_line();
                        }
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        match libploop_line(&text) {
            Some((time, text)) => libploop_says(time, text),
            None => {
                tool_says(&text);
                self.words.extend_from_slice(&line);
                self.words.push(b'\n');
                if self.words.len() > 2 * KEPT {
                    self.words.drain(..self.words.len() - KEPT);
                }
            }
        }
    }

    /// What the tools said.
    pub(super) fn into_words(self) -> Option<String> {
        let from = self.words.len().saturating_sub(KEPT);
        let words = String::from_utf8_lossy(&self.words[from..]);
        let words = words.trim();
        (!words.is_empty()).then(|| words.to_owned())
    }
}

/// `[ 0.123456] text`: the time and the text.
fn libploop_line(line: &str) -> Option<(&str, &str)> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let (seconds, micros) = time.trim_start_matches(' ').split_once('.')?;
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_time =
        !seconds.is_empty() && micros.len() == 6 && is_number(seconds) && is_number(micros);
    is_time.then_some((time, text))
}

/// libploop does not print its levels; these are the beginnings of what it says in the finer ones.
const BEGINNINGS: [(i32, &[&str]); 4] = [
    (-1, &["Error in "]),
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
    BEGINNINGS
        .iter()
        .find(|(_, beginnings)| beginnings.iter().any(|begin| text.starts_with(begin)))
        .map_or(0, |(level, _)| *level)
}

fn libploop_says(time: &str, text: &str) {
    let level = level(text);
    let verbose = VERBOSE.load(Ordering::Relaxed);
    if verbose > NO_CONSOLE && verbose >= level {
        let line = if verbose >= TIMESTAMPS {
            format!("[{time}] {text}\n")
        } else {
            format!("{text}\n")
        };
        // As ever, nobody learns of output that cannot be written.
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

fn tool_says(text: &str) {
    if VERBOSE.load(Ordering::Relaxed) >= 0 {
        let _ = io::stdout().write_all(format!("{text}\n").as_bytes());
    }
    facade::tool(text);
}

/// As libploop writes it: `2026-01-31T12:00:00+0100`.
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
            ("Error in f (a.c:1): no", -1),
            ("Running: mkfs", 1),
            ("Opening delta /a", 0),
            ("Waiting", 3),
            ("psend: a", 4),
        ] {
            assert_eq!(level(text), expected, "{text}");
        }
    }

    #[test]
    fn the_last_words_of_many_are_kept() {
        let (mut capture, input) = Capture::new().unwrap();
        let done = capture.done().unwrap();
        let writer = std::thread::spawn(move || {
            let mut input = File::from(input);
            for n in 0..50_000 {
                writeln!(input, "line {n}").unwrap();
            }
            drop(done);
            // Somebody has it open for longer.
            input
        });
        capture.follow(None);
        drop(writer.join().unwrap());
        let words = capture.into_words().unwrap();
        assert!(words.len() <= KEPT, "{}", words.len());
        assert!(words.ends_with("line 49998\nline 49999"), "{words}");
    }
}
