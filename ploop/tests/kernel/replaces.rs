//! Exchanging the files of a running image.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ploop::image::Disk;
use ploop::{
    Code, ErrorKind, Guid, ImageMode, MountParam, Ploop, ReplaceFlag, ReplaceParam, ReplaceTarget,
    Size, device,
};

use crate::NEEDS;
use crate::container::{Container, SIZE, refused};
use crate::fixture::disk::Immutable;
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::refuses_full_deltas;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        NEEDS =>
            whatever_it_is_named_by,
            under_the_same_name,
            what_is_not_the_same,
            a_full_delta,
            the_top_of_a_running_image;
        &[Need::Driver, Need::Root, Need::ImmutableFiles] =>
            a_name_that_cannot_be_taken;
    ]
}

/// A running chain of a base, a snapshot and a top.
fn running() -> (Container, Ploop, [Guid; 2]) {
    let (mut container, mut image) = Container::new(SIZE);
    image.mount(&container.param()).unwrap();
    container.write("0", 4 << 20);
    let base = image.snapshot().unwrap();
    container.write("1", 4 << 20);
    let middle = image.snapshot().unwrap();
    container.write("top", 4 << 20);
    (container, image, [base, middle])
}

const ALL: [&str; 3] = ["0", "1", "top"];

fn file_of(image: &mut Ploop, guid: Guid) -> PathBuf {
    let descriptor = image.descriptor().unwrap();
    descriptor.image(guid).unwrap().file.clone()
}

/// The file that the driver has at a level.
fn at_level(image: &mut Ploop, level: u32) -> PathBuf {
    let device = image.device().unwrap().unwrap();
    let name = device.file_name().unwrap().to_str().unwrap();
    let text = fs::read_to_string(format!("/sys/block/{name}/pdelta/{level}/image"));
    PathBuf::from(text.unwrap().trim_end_matches('\n'))
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

fn whatever_it_is_named_by() {
    let (mut container, mut image, [base, middle]) = running();
    for (at, level) in [(base, 0), (middle, 1)] {
        for by in ["guid", "file", "level"] {
            let old = file_of(&mut image, at);
            let new = container.path(&format!("{level}-{by}.hdd"));
            copy(&old, &new);
            let target = match by {
                "guid" => ReplaceTarget::Guid(at),
                "file" => ReplaceTarget::File(old.clone()),
                _ => ReplaceTarget::Level(level),
            };
            image.replace(&ReplaceParam::new(&new, target)).unwrap();
            assert_eq!(file_of(&mut image, at), new);
            assert_eq!(at_level(&mut image, level), new);
            // The old one is there, and nobody needs it.
            fs::remove_file(old).unwrap();
            container.verify(&ALL);
        }
    }
    // Names are taken from the working directory, or wherever they say.
    let elsewhere = container.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let old = file_of(&mut image, middle);
    copy(&old, &elsewhere.join("moved.hdd"));
    let new = elsewhere.join("../elsewhere/moved.hdd");
    let target = ReplaceTarget::File(
        container
            .path("elsewhere/..")
            .join(old.file_name().unwrap()),
    );
    image.replace(&ReplaceParam::new(new, target)).unwrap();
    assert_eq!(file_of(&mut image, middle), elsewhere.join("moved.hdd"));
    container.write("more", 4 << 20);
    let all = ["0", "1", "more", "top"];
    container.verify(&all);
    image.umount().unwrap();
    container.verify_image(&mut image, &all);
}

fn under_the_same_name() {
    let (mut container, mut image, [base, middle]) = running();
    for (guid, level) in [(base, 0), (middle, 1)] {
        let old = file_of(&mut image, guid);
        let inode = fs::metadata(&old).unwrap().ino();
        let new = container.path("new.hdd");
        copy(&old, &new);
        let new_inode = fs::metadata(&new).unwrap().ino();
        let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guid));
        image.replace(&param.flags(ReplaceFlag::KEEP_NAME)).unwrap();
        assert!(!new.exists());
        assert_eq!(file_of(&mut image, guid), old);
        let now = fs::metadata(&old).unwrap().ino();
        assert_eq!((now == new_inode, now == inode), (true, false));
        container.verify(&ALL);
        // The driver tells the name it was given, which is gone, or the new one.
        let shown = at_level(&mut image, level);
        assert!(shown == old || shown == new, "{}", shown.display());
    }
    container.write("more", 4 << 20);
    image.umount().unwrap();
    container.verify_image(&mut image, &["0", "1", "more", "top"]);
}

/// Where the renaming fails libploop rolls back and returns 0.
fn a_name_that_cannot_be_taken() {
    let (mut container, mut image, [base, _]) = running();
    let (old, new) = (container.base(), container.path("new.hdd"));
    copy(&old, &new);
    let held = Immutable::make(&old).unwrap();
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(base));
    let param = param.flags(ReplaceFlag::KEEP_NAME);
    let error = refused(image.replace(&param), ErrorKind::Io, None);
    assert_eq!(error.path(), Some(&*new));
    assert!(new.exists() && old.exists());
    assert_eq!(file_of(&mut image, base), old);
    assert_eq!(at_level(&mut image, 0), old);
    container.verify(&ALL);
    drop(held);
    image.replace(&param).unwrap();
    assert!(!new.exists());
    container.write("more", 4 << 20);
    container.verify(&["0", "1", "more", "top"]);
    image.umount().unwrap();
    container.verify_image(&mut image, &["0", "1", "more", "top"]);
}

fn what_is_not_the_same() {
    let (container, mut image, [base, middle]) = running();
    let mut refuse = |new: &Path, target, kind, code: Option<Code>| {
        let result = image.replace(&ReplaceParam::new(new, target));
        refused(result, kind, code);
        container.verify(&ALL);
        assert_eq!(at_level(&mut image, 0), container.base());
    };
    let copied = container.path("copied.hdd");
    copy(&container.base(), &copied);
    for level in [3, 99, u32::MAX] {
        let target = ReplaceTarget::Level(level);
        refuse(&copied, target, ErrorKind::InvalidInput, Some(Code::PARAM));
    }
    let unknown = ReplaceTarget::Guid(Guid::generate());
    refuse(&copied, unknown, ErrorKind::NoSnapshot, Some(Code::NOSNAP));
    let missing = container.path("missing.hdd");
    let target = || ReplaceTarget::Guid(base);
    refuse(&missing, target(), ErrorKind::NotFound, None);
    // One of the image's own, one of another size, one that is no delta.
    let own = container.base();
    refuse(&own, target(), ErrorKind::InvalidInput, None);
    let upper = ReplaceTarget::Guid(middle);
    refuse(&copied, upper, ErrorKind::Corrupt, Some(Code::PLOOPFMT));
    let file = File::options().write(true).open(&copied).unwrap();
    file.write_all_at(b"no magic", 0).unwrap();
    refuse(&copied, target(), ErrorKind::Corrupt, None);
    image.umount().unwrap();
    container.verify_image(&mut image, &ALL);

    let (mut container, mut image) = Container::made(SIZE, |param| param.mode(ImageMode::Raw));
    image.mount(&container.param()).unwrap();
    container.write("0", 1 << 20);
    image.snapshot().unwrap();
    let delta = image.top_delta_file().unwrap();
    let copied = container.path("copied.hdd");
    copy(&delta, &copied);
    let param = ReplaceParam::new(&copied, ReplaceTarget::File(container.base()));
    refused(image.replace(&param), ErrorKind::Unsupported, None);
    container.verify(&["0"]);
}

/// Each cluster has a place in the file. libploop 7.0.166 takes that for damage.
fn a_full_delta() {
    let size = Size::from_mib(16);
    let (container, mut image) = Container::made(size, |param| param.fs(None));
    let device = image.mount(&MountParam::new()).unwrap().device;
    let written: Vec<u8> = (1..=size.bytes() / 8).flat_map(u64::to_be_bytes).collect();
    let disk = File::options().write(true).open(device).unwrap();
    disk.write_all_at(&written, 0).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    let base = image.snapshot().unwrap();
    let (old, new) = (container.base(), container.path("new.hdd"));
    copy(&old, &new);
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(base));
    if refuses_full_deltas(&container.path("")) {
        let code = Code::PLOOPFMT;
        let error = refused(image.replace(&param), ErrorKind::Unsupported, code);
        assert!(error.advice().unwrap().contains("unmount"), "{error}");
        assert_eq!(file_of(&mut image, base), old);
        assert_eq!(at_level(&mut image, 0), old);
        image.umount().unwrap();
        image.replace(&param).unwrap();
    } else {
        image.replace(&param).unwrap();
        assert_eq!(at_level(&mut image, 0), new);
        image.umount().unwrap();
    }
    assert_eq!(file_of(&mut image, base), new);
    fs::remove_file(old).unwrap();
    container.verify_whole();
    let mut found = Vec::new();
    let mut disk = Disk::open(container.descriptor()).unwrap();
    disk.read_to_end(&mut found).unwrap();
    assert!(found == written);
}

/// The driver takes no other file for the one it writes to.
fn the_top_of_a_running_image() {
    let (container, mut image, _) = running();
    let top = image.top_delta_file().unwrap();
    let new = container.path("new.hdd");
    for target in [
        ReplaceTarget::Guid(Guid::TOP),
        ReplaceTarget::File(top.clone()),
        ReplaceTarget::Level(2),
    ] {
        copy(&top, &new);
        image.replace(&ReplaceParam::new(&new, target)).unwrap_err();
        assert_eq!(image.top_delta_file().unwrap(), top);
        let running = image.device().unwrap().unwrap();
        assert_eq!(device::top_delta(&running).unwrap().file, top);
        container.verify(&ALL);
        fs::remove_file(&new).unwrap();
    }
    image.umount().unwrap();
    container.verify_image(&mut image, &ALL);
    // One that does not run is no different from the others.
    copy(&top, &new);
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
    image.replace(&param).unwrap();
    assert_eq!(image.top_delta_file().unwrap(), new);
    container.verify_image(&mut image, &ALL);
}
