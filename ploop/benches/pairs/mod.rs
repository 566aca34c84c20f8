//! One thing done in two ways alternately, raw and safe, and the verdict.
//!
//! The time on a disk varies from call to call by far more than the bars, and over minutes too. What is
//! done by turns has the same disk, and the medians of many turns can be compared.

use std::time::{Duration, Instant};

const LEAST: usize = 100;
const MOST: usize = 20_000;
const TIME: Duration = Duration::from_secs(10);

/// The medians of both ways.
pub(crate) struct Medians {
    pairs: usize,
    pub(crate) raw: Duration,
    pub(crate) safe: Duration,
}

/// Does both alternately, for ten seconds or a hundred times.
pub(crate) fn measure(
    mut raw: impl FnMut() -> Duration,
    mut safe: impl FnMut() -> Duration,
) -> Medians {
    let (mut raws, mut safes) = (Vec::new(), Vec::new());
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
    Medians {
        pairs: raws.len(),
        raw: median(raws),
        safe: median(safes),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub(crate) fn print_heading() {
    println!(
        "{:<26} {:>7} {:>12} {:>12} {:>9}  bar",
        "call", "pairs", "raw", "safe", "safe/raw"
    );
}

impl Medians {
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
