//! Runs programs at the same time, each with its output in a file, and measures their times.

use crate::{packages, run};
use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::Read as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much of the machine a program takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// It mostly waits: it runs beside the others and takes no slot.
    Waits,
    /// One slot of as many as programs may run at once.
    One,
    /// Cargo: like [`Share::One`], but never two at once, because they would wait for each other's lock.
    Cargo,
    /// No other program runs meanwhile.
    Alone,
}

/// A program that is to run.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) command: Command,
    pub(crate) share: Share,
}

/// A program that has run.
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) status: ExitStatus,
    pub(crate) time: Duration,
    /// The processor time that it took, with the processes that it waited for.
    pub(crate) processor: Duration,
    /// The lines that it printed, each with its time since the start.
    pub(crate) lines: Vec<(Duration, String)>,
}

impl Done {
    /// Prints its output, marked so that it is not taken for this program's own.
    pub(crate) fn print_output(&self) {
        for (_, line) in &self.lines {
            println!("    | {line}");
        }
        if !self.status.success() {
            println!("    | ({})", self.status);
        }
    }
}

/// How many programs the processors can run at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// How often a running program is checked.
const TICK: Duration = Duration::from_millis(20);

/// How long a program may take: one that hangs must not eat the run. Those in a sandbox have a limit of their own, which is
/// shorter, so that they end in good order.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs the jobs, `at_once` at the same time, in this order as far as their shares allow; those that have to run alone
/// come last. Calls `done` when one has ended.
pub(crate) fn run(
    mut jobs: Vec<Job>,
    at_once: usize,
    done: impl FnMut(Done) -> Result<()> + Send,
) -> Result<()> {
    jobs.sort_by_key(|job| job.share == Share::Alone);
    let slots = Slots::new(at_once);
    // Calls of `done` come one after another.
    let done = Mutex::new(done);
    let logs = logs()?;
    thread::scope(|scope| {
        let mut running = Vec::new();
        while !jobs.is_empty() {
            let (next, slot) = slots.next(&jobs);
            let job = jobs.remove(next);
            let (done, logs) = (&done, &logs);
            running.push(scope.spawn(move || -> Result<()> {
                let result = follow(job, logs);
                drop(slot);
                lock(done)(result?)
            }));
        }
        running.into_iter().try_for_each(|thread| {
            // A panic there is a bug of this program.
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The directory of the outputs, which stay there.
fn logs() -> Result<PathBuf> {
    let target = packages::metadata()?.target_directory;
    let directory = PathBuf::from(target).join("test-output");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// Runs one job. Its output goes to a file, not a pipe, so that processes that it leaves behind delay nothing.
fn follow(mut job: Job, logs: &Path) -> Result<Done> {
    let plain = |c: char| if c.is_alphanumeric() { c } else { '-' };
    let path = logs.join(job.name.chars().map(plain).collect::<String>());
    let cannot = || format!("cannot write {}", path.display());
    let log = File::create(&path).with_context(cannot)?;
    // Both streams append, so that neither overwrites the other.
    let append = || {
        File::options()
            .append(true)
            .open(&path)
            .with_context(cannot)
    };
    let begun = Instant::now();
    let mut child = job
        .command
        .stdin(Stdio::null())
        .stdout(append()?)
        .stderr(append()?)
        .spawn()
        .with_context(|| format!("cannot run {}", run::shown(&job.command)))?;
    drop(log);
    let mut output = Output {
        file: File::open(&path).with_context(|| format!("cannot read {}", path.display()))?,
        begun,
        rest: Vec::new(),
        lines: Vec::new(),
    };
    let processor = loop {
        // Its times have to be read before it is waited for, after which `/proc` does not have it.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))
            .ok()
            .and_then(|text| Stat::parse(&text));
        output.read()?;
        match stat {
            Some(stat) if !stat.ended => {
                if begun.elapsed() > LIMIT {
                    child.kill()?;
                }
                thread::sleep(TICK);
            }
            stat => break stat.map_or(Duration::ZERO, |stat| stat.processor),
        }
    };
    let status = child.wait()?;
    output.read()?;
    let time = begun.elapsed();
    output.end();
    Ok(Done {
        name: job.name,
        status,
        time,
        processor,
        lines: output.lines,
    })
}

struct Output {
    file: File,
    begun: Instant,
    rest: Vec<u8>,
    lines: Vec<(Duration, String)>,
}

impl Output {
    /// Reads what has come since the last call.
    fn read(&mut self) -> Result<()> {
        let at = self.begun.elapsed();
        self.file.read_to_end(&mut self.rest)?;
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            self.lines.push((at, line));
        }
        Ok(())
    }

    fn end(&mut self) {
        if !self.rest.is_empty() {
            let line = String::from_utf8_lossy(&self.rest).into_owned();
            self.lines.push((self.begun.elapsed(), line));
        }
    }
}

/// A part of `/proc/PID/stat`.
struct Stat {
    ended: bool,
    /// Its processor time, with that of the children that it has waited for.
    processor: Duration,
}

impl Stat {
    fn parse(line: &str) -> Option<Stat> {
        // The name before the bracket may hold anything.
        let (_, rest) = line.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        // User and kernel time, its own and that of children, in hundredths of a second.
        let ticks = words.get(11..15)?.iter().map(|word| word.parse::<u64>());
        let ticks: u64 = ticks.sum::<Result<_, _>>().ok()?;
        Some(Stat {
            ended: words[0] == "Z",
            processor: Duration::from_millis(ticks * 10),
        })
    }
}

/// The slots in which programs run.
struct Slots {
    at_once: usize,
    usage: Mutex<Usage>,
    freed: Condvar,
}

#[derive(Default)]
struct Usage {
    /// All programs, also those that take no slot.
    running: usize,
    slots: usize,
    cargo: bool,
    alone: bool,
}

/// A slot that is taken until this is dropped.
struct Slot<'a> {
    slots: &'a Slots,
    share: Share,
}

impl Slots {
    fn new(at_once: usize) -> Slots {
        Slots {
            at_once: at_once.max(1),
            usage: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Waits until any of the jobs may run, and takes a slot for the first that may. There is at least one job.
    fn next(&self, jobs: &[Job]) -> (usize, Slot<'_>) {
        let mut usage = lock(&self.usage);
        loop {
            if let Some(next) = jobs.iter().position(|job| self.fits(&usage, job.share)) {
                let share = jobs[next].share;
                usage.count(share, 1);
                let slot = Slot { slots: self, share };
                return (next, slot);
            }
            usage = self
                .freed
                .wait(usage)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fits(&self, usage: &Usage, share: Share) -> bool {
        !usage.alone
            && match share {
                Share::Waits => true,
                Share::One => usage.slots < self.at_once,
                Share::Cargo => usage.slots < self.at_once && !usage.cargo,
                Share::Alone => usage.running == 0,
            }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(&self.slots.usage).count(self.share, -1);
        self.slots.freed.notify_all();
    }
}

impl Usage {
    fn count(&mut self, share: Share, by: isize) {
        let change = |number: &mut usize| *number = number.saturating_add_signed(by);
        change(&mut self.running);
        match share {
            Share::Waits => {}
            Share::One => change(&mut self.slots),
            Share::Cargo => {
                change(&mut self.slots);
                self.cargo = by > 0;
            }
            Share::Alone => self.alone = by > 0,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are consistent even if a thread has panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, share: Share, script: &str) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job {
            name: format!("jobs-test-{name}"),
            command,
            share,
        }
    }

    fn output(done: &Done) -> String {
        let lines: Vec<&str> = done.lines.iter().map(|(_, line)| line.as_str()).collect();
        lines.join("\n")
    }

    fn run_all(jobs: Vec<Job>, at_once: usize) -> Vec<Done> {
        let mut all = Vec::new();
        run(jobs, at_once, |done| {
            all.push(done);
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn output_and_status_are_returned() {
        let script = "echo one; echo two >&2; printf three; exit 7";
        let all = run_all(vec![job("output", Share::One, script)], 1);
        assert_eq!(output(&all[0]), "one\ntwo\nthree");
        assert_eq!(all[0].status.code(), Some(7));
    }

    #[test]
    fn a_process_that_is_left_behind_delays_nothing() {
        let all = run_all(vec![job("left", Share::One, "sleep 60 & echo $!")], 1);
        assert!(all[0].time < Duration::from_secs(50), "{:?}", all[0].time);
        let left = output(&all[0]);
        // `kill` of the shell, because a minimal system has no program of that name.
        let kill = ["-c", "kill \"$0\"", &left];
        assert!(Command::new("sh").args(kill).status().unwrap().success());
    }

    #[test]
    fn processor_time_includes_children() {
        // A child that works, and is waited for.
        let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; sleep 0.2";
        let all = run_all(vec![job("work", Share::Waits, script)], 1);
        assert!(
            all[0].processor > Duration::from_millis(20),
            "{:?}",
            all[0].processor
        );
        let stat = Stat::parse("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 5").unwrap();
        assert_eq!(stat.processor, Duration::from_millis(1270));
        assert!(!stat.ended);
        assert!(Stat::parse("7 (a) S 1 2 3").is_none());
    }

    /// Each job makes a file while it runs, and fails if it finds one of a job that must not run at the same time.
    #[test]
    fn shares_are_kept() {
        let directory = std::env::temp_dir().join(format!("jobs-test-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let here = directory.display();
        let script = |name: &str, others: &str, most: usize| {
            format!(
                "cd {here}; touch {name}; sleep 0.1; set -- {others}; \
                 n=0; for f; do [ ! -e $f ] || n=$((n+1)); done; rm {name}; [ $n -le {most} ]"
            )
        };
        let mut jobs = vec![job("alone", Share::Alone, &script("alone", "*", 1))];
        for n in 0..4 {
            let (one, cargo) = (format!("one-{n}"), format!("cargo-{n}"));
            jobs.push(job(
                &one,
                Share::One,
                &script(&one, "one-* cargo-* alone", 2),
            ));
            jobs.push(job(
                &cargo,
                Share::Cargo,
                &script(&cargo, "cargo-* alone", 1),
            ));
        }
        jobs.push(job("waits", Share::Waits, &script("waits", "alone", 0)));
        let all = run_all(jobs, 2);
        std::fs::remove_dir(&directory).unwrap();
        assert_eq!(all.len(), 10);
        for done in &all {
            assert!(done.status.success(), "{}", done.name);
        }
        assert_eq!(all[9].name, "jobs-test-alone");
    }
}
