//! Programs that a test ends by signals.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The signals that end `ploop-image`.
pub(crate) const SIGNALS: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Starts a program that ignores none of [`SIGNALS`]. What a process ignores is inherited, and the test itself may have
/// been started so (`nohup`, `&` in a script); what it has a handler for is reset in a new program.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    for signal in SIGNALS {
        let nobody = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal.as_raw(), nobody)?;
    }
    command.spawn()
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until the program has ended, and fails where that takes five minutes.
pub(crate) fn end_of(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > Duration::from_secs(300) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end within five minutes");
        }
        thread::sleep(Duration::from_millis(1));
    }
}
