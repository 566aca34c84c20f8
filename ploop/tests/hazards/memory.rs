//! Reads and writes beyond buffers, NULL, division by zero, endless loops.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ploop::{
    ComponentName, CreateParam, ErrorKind, Guid, MergeParam, MergeTarget, MountParam, Ploop,
    ReplaceParam, ReplaceTarget, Size, device, sys,
};

use crate::fixture::child::{Ending, child, child_for};
use crate::fixture::directory::Contents;
use crate::fixture::disk::{self, HEADER_FIRST_BLOCK, HEADER_IN_USE, IN_USE};
use crate::fixture::harness::{Need, Test};
use crate::fixture::line::by_line;
use crate::fixture::raw;
use crate::fixture::refused::refused;
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            h0_08_short_paths_are_over_read,
            h0_13_h4_04_an_unknown_format_version_crashes,
            h4_05_null_crashes,
            h4_06_a_short_buffer_for_a_guid_aborts,
            h4_11_a_negative_length_is_no_bound,
            h4_13_a_short_device_name_is_over_read,
            h4_14_long_names_are_cut,
            h4_15_a_long_path_overflows_the_stack;
        &[Need::Root] =>
            h0_16_h4_03_a_merge_to_a_new_delta_crashes,
            h0_20_h4_09_a_header_leads_replace_out_of_its_buffer,
            h0_20_h4_09_a_header_leads_snapshot_out_of_its_buffer,
            h0_20_h4_09_a_header_leads_mount_out_of_its_buffer,
            h4_07_a_missing_geometry_kills,
            h4_08_a_cycle_of_parents_has_no_end,
            h4_10_other_clusters_overflow_a_merge;
    ]
}

/// Debian's `get_basedir` copies 4096 bytes of a path, however short it is; that of the public source of 7 does not. The
/// crate passes buffers of that size.
fn h0_08_short_paths_are_over_read() {
    let over_read = Ending::Signal(libc::SIGSEGV);
    child("create image", |dir| {
        let image = raw::Guarded::new(&dir.join("root.hds"));
        let mut param = sys::ploop_create_param {
            size: 2048,
            image: image.as_ptr(),
            ..Default::default()
        };
        // SAFETY: none: the read beyond the page is what is shown.
        let code = unsafe { sys::ploop_create_image(&mut param) };
        assert_eq!(code, 0);
        ploop::Descriptor::open(disk::descriptor(dir)).unwrap();
    })
    .ended(by_line(over_read, Ending::Success));
    child("create descriptor", |dir| {
        let (xml, mut image) = (
            raw::Guarded::new(&dir.join("a.xml")),
            raw::padded(&dir.join("root.hds")),
        );
        let mut param = sys::ploop_create_param {
            size: 2048,
            image: image.as_mut_ptr().cast(),
            ..Default::default()
        };
        // SAFETY: none, as above.
        let code = unsafe { sys::ploop_create_dd(xml.as_ptr(), &mut param) };
        assert_eq!(code, 0);
        ploop::Descriptor::open(dir.join("a.xml")).unwrap();
    })
    .ended(by_line(over_read, Ending::Success));
    child("file system info", |dir| {
        let xml = raw::Guarded::new(&dir.join("a.xml"));
        let mut info = sys::ploop_info::default();
        // SAFETY: none, as above.
        let code = unsafe { sys::ploop_get_info_by_descr(xml.as_ptr(), &mut info) };
        assert_ne!(code, 0, "there is no such descriptor");
    })
    .ended(by_line(over_read, Ending::Success));
    // The crate copies what it is given, so where it lies does not matter.
    child("safe", |dir| {
        let guarded = |name: &str| {
            let path = dir.join(name);
            let text = raw::Guarded::new(&path);
            // SAFETY: the bytes before the terminator were written by `new`, and are never freed.
            let bytes = unsafe {
                std::slice::from_raw_parts(text.as_ptr().cast::<u8>(), path.as_os_str().len())
            };
            PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
        };
        Ploop::create(&CreateParam::new(guarded("root.hds"), disk::SIZE).fs(None)).unwrap();
        Ploop::create_descriptor(
            guarded("a.xml"),
            &CreateParam::new(guarded("a.hds"), disk::SIZE).fs(None),
        )
        .unwrap();
        // The answer depends on the driver; that there is one is what matters.
        let _ = ploop::fs_info(guarded("DiskDescriptor.xml"));
    })
    .succeeded();
}

/// Any `fmt_version` but 0, 1 and 2 dereferences NULL. The crate has a type for it.
fn h0_13_h4_04_an_unknown_format_version_crashes() {
    child("raw", |dir| {
        raw::create_image(&dir.join("root.hds"), 2048, |param| param.fmt_version = 3);
    })
    .died_of(libc::SIGSEGV);
    child("safe", |dir| {
        for format in [ploop::FormatVersion::V1, ploop::FormatVersion::V2] {
            let file = dir.join(format.to_string()).join("root.hds");
            fs::create_dir(file.parent().unwrap()).unwrap();
            let param = CreateParam::new(file, disk::SIZE).fs(None).format(format);
            match Ploop::create(&param) {
                Ok(image) => {
                    assert_eq!(image.descriptor().unwrap().size, disk::SIZE);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert!(error.message().contains("format v2"), "{error}");
                }
            }
        }
    })
    .succeeded();
}

/// A handle that has read nothing crashes `ploop_umount` of line 1, and NULL most functions of both lines. The crate has no
/// NULL, and unmounts a device without a handle.
fn h4_05_null_crashes() {
    child("unread", |dir| {
        assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| ()), 0);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        // SAFETY: none: the handle was not read.
        let code = unsafe { sys::ploop_umount(c"/dev/ploop999999".as_ptr(), handle.as_ptr()) };
        assert_ne!(code, 0);
    })
    .ended(by_line(Ending::Signal(libc::SIGSEGV), Ending::Success));
    child("null handle", |_| {
        // SAFETY: none: NULL is what is shown.
        unsafe { sys::ploop_is_mounted(std::ptr::null_mut()) };
    })
    .died_of(libc::SIGSEGV);
    child("null name", |dir| {
        assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| ()), 0);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        // SAFETY: none: NULL is what is shown.
        unsafe { sys::ploop_set_component_name(handle.as_ptr(), std::ptr::null()) };
    })
    .died_of(libc::SIGSEGV);
    child("safe", |dir| {
        let error = device::umount("/dev/ploop99999").unwrap_err();
        assert!(error.to_string().contains("/dev/ploop99999"), "{error}");
        let mut image = disk::create(dir);
        image.set_component(Some(ComponentName::new("a").unwrap()));
        image.set_component(None);
        image.descriptor().unwrap();
    })
    .succeeded();
}

/// `ploop_uuid_generate` asserts that there is room for 39 bytes. The crate makes GUIDs itself.
fn h4_06_a_short_buffer_for_a_guid_aborts() {
    child("raw", |_| {
        let mut out = [0; 39];
        // SAFETY: the buffer is longer than said.
        unsafe { sys::ploop_uuid_generate(out.as_mut_ptr(), 38) };
    })
    .died_of(libc::SIGABRT);
    let (a, b) = (Guid::generate(), Guid::generate());
    assert_ne!(a, b);
    assert_eq!(a.to_string().len(), 38);
}

/// A length below zero lets the getters of file names write as much as they have. The crate's buffers
/// are as long as it says.
fn h4_11_a_negative_length_is_no_bound() {
    child("raw", |dir| {
        assert_eq!(raw::create_image(&dir.join("root.hds"), 2048, |_| ()), 0);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let mut out = [0; 4096];
        // SAFETY: the buffer takes any path, though C is told that it is shorter than nothing.
        unsafe { sys::ploop_get_top_delta_fname(handle.as_ptr(), out.as_mut_ptr(), -1) };
        assert_ne!(out[0], 0, "nothing was written");
    })
    .succeeded();
    child("safe", |dir| {
        let image = disk::create(dir);
        let file = dir.join("root.hds");
        assert_eq!(image.top_delta_file().unwrap(), file);
        assert_eq!(image.base_delta_file().unwrap(), file);
    })
    .succeeded();
}

/// libploop compares the first five bytes of a device's name, however short it is. The crate passes
/// `/dev/ploop` and a number only.
fn h4_13_a_short_device_name_is_over_read() {
    child("raw", |_| {
        let name = raw::Guarded::new(Path::new("/"));
        let mut out = [0; 64];
        // SAFETY: none: the read beyond the page is what is shown.
        unsafe {
            sys::ploop_find_top_delta_name_and_format(
                name.as_ptr(),
                out.as_mut_ptr(),
                64,
                std::ptr::null_mut(),
                0,
            );
        }
    })
    .died_of(libc::SIGSEGV);
    for name in ["", "/", "/dev", "ploop1", "/dev/ploop", "/dev/ploop1p1"] {
        for error in [
            device::top_delta(name).unwrap_err(),
            device::mount_point(name).unwrap_err(),
            device::umount(name).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.path(), Some(Path::new(name)), "{error}");
        }
    }
}

/// Names of 64 bytes and more are cut and never found again, mount options behind 1023 bytes. The
/// crate takes what fits.
fn h4_14_long_names_are_cut() {
    ComponentName::new("x".repeat(63)).unwrap();
    refused(ComponentName::new("x".repeat(64)), ErrorKind::InvalidInput);
    let dir = tempfile::tempdir().unwrap();
    let mut image = disk::create(dir.path());
    let before = Contents::of(dir.path());
    let options = vec!["noatime"; 200].join(",");
    let target = tempfile::tempdir().unwrap();
    let param = MountParam::new().target(target.path()).data(&options);
    let error = image.mount(&param).unwrap_err();
    if Need::Root.missing().is_none() {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains("mount data"), "{error}");
    }
    before.assert_unchanged("long mount options");
}

/// `.lck` is appended to a path of up to 4095 bytes in a buffer of 4096. The crate takes paths below
/// 4000 bytes, and resolves them before it counts.
fn h4_15_a_long_path_overflows_the_stack() {
    let deep = |dir: &Path, len: usize| {
        let mut path = dir.to_owned();
        while path.as_os_str().len() + 256 < len {
            path.push("d".repeat(200));
        }
        fs::create_dir_all(&path).unwrap();
        let left = len - path.as_os_str().len() - 1;
        path.join("x".repeat(left))
    };
    child("raw", |dir| {
        let xml = deep(dir, 4094);
        fs::write(&xml, "").unwrap();
        let handle = raw::Handle::open(&xml);
        let (code, _) = handle.top_delta();
        assert_eq!(code, sys::SYSEXIT_LOCK);
        assert!(raw::last_error().ends_with("File name too long"));
    })
    .ended(by_line(Ending::Signal(libc::SIGABRT), Ending::Success));
    child("safe", |dir| {
        let xml = deep(dir, 4094);
        fs::write(&xml, "").unwrap();
        let error = refused(Ploop::open(&xml), ErrorKind::InvalidInput);
        assert!(error.message().contains("4094 bytes long"), "{error}");
        // A short name for it.
        let short = dir.join("short");
        std::os::unix::fs::symlink(xml.parent().unwrap(), &short).unwrap();
        refused(
            Ploop::open(short.join(xml.file_name().unwrap())),
            ErrorKind::InvalidInput,
        );
        let image = short.join("root.hds");
        refused(
            Ploop::create(&CreateParam::new(image, disk::SIZE).fs(None)),
            ErrorKind::InvalidInput,
        );
    })
    .succeeded();
}

/// `new_delta` with one end of the range dereferences NULL after the data was written. The crate
/// always names both.
fn h0_16_h4_03_a_merge_to_a_new_delta_crashes() {
    child("raw", |dir| {
        let (_, guids) = disk::with_snapshots(dir, 2);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        let (top, new) = (guids[1].to_string(), dir.join("new.hds"));
        assert_eq!(handle.merge(Some(&top), None, Some(&new)), 0);
        let images = ploop::Descriptor::open(disk::descriptor(dir))
            .unwrap()
            .images;
        assert!(images.iter().any(|image| image.file == new));
    })
    .ended(by_line(Ending::Signal(libc::SIGSEGV), Ending::Success));
    child("safe", |dir| {
        for target in 0..4 {
            let dir = dir.join(target.to_string());
            fs::create_dir(&dir).unwrap();
            let (mut image, guids) = disk::with_snapshots(&dir, 2);
            let (target, left) = match target {
                0 => (MergeTarget::Top, 2),
                1 => (MergeTarget::Snapshot(guids[1]), 2),
                2 => (
                    MergeTarget::Range {
                        from: guids[1],
                        to: guids[0],
                    },
                    2,
                ),
                _ => (MergeTarget::All, 1),
            };
            let file = dir.join("new.hds");
            image
                .merge(&MergeParam::new(target).new_delta(&file))
                .unwrap();
            let descriptor = image.descriptor().unwrap();
            assert_eq!(descriptor.images.len(), left, "{target:?}");
            assert!(descriptor.images.iter().any(|image| image.file == file));
            assert!(descriptor.images.iter().all(|image| image.file.exists()));
        }
    })
    .succeeded();
}

/// Makes a delta look as if it was left in use by a crash, with a table far longer than the file.
fn craft(delta: &Path) {
    disk::write_header(delta, HEADER_IN_USE, IN_USE);
    disk::write_header(delta, HEADER_FIRST_BLOCK, 0x7fff_ff80);
}

/// A dirty header whose first block lies beyond the file makes the check write behind its bit map.
/// The crate reads headers first.
fn h0_20_h4_09_a_header_leads_replace_out_of_its_buffer() {
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        let new = dir.join("new.hds");
        fs::copy(dir.join("root.hds"), &new).unwrap();
        craft(&new);
        (image, new, guids[0])
    };
    child("raw", |dir| {
        let (_, new, guid) = prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        handle.replace(&new, &guid.to_string(), 0);
    })
    .crashed();
    child("safe", |dir| {
        let (mut image, new, guid) = prepare(dir);
        let before = Contents::of(dir);
        for target in [
            ReplaceTarget::Guid(guid),
            ReplaceTarget::File(dir.join("root.hds")),
        ] {
            let error = refused(
                image.replace(&ReplaceParam::new(&new, target)),
                ErrorKind::Corrupt,
            );
            assert_eq!(error.path(), Some(&*new), "{error}");
        }
        before.assert_unchanged("replace");
    })
    .succeeded();
}

/// As above, by way of the repair of a top delta that was left in use.
fn h0_20_h4_09_a_header_leads_snapshot_out_of_its_buffer() {
    child("raw", |dir| {
        disk::create(dir);
        craft(&dir.join("root.hds"));
        // 7 leaves the mark alone.
        let code = raw::Handle::open(&disk::descriptor(dir)).snapshot();
        assert_eq!(code, 0);
        assert!(ploop::image::Header::read(dir.join("root.hds")).is_err());
    })
    .ended(by_line(Ending::Crash, Ending::Success));
    child("safe", |dir| {
        let mut image = disk::create(dir);
        craft(&dir.join("root.hds"));
        let before = Contents::of(dir);
        let error = refused(image.snapshot(), ErrorKind::Corrupt);
        assert_eq!(error.path(), Some(&*dir.join("root.hds")), "{error}");
        before.assert_unchanged("snapshot");
        // One that tells the truth is mended.
        disk::write_header(&dir.join("root.hds"), HEADER_FIRST_BLOCK, 128);
        image.snapshot().unwrap();
    })
    .succeeded();
}

/// As above; mounting checks all deltas before it looks for the driver.
fn h0_20_h4_09_a_header_leads_mount_out_of_its_buffer() {
    child("raw", |dir| {
        disk::create(dir);
        craft(&dir.join("root.hds"));
        raw::Handle::open(&disk::descriptor(dir)).mount();
    })
    .crashed();
    child("safe", |dir| {
        let (mut image, _) = disk::with_snapshots(dir, 2);
        craft(&dir.join("root.hds"));
        let before = Contents::of(dir);
        let error = refused(image.mount(&MountParam::new()), ErrorKind::Corrupt);
        assert_eq!(error.path(), Some(&*dir.join("root.hds")), "{error}");
        before.assert_unchanged("mount");
    })
    .succeeded();
}

/// The descriptor is written with a division by cylinders × heads. The crate gives libploop numbers
/// with which that works.
fn h4_07_a_missing_geometry_kills() {
    let without = |dir: &Path, name: &str| {
        disk::edit(dir, |text| {
            let lines = text.lines().filter(|line| !line.contains(name));
            lines.collect::<Vec<_>>().join("\n")
        });
    };
    child("raw", |dir| {
        disk::create(dir);
        without(dir, "Cylinders");
        let code = raw::Handle::open(&disk::descriptor(dir)).set_max_delta_size(1);
        assert_eq!(code, 0);
        let text = fs::read_to_string(disk::descriptor(dir)).unwrap();
        assert!(text.contains("<Sectors>0</Sectors>"), "{text}");
    })
    .ended(by_line(Ending::Signal(libc::SIGFPE), Ending::Success));
    child("safe", |dir| {
        for name in ["Cylinders", "Heads"] {
            let dir = dir.join(name);
            fs::create_dir(&dir).unwrap();
            let (mut image, guids) = disk::with_snapshots(&dir, 2);
            without(&dir, name);
            let before = Contents::of(&dir);
            assert_eq!(image.image_info().unwrap().size(), disk::SIZE);
            assert!(!image.is_mounted().unwrap());
            before.assert_unchanged("look-ups");
            image.snapshot().unwrap();
            without(&dir, name);
            image.switch_snapshot(guids[0]).unwrap();
            without(&dir, name);
            image.set_max_delta_size(Size::from_sectors(4096)).unwrap();
            let now = image.descriptor().unwrap();
            assert_eq!(now.geometry.cylinders * now.geometry.heads, 20480 / 32);
            assert_eq!(now.max_delta_size, Some(Size::from_sectors(4096)));
        }
    })
    .succeeded();
}

/// A merge of a range walks from parent to parent until it meets the lower end, with the lock held.
/// The crate reads the descriptor as a tree.
fn h4_08_a_cycle_of_parents_has_no_end() {
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 3);
        let (a, b, c) = (
            guids[0].to_string(),
            guids[1].to_string(),
            guids[2].to_string(),
        );
        // The parents of b and of the top change places: b and c are each other's.
        disk::edit(dir, |text| {
            let parent = |guid: &str| format!("<ParentGUID>{guid}</ParentGUID>");
            text.replace(&parent(&a), "<was-a/>")
                .replace(&parent(&c), &parent(&a))
                .replace("<was-a/>", &parent(&c))
        });
        (image, a, b, c)
    };
    child_for(Duration::from_secs(3), "raw", |dir| {
        let (_, a, _, c) = prepare(dir);
        let handle = raw::Handle::open(&disk::descriptor(dir));
        // 7 merges one delta into its parent, and makes that its own parent.
        assert_eq!(handle.merge(Some(&c), Some(&a), None), 0);
        let text = fs::read_to_string(disk::descriptor(dir)).unwrap();
        assert!(
            text.contains(&format!("<ParentGUID>{c}</ParentGUID>")),
            "{text}"
        );
        refused(
            ploop::Descriptor::open(disk::descriptor(dir)),
            ErrorKind::Corrupt,
        );
    })
    .ended(by_line(Ending::Hang, Ending::Success));
    child("safe", |dir| {
        let (mut image, a, b, c) = prepare(dir);
        let before = Contents::of(dir);
        let guid = |text: &str| text.parse::<Guid>().unwrap();
        let range = MergeTarget::Range {
            from: guid(&c),
            to: guid(&a),
        };
        for error in [
            image.merge(&MergeParam::new(range)).unwrap_err(),
            image.merge(&MergeParam::new(MergeTarget::All)).unwrap_err(),
            image.delete_snapshot(guid(&b)).unwrap_err(),
            image.snapshot().unwrap_err(),
            image.descriptor().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert_eq!(error.path(), Some(&*disk::descriptor(dir)), "{error}");
        }
        before.assert_unchanged("merge");
    })
    .succeeded();
}

/// Deltas of other cluster sizes are merged into a buffer of the first's. The crate compares them.
fn h4_10_other_clusters_overflow_a_merge() {
    // The upper delta has clusters of 1 MiB and data, in a chain of 64 KiB.
    let prepare = |dir: &Path| {
        let (image, guids) = disk::with_snapshots(dir, 1);
        let top = image.top_delta_file().unwrap();
        let other = dir.join("other");
        fs::create_dir(&other).unwrap();
        let param = CreateParam::new(other.join("root.hds"), disk::SIZE).fs(None);
        Ploop::create(&param.format(ploop::FormatVersion::V1)).unwrap();
        fs::rename(other.join("root.hds"), &top).unwrap();
        fs::remove_dir_all(&other).unwrap();
        let file = fs::File::options().write(true).open(&top).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 1 << 20], 1 << 20).unwrap();
        disk::write_header(&top, 64, 2048);
        // The lower delta is long enough to fill the buffer, and more.
        let lower = fs::File::options().write(true).open(dir.join("root.hds"));
        lower.unwrap().set_len(4 << 20).unwrap();
        (image, guids[0])
    };
    child("raw", |dir| {
        prepare(dir);
        raw::Handle::open(&disk::descriptor(dir)).merge(None, None, None);
    })
    .crashed();
    child("safe", |dir| {
        let (mut image, guid) = prepare(dir);
        let before = Contents::of(dir);
        for error in [
            image.merge(&MergeParam::new(MergeTarget::Top)).unwrap_err(),
            image.merge(&MergeParam::new(MergeTarget::All)).unwrap_err(),
            image.delete_snapshot(guid).unwrap_err(),
            image.mount(&MountParam::new()).unwrap_err(),
            image.snapshot().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.message().contains("clusters of 1 MiB"), "{error}");
        }
        before.assert_unchanged("merge");
    })
    .succeeded();
}
