//! Replacing delta files by others.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use ploop::{ErrorKind, FormatVersion, Guid, ImageMode, ReplaceFlag, ReplaceParam, ReplaceTarget};

use super::filled_image::{Delta, FilledImage, relative};

/// A copy of the delta of `guid` in which a cluster is different, so that it shows which of the two
/// files is in use.
fn copy_with_mark(filled: &FilledImage, guid: Guid, to: &Path, number: u64, seed: u64) {
    fs::copy(filled.file_of(guid), to).unwrap();
    let delta = Delta::open(to);
    assert!(delta.allocated(filled.clusters).contains(&number));
    delta.write(number, seed);
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Replaces each delta of a chain of base, snapshot and top; `target` names it.
fn each_delta(target: impl Fn(&FilledImage, Guid) -> ReplaceTarget) {
    for format in [FormatVersion::V1, FormatVersion::V2] {
        for mode in [ImageMode::Expanded, ImageMode::Preallocated] {
            for keep_name in [false, true] {
                for level in 0..3 {
                    let (mut filled, guids) = FilledImage::chain(mode, format, 2);
                    let guid = [guids[0], guids[1], Guid::TOP][level];
                    // A cluster that no other level writes, and all above show.
                    let number = filled.clusters - 1 - level as u64;
                    let new = filled.path("new.hds");
                    copy_with_mark(&filled, guid, &new, number, 4242);
                    let (old, marked) = (filled.file_of(guid), inode(&new));
                    let mut param = ReplaceParam::new(&new, target(&filled, guid));
                    if keep_name {
                        param = param.flags(ReplaceFlag::KEEP_NAME);
                    }
                    filled.ploop.replace(&param).unwrap();
                    for above in [guids[0], guids[1], Guid::TOP].iter().skip(level) {
                        filled.states.get_mut(above).unwrap().insert(number, 4242);
                    }
                    let used = filled.file_of(guid);
                    assert_eq!(inode(&used), marked);
                    if keep_name {
                        assert_eq!(used, old);
                        assert!(!new.exists());
                    } else {
                        assert_eq!(used, new);
                        assert!(old.exists());
                        filled.orphans.insert(old);
                    }
                    filled.verify();
                }
            }
        }
    }
}

#[test]
fn by_guid() {
    each_delta(|_, guid| ReplaceTarget::Guid(guid));
}

#[test]
fn by_file() {
    each_delta(|filled, guid| ReplaceTarget::File(filled.file_of(guid)));
}

/// libploop looks such a name up in the image's directory and uses it in the working directory.
#[test]
fn by_file_from_another_directory() {
    each_delta(|filled, guid| ReplaceTarget::File(relative(&filled.file_of(guid))));
}

#[test]
fn by_a_link_to_the_file() {
    each_delta(|filled, guid| {
        let link = filled.path("link");
        symlink(filled.file_of(guid), &link).unwrap();
        ReplaceTarget::File(link)
    });
}

#[test]
fn from_another_directory_and_back() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let old = filled.file_of(guids[0]);
    let new: PathBuf = fs::canonicalize(elsewhere.path())
        .unwrap()
        .join("moved.hds");
    fs::copy(&old, &new).unwrap();
    let target = || ReplaceTarget::Guid(guids[0]);
    filled
        .ploop
        .replace(&ReplaceParam::new(relative(&new), target()))
        .unwrap();
    assert_eq!(filled.file_of(guids[0]), new);
    filled.orphans.insert(old.clone());
    filled.verify();
    filled.orphans.clear();
    filled
        .ploop
        .replace(&ReplaceParam::new(&old, target()))
        .unwrap();
    assert_eq!(filled.file_of(guids[0]), old);
    filled.verify();
}

#[test]
fn what_is_no_copy_is_refused() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1);
    let other = FilledImage::with(
        ImageMode::Expanded,
        ploop::ClusterSize::DEFAULT,
        FormatVersion::V1,
    );
    let v2 = FilledImage::with(
        ImageMode::Expanded,
        ploop::ClusterSize::MIN,
        FormatVersion::V2,
    );
    let longer = filled.path("longer.hds");
    fs::copy(filled.file_of(guids[0]), &longer).unwrap();
    Delta::open(&longer).write(12, 1);
    let target = || ReplaceTarget::Guid(guids[0]);
    // Nothing is taken away from another image, whatever it is.
    let param = ReplaceParam::new(other.path("root.hds"), target()).flags(ReplaceFlag::KEEP_NAME);
    let error = filled.ploop.replace(&param).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    // Files by themselves.
    for image in [&other, &v2] {
        fs::remove_file(image.xml()).unwrap();
    }
    for (new, kind) in [
        (other.path("root.hds"), ErrorKind::Corrupt),
        (v2.path("root.hds"), ErrorKind::Corrupt),
        (longer, ErrorKind::Corrupt),
        (filled.file_of(guids[0]), ErrorKind::InvalidInput),
        (filled.file_of(Guid::TOP), ErrorKind::InvalidInput),
        (filled.path("none"), ErrorKind::NotFound),
    ] {
        for flags in [ReplaceFlag::empty(), ReplaceFlag::KEEP_NAME] {
            let param = ReplaceParam::new(&new, target()).flags(flags);
            let error = filled.ploop.replace(&param).unwrap_err();
            assert_eq!(error.kind(), kind, "{}: {error}", new.display());
        }
    }
    let copy = filled.path("copy");
    fs::copy(filled.file_of(guids[0]), &copy).unwrap();
    for (target, kind) in [
        (ReplaceTarget::Guid(Guid::generate()), ErrorKind::NoSnapshot),
        (ReplaceTarget::File(filled.xml()), ErrorKind::InvalidInput),
        (
            ReplaceTarget::File(filled.path("none")),
            ErrorKind::NotFound,
        ),
        // Only a running device has levels.
        (ReplaceTarget::Level(0), ErrorKind::InvalidInput),
        (ReplaceTarget::Level(u32::MAX), ErrorKind::InvalidInput),
    ] {
        let param = ReplaceParam::new(&copy, target.clone());
        let error = filled.ploop.replace(&param).unwrap_err();
        assert_eq!(error.kind(), kind, "{target:?}: {error}");
    }
    filled.verify();
}

#[test]
fn a_raw_base_cannot_be_replaced_but_what_is_above_can() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Raw, FormatVersion::V1, 1);
    let new = filled.path("new");
    fs::copy(filled.file_of(guids[0]), &new).unwrap();
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(guids[0]));
    // A raw disk has no header to be compared.
    filled.ploop.replace(&param).unwrap_err();
    filled.verify();
    let old = filled.file_of(Guid::TOP);
    fs::copy(&old, &new).unwrap();
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
    filled.ploop.replace(&param).unwrap();
    assert_eq!(filled.file_of(Guid::TOP), new);
    filled.orphans.insert(old);
    filled.verify();
}

/// The descriptor's name then leads to the new file. The old file stays where the link led.
#[test]
fn a_link_to_a_delta_gives_way_to_the_new_file() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    let elsewhere = tempfile::tempdir_in(filled.path("")).unwrap();
    let (name, old) = (filled.path("root.hds"), elsewhere.path().join("old.hds"));
    fs::rename(&name, &old).unwrap();
    symlink(&old, &name).unwrap();
    let new = filled.path("new.hds");
    fs::copy(&old, &new).unwrap();
    let (was, marked) = (inode(&old), inode(&new));
    let param = ReplaceParam::new(&new, ReplaceTarget::Guid(Guid::TOP));
    filled
        .ploop
        .replace(&param.flags(ReplaceFlag::KEEP_NAME))
        .unwrap();
    assert!(fs::symlink_metadata(&name).unwrap().is_file());
    assert_eq!((inode(&name), inode(&old)), (marked, was));
    assert!(!new.exists());
    filled.verify();
}

/// The file itself is moved, not the link to it.
#[test]
fn a_new_file_by_a_link() {
    for keep_name in [false, true] {
        let mut filled = FilledImage::new(ImageMode::Expanded);
        let elsewhere = tempfile::tempdir_in(filled.path("")).unwrap();
        let file = elsewhere.path().join("copy.hds");
        let (name, link) = (filled.path("root.hds"), filled.path("link"));
        fs::copy(&name, &file).unwrap();
        symlink(&file, &link).unwrap();
        let marked = inode(&file);
        let mut param = ReplaceParam::new(&link, ReplaceTarget::Guid(Guid::TOP));
        if keep_name {
            param = param.flags(ReplaceFlag::KEEP_NAME);
        }
        filled.ploop.replace(&param).unwrap();
        let used = if keep_name { &name } else { &file };
        assert_eq!(filled.ploop.top_delta_file().unwrap(), *used);
        assert!(fs::symlink_metadata(used).unwrap().is_file());
        assert_eq!(inode(used), marked);
        assert_eq!((file.exists(), name.exists()), (!keep_name, true));
        assert_eq!(fs::read_link(&link).unwrap(), file);
        filled.verify();
    }
}
