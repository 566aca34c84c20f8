//! Settings of the whole process: the log and the lock timeout. The tests are a program of their own and run one at a
//! time.
#![cfg(feature = "libploop")]

#[path = "fixture/directory.rs"]
mod directory;
mod filled_image;
#[path = "fixture/line.rs"]
mod line;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use directory::Contents;
use filled_image::FilledImage;
use ploop::{
    CreateParam, ErrorKind, FormatVersion, ImageMode, MergeParam, MergeTarget, MountParam, Ploop,
    ReplaceParam, ReplaceTarget, Result, Size, SnapshotParam, lock, log, trust,
};
use rustix::fs::{FlockOperation, flock};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_log_file_gets_what_happens_until_it_is_closed() {
    let _alone = alone();
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first.log"), dir.path().join("second.log"));
    log::set_log_file(Some(&first)).unwrap();
    let guid = filled.ploop.snapshot().unwrap();
    let written = lines(&first);
    assert!(
        written.iter().any(|line| line.contains(&guid.to_string())),
        "{written:#?}"
    );
    // What is in the file stays, and a path that cannot be opened changes nothing.
    let error = log::set_log_file(Some(Path::new("/no/such/directory/log"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    filled.ploop.snapshot().unwrap();
    assert!(lines(&first).len() > written.len());
    assert!(lines(&first).starts_with(&written));

    log::set_log_file(Some(&second)).unwrap();
    let until_here = lines(&first);
    filled.ploop.snapshot().unwrap();
    assert_eq!(lines(&first), until_here);
    assert!(!lines(&second).is_empty());

    log::set_log_file(None).unwrap();
    let until_here = lines(&second);
    filled.ploop.snapshot().unwrap();
    assert_eq!(lines(&second), until_here);
    // To close it twice is no error.
    log::set_log_file(None).unwrap();
}

/// Lines at its end would damage a descriptor.
#[test]
fn no_file_of_an_image_is_a_log() {
    let _alone = alone();
    let mut filled = FilledImage::new(ImageMode::Expanded);
    for file in [filled.xml(), filled.path("root.hds")] {
        let error = log::set_log_file(Some(&file)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.path(), Some(&*file));
    }
    let guid = filled.ploop.snapshot().unwrap();
    filled.took(guid);
    filled.verify();
}

#[test]
fn the_log_level_sets_how_much_is_written() {
    let _alone = alone();
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    log::set_log_file(Some(&file)).unwrap();
    log::set_log_level(-2);
    filled.ploop.snapshot().unwrap();
    assert!(lines(&file).is_empty());
    log::set_log_level(3);
    filled.ploop.snapshot().unwrap();
    assert!(!lines(&file).is_empty());
    log::set_log_file(None).unwrap();
}

/// In a process of its own, whose output is looked at.
#[test]
fn nothing_is_printed_unless_it_is_asked_for() {
    const LEVEL: &str = "PLOOP_TEST_VERBOSE_LEVEL";
    if let Ok(level) = std::env::var(LEVEL) {
        if let Ok(level) = level.parse() {
            log::set_verbose_level(level);
        }
        let mut filled = FilledImage::new(ImageMode::Expanded);
        filled.ploop.snapshot().unwrap();
        filled.ploop.umount().unwrap_err();
        return;
    }
    let printed = |level: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("nothing_is_printed_unless_it_is_asked_for")
            .env(LEVEL, level)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            text(&output.stdout).contains("ploop snapshot"),
            text(&output.stderr).contains("is not mounted"),
        )
    };
    assert_eq!(printed("unset"), (false, false));
    assert_eq!(printed(&log::NO_CONSOLE.to_string()), (false, false));
    assert_eq!(printed(&log::NO_STDOUT.to_string()), (false, true));
    assert_eq!(printed("3"), (true, true));
    assert_eq!(printed(&log::TIMESTAMPS.to_string()), (true, true));
}

/// The file may be exchanged while others are at work.
#[test]
fn the_log_file_can_be_changed_at_any_time() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut filled = FilledImage::new(ImageMode::Expanded);
                for _ in 0..30 {
                    filled
                        .ploop
                        .set_max_delta_size(Size::from_sectors(1))
                        .unwrap();
                }
            });
        }
        for at in 0..50 {
            let file = dir.path().join(format!("log.{}", at % 3));
            log::set_log_file(Some(&file)).unwrap();
            log::set_log_file(None).unwrap();
        }
    });
}

/// Another process would hold it in the same way.
fn held(filled: &FilledImage) -> File {
    filled.ploop_once();
    let file = File::open(filled.path("DiskDescriptor.xml.lck")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

impl FilledImage {
    /// Makes the lock file.
    fn ploop_once(&self) {
        Ploop::open(self.xml()).unwrap().top_delta_file().unwrap();
    }
}

fn refused_after<T: std::fmt::Debug>(f: impl FnOnce() -> Result<T>) -> Duration {
    let begin = Instant::now();
    let error = f().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    begin.elapsed()
}

#[test]
fn the_handles_timeout_goes_before_the_processs() {
    let _alone = alone();
    assert_eq!(lock::timeout(), Duration::from_secs(60));
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let lock = held(&filled);
    lock::set_timeout(Duration::from_millis(200));
    assert_eq!(lock::timeout(), Duration::from_millis(200));
    let waited = refused_after(|| filled.ploop.snapshot());
    assert!(waited >= Duration::from_millis(200), "{waited:?}");

    filled
        .ploop
        .set_lock_timeout(Some(Duration::from_millis(500)));
    let waited = refused_after(|| filled.ploop.top_delta_file());
    assert!(waited >= Duration::from_millis(500), "{waited:?}");

    // Longer than any machine needs for a call that does not wait.
    lock::set_timeout(Duration::from_secs(600));
    filled.ploop.set_lock_timeout(Some(Duration::ZERO));
    let waited = refused_after(|| filled.ploop.descriptor());
    assert!(waited < Duration::from_secs(300), "{waited:?}");

    // The image as it was, and no longer locked.
    drop(lock);
    filled.ploop.snapshot().unwrap();
    filled.ploop.set_lock_timeout(None);
    lock::set_timeout(Duration::from_secs(60));
    filled.ploop.snapshot().unwrap();
    assert_eq!(filled.descriptor().snapshots.len(), 3);
}

#[test]
fn a_wait_ends_as_soon_as_the_lock_is_free() {
    let _alone = alone();
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let lock = held(&filled);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| filled.ploop.snapshot());
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.join().unwrap().unwrap();
    });
}

/// What makes an image one that others can write to.
fn given_to_others(filled: &FilledImage, what: &str) {
    let directory = filled.dir.path().to_owned();
    let (descriptor, delta) = (
        filled.path("DiskDescriptor.xml"),
        filled.file_of(ploop::Guid::TOP),
    );
    let mode = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    match what {
        "a directory of another user's" => chown(&directory, Some(4711), None).unwrap(),
        "a directory for everybody" => mode(&directory, 0o1777),
        "a directory for a group" => {
            chown(&directory, None, Some(4711)).unwrap();
            mode(&directory, 0o770);
        }
        "a descriptor of another user's" => chown(&descriptor, Some(4711), None).unwrap(),
        "a descriptor for everybody" => mode(&descriptor, 0o666),
        "a delta of another user's" => chown(&delta, Some(4711), None).unwrap(),
        "a delta for a group" => {
            chown(&delta, None, Some(4711)).unwrap();
            mode(&delta, 0o660);
        }
        "a delta for somebody in an access control list" => {
            // Version 2: the owner, user 4711, the group, the mask, others.
            let mut list = 2u32.to_le_bytes().to_vec();
            for (tag, permissions, id) in [
                (0x01u16, 6u16, u32::MAX),
                (0x02, 6, 4711),
                (0x04, 4, u32::MAX),
                (0x10, 6, u32::MAX),
                (0x20, 0, u32::MAX),
            ] {
                list.extend(tag.to_le_bytes());
                list.extend(permissions.to_le_bytes());
                list.extend(id.to_le_bytes());
            }
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&delta, "system.posix_acl_access", &list, flags).unwrap();
        }
        "a delta by two links, the second in a directory for everybody" => {
            let (links, elsewhere) = (directory.join("links"), directory.join("elsewhere"));
            fs::create_dir(&links).unwrap();
            fs::create_dir(&elsewhere).unwrap();
            fs::rename(&delta, elsewhere.join("delta")).unwrap();
            symlink(elsewhere.join("delta"), links.join("second")).unwrap();
            symlink(links.join("second"), &delta).unwrap();
            mode(&links, 0o777);
        }
        "a delta behind a directory of another user's" => {
            let way = directory.join("way");
            fs::create_dir(&way).unwrap();
            chown(&way, Some(4711), None).unwrap();
            let name = delta.file_name().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&descriptor).unwrap();
            let text = text.replace(&format!(">{name}<"), &format!(">way/../{name}<"));
            fs::write(&descriptor, text).unwrap();
        }
        "a delta in a directory of another user's, by a link" => {
            let elsewhere = directory.join("elsewhere");
            fs::create_dir(&elsewhere).unwrap();
            fs::rename(&delta, elsewhere.join("delta")).unwrap();
            symlink(elsewhere.join("delta"), &delta).unwrap();
            chown(&elsewhere, Some(4711), None).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_others_can_write_to_is_not_changed() {
    let _alone = alone();
    assert!(
        rustix::process::geteuid().is_root(),
        "libploop's search for devices needs root"
    );
    for what in [
        "a directory of another user's",
        "a directory for everybody",
        "a directory for a group",
        "a descriptor of another user's",
        "a descriptor for everybody",
        "a delta of another user's",
        "a delta for a group",
        "a delta for somebody in an access control list",
        "a delta in a directory of another user's, by a link",
        "a delta by two links, the second in a directory for everybody",
        "a delta behind a directory of another user's",
    ] {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
        given_to_others(&filled, what);
        let before = Contents::of(filled.dir.path());
        let elsewhere = tempfile::tempdir().unwrap();
        let replacement = elsewhere.path().join("replacement");
        fs::copy(filled.file_of(guids[0]), &replacement).unwrap();
        let image = &mut filled.ploop;
        let results = [
            ("snapshot", image.snapshot().map(|_| ())),
            ("switch", image.switch_snapshot(guids[0])),
            ("delete", image.delete_snapshot(guids[1])),
            (
                "merge",
                image
                    .merge(&MergeParam::new(MergeTarget::Snapshot(guids[1])))
                    .map(|_| ()),
            ),
            ("convert", image.convert(ImageMode::Preallocated)),
            (
                "replace",
                image.replace(&ReplaceParam::new(
                    &replacement,
                    ReplaceTarget::Guid(guids[0]),
                )),
            ),
            (
                "max delta size",
                image.set_max_delta_size(Size::from_sectors(1 << 30)),
            ),
            ("mount", image.mount(&MountParam::new()).map(|_| ())),
            (
                "fs info",
                ploop::fs_info(filled.dir.path().join("DiskDescriptor.xml")).map(|_| ()),
            ),
        ];
        for (operation, result) in results {
            let error = result.expect_err(&format!("{operation} with {what}"));
            assert_eq!(
                error.kind(),
                ErrorKind::PermissionDenied,
                "{operation} with {what}: {error}"
            );
            assert!(error.message().contains("allow_other_writers"), "{error}");
        }
        before.assert_unchanged(what);
        // Looking is no change.
        filled.ploop.image_info().unwrap();
        assert_eq!(filled.ploop.descriptor().unwrap().snapshots.len(), 3);

        trust::allow_other_writers(true);
        let made = filled.ploop.snapshot();
        trust::allow_other_writers(false);
        if line::is_7() && what == "a delta behind a directory of another user's" {
            // libploop 7 would take that name for another file's.
            assert_eq!(made.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        filled.took(made.unwrap());
        filled.verify();
    }
}

#[test]
fn nothing_is_made_where_others_can_write() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let param = CreateParam::new(directory.path().join("root.hds"), Size::from_mib(16)).fs(None);
    let error = Ploop::create(&param).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(
        error.path(),
        Some(fs::canonicalize(directory.path()).unwrap().as_path())
    );
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.ploop.snapshot().unwrap();
    let replacement = directory.path().join("replacement");
    fs::copy(filled.file_of(ploop::Guid::TOP), &replacement).unwrap();
    let before = Contents::of(filled.dir.path());
    let elsewhere = directory.path();
    for result in [
        filled
            .ploop
            .snapshot_with(&SnapshotParam::new().directory(elsewhere))
            .map(drop),
        filled
            .ploop
            .merge(&MergeParam::new(MergeTarget::All).new_delta(elsewhere.join("merged")))
            .map(drop),
        filled.ploop.replace(&ReplaceParam::new(
            &replacement,
            ReplaceTarget::Guid(ploop::Guid::TOP),
        )),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    before.assert_unchanged("new files among others'");
    fs::remove_file(&replacement).unwrap();

    let (input, _output) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = ploop::copy::receive(directory.path().join("copy"), input, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    trust::allow_other_writers(true);
    let made = Ploop::create(&param);
    trust::allow_other_writers(false);
    assert_eq!(made.unwrap().descriptor().unwrap().size, Size::from_mib(16));
}
