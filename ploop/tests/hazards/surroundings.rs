//! What surrounds libploop in a process: allocator, children, timers, limits, output.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ploop::{
    CreateParam, DiscardParam, Error, ErrorKind, Guid, MergeParam, MergeTarget, MountParam, Ploop,
    ResizeMode, Result, Size, SwitchFlag, log,
};

use crate::fixture::child::child_for;
use crate::fixture::disk;
use crate::fixture::harness::{Need, Test};
use crate::fixture::pipe::pipe;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_08_copies_at_the_end_of_the_heap,
            h0_08_copies_at_the_end_of_any_heap,
            ha_40_the_log_may_be_any_file,
            ha_41_a_file_too_long_for_the_process;
        &[Need::Driver, Need::Root] =>
            ha_8_children_that_are_not_waited_for,
            ha_42_children_that_others_wait_for,
            ha_43_a_timer_interrupts,
            ha_44_the_trim_process_is_killed,
            ha_46_a_discard_after_a_killed_one,
            ha_47_a_mount_that_fails_late,
            ha_45_nothing_is_printed,
            ha_45_what_a_tool_said_is_in_the_error;
    ]
}

const LIMIT: Duration = Duration::from_secs(240);

/// Has libploop copy the paths of many images, again and again.
fn work_with_many_snapshots(dir: &Path, rounds: usize) {
    fs::create_dir(dir).unwrap();
    let (mut image, guids) = disk::with_many_snapshots(dir, 110);
    for _ in 0..rounds {
        let snapshot = image.snapshot().unwrap();
        image.image_info().unwrap();
        image.top_delta_file().unwrap();
        image.is_mounted().unwrap();
        image.switch_snapshot(snapshot).unwrap();
        let kept = image
            .switch_snapshot_with(snapshot, SwitchFlag::SKIP_DESTROY)
            .unwrap()
            .unwrap();
        image.delete_snapshot(kept).unwrap();
        let second = image.snapshot().unwrap();
        image
            .merge(&MergeParam::new(MergeTarget::Snapshot(second)))
            .unwrap();
        image.delete_snapshot(second).unwrap();
    }
    assert_eq!(image.descriptor().unwrap().parent(guids[1]), Some(guids[0]));
}

/// libploop reads 4096 bytes from its own copies of paths, and one of them lies at the end of the heap, if
/// the heap cannot grow.
fn h0_08_copies_at_the_end_of_the_heap() {
    child_for(LIMIT, "safe", |dir| {
        // SAFETY: a page without access where nothing is.
        unsafe {
            let end = (libc::sbrk(0).addr() + 4095) & !4095;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let wanted = std::ptr::with_exposed_provenance_mut(end);
            let page = libc::mmap(wanted, 4096, libc::PROT_NONE, flags, -1, 0);
            assert_eq!(page, wanted);
        }
        work_with_many_snapshots(&dir.join("a"), 8);
    })
    .succeeded();
}

/// The same where each block has pages of its own, and where heaps are short, in threads.
fn h0_08_copies_at_the_end_of_any_heap() {
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_TOP_PAD: i32 = -2;
    const M_MMAP_THRESHOLD: i32 = -3;
    const M_MMAP_MAX: i32 = -4;
    const M_ARENA_MAX: i32 = -8;
    for (name, threshold, arenas) in [("0", 0, 0), ("4096", 4096, 0), ("one heap", 65536, 1)] {
        child_for(LIMIT, name, |dir| {
            let settings = [
                (M_TRIM_THRESHOLD, 0),
                (M_TOP_PAD, 0),
                (M_MMAP_THRESHOLD, threshold),
                (M_MMAP_MAX, 1 << 20),
                (M_ARENA_MAX, arenas),
            ];
            for (name, value) in settings {
                // SAFETY: a setting of the allocator, which this process keeps.
                unsafe { libc::mallopt(name, value) };
            }
            thread::scope(|scope| {
                for n in 0..2 {
                    let dir = dir.join(n.to_string());
                    scope.spawn(move || work_with_many_snapshots(&dir, 3));
                }
            });
        })
        .succeeded();
    }
}

/// libploop keeps the log open, and where the number of that file is given to another one, writes there.
/// Here it is the crate that writes, whatever kind of file it is.
fn ha_40_the_log_may_be_any_file() {
    child_for(LIMIT, "safe", |dir| {
        let work = |name: &str| -> Vec<u8> {
            let dir = dir.join(name);
            fs::create_dir(&dir).unwrap();
            let mut image = disk::create(&dir);
            image.snapshot().unwrap();
            image.umount().unwrap_err();
            let report = ploop::image::check(disk::descriptor(&dir));
            assert!(report.is_sound(), "{report}");
            assert_eq!(fs::metadata(disk::lock_of(&dir)).unwrap().len(), 0);
            fs::read(dir.join("root.hds")).unwrap()[..16].to_vec()
        };
        let expected = work("without");
        let set = |path: &Path| log::set_log_file(Some(path));
        set(Path::new("/dev/null")).unwrap();
        assert_eq!(work("device"), expected);
        let fifo = dir.join("fifo");
        disk::make_fifo(&fifo);
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        // Nobody would read it.
        assert_eq!(set(&fifo).unwrap_err().kind(), ErrorKind::Io);
        let (mut read, write) = pipe();
        use std::os::fd::AsRawFd;
        set(Path::new(&format!("/proc/self/fd/{}", write.as_raw_fd()))).unwrap();
        drop(write);
        assert_eq!(work("pipe"), expected);
        let mut text = vec![0; 4096];
        let len = read.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..len]);
        assert!(text.contains("/pipe/root.hds"), "{text}");
        // The reader goes.
        // SAFETY: the default action is what a C program begins with.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        drop(read);
        assert_eq!(work("broken"), expected);
        // What is open at the time may be closed, and its number be another file's.
        let file = dir.join("log");
        set(&file).unwrap();
        let keep: Vec<_> = (0..20)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert_eq!(work("file"), expected);
        drop(keep);
        log::set_log_file(None).unwrap();
        assert!(fs::read_to_string(file).unwrap().contains("is not mounted"));
    })
    .succeeded();
}

/// A write beyond the limit of the process raises a signal whose default action ends it.
fn ha_41_a_file_too_long_for_the_process() {
    child_for(LIMIT, "safe", |dir| {
        let mut image = disk::create(dir);
        let limit = |bytes| {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: the limit outlives the call; the default action is what a program begins with.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
            }
        };
        limit(1 << 20);
        // 10 MiB of zeroes.
        let error = image.convert(ploop::ImageMode::Raw).unwrap_err();
        limit(libc::RLIM_INFINITY);
        println!("{error}");
        let report = ploop::image::check(disk::descriptor(dir));
        assert!(report.is_sound(), "{report}");
        image.convert(ploop::ImageMode::Raw).unwrap();

        // What the crate writes itself, too: the descriptor, tables, what it makes room by.
        for bytes in [0, 600, 1024, 4096, 9000, 40_000] {
            let dir = dir.join(bytes.to_string());
            fs::create_dir(&dir).unwrap();
            let mut image = disk::create(&dir);
            let before = image.descriptor().unwrap();
            let text = fs::read_to_string(image.path()).unwrap();
            fs::write(image.path(), text.replace("  ", " ")).unwrap();
            limit(bytes);
            let other = dir.join("other");
            let _ = fs::create_dir(&other);
            let results = [
                image.snapshot().map(drop),
                image.set_max_delta_size(Size::from_sectors(1 << 30)),
                image.convert(ploop::ImageMode::Preallocated),
                Ploop::create(&disk::param(&other)).map(drop),
            ];
            limit(libc::RLIM_INFINITY);
            let failed = results.iter().filter(|result| result.is_err()).count();
            // The last limits are enough for a descriptor.
            let expected = if bytes < 9000 { 4 } else { 3 };
            assert_eq!(failed, expected, "{bytes}: {results:?}");
            let after = image.descriptor().unwrap();
            assert_eq!((after.images, after.top), (before.images, before.top));
            let report = ploop::image::check(image.path());
            assert!(report.is_sound(), "{bytes}: {report}");
            image.snapshot().unwrap();
        }
    })
    .succeeded();
}

const SIZE: Size = Size::from_mib(288);

/// Everything that starts tools or forks, with the data compared in between.
fn life(dir: &Path) -> Result<()> {
    let target = dir.join("mnt");
    fs::create_dir(&target).unwrap();
    let param = MountParam::new().target(&target);
    let mut image = Ploop::create(&CreateParam::new(dir.join("root.hds"), SIZE))?;
    let write = |name: &str, mib: usize| {
        let file = target.join(name);
        fs::write(&file, name.repeat((mib << 20) / name.len())).unwrap();
        fs::File::open(&file).unwrap().sync_all().unwrap();
    };
    let verify = |name: &str, mib: usize| {
        let bytes = fs::read(target.join(name)).unwrap();
        assert!(
            bytes == name.repeat((mib << 20) / name.len()).as_bytes(),
            "{name} differs"
        );
    };
    image.mount(&param.clone().fsck(true))?;
    write("first", 4);
    let snapshot = image.snapshot()?;
    write("second", 4);
    image.resize(Size::from_mib(352), ResizeMode::Online)?;
    write("large", 60);
    fs::remove_file(target.join("large")).unwrap();
    let before = image.discard_stat()?;
    image.discard(&DiscardParam::new())?;
    let after = image.discard_stat()?;
    assert!(after.image_size < before.image_size, "{before:?} {after:?}");
    image.resize(Size::from_mib(320), ResizeMode::Online)?;
    image.delete_snapshot(snapshot)?;
    verify("first", 4);
    image.umount()?;
    image.resize(Size::from_mib(288), ResizeMode::Offline)?;
    let report = ploop::image::check(disk::descriptor(dir));
    assert!(report.is_sound(), "{report}");
    image.mount(&param.fsck(true))?;
    verify("first", 4);
    verify("second", 4);
    let snapshot = image.snapshot()?;
    image.umount()?;
    image.switch_snapshot(snapshot)?;
    image.merge(&MergeParam::new(MergeTarget::All))?;
    ploop::fs_info(disk::descriptor(dir))?;
    assert!(
        image
            .descriptor()?
            .images
            .iter()
            .all(|image| image.guid == Guid::TOP)
    );
    Ok(())
}

/// Where SIGCHLD is ignored, libploop cannot learn how a tool ended, and takes each for failed. It is not
/// ignored in the process in which libploop runs.
fn ha_8_children_that_are_not_waited_for() {
    child_for(LIMIT, "safe", |dir| {
        // SAFETY: no child is waited for in this process.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        life(dir).unwrap();
    })
    .succeeded();
}

/// A thread that waits for all children takes libploop's tools for its own: libploop does not learn how
/// they ended. Those of another process it does not get.
fn ha_42_children_that_others_wait_for() {
    child_for(LIMIT, "safe", |dir| {
        let stop: &'static AtomicBool = Box::leak(Box::default());
        let reaper = thread::spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: whatever is waited for is nobody else's here.
                match unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } {
                    -1 => thread::sleep(Duration::from_millis(1)),
                    _ => seen += 1,
                }
            }
            seen
        });
        life(dir).unwrap();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(reaper.join().unwrap(), 0);
    })
    .succeeded();
}

/// A timer of the application's with a handler that does not restart system calls: libploop takes the
/// interruption of a read for the end of a file.
fn ha_43_a_timer_interrupts() {
    child_for(LIMIT, "safe", |dir| {
        extern "C" fn tick(_signal: libc::c_int) {
            TICKS.store(true, Ordering::Relaxed);
        }
        static TICKS: AtomicBool = AtomicBool::new(false);
        let each = libc::timeval {
            tv_sec: 0,
            tv_usec: 1000,
        };
        let timer = libc::itimerval {
            it_interval: each,
            it_value: each,
        };
        // SAFETY: the handler sets a flag; the structures are plain data.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tick as *const () as libc::sighandler_t;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
            let set = libc::syscall(libc::SYS_setitimer, 0, &raw const timer, 0);
            assert_eq!(set, 0);
        }
        life(dir).unwrap();
        assert!(TICKS.load(Ordering::Relaxed));
    })
    .succeeded();
}

/// Children of the process in which C runs, of those of this process.
fn grandchildren() -> Vec<i32> {
    let children = |parents: &[i32]| -> Vec<i32> {
        let of = |entry: fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let words = stat.rsplit_once(')')?.1;
            let mut words = words.split_ascii_whitespace();
            let running = words.next() != Some("Z");
            let parent: i32 = words.next()?.parse().ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            (running && parents.contains(&parent)).then_some(number)
        };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(of)
            .collect()
    };
    children(&children(&[std::process::id() as i32]))
}

static KEPT: [u8; 4 << 20] = [7; 4 << 20];

/// A mounted image with one file.
fn mounted_with_kept(dir: &Path) -> Ploop {
    let target = dir.join("mnt");
    fs::create_dir(&target).unwrap();
    let mut image = Ploop::create(&CreateParam::new(dir.join("root.hds"), SIZE)).unwrap();
    image.mount(&MountParam::new().target(&target)).unwrap();
    fs::write(target.join("kept"), KEPT).unwrap();
    image
}

/// Leaves 48 MiB to be discarded.
fn write_and_remove(dir: &Path) {
    let files = [0; 6].map(|_| tempfile::NamedTempFile::new_in(dir.join("mnt")).unwrap());
    for file in &files {
        file.as_file().write_all_at(&[1; 8 << 20], 0).unwrap();
        file.as_file().sync_all().unwrap();
    }
}

#[track_caller]
fn assert_kept(dir: &Path) {
    assert!(fs::read(dir.join("mnt/kept")).unwrap() == KEPT);
}

/// libploop waits for the requests that its trim process causes, and for ever where that was killed, as
/// by the system that runs out of memory.
fn ha_44_the_trim_process_is_killed() {
    child_for(LIMIT, "safe", |dir| {
        let mut image = mounted_with_kept(dir);
        let mut hits = 0;
        for round in 0..12 {
            write_and_remove(dir);
            let done = AtomicBool::new(false);
            let result = thread::scope(|scope| {
                let killer = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        if let Some(trim) = grandchildren().first() {
                            thread::sleep(Duration::from_millis(round * 4));
                            // SAFETY: signalling a process has no precondition.
                            return unsafe { libc::kill(*trim, libc::SIGKILL) } == 0;
                        }
                    }
                    false
                });
                let result = image.discard(&DiscardParam::new());
                done.store(true, Ordering::Relaxed);
                hits += usize::from(killer.join().unwrap() && result.is_err());
                result
            });
            println!("round {round}: {result:?}");
            // The next one does its work.
            image.discard(&DiscardParam::new()).unwrap();
            image.snapshot().unwrap();
            image.delete_top_delta().unwrap_err();
        }
        assert!(hits > 0, "never killed in time");
        assert_kept(dir);
        image.umount().unwrap();
        let report = ploop::image::check(disk::descriptor(dir));
        assert!(report.is_sound(), "{report}");
    })
    .succeeded();
}

/// A program that is killed in a discard leaves the driver in the middle of it, and the next discard fails.
fn ha_46_a_discard_after_a_killed_one() {
    child_for(LIMIT, "safe", |dir| {
        let mut image = mounted_with_kept(dir);
        for round in 0..12 {
            write_and_remove(dir);
            // SAFETY: the child uses memory it inherited from a process in which no other thread works.
            let other = unsafe { libc::fork() };
            if other == 0 {
                let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
                let result = image.discard(&DiscardParam::new());
                std::process::exit(i32::from(result.is_err()));
            }
            thread::sleep(Duration::from_millis(20 + 10 * round));
            // SAFETY: plain system calls on a child of this process.
            unsafe {
                libc::kill(other, libc::SIGKILL);
                libc::waitpid(other, std::ptr::null_mut(), 0);
            }
            image.discard(&DiscardParam::new()).unwrap();
            assert_kept(dir);
        }
        image.umount().unwrap();
        let report = ploop::image::check(disk::descriptor(dir));
        assert!(report.is_sound(), "{report}");
    })
    .succeeded();
}

/// A mount that fails after the device was started, here by a partition table that somebody inside has
/// damaged, leaves the device running, with the base alone.
fn ha_47_a_mount_that_fails_late() {
    child_for(LIMIT, "safe", |dir| {
        let target = dir.join("mnt");
        fs::create_dir(&target).unwrap();
        let mut image = Ploop::create(&CreateParam::new(dir.join("root.hds"), SIZE)).unwrap();
        image.snapshot().unwrap();
        let device = image.mount(&MountParam::new()).unwrap().device;
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(device)
            .unwrap();
        let mut table = vec![0; 8192];
        file.read_exact_at(&mut table, 0).unwrap();
        let mut damaged = table.clone();
        damaged[512..1024].fill(0);
        for at in [1024, 4096] {
            damaged[at..at + 8].copy_from_slice(b"EFI PART");
        }
        file.write_all_at(&damaged, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        image.umount().unwrap();
        for _ in 0..2 {
            let error = image.mount(&MountParam::new().target(&target)).unwrap_err();
            println!("{error}");
            assert_eq!(image.devices().unwrap(), Vec::<std::path::PathBuf>::new());
            let report = ploop::image::check(disk::descriptor(dir));
            assert!(report.is_sound(), "{report}");
        }
        // Neither does what attaches it for itself.
        let larger = SIZE + Size::from_mib(64);
        for failed in [
            ploop::fs_info(disk::descriptor(dir)).map(drop),
            image.resize(larger, ResizeMode::Online),
            image.discard(&DiscardParam::new().automount(true)),
        ] {
            println!("{}", failed.unwrap_err());
            assert_eq!(image.devices().unwrap(), Vec::<std::path::PathBuf>::new());
        }
        // Nothing but the table was in the way.
        let mut disk = ploop::image::Disk::open(disk::descriptor(dir)).unwrap();
        let mut found = vec![0; 8192];
        disk.read_exact(&mut found).unwrap();
        assert!(found == damaged);
    })
    .succeeded();
}

/// Nothing that libploop or a tool prints reaches the program's streams.
fn ha_45_nothing_is_printed() {
    child_for(LIMIT, "safe", |dir| life(dir).unwrap()).said_nothing();
}

/// The words of a tool that fails are in the error.
fn ha_45_what_a_tool_said_is_in_the_error() {
    child_for(LIMIT, "safe", |dir| {
        life(dir).unwrap();
        let mut image = Ploop::open(disk::descriptor(dir)).unwrap();
        let device = image.mount(&MountParam::new()).unwrap().device;
        // The superblock and its copies, of the file system in the first partition.
        let zeroes = vec![0u8; 200 << 20];
        let file = fs::File::options().write(true).open(device).unwrap();
        file.write_all_at(&zeroes, 1 << 20).unwrap();
        file.sync_all().unwrap();
        drop(file);
        image.umount().unwrap();
        let error: Error = image.mount(&MountParam::new().fsck(true)).unwrap_err();
        let words = error.output().unwrap_or_default();
        assert!(words.contains("super-block"), "{error:?}");
    })
    .succeeded();
}
