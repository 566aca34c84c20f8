//! A program ends while its file system is frozen.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::image::Image;
use super::sandbox::{self, Lines, PROGRAM, RunningPart, tool};

/// Writes to an image, freezes its file system and ends, with a process left that waits for it.
pub(crate) fn leave(directory: &Path) {
    let image = Image::create(&directory.join("image"));
    image.mount();
    image.write("old", 8 << 20);
    let target = image.target();
    tool("fsfreeze", &["-f", target.to_str().unwrap()]);
    let later = "echo later >$0/later &";
    tool("sh", &["-c", later, target.to_str().unwrap()]);
    std::thread::sleep(Duration::from_millis(500));
}

/// As [`leave`], and does not end.
pub(crate) fn hold(directory: &Path) {
    leave(directory);
    println!("frozen");
    std::thread::sleep(Duration::from_secs(600));
}

pub(crate) fn verify(directory: &Path) {
    let image = Image::at(&directory.join("image"));
    image.mount();
    let len = std::fs::metadata(image.target().join("old")).unwrap().len();
    assert_eq!(len, 8 << 20);
    image.open().umount().unwrap();
    image.verify_detached("after the end");
}

/// The sandbox thaws it, and ends as always: the process can be ended, and the image is unmounted.
pub(crate) fn left() {
    let directory = sandbox::directory();
    let started = Instant::now();
    let part = sandbox::sandboxed("frozen-leave", directory.path());
    RunningPart::start(part, false).succeed(Duration::from_secs(120));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    let part = sandbox::sandboxed("frozen-verify", directory.path());
    RunningPart::start(part, false).succeed(Duration::from_secs(120));
}

/// Launcher and daemon are killed meanwhile: what is left is thawed by the next clean-up, for until then neither the process
/// that waits can be killed nor the device removed.
pub(crate) fn killed() {
    let directory = sandbox::directory();
    let part = sandbox::sandboxed("frozen-hold", directory.path());
    let mut running = RunningPart::start(part, true);
    let lines = Lines::of(running.stdout());
    let said = lines.next(Duration::from_secs(120));
    assert_eq!(said.as_deref(), Some("frozen"), "{}", running.output());
    let daemon = sandbox::daemon_of(running.id()).expect("the sandbox has a daemon");
    let launcher = Pid::from_raw(running.id() as i32).unwrap();
    // Neither is there to clean up after the other.
    kill_process(daemon, Signal::STOP).unwrap();
    kill_process(launcher, Signal::KILL).unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
    let _ = running.finish(Duration::from_secs(60));
    let base = sandbox::base();
    tool(PROGRAM, &["clean", "--base", base.to_str().unwrap()]);
    running.left_nothing();
}
