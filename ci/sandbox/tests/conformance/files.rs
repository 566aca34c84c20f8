//! What can be done to a file while it is attached, and in how many places it can be.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use crate::driver::{Device, Mode, attribute};
use crate::harness::{Need, Test};
use crate::image::{self, Image, Scratch, in_use};
use crate::ioctl::{self, error};
use crate::program::{ploop, run};
use crate::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        &[] =>
            an_attached_image_can_be_opened_read_write,
            removing_an_attached_file_is_eperm,
            renaming_an_attached_file_is_eperm,
            renaming_onto_an_attached_file_is_eperm,
            one_of_two_names_of_an_attached_file_can_go,
            files_are_free_again_when_they_are_detached,
            files_are_kept_from_add_delta_on,
            opening_with_o_trunc_is_etxtbsy,
            truncate_of_an_attached_image_is_etxtbsy,
            fallocate_of_an_attached_image_is_etxtbsy,
            an_attached_file_can_be_extended,
            an_attached_file_can_be_mapped_linked_and_given_a_mode,
            programs_that_others_wrote_are_refused_too,
            what_is_attached_read_only_cannot_be_written_to_elsewhere,
            what_is_attached_read_only_cannot_be_written_to_in_the_same_device,
            a_snapshot_of_a_read_only_top_is_0;
        &[Need::Tool] =>
            libploop_makes_a_snapshot_of_an_image_that_is_mounted_read_only;
    ]
}

/// That a call fails with this number.
#[track_caller]
pub(crate) fn fails<T: Debug>(result: io::Result<T>, errno: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

/// A running device, a file of each of its two levels, and how they are told apart.
struct Levels {
    scratch: Scratch,
    device: Device,
    images: [(&'static str, std::path::PathBuf); 2],
}

impl Levels {
    fn new() -> Levels {
        let scratch = Scratch::new();
        let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
        let device = Device::running(&[&base, &top]);
        device.write(0, 1 << 20, 1);
        Levels {
            scratch,
            device,
            images: [("base", base), ("top", top)],
        }
    }

    /// What was written is there, and another cluster can be written.
    fn work(&self) {
        assert!(self.device.is(0, 1 << 20, 1));
        self.device.write(3 << 20, 1 << 20, 3);
        assert!(self.device.is(3 << 20, 1 << 20, 3));
    }
}

/// "**Image files.** Opening read-write is allowed while attached".
fn an_attached_image_can_be_opened_read_write() {
    let levels = Levels::new();
    for (level, image) in &levels.images {
        for direct in [false, true] {
            assert!(ioctl::open(image, true, direct).is_ok(), "{level}");
        }
    }
}

/// "**Attached files.** unlink […]: EPERM."
fn removing_an_attached_file_is_eperm() {
    let levels = Levels::new();
    for (_, image) in &levels.images {
        fails(fs::remove_file(image), libc::EPERM);
        assert!(image.exists());
    }
    levels.work();
}

/// "rename: EPERM."
fn renaming_an_attached_file_is_eperm() {
    let levels = Levels::new();
    let other = levels.scratch.path("other");
    for (_, image) in &levels.images {
        fails(fs::rename(image, &other), libc::EPERM);
        assert!(image.exists() && !other.exists());
    }
    levels.work();
}

/// The same of the file that would go.
fn renaming_onto_an_attached_file_is_eperm() {
    let levels = Levels::new();
    let other = levels.scratch.path("other");
    fs::write(&other, "other").unwrap();
    for (_, image) in &levels.images {
        fails(fs::rename(&other, image), libc::EPERM);
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
    }
    levels.work();
}

/// It is the last name that has to stay *(source)*.
fn one_of_two_names_of_an_attached_file_can_go() {
    let levels = Levels::new();
    for (_, image) in &levels.images {
        let (second, third) = (levels.scratch.path("second"), levels.scratch.path("third"));
        fs::hard_link(image, &second).unwrap();
        fs::rename(image, &third).unwrap();
        fs::rename(&third, image).unwrap();
        fs::remove_file(image).unwrap();
        fails(fs::remove_file(&second), libc::EPERM);
        fails(fs::rename(&second, image), libc::EPERM);
        fs::hard_link(&second, image).unwrap();
        fs::remove_file(&second).unwrap();
    }
    levels.work();
}

/// The other side of all of these.
fn files_are_free_again_when_they_are_detached() {
    let Levels {
        scratch,
        device,
        images,
    } = Levels::new();
    device.detach();
    for (level, image) in &images {
        File::options()
            .write(true)
            .open(image)
            .unwrap()
            .set_len(image::len(image))
            .unwrap();
        let other = scratch.path(level).with_extension("renamed");
        fs::rename(image, &other).unwrap();
        File::create(&other).unwrap();
        fs::remove_file(other).unwrap();
    }
}

/// From ADD_DELTA on, also where the device never starts, to DEL_DELTA or CLEAR.
fn files_are_kept_from_add_delta_on() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::new();
    device.add(&base, Mode::ReadOnly).unwrap();
    fails(fs::remove_file(&base), libc::EPERM);
    device.add(&top, Mode::Writable).unwrap();
    fails(fs::remove_file(&top), libc::EPERM);
    device.delete(1).unwrap();
    fs::remove_file(&top).unwrap();
    fails(fs::remove_file(&base), libc::EPERM);
    ioctl::clear(device.node()).unwrap();
    fs::remove_file(&base).unwrap();
}

/// "open(O_TRUNC) […]: ETXTBSY."
fn opening_with_o_trunc_is_etxtbsy() {
    let levels = Levels::new();
    for (_, image) in &levels.images {
        let len = image::len(image);
        fails(File::create(image), libc::ETXTBSY);
        fails(fs::write(image, ""), libc::ETXTBSY);
        // To copy over it, too.
        fails(fs::copy("/proc/self/maps", image), libc::ETXTBSY);
        assert_eq!(image::len(image), len);
    }
    levels.work();
}

/// "truncate to the same size […]: ETXTBSY", and to less.
fn truncate_of_an_attached_image_is_etxtbsy() {
    let levels = Levels::new();
    for (_, image) in &levels.images {
        let file = ioctl::open(image, true, false).unwrap();
        let len = image::len(image);
        for smaller in [len, len - 1, 0] {
            fails(file.set_len(smaller), libc::ETXTBSY);
            assert_eq!(ioctl::truncate_path(image, smaller), error(libc::ETXTBSY));
        }
        assert_eq!(image::len(image), len);
    }
    levels.work();
}

/// "any fallocate: ETXTBSY."
fn fallocate_of_an_attached_image_is_etxtbsy() {
    let levels = Levels::new();
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for (_, image) in &levels.images {
        let file = ioctl::open(image, true, false).unwrap();
        let len = image::len(image);
        for (mode, offset) in [(libc::FALLOC_FL_KEEP_SIZE, 0), (0, 0), (0, len), (PUNCH, 0)] {
            let result = ioctl::fallocate(&file, mode, offset);
            assert_eq!(result, error(libc::ETXTBSY), "mode {mode} at {offset}");
        }
        assert_eq!(image::len(image), len);
    }
    levels.work();
}

/// "*Extending* ftruncate, append, pwrite past the end […]: allowed."
fn an_attached_file_can_be_extended() {
    let levels = Levels::new();
    for (_, image) in &levels.images {
        let file = ioctl::open(image, true, false).unwrap();
        let len = image::len(image);
        file.set_len(len + 1000).unwrap();
        file.write_all_at(b"past the end", len + 2000).unwrap();
        let mut end = File::options().append(true).open(image).unwrap();
        end.write_all(b"appended").unwrap();
        assert_eq!(image::len(image), len + 2020);
    }
    // The data is what it was, then and later.
    assert!(levels.device.is(0, 1 << 20, 1));
    levels.device.detach();
    let images = levels.images.each_ref();
    let device = Device::running(&images.map(|(_, image)| image.as_path()));
    assert!(device.is(0, 1 << 20, 1));
}

/// "mmap, link, chmod: allowed."
fn an_attached_file_can_be_mapped_linked_and_given_a_mode() {
    let levels = Levels::new();
    for (level, image) in &levels.images {
        let file = ioctl::open(image, true, false).unwrap();
        // SAFETY: a new mapping of a file that is longer; it is only read once, and then taken away.
        unsafe {
            let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
            let map = libc::mmap(
                std::ptr::null_mut(),
                4096,
                read,
                shared,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(map, libc::MAP_FAILED, "{level}");
            assert_eq!(map.cast::<u8>().read_volatile(), b'W');
            assert_eq!(libc::munmap(map, 4096), 0);
        }
        let link = levels.scratch.path("link");
        fs::hard_link(image, &link).unwrap();
        fs::remove_file(&link).unwrap();
        fs::set_permissions(image, fs::Permissions::from_mode(0o640)).unwrap();
    }
    levels.work();
}

/// It is the file that is kept, whoever asks.
fn programs_that_others_wrote_are_refused_too() {
    let levels = Levels::new();
    let other = levels.scratch.path("other");
    fs::write(&other, "other").unwrap();
    for (_, image) in &levels.images {
        let len = image::len(image);
        let text: &[(&str, crate::program::Arguments<'_>)] = &[
            ("rm", &[&"-f", image]),
            ("unlink", &[image]),
            ("mv", &[image, &levels.scratch.path("moved")]),
            ("mv", &[&"-f", &other, image]),
            ("truncate", &[&"-s", &"0", image]),
            ("fallocate", &[&"-l", &"4096", image]),
            ("cp", &[&other, image]),
            ("sh", &[&"-c", &": > \"$0\"", image]),
        ];
        for (program, arguments) in text {
            let output = run(program, arguments);
            assert_ne!(output.code, Some(0), "{program}");
            let refused = ["not permitted", "busy"];
            let found = refused.iter().any(|words| output.text.contains(words));
            assert!(found, "{program}: {}", output.text);
        }
        assert_eq!(image::len(image), len);
    }
    levels.work();
}

/// "A file attached read-only anywhere: writable ADD_DELTA EBUSY, […] also before START."
fn what_is_attached_read_only_cannot_be_written_to_elsewhere() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let (first, second) = (Device::new(), Device::new());
    first.add(&image, Mode::ReadOnly).unwrap();
    assert_eq!(second.add(&image, Mode::Writable), error(libc::EBUSY));
    ioctl::start(first.node()).unwrap();
    assert_eq!(second.add(&image, Mode::Writable), error(libc::EBUSY));
    assert!(!in_use(&image));
    // Read-only it can be there twice, and it is the last that counts.
    second.add(&image, Mode::ReadOnly).unwrap();
    first.detach();
    let third = Device::new();
    assert_eq!(third.add(&image, Mode::Writable), error(libc::EBUSY));
    ioctl::clear(second.node()).unwrap();
    third.add(&image, Mode::Writable).unwrap();
    assert!(in_use(&image));
}

/// "also in the same device".
fn what_is_attached_read_only_cannot_be_written_to_in_the_same_device() {
    let scratch = Scratch::new();
    let image = scratch.delta("base", 16);
    let device = Device::new();
    device.add(&image, Mode::ReadOnly).unwrap();
    assert_eq!(device.add(&image, Mode::Writable), error(libc::EBUSY));
    assert!(!in_use(&image));
    assert_eq!(device.attribute("pstate/top"), "0");
}

/// "SNAPSHOT on a read-only top is **0**: `ro` stays 1, top 1, the new delta ro=0 and marked, writes EPERM, base
/// unchanged".
fn a_snapshot_of_a_read_only_top_is_0() {
    let scratch = Scratch::new();
    let (base, top) = (scratch.delta("base", 16), scratch.delta("top", 16));
    let device = Device::running(&[&base]);
    device.write(0, 1 << 20, 1);
    device.detach();
    let before = fs::read(&base).unwrap();
    device.add(&base, Mode::ReadOnly).unwrap();
    ioctl::start(device.node()).unwrap();
    assert_eq!(device.attribute("ro"), "1");
    assert_eq!(device.snapshot(&top), Ok(0));
    assert_eq!(device.attribute("ro"), "1");
    assert_eq!(device.attribute("pstate/top"), "1");
    assert_eq!(device.attribute("pdelta/0/ro"), "1");
    assert_eq!(device.attribute("pdelta/1/ro"), "0");
    assert!(in_use(&top) && !in_use(&base));
    let written = ioctl::write_direct(&device.path(), 0, 4096, 2);
    assert_eq!(written, Err(ioctl::Errno(libc::EPERM)));
    assert!(device.is(0, 1 << 20, 1));
    device.detach();
    assert!(!in_use(&top));
    assert!(fs::read(&base).unwrap() == before, "the base was changed");
    // Both are as whole as ever.
    let device = Device::running(&[&base, &top]);
    assert!(device.is(0, 1 << 20, 1));
    device.write(0, 4096, 2);
}

/// "the descriptor has two images."
fn libploop_makes_a_snapshot_of_an_image_that_is_mounted_read_only() {
    let image = Image::new();
    image.mount();
    image.write("file", 2, 1);
    image.unmount();
    let before = fs::read(image.base()).unwrap();
    ploop(&[&"mount", &"-r", &"-m", &image.target(), &image.descriptor()]).expect(0);
    let device = image.device().unwrap();
    image.snapshot();
    assert_eq!(attribute(device, "ro"), "1");
    assert_eq!(attribute(device, "pstate/top"), "1");
    assert_eq!(attribute(device, "pdelta/1/ro"), "0");
    fails(File::create(image.target().join("new")), libc::EROFS);
    image.verify("file", 2, 1);
    let descriptor = ploop::image::Descriptor::open(image.descriptor()).unwrap();
    assert_eq!(descriptor.images.len(), 2);
    image.unmount();
    assert!(same(&image.base(), &before), "the base was changed");
    image.mount();
    image.verify("file", 2, 1);
    image.write("new", 1, 2);
}

fn same(file: &Path, bytes: &[u8]) -> bool {
    fs::read(file).unwrap() == bytes
}
