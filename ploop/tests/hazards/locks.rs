//! Waiting for locks, and the signal libploop ends its own waits with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ploop::{ErrorKind, Ploop, device, lock};
use rustix::fs::{FlockOperation, flock};

use crate::fixture::child::{child, child_for};
use crate::fixture::disk::{self, MOMENT};
use crate::fixture::harness::{Need, Test};
use crate::fixture::raw;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_01_the_signal_kills_the_process,
            h0_01_an_application_s_handler_survives,
            h0_02_a_lock_of_another_process_ends_in_a_worker;
        &[Need::Root] =>
            h0_02_the_lock_of_all_devices_ends_in_a_worker,
            h0_02_look_ups_without_handle_end_too;
        &[Need::Root] =>
            h0_02_a_lock_that_is_lost_to_a_race_ends_too;
    ]
}

/// Whether a thread of this process waits in `flock`.
fn waits_in_flock(tid: i32) -> bool {
    tid != 0
        && fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))
            .is_ok_and(|text| text.starts_with(&format!("{} ", libc::SYS_flock)))
}

fn signal_action() -> libc::sigaction {
    // SAFETY: `sigaction` is plain data, which the call fills in.
    unsafe {
        let mut action = std::mem::zeroed();
        libc::sigaction(libc::SIGRTMIN(), std::ptr::null(), &mut action);
        action
    }
}

/// Has libploop take two locks in two threads so that the later wait outlives the earlier, and sends
/// the signal of the timer while the later one waits.
fn overlap_and_signal(dir: &Path) {
    let locked = ["a", "b"].map(|name| {
        let dir = dir.join(name);
        (raw_image(&dir), disk::lock(&disk::lock_of(&dir)))
    });
    let [(xml_a, lock_a), (xml_b, lock_b)] = locked;
    let start = |xml: PathBuf| {
        let tid: &'static AtomicI32 = Box::leak(Box::default());
        let thread = thread::spawn(move || {
            // SAFETY: `gettid` has no precondition and cannot fail.
            tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            raw::Handle::open(&xml).top_delta().0
        });
        disk::until("the thread waits for the lock", || {
            waits_in_flock(tid.load(Ordering::Relaxed))
        });
        thread
    };
    let a = start(xml_a);
    let b = start(xml_b);
    drop(lock_a);
    assert_eq!(a.join().unwrap(), 0);
    // The first thread has restored the action from before both; the second one's timer is armed.
    // SAFETY: sending a signal to the own process has no precondition.
    unsafe { libc::kill(libc::getpid(), libc::SIGRTMIN()) };
    drop(lock_b);
    assert_eq!(b.join().unwrap(), 0);
}

fn raw_image(dir: &Path) -> PathBuf {
    fs::create_dir(dir).unwrap();
    assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| ()), 0);
    disk::descriptor(dir)
}

/// Each wait for a descriptor's lock saves and restores the handler of SIGRTMIN; of two that overlap,
/// the first to end restores the default action, and the other's timer kills the process. The crate
/// installs a handler that does nothing before the first call.
fn h0_01_the_signal_kills_the_process() {
    child("raw", overlap_and_signal).died_of(libc::SIGRTMIN());
    child("safe", |dir| {
        fs::create_dir(dir.join("own")).unwrap();
        disk::create(&dir.join("own"));
        overlap_and_signal(dir);
    })
    .succeeded();
    child("safe in threads", |dir| {
        work_in_threads(dir);
        // SAFETY: raising a signal has no precondition.
        unsafe { libc::raise(libc::SIGRTMIN()) };
    })
    .succeeded();
}

/// Eight threads on four images.
fn work_in_threads(dir: &Path) {
    thread::scope(|scope| {
        for n in 0..8 {
            let dir = dir.join((n % 4).to_string());
            if n < 4 {
                fs::create_dir(&dir).unwrap();
                disk::create(&dir);
            }
            scope.spawn(move || {
                let mut image = Ploop::open(disk::descriptor(&dir)).unwrap();
                for _ in 0..100 {
                    image.top_delta_file().unwrap();
                }
            });
        }
    });
}

/// A handler of the application's own is not replaced, nor lost between threads.
fn h0_01_an_application_s_handler_survives() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_signal: libc::c_int) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }
    child("safe", |dir| {
        let handler = count as *const () as libc::sighandler_t;
        // SAFETY: the handler only adds to an atomic number.
        unsafe {
            let mut action = signal_action();
            action.sa_sigaction = handler;
            libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut());
        }
        for round in 0..5 {
            let dir = dir.join(format!("round{round}"));
            fs::create_dir(&dir).unwrap();
            work_in_threads(&dir);
            assert_eq!(signal_action().sa_sigaction, handler);
        }
        // SAFETY: raising a signal has no precondition.
        unsafe { libc::raise(libc::SIGRTMIN()) };
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    })
    .succeeded();
}

#[track_caller]
fn assert_locked<T: std::fmt::Debug>(begin: Instant, result: ploop::Result<T>, path: &Path) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert_eq!(error.path(), Some(path), "{error}");
    let waited = begin.elapsed();
    assert!(waited >= MOMENT, "{waited:?}");
    assert!(waited < Duration::from_secs(30), "{waited:?}");
}

/// A process that holds a lock until it is told to end.
struct Holder(std::process::Child);

impl Holder {
    fn of(path: &Path) -> Holder {
        // The shell keeps the lock it was started with.
        let lock = disk::lock(path);
        let child = std::process::Command::new("sleep")
            .arg("600")
            .stdin(lock)
            .spawn()
            .unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// libploop's limit of 60 seconds is a signal that the main thread gets, so a wait in another thread
/// has no end. The crate polls.
fn h0_02_a_lock_of_another_process_ends_in_a_worker() {
    child("safe", |dir| {
        let mut image = disk::create(dir);
        image.top_delta_file().unwrap();
        let path = disk::descriptor(dir);
        let holder = Holder::of(&disk::lock_of(dir));
        thread::spawn(move || {
            lock::set_timeout(MOMENT);
            let begin = Instant::now();
            assert_locked(begin, image.top_delta_file(), &path);
            assert_locked(Instant::now(), image.base_delta_file(), &path);
            assert_locked(Instant::now(), image.descriptor(), &path);
            assert_locked(Instant::now(), image.snapshot(), &path);
            assert_locked(Instant::now(), image.umount(), &path);
            assert_locked(Instant::now(), image.image_info(), &path);
            // The handle's own limit comes first.
            lock::set_timeout(Duration::from_secs(600));
            image.set_lock_timeout(Some(MOMENT));
            assert_locked(Instant::now(), image.top_delta_file(), &path);
            drop(holder);
            image.top_delta_file().unwrap();
        })
        .join()
        .unwrap();
    })
    .succeeded();
}

const DEVICE_LOCK: &str = "/var/lock/ploop/ploop.lck";

/// libploop waits for its system-wide lock without any limit. The crate polls that too.
fn h0_02_the_lock_of_all_devices_ends_in_a_worker() {
    child_for(Duration::from_secs(120), "safe", |dir| {
        let mut image = disk::create(dir);
        // Has the lock file made.
        image.is_mounted().unwrap();
        let path = disk::descriptor(dir);
        let holder = device_lock();
        thread::spawn(move || {
            image.set_lock_timeout(Some(MOMENT));
            assert_locked(Instant::now(), image.is_mounted(), &path);
            assert_locked(Instant::now(), image.device(), &path);
            assert_locked(Instant::now(), image.devices(), &path);
            assert_locked(Instant::now(), image.image_info(), &path);
            assert_locked(Instant::now(), image.snapshot(), &path);
            // This one does not look for a device.
            image.top_delta_file().unwrap();
            drop(holder);
            image.is_mounted().unwrap();
        })
        .join()
        .unwrap();
    })
    .succeeded();
}

/// Other tests need the lock of all devices too, for a moment at a time.
fn device_lock() -> File {
    let file = File::options().write(true).open(DEVICE_LOCK).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

/// As above, for the look-up that has no handle to take a limit from.
fn h0_02_look_ups_without_handle_end_too() {
    child_for(Duration::from_secs(120), "safe", |dir| {
        disk::create(dir).is_mounted().unwrap();
        let base = dir.join("root.hds");
        let holder = device_lock();
        thread::spawn(move || {
            lock::set_timeout(MOMENT);
            assert_locked(Instant::now(), device::find(&base, None), &base);
            drop(holder);
            lock::set_timeout(Duration::from_secs(60));
            assert_eq!(device::find(&base, None).unwrap(), None);
        })
        .join()
        .unwrap();
    })
    .succeeded();
}

/// Between the crate's poll and libploop's own attempt the lock is free for a moment. A wait that
/// begins there ends after libploop's own 60 seconds.
fn h0_02_a_lock_that_is_lost_to_a_race_ends_too() {
    child_for(Duration::from_secs(300), "safe", |dir| {
        let mut image = disk::create(dir);
        image.top_delta_file().unwrap();
        // The poll comes before, and is not to be taken for the wait.
        image.set_lock_timeout(Some(Duration::from_secs(2)));
        let path = disk::lock_of(dir);
        // Takes and leaves the lock all the time, until a look shows that C waits for it.
        let tid: &'static AtomicI32 = Box::leak(Box::default());
        let worker = thread::spawn(move || {
            // SAFETY: `gettid` has no precondition and cannot fail.
            tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            loop {
                let begin = Instant::now();
                let result = image.top_delta_file();
                if begin.elapsed() > Duration::from_secs(30) {
                    return (begin.elapsed(), result);
                }
            }
        });
        let waits = || waits_in_flock(tid.load(Ordering::Relaxed));
        let held = loop {
            let held = disk::lock(&path);
            thread::sleep(Duration::from_micros(300));
            // A poll is inside the call for an instant only.
            if (0..20).all(|_| {
                let waits = waits();
                thread::sleep(Duration::from_millis(u64::from(waits)));
                waits
            }) {
                break held;
            }
            drop(held);
            // The worker goes on, from call to call.
            thread::sleep(Duration::from_millis(2));
        };
        let (waited, result) = worker.join().unwrap();
        drop(held);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Locked);
        assert!(waited < Duration::from_secs(70), "{waited:?}");
    })
    .succeeded();
}
