//! What libploop does to the process around it: descriptors, error texts, children, signals, settings.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ploop::{ClusterSize, CreateParam, ErrorKind, ImageMode, Ploop, Size, copy, log, sys};

use crate::fixture::child::{Ending, child};
use crate::fixture::disk;
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::is_since;
use crate::fixture::pipe::pipe;
use crate::fixture::refused::refused;
use crate::fixture::{mounts, raw};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_04_an_error_text_outlives_its_call,
            h0_07_h4_02_h4_34_a_handle_in_two_threads,
            h0_17_cancelling_sticks_to_the_wrong_thread,
            h0_18_h4_19_raw_creation_closes_twice,
            ha_4_the_log_file_is_exchanged_under_other_threads,
            ha_5_feedback_to_nobody_kills;
        &[Need::Root] =>
            h0_18_h4_20_a_conversion_closes_standard_input,
            ha_56_there_is_no_room_for_a_process;
        &[Need::Root, Need::NoDriver] =>
            h4_34_descriptors_are_left_open;
        &[Need::Root, Need::Mounts, Need::NoDriver] =>
            h0_03_h4_21_a_missing_tool_makes_a_second_program;
    ]
}

/// The text of a failure stays, and some later failures write none. The crate has a text for each call.
fn h0_04_an_error_text_outlives_its_call() {
    let fail = |dir: &Path| {
        let mut handle = std::ptr::null_mut();
        let missing = raw::text(dir.join("needle.xml"));
        // SAFETY: the path is terminated, and `handle` outlives the call.
        let code = unsafe { sys::ploop_open_dd(&mut handle, missing.as_ptr()) };
        assert_eq!(code, sys::SYSEXIT_DISKDESCR);
        assert!(raw::last_error().contains("needle"));
    };
    child("raw", |dir| {
        // Its first call has something to say of the driver.
        // SAFETY: the function takes nothing.
        unsafe { sys::ploop_is_large_disk_supported() };
        fail(dir);
        // An unknown mode: a failure without a word.
        let code = raw::create_image(&dir.join("root.hds"), 2048, |param| param.mode = 9);
        assert_eq!(code, sys::SYSEXIT_CREAT);
        assert!(raw::last_error().contains("needle"));
    })
    .succeeded();
    child("safe", |dir| {
        let image = disk::create(dir);
        // A note that is short makes libploop fail without a word.
        let (reader, mut writer) = pipe();
        writer.write_all(b"short").unwrap();
        drop(writer);
        fail(dir);
        let error = copy::receive(dir.join("copy"), reader, None).unwrap_err();
        assert!(!error.to_string().contains("needle"), "{error}");
        fail(dir);
        let error = Ploop::open(dir.join("other.xml")).unwrap_err();
        assert!(error.message().contains("other.xml"), "{error}");
        assert!(!error.to_string().contains("needle"), "{error}");
        fail(dir);
        image.top_delta_file().unwrap();
        // What others do with libploop is none of the crate's business.
        assert!(raw::last_error().contains("needle"));
    })
    .succeeded();
}

/// One handle in two threads corrupts the heap within milliseconds. A [`Ploop`] is `Send` and not
/// `Sync`, which the compiler checks; handles of one image take turns.
fn h0_07_h4_02_h4_34_a_handle_in_two_threads() {
    trait IsSync<Marker> {
        const NO: bool = true;
    }
    struct Yes;
    impl<T: ?Sized> IsSync<()> for T {}
    impl<T: ?Sized + Sync> IsSync<Yes> for T {}
    // Would be ambiguous if it were `Sync`.
    const { assert!(<Ploop as IsSync<_>>::NO) };
    fn is_send<T: Send>() {}
    is_send::<Ploop>();

    child("raw", |dir| {
        assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| ()), 0);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let address = handle.as_ptr() as usize;
        let calls: &'static AtomicU32 = Box::leak(Box::default());
        for _ in 0..4 {
            thread::spawn(move || {
                let mut out = [0; 4096];
                loop {
                    // SAFETY: none: the handle is used by other threads.
                    unsafe {
                        sys::ploop_get_top_delta_fname(address as *mut _, out.as_mut_ptr(), 4096)
                    };
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut before = 0;
        loop {
            thread::sleep(Duration::from_secs(3));
            let now = calls.load(Ordering::Relaxed);
            if now == before {
                // One thread wrote over the other's descriptor of the lock, which stays locked.
                std::process::abort();
            }
            before = now;
        }
    })
    .crashed();
    child("safe", |dir| {
        disk::create(dir);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let image = Ploop::open(disk::descriptor(dir)).unwrap();
                    for _ in 0..300 {
                        assert_eq!(image.top_delta_file().unwrap(), dir.join("root.hds"));
                    }
                });
            }
        });
        // Moving one is fine.
        let image = Ploop::open(disk::descriptor(dir)).unwrap();
        image.top_delta_file().unwrap();
        thread::spawn(move || image.top_delta_file().unwrap())
            .join()
            .unwrap();
    })
    .succeeded();
}

/// Cancelling from another thread does nothing to the operation, and fails the *caller's* next
/// creation. The crate does not offer it; what others do with it stays in their threads.
fn h0_17_cancelling_sticks_to_the_wrong_thread() {
    child("raw", |dir| {
        // SAFETY: the function takes nothing.
        unsafe { sys::ploop_cancel_operation() };
        let code = raw::create_image(&dir.join("root.hds"), 2048, |param| {
            param.mode = sys::PLOOP_RAW_MODE;
        });
        assert_eq!(code, sys::SYSEXIT_CREAT);
    })
    .succeeded();
    child("safe", |dir| {
        // SAFETY: the function takes nothing.
        thread::spawn(|| unsafe { sys::ploop_cancel_operation() })
            .join()
            .unwrap();
        Ploop::create(&disk::param(dir).mode(ImageMode::Preallocated)).unwrap();
    })
    .succeeded();
}

/// Where there is no memory for the process of C, that is an error of this call and says nothing of the next.
fn ha_56_there_is_no_room_for_a_process() {
    child("safe", |dir| {
        // Not by a call of this kind, which leaves its stack to the next.
        assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| {}), 0);
        let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
        let limit = |bytes: libc::rlim_t| {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: the limit outlives the call.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        };
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
        let mut refused = 0;
        // With less, it is the program that cannot allocate.
        for room in 3..16u64 {
            limit(pages * 4096 + (room << 20));
            if image.snapshot().is_err() {
                refused += 1;
            }
        }
        assert!(refused > 2, "{refused}");
        limit(libc::RLIM_INFINITY);
        let guid = image.snapshot().unwrap();
        image.switch_snapshot(guid).unwrap();
        let report = ploop::image::check(disk::descriptor(dir));
        assert!(report.is_sound(), "{report}");
    })
    .succeeded();
}

/// Opens and closes descriptors as fast as it can while `work` runs; how often somebody else had
/// closed one meanwhile. `work` sees the number grow.
fn stolen_descriptors(work: impl FnOnce(&AtomicU32)) -> u32 {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, stolen) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: plain system calls on a number that this loop made. Where somebody closed
                // it, the second close is the same mistake once more, in a process made for it.
                unsafe {
                    let fd = libc::dup(2);
                    if fd >= 0 && libc::close(fd) != 0 {
                        stolen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        // After a panic, too.
        let _stop = Stop(&stop);
        work(&stolen);
    });
    stolen.into_inner()
}

/// Creating a raw image closes its descriptor twice; between the two another thread may have got the
/// number. The crate creates an expanded image and converts it.
fn h0_18_h4_19_raw_creation_closes_twice() {
    child("raw", |dir| {
        let stolen = stolen_descriptors(|stolen| {
            for n in 0..3000 {
                if stolen.load(Ordering::Relaxed) > 0 {
                    break;
                }
                let dir = dir.join("raw");
                fs::create_dir(&dir).unwrap();
                let code = raw::create_image(&dir.join("root.hds"), 128, |param| {
                    param.mode = sys::PLOOP_RAW_MODE;
                });
                // The other thread may be the one that loses.
                assert!(code == 0 || n > 0);
                fs::remove_dir_all(&dir).unwrap();
            }
        });
        assert!(stolen > 0, "never seen");
    })
    .succeeded();
    child("safe", |dir| {
        let stolen = stolen_descriptors(|_| {
            for n in 0..12 {
                let dir = dir.join(n.to_string());
                fs::create_dir(&dir).unwrap();
                let param = CreateParam::new(dir.join("root.hds"), Size::from_kib(256))
                    .cluster(disk::cluster())
                    .mode(ImageMode::Raw)
                    .fs(None);
                let image = Ploop::create(&param).unwrap();
                assert_eq!(image.descriptor().unwrap().mode, ImageMode::Raw);
            }
        });
        assert_eq!(stolen, 0);
    })
    .succeeded();
}

/// A conversion to raw that gets no memory closes descriptor 0, as an online merge does. The crate
/// gives it back.
fn h0_18_h4_20_a_conversion_closes_standard_input() {
    // Clusters of 64 MiB, and memory for one of the two buffers.
    let prepare = |dir: &Path| {
        let cluster = ClusterSize::from_bytes(64 << 20).unwrap();
        let param = CreateParam::new(dir.join("root.hds"), Size::from_mib(64)).cluster(cluster);
        let image = Ploop::create(&param.fs(None)).unwrap();
        image.is_mounted().unwrap();
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
        let limit = libc::rlimit {
            rlim_cur: pages * 4096 + (100 << 20),
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the limit outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        image
    };
    // SAFETY: asking for a descriptor's flags has no precondition.
    let stdin_is_open = || unsafe { libc::fcntl(0, libc::F_GETFD) } != -1;
    child("raw", |dir| {
        prepare(dir);
        assert!(stdin_is_open());
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_ne!(handle.convert(sys::PLOOP_RAW_MODE), 0);
        assert!(!stdin_is_open());
    })
    .succeeded();
    child("safe", |dir| {
        let mut image = prepare(dir);
        image.convert(ImageMode::Raw).unwrap_err();
        assert!(stdin_is_open());
        assert_eq!(image.descriptor().unwrap().mode, ImageMode::Expanded);
    })
    .succeeded();
}

/// The child that could not start a tool comes back as a second copy of the program. The crate looks
/// for the tools first. With none to be found, and something that looks like the driver, it says so.
fn h0_03_h4_21_a_missing_tool_makes_a_second_program() {
    child("safe", |dir| {
        mounts::private(|| {
            let driver = Path::new("/proc");
            mounts::tmpfs(driver, 1 << 20);
            fs::create_dir(driver.join("vz")).unwrap();
            fs::write(driver.join("vz/ploop_minor"), "0\n").unwrap();
            for hidden in ["/usr/sbin", "/sbin"] {
                mounts::tmpfs(&fs::canonicalize(hidden).unwrap(), 1 << 20);
            }
            let param = CreateParam::new(dir.join("root.hds"), Size::from_mib(512));
            let error = Ploop::create(&param).err().unwrap();
            println!("came back: {error}");
            assert_eq!(error.kind(), ErrorKind::Tool, "{error}");
            assert!(error.message().contains("parted"), "{error}");
            assert!(error.message().contains("mkfs.ext4"), "{error}");
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        });
    })
    .succeeded()
    .said("came back", 1);
}

/// Exchanging the log file closes the old one under a thread that writes to it. The crate has the file
/// itself.
fn ha_4_the_log_file_is_exchanged_under_other_threads() {
    child("safe", |dir| {
        let stop = AtomicBool::new(false);
        ploop::lock::set_timeout(Duration::from_secs(30));
        thread::scope(|scope| {
            for n in 0..3 {
                let dir = dir.join(n.to_string());
                fs::create_dir(&dir).unwrap();
                disk::create(&dir);
                let stop = &stop;
                scope.spawn(move || {
                    // Every attempt logs the error.
                    while !stop.load(Ordering::Relaxed) {
                        Ploop::open(dir.join("missing.xml")).unwrap_err();
                        Ploop::open(disk::descriptor(&dir))
                            .unwrap()
                            .top_delta_file()
                            .unwrap();
                    }
                });
            }
            log::set_log_level(3);
            for n in 0..200 {
                let file = dir.join(format!("{}.log", n % 2));
                log::set_log_file((n % 3 != 0).then_some(&*file)).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
        });
        log::set_log_file(None).unwrap();
        let written = fs::read_to_string(dir.join("1.log")).unwrap();
        assert!(written.contains("missing.xml"));
    })
    .succeeded();
}

fn packet(size: u32, data: &[u8]) -> Vec<u8> {
    let mut packet = 0x4cc0_ac3du32.to_ne_bytes().to_vec();
    packet.extend(size.to_ne_bytes());
    packet.extend(0u64.to_ne_bytes());
    packet.extend(data);
    packet
}

/// Where the sender is gone, writing the feedback raises SIGPIPE, which kills a program that did not
/// say otherwise. (Rust programs do; C programs with a Rust library do not.) The crate makes it an
/// error.
fn ha_5_feedback_to_nobody_kills() {
    let prepare = || {
        // SAFETY: the default action is what a C program begins with.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (input, mut sender) = pipe();
        sender.write_all(&packet(4, &[0; 4])).unwrap();
        sender.write_all(&packet(0, &[])).unwrap();
        let (_, feedback) = pipe();
        (input, sender, feedback)
    };
    child("raw", |dir| {
        let (input, _sender, feedback) = prepare();
        let file = raw::text(dir.join("copy"));
        let mut param = sys::ploop_copy_receive_param {
            file: file.as_ptr(),
            ifd: input.as_raw_fd(),
            feedback_fd: feedback.as_raw_fd(),
            ..Default::default()
        };
        // SAFETY: the path is terminated, and the descriptors are open.
        #[allow(deprecated)]
        let code = unsafe { sys::ploop_copy_receive(&mut param) };
        assert_eq!(code, sys::SYSEXIT_PARAM);
    })
    .ended(match is_since([7, 0, 235]) {
        true => Ending::Success,
        false => Ending::Signal(libc::SIGPIPE),
    });
    child("safe", |dir| {
        let (input, _sender, feedback) = prepare();
        let begin = Instant::now();
        let file = dir.join("copy");
        let error = refused(
            copy::receive(&file, input, Some(feedback.as_fd())),
            ErrorKind::Io,
        );
        assert!(error.to_string().contains("Broken pipe"), "{error}");
        assert!(!file.exists());
        assert!(begin.elapsed() < Duration::from_secs(30));
        // The signal is neither pending nor blocked afterwards: the next one is the program's own.
        assert_eq!(pending_and_blocked(libc::SIGPIPE), (false, false));
    })
    .succeeded();
    child("afterwards", |dir| {
        let (input, _sender, feedback) = prepare();
        copy::receive(dir.join("copy"), input, Some(feedback.as_fd())).unwrap_err();
        let (_, nobody) = pipe();
        let _ = (&nobody).write_all(b"x");
    })
    .died_of(libc::SIGPIPE);
    child("works", |dir| {
        let (input, _sender, _) = prepare();
        let (answer, feedback) = pipe();
        copy::receive(dir.join("copy"), input, Some(feedback.as_fd())).unwrap();
        drop(feedback);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut { answer }, &mut text).unwrap();
        assert!(text.starts_with("SUCCESS"), "{text}");
        File::open(dir.join("copy")).unwrap();
    })
    .succeeded();
}

fn pending_and_blocked(signal: i32) -> (bool, bool) {
    // SAFETY: signal sets are plain data, which the calls fill in.
    unsafe {
        let (mut pending, mut blocked) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
        (
            libc::sigismember(&pending, signal) == 1,
            libc::sigismember(&blocked, signal) == 1,
        )
    }
}

/// Descriptors that a failure leaves open would add up in a daemon, with their locks.
fn h4_34_descriptors_are_left_open() {
    child("safe", |dir| {
        let (mut image, guids) = disk::with_snapshots(dir, 2);
        let mut work = |dir: &Path| {
            image.image_info().unwrap();
            image.is_mounted().unwrap();
            image.snapshot().unwrap();
            image.delete_top_delta().unwrap();
            image.mount(&ploop::MountParam::new()).unwrap_err();
            image.umount().unwrap_err();
            let _ = ploop::fs_info(image.path());
            image.switch_snapshot(ploop::Guid::generate()).unwrap_err();
            // Damaged within, so that libploop finds out.
            let top = image.top_delta_file().unwrap();
            let good = fs::read(&top).unwrap();
            disk::write_first_cluster(&top, 7);
            disk::write_header(&top, 64, 128 * 4000);
            let target = ploop::MergeTarget::Top;
            image.merge(&ploop::MergeParam::new(target)).unwrap_err();
            let new = ploop::MergeParam::new(target).new_delta(dir.join("new.hds"));
            image.merge(&new).unwrap_err();
            fs::write(&top, good).unwrap();
            // A repaired or a refused one.
            disk::write_header(&top, disk::HEADER_IN_USE, disk::IN_USE);
            let _ = image.image_info();
            disk::write_header(&top, disk::HEADER_IN_USE, 0);
            Ploop::open(dir.join("missing")).unwrap_err();
            image.switch_snapshot(guids[1]).unwrap();
        };
        work(dir);
        let count = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = count();
        for _ in 0..5 {
            work(dir);
        }
        assert_eq!(count(), before);
    })
    .succeeded();
}
