//! Long work: a progress bar for people at a terminal, and Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::{fs, io};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::output::Output;

/// A bar that counts bytes, on the standard error; hidden where that is no terminal.
pub(crate) fn bar(output: &Output, verb: &'static str) -> ProgressBar {
    let target = match output.shows_progress() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(0), target).with_message(verb);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The signals that end long work: Ctrl-C, SIGTERM, and SIGHUP, which comes when the terminal is closed, unless `nohup`
/// has it ignored.
pub(crate) fn ending_signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// Whether whoever has started this process has a signal ignored (`SigIgn` of `/proc/self/status`).
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|it| it.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
    mask.is_some_and(|it| it >> (signal - 1) & 1 != 0)
}

/// Lets a write behind the limit of the size of files fail, which is reported, instead of ending the process.
pub(crate) fn survive_file_size_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// A flag that is set by the first signal that ends long work. The second one ends the process.
pub(crate) fn interrupt_flag() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in ending_signals() {
        // The order matters: the first signal finds the flag unset here, and sets it below.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}
