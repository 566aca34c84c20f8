//! Several programs that do the same in turns, and the medians of what they took.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// The time of one turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) wall: Duration,
    /// Of the program and its children, in user and system mode.
    pub(crate) cpu: Duration,
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Taken {
    let before = cpu_of_children();
    let begin = Instant::now();
    let status = command.stdin(Stdio::null()).status();
    let wall = begin.elapsed();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
    Taken {
        wall,
        cpu: cpu_of_children() - before,
    }
}

/// The time that children took which have ended.
fn cpu_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
        .iter()
        .sum()
}

/// One of the sides.
pub(crate) type Side<'a> = &'a mut dyn FnMut() -> Taken;

/// Lets the sides take turns, and returns their medians. Who goes first changes.
pub(crate) fn medians<const N: usize>(rounds: usize, sides: [Side<'_>; N]) -> [Taken; N] {
    let mut taken: [Vec<Taken>; N] = std::array::from_fn(|_| Vec::new());
    for round in 0..rounds {
        for turn in 0..N {
            let side = (turn + round) % N;
            taken[side].push(sides[side]());
        }
    }
    taken.map(|taken| Taken {
        wall: median(taken.iter().map(|it| it.wall)),
        cpu: median(taken.iter().map(|it| it.cpu)),
    })
}

pub(crate) fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times[times.len() / 2]
}

/// The bars of a run: a row of a table each, and which were missed.
#[derive(Default)]
pub(crate) struct Bars {
    missed: Vec<String>,
}

impl Bars {
    pub(crate) fn heading(&self, title: &str, peer: &str) {
        println!("{title}");
        println!(
            "  {:<44}{:>12}{peer:>22}{:>8}  bar",
            "", "ploop-image", "ratio"
        );
    }

    /// A row with the times of both sides. The ratio has to stay below the bar.
    pub(crate) fn row(&mut self, name: &str, ours: Duration, theirs: Duration, bar: f64) {
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let is_met = ratio < bar;
        println!(
            "  {name:<44}{:>12}{:>22}{ratio:>8.2}  {bar:.2} {}",
            shown(ours),
            shown(theirs),
            verdict(is_met)
        );
        if !is_met {
            self.miss(format!("{name}: {ratio:.2} of {bar:.2}"));
        }
    }

    /// A row with a value that has to stay below a limit.
    pub(crate) fn limit(&mut self, name: &str, value: f64, limit: f64, unit: &str) {
        let is_met = value < limit;
        println!(
            "  {name:<44}{:>12}{:>30}  {limit} {unit} {}",
            format!("{value:.1} {unit}"),
            "",
            verdict(is_met)
        );
        if !is_met {
            self.miss(format!("{name}: {value:.1} of {limit} {unit}"));
        }
    }

    pub(crate) fn miss(&mut self, what: String) {
        self.missed.push(what);
    }

    pub(crate) fn verdict(self) -> ExitCode {
        if self.missed.is_empty() {
            println!("all bars are met");
            return ExitCode::SUCCESS;
        }
        println!("bars missed: {}", self.missed.join("; "));
        ExitCode::FAILURE
    }
}

fn verdict(is_met: bool) -> &'static str {
    match is_met {
        true => "met",
        false => "missed",
    }
}

fn shown(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}
