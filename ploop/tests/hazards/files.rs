//! Files that libploop deletes, overwrites, or hands to a shell, and success it reports for nothing.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ploop::{
    Code, CreateParam, Error, ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget,
    MountParam, Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget, Size, SnapshotParam, sys,
};

use crate::fixture::child::{child, child_for};
use crate::fixture::directory::Contents;
use crate::fixture::disk::{self, Immutable};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::{by_line, is_7, refuses_full_deltas};
use crate::fixture::pipe::pipe;
use crate::fixture::refused::refused;
use crate::fixture::{mounts, raw};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_09_h4_24_create_deletes_an_existing_file,
            h0_09_h4_24_create_deletes_a_file_that_comes_meanwhile,
            h0_11_h4_26_names_that_cut_the_descriptor,
            h0_12_h4_23_names_that_a_shell_obeys_at_creation,
            h0_13_h4_29_sizes_that_come_out_smaller,
            h4_31_a_stream_asks_for_all_memory;
        &[Need::Root] =>
            h0_10_h4_25_a_descriptor_that_cannot_be_written,
            h0_10_h4_25_no_descriptors_left,
            h0_12_h4_23_names_that_a_shell_obeys,
            h4_33_a_descriptor_names_a_foreign_file,
            ha_1_convert_removes_a_file_it_did_not_make,
            ha_2_the_temporary_descriptor_is_a_link,
            ha_6_a_merge_mixes_versions,
            ha_7_a_pipe_is_waited_for,
            ha_70_replace_takes_any_file,
            ha_72_a_key_is_named_and_nothing_encrypted,
            ha_73_replace_refuses_a_sound_delta;
        &[Need::Root, Need::Mounts] =>
            h0_10_h4_25_a_read_only_file_system;
        &[Need::Root, Need::ImmutableFiles] =>
            ha_3_replace_reports_success_when_it_could_not_rename,
            ha_57_a_merge_whose_descriptor_cannot_be_replaced;
    ]
}

/// An image file without descriptor is deleted by the creation that refuses to replace it. The crate
/// creates elsewhere and moves what it made where nothing is.
fn h0_09_h4_24_create_deletes_an_existing_file() {
    child("raw", |dir| {
        let file = dir.join("root.hds");
        fs::write(&file, "precious").unwrap();
        assert_ne!(raw::create_image(&file, 2048, |_| ()), 0);
        assert_eq!(file.exists(), by_line(false, true));
    })
    .succeeded();
    child("safe", |dir| {
        for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
            for kind in 0..4 {
                let dir = dir.join(format!("{mode}{kind}"));
                fs::create_dir(&dir).unwrap();
                let file = dir.join("root.hds");
                match kind {
                    0 => fs::write(&file, "precious").unwrap(),
                    1 => fs::create_dir(&file).unwrap(),
                    2 => symlink("nowhere", &file).unwrap(),
                    _ => fs::write(dir.join("DiskDescriptor.xml"), "precious").unwrap(),
                }
                let before = Contents::of(&dir);
                refused(
                    Ploop::create(&disk::param(&dir).mode(mode)),
                    ErrorKind::AlreadyExists,
                );
                before.assert_unchanged("create");
            }
        }
    })
    .succeeded();
}

/// As above, where the file comes while the image is being made.
fn h0_09_h4_24_create_deletes_a_file_that_comes_meanwhile() {
    child("safe", |dir| {
        let mut won = [0; 2];
        for round in 0..450 {
            let dir = dir.join(round.to_string());
            fs::create_dir(&dir).unwrap();
            // The last one is that of a descriptor alone.
            let name = ["root.hds", "DiskDescriptor.xml", "a.xml"][round % 3];
            let file = dir.join(name);
            let stop = AtomicBool::new(false);
            let made = thread::scope(|scope| {
                let other = scope.spawn(|| {
                    // At another moment each time.
                    for _ in 0..round * 12 {
                        std::hint::spin_loop();
                        let _ = stop.load(Ordering::Relaxed);
                        let _ = fs::symlink_metadata(&dir);
                    }
                    File::create_new(&file)
                        .map(|mut file| std::io::Write::write_all(&mut file, b"precious").unwrap())
                        .is_ok()
                });
                let created = match name {
                    "a.xml" => Ploop::create_descriptor(&file, &disk::param(&dir)),
                    _ => Ploop::create(&disk::param(&dir)),
                };
                stop.store(true, Ordering::Relaxed);
                let came = other.join().unwrap();
                if came {
                    assert_eq!(fs::read(&file).unwrap(), b"precious", "round {round}");
                    assert_eq!(created.err().unwrap().kind(), ErrorKind::AlreadyExists);
                    // Nothing else is left.
                    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "round {round}");
                } else {
                    created.unwrap().descriptor().unwrap();
                    // And the lock file.
                    let files = if name == "a.xml" { 2 } else { 3 };
                    assert_eq!(fs::read_dir(&dir).unwrap().count(), files, "round {round}");
                }
                came
            });
            won[usize::from(made)] += 1;
        }
        assert!(won.iter().all(|rounds| *rounds > 0), "no race: {won:?}");
    })
    .succeeded();
}

fn bytes(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// A name that is not UTF-8 or has control characters ends the descriptor there, with success. The
/// crate refuses such names, in all places a name can come from.
fn h0_11_h4_26_names_that_cut_the_descriptor() {
    child("raw", |dir| {
        let file = dir.join(bytes(b"\xff.hds"));
        assert_eq!(raw::create_image(&file, 2048, |_| ()), 0);
        // It ends within the name, closes what is open, and has no snapshots.
        refused(
            ploop::Descriptor::open(disk::descriptor(dir)),
            ErrorKind::Corrupt,
        );
    })
    .succeeded();
    child("safe", |dir| {
        let mut image = disk::create(dir);
        let before = Contents::of(dir);
        for name in [
            &b"\xff.hds"[..],
            b"a\x01.hds",
            b"a\nb",
            b"a\x7f",
            "a\u{85}".as_bytes(),
        ] {
            let file = dir.join(bytes(name));
            let param = CreateParam::new(&file, disk::SIZE).fs(None);
            for error in creation_errors(dir, &param) {
                assert_eq!(error.path(), Some(&*file), "{error}");
            }
            // Names can also come through a directory outside.
            let outside = tempfile::tempdir().unwrap();
            let outside = outside.path().join(bytes(name));
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("new.hds"), "").unwrap();
            let param = SnapshotParam::new().directory(&outside);
            let merged = MergeParam::new(MergeTarget::Top).new_delta(outside.join("x"));
            for error in [image.snapshot_with(&param).unwrap_err(), {
                let target = ReplaceTarget::File(dir.join("root.hds"));
                let param = ReplaceParam::new(outside.join("new.hds"), target);
                image.replace(&param).unwrap_err()
            }] {
                if Need::Root.missing().is_none() {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                    assert!(error.path().unwrap().starts_with(&outside), "{error}");
                }
            }
            image.merge(&merged).unwrap_err();
        }
        before.assert_unchanged("bad names");
        // UTF-8 and XML's own characters are fine.
        let dir = dir.join("good");
        fs::create_dir(&dir).unwrap();
        let file = dir.join("ä%41=€.hds");
        let image = Ploop::create(&CreateParam::new(&file, disk::SIZE).fs(None)).unwrap();
        assert_eq!(image.top_delta_file().unwrap(), file);
    })
    .succeeded();
}

/// An image with this parameter is refused, with a descriptor of its own and with another one.
#[track_caller]
fn creation_errors(dir: &Path, param: &CreateParam) -> [Error; 2] {
    [
        refused(Ploop::create(param), ErrorKind::InvalidInput),
        refused(
            Ploop::create_descriptor(dir.join("a.xml"), param),
            ErrorKind::InvalidInput,
        ),
    ]
}

const SHELL_NAMES: [&str; 12] = [
    ";touch PWNED;",
    "a b",
    "a\tb",
    "$(touch PWNED)",
    "`touch PWNED`",
    "a&touch PWNED&",
    "a|touch PWNED",
    "a>PWNED",
    "a'b",
    "a\"b",
    "*",
    "{a,b}",
];

/// An image's path is pasted into `filefrag -vs …` for `/bin/sh`. The crate makes no image at such a
/// path.
fn h0_12_h4_23_names_that_a_shell_obeys_at_creation() {
    child("safe", |dir| {
        std::env::set_current_dir(dir).unwrap();
        for name in SHELL_NAMES {
            let inside = dir.join(name);
            fs::create_dir(&inside).unwrap();
            let before = Contents::of(dir);
            for file in [inside.join("root.hds"), dir.join(name)] {
                let param = CreateParam::new(&file, disk::SIZE).fs(None);
                for error in creation_errors(dir, &param) {
                    assert_eq!(error.path(), Some(&*file), "{error}");
                    let message = error.message();
                    assert!(
                        message.contains("shell") || message.contains("control character"),
                        "{error}"
                    );
                }
            }
            before.assert_unchanged(name);
        }
    })
    .succeeded();
}

/// As above, with an image that is there already: sparse, so that a mount runs the command.
fn h0_12_h4_23_names_that_a_shell_obeys() {
    let sparse = |dir: &Path| {
        let file = File::options().write(true).open(dir.join("root.hds"));
        file.unwrap().set_len(4 << 20).unwrap();
    };
    child("raw", |dir| {
        std::env::set_current_dir(dir).unwrap();
        disk::create(dir);
        sparse(dir);
        let inside = dir.join(";touch PWNED;");
        fs::create_dir(&inside).unwrap();
        for name in ["root.hds", "DiskDescriptor.xml"] {
            fs::rename(dir.join(name), inside.join(name)).unwrap();
        }
        let handle = raw::Handle::open(&inside.join("DiskDescriptor.xml"));
        handle.mount();
        // 7 checks the deltas once it has a device.
        if is_7() && !dir.join("PWNED").exists() {
            assert_eq!(raw::check_and_mend_holes(&inside.join("root.hds")), 0);
        }
        assert!(dir.join("PWNED").exists(), "nothing was run");
    })
    .succeeded();
    child("safe", |dir| {
        std::env::set_current_dir(dir).unwrap();
        for name in SHELL_NAMES {
            let inside = dir.join(name);
            let plain = dir.join("plain");
            fs::create_dir(&plain).unwrap();
            let (image, guids) = disk::with_snapshots(&plain, 1);
            image.close();
            sparse(&plain);
            fs::rename(&plain, &inside).unwrap();
            let mut image = Ploop::open(disk::descriptor(&inside)).unwrap();
            let before = Contents::of(dir);
            for error in [
                image.mount(&MountParam::new()).unwrap_err(),
                image.snapshot().unwrap_err(),
                image.switch_snapshot(guids[0]).unwrap_err(),
                image.delete_snapshot(guids[0]).unwrap_err(),
                image.convert(ImageMode::Preallocated).unwrap_err(),
                image.set_max_delta_size(Size::from_sectors(1)).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                let message = error.message();
                assert!(
                    message.contains("shell") || message.contains("control character"),
                    "{error}"
                );
                assert!(error.path().unwrap().starts_with(&inside), "{error}");
            }
            before.assert_unchanged(name);
        }
        // Mount points are named in `lsof …`.
        let plain = dir.join("plain");
        fs::create_dir(&plain).unwrap();
        let mut image = disk::create(&plain);
        let target = dir.join(SHELL_NAMES[0]);
        refused(
            image.mount(&MountParam::new().target(&target)),
            ErrorKind::InvalidInput,
        );
        assert!(!dir.join("PWNED").exists());
    })
    .succeeded();
}

/// Without a file system sizes are not checked: one cluster above the maximum of version 1 comes out
/// as one cluster. The crate checks.
fn h0_13_h4_29_sizes_that_come_out_smaller() {
    child("raw", |dir| {
        let sectors = (1 << 32) + 2048;
        let code = raw::create_image(&dir.join("root.hds"), sectors, |param| {
            param.blocksize = 2048;
            param.fmt_version = 1;
        });
        assert_eq!(code, 0);
        let descriptor = ploop::Descriptor::open(disk::descriptor(dir)).unwrap();
        assert!(descriptor.size < Size::from_mib(2), "{}", descriptor.size);
    })
    .succeeded();
    child("safe", |dir| {
        let before = Contents::of(dir);
        for size in [
            Size::from_bytes((512 << 32) + (1 << 20)),
            Size::from_bytes(512 << 32),
            Size::from_bytes(1 << 63),
            Size::from_bytes(u64::MAX),
        ] {
            let param = CreateParam::new(dir.join("root.hds"), size)
                .fs(None)
                .format(FormatVersion::V1);
            for error in [
                Ploop::create(&param).err().unwrap(),
                Ploop::create_descriptor(dir.join("a.xml"), &param)
                    .err()
                    .unwrap(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert!(error.message().contains("size"), "{error}");
            }
        }
        before.assert_unchanged("create");
        // The largest that is left comes out as it was asked for.
        let size = Size::from_sectors(0xffff_ffff);
        let param = CreateParam::new(dir.join("root.hds"), size).fs(None);
        let image = Ploop::create(&param.format(FormatVersion::V1)).unwrap();
        let made = image.descriptor().unwrap().size;
        assert!(
            made <= size && made.bytes() + (1 << 20) > size.bytes(),
            "{made}"
        );
    })
    .succeeded();
}

/// A stream may ask for a buffer of 4 GiB. The memory is not touched before data comes, so this ends
/// as any other stream that breaks off.
fn h4_31_a_stream_asks_for_all_memory() {
    child("safe", |dir| {
        for size in [0xffff_ffffu32, 0x8000_0000, 0x7fff_ffff] {
            let (reader, mut writer) = pipe();
            let mut packet = 0x4cc0_ac3du32.to_ne_bytes().to_vec();
            packet.extend(size.to_ne_bytes());
            packet.extend(0u64.to_ne_bytes());
            std::io::Write::write_all(&mut writer, &packet).unwrap();
            drop(writer);
            let error = ploop::copy::receive(dir.join("copy"), reader, None).unwrap_err();
            assert_eq!(error.path(), Some(&*dir.join("copy")), "{error}");
            assert!(!dir.join("copy").exists());
        }
    })
    .succeeded();
}

fn temporary(dir: &Path, suffix: &str) -> PathBuf {
    dir.join(format!("DiskDescriptor.xml{suffix}"))
}

/// Every change of an image, each on a fresh one in a directory of its own, prepared by `prepare`.
/// `check` looks at the result.
fn for_each_change<T>(
    dir: &Path,
    prepare: impl Fn(&Path) -> T,
    check: impl Fn(&str, &Path, ploop::Result<()>),
) {
    type Change = fn(&mut Ploop, &[ploop::Guid], &Path) -> ploop::Result<()>;
    let changes: [(&str, Change); 10] = [
        ("snapshot", |image, _, _| image.snapshot().map(drop)),
        ("switch", |image, guids, _| image.switch_snapshot(guids[0])),
        ("delete leaf", |image, guids, _| {
            image.delete_snapshot(guids[2])
        }),
        ("delete top", |image, _, _| image.delete_top_delta()),
        ("delete middle", |image, guids, _| {
            image.delete_snapshot(guids[0])
        }),
        ("merge", |image, _, _| {
            image.merge(&MergeParam::new(MergeTarget::Top))
        }),
        ("merge to new", |image, _, dir| {
            image.merge(&MergeParam::new(MergeTarget::Top).new_delta(dir.join("new.hds")))
        }),
        ("convert", |image, _, _| {
            image.convert(ImageMode::Preallocated)
        }),
        ("convert to raw", |image, _, _| {
            image.convert(ImageMode::Raw)
        }),
        ("max delta size", |image, _, _| {
            image.set_max_delta_size(Size::from_sectors(77))
        }),
    ];
    for (name, change) in changes {
        let dir = dir.join(name.replace(' ', "-"));
        fs::create_dir(&dir).unwrap();
        // base – guids[0] – guids[1] – top, and guids[2] is a leaf on guids[0].
        let (mut image, mut guids) = disk::with_snapshots(&dir, 1);
        let leaf = image
            .switch_snapshot_with(guids[0], ploop::SwitchFlag::SKIP_DESTROY)
            .unwrap()
            .unwrap();
        guids.push(image.snapshot().unwrap());
        guids.push(leaf);
        if name == "delete middle" {
            image.delete_snapshot(leaf).unwrap();
        }
        let prepared = prepare(&dir);
        let result = change(&mut image, &guids, &dir);
        drop(prepared);
        check(name, &dir, result);
    }
}

/// That the image is whole: every delta the descriptor names is there.
#[track_caller]
fn assert_whole(dir: &Path, after: &str) {
    let descriptor = ploop::Descriptor::open(disk::descriptor(dir)).unwrap();
    for image in &descriptor.images {
        assert!(
            image.file.exists(),
            "{} is gone after {after}",
            image.file.display()
        );
    }
}

/// The temporary descriptor cannot be created because a directory has its name: libploop goes on, and
/// reports success. The crate looks first.
fn h0_10_h4_25_a_descriptor_that_cannot_be_written() {
    child("raw", |dir| {
        let (image, _) = disk::with_snapshots(dir, 1);
        let top = image.top_delta_file().unwrap();
        fs::create_dir(temporary(dir, ".tmp")).unwrap();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.set_max_delta_size(77), 0);
        assert_eq!(image.descriptor().unwrap().max_delta_size, None);
        assert_eq!(handle.delete(disk::TOP), 0);
        assert!(!top.exists());
        assert_eq!(image.top_delta_file().unwrap(), top);
    })
    .succeeded();
    for suffix in [".tmp", ".tmp.tmp"] {
        child(&format!("safe {suffix}"), |dir| {
            for_each_change(
                dir,
                |dir| {
                    let blocked = temporary(dir, suffix);
                    fs::create_dir(&blocked).unwrap();
                    fs::write(blocked.join("precious"), "").unwrap();
                },
                |name, dir, result| {
                    assert!(temporary(dir, suffix).join("precious").exists());
                    match result {
                        Ok(()) => {
                            // It did not need that name. What it says was done was done.
                            if name == "max delta size" {
                                let now = ploop::Descriptor::open(disk::descriptor(dir)).unwrap();
                                assert_eq!(now.max_delta_size, Some(Size::from_sectors(77)));
                            }
                        }
                        Err(error) => {
                            let path = error.path().unwrap_or(Path::new("")).to_string_lossy();
                            assert!(
                                path.ends_with(".tmp") || error.message().contains(".tmp"),
                                "{name}: {error}"
                            );
                        }
                    }
                    assert_whole(dir, name);
                },
            );
        })
        .succeeded();
    }
}

/// As above, because the process has no file descriptor left. The crate notices in one place or the
/// other; what it reports as done is done, and no delta is lost.
fn h0_10_h4_25_no_descriptors_left() {
    child("safe", |dir| {
        for spare in 0..14 {
            let dir = dir.join(spare.to_string());
            fs::create_dir(&dir).unwrap();
            let (mut image, guids) = disk::with_snapshots(&dir, 2);
            let top = image.top_delta_file().unwrap();
            // What is opened once stays open, and counts as spare.
            image.set_max_delta_size(Size::from_sectors(5)).unwrap();
            let used = used_descriptors();
            limit_descriptors(used + spare);
            let sized = image.set_max_delta_size(Size::from_sectors(77));
            let deleted = image.delete_top_delta();
            let snapshot = image.snapshot();
            limit_descriptors(1024);
            assert_whole(&dir, &format!("with {spare} descriptors"));
            let now = image.descriptor().unwrap();
            let size = if sized.is_ok() { 77 } else { 5 };
            assert_eq!(
                now.max_delta_size,
                Some(Size::from_sectors(size)),
                "{spare}"
            );
            assert_eq!(deleted.is_ok(), !top.exists(), "{spare}");
            match snapshot {
                Ok(guid) => assert!(now.snapshot(guid).is_some()),
                Err(error) => assert_ne!(error.kind(), ErrorKind::Corrupt, "{spare}: {error}"),
            }
            assert!(now.snapshot(guids[0]).is_some());
        }
    })
    .succeeded();
}

fn used_descriptors() -> u64 {
    let used = fs::read_dir("/proc/self/fd").unwrap();
    let highest = used
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok())
        .max();
    highest.unwrap_or(2)
}

fn limit_descriptors(count: u64) {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: 1024,
    };
    // SAFETY: the limit outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// As above, because the file system is read-only.
fn h0_10_h4_25_a_read_only_file_system() {
    child("safe", |dir| {
        mounts::private(|| {
            let (mut image, guids) = disk::with_snapshots(dir, 2);
            let before = Contents::of(dir);
            mounts::read_only(dir);
            for error in [
                image
                    .set_max_delta_size(Size::from_sectors(77))
                    .unwrap_err(),
                image.delete_top_delta().unwrap_err(),
                image.delete_snapshot(guids[0]).unwrap_err(),
                image.snapshot().unwrap_err(),
                image.switch_snapshot(guids[0]).unwrap_err(),
                image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
                image.convert(ImageMode::Raw).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
                assert!(error.path().unwrap().starts_with(dir), "{error}");
            }
            before.assert_unchanged("changes");
        });
    })
    .succeeded();
}

/// `File` in the descriptor may name anything, and deleting or merging that delta deletes or
/// overwrites it. The crate works on files that are deltas.
fn h4_33_a_descriptor_names_a_foreign_file() {
    let foreign = |dir: &Path, top: &Path| {
        let precious = dir.join("precious.txt");
        fs::write(&precious, "precious").unwrap();
        let name = top.file_name().unwrap().to_str().unwrap().to_owned();
        disk::edit(dir, |text| {
            text.replace(
                &format!("<File>{name}</File>"),
                &format!("<File>{}</File>", precious.display()),
            )
        });
        precious
    };
    child("raw", |dir| {
        let (image, _) = disk::with_snapshots(dir, 1);
        let precious = foreign(dir, &image.top_delta_file().unwrap());
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.delete(disk::TOP), 0);
        assert!(!precious.exists());
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guids) = disk::with_snapshots(dir, 2);
        let top = image.top_delta_file().unwrap();
        let precious = foreign(dir, &top);
        let before = Contents::of(dir);
        let target = ReplaceTarget::Guid(ploop::Guid::TOP);
        for error in [
            image.delete_top_delta().unwrap_err(),
            image.switch_snapshot(guids[0]).unwrap_err(),
            image.snapshot().unwrap_err(),
            image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
            image.merge(&MergeParam::new(MergeTarget::All)).unwrap_err(),
            image.mount(&MountParam::new()).unwrap_err(),
            image.replace(&ReplaceParam::new(&top, target)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert_eq!(error.path(), Some(&*precious), "{error}");
        }
        before.assert_unchanged("changes");
    })
    .succeeded();
}

/// A conversion to raw that finds `<base>.tmp` there fails and removes it. The crate looks first.
fn ha_1_convert_removes_a_file_it_did_not_make() {
    child("raw", |dir| {
        disk::create(dir);
        let precious = dir.join("root.hds.tmp");
        fs::write(&precious, "precious").unwrap();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_ne!(handle.convert(sys::PLOOP_RAW_MODE), 0);
        assert!(!precious.exists());
    })
    .succeeded();
    child("safe", |dir| {
        let mut image = disk::create(dir);
        let precious = dir.join("root.hds.tmp");
        fs::write(&precious, "precious").unwrap();
        let before = Contents::of(dir);
        let error = refused(image.convert(ImageMode::Raw), ErrorKind::AlreadyExists);
        assert_eq!(error.path(), Some(&*precious), "{error}");
        before.assert_unchanged("convert");
        fs::remove_file(precious).unwrap();
        image.convert(ImageMode::Raw).unwrap();
        assert_eq!(image.descriptor().unwrap().mode, ImageMode::Raw);
        assert_eq!(
            fs::metadata(dir.join("root.hds")).unwrap().len(),
            disk::SIZE.bytes()
        );
    })
    .succeeded();
}

/// The temporary descriptor is opened through a symbolic link, and what it leads to is overwritten.
/// The crate does not follow.
fn ha_2_the_temporary_descriptor_is_a_link() {
    child("raw", |dir| {
        disk::create(dir);
        let precious = dir.join("precious.txt");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, temporary(dir, ".tmp")).unwrap();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        handle.set_max_delta_size(77);
        assert_ne!(fs::read(&precious).unwrap(), b"precious");
    })
    .succeeded();
    for suffix in [".tmp", ".tmp.tmp"] {
        child(&format!("safe {suffix}"), |dir| {
            let outside = dir.join("outside");
            fs::create_dir(&outside).unwrap();
            let precious = outside.join("precious.txt");
            fs::write(&precious, "precious").unwrap();
            let before = Contents::of(&outside);
            for_each_change(
                dir,
                |dir| symlink(&precious, temporary(dir, suffix)).unwrap(),
                |name, dir, _| {
                    before.assert_unchanged(name);
                    assert_whole(dir, name);
                },
            );
        })
        .succeeded();
    }
}

/// With `KEEP_NAME`, a rename that fails is reported as success: the new file is not in use. The crate
/// looks at what was done.
fn ha_3_replace_reports_success_when_it_could_not_rename() {
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        let (old, new) = (dir.join("root.hds"), dir.join("new.hds"));
        fs::copy(&old, &new).unwrap();
        let held = Immutable::make(&old).unwrap();
        (image, guids[0], new, held)
    };
    child("raw", |dir| {
        let (_, guid, new, _held) = prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let flags = sys::PLOOP_REPLACE_KEEP_NAME;
        assert_eq!(handle.replace(&new, &guid.to_string(), flags), 0);
        assert!(new.exists(), "it was renamed after all");
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guid, new, _held) = prepare(dir);
        let before = Contents::of(dir);
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guid));
        let error = refused(
            image.replace(&param.flags(ReplaceFlag::KEEP_NAME)),
            ErrorKind::Io,
        );
        assert_eq!(error.path(), Some(&*new), "{error}");
        before.assert_unchanged("replace");
        drop(_held);
        // And where nothing is in the way it works.
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guid));
        image.replace(&param.flags(ReplaceFlag::KEEP_NAME)).unwrap();
        assert!(!new.exists());
    })
    .succeeded();
}

/// A merge of deltas of both versions of the format writes entries of the upper one's kind to the
/// lower one's table, and reports success. The crate compares the versions.
fn ha_6_a_merge_mixes_versions() {
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        disk::write_first_cluster(&image.top_delta_file().unwrap(), 7);
        let base = File::options().write(true).open(dir.join("root.hds"));
        std::os::unix::fs::FileExt::write_all_at(&base.unwrap(), b"WithouFreSpacExt", 0).unwrap();
        (image, guids[0])
    };
    child("raw", |dir| {
        prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.merge(None, None, None), 0);
        // The second version counts clusters, and this is the sector.
        let base = fs::read(dir.join("root.hds")).unwrap();
        let entry = u32::from_le_bytes(*base[64..].first_chunk().unwrap()) as usize;
        assert_eq!(base[entry * 512], 7);
        assert!(entry * disk::CLUSTER as usize > base.len(), "{entry}");
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guid) = prepare(dir);
        let before = Contents::of(dir);
        for error in [
            image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
            image.delete_snapshot(guid).unwrap_err(),
            image.mount(&MountParam::new()).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.message().contains("version"), "{error}");
        }
        before.assert_unchanged("merge");
    })
    .succeeded();
}

/// libploop opens whatever is in place of a delta, and waits for somebody to write to a pipe, with the
/// lock held. The crate looks what it is.
fn ha_7_a_pipe_is_waited_for() {
    let moment = std::time::Duration::from_secs(3);
    let make_pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        let path = raw::text(path);
        // SAFETY: the path is terminated.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    };
    child_for(moment, "raw", |dir| {
        disk::create(dir);
        make_pipe(&dir.join("root.hds"));
        raw::Handle::open(&disk::descriptor(dir)).info();
    })
    .hung();
    child_for(10 * moment, "safe", |dir| {
        for name in ["DiskDescriptor.xml", "root.hds"] {
            let dir = dir.join(name);
            fs::create_dir(&dir).unwrap();
            let mut image = disk::create(&dir);
            make_pipe(&dir.join(name));
            for error in [
                image.snapshot().unwrap_err(),
                image.image_info().unwrap_err(),
                ploop::fs_info(disk::descriptor(&dir)).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert_eq!(error.path(), Some(&*dir.join(name)), "{error}");
            }
            if name == "DiskDescriptor.xml" {
                refused(Ploop::open(disk::descriptor(&dir)), ErrorKind::InvalidInput);
            }
        }
        // The note of the file system's size, too.
        let dir = dir.join("note");
        fs::create_dir(&dir).unwrap();
        disk::create(&dir);
        fs::write(dir.join(".statfs"), "").unwrap();
        make_pipe(&dir.join(".statfs"));
        ploop::fs_info(disk::descriptor(&dir)).unwrap_err();
    })
    .succeeded();
}

/// 7 does not compare the new file with the old one. The crate does.
fn ha_70_replace_takes_any_file() {
    // A delta of a disk that is twice as large.
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        let other = dir.join("other");
        fs::create_dir(&other).unwrap();
        let size = Size::from_bytes(2 * disk::SIZE.bytes());
        let param = CreateParam::new(other.join("root.hds"), size).cluster(disk::cluster());
        Ploop::create(&param.fs(None).format(FormatVersion::V1)).unwrap();
        (image, guids[0], other.join("root.hds"))
    };
    child("raw", |dir| {
        let (_, guid, new) = prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        assert_eq!(handle.replace(&new, &guid.to_string(), 0) == 0, is_7());
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, guid, new) = prepare(dir);
        let before = Contents::of(dir);
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guid));
        refused(image.replace(&param), ErrorKind::Corrupt);
        before.assert_unchanged("replace");
    })
    .succeeded();
}

/// 7 writes the name of a key to the descriptor of an image whose data are as they were. The crate looks
/// whether they are encrypted.
fn ha_72_a_key_is_named_and_nothing_encrypted() {
    child("raw", |dir| {
        disk::create(dir);
        let file = fs::read(dir.join("root.hds")).unwrap();
        let handle = raw::Handle::open(&disk::descriptor(dir));
        if let Some(code) = handle.set_key("key") {
            assert_eq!(code, 0);
            let text = fs::read_to_string(disk::descriptor(dir)).unwrap();
            assert!(text.contains("<KeyId>key</KeyId>"), "{text}");
        }
        assert_eq!(fs::read(dir.join("root.hds")).unwrap(), file);
    })
    .succeeded();
    child("safe", |dir| {
        let mut image = disk::create(dir);
        let before = Contents::of(dir);
        let kind = by_line(ErrorKind::Unsupported, ErrorKind::InvalidInput);
        refused(image.set_encryption_key("key"), kind);
        before.assert_unchanged("the name of a key");
    })
    .succeeded();
}

/// Some versions of 7 take a full delta for damaged, on ext4. The crate replaces it without them.
fn ha_73_replace_refuses_a_sound_delta() {
    let prepare = |dir: &Path| {
        let param = disk::param(dir).mode(ImageMode::Preallocated);
        let image = Ploop::create(&param).unwrap();
        let new = dir.join("copy.hds");
        fs::copy(dir.join("root.hds"), &new).unwrap();
        (image, new)
    };
    child("raw", |dir| {
        let (_, new) = prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let code = handle.replace(&new, disk::TOP, 0);
        let refused = Code::PLOOPFMT.get();
        assert_eq!(code, if refuses_full_deltas(dir) { refused } else { 0 });
    })
    .succeeded();
    child("safe", |dir| {
        let (mut image, new) = prepare(dir);
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
        image.replace(&param).unwrap();
        assert_eq!(image.top_delta_file().unwrap(), new);
        let report = ploop::image::check(disk::descriptor(dir));
        assert!(report.is_sound(), "{report}");
    })
    .succeeded();
}

/// libploop merges the data, and then finds that it cannot write the descriptor: the snapshots look as they were, and are
/// not. The crate replaces the descriptor by itself first.
fn ha_57_a_merge_whose_descriptor_cannot_be_replaced() {
    child("safe", |dir| {
        let mut image = disk::create(dir);
        let snapshot = image.snapshot().unwrap();
        let top = image.top_delta_file().unwrap();
        disk::write_first_cluster(&top, 3);
        let before = Contents::of(dir);
        let immutable = Immutable::make(image.path()).unwrap();
        for result in [
            image.merge(&MergeParam::new(MergeTarget::All)),
            image.delete_snapshot(snapshot),
        ] {
            refused(result, ErrorKind::PermissionDenied);
        }
        before.assert_unchanged("two merges that cannot end");
        drop(immutable);
        image.delete_snapshot(snapshot).unwrap();
        assert_eq!(disk::first_byte(&dir.join("root.hds")), Some(3));
        assert!(ploop::image::check(image.path()).is_sound());
    })
    .succeeded();
}
