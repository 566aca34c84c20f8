//! Volumes that this crate makes, changes and removes; libploop reads and continues them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use ploop::image::Header;
use ploop::volume::{Volume, VolumePlace, VolumeTree};
use ploop::{CreateParam, ErrorKind, ImageMode, MergeParam, MergeTarget, Size};

use crate::container::tool;
use crate::fixture::directory::Contents;
use crate::fixture::harness::{Need, Test, is_stub};
use crate::tests;
use crate::volume_files::{Volumes, c};

const ROOT: &[Need] = &[Need::LineSeven, Need::Root];

/// What libploop does by itself.
const REAL: &[Need] = &[Need::LineSeven, Need::RealLibrary, Need::Root];

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] => without_volumes_in_libploop;
        ROOT =>
            volumes_live,
            names_do_not_grow_for_ever,
            a_volume_that_goes_leaves_its_deltas_to_the_one_upon_it,
            what_is_not_of_the_volume_stays,
            what_others_stand_upon_stays,
            copies_of_volumes_leave_the_originals_alone,
            a_clone_is_cut_short_while_its_delta_is_made,
            what_cannot_be_done_changes_nothing,
            a_descriptor_that_was_moved_aside_is_missed,
            places_in_which_no_volume_can_be,
            operations_at_the_same_time;
        REAL =>
            libploop_s_names_grow,
            libploop_continues_what_this_crate_makes,
            this_crate_continues_what_libploop_makes;
    ]
}

fn without_volumes_in_libploop() {
    let dir = tempfile::tempdir().unwrap();
    let param = CreateParam::new(dir.path().join("a/image.hds"), Size::from_mib(1)).fs(None);
    if crate::is_line_7() {
        let volume = Volume::create(&param).unwrap();
        assert_eq!(volume.tree().unwrap().children, []);
        return;
    }
    for error in [
        Volume::create(&param).unwrap_err(),
        Volume::open(dir.path()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("cannot keep volumes"), "{error}");
    }
    assert!(!dir.path().join("a").exists());
}

/// Names of directories, as `a(b c(d))`.
fn tree(tree: &VolumeTree) -> String {
    let name = tree.directory.file_name().unwrap().to_str().unwrap();
    let children: Vec<String> = tree.children.iter().map(self::tree).collect();
    match children.as_slice() {
        [] => name.to_owned(),
        _ => format!("{name}({})", children.join(" ")),
    }
}

#[track_caller]
fn assert_tree(volumes: &Volumes, volume: &str, expected: &str) {
    assert_eq!(tree(&volumes.volume(volume).tree().unwrap()), expected);
}

/// a ← snapshots and clones, by `make`.
fn volumes_live() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1), (1, 2)]);
    assert_tree(&volumes, "a", "a");
    if !is_stub() {
        let empty = volumes.volume("a").size().unwrap();
        assert_eq!(empty.bytes(), c::size(&volumes.path("a")));
    }

    volumes.snapshot("a", "first");
    volumes.verify();
    assert_tree(&volumes, "first", "first(a)");
    volumes.write("a", &[(1, 3), (2, 4)]);
    volumes.snapshot("a", "second");
    volumes.write("a", &[(3, 5)]);
    volumes.verify();
    assert_tree(&volumes, "first", "first(second(a))");
    volumes.clone_to("second", "x");
    volumes.clone_to("first", "y");
    volumes.write("x", &[(0, 6)]);
    volumes.write("y", &[(0, 7), (4, 8)]);
    volumes.verify();
    assert_tree(&volumes, "first", "first(second(a x) y)");
    // Of one that can be written to.
    volumes.clone_to("y", "z");
    volumes.write("y", &[(5, 9)]);
    volumes.write("z", &[(5, 10)]);
    volumes.verify();
    assert_tree(&volumes, "first", "first(second(a x) y(z))");
    // Elsewhere.
    let images = volumes.home().join("images");
    fs::create_dir(&images).unwrap();
    fs::create_dir(volumes.path("w")).unwrap();
    let place = volumes.place("w").images(&images);
    volumes.volume("second").clone_to(&place).unwrap();
    volumes
        .contents
        .insert("w", volumes.contents["second"].clone());
    assert_eq!(volumes.files("w")[0].parent(), Some(&*images));
    volumes.write("w", &[(6, 11)]);
    volumes.verify();

    volumes.switch("x", "first");
    volumes.write("x", &[(7, 12)]);
    volumes.verify();
    assert_tree(&volumes, "first", "first(second(a w) x y(z))");
    let deltas = fs::read_dir(volumes.path("x")).unwrap();
    let deltas = deltas.filter(|it| {
        it.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|it| it == "hds")
    });
    assert_eq!(deltas.count(), 1);

    for volume in ["w", "x", "z", "y"] {
        volumes.delete(volume);
        assert!(!volumes.path(volume).exists(), "{volume}");
        volumes.verify();
    }
    assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
    assert_tree(&volumes, "first", "first(second(a))");
    for volume in ["second", "first"] {
        volumes.delete(volume);
        volumes.verify();
    }
    let mut image = volumes.open("a");
    image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
    volumes.verify();
    volumes.delete("a");
    let left: Vec<_> = fs::read_dir(volumes.home())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(left, ["images"]);
}

const MANY: [&str; 9] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"];

fn names_do_not_grow_for_ever() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    for (number, name) in (0..).zip(MANY) {
        volumes.write("a", &[(number, number + 1)]);
        volumes.snapshot("a", name);
        volumes.verify();
    }
}

/// libploop names each delta after the one before, and after six there is no room (A83).
fn libploop_s_names_grow() {
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    for (number, name) in MANY.into_iter().enumerate() {
        let code = c::snapshot(&volumes.path("a"), &volumes.path(name));
        assert_eq!(code != 0, number >= 6, "{name}: {code}");
    }
}

fn libploop_continues_what_this_crate_makes() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.snapshot("a", "first");
    volumes.clone_to("first", "x");
    volumes.write("a", &[(1, 2)]);
    volumes.write("x", &[(1, 3)]);
    // libploop reads each of them, and puts new ones upon them.
    volumes.c_clone("first", "c1");
    volumes.c_clone("x", "c2");
    volumes.c_snapshot("a", "c3");
    volumes.write("c1", &[(2, 4)]);
    volumes.write("c2", &[(2, 5)]);
    volumes.write("a", &[(2, 6)]);
    volumes.verify();
    assert_eq!(c::switch(&volumes.path("c2"), &volumes.path("first")), 0);
    volumes
        .contents
        .insert("c2", volumes.contents["first"].clone());
    volumes.verify();
    assert_eq!(c::delete(&volumes.path("c2")), 0);
    volumes.contents.remove("c2");
    volumes.verify();
    assert_tree(&volumes, "first", "first(c1 c3(a) x)");
    // And this crate upon those.
    volumes.snapshot("a", "second");
    volumes.clone_to("c1", "y");
    volumes.write("c1", &[(3, 7)]);
    volumes.delete("c3");
    volumes.verify();
    assert_tree(&volumes, "first", "first(c1(y) second(a) x)");
}

fn this_crate_continues_what_libploop_makes() {
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.c_snapshot("a", "first");
    volumes.write("a", &[(1, 2)]);
    volumes.c_snapshot("a", "second");
    volumes.write("a", &[(2, 3)]);
    volumes.c_clone("first", "x");
    volumes.write("x", &[(3, 4)]);
    volumes.verify();
    volumes.snapshot("x", "third");
    volumes.clone_to("second", "y");
    volumes.write("y", &[(4, 5)]);
    volumes.verify();
    assert_tree(&volumes, "first", "first(second(a y) third(x))");
    volumes.switch("y", "first");
    volumes.verify();
    // One in the middle, with which libploop aborts.
    volumes.delete("second");
    volumes.verify();
    volumes.delete("third");
    volumes.verify();
    assert_tree(&volumes, "first", "first(a x y)");
    // A clone of libploop's that stands upon the volume further below (A82).
    volumes.snapshot("a", "fourth");
    volumes.c_clone("fourth", "z");
    volumes
        .contents
        .insert("z", volumes.contents["first"].clone());
    volumes.verify();
    assert_tree(&volumes, "first", "first(fourth(a z) x y)");
    volumes.delete("a");
    volumes.verify();
    volumes.delete("fourth");
    volumes.verify();
    assert_tree(&volumes, "first", "first(x y z)");
}

fn a_volume_that_goes_leaves_its_deltas_to_the_one_upon_it() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1)]);
    let own = volumes.open("a").snapshot().unwrap();
    volumes.write("a", &[(1, 2)]);
    // With a snapshot of its own, and written to since.
    volumes.clone_to("a", "x");
    let state = volumes.contents["x"].clone();
    volumes.write("a", &[(2, 3)]);
    volumes.write("x", &[(3, 4)]);
    let base = fs::read(volumes.path("a").join("image.hds")).unwrap();
    volumes.delete("a");
    assert!(!volumes.path("a").exists());
    volumes.verify();
    let now = volumes.descriptor("x");
    assert_eq!(now.images.len(), 3);
    assert_eq!(now.volume.as_ref().unwrap().parent, None);
    let below = now.parent(now.top).unwrap();
    assert_eq!(now.parent(below), Some(own));
    assert!(fs::read(volumes.path("x").join("image.hds")).unwrap() == base);
    volumes.verify_snapshot("x", below, &state);
    volumes
        .open("x")
        .merge(&MergeParam::new(MergeTarget::All))
        .unwrap();
    volumes.verify();

    // Where both have a delta of one name.
    volumes.create("b");
    volumes.write("b", &[(0, 5)]);
    volumes.snapshot("b", "s");
    let mut image = volumes.volume("s");
    image.clone_to(&volumes.place("y")).unwrap();
    volumes.contents.insert("y", volumes.contents["s"].clone());
    fs::write(volumes.path("y").join("image.hds"), "of somebody").unwrap();
    volumes.delete("b");
    // What the others stand upon lies there.
    assert!(volumes.path("b").join("image.hds").exists());
    volumes.verify();
    volumes.delete("s");
    volumes.verify();
    let kept = fs::read(volumes.path("y").join("image.hds")).unwrap();
    assert_eq!(kept, b"of somebody");
}

fn what_is_not_of_the_volume_stays() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.snapshot("a", "s");
    let precious = volumes.path("a").join("precious");
    fs::write(&precious, "of somebody").unwrap();
    let inside = volumes.path("a").join("children/x");
    fs::create_dir(&inside).unwrap();
    volumes.delete("a");
    volumes.verify();
    let left = crate::filled_image::names_in(&volumes.path("a"));
    assert_eq!(left, ["children", "image.hds", "precious"]);
    assert!(inside.is_dir());
    // The one whose deltas they are.
    volumes.delete("s");
    let left = crate::filled_image::names_in(&volumes.path("a"));
    assert_eq!(left, ["children", "precious"]);
}

/// `copy` stands upon a snapshot of `web` that is no longer below web's top.
fn what_others_stand_upon_stays() {
    let mut volumes = Volumes::new();
    volumes.create("web");
    volumes.write("web", &[(1, 11)]);
    let first = volumes.open("web").snapshot().unwrap();
    let at_first = volumes.contents["web"].clone();
    volumes.write("web", &[(2, 22)]);
    volumes.clone_to("web", "copy");
    volumes.open("web").switch_snapshot(first).unwrap();
    volumes.contents.insert("web", at_first);
    volumes.write("copy", &[(3, 33)]);
    volumes.snapshot("web", "mon");
    volumes.verify_data();
    let before = volumes.all_deltas();
    let error = volumes.volume("mon").delete().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("copy"), "{error}");
    volumes.verify_data();
    assert!(volumes.all_deltas() == before);
    volumes.delete("copy");
    volumes.delete("mon");
    volumes.verify_data();
}

fn copies_of_volumes_leave_the_originals_alone() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut volumes = Volumes::at(dir.path());
    volumes.create("web");
    volumes.write("web", &[(1, 11)]);
    volumes.snapshot("web", "mon");
    volumes.write("web", &[(2, 22)]);
    let unlink_all = |volume: &Path| {
        for link in fs::read_dir(volume.join("children")).unwrap() {
            fs::remove_file(link.unwrap().path()).unwrap();
        }
    };
    let refused = |volume: &Path| {
        let error = Volume::open(volume).unwrap().delete().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    };

    // One volume, then both.
    let mon2 = volumes.path("mon2");
    tool(
        "cp",
        &[
            "-a",
            &volumes.path("mon").to_string_lossy(),
            &mon2.to_string_lossy(),
        ],
    );
    refused(&mon2);
    volumes.verify_data();
    unlink_all(&mon2);
    refused(&mon2);
    volumes.verify_data();
    fs::remove_dir_all(&mon2).unwrap();
    let all = format!("{}/.", volumes.home().display());
    tool("cp", &["-a", &all, &copies.path().to_string_lossy()]);
    let mut copy = Volumes::at(copies.path());
    copy.contents = volumes.contents.clone();
    refused(&copy.path("mon"));
    unlink_all(&copy.path("mon"));
    refused(&copy.path("mon"));
    copy.verify_data();
    // The original goes as always.
    volumes.delete("mon");
    volumes.verify_data();
    copy.verify_data();
}

fn what_cannot_be_done_changes_nothing() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.snapshot("a", "s");
    volumes.clone_to("s", "x");
    let home = volumes.home();
    fs::create_dir(home.join("there")).unwrap();
    fs::write(home.join("there/precious"), "of somebody").unwrap();
    fs::create_dir(home.join("deep")).unwrap();
    let raw = CreateParam::new(home.join("raw/image.hds"), Size::from_mib(1)).fs(None);
    let plain = CreateParam::new(home.join("plain/image.hds"), Size::from_mib(1)).fs(None);
    fs::create_dir(home.join("plain")).unwrap();
    ploop::Ploop::create(&plain).unwrap();
    let before = Contents::of(&home);
    let there = volumes.place("there");
    let (mut a, mut s, mut x) = (
        volumes.volume("a"),
        volumes.volume("s"),
        volumes.volume("x"),
    );
    let same_name = VolumePlace::new(home.join("deep/x"));
    let refused: Vec<(ploop::Error, ErrorKind)> = vec![
        (
            s.snapshot(&volumes.place("new")).unwrap_err(),
            ErrorKind::Unsupported,
        ),
        (a.snapshot(&there).unwrap_err(), ErrorKind::AlreadyExists),
        (a.clone_to(&there).unwrap_err(), ErrorKind::AlreadyExists),
        (
            s.clone_to(&same_name).unwrap_err(),
            ErrorKind::AlreadyExists,
        ),
        (
            a.snapshot(&VolumePlace::new(home.join("no/where")))
                .unwrap_err(),
            ErrorKind::NotFound,
        ),
        (
            a.clone_to(&volumes.place("new").images(home.join("no")))
                .unwrap_err(),
            ErrorKind::NotFound,
        ),
        (s.switch_to(&x).unwrap_err(), ErrorKind::Unsupported),
        (x.switch_to(&a).unwrap_err(), ErrorKind::InvalidInput),
        (
            volumes.volume("s").delete().unwrap_err(),
            ErrorKind::InvalidInput,
        ),
        (
            Volume::open(home.join("plain")).unwrap_err(),
            ErrorKind::InvalidInput,
        ),
    ];
    for (error, kind) in refused {
        assert_eq!(error.kind(), kind, "{error}");
    }
    before.assert_unchanged("refused operations");
    let error = Volume::create(&raw.mode(ImageMode::Raw)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    // A volume that was moved, and that others know by its place.
    fs::rename(volumes.path("x"), volumes.path("moved")).unwrap();
    let link = volumes.path("s").join("children/x");
    for error in [
        volumes.volume("s").tree().unwrap_err(),
        volumes.volume("s").delete().unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.path()),
            (ErrorKind::NotFound, Some(&*link)),
            "{error}"
        );
    }
    fs::rename(volumes.path("moved"), volumes.path("x")).unwrap();
    volumes.verify();
}

/// What stands upon a volume is not forgotten with its descriptor.
fn a_descriptor_that_was_moved_aside_is_missed() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.snapshot("a", "s");
    volumes.write("a", &[(0, 1)]);
    volumes.clone_to("s", "x");
    volumes.delete("a");
    // Upon one whose delta lies in a directory without a descriptor: of a volume, and of a clone.
    volumes.snapshot("x", "m");
    volumes.clone_to("m", "y");
    volumes.write("y", &[(1, 2)]);
    for (below, name) in [("s", "m"), ("m", "y"), ("m", "x")] {
        let aside = volumes.home().join("aside.xml");
        fs::rename(volumes.xml(name), &aside).unwrap();
        let before = volumes.all_deltas();
        let error = volumes.volume(below).delete().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        // What finishes what was cut short leaves it alone, too.
        volumes.clone_to(below, "new");
        volumes.delete("new");
        assert!(volumes.all_deltas() == before, "{name}");
        fs::rename(&aside, volumes.xml(name)).unwrap();
        volumes.verify();
    }
    assert_tree(&volumes, "s", "s(m(x y))");
}

fn places_in_which_no_volume_can_be() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1)]);
    // One there would be taken for a link to it.
    let inside = volumes.path("a").join("children/a");
    let error = (volumes.volume("a").clone_to(&VolumePlace::new(&inside))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    // No descriptor can name it.
    let before = volumes.all_deltas();
    let unreadable = volumes.home().join(OsStr::from_bytes(b"b\xff"));
    for error in [
        (volumes.volume("a").snapshot(&VolumePlace::new(&unreadable))).unwrap_err(),
        (volumes.volume("a").clone_to(&VolumePlace::new(&unreadable))).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(!unreadable.exists());
    assert!(volumes.all_deltas() == before);
    assert_tree(&volumes, "a", "a");
    // What is registered goes where the link leads.
    let (children, elsewhere) = (volumes.path("a").join("children"), volumes.path("e"));
    fs::remove_dir(&children).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &children).unwrap();
    let place = volumes.place("b");
    for error in [
        volumes.volume("a").snapshot(&place).unwrap_err(),
        volumes.volume("a").clone_to(&place).unwrap_err(),
        volumes.volume("a").delete().unwrap_err(),
        volumes.volume("a").tree().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.path(), Some(&*children), "{error}");
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert!(!volumes.path("b").exists());
    volumes.verify();
    // Nothing is left of one that cannot be made.
    let raw = CreateParam::new(volumes.path("r").join("image.hds"), Size::from_mib(1));
    let raw = raw.fs(None).mode(ImageMode::Raw);
    let error = Volume::create(&raw).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(!volumes.path("r").exists());
}

/// A volume is removed, or the place of a new one is taken, while others are made upon it or beside it.
fn operations_at_the_same_time() {
    ploop::durability::set_sync(false);
    for _ in 0..12 {
        let mut volumes = Volumes::new();
        volumes.create("a");
        volumes.create("b");
        volumes.write("a", &[(0, 1), (1, 2)]);
        volumes.write("b", &[(0, 3)]);
        volumes.snapshot("a", "s");
        volumes.write("a", &[(1, 4)]);
        let open = |name| volumes.volume(name);
        let (s, mut a, mut b) = (open("s"), open("a"), open("b"));
        let (x, y) = (volumes.place("x"), volumes.place("y"));
        let made = thread::scope(|scope| {
            let deleted = scope.spawn(move || s.delete());
            let upon_a = scope.spawn(|| [a.snapshot(&x).is_ok(), a.clone_to(&y).is_ok()]);
            let upon_b = scope.spawn(|| [b.snapshot(&x).is_ok(), b.clone_to(&y).is_ok()]);
            deleted.join().unwrap().unwrap();
            [upon_a.join().unwrap(), upon_b.join().unwrap()]
        });
        let [of_a, of_b] = made;
        assert!(!(of_a[0] && of_b[0]), "x is there once");
        assert!(!(of_a[1] && of_b[1]), "y is there once");
        volumes.contents.remove("s");
        for (place, from) in [("x", [of_a[0], of_b[0]]), ("y", [of_a[1], of_b[1]])] {
            let name = match from {
                [true, false] => "a",
                [false, true] => "b",
                _ => panic!("{place} was not made"),
            };
            let contents = volumes.contents[name].clone();
            volumes.contents.insert(place, contents);
        }
        volumes.verify();
    }
    ploop::durability::set_sync(true);
}

/// The delta has no header yet, or not its length, or is complete; the descriptor is missing.
fn a_clone_is_cut_short_while_its_delta_is_made() {
    let mut volumes = Volumes::new();
    volumes.create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.snapshot("a", "s");
    let header = Header::read(&volumes.files("a")[0]).unwrap();
    let data_start = usize::try_from(header.data_start()).unwrap();
    let mut empty = header.to_bytes().to_vec();
    empty.resize(data_start, 0);
    for len in [0, Header::LEN, data_start] {
        let new = volumes.path("n");
        fs::create_dir_all(new.join("children")).unwrap();
        fs::write(new.join("cut.hds"), &empty[..len]).unwrap();
        fs::write(new.join("DiskDescriptor.xml.ploop-files"), "cut.hds\n").unwrap();
        let link = volumes.path("s").join("children/n");
        std::os::unix::fs::symlink(&new, link).unwrap();
        volumes.clone_to("s", "n");
        volumes.write("n", &[(1, 2)]);
        volumes.verify();
        assert!(!new.join("cut.hds").exists(), "{len} bytes");
        volumes.volume("n").delete().unwrap();
        volumes.contents.remove("n");
        volumes.verify();
    }
}
