//! One thing done in two ways alternately, raw and safe, and the verdict.
//!
//! The time on a disk varies from call to call by far more than the bars, and over minutes too. What is
//! done by turns has the same disk. In a mount the kernel waits for ticks of its clock. So calls that are long begin
//! anywhere between two ticks, and what is compared is the mean of the middle half: a median jumps from one to the next.

use std::thread;
use std::time::{Duration, Instant};

const LEAST: usize = 100;
const MOST: usize = 20_000;
const TIME: Duration = Duration::from_secs(10);

/// The times of both ways.
pub(crate) struct Times {
    pairs: usize,
    pub(crate) raw: Duration,
    pub(crate) safe: Duration,
}

/// Does both alternately, for ten seconds or a hundred times.
pub(crate) fn measure(
    mut raw: impl FnMut() -> Duration,
    mut safe: impl FnMut() -> Duration,
) -> Times {
    let (mut raws, mut safes) = (Vec::new(), Vec::new());
    let mut raw = anywhere_between_ticks(&mut raw);
    let mut safe = anywhere_between_ticks(&mut safe);
    let begin = Instant::now();
    while raws.len() < LEAST || begin.elapsed() < TIME && raws.len() < MOST {
        // Who goes first changes.
        if raws.len() % 2 == 0 {
            raws.push(raw());
            safes.push(safe());
        } else {
            safes.push(safe());
            raws.push(raw());
        }
    }
    Times {
        pairs: raws.len(),
        raw: middle_half(raws),
        safe: middle_half(safes),
    }
}

/// The call, which then begins later by another part of a tick each time, if it is a long one.
fn anywhere_between_ticks(call: &mut dyn FnMut() -> Duration) -> impl FnMut() -> Duration + '_ {
    const LONG: Duration = Duration::from_millis(10);
    // At a hundred ticks a second.
    const TICK: u64 = 10_000;
    let (mut took, mut step) = (Duration::ZERO, 0);
    move || {
        if took > LONG {
            step = (step + 6_180) % TICK;
            thread::sleep(Duration::from_micros(step));
        }
        took = call();
        took
    }
}

/// The mean of the middle half.
fn middle_half(mut times: Vec<Duration>) -> Duration {
    times.sort();
    let middle = &times[times.len() / 4..times.len() - times.len() / 4];
    middle.iter().sum::<Duration>() / middle.len() as u32
}

pub(crate) fn print_heading() {
    println!(
        "{:<26} {:>7} {:>12} {:>12} {:>9}  bar",
        "call", "pairs", "raw", "safe", "safe/raw"
    );
}

impl Times {
    /// Prints a line of the table. Whether the bar is met.
    pub(crate) fn print(&self, name: &str, bar: Duration) -> bool {
        let met = self.safe <= bar;
        println!(
            "{name:<26} {:>7} {:>12} {:>12} {:>9.3}  {bar:.1?} {}",
            self.pairs,
            format!("{:.1?}", self.raw),
            format!("{:.1?}", self.safe),
            self.safe.as_secs_f64() / self.raw.as_secs_f64(),
            if met { "met" } else { "missed" }
        );
        met
    }
}
