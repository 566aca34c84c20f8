//! Images that are volumes and stand upon others: what this crate does to those that libploop has made.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use ploop::image::{Header, check};
use ploop::volume::{Volume, VolumePlace};
use ploop::{
    CreateParam, ErrorKind, Guid, MergeParam, MergeTarget, MountParam, Ploop, ResizeMode, Size,
    SnapshotParam, TemporarySnapshotParam,
};

use crate::container::SIZE;
use crate::fixture::child::child;
use crate::fixture::directory::Contents;
use crate::fixture::harness::{Need, Test, is_stub};
use crate::tests;
use crate::volume_files::{Volumes, c};
use crate::{LINE_7, MOUNTS_OF_LINE_7};

const ROOT: &[Need] = &[Need::LineSeven, Need::Root];

/// What libploop does by itself.
const REAL: &[Need] = &[Need::LineSeven, Need::RealLibrary, Need::Root];

pub(crate) fn tests() -> Vec<Test> {
    tests![
        ROOT =>
            operations_keep_to_the_deltas_of_a_volume,
            a_delta_upon_which_a_volume_stands_stays,
            what_libploop_would_mix_up_is_refused,
            images_below_are_locked_and_in_canonical_form;
        REAL =>
            c_frees_a_name_twice,
            c_removes_the_data_of_others,
            c_clones_another_state,
            c_looks_at_no_other_descriptor;
        LINE_7 => what_stands_upon_others_without_knowledge_is_refused;
        MOUNTS_OF_LINE_7 =>
            volumes_are_mounted_beside_each_other,
            volumes_are_made_of_running_ones;
    ]
}

/// s ← a, s ← c, a ← d: `a` was the first, and went on after a snapshot; `d` is a clone of it as it was then.
fn volumes() -> Volumes {
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.write("a", &[(0, 1), (1, 2)]);
    volumes.c_snapshot("a", "s");
    volumes.write("a", &[(1, 3), (2, 4)]);
    volumes.c_clone("s", "c");
    volumes.write("c", &[(2, 5), (3, 6)]);
    volumes.c_clone("a", "d");
    volumes.write("d", &[(4, 7), (0, 8)]);
    volumes.write("a", &[(0, 9)]);
    volumes.verify();
    volumes
}

fn operations_keep_to_the_deltas_of_a_volume() {
    // The top of a clone that this crate has made has the GUID of one below, and is not switched away from.
    let of_libploop = (!is_stub()).then_some("d");
    for name in ["c"].into_iter().chain(of_libploop) {
        let mut volumes = volumes();
        let others = volumes.files_of_others(name);
        let before = volumes.descriptor(name);
        let mut image = volumes.open(name);

        assert!(!image.is_mounted().unwrap());
        assert_eq!(image.device().unwrap(), None);
        assert_eq!(image.devices().unwrap(), [] as [PathBuf; 0]);
        let size = Size::from_kib(16 * 32);
        assert_eq!(image.image_info().unwrap().size(), size);
        image.set_max_delta_size(Size::from_gib(1)).unwrap();

        let first = image.snapshot().unwrap();
        let at_first = volumes.contents[name].clone();
        // The GUID by which others know the image below.
        assert_eq!(volumes.descriptor(name).volume, before.volume);
        volumes.write(name, &[(5, 10), (2, 0)]);
        let second = image.snapshot().unwrap();
        let at_second = volumes.contents[name].clone();
        volumes.write(name, &[(5, 11), (6, 12)]);
        let third = image.snapshot().unwrap();
        volumes.write(name, &[(7, 13)]);
        volumes.verify();
        volumes.verify_snapshot(name, first, &at_first);
        volumes.verify_snapshot(name, second, &at_second);
        assert_eq!(volumes.files_of_others(name), others);

        // A merge of two.
        image.delete_snapshot(second).unwrap();
        volumes.verify();
        volumes.verify_snapshot(name, first, &at_first);
        assert_eq!(volumes.descriptor(name).images.len(), 3);

        // Back to one, and away from its top.
        image.switch_snapshot(first).unwrap();
        let now = volumes.contents[name].clone();
        volumes
            .contents
            .get_mut(name)
            .unwrap()
            .clone_from(&at_first);
        volumes.verify();
        volumes.verify_snapshot(name, third, &{
            let mut third = now;
            third.remove(&7);
            third
        });
        volumes.write(name, &[(8, 14)]);
        image.delete_snapshot(third).unwrap();
        volumes.verify();
        // libploop would leave a descriptor whose top is not listed (A77).
        image.snapshot().unwrap();
        let text = fs::read(volumes.xml(name)).unwrap();
        let error = image.delete_top_delta().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(fs::read(volumes.xml(name)).unwrap(), text);
        volumes.verify();

        // The lowest of its own stays, and nothing goes further down.
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        volumes.verify();
        let now = volumes.descriptor(name);
        assert_eq!(now.images.len(), 1);
        assert_eq!(now.volume, before.volume);
        let error = image.delete_top_delta().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(volumes.files_of_others(name), others);

        // libploop goes on with it.
        volumes.c_snapshot(name, "e");
        volumes.write(name, &[(9, 15)]);
        volumes.c_clone(name, "f");
        volumes.write("f", &[(9, 16), (0, 17)]);
        volumes.write(name, &[(10, 19)]);
        volumes.verify();
        // And this crate with that.
        let mut image = volumes.open("f");
        image.snapshot().unwrap();
        volumes.write("f", &[(1, 18)]);
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        volumes.verify();
    }
}

/// `a` has what `d` stands upon, and may be written to.
fn a_delta_upon_which_a_volume_stands_stays() {
    let mut volumes = volumes();
    let mut image = volumes.open("a");
    let below = volumes.descriptor("d").volume.unwrap().snapshot.unwrap();
    assert!(volumes.descriptor("a").snapshot(below).is_some());
    let before = Contents::of(&volumes.home());
    for error in [
        image.delete_snapshot(below).unwrap_err(),
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap_err(),
        image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(
            error.message().contains("stands upon the snapshot"),
            "{error}"
        );
    }
    before.assert_unchanged("refused operations");
    volumes.verify();

    // What is upon that goes.
    let own = image.snapshot().unwrap();
    volumes.write("a", &[(10, 19)]);
    image.delete_snapshot(own).unwrap();
    volumes.verify();

    // A volume that cannot be asked.
    let d = volumes.path("d");
    fs::rename(&d, volumes.path("moved")).unwrap();
    let error = image.delete_snapshot(below).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.path().unwrap().ends_with("a/children/d"), "{error}");
    fs::rename(volumes.path("moved"), &d).unwrap();

    // `s` is a volume of others alone.
    let error = volumes.open("s").snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    volumes.verify();
}

fn what_libploop_would_mix_up_is_refused() {
    let mut volumes = volumes();
    let refused = |volumes: &Volumes, name: &str, kind: ErrorKind, message: &str| {
        let deltas = volumes.all_deltas();
        let error = volumes.open(name).snapshot().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(message), "{message}: {error}");
        assert!(volumes.all_deltas() == deltas, "{message}");
    };
    let edit = |path: &PathBuf, from: &str, to: &str| {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
        text
    };
    let (c, s) = (volumes.xml("c"), volumes.xml("s"));

    // One GUID for two states: libploop takes the first it finds.
    let (of_s, of_c) = (volumes.descriptor("s").top, volumes.descriptor("c").top);
    let text = edit(&s, &of_s.to_string(), &of_c.to_string());
    refused(&volumes, "c", ErrorKind::Corrupt, "has the snapshot");
    fs::write(&s, text).unwrap();
    let guid = SnapshotParam::new().guid(of_s);
    let error = volumes.open("c").snapshot_with(&guid).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");

    // A delta of two volumes: one would be merged into the other.
    let own = volumes.files("c")[0].clone();
    let text = fs::read_to_string(&c).unwrap();
    let name = own.file_name().unwrap().to_str().unwrap();
    edit(&c, name, "../a/image.hds");
    refused(&volumes, "c", ErrorKind::Corrupt, "has the delta");
    fs::write(&c, text).unwrap();

    // What is below stands upon what is above.
    let text = edit(&s, &Guid::NONE.to_string(), &of_c.to_string());
    let with = text.replace("<ReadOnly>", "<Parent>../c</Parent><ReadOnly>");
    fs::write(&s, with).unwrap();
    refused(&volumes, "c", ErrorKind::Corrupt, "one of those upon it");
    fs::write(&s, text).unwrap();

    // A snapshot of another image that libploop would merge.
    let a = volumes.xml("a");
    let text = fs::read_to_string(&a).unwrap();
    let temporary = text.replacen("</ParentGUID>", "</ParentGUID><Temporary/>", 1);
    fs::write(&a, temporary).unwrap();
    refused(&volumes, "d", ErrorKind::Unsupported, "temporary snapshot");
    fs::write(&a, text).unwrap();

    // Marks that libploop would take off.
    let base = volumes.files("s")[0].clone();
    let bytes = fs::read(&base).unwrap();
    let mut marked = bytes.clone();
    // At 44: the mark.
    marked[44..48].copy_from_slice(&0x746f_6e59_u32.to_le_bytes());
    fs::write(&base, &marked).unwrap();
    assert!(Header::read(&base).unwrap().in_use);
    refused(&volumes, "c", ErrorKind::Busy, "marked as in use");
    fs::write(&base, &bytes).unwrap();

    // Other names in it, by a link.
    symlink(volumes.path("s"), volumes.path("link")).unwrap();
    let text = edit(&c, "../s", "../link");
    refused(&volumes, "c", ErrorKind::Unsupported, "leads through links");
    fs::write(&c, text).unwrap();
    let text = edit(&c, "../s", "../nowhere");
    refused(&volumes, "c", ErrorKind::NotFound, "cannot be found");
    fs::write(&c, text).unwrap();

    // The top of a volume upon another one has another GUID than that of any image, and libploop forgets that.
    volumes.c_create("w");
    volumes.c_clone("w", "x");
    volumes.write("x", &[(1, 20)]);
    assert_eq!(volumes.descriptor("w").top, Guid::TOP);
    let mut image = volumes.open("x");
    let first = image.snapshot().unwrap();
    let before = Contents::of(&volumes.home());
    let error = image.switch_snapshot(first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("top of one below"), "{error}");
    before.assert_unchanged("refused operations");
    image.delete_snapshot(first).unwrap();
    volumes.verify();
}

fn images_below_are_locked_and_in_canonical_form() {
    let volumes = volumes();
    let (c, s) = (volumes.xml("c"), volumes.xml("s"));
    // Of another form: libxml2 reads it, and perhaps other names in it than this crate.
    let text = fs::read_to_string(&s).unwrap();
    fs::write(&s, text.replace("<Snapshots>", "<!-- -->\n  <Snapshots>")).unwrap();
    let mut image = volumes.open("c");
    image.snapshot().unwrap();
    assert_eq!(fs::read_to_string(&s).unwrap(), text);
    volumes.verify();

    // Whoever changes the image below is waited for, as long as the handle says.
    let lock = |path: &PathBuf| {
        let mut name = path.clone().into_os_string();
        name.push(".lck");
        let file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(name)
            .unwrap();
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&file, lock).unwrap();
        file
    };
    image.set_lock_timeout(Some(Duration::from_millis(50)));
    let held = lock(&s);
    let error = image.snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    assert!(
        error.path().unwrap().ends_with("s/DiskDescriptor.xml"),
        "{error}"
    );
    drop(held);
    let held = lock(&c);
    assert_eq!(image.snapshot().unwrap_err().kind(), ErrorKind::Locked);
    drop(held);
    // Those beside it are not.
    let shared = fs::File::open(s.with_file_name("DiskDescriptor.xml.lck")).unwrap();
    rustix::fs::flock(&shared, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    image.snapshot().unwrap();
    drop(shared);
    // No lock of an operation is left behind.
    for name in ["a", "c", "d", "s"] {
        let left = volumes.path(name).join("DiskDescriptor.xml.op.lck");
        assert!(!left.exists(), "{}", left.display());
    }
    volumes.verify();
}

/// Mount points, and what is in the file system of each volume.
struct Mounts {
    dir: tempfile::TempDir,
}

impl Mounts {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn open(&self, volume: &str) -> Ploop {
        Ploop::open(self.path(volume).join("DiskDescriptor.xml")).unwrap()
    }

    fn target(&self, volume: &str) -> PathBuf {
        let target = self.path(&format!("mnt-{volume}"));
        let _ = fs::create_dir(&target);
        target
    }

    fn mount(&self, volume: &str) -> Ploop {
        let mut image = self.open(volume);
        let param = MountParam::new()
            .target(self.target(volume))
            .fsck(volume != "s");
        let mounted = image.mount(&param).unwrap();
        assert_eq!(image.device().unwrap().as_ref(), Some(&mounted.device));
        assert_eq!(image.devices().unwrap(), [mounted.device]);
        assert!(image.is_mounted().unwrap());
        image
    }

    fn write(&self, volume: &str, name: &str) {
        let bytes = name.as_bytes().repeat(100_000);
        let mut file = fs::File::create(self.target(volume).join(name)).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
    }

    #[track_caller]
    fn verify(&self, volume: &str, names: &[&str]) {
        let entries = fs::read_dir(self.target(volume)).unwrap();
        let mut found: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| {
                name != "lost+found" && name != ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8"
            })
            .collect();
        found.sort();
        assert_eq!(found, names);
        for name in names {
            let bytes = fs::read(self.target(volume).join(name)).unwrap();
            assert!(bytes == name.as_bytes().repeat(100_000), "{volume}: {name}");
        }
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for volume in ["a", "c", "s", "x"] {
            if let Ok(image) = Ploop::open(self.path(volume).join("DiskDescriptor.xml")) {
                for device in image.devices().unwrap_or_default() {
                    let _ = ploop::device::umount(device);
                }
            }
        }
    }
}

fn volumes_are_mounted_beside_each_other() {
    // The driver refuses tmpfs.
    let mounts = Mounts {
        dir: tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
    };
    let sectors = SIZE.sectors();
    assert_eq!(c::create(&mounts.path("a"), None, sectors, true), 0);
    let mut a = mounts.mount("a");
    mounts.write("a", "one");
    a.umount().unwrap();
    assert_eq!(c::snapshot(&mounts.path("a"), &mounts.path("s")), 0);
    assert_eq!(c::clone(&mounts.path("s"), &mounts.path("c"), None), 0);
    let of_s = mounts.open("s").top_delta_file().unwrap();
    let before = fs::read(&of_s).unwrap();

    let mut a = mounts.mount("a");
    let mut c = mounts.mount("c");
    assert_ne!(a.device().unwrap(), c.device().unwrap());
    let again = c.mount(&MountParam::new()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Busy, "{again}");
    mounts.write("a", "of-a");
    mounts.write("c", "of-c");
    mounts.verify("a", &["of-a", "one"]);
    mounts.verify("c", &["of-c", "one"]);

    // While both run.
    let guid = c.snapshot().unwrap();
    mounts.write("c", "later");
    let own = c.descriptor().unwrap();
    assert_eq!((own.images.len(), own.parent(own.top)), (2, Some(guid)));
    assert_eq!(c.image_info().unwrap().size(), SIZE);
    let blocks = ploop::fs_info(c.path()).unwrap().blocks;
    let larger = Size::from_mib(320);
    c.resize(larger, ResizeMode::Online).unwrap();
    assert_eq!(c.image_info().unwrap().size(), larger);
    assert!(ploop::fs_info(c.path()).unwrap().blocks > blocks);
    c.delete_snapshot(guid).unwrap();
    assert_eq!(c.descriptor().unwrap().images.len(), 1);
    mounts.verify("c", &["later", "of-c", "one"]);
    let temporary = TemporarySnapshotParam::new("backup".parse().unwrap());
    let error = c.temporary_snapshot(&temporary).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = mounts.open("s").snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");

    // The one upon which both stand, read-only whatever is asked for.
    let mut s = mounts.mount("s");
    mounts.verify("s", &["one"]);
    assert!(fs::write(mounts.target("s").join("x"), "").is_err());
    s.umount().unwrap();
    c.umount().unwrap();
    assert!(!c.is_mounted().unwrap());
    assert!(a.is_mounted().unwrap());
    mounts.verify("a", &["of-a", "one"]);
    a.umount().unwrap();
    assert!(
        fs::read(&of_s).unwrap() == before,
        "the delta of the snapshot differs"
    );

    // Detached: made and merged, and an own snapshot mounted.
    let guid = c.snapshot().unwrap();
    let mut c = mounts.mount("c");
    mounts.write("c", "last");
    c.umount().unwrap();
    let param = MountParam::new().snapshot(guid).read_only(true);
    let guard = c.mount_guard(&param.target(mounts.target("c"))).unwrap();
    mounts.verify("c", &["later", "of-c", "one"]);
    // libploop looks for a device with the top of the image, and finds none (A79).
    let mut other = mounts.open("c");
    assert_eq!(other.devices().unwrap(), [guard.mounted().device.clone()]);
    for snapshot in [None, Some(guid)] {
        let param = MountParam::new().read_only(true);
        let param = snapshot.map_or(param.clone(), |guid| param.snapshot(guid));
        let error = other.mount(&param).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    guard.umount().unwrap();
    assert_eq!(c.devices().unwrap(), [] as [PathBuf; 0]);
    c.delete_snapshot(guid).unwrap();
    c.resize(SIZE, ResizeMode::Offline).unwrap();
    let mut c = mounts.mount("c");
    mounts.verify("c", &["last", "later", "of-c", "one"]);
    c.umount().unwrap();
    let mut a = mounts.mount("a");
    mounts.verify("a", &["of-a", "one"]);
    a.umount().unwrap();
    assert!(
        fs::read(&of_s).unwrap() == before,
        "the delta of the snapshot differs"
    );
    for volume in ["a", "c", "s"] {
        let report = check(mounts.path(volume).join("DiskDescriptor.xml"));
        assert!(report.is_sound(), "{volume}: {report}");
    }
}

fn volumes_are_made_of_running_ones() {
    let mounts = Mounts {
        dir: tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
    };
    let place = |name: &str| VolumePlace::new(mounts.path(name));
    let base = mounts.path("a").join("image.hds");
    let mut a = Volume::create(&CreateParam::new(base, SIZE)).unwrap();
    let mut image = mounts.mount("a");
    mounts.write("a", "one");
    let mut s = a.snapshot(&place("s")).unwrap();
    mounts.write("a", "two");
    let mut x = a.clone_to(&place("x")).unwrap();
    mounts.write("a", "three");
    let mut c = s.clone_to(&place("c")).unwrap();
    // The device writes to the new top.
    let own = image.descriptor().unwrap();
    let device = image.device().unwrap().unwrap();
    let top = ploop::device::top_delta(&device).unwrap().file;
    assert_eq!(top, own.top_image().unwrap().file);
    let mut at_c = mounts.mount("c");
    let mut at_x = mounts.mount("x");
    mounts.verify("c", &["one"]);
    mounts.verify("x", &["one", "two"]);
    mounts.write("x", "of-x");
    mounts.verify("a", &["one", "three", "two"]);

    for error in [
        c.switch_to(&s).unwrap_err(),
        Volume::open(c.directory()).unwrap().delete().unwrap_err(),
        Volume::open(a.directory()).unwrap().delete().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    at_c.umount().unwrap();
    c.switch_to(&s).unwrap();
    c.delete().unwrap();
    image.umount().unwrap();
    at_x.umount().unwrap();
    // `x` takes over what it stands upon.
    a.delete().unwrap();
    let mut at_x = mounts.mount("x");
    mounts.verify("x", &["of-x", "one", "two"]);
    // While it runs, too: what is below lies elsewhere.
    assert_eq!(s.tree().unwrap().children.len(), 1);
    s.delete().unwrap();
    mounts.verify("x", &["of-x", "one", "two"]);
    at_x.umount().unwrap();
    assert_eq!(x.image_mut().snapshots().unwrap().len(), 2);
    x.image_mut()
        .merge(&MergeParam::new(MergeTarget::All))
        .unwrap();
    let mut at_x = mounts.mount("x");
    mounts.verify("x", &["of-x", "one", "two"]);
    at_x.umount().unwrap();
    let report = check(x.image_mut().path());
    assert!(report.is_sound(), "{report}");
}

/// What nobody has looked at.
fn what_stands_upon_others_without_knowledge_is_refused() {
    let volumes = volumes();
    let mut image = volumes.open("c");
    let before = Contents::of(&volumes.home());
    for error in [
        image.convert(ploop::ImageMode::Preallocated).unwrap_err(),
        image.drop_tracking(Guid::TOP).unwrap_err(),
        image
            .mount(&MountParam::new().snapshot(Guid::generate()))
            .unwrap_err(),
    ] {
        let kind = error.kind();
        let expected = [ErrorKind::Unsupported, ErrorKind::NoSnapshot];
        assert!(expected.contains(&kind), "{error}");
    }
    before.assert_unchanged("refused operations");
}

/// `ploop_volume_delete` of a volume that has one upon it and stands upon one itself (A80).
fn c_frees_a_name_twice() {
    child("delete", |_| {
        let mut volumes = Volumes::new();
        volumes.c_create("a");
        volumes.c_snapshot("a", "first");
        volumes.c_snapshot("a", "second");
        c::delete(&volumes.path("second"));
    })
    .crashed();
}

/// What libploop's functions for volumes destroy (A81), by its own: this crate calls none of them.
fn c_removes_the_data_of_others() {
    // Everything in the directory of a volume that is deleted, the base of others, too.
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.c_snapshot("a", "s");
    let base = volumes.files("s")[0].clone();
    assert!(base.starts_with(volumes.path("a")));
    assert_eq!(c::delete(&volumes.path("a")), 0);
    assert!(!base.exists());
    assert!(ploop::image::Disk::open(volumes.xml("s")).is_err());

    // And in one that was there before, where it could not make a volume.
    let volumes = Volumes::new();
    let here = volumes.path("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("image.hds"), "of somebody").unwrap();
    fs::write(here.join("precious"), "of somebody").unwrap();
    assert_ne!(c::create(&here, None, 1024, false), 0);
    assert!(!here.join("precious").exists() && !here.exists());
}

/// A clone of a volume that is read-only and stands upon another one has the data of that one (A82).
fn c_clones_another_state() {
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.c_snapshot("a", "first");
    volumes.write("a", &[(0, 2)]);
    volumes.c_snapshot("a", "second");
    volumes.verify();
    volumes.c_clone("second", "x");
    let first = volumes.contents["first"].clone();
    assert_ne!(volumes.contents["x"], first);
    volumes.contents.insert("x", first);
    volumes.verify();
}

/// libploop deletes a snapshot upon which a clone stands (A76), and leaves a top that is not listed (A77).
fn c_looks_at_no_other_descriptor() {
    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.write("a", &[(0, 1)]);
    volumes.c_clone("a", "d");
    volumes.write("a", &[(0, 2)]);
    volumes.verify();
    let below = volumes.descriptor("d").volume.unwrap().snapshot.unwrap();
    assert_eq!(c::delete_snapshot(&volumes.xml("a"), below), 0);
    assert!(ploop::image::Disk::open(volumes.xml("d")).is_err());

    let mut volumes = Volumes::new();
    volumes.c_create("a");
    volumes.c_snapshot("a", "s");
    volumes.open("a").snapshot().unwrap();
    let top = volumes.descriptor("a").top;
    assert_eq!(c::delete_snapshot(&volumes.xml("a"), top), 0);
    let error = ploop::Descriptor::open(volumes.xml("a")).unwrap_err();
    assert!(error.message().contains("is not listed"), "{error}");
}
