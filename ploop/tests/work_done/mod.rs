//! What a thread or the process has done so far: unlike the time that passes, it does not depend on what else the machine does.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::time::Duration;

/// How many bytes the calling thread has read, holes included.
pub(crate) fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// How long the calling thread has had a processor.
pub(crate) fn processor_time() -> Duration {
    ticks("/proc/thread-self/stat")
}

/// How long all threads of this process together have had one.
pub(crate) fn processor_time_of_process() -> Duration {
    ticks("/proc/self/stat")
}

fn ticks(file: &str) -> Duration {
    let text = fs::read_to_string(file).unwrap();
    let (_, rest) = text.rsplit_once(')').unwrap();
    // As user and in the kernel, in hundredths of a second.
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|word| word.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
