//! Whatever a caller or a damaged image may bring: a clear error that names the culprit, and nothing
//! on disk is changed. Lock files are the exception; libploop makes them and leaves them.

mod fixture;
mod work_done;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use fastrand::Rng;
use ploop::image::Header;
use ploop::{
    ClusterSize, ComponentName, CreateParam, Descriptor, DiscardParam, Error, ErrorKind,
    FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, MountParam, Ploop, ReplaceParam,
    ReplaceTarget, ResizeMode, Size, SnapshotParam, SwitchFlag, TemporarySnapshotParam, copy,
    device, fs_info, log,
};

use fixture::child::{child, child_for};
use fixture::directory::Contents;
use fixture::disk::{self, Immutable};
use fixture::harness::{Need, Test};
use fixture::mounts;
use fixture::pipe::pipe;
use fixture::refused::refused;

fn main() -> ExitCode {
    // Thousands of changes, none of which has to survive a power cut: those that have to are the sandbox's tests.
    ploop::durability::set_sync(false);
    let any: &[Need] = &[];
    let root: &[Need] = &[Need::Root];
    let no_driver: &[Need] = &[Need::Root, Need::NoDriver];
    let mounts: &[Need] = &[Need::Root, Need::Mounts];
    let immutable: &[Need] = &[Need::Root, Need::ImmutableFiles];
    let tests: Vec<Test> = tests![
        any =>
            sizes_and_clusters,
            guids_and_names,
            places_for_a_new_image;
        root =>
            paths_that_are_none,
            paths_that_lead_nowhere,
            files_of_another_kind,
            deltas_that_are_none,
            descriptors_that_cannot_be_read,
            descriptors_that_contradict_themselves,
            descriptors_without_geometry,
            descriptors_with_a_million_elements,
            descriptors_with_anything_in_them,
            headers_with_anything_in_them,
            snapshots_that_are_not_there,
            the_127th_snapshot,
            an_unprivileged_user;
        no_driver =>
            no_driver_to_attach_to;
        mounts =>
            a_read_only_directory,
            a_full_disk;
        immutable =>
            an_immutable_directory;
    ];
    fixture::harness::run(tests)
}

/// What operations are given besides the image.
struct Arguments {
    dir: PathBuf,
    guid: Guid,
    /// A file that could take a delta's place.
    copy: PathBuf,
}

type Operation = fn(&mut Ploop, &Arguments) -> ploop::Result<()>;

/// Everything that changes an image and needs no driver, or finds something wrong before it needs it.
const CHANGES: &[(&str, Operation)] = &[
    ("snapshot", |image, _| image.snapshot().map(drop)),
    ("temporary snapshot", |image, _| {
        let name = ComponentName::new("backup")?;
        image
            .temporary_snapshot(&TemporarySnapshotParam::new(name))
            .map(drop)
    }),
    ("switch", |image, arguments| {
        image.switch_snapshot(arguments.guid)
    }),
    ("switch and keep", |image, arguments| {
        image
            .switch_snapshot_with(arguments.guid, SwitchFlag::SKIP_DESTROY)
            .map(drop)
    }),
    ("switch to itself", |image, arguments| {
        image
            .switch_snapshot_with(arguments.guid, SwitchFlag::SKIP_CREATE)
            .map(drop)
    }),
    ("delete", |image, arguments| {
        image.delete_snapshot(arguments.guid)
    }),
    ("delete top", |image, _| image.delete_top_delta()),
    ("merge", |image, _| {
        image.merge(&MergeParam::new(MergeTarget::Top))
    }),
    ("merge all", |image, _| {
        image.merge(&MergeParam::new(MergeTarget::All))
    }),
    ("merge to new", |image, arguments| {
        let new = arguments.dir.join("merged.hds");
        image.merge(&MergeParam::new(MergeTarget::All).new_delta(new))
    }),
    ("replace", |image, arguments| {
        let target = ReplaceTarget::Guid(arguments.guid);
        image.replace(&ReplaceParam::new(&arguments.copy, target))
    }),
    ("preallocate", |image, _| {
        image.convert(ImageMode::Preallocated)
    }),
    ("convert to raw", |image, _| image.convert(ImageMode::Raw)),
    ("set max delta size", |image, _| {
        image.set_max_delta_size(Size::from_sectors(77))
    }),
    ("mount", |image, _| {
        image.mount(&MountParam::new()).map(drop)
    }),
    ("resize", |image, _| {
        image.resize(Size::from_mib(20), ResizeMode::Offline)
    }),
    ("discard", |image, _| image.discard(&DiscardParam::new())),
    ("fs info", |image, _| fs_info(image.path()).map(drop)),
];

/// Everything that only looks.
const LOOKS: &[(&str, Operation)] = &[
    ("descriptor", |image, _| image.descriptor().map(drop)),
    ("top delta file", |image, _| {
        image.top_delta_file().map(drop)
    }),
    ("base delta file", |image, _| {
        image.base_delta_file().map(drop)
    }),
    ("image info", |image, _| image.image_info().map(drop)),
    ("is mounted", |image, _| image.is_mounted().map(drop)),
    ("device", |image, _| image.device().map(drop)),
    ("devices", |image, _| image.devices().map(drop)),
    ("discard stat", |image, _| image.discard_stat().map(drop)),
    ("unmount", |image, _| image.umount()),
];

/// An image with a snapshot, and a copy of its base.
fn prepare(dir: &Path) -> (Ploop, Arguments) {
    let (image, guids) = disk::with_snapshots(dir, 1);
    let copy = dir.join("copy.hds");
    fs::copy(dir.join("root.hds"), &copy).unwrap();
    let arguments = Arguments {
        dir: dir.to_owned(),
        guid: guids[0],
        copy,
    };
    (image, arguments)
}

/// That the error is of one of these kinds, and names the path in one way or the other.
#[track_caller]
fn assert_names(what: &str, error: &Error, kinds: &[ErrorKind], path: &Path) {
    assert!(
        kinds.contains(&error.kind()),
        "{what}: {:?}, not {kinds:?}: {error}",
        error.kind()
    );
    let named = error.path() == Some(path)
        || (path != Path::new("") && error.to_string().contains(&*path.to_string_lossy()));
    assert!(named, "{what} does not name {}: {error}", path.display());
}

/// Calls every function that takes a path with this one, and returns what it said.
fn with_path(image: &mut Ploop, dir: &Path, path: &Path) -> Vec<(&'static str, Error)> {
    let bare = |file: &Path| CreateParam::new(file, disk::SIZE).fs(None);
    let component = || ComponentName::new("backup").unwrap();
    let base = ReplaceTarget::File(dir.join("root.hds"));
    let mut errors = Vec::new();
    let mut expect = |what, result: ploop::Result<()>| {
        let Err(error) = result else {
            panic!("{what} takes {path:?}");
        };
        errors.push((what, error));
    };
    expect("open", Ploop::open(path).map(drop));
    expect("create", Ploop::create(&bare(path)).map(drop));
    expect(
        "create with file system",
        Ploop::create(&CreateParam::new(path, disk::SIZE)).map(drop),
    );
    expect(
        "create descriptor for it",
        Ploop::create_descriptor(dir.join("new.xml"), &bare(path)).map(drop),
    );
    expect(
        "create descriptor there",
        Ploop::create_descriptor(path, &bare(&dir.join("new.hds"))).map(drop),
    );
    expect("fs info", fs_info(path).map(drop));
    expect(
        "mount",
        image.mount(&MountParam::new().target(path)).map(drop),
    );
    expect(
        "snapshot",
        image
            .snapshot_with(&SnapshotParam::new().directory(path))
            .map(drop),
    );
    expect(
        "temporary snapshot",
        image
            .temporary_snapshot(&TemporarySnapshotParam::new(component()).directory(path))
            .map(drop),
    );
    expect(
        "temporary snapshot's target",
        image
            .temporary_snapshot(&TemporarySnapshotParam::new(component()).target(path))
            .map(drop),
    );
    expect(
        "merge",
        image.merge(&MergeParam::new(MergeTarget::Top).new_delta(path)),
    );
    expect("replace by", image.replace(&ReplaceParam::new(path, base)));
    expect(
        "replace",
        image.replace(&ReplaceParam::new(
            dir.join("copy.hds"),
            ReplaceTarget::File(path.to_owned()),
        )),
    );
    let (input, output) = pipe();
    drop(output);
    expect("receive", copy::receive(path, input, None));
    expect("descriptor", Descriptor::open(path).map(drop));
    expect("header", Header::read(path).map(drop));
    expect("log", log::set_log_file(Some(path)));
    errors
}

/// Empty, with a NUL, and too long: before anything else, whatever the function.
fn paths_that_are_none() {
    child("safe", |dir| {
        let (mut image, _) = prepare(dir);
        let before = Contents::of(dir);
        let long = dir.join("x/".repeat(2048));
        for path in [
            Path::new(""),
            Path::new(OsStr::from_bytes(b"/a\0b")),
            Path::new(OsStr::from_bytes(b"\0")),
            Path::new(&"/".repeat(4096)),
            &*long,
        ] {
            for (what, error) in with_path(&mut image, dir, path) {
                // The pure readers say what the system says.
                let kinds: &[ErrorKind] = match what {
                    "descriptor" | "header" => {
                        &[ErrorKind::InvalidInput, ErrorKind::NotFound, ErrorKind::Io]
                    }
                    _ => &[ErrorKind::InvalidInput],
                };
                assert_names(what, &error, kinds, path);
            }
            for (what, error) in [
                ("find", device::find(path, None).unwrap_err()),
                ("by mount", device::by_mount_point(path).unwrap_err()),
                (
                    "partition",
                    device::partition_by_mount_point(path).unwrap_err(),
                ),
                ("mount point", device::mount_point(path).unwrap_err()),
                ("top delta", device::top_delta(path).unwrap_err()),
                ("umount", device::umount(path).unwrap_err()),
                (
                    "send",
                    copy::send(path, io::stdout().as_fd(), None).unwrap_err(),
                ),
            ] {
                assert_names(what, &error, &[ErrorKind::InvalidInput], path);
            }
            before.assert_unchanged(&path.to_string_lossy()[..path.as_os_str().len().min(9)]);
        }
    })
    .succeeded();
}

/// A directory that is missing, below a file, or a link in a circle.
fn paths_that_lead_nowhere() {
    child("safe", |dir| {
        let (mut image, _) = prepare(dir);
        symlink("circle", dir.join("circle")).unwrap();
        let before = Contents::of(dir);
        for (path, kind) in [
            (dir.join("missing/file"), ErrorKind::NotFound),
            (dir.join("root.hds/file"), ErrorKind::Io),
            (dir.join("circle/file"), ErrorKind::Io),
        ] {
            for (what, error) in with_path(&mut image, dir, &path) {
                // The directory is named where the file is to be made.
                let named = error.path().and_then(Path::parent) == path.parent()
                    || error.path() == path.parent();
                assert!(
                    error.kind() == kind || kind == ErrorKind::Io,
                    "{what}: {error:?}"
                );
                if !named {
                    assert_names(what, &error, &[error.kind()], &path);
                }
            }
            // No device has it; or the system says why it cannot be asked.
            match device::find(&path, None) {
                Ok(device) => assert_eq!(device, None),
                Err(error) => assert_names("find", &error, &[ErrorKind::Io], &path),
            }
            before.assert_unchanged(&path.to_string_lossy());
        }
        // The descriptor goes after it was opened.
        let name = disk::descriptor(dir);
        fs::rename(&name, dir.join("moved.xml")).unwrap();
        let arguments = Arguments {
            dir: dir.to_owned(),
            guid: Guid::generate(),
            copy: dir.join("copy.hds"),
        };
        let before = Contents::of(dir);
        for (what, operation) in LOOKS.iter().chain(CHANGES) {
            let error = operation(&mut image, &arguments).unwrap_err();
            assert_names(what, &error, &[ErrorKind::NotFound], &name);
            before.assert_unchanged(what);
        }
    })
    .succeeded();
}

/// Directories, pipes and devices where files belong, files where directories belong.
fn files_of_another_kind() {
    child("safe", |dir| {
        let (mut image, _) = prepare(dir);
        let (folder, fifo) = (dir.join("folder"), dir.join("fifo"));
        fs::create_dir(&folder).unwrap();
        make_fifo(&fifo);
        let before = Contents::of(dir);
        for path in [&folder, &fifo, Path::new("/dev/null")] {
            // There, so nothing can be made of that name; and no file, so nothing can be read.
            for (what, error) in with_path_of_other_kind(&mut image, dir, path) {
                let kinds = [ErrorKind::InvalidInput, ErrorKind::AlreadyExists];
                assert_names(what, &error, &kinds, path);
            }
            before.assert_unchanged(&path.to_string_lossy());
        }
        // Files where directories belong.
        let file = dir.join("root.hds");
        for (what, error) in [
            (
                "mount",
                image.mount(&MountParam::new().target(&file)).unwrap_err(),
            ),
            (
                "snapshot",
                image
                    .snapshot_with(&SnapshotParam::new().directory(&file))
                    .unwrap_err(),
            ),
        ] {
            assert_names(what, &error, &[ErrorKind::InvalidInput], &file);
        }
        before.assert_unchanged("files for directories");
    })
    .succeeded();
}

fn make_fifo(path: &Path) {
    let path = fixture::raw::text(path);
    // SAFETY: the path is terminated.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

fn with_path_of_other_kind(
    image: &mut Ploop,
    dir: &Path,
    path: &Path,
) -> Vec<(&'static str, Error)> {
    let bare = |file: &Path| CreateParam::new(file, disk::SIZE).fs(None);
    let base = ReplaceTarget::File(dir.join("root.hds"));
    let (input, output) = pipe();
    drop(output);
    vec![
        ("open", Ploop::open(path).unwrap_err()),
        ("create", Ploop::create(&bare(path)).unwrap_err()),
        (
            "create descriptor",
            Ploop::create_descriptor(path, &bare(&dir.join("new.hds"))).unwrap_err(),
        ),
        ("fs info", fs_info(path).unwrap_err()),
        (
            "merge",
            image
                .merge(&MergeParam::new(MergeTarget::Top).new_delta(path))
                .unwrap_err(),
        ),
        (
            "replace by",
            image.replace(&ReplaceParam::new(path, base)).unwrap_err(),
        ),
        (
            "replace",
            image
                .replace(&ReplaceParam::new(
                    dir.join("copy.hds"),
                    ReplaceTarget::File(path.to_owned()),
                ))
                .unwrap_err(),
        ),
        ("receive", copy::receive(path, input, None).unwrap_err()),
        ("descriptor", Descriptor::open(path).unwrap_err()),
        ("header", Header::read(path).unwrap_err()),
    ]
}

/// A delta that is missing, a directory, a pipe nobody writes to, empty, or short.
fn deltas_that_are_none() {
    for kind in ["missing", "directory", "fifo", "empty", "short", "text"] {
        child_for(Duration::from_secs(120), kind, |dir| {
            let (mut image, arguments) = prepare(dir);
            let delta = image.top_delta_file().unwrap();
            fs::remove_file(&delta).unwrap();
            match kind {
                "missing" => {}
                "directory" => fs::create_dir(&delta).unwrap(),
                "fifo" => make_fifo(&delta),
                "empty" => fs::write(&delta, "").unwrap(),
                "short" => fs::write(&delta, [0; 63]).unwrap(),
                _ => fs::write(&delta, "precious ".repeat(10_000)).unwrap(),
            }
            let before = Contents::of(dir);
            let kinds = match kind {
                "missing" => [ErrorKind::NotFound; 3],
                "directory" | "fifo" => {
                    [ErrorKind::InvalidInput, ErrorKind::Corrupt, ErrorKind::Io]
                }
                // libploop's own words for a short read.
                _ => [ErrorKind::Corrupt, ErrorKind::Corrupt, ErrorKind::Io],
            };
            for (what, operation) in CHANGES.iter().chain(LOOKS) {
                let needs_top = !matches!(
                    *what,
                    // The old top is kept as it is.
                    "switch and keep"
                        | "replace"
                        | "preallocate"
                        | "convert to raw"
                        | "set max delta size"
                );
                let looks_inside =
                    CHANGES.iter().any(|(name, _)| name == what) || *what == "image info";
                if needs_top && looks_inside {
                    println!("{what}");
                    let Err(error) = operation(&mut image, &arguments) else {
                        panic!("{what} does without a delta");
                    };
                    assert_names(what, &error, &kinds, &delta);
                    before.assert_unchanged(what);
                }
            }
            // The descriptor itself is sound.
            assert_eq!(image.top_delta_file().unwrap(), delta);
            assert!(!image.is_mounted().unwrap());
        })
        .succeeded();
    }
}

/// Empty, cut off anywhere, or no XML at all.
fn descriptors_that_cannot_be_read() {
    child_for(Duration::from_secs(200), "safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        let path = disk::descriptor(dir);
        let good = fs::read(&path).unwrap();
        let mut bad: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"\n".to_vec(),
            b"precious".to_vec(),
            b"\0\0\0\0".to_vec(),
            b"<a/>".to_vec(),
            b"\x7fELF\x02\x01\x01".to_vec(),
            b"<!DOCTYPE a [<!ENTITY b SYSTEM \"/etc/passwd\">]><a>&b;</a>".to_vec(),
            "<a>".repeat(100_000).into_bytes(),
        ];
        // The last line break may be missing.
        bad.extend(
            (1..good.len() - 1)
                .step_by(97)
                .map(|len| good[..len].to_vec()),
        );
        for text in &bad {
            fs::write(&path, text).unwrap();
            let before = Contents::of(dir);
            for (what, operation) in LOOKS.iter().chain(CHANGES) {
                let Err(error) = operation(&mut image, &arguments) else {
                    panic!("{what} takes {:?}", String::from_utf8_lossy(text));
                };
                assert_names(what, &error, &[ErrorKind::Corrupt], &path);
            }
            before.assert_unchanged(&format!("{} bytes", text.len()));
        }
    })
    .succeeded();
}

/// Well-formed, but no tree: twice the same GUID, parents in a cycle, no base, no top.
fn descriptors_that_contradict_themselves() {
    child("safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        let path = disk::descriptor(dir);
        let good = fs::read_to_string(&path).unwrap();
        let guid = arguments.guid.to_string();
        let other = Guid::generate().to_string();
        let bad = [
            ("duplicate GUID", good.replace(&guid, disk::TOP)),
            (
                "parent cycle",
                good.replace(&Guid::NONE.to_string(), disk::TOP),
            ),
            ("own parent", good.replace(&Guid::NONE.to_string(), &guid)),
            (
                "unknown parent",
                good.replace(
                    &format!("<ParentGUID>{guid}"),
                    &format!("<ParentGUID>{other}"),
                ),
            ),
            (
                "unknown top",
                good.replace(
                    &format!("<TopGUID>{}", disk::TOP),
                    &format!("<TopGUID>{other}"),
                ),
            ),
            (
                "no cluster",
                good.replace("<Blocksize>128<", "<Blocksize>0<"),
            ),
            ("no GUID", good.replace(&guid, "guid")),
            (
                "no size",
                good.replace("<Disk_size>20480<", "<Disk_size>0<"),
            ),
        ];
        let storage = &good[good.find("<Storage>").unwrap()..good.find("</StorageData>").unwrap()];
        let halves = ["<End>10240</End>", "<Start>10240</Start>"];
        let halves = [
            storage.replace("<End>20480</End>", halves[0]),
            storage.replace("<Start>0</Start>", halves[1]),
        ];
        // What is read, and is nothing for libploop.
        let foreign = [
            (
                "odd cluster",
                good.replace("<Blocksize>128<", "<Blocksize>100<"),
            ),
            ("split disk", good.replace(storage, &halves.concat())),
            (
                "volume upon another",
                good.replace(
                    "<Storage>",
                    "<Volume><Parent>../other</Parent></Volume><Storage>",
                ),
            ),
            (
                "online merge of libploop 9",
                good.replacen("</ParentGUID>", "</ParentGUID><TemporaryZeroSwap/>", 1),
            ),
        ];
        let bad = bad.map(|(problem, text)| (problem, text, ErrorKind::Corrupt));
        let foreign = foreign.map(|(problem, text)| (problem, text, ErrorKind::Unsupported));
        for (problem, text, kind) in bad.into_iter().chain(foreign) {
            assert_ne!(text, good, "{problem}");
            fs::write(&path, text).unwrap();
            let before = Contents::of(dir);
            // libploop 7 knows volumes, and there is none upon which this one stands.
            let missing = match problem {
                "volume upon another" if ploop::sys::SONAME == "libploop.so.7" => {
                    ErrorKind::NotFound
                }
                _ => kind,
            };
            for (what, operation) in CHANGES {
                let error = operation(&mut image, &arguments).unwrap_err();
                let what = format!("{what}, {problem}");
                assert_names(&what, &error, &[kind, missing], &path);
            }
            for (what, operation) in LOOKS {
                // What is of no concern for the answer is not looked at.
                if let Err(error) = operation(&mut image, &arguments) {
                    let kinds = [kind, missing, ErrorKind::NotMounted];
                    assert_names(&format!("{what}, {problem}"), &error, &kinds, &path);
                }
            }
            before.assert_unchanged(problem);
        }
    })
    .succeeded();
}

/// libploop divides by it when it writes the descriptor; it is given one that can be divided by.
fn descriptors_without_geometry() {
    child("safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        for name in ["Cylinders", "Heads"] {
            let path = disk::descriptor(dir);
            let good = fs::read_to_string(&path).unwrap();
            for value in [None, Some("0"), Some("4294967296"), Some("x")] {
                let text: String = good
                    .lines()
                    .filter_map(|line| match (line.contains(name), value) {
                        (true, None) => None,
                        (true, Some(value)) => Some(format!("<{name}>{value}</{name}>\n")),
                        (false, _) => Some(format!("{line}\n")),
                    })
                    .collect();
                fs::write(&path, text).unwrap();
                let before = Contents::of(dir);
                if value == Some("x") {
                    for (what, operation) in CHANGES {
                        let error = operation(&mut image, &arguments).unwrap_err();
                        assert_names(what, &error, &[ErrorKind::Corrupt], &path);
                        assert!(error.message().contains(name), "{what}: {error}");
                    }
                    before.assert_unchanged(name);
                    continue;
                }
                image.set_max_delta_size(Size::from_sectors(4096)).unwrap();
                let now = image.descriptor().unwrap();
                assert_ne!(now.geometry.cylinders.wrapping_mul(now.geometry.heads), 0);
            }
            fs::write(&path, good).unwrap();
        }
    })
    .succeeded();
}

/// Refused, or done in a moment: a million elements of no meaning, as many that have one, and more
/// than a descriptor can be.
fn descriptors_with_a_million_elements() {
    let elements = |kind: &str, good: &str| {
        let shot = |n: usize| {
            format!(
                "<Shot><GUID>{{00000000-0000-0000-0000-{n:012x}}}</GUID><ParentGUID>{}</ParentGUID></Shot>",
                disk::TOP
            )
        };
        let image = |n: usize| {
            format!(
                "<Image><GUID>{{00000000-0000-0000-0000-{n:012x}}}</GUID><File>root.hds</File></Image>"
            )
        };
        match kind {
            "unknown" => good.replace(
                "<Padding>",
                &format!("{}<Padding>", "<a/>".repeat(1_000_000)),
            ),
            "deep" => good.replace(
                "<Padding>",
                &format!(
                    "{}{}<Padding>",
                    "<a>".repeat(1_000_000),
                    "</a>".repeat(1_000_000)
                ),
            ),
            "shots" => good.replace(
                "</Snapshots>",
                &format!(
                    "{}</Snapshots>",
                    (1..1_000_000).map(shot).collect::<String>()
                ),
            ),
            _ => {
                let images: String = (1..50_000).map(image).collect();
                let shots: String = (1..50_000).map(shot).collect();
                good.replace("</Storage>", &format!("{images}</Storage>"))
                    .replace("</Snapshots>", &format!("{shots}</Snapshots>"))
            }
        }
    };
    for kind in ["unknown", "deep", "shots", "both"] {
        child_for(Duration::from_secs(900), kind, |dir| {
            let (mut image, arguments) = prepare(dir);
            let path = disk::descriptor(dir);
            let good = fs::read_to_string(&path).unwrap();
            fs::write(&path, elements(kind, &good)).unwrap();
            for (what, operation) in LOOKS.iter().chain(CHANGES) {
                let begin = work_done::processor_time_of_process();
                let result = operation(&mut image, &arguments);
                let took = work_done::processor_time_of_process() - begin;
                println!("{what}: {took:?} {result:?}");
                assert!(took < Duration::from_secs(30), "{what}: {took:?}");
                if let Err(error) = result {
                    let kinds = [
                        ErrorKind::Corrupt,
                        ErrorKind::NotMounted,
                        ErrorKind::NoDriver,
                        ErrorKind::NoSnapshot,
                        ErrorKind::InvalidInput,
                    ];
                    assert!(kinds.contains(&error.kind()), "{what}: {error}");
                }
                // Those that succeeded changed the image.
                if fs::metadata(&path).unwrap().len() < 100_000 {
                    for entry in fs::read_dir(dir).unwrap() {
                        fs::remove_file(entry.unwrap().path()).unwrap();
                    }
                    image = prepare(dir).0;
                    fs::write(&path, elements(kind, &fs::read_to_string(&path).unwrap())).unwrap();
                }
            }
        })
        .succeeded();
    }
}

/// Lines and elements dropped, doubled, emptied, exchanged, bytes overwritten: what only looks leaves
/// the descriptor to libploop, and nothing may crash or hang.
fn descriptors_with_anything_in_them() {
    child_for(Duration::from_secs(200), "safe", |dir| {
        let (mut image, _) = prepare(dir);
        let path = disk::descriptor(dir);
        let good = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let mut random = Rng::with_seed(0x9e37_79b9_7f4a_7c15);
        for round in 0..1500 {
            let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            for _ in 0..=random.usize(..2) {
                let (at, other) = (random.usize(..lines.len()), random.usize(..lines.len()));
                match random.usize(..6) {
                    0 => drop(lines.remove(at)),
                    1 => lines.insert(other, lines[at].clone()),
                    2 => lines.swap(at, other),
                    3 => {
                        if let (Some(begin), Some(end)) =
                            (lines[at].find('>'), lines[at].rfind("</"))
                        {
                            let values = ["", "-1", "0xffffffffffffffff", "{}", " ", "<b/>"];
                            let value = random.choice(values).unwrap();
                            lines[at].replace_range(begin + 1..end.max(begin + 1), value);
                        }
                    }
                    4 => {
                        lines[at] = lines[at].replace("Image>", "Shot>").replace("GUID", "File");
                    }
                    _ => {
                        let mut bytes = lines[at].clone().into_bytes();
                        if !bytes.is_empty() {
                            let byte = random.usize(..bytes.len());
                            bytes[byte] = random.u8(..128);
                        }
                        lines[at] = String::from_utf8(bytes).unwrap();
                    }
                }
            }
            let text = lines.join("\n");
            fs::write(&path, &text).unwrap();
            for (what, operation) in LOOKS {
                let arguments = Arguments {
                    dir: dir.to_owned(),
                    guid: Guid::TOP,
                    copy: PathBuf::new(),
                };
                // Kept for the report of a crash.
                fs::write(dir.join("last"), format!("{round} {what}\n{text}")).unwrap();
                let _ = operation(&mut image, &arguments);
            }
        }
    })
    .succeeded();
}

/// Every field of a delta's header with every unpleasant value, under every operation that looks
/// into it.
fn headers_with_anything_in_them() {
    child_for(Duration::from_secs(300), "safe", |dir| {
        let mut random = Rng::with_seed(0x2545_f491_4f6c_dd1d);
        let values = [
            0,
            1,
            0x3f,
            0x40,
            0x80,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ff80,
            0xffff_ffff,
            disk::IN_USE,
        ];
        for round in 0..60 {
            let dir = dir.join(round.to_string());
            fs::create_dir(&dir).unwrap();
            let (mut image, arguments) = prepare(&dir);
            let top = image.top_delta_file().unwrap();
            disk::write_first_cluster(&top, 7);
            let broken = [&top, &dir.join("root.hds"), &arguments.copy][round % 3].clone();
            for _ in 0..=random.usize(..3) {
                // Fields, and the first entries of the table.
                let at = 4 * random.u64(..24);
                disk::write_header(&broken, at, random.choice(values).unwrap());
            }
            if random.bool() {
                disk::write_header(&broken, disk::HEADER_IN_USE, disk::IN_USE);
            }
            let (name, operation) = {
                let looks = &LOOKS[3..4];
                let all = CHANGES.len() + looks.len();
                let at = round % all;
                *CHANGES.iter().chain(looks).nth(at).unwrap()
            };
            fs::write(dir.join("last"), name).unwrap();
            let _ = operation(&mut image, &arguments);
            // Whatever it said: the descriptor is whole, and so is every file it names.
            let after = Descriptor::open(disk::descriptor(&dir)).unwrap();
            for delta in &after.images {
                assert!(delta.file.exists(), "{name} lost {}", delta.file.display());
            }
        }
    })
    .succeeded();
}

fn sizes_and_clusters() {
    child("safe", |dir| {
        let file = dir.join("root.hds");
        let before = Contents::of(dir);
        for size in [
            Size::ZERO,
            Size::from_bytes(1 << 62),
            Size::from_bytes(u64::MAX),
            Size::from_gib(2 << 10),
        ] {
            for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
                let param = CreateParam::new(&file, size)
                    .mode(mode)
                    .format(FormatVersion::V1);
                for error in [
                    Ploop::create(&param).unwrap_err(),
                    Ploop::create(&param.clone().fs(None)).unwrap_err(),
                    Ploop::create_descriptor(dir.join("a.xml"), &param.clone().fs(None))
                        .unwrap_err(),
                ] {
                    assert_names("create", &error, &[ErrorKind::InvalidInput], &file);
                    assert!(error.message().contains("size"), "{error}");
                }
            }
        }
        for bytes in [0, 1, 512, 16 << 10, 48 << 10, 100_000, 128 << 20, u64::MAX] {
            let error = refused(ClusterSize::from_bytes(bytes), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("cluster"), "{error}");
        }
        for bytes in [0, 512, 3000, 8192] {
            let param = CreateParam::new(&file, disk::SIZE).fs_block_size(bytes);
            let error = Ploop::create(&param).unwrap_err();
            assert_names("create", &error, &[ErrorKind::InvalidInput], &file);
            assert!(error.message().contains("block size"), "{error}");
        }
        before.assert_unchanged("create");
    })
    .succeeded();
}

fn guids_and_names() {
    for text in [
        "",
        "{}",
        "{5fbaabe3-6958-40ff-92a7-860e329aab4}",
        "{5fbaabe3-6958-40ff-92a7-860e329aab411}",
        "{5fbaabe3-6958-40ff-92a7-860e329aab4g}",
        "5fbaabe3\0",
    ] {
        refused(text.parse::<Guid>(), ErrorKind::InvalidInput);
    }
    for name in ["", "a\0b", "a\nb", "~a", &"x".repeat(64)] {
        refused(ComponentName::new(name), ErrorKind::InvalidInput);
    }
    for mode in ["", "EXPANDED ", "compressed"] {
        let error = refused(mode.parse::<ImageMode>(), ErrorKind::InvalidInput);
        assert!(error.message().contains(mode), "{error}");
    }
    for size in ["", "-1", "1.5.5", "10X", "99999999999999999999G"] {
        refused(size.parse::<Size>(), ErrorKind::InvalidInput);
    }
}

/// What is in the way of a new image, by whatever name it is called.
fn places_for_a_new_image() {
    child("safe", |dir| {
        std::env::set_current_dir(dir).unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        let before = Contents::of(dir);
        let create =
            |path: &str| Ploop::create(&CreateParam::new(path, disk::SIZE).fs(None)).unwrap_err();
        for (path, kind) in [
            ("/", ErrorKind::InvalidInput),
            (".", ErrorKind::InvalidInput),
            ("..", ErrorKind::InvalidInput),
            ("folder/..", ErrorKind::InvalidInput),
            ("folder", ErrorKind::AlreadyExists),
            ("folder/", ErrorKind::AlreadyExists),
            ("dangling", ErrorKind::AlreadyExists),
            ("DiskDescriptor.xml", ErrorKind::InvalidInput),
            ("missing/root.hds", ErrorKind::NotFound),
            ("a b", ErrorKind::InvalidInput),
        ] {
            let error = create(path);
            assert_eq!(error.kind(), kind, "{path}: {error}");
            assert!(error.path().is_some(), "{path}: {error}");
            before.assert_unchanged(path);
        }
        // A relative name is fine.
        let image = Ploop::create(&CreateParam::new("root.hds", disk::SIZE).fs(None)).unwrap();
        assert_eq!(image.top_delta_file().unwrap(), dir.join("root.hds"));
        let before = Contents::of(dir);
        for path in ["root.hds", "other.hds"] {
            assert_eq!(create(path).kind(), ErrorKind::AlreadyExists);
        }
        before.assert_unchanged("create");
    })
    .succeeded();
}

fn snapshots_that_are_not_there() {
    child("safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        let before = Contents::of(dir);
        for guid in [Guid::generate(), Guid::NONE] {
            let unknown = Arguments {
                guid,
                dir: dir.to_owned(),
                copy: arguments.copy.clone(),
            };
            for (what, operation) in CHANGES {
                if matches!(*what, "delete" | "replace") || what.starts_with("switch") {
                    let error = operation(&mut image, &unknown).unwrap_err();
                    let guid = guid.to_string();
                    assert_names(what, &error, &[ErrorKind::NoSnapshot], Path::new(&guid));
                }
            }
            let ends = [
                MergeTarget::Snapshot(guid),
                MergeTarget::Range {
                    from: guid,
                    to: arguments.guid,
                },
                MergeTarget::Range {
                    from: Guid::TOP,
                    to: guid,
                },
            ];
            for target in ends {
                let error = image.merge(&MergeParam::new(target)).unwrap_err();
                let guid = guid.to_string();
                assert_names("merge", &error, &[ErrorKind::NoSnapshot], Path::new(&guid));
            }
            let error = image
                .mount(&MountParam::new().snapshot(guid).read_only(true))
                .unwrap_err();
            let guid = guid.to_string();
            assert_names("mount", &error, &[ErrorKind::NoSnapshot], Path::new(&guid));
        }
        // There, but not to be made or used so.
        let taken = SnapshotParam::new().guid(arguments.guid);
        for (what, error, kind) in [
            (
                "snapshot",
                image.snapshot_with(&taken).unwrap_err(),
                ErrorKind::AlreadyExists,
            ),
            (
                "nil snapshot",
                image
                    .snapshot_with(&SnapshotParam::new().guid(Guid::NONE))
                    .unwrap_err(),
                ErrorKind::InvalidInput,
            ),
            (
                "top snapshot",
                image
                    .snapshot_with(&SnapshotParam::new().guid(Guid::TOP))
                    .unwrap_err(),
                ErrorKind::AlreadyExists,
            ),
            (
                "merge of the base",
                image
                    .merge(&MergeParam::new(MergeTarget::Snapshot(arguments.guid)))
                    .unwrap_err(),
                ErrorKind::InvalidInput,
            ),
            (
                "mount for writing",
                image
                    .mount(&MountParam::new().snapshot(arguments.guid))
                    .unwrap_err(),
                ErrorKind::InvalidInput,
            ),
            (
                "switch to the top",
                image.switch_snapshot(Guid::TOP).unwrap_err(),
                ErrorKind::InvalidInput,
            ),
        ] {
            assert_names(what, &error, &[kind], &disk::descriptor(dir));
        }
        before.assert_unchanged("unknown snapshots");
    })
    .succeeded();
}

fn the_127th_snapshot() {
    child_for(Duration::from_secs(240), "safe", |dir| {
        let (mut image, _) = disk::with_many_snapshots(dir, 125);
        image.snapshot().unwrap();
        let before = Contents::of(dir);
        let error = image.snapshot().unwrap_err();
        let path = disk::descriptor(dir);
        assert_names("snapshot", &error, &[ErrorKind::Unsupported], &path);
        assert!(error.message().contains("126 snapshots"), "{error}");
        before.assert_unchanged("snapshot");
        image.merge(&MergeParam::new(MergeTarget::Top)).unwrap();
        image.snapshot().unwrap();
    })
    .succeeded();
}

fn become_nobody() {
    const NOBODY: u32 = 65_534;
    // SAFETY: the calls take numbers.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(NOBODY), 0);
        assert_eq!(libc::setuid(NOBODY), 0);
    }
}

/// Somebody without rights on the image, and somebody who owns it but may not attach it. Everybody may look
/// in sysfs, so what takes no lock is answered to whoever can read the descriptor.
fn an_unprivileged_user() {
    child("foreign", |dir| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let (image, arguments) = prepare(dir);
        // Every lock file is there.
        image.is_mounted().unwrap();
        image.top_delta_file().unwrap();
        let before = Contents::of(dir);
        become_nobody();
        // The old handle has its lock file open, and keeps what it could do.
        let mut image = Ploop::open(image.path()).unwrap();
        for (what, operation) in LOOKS.iter().chain(CHANGES) {
            if matches!(*what, "is mounted" | "devices") {
                operation(&mut image, &arguments).unwrap();
                continue;
            }
            let error = operation(&mut image, &arguments).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
            let path = error.path().unwrap();
            assert!(
                path.starts_with(dir) || path.starts_with("/var/lock/ploop"),
                "{what}: {error}"
            );
        }
        let param = |name: &str| CreateParam::new(dir.join(name), disk::SIZE).fs(None);
        let nowhere = dir.join("new");
        for (what, error) in [
            (
                "descriptor",
                Ploop::create_descriptor(dir.join("a.xml"), &param("a")).unwrap_err(),
            ),
            ("receive", {
                let (input, output) = pipe();
                drop(output);
                copy::receive(&nowhere, input, None).unwrap_err()
            }),
            ("log", log::set_log_file(Some(&nowhere)).unwrap_err()),
        ] {
            assert_names(what, &error, &[ErrorKind::PermissionDenied], dir);
        }
        before.assert_same_times("everything");
    })
    .succeeded();
    child("create", |dir| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        become_nobody();
        let error = Ploop::create(&disk::param(dir)).unwrap_err();
        assert_names("create", &error, &[ErrorKind::PermissionDenied], dir);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    })
    .succeeded();
    child("own", |dir| {
        let home = dir.join("home");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&home).unwrap();
        chown(&home, Some(65_534), Some(65_534)).unwrap();
        become_nobody();
        let mut image = disk::create(&home);
        assert_eq!(image.descriptor().unwrap().size, disk::SIZE);
        assert_eq!(image.top_delta_file().unwrap(), home.join("root.hds"));
        let before = Contents::of(&home);
        for (what, operation) in LOOKS.iter().chain(CHANGES) {
            let arguments = Arguments {
                dir: home.clone(),
                guid: Guid::TOP,
                copy: home.join("root.hds"),
            };
            if LOOKS[..7].iter().any(|(look, _)| look == what) {
                operation(&mut image, &arguments).unwrap();
            } else {
                let error = operation(&mut image, &arguments).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
                assert!(error.path().is_some(), "{what}: {error}");
            }
        }
        before.assert_unchanged("everything");
    })
    .succeeded();
}

fn a_read_only_directory() {
    child("safe", |dir| {
        mounts::private(|| {
            let (mut image, arguments) = prepare(dir);
            let before = Contents::of(dir);
            mounts::read_only(dir);
            refuses_to_write(&mut image, &arguments, dir);
            before.assert_unchanged("everything");
        });
    })
    .succeeded();
}

fn an_immutable_directory() {
    child("safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        let before = Contents::of(dir);
        let held = Immutable::make(dir).unwrap();
        refuses_to_write(&mut image, &arguments, dir);
        before.assert_unchanged("everything");
        drop(held);
        image.snapshot().unwrap();
    })
    .succeeded();
}

#[track_caller]
fn refuses_to_write(image: &mut Ploop, arguments: &Arguments, dir: &Path) {
    for (what, operation) in CHANGES {
        // These need the driver before they write.
        let needs_driver = [
            "temporary snapshot",
            "mount",
            "resize",
            "discard",
            "fs info",
        ];
        if !needs_driver.contains(what) {
            let error = operation(image, arguments).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
            assert!(error.path().unwrap().starts_with(dir), "{what}: {error}");
        }
    }
    let new = dir.join("new.hds");
    let param = CreateParam::new(&new, disk::SIZE).fs(None);
    let (input, output) = pipe();
    drop(output);
    for (what, error) in [
        (
            "create descriptor",
            Ploop::create_descriptor(dir.join("new.xml"), &param).unwrap_err(),
        ),
        ("receive", copy::receive(&new, input, None).unwrap_err()),
        ("log", log::set_log_file(Some(&new)).unwrap_err()),
    ] {
        assert_names(what, &error, &[ErrorKind::PermissionDenied], dir);
    }
}

/// Fills the file system `dir` is on.
fn fill(dir: &Path) {
    for size in [64 << 10, 4096, 512, 1] {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(dir.join("filler"))
            .unwrap();
        while file.write_all(&vec![1; size]).is_ok() {}
        let _ = file.sync_all();
    }
}

fn a_full_disk() {
    child_for(Duration::from_secs(200), "safe", |dir| {
        mounts::private(|| {
            for (what, operation) in CHANGES {
                if matches!(
                    *what,
                    "mount" | "resize" | "discard" | "fs info" | "temporary snapshot"
                ) {
                    continue;
                }
                let disk = Small::mount(dir);
                let (mut image, arguments) = prepare(&disk.0);
                disk::write_first_cluster(&image.top_delta_file().unwrap(), 7);
                image.top_delta_file().unwrap();
                fill(&disk.0);
                let before = Contents::of(&disk.0);
                match operation(&mut image, &arguments) {
                    // It needs no room, or gave some back.
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace, "{what}: {error:?}");
                        assert!(error.path().is_some(), "{what}: {error}");
                        before.assert_unchanged(what);
                    }
                }
                let after = Descriptor::open(disk::descriptor(&disk.0)).unwrap();
                for delta in &after.images {
                    assert!(delta.file.exists(), "{what} lost {}", delta.file.display());
                }
            }
            for mode in [ImageMode::Expanded, ImageMode::Preallocated, ImageMode::Raw] {
                for (size, filled) in [(4, true), (64, false)] {
                    let disk = Small::mount(dir);
                    fs::create_dir(disk.0.join("image")).unwrap();
                    if filled {
                        fill(&disk.0);
                    }
                    let before = Contents::of(&disk.0);
                    let file = disk.0.join("image/root.hds");
                    let param = CreateParam::new(&file, Size::from_mib(size)).mode(mode);
                    match Ploop::create(&param.fs(None)) {
                        Ok(_) => assert!(mode == ImageMode::Expanded && !filled),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::NoSpace, "{mode}: {error:?}");
                            let path = error.path().unwrap();
                            assert!(path.starts_with(&disk.0), "{mode}: {error}");
                            before.assert_unchanged(&format!("{mode} {size}"));
                        }
                    }
                }
            }
            let disk = Small::mount(dir);
            fill(&disk.0);
            let before = Contents::of(&disk.0);
            let (input, mut output) = pipe();
            let mut packet = 0x4cc0_ac3du32.to_ne_bytes().to_vec();
            packet.extend(8192u32.to_ne_bytes());
            packet.extend(0u64.to_ne_bytes());
            packet.extend([7; 8192]);
            output.write_all(&packet).unwrap();
            drop(output);
            let file = disk.0.join("copy");
            let error = copy::receive(&file, input, None).unwrap_err();
            assert_names("receive", &error, &[ErrorKind::NoSpace], &file);
            before.assert_unchanged("receive");
        });
    })
    .succeeded();
}

/// A file system of 8 MiB, unmounted when dropped, in a mount namespace that ends anyway.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Small {
        let (image, target) = (dir.join("ext4"), dir.join("mnt"));
        let _ = fs::remove_file(&image);
        fs::create_dir_all(&target).unwrap();
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-O", "^has_journal"])
            .arg(&image));
        // `mount -o loop` would ask all loop devices whether they have this file: one of a sandbox whose daemon hangs
        // does not answer.
        let device = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image)
            .output()
            .unwrap();
        let device = String::from_utf8(device.stdout).unwrap();
        run(Command::new("mount").arg(device.trim()).arg(&target));
        // It is freed when it is unmounted.
        run(Command::new("losetup").args(["--detach", device.trim()]));
        let inner = target.join("inner");
        fs::create_dir(&inner).unwrap();
        Small(inner)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.0.parent().unwrap())
            .status();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// What needs the driver says so, and leaves nothing of what it began.
fn no_driver_to_attach_to() {
    child("safe", |dir| {
        let (mut image, arguments) = prepare(dir);
        let target = dir.join("target");
        fs::create_dir(&target).unwrap();
        let before = Contents::of(dir);
        let name = || ComponentName::new("backup").unwrap();
        for round in 0..3 {
            for (what, error) in [
                ("mount", image.mount(&MountParam::new()).unwrap_err()),
                (
                    "mount with all",
                    image
                        .mount(
                            &MountParam::new()
                                .target(&target)
                                .fsck(true)
                                .component(name()),
                        )
                        .unwrap_err(),
                ),
                (
                    "mount of a snapshot",
                    image
                        .mount(&MountParam::new().snapshot(arguments.guid).read_only(true))
                        .unwrap_err(),
                ),
                (
                    "temporary snapshot",
                    image
                        .temporary_snapshot(&TemporarySnapshotParam::new(name()).target(&target))
                        .unwrap_err(),
                ),
                (
                    "resize",
                    image
                        .resize(Size::from_mib(20), ResizeMode::Online)
                        .unwrap_err(),
                ),
                (
                    "discard",
                    image
                        .discard(&DiscardParam::new().automount(true))
                        .unwrap_err(),
                ),
                ("fs info", fs_info(image.path()).unwrap_err()),
                (
                    "create",
                    Ploop::create(&CreateParam::new(target.join("a.hds"), Size::from_mib(512)))
                        .unwrap_err(),
                ),
            ] {
                assert_eq!(error.kind(), ErrorKind::NoDriver, "{what}: {error}");
                assert!(error.path().is_some(), "{what}: {error}");
            }
            before.assert_unchanged(&format!("round {round}"));
        }
        assert!(image.component().is_none());
        for error in [
            image.umount().unwrap_err(),
            image.discard_stat().unwrap_err(),
        ] {
            assert!(error.is_not_mounted(), "{error}");
        }
        before.assert_unchanged("unmounting");
        image.snapshot().unwrap();
    })
    .succeeded();
}
