//! What libploop does to the process that calls it happens in another one: hazards 0.1, 0.3, 0.8, 0.18, 0.19, 18, 34.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ploop::{DiscardParam, FormatVersion, Ploop};

use crate::fixture::child::child;
use crate::fixture::disk;
use crate::fixture::harness::Test;
use crate::stub::{self, NEEDS};
use crate::tests;

/// Emulators give the process of C a copy of the memory, so there C runs in a thread of this one, which shares signals,
/// directory and children with it.
fn has_own_process() -> bool {
    std::env::var_os("PLOOP_TESTS_UNDER_VALGRIND").is_none()
}

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = tests![
        NEEDS =>
            the_standard_streams_are_closed_and_others_opened,
            a_stray_child_ends_where_the_call_returns;
    ];
    if has_own_process() {
        tests.extend(tests![
            NEEDS =>
                signals_directory_and_mask_are_changed,
                a_thread_is_left_behind,
                everybody_is_signalled_and_waited_for,
                c_has_no_file_of_the_program;
        ]);
    }
    tests
}

fn image() -> (tempfile::TempDir, Ploop) {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = stub::image(dir.path(), FormatVersion::V2, 1);
    (dir, image)
}

fn streams() -> [std::path::PathBuf; 3] {
    [0, 1, 2].map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap())
}

/// 0.18, 19, 20.
fn the_standard_streams_are_closed_and_others_opened() {
    let (_dir, mut image) = image();
    let before = streams();
    stub::script("ploop_create_snapshot does streams\n");
    image.snapshot().unwrap();
    assert_eq!(streams(), before);
}

/// 0.3, 21: the program goes on once.
fn a_stray_child_ends_where_the_call_returns() {
    let (dir, mut image) = image();
    let count = dir.path().join("count");
    stub::script("ploop_create_snapshot does fork\nploop_create_snapshot fails 12\n");
    let error = image.snapshot().unwrap_err();
    assert_eq!(error.code(), Some(12), "{error}");
    // A second copy of this program would add a line of its own.
    use std::io::Write;
    let file = fs::File::options().create(true).append(true).open(&count);
    writeln!(file.unwrap(), "{}", std::process::id()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let lines = fs::read_to_string(&count).unwrap();
    assert_eq!(lines, format!("{}\n", std::process::id()));
    // Nor does the child unlock what the program has locked, or end what it has begun.
    stub::script("");
    image.snapshot().unwrap();
}

/// 0.1, 0.2.
fn signals_directory_and_mask_are_changed() {
    fn action(signal: i32) -> libc::sighandler_t {
        // SAFETY: `sigaction` is plain data, which the call fills in.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            action.sa_sigaction
        }
    }
    let state = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = status
            .lines()
            .filter(|line| line.starts_with("SigBlk") || line.starts_with("Umask"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        let signals = [libc::SIGRTMIN(), libc::SIGALRM, libc::SIGCHLD].map(action);
        (std::env::current_dir().unwrap(), lines, signals)
    };
    let (_dir, mut image) = image();
    let before = state();
    stub::script(
        "ploop_create_snapshot does signals\nploop_create_snapshot does nothing\nploop_create_snapshot fails 12\n",
    );
    assert_eq!(image.snapshot().unwrap_err().code(), Some(12));
    assert_eq!(state(), before);
    // Its timer is that of a process that has ended.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state(), before);
}

/// 18.
fn a_thread_is_left_behind() {
    // In a process without the threads of other tests.
    child("safe", |_| {
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let (_dir, mut image) = image();
        let before = threads();
        stub::script("ploop_create_snapshot does thread\n");
        image.snapshot().unwrap();
        assert_eq!(threads(), before);
    })
    .succeeded();
}

/// 0.19, 22: a discard that cannot fork does it.
fn everybody_is_signalled_and_waited_for() {
    let (_dir, mut image) = image();
    let mut other = std::process::Command::new("true").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    stub::script("ploop_discard does everybody\nploop_discard fails 0\n");
    let error = image.discard(&DiscardParam::new()).unwrap_err();
    let message = error.message();
    assert!(
        message.contains("kill: -1 Operation not permitted"),
        "{error}"
    );
    assert!(message.contains("wait: -1 No child processes"), "{error}");
    assert!(other.wait().unwrap().success());
}

/// 34: a lock or a device that the program has open is not open in C, nor in a tool that it starts.
fn c_has_no_file_of_the_program() {
    let (dir, mut image) = image();
    let file = fs::File::create(dir.path().join("open")).unwrap();
    let locked = disk::lock(&dir.path().join("open"));
    assert!(file.as_raw_fd() > 2);
    stub::script("ploop_create_snapshot does files\n");
    let error = image.snapshot().unwrap_err();
    assert_eq!(error.message(), "open: 0 1 2", "{error}");
    drop(locked);
}
