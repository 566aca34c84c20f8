//! Runs work in steps, and prints for each its number, its name and its time.

use anyhow::{Result, bail};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// One step: a name to choose it by, a title that says what it does, and the work.
pub(crate) struct Step<'a> {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) work: Box<dyn FnMut() -> Result<()> + 'a>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(
        name: &'static str,
        title: &'static str,
        work: impl FnMut() -> Result<()> + 'a,
    ) -> Step<'a> {
        Step {
            name,
            title,
            work: Box::new(work),
        }
    }
}

/// Runs all steps, also after one has failed, so that one run shows everything that is wrong.
pub(crate) fn run(steps: Vec<Step<'_>>) -> Result<()> {
    let total = steps.len();
    let started = Instant::now();
    let mut failed = Vec::new();
    for (number, mut step) in steps.into_iter().enumerate() {
        let number = number + 1;
        headline(&format!("[{number}/{total}] {}: {}", step.name, step.title));
        let begun = Instant::now();
        match (step.work)() {
            Ok(()) => note(&format!(
                "[{number}/{total}] {}: ok ({})",
                step.name,
                seconds(begun.elapsed())
            )),
            // The other steps would miss the same, and the exit code has to say so.
            Err(error) if error.is::<crate::setup::Missing>() => return Err(error),
            Err(error) => {
                note(&format!(
                    "[{number}/{total}] {}: FAILED ({}): {error:#}",
                    step.name,
                    seconds(begun.elapsed())
                ));
                failed.push(step.name);
            }
        }
    }
    let elapsed = seconds(started.elapsed());
    if failed.is_empty() {
        headline(&format!("All {total} steps passed ({elapsed})"));
        Ok(())
    } else {
        bail!(
            "{} of {total} steps failed ({elapsed}): {}",
            failed.len(),
            failed.join(", ")
        );
    }
}

fn headline(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n== {text}");
    }
}

fn note(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\x1b[2m{text}\x1b[0m");
    } else {
        println!("{text}");
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole >= 60 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
