//! Many threads, many processes, one image or many.
#![cfg(feature = "libploop")]

#[path = "../filled_image/mod.rs"]
mod filled_image;
mod guids;
#[path = "../fixture/line.rs"]
mod line;
#[path = "../fixture/pipe.rs"]
mod pipe;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use filled_image::FilledImage;
use ploop::{
    ClusterSize, Code, CreateParam, ErrorKind, FormatVersion, Guid, ImageMode, MergeParam,
    MergeTarget, MountGuard, Ploop, Size, SnapshotParam, SwitchFlag,
};

const THREADS: usize = 8;
const OPERATIONS: usize = 200;

// A handle moves between threads.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Ploop>();
    send::<MountGuard<'static>>();
};

/// Two threads cannot share it. If `Ploop` were `Sync`, both implementations below would apply to it, and this would not
/// compile.
const _: fn() = || {
    trait UnlessSync<Which> {
        fn told() {}
    }
    struct IsSync;
    impl<T: ?Sized> UnlessSync<()> for T {}
    impl<T: ?Sized + Sync> UnlessSync<IsSync> for T {}
    let _ = <Ploop as UnlessSync<_>>::told;
    let _ = <MountGuard<'static> as UnlessSync<_>>::told;
};

/// One operation on an image of which this thread knows the contents.
fn step(filled: &mut FilledImage, random: &mut Rng, number: u64) {
    let snapshots: Vec<Guid> = filled
        .states
        .keys()
        .copied()
        .filter(|guid| *guid != Guid::TOP)
        .collect();
    let some = |random: &mut Rng| snapshots[random.usize(..snapshots.len())];
    let clusters = filled.clusters;
    match random.usize(..10) {
        0 | 1 if snapshots.len() < 6 => {
            filled.snapshot();
        }
        2 if !snapshots.is_empty() => {
            let guid = some(random);
            if !filled.descriptor().snapshot(guid).unwrap().temporary {
                filled.switch(guid);
            }
        }
        3 if !snapshots.is_empty() && snapshots.len() < 6 => {
            let guid = some(random);
            let kept = filled
                .ploop
                .switch_snapshot_with(guid, SwitchFlag::SKIP_DESTROY)
                .unwrap();
            filled.took(kept.unwrap());
            filled.went_back_to(guid);
        }
        4 | 5 if !snapshots.is_empty() => {
            let guid = some(random);
            let children = filled.descriptor().children(guid).count();
            // One with several children would only be marked.
            if children < 2 {
                filled.ploop.delete_snapshot(guid).unwrap();
                filled.states.remove(&guid);
            }
        }
        6 => {
            let descriptor = filled.descriptor();
            if let Some(parent) = descriptor.parent(Guid::TOP) {
                if descriptor.children(parent).count() == 1 {
                    let param = MergeParam::new(MergeTarget::Top);
                    filled.ploop.merge(&param).unwrap();
                    filled.states.remove(&parent);
                }
            }
        }
        7 => filled.write([(random.u64(..clusters), number)]),
        8 => {
            filled
                .ploop
                .set_max_delta_size(Size::from_sectors(number))
                .unwrap();
            let stored = filled.ploop.descriptor().unwrap().max_delta_size;
            assert_eq!(stored, Some(Size::from_sectors(number)));
        }
        _ => {
            assert_eq!(
                filled.ploop.top_delta_file().unwrap(),
                filled.file_of(Guid::TOP)
            );
            assert!(!filled.ploop.is_mounted().unwrap());
            assert_eq!(filled.ploop.image_info().unwrap().version, 1);
        }
    }
}

#[test]
fn eight_threads_on_eight_images() {
    thread::scope(|scope| {
        for seed in 1..=THREADS as u64 {
            scope.spawn(move || {
                let mut filled = FilledImage::new(ImageMode::Expanded);
                let mut random = Rng::with_seed(seed);
                for number in 1..=OPERATIONS as u64 {
                    step(&mut filled, &mut random, seed << 16 | number);
                    if number % 50 == 0 {
                        filled.verify();
                    }
                }
            });
        }
    });
}

/// Each thread makes snapshots of its own and deletes most of them. In the end those are there that
/// were not deleted, and the data that was written before is in all of them.
#[test]
fn eight_threads_on_one_image() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.fill(1);
    let (xml, start) = (filled.xml(), Barrier::new(THREADS));
    let left: Vec<Guid> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut ploop = Ploop::open(&xml).unwrap();
                    start.wait();
                    make_and_delete(&mut ploop, OPERATIONS)
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    for guid in left {
        filled.took(guid);
    }
    filled.verify();
}

/// `operations` of them; returns the snapshots that are left.
fn make_and_delete(ploop: &mut Ploop, operations: usize) -> Vec<Guid> {
    let mut mine = Vec::new();
    for number in 0..operations {
        match number % 5 {
            0 | 2 => {
                let guid = Guid::generate();
                let param = SnapshotParam::new().guid(guid);
                assert_eq!(ploop.snapshot_with(&param).unwrap(), guid);
                mine.push(guid);
            }
            1 => {
                // Others may change the chain meanwhile, but what is ours is there.
                let descriptor = ploop.descriptor().unwrap();
                for guid in &mine {
                    let file = &descriptor.image(*guid).unwrap().file;
                    // A merge in another thread may have moved it to another file meanwhile.
                    assert!(file.is_file() || ploop.descriptor().unwrap() != descriptor);
                }
                assert_eq!(descriptor.chain(Guid::TOP).len(), descriptor.images.len());
            }
            3 => {
                let top = ploop.top_delta_file().unwrap();
                assert!(top.is_absolute());
                let guid = mine.remove(0);
                ploop.delete_snapshot(guid).unwrap();
            }
            _ => {
                assert_eq!(ploop.image_info().unwrap().version, 1);
                if mine.len() > 2 {
                    let guid = mine.remove(0);
                    ploop.delete_snapshot(guid).unwrap();
                }
            }
        }
    }
    mine
}

/// Set for the process that this program starts once more.
const IMAGE: &str = "PLOOP_TEST_IMAGE";

fn other_process(test: &str, image: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(IMAGE, image)
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_on_one_image() {
    const NAME: &str = "two_processes_on_one_image";
    const ROUNDS: usize = 300;
    if let Some(image) = std::env::var_os(IMAGE) {
        // Two threads here as well, so that all kinds of neighbours meet.
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut ploop = Ploop::open(&image).unwrap();
                    for guid in make_and_delete(&mut ploop, ROUNDS) {
                        ploop.delete_snapshot(guid).unwrap();
                    }
                });
            }
        });
        return;
    }
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.fill(1);
    let mut child = other_process(NAME, &filled.xml());
    let mut ploop = Ploop::open(filled.xml()).unwrap();
    let mine = make_and_delete(&mut ploop, ROUNDS);
    assert!(child.wait().unwrap().success());
    for guid in mine {
        filled.took(guid);
    }
    filled.verify();
}

/// Two threads want the same; exactly one of them gets it.
#[test]
fn two_processes_delete_the_same_snapshots() {
    const NAME: &str = "two_processes_delete_the_same_snapshots";
    fn delete_all(image: &Path) -> usize {
        let mut ploop = Ploop::open(image).unwrap();
        let mut deleted = 0;
        loop {
            let descriptor = ploop.descriptor().unwrap();
            let Some(guid) = descriptor.parent(Guid::TOP) else {
                return deleted;
            };
            match ploop.delete_snapshot(guid) {
                Ok(()) => deleted += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSnapshot, "{error}");
                    assert_eq!(error.code(), Some(Code::NOSNAP.get()));
                }
            }
        }
    }
    if let Some(image) = std::env::var_os(IMAGE) {
        delete_all(Path::new(&image));
        return;
    }
    for _ in 0..5 {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 8);
        let mut child = other_process(NAME, &filled.xml());
        let deleted = delete_all(&filled.xml());
        assert!(child.wait().unwrap().success());
        assert!(deleted <= guids.len());
        for guid in guids {
            filled.states.remove(&guid);
        }
        filled.verify();
        assert_eq!(filled.names(), ["DiskDescriptor.xml", "root.hds"]);
    }
}

/// While a large image is made and converted, another one is worked on.
#[test]
fn a_long_operation_delays_nobody_else() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    // How long an operation takes depends on the machine: each attempt makes a larger image, until the operations on
    // the other one fit in. If they waited for each other, none would ever fit in.
    let during_another = |attempt: u64, filled: &mut FilledImage| {
        let dir = tempfile::tempdir().unwrap();
        let (done, meanwhile) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let param =
                    CreateParam::new(dir.path().join("large.hds"), Size::from_mib(512 * attempt))
                        .cluster(ClusterSize::DEFAULT)
                        .mode(ImageMode::Raw)
                        .fs(None);
                Ploop::create(&param).unwrap();
                done.store(true, Ordering::SeqCst);
            });
            let mut before = 0;
            while !done.load(Ordering::SeqCst) {
                let guid = filled.snapshot();
                filled.ploop.delete_snapshot(guid).unwrap();
                filled.states.remove(&guid);
                before += 1;
                // It ended before the other one, so it did not wait for it.
                if !done.load(Ordering::SeqCst) {
                    meanwhile.store(before, Ordering::SeqCst);
                }
            }
        });
        meanwhile.into_inner()
    };
    let fits = (1..=6).any(|attempt| during_another(attempt, &mut filled) >= 2);
    assert!(fits, "no two rounds within the other operation, six times");
    filled.verify();
}

/// A merge of much data on one image, looks at and changes of another.
#[test]
fn a_long_merge_delays_nobody_else() {
    let mut small = FilledImage::new(ImageMode::Expanded);
    let mut during_merge = || {
        let mut large = FilledImage::with(
            ImageMode::Expanded,
            ClusterSize::from_bytes(16 << 20).unwrap(),
            FormatVersion::V1,
        );
        large.snapshot();
        large.write((0..large.clusters).map(|number| (number, number + 1)));
        if line::is_7() {
            // It would misplace clusters of this size in format v1.
            large.make_v2();
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let merged = large.ploop.merge(&MergeParam::new(MergeTarget::All));
                // Before anything panics: the other thread goes on until then.
                done.store(true, Ordering::SeqCst);
                merged.unwrap();
            });
            let mut counted = 0;
            loop {
                small.ploop.top_delta_file().unwrap();
                assert!(!small.ploop.is_mounted().unwrap());
                small
                    .ploop
                    .set_max_delta_size(Size::from_sectors(7))
                    .unwrap();
                if done.load(Ordering::SeqCst) {
                    return counted;
                }
                counted += 1;
            }
        })
    };
    // A busy machine may give one of the two threads no time for the whole of a merge; not six times.
    let fits = (1..=6).any(|_| during_merge() >= 2);
    assert!(fits, "no two rounds within a merge, six times");
    small.verify();
}

/// A thread that waits for one image does not hold up others.
#[test]
fn waiting_for_one_image_delays_no_other() {
    let (mut a, mut b) = (
        FilledImage::new(ImageMode::Expanded),
        FilledImage::new(ImageMode::Expanded),
    );
    a.ploop.top_delta_file().unwrap();
    let lock = std::fs::File::open(a.path("DiskDescriptor.xml.lck")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            a.ploop.set_lock_timeout(Some(Duration::from_secs(300)));
            a.ploop.snapshot()
        });
        for _ in 0..20 {
            b.snapshot();
        }
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.join().unwrap().unwrap();
    });
    b.verify();
}

#[test]
fn a_handle_can_be_handed_on() {
    let FilledImage { dir, ploop, .. } = FilledImage::new(ImageMode::Expanded);
    let begin = Instant::now();
    let mut ploop = thread::spawn(move || {
        let mut ploop = ploop;
        ploop.snapshot().unwrap();
        ploop
    })
    .join()
    .unwrap();
    ploop.snapshot().unwrap();
    thread::spawn(move || ploop.close()).join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
    drop(dir);
}
