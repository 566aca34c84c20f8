//! A program ends while its file system is frozen.

use std::path::Path;
use std::time::{Duration, Instant};

use super::image::Image;
use super::sandbox::{self, RunningPart, tool};

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
    RunningPart::start(part, false).succeed(Duration::from_secs(60));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let part = sandbox::sandboxed("frozen-verify", directory.path());
    RunningPart::start(part, false).succeed(Duration::from_secs(60));
}
