//! Waiting for locks, and the signal libploop ends its own waits with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ploop::image::check;
use ploop::{Code, ErrorKind, Ploop, Size, device, durability, lock};
use rustix::fs::{FlockOperation, flock};

use crate::fixture::child::{child, child_for};
use crate::fixture::disk::{self, MOMENT};
use crate::fixture::harness::{Need, Test};
use crate::fixture::raw;
use crate::fixture::refused::refused;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_01_the_signal_kills_the_process,
            h0_01_an_application_s_handler_survives,
            h0_02_a_lock_of_another_process_ends_in_a_worker,
            h0_02_a_lock_file_is_replaced,
            ha_23_processes_make_their_first_operation_at_once,
            ha_23_handles_cross_a_fork,
            ha_23_threads_make_their_first_operation_at_once,
            ha_23_the_lock_file_is_removed_all_the_time,
            ha_23_programs_that_use_libploop_alone,
            ha_23_without_standard_streams,
            ha_24_lock_files_are_not_followed;
        &[Need::Root] =>
            h0_02_the_lock_of_all_devices_ends_in_a_worker,
            h0_02_a_lock_that_is_lost_to_a_race_ends_too;
    ]
}

/// Whether a thread of this process waits in `flock`.
fn waits_in_flock(tid: i32) -> bool {
    tid != 0
        && fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))
            .is_ok_and(|text| text.starts_with(&format!("{} ", libc::SYS_flock)))
}

/// The process in which C runs, if it waits in `flock`.
fn child_in_flock() -> Option<i32> {
    let parent = std::process::id().to_string();
    let waiting = fs::read_dir("/proc").unwrap().flatten().find(|entry| {
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let words = stat.rsplit_once(')').map_or("", |(_, words)| words);
        words.split_ascii_whitespace().nth(1) == Some(&*parent)
            && read("syscall").starts_with(&format!("{} ", libc::SYS_flock))
    })?;
    waiting.file_name().to_str()?.parse().ok()
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
/// the first to end restores the default action, and the other's timer kills the process. Under the
/// crate the handler and the timer are those of a process in which nothing else runs.
fn h0_01_the_signal_kills_the_process() {
    child("raw", overlap_and_signal).died_of(libc::SIGRTMIN());
    child("safe", |dir| {
        work_in_threads(dir);
        // What was there before, which is the default.
        assert_eq!(signal_action().sa_sigaction, libc::SIG_DFL);
        // A wait for a lock in each of two images.
        let images = ["0", "1"].map(|name| dir.join(name));
        let locks = images.each_ref().map(|dir| disk::lock(&disk::lock_of(dir)));
        let waits = images.each_ref().map(|dir| {
            let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
            thread::spawn(move || image.snapshot().unwrap())
        });
        thread::sleep(MOMENT);
        drop(locks);
        for wait in waits {
            wait.join().unwrap();
        }
        assert_eq!(signal_action().sa_sigaction, libc::SIG_DFL);
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
                let image = Ploop::open(disk::descriptor(&dir)).unwrap();
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
    let error = refused(result, ErrorKind::Locked);
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

/// libploop waits for its system-wide lock without any limit. The crate polls that too, and does not need
/// it to look.
fn h0_02_the_lock_of_all_devices_ends_in_a_worker() {
    child_for(Duration::from_secs(120), "safe", |dir| {
        let mut image = disk::create(dir);
        // Has the lock file made.
        image.snapshot().unwrap();
        let (path, base) = (disk::descriptor(dir), dir.join("root.hds"));
        let holder = device_lock();
        thread::spawn(move || {
            image.set_lock_timeout(Some(MOMENT));
            assert_locked(Instant::now(), image.snapshot(), &path);
            assert_locked(Instant::now(), image.discard_stat(), &path);
            assert!(!image.is_mounted().unwrap());
            assert_eq!(image.device().unwrap(), None);
            assert!(image.devices().unwrap().is_empty());
            assert_eq!(image.image_info().unwrap().size(), disk::SIZE);
            assert_eq!(device::find(base, None).unwrap(), None);
            image.top_delta_file().unwrap();
            drop(holder);
            image.snapshot().unwrap();
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

/// Between the crate's poll and libploop's own attempt the lock is free for a moment. A wait that
/// begins there is libploop's, which has a timer send a signal after 60 seconds. It is sent here at once.
fn h0_02_a_lock_that_is_lost_to_a_race_ends_too() {
    child("safe", |dir| {
        let mut image = disk::create(dir);
        image.top_delta_file().unwrap();
        // The poll comes before, and is not to be taken for the wait.
        image.set_lock_timeout(Some(Duration::from_secs(2)));
        let path = disk::lock_of(dir);
        // Takes and leaves the lock all the time, until C waits for it.
        let stop = &AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                loop {
                    let result = image.set_max_delta_size(Size::from_sectors(4096));
                    if stop.load(Ordering::Relaxed) {
                        return result;
                    }
                }
            });
            let (held, process) = loop {
                let held = disk::lock(&path);
                thread::sleep(Duration::from_micros(300));
                // A poll is inside the call for an instant only.
                let looks = (0..20).map_while(|_| {
                    let process = child_in_flock()?;
                    thread::sleep(Duration::from_millis(1));
                    Some(process)
                });
                let looks: Vec<i32> = looks.collect();
                if looks.len() == 20 {
                    break (held, looks[0]);
                }
                drop(held);
                // The worker goes on, from call to call.
                thread::sleep(Duration::from_millis(2));
            };
            stop.store(true, Ordering::Relaxed);
            let timers = fs::read_to_string(format!("/proc/{process}/timers")).unwrap();
            let signal = format!("signal: {}/", libc::SIGRTMIN());
            assert!(timers.contains(&signal), "no timer: {timers}");
            thread::sleep(MOMENT);
            assert!(!worker.is_finished());
            // SAFETY: sending a signal has no precondition.
            assert_eq!(unsafe { libc::kill(process, libc::SIGRTMIN()) }, 0);
            refused(worker.join().unwrap(), ErrorKind::Locked);
            drop(held);
        });
    })
    .succeeded();
}

/// The handle has the old file open, a process the new one. The limit is kept, whatever the old one was.
fn h0_02_a_lock_file_is_replaced() {
    child("safe", |dir| {
        let mut image = disk::create(dir);
        image.snapshot().unwrap();
        let (path, lck) = (disk::descriptor(dir), disk::lock_of(dir));
        fs::remove_file(&lck).unwrap();
        let holder = Holder::of(&lck);
        thread::spawn(move || {
            image.set_lock_timeout(Some(MOMENT));
            assert_locked(Instant::now(), image.snapshot(), &path);
            let mut new = Ploop::open(&path).unwrap();
            new.set_lock_timeout(Some(MOMENT));
            assert_locked(Instant::now(), new.descriptor(), &path);
            // While it is waited for.
            image.set_lock_timeout(None);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| image.snapshot());
                thread::sleep(MOMENT);
                assert!(!waiting.is_finished());
                fs::remove_file(&lck).unwrap();
                waiting.join().unwrap().unwrap();
            });
            drop(holder);
        })
        .join()
        .unwrap();
    })
    .succeeded();
}

/// A moment that all processes can wait for.
fn at_once(at: Instant) {
    while Instant::now() < at {
        std::hint::spin_loop();
    }
}

/// Runs `body` in so many processes that are forked here, each with its number, at the same time. How many
/// of them came to their end and had `true` for a result.
fn in_processes(count: usize, body: impl Fn(usize) -> bool) -> usize {
    let at = Instant::now() + Duration::from_millis(3);
    let start = |number| {
        // SAFETY: this process has no other threads that hold a lock which the child would need, and the child
        // ends without running anybody's destructors.
        match unsafe { libc::fork() } {
            0 => {
                at_once(at);
                // A busy machine is no failure.
                lock::set_timeout(Duration::from_secs(600));
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(number)));
                let code = if done.is_ok_and(|done| done) { 0 } else { 1 };
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(code) }
            }
            pid => pid,
        }
    };
    let children: Vec<libc::pid_t> = (0..count).map(start).collect();
    children
        .into_iter()
        .filter(|pid| {
            let mut status = 0;
            // SAFETY: the child is this process's own, and waited for once; the status outlives the call.
            assert_eq!(unsafe { libc::waitpid(*pid, &mut status, 0) }, *pid);
            status == 0
        })
        .count()
}

/// The image is sound, has these snapshots, and nothing lies about.
#[track_caller]
fn assert_whole(dir: &Path, snapshots: usize) {
    let report = check(disk::descriptor(dir));
    assert!(report.is_sound(), "{report}");
    let descriptor = ploop::Descriptor::open(disk::descriptor(dir)).unwrap();
    assert_eq!(descriptor.images.len(), 1 + snapshots);
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"root.hds"));
    names.sort();
    assert_eq!(names, ["DiskDescriptor.xml", "DiskDescriptor.xml.lck"]);
}

/// The directory of a new image in each round: a copy of one that is made in the first.
fn rounds(dir: &Path, count: usize) -> impl Iterator<Item = (usize, PathBuf)> {
    let original = dir.join("original");
    fs::create_dir(&original).unwrap();
    disk::create(&original).close();
    (0..count).map(move |round| {
        let copy = original.with_file_name(round.to_string());
        fs::create_dir(&copy).unwrap();
        for name in ["root.hds", "DiskDescriptor.xml"] {
            fs::copy(original.join(name), copy.join(name)).unwrap();
        }
        (round, copy)
    })
}

/// A missing lock file is made by libploop, and until then nobody holds it. The crate makes it first, and
/// holds a lock of its own from then on: two first operations are one after the other.
fn ha_23_processes_make_their_first_operation_at_once() {
    child("safe", |dir| {
        durability::set_sync(false);
        for (round, dir) in rounds(dir, 100) {
            if round % 3 == 0 {
                drop(disk::lock(&disk::lock_of(&dir)));
            }
            let count = if round % 2 == 0 { 2 } else { 4 };
            let done = in_processes(count, |_| {
                let mut image = Ploop::open(disk::descriptor(&dir)).unwrap();
                let guid = image.snapshot().unwrap();
                image.descriptor().unwrap().snapshot(guid).is_some()
            });
            assert_eq!(done, count, "round {round}");
            assert_whole(&dir, count);
            fs::remove_dir_all(&dir).unwrap();
        }
    })
    .succeeded();
}

/// Of a lock that is open in both, the child's would be the parent's.
fn ha_23_handles_cross_a_fork() {
    child("safe", |dir| {
        durability::set_sync(false);
        for (round, dir) in rounds(dir, 80) {
            let image = Ploop::open(disk::descriptor(&dir)).unwrap();
            image.descriptor().unwrap();
            let image = std::cell::RefCell::new(image);
            let done = in_processes(4, |number| {
                let mut image = image.borrow_mut();
                let guid = image.snapshot().unwrap();
                if number % 2 == 0 {
                    image.delete_snapshot(guid).unwrap();
                }
                true
            });
            assert_eq!(done, 4, "round {round}");
            assert_whole(&dir, 2);
            // It is the parent's as before.
            image.borrow_mut().snapshot().unwrap();
            fs::remove_dir_all(&dir).unwrap();
        }
        // Forked in the middle of an operation of another thread, which the child does not have.
        let mut image = disk::create(dir);
        image.snapshot().unwrap();
        let path = disk::descriptor(dir);
        let holder = Holder::of(&disk::lock_of(dir));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| image.snapshot());
            thread::sleep(MOMENT);
            let locked = in_processes(1, |_| {
                let mut image = Ploop::open(&path).unwrap();
                image.set_lock_timeout(Some(Duration::ZERO));
                let error = image.descriptor().unwrap_err();
                error.message().starts_with("another process")
            });
            assert_eq!(locked, 1);
            drop(holder);
            waiting.join().unwrap().unwrap();
        });
    })
    .succeeded();
}

fn ha_23_threads_make_their_first_operation_at_once() {
    child("safe", |dir| {
        durability::set_sync(false);
        for (_, dir) in rounds(dir, 60) {
            let link = dir.with_extension("link");
            std::os::unix::fs::symlink(&dir, &link).unwrap();
            let at = Instant::now() + Duration::from_millis(2);
            thread::scope(|scope| {
                for number in 0..4 {
                    let dir = if number % 2 == 0 { &dir } else { &link };
                    scope.spawn(move || {
                        at_once(at);
                        Ploop::open(disk::descriptor(dir))
                            .unwrap()
                            .snapshot()
                            .unwrap();
                    });
                }
            });
            assert_whole(&dir, 4);
            fs::remove_dir_all(&dir).unwrap();
        }
    })
    .succeeded();
}

/// libploop says so where its lock file is removed between its making it and its opening it.
fn until_done<T>(mut operation: impl FnMut() -> ploop::Result<T>) -> T {
    loop {
        match operation() {
            Ok(done) => return done,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }
}

/// Whatever becomes of libploop's lock, the crate's own keeps its users apart.
fn ha_23_the_lock_file_is_removed_all_the_time() {
    child("safe", |dir| {
        durability::set_sync(false);
        // Nobody takes turns at a lock.
        lock::set_timeout(Duration::from_secs(600));
        for (round, dir) in rounds(dir, 10) {
            let lck = disk::lock_of(&dir);
            let done = in_processes(4, |number| {
                if number == 0 {
                    let end = Instant::now() + Duration::from_millis(300);
                    while Instant::now() < end {
                        let _ = fs::remove_file(&lck);
                    }
                    return true;
                }
                let mut image = Ploop::open(disk::descriptor(&dir)).unwrap();
                for _ in 0..5 {
                    let guid = until_done(|| image.snapshot());
                    until_done(|| image.delete_snapshot(guid));
                }
                until_done(|| image.snapshot());
                true
            });
            assert_eq!(done, 4, "round {round}");
            Ploop::open(disk::descriptor(&dir))
                .unwrap()
                .descriptor()
                .unwrap();
            assert_whole(&dir, 3);
            fs::remove_dir_all(&dir).unwrap();
        }
    })
    .succeeded();
}

/// The lock file gets the number of a standard stream, which is another file in the process of C, and is given
/// back all the same.
fn ha_23_without_standard_streams() {
    child("safe", |dir| {
        drop(disk::create(dir));
        for stream in 0..=2 {
            // SAFETY: whoever has it open uses it no more.
            assert_eq!(unsafe { libc::close(stream) }, 0);
        }
        let begin = Instant::now();
        let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
        image.snapshot().unwrap();
        image.image_info().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30));
    })
    .succeeded();
}

/// They have libploop's lock alone, and come in between when it is handed over. What is reported as done is done.
fn ha_23_programs_that_use_libploop_alone() {
    child("safe", |dir| {
        durability::set_sync(false);
        drop(disk::create(dir));
        let path = disk::descriptor(dir);
        // Those two that use the crate say when they are through.
        let through = |number| dir.join(format!("through-{number}"));
        let done = in_processes(4, |number| {
            let made = |guid| {
                let descriptor = ploop::Descriptor::open(&path).unwrap();
                descriptor.snapshot(guid).is_some()
            };
            if number < 2 {
                // libploop waits for a minute, which on a busy machine can be too short.
                let patiently = |call: &dyn Fn() -> i32| loop {
                    let code = call();
                    if code != Code::LOCK.get() {
                        assert_eq!(code, 0, "{}", raw::last_error());
                        break;
                    }
                };
                let mut rounds = 0;
                while !(through(2).exists() && through(3).exists()) {
                    rounds += 1;
                    let handle = raw::Handle::open(&path);
                    patiently(&|| handle.set_max_delta_size(rounds));
                    thread::sleep(Duration::from_millis(number as u64 + 1));
                    if rounds % 10 == 0 && rounds < 200 {
                        patiently(&|| handle.snapshot());
                    }
                }
                return true;
            }
            for rounds in 0..9 {
                // Nobody else deletes this process's snapshots.
                let mut image = Ploop::open(&path).unwrap();
                let guid = image.snapshot().unwrap();
                assert!(made(guid));
                match rounds % 3 {
                    0 => image.delete_snapshot(guid).unwrap(),
                    1 => image.switch_snapshot(guid).unwrap(),
                    _ => {}
                }
                assert_eq!(made(guid), rounds % 3 != 0);
            }
            fs::write(through(number), "").unwrap();
            true
        });
        assert_eq!(done, 4);
        let report = check(&path);
        assert!(report.is_sound(), "{report}");
    })
    .succeeded();
}

/// libploop opens its lock file whatever it is, and makes what a link leads to.
fn ha_24_lock_files_are_not_followed() {
    child("safe", |dir| {
        let mut image = disk::create(dir);
        let victim = dir.join("victim");
        for name in ["DiskDescriptor.xml.lck", "DiskDescriptor.xml.op.lck"] {
            let lck = dir.join(name);
            let mut refused = |what: &str| {
                let error = image.snapshot().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
                assert_eq!(error.path(), Some(lck.as_path()), "{what}");
            };
            let _ = fs::remove_file(&lck);
            std::os::unix::fs::symlink(&victim, &lck).unwrap();
            refused("a link to nothing");
            assert!(!victim.exists());
            fs::write(&victim, "whole").unwrap();
            refused("a link");
            assert_eq!(fs::read(&victim).unwrap(), b"whole");
            fs::remove_file(&lck).unwrap();
            fs::create_dir(&lck).unwrap();
            refused("a directory");
            fs::remove_dir(&lck).unwrap();
            disk::make_fifo(&lck);
            refused("a pipe");
            fs::remove_file(&lck).unwrap();
            fs::remove_file(&victim).unwrap();
            image.snapshot().unwrap();
        }
    })
    .succeeded();
}
