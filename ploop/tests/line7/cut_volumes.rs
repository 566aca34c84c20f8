//! Operations on volumes that are killed before each of their changes of a directory, and what the next operation makes
//! of what they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int};
use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ploop::image::{Disk, Header};
use ploop::volume::Volume;
use ploop::{ErrorKind, Guid};

use crate::container::tool;
use crate::filled_image::{Contents, read_whole};
use crate::fixture::child::child;
use crate::fixture::harness::{Need, Test};
use crate::tests;
use crate::volume_files::Volumes;

/// In the sandbox it takes too long.
const WITHOUT_DRIVER: &[Need] = &[Need::LineSeven, Need::Root, Need::NoDriver];

pub(crate) fn tests() -> Vec<Test> {
    tests![
        WITHOUT_DRIVER =>
            deletions_that_are_cut,
            deletions_of_volumes_that_are_written_to_are_cut,
            new_volumes_that_are_cut,
            switches_that_are_cut;
    ]
}

/// How many changes this process may make before it is killed.
static ALLOWED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// # Safety
///
/// The path is terminated.
unsafe fn count(path: *const c_char) {
    // SAFETY: as above; a signal to this process.
    unsafe {
        let is_lock = CStr::from_ptr(path).to_bytes().ends_with(b".lck");
        if !is_lock && ALLOWED.fetch_sub(1, Ordering::SeqCst) == 0 {
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}

/// The functions through which names come and go, of Rust's library and of libploop, before the ones of the C library.
macro_rules! counted {
    ($($name:ident($($arg:ident: $kind:ty),*) of $path:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $kind),*) -> c_int {
            const NAME: &CStr = match CStr::from_bytes_with_nul(
                concat!(stringify!($name), "\0").as_bytes(),
            ) {
                Ok(name) => name,
                Err(_) => panic!(),
            };
            // SAFETY: the function of the same name and type that is next; the arguments are the caller's.
            unsafe {
                count($path);
                let next = libc::dlsym(libc::RTLD_NEXT, NAME.as_ptr());
                assert!(!next.is_null());
                let next: unsafe extern "C" fn($($kind),*) -> c_int = mem::transmute(next);
                next($($arg),*)
            }
        }
    )*};
}

counted! {
    unlink(path: *const c_char) of path;
    rename(from: *const c_char, to: *const c_char) of to;
    symlink(target: *const c_char, path: *const c_char) of path;
    linkat(from: c_int, name: *const c_char, to: c_int, path: *const c_char, flags: c_int) of path;
    mkdir(path: *const c_char, mode: libc::mode_t) of path;
    rmdir(path: *const c_char) of path;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    /// Of this volume, as `new`.
    Snapshot(&'static str),
    Clone(&'static str),
    Delete(&'static str),
    Switch(&'static str, &'static str),
}

use Operation::{Clone as CloneOf, Delete, Snapshot, Switch};

impl Operation {
    fn run(self, volumes: &Volumes) -> ploop::Result<()> {
        let open = |name: &str| Volume::open(volumes.path(name));
        let place = volumes.place("new");
        match self {
            Snapshot(of) => open(of)?.snapshot(&place).map(drop),
            CloneOf(of) => open(of)?.clone_to(&place).map(drop),
            Delete(volume) => open(volume)?.delete(),
            Switch(volume, to) => open(volume)?.switch_to(&open(to)?),
        }
    }

    /// What the operation makes of what the volumes hold.
    fn change(self, contents: &mut BTreeMap<&'static str, Contents>) {
        match self {
            Snapshot(of) | CloneOf(of) => {
                contents.insert("new", contents[of].clone());
            }
            Delete(volume) => {
                contents.remove(volume);
            }
            Switch(volume, to) => {
                contents.insert(volume, contents[to].clone());
            }
        }
    }
}

/// Volumes that belong together.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Group {
    /// mon ← tue ← web.
    Three,
    /// The same, where `web` has a snapshot of its own.
    ThreeAndOwn,
    /// old ← x, where both are written to.
    Two,
    /// base ← empty: nothing was written, and the delta of the one lies in the directory of the other.
    Empty,
}

use Group::{Empty, Three, ThreeAndOwn, Two};

impl Group {
    fn make(self, volumes: &mut Volumes) {
        match self {
            Three | ThreeAndOwn => {
                volumes.create("web");
                volumes.write("web", &[(0, 1)]);
                volumes.snapshot("web", "mon");
                volumes.write("web", &[(1, 2)]);
                volumes.snapshot("web", "tue");
                volumes.write("web", &[(2, 3)]);
                if self == ThreeAndOwn {
                    volumes.open("web").snapshot().unwrap();
                    volumes.write("web", &[(2, 4), (5, 5)]);
                }
            }
            Two => {
                volumes.create("old");
                volumes.write("old", &[(0, 6), (1, 7)]);
                volumes.clone_to("old", "x");
                volumes.write("old", &[(1, 8)]);
                volumes.write("x", &[(3, 9)]);
            }
            Empty => {
                volumes.create("empty");
                volumes.snapshot("empty", "base");
            }
        }
    }

    /// What is in them then.
    fn contents(self) -> BTreeMap<&'static str, Contents> {
        let state = |clusters: &[(u64, u64)]| clusters.iter().copied().collect();
        let web: &[(u64, u64)] = match self {
            ThreeAndOwn => &[(0, 1), (1, 2), (2, 4), (5, 5)],
            _ => &[(0, 1), (1, 2), (2, 3)],
        };
        match self {
            Three | ThreeAndOwn => BTreeMap::from([
                ("mon", state(&[(0, 1)])),
                ("tue", state(&[(0, 1), (1, 2)])),
                ("web", state(web)),
            ]),
            Two => BTreeMap::from([
                ("old", state(&[(0, 6), (1, 8)])),
                ("x", state(&[(0, 6), (1, 7), (3, 9)])),
            ]),
            Empty => BTreeMap::from([("base", state(&[])), ("empty", state(&[]))]),
        }
    }
}

/// Where the bytes of each snapshot of a volume are kept, by its GUID.
const SNAPSHOTS: &str = "snapshots";

fn snapshots_in(volumes: &Volumes, name: &str) -> Vec<(Guid, Vec<u8>)> {
    let descriptor = volumes.descriptor(name);
    let below = descriptor.snapshots.iter().map(|it| it.guid);
    let below = below.filter(|guid| *guid != descriptor.top);
    let read = |guid| {
        let disk = Disk::open_snapshot(volumes.xml(name), guid).unwrap();
        (guid, read_whole(&disk))
    };
    below.map(read).collect()
}

/// Cuts the operation before each change, and does each of the others after it.
fn cut(operation: Operation, groups: &[Group], next: &[Operation]) {
    const MOST: usize = 100;
    let mut states = BTreeSet::new();
    let mut is_done = false;
    for allowed in 0..MOST {
        if is_done {
            break;
        }
        child(&format!("{operation:?}-{groups:?}-{allowed}"), |dir| {
            ploop::durability::set_sync(false);
            let mut volumes = Volumes::at(dir);
            for group in groups {
                group.make(&mut volumes);
            }
            fs::create_dir(dir.join(SNAPSHOTS)).unwrap();
            for name in volumes.contents.keys() {
                for (guid, bytes) in snapshots_in(&volumes, name) {
                    fs::write(dir.join(SNAPSHOTS).join(guid.to_string()), bytes).unwrap();
                }
            }
            ALLOWED.store(allowed, Ordering::SeqCst);
            operation.run(&volumes).unwrap();
            ALLOWED.store(usize::MAX, Ordering::SeqCst);
            fs::write(dir.join("done"), "").unwrap();
            // SAFETY: a signal to this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        })
        .died_of(libc::SIGKILL)
        .left(|dir| {
            is_done = fs::remove_file(dir.join("done")).is_ok();
            if states.insert(state(dir)) {
                let kept = tempfile::tempdir().unwrap();
                copy(dir, kept.path());
                for next in [operation].iter().chain(next) {
                    let what = format!("{operation:?} cut before change {allowed}, then {next:?}");
                    go_on(dir, groups, operation, *next, &what);
                    for entry in fs::read_dir(dir).unwrap() {
                        fs::remove_dir_all(entry.unwrap().path()).unwrap();
                    }
                    copy(kept.path(), dir);
                }
            }
        });
    }
    // In the process of a part there are none.
    let states = states.len();
    assert!(
        states == 0 || is_done && states > 4,
        "{operation:?}: {states}"
    );
}

fn copy(from: &Path, to: &Path) {
    let all = format!("{}/.", from.display());
    tool("cp", &["-a", &all, &to.to_string_lossy()]);
}

/// The names in a directory, where links lead, and what descriptors say; but nothing of locks. The GUIDs of new deltas differ each
/// time, so only how long a text is counts.
fn state(dir: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let relative = path.strip_prefix(dir).unwrap().to_string_lossy();
            // `{…}` and what is in front of it.
            let name = relative.split('{').next().unwrap_or_default();
            if name.ends_with(".lck") {
                continue;
            }
            all.insert(format!("{name} {} {}", metadata.len(), metadata.nlink()));
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    all
}

/// Asserts that what a kill has left is right, that the next operation is done, and that all volumes can be removed then.
#[track_caller]
fn go_on(dir: &Path, groups: &[Group], cut: Operation, next: Operation, what: &str) {
    let mut volumes = Volumes::at(dir);
    let before: BTreeMap<_, _> = groups.iter().flat_map(|it| it.contents()).collect();
    // What the operation makes may be there, or not.
    let mut after = before.clone();
    cut.change(&mut after);
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    for name in names {
        let allowed = [before.get(name), after.get(name)];
        let found = volumes.xml(name).exists().then(|| volumes.read(name));
        let is = allowed
            .into_iter()
            .find(|it| it.map(Volumes::bytes) == found);
        let Some(is) = is else {
            panic!("{what}: {name} is neither as it was nor as it is to be");
        };
        match is.cloned() {
            Some(contents) => volumes.contents.insert(name, contents),
            None => volumes.contents.remove(name),
        };
    }
    let home = volumes.home();
    let error = match next.run(&volumes) {
        Ok(()) => {
            next.change(&mut volumes.contents);
            None
        }
        Err(error) => Some(error),
    };
    if let Some(error) = error {
        let is_there = |name: &str| volumes.contents.contains_key(name);
        let is_expected = match next {
            Delete(volume) if is_there(volume) => {
                let is_right = error.kind() == ErrorKind::InvalidInput;
                is_right && upon(&volumes, volume).len() > 1
            }
            Snapshot(of) | CloneOf(of) if is_there(of) => {
                // What another volume has begun there is taken back.
                error.kind() == ErrorKind::AlreadyExists && is_there("new")
            }
            Switch(..) => false,
            _ => error.kind() == ErrorKind::NotFound,
        };
        assert!(is_expected, "{what}: {error}");
    }
    verify(&volumes, what);
    if next == cut && volumes.contents.contains_key("web") {
        // libploop goes on with it, and this crate with that.
        volumes.c_snapshot("web", "later");
        volumes.write("web", &[(9, 20)]);
        volumes.snapshot("web", "latest");
        verify(&volumes, what);
    }
    // No state of a volume that is there is lost.
    for name in volumes.contents.keys() {
        for (guid, bytes) in snapshots_in(&volumes, name) {
            let expected = fs::read(dir.join(SNAPSHOTS).join(guid.to_string()));
            assert!(
                expected.is_err() || expected.is_ok_and(|it| it == bytes),
                "{what}: {name} has another snapshot {guid}"
            );
        }
    }
    while let Some(name) = leaf(&volumes) {
        if let Err(error) = Volume::open(volumes.path(name)).unwrap().delete() {
            panic!("{what}, then {name} is deleted: {error}");
        }
        volumes.contents.remove(name);
        verify(&volumes, what);
    }
    for file in files(&home) {
        let is_empty =
            |header: Header| fs::metadata(&file).is_ok_and(|it| it.len() == header.data_start());
        assert!(
            Header::read(&file).is_ok_and(is_empty),
            "{what}: {} is left",
            file.display()
        );
    }
}

/// The descriptors and deltas in the directories there.
fn files(home: &Path) -> Vec<PathBuf> {
    let directories = fs::read_dir(home).unwrap();
    let entries = directories.flat_map(|it| fs::read_dir(it.unwrap().path()).unwrap());
    let files = entries.map(|it| it.unwrap().path());
    let is_of_volume = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name == "DiskDescriptor.xml" || name.contains(".hds")
    };
    files.filter(is_of_volume).collect()
}

/// The volumes upon this one, by their descriptors.
fn upon(volumes: &Volumes, volume: &str) -> Vec<&'static str> {
    let path = volumes.path(volume);
    let is_upon = |name: &&&'static str| {
        let parent = volumes.descriptor(name).volume.unwrap().parent;
        parent.is_some_and(|it| fs::canonicalize(it).unwrap() == path)
    };
    volumes.contents.keys().filter(is_upon).copied().collect()
}

fn leaf(volumes: &Volumes) -> Option<&'static str> {
    let mut names = volumes.contents.keys();
    names.find(|name| upon(volumes, name).is_empty()).copied()
}

/// That each volume reads as it should, is listed with those upon it, and no link leads nowhere.
#[track_caller]
fn verify(volumes: &Volumes, what: &str) {
    for name in volumes.contents.keys() {
        let disk = Disk::open(volumes.xml(name));
        let disk = disk.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        let expected = Volumes::bytes(&volumes.contents[name]);
        assert!(read_whole(&disk) == expected, "{what}: {name} differs");
        let tree = volumes.volume(name).tree();
        tree.unwrap_or_else(|error| panic!("{what}: the tree of {name}: {error}"));
        let children = volumes.path(name).join("children");
        for link in fs::read_dir(children).into_iter().flatten() {
            let link = link.unwrap().path();
            assert!(link.exists(), "{what}: {} leads nowhere", link.display());
        }
        // Merging is refused while a delta has two names.
        for file in volumes.files(name) {
            let names = fs::metadata(&file).unwrap().nlink();
            let is_shared = is_cut_deletion(volumes, name);
            assert!(
                names == 1 || is_shared,
                "{what}: {} has {names} names",
                file.display()
            );
        }
    }
}

/// Whether a volume that was to be deleted has the same deltas, until the next operation on one of the two.
fn is_cut_deletion(volumes: &Volumes, name: &str) -> bool {
    let names = ["children", "children.ploop-moves"].into_iter();
    let links = names.filter_map(|links| fs::read_dir(volumes.path(name).join(links)).ok());
    let links = links.flatten().map(|it| it.unwrap().path());
    let mut directories = links.filter_map(|it| fs::canonicalize(it).ok());
    directories.any(|it| fs::canonicalize(it.join("children").join(name)).is_ok())
}

fn deletions_that_are_cut() {
    let next = [
        Delete("mon"),
        Delete("tue"),
        Delete("web"),
        Snapshot("web"),
        CloneOf("tue"),
    ];
    cut(Delete("tue"), &[Three], &next);
    cut(Delete("tue"), &[ThreeAndOwn], &next);
    cut(Delete("mon"), &[Three], &next);
    cut(Delete("web"), &[ThreeAndOwn], &next);
    let next = [Delete("base"), CloneOf("base")];
    cut(Delete("empty"), &[Empty], &next);
}

/// Deltas get a second name, and the volume that goes has one that is not taken over.
fn deletions_of_volumes_that_are_written_to_are_cut() {
    let next = [Delete("x"), Snapshot("x"), CloneOf("old"), Snapshot("old")];
    cut(Delete("old"), &[Two], &next);
}

fn new_volumes_that_are_cut() {
    let next = [
        Delete("tue"),
        Delete("web"),
        Delete("new"),
        Snapshot("web"),
        CloneOf("mon"),
    ];
    cut(Snapshot("web"), &[ThreeAndOwn], &next);
    cut(CloneOf("web"), &[Three], &next);
    cut(CloneOf("tue"), &[Three], &next);
}

fn switches_that_are_cut() {
    let next = [Delete("old"), Delete("tue"), Delete("x"), Snapshot("x")];
    cut(Switch("x", "tue"), &[Three, Two], &next);
}
