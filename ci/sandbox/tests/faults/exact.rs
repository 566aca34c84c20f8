//! Moments that are too short to hit by chance: the kernel has done its part of an operation, and the descriptor that
//! says so is complete, but does not yet have its name.

use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ploop::{ErrorKind, MountParam};

use super::image::{Image, differences};
use super::program::Program;

/// Set for a program that is to die there.
pub(crate) const ARMED: &str = "PLOOP_FAULT_EXACT";

static IS_ARMED: AtomicBool = AtomicBool::new(false);

pub(crate) fn arm() {
    IS_ARMED.store(std::env::var_os(ARMED).is_some(), Ordering::Relaxed);
}

/// In the place of libc's: libploop's calls come here, because a program's own symbols go before those
/// of libraries. Kills the process where the new descriptor is about to take its place.
///
/// # Safety
///
/// As `rename` of libc: both are terminated texts.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let (staged, name) = unsafe { (CStr::from_ptr(from), CStr::from_ptr(to)) };
    // Not where the crate rewrites the old one.
    let is_staged = staged.to_bytes().ends_with(b"/DiskDescriptor.xml.tmp");
    let is_put_in_place = is_staged && name.to_bytes().ends_with(b"/DiskDescriptor.xml");
    if IS_ARMED.load(Ordering::Relaxed) && is_put_in_place {
        // SAFETY: a signal to this process alone, which does not survive it.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    // SAFETY: the caller's promise.
    unsafe { libc::renameat(libc::AT_FDCWD, from, libc::AT_FDCWD, to) }
}

/// An image that is mounted on a device that has other deltas than its descriptor names, and a file
/// written and synced since.
fn killed_before_the_rename(operation: &str, directory: &Path, prepare: fn(&Image)) -> Image {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let image = Image::create(directory);
    image.mount();
    prepare(&image);
    let before = std::fs::read(image.descriptor()).unwrap();
    let mut program = Program::start(operation, directory, true);
    let status = program.end(operation);
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(
        signal,
        Some(libc::SIGKILL),
        "{operation} was not killed: {status}"
    );
    assert_eq!(std::fs::read(image.descriptor()).unwrap(), before);
    assert!(image.directory.join("DiskDescriptor.xml.tmp").exists());
    image.write("old", 2 << 20);
    image.write("after", 2 << 20);
    image
}

type Case = (&'static str, fn(&Image));

const CASES: [Case; 3] = [
    ("snapshot, mounted", super::program::one_level),
    ("merge of the top, mounted", super::program::two_levels),
    (
        "merge of a middle delta, mounted",
        super::program::three_levels,
    ),
];

/// The next operation through this crate finishes what was interrupted.
pub(crate) fn crate_recovers(directory: &Path) {
    for (number, (operation, prepare)) in CASES.into_iter().enumerate() {
        let place = directory.join(number.to_string());
        killed_before_the_rename(operation, &place, prepare).recover(operation);
    }
}

/// libploop alone unmounts, and mounts what the old descriptor names: what was written since the
/// snapshot is not seen again. A merge leaves nothing in the old top that could hide what came after.
pub(crate) fn libploop_loses(directory: &Path) {
    for (number, (operation, prepare)) in CASES.into_iter().enumerate() {
        let place = directory.join(number.to_string());
        let image = killed_before_the_rename(operation, &place, prepare);
        libploop_unmounts(&image);
        let staged = image.directory.join("DiskDescriptor.xml.tmp");
        // With what libploop left lying there, this crate would know.
        std::fs::rename(&staged, image.directory.join("kept")).unwrap();
        let target = image.target();
        let mut handle = image.open();
        let mounted = handle.mount_guard(&image.param().fsck(true));
        let lost = match mounted {
            // Its metadata are of two moments, and do not fit together.
            Err(_) => true,
            Ok(guard) => {
                let lost = !differences(&target, &image.files.lock().unwrap()).is_empty();
                guard.umount().unwrap();
                lost
            }
        };
        assert_eq!(lost, number == 0, "{operation}");
    }
}

/// The driver goes on with a merge whose program is gone, and whatever comes next through this crate
/// finishes it.
pub(crate) fn killed_while_clusters_move(directory: &Path) {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let next: [Case; 3] = [
        ("unmount", |image| image.open().umount().unwrap()),
        ("snapshot", |image| {
            image.open().snapshot().unwrap();
        }),
        ("delete", |image| {
            let mut handle = image.open();
            let base = handle.snapshot().unwrap();
            image.write("newest", 1 << 20);
            handle.delete_snapshot(base).unwrap();
        }),
    ];
    for (what, next) in next {
        let image = Image::create(&directory.join(what));
        image.mount();
        super::program::two_levels(&image);
        image.write("large", 64 << 20);
        let device = image.open().device().unwrap().unwrap();
        let levels = Path::new("/sys/block")
            .join(device.file_name().unwrap())
            .join("pdelta");
        let is_written = |level| {
            let text = std::fs::read_to_string(levels.join(level).join("ro"));
            text.is_ok_and(|text| text == "0\n")
        };
        let mut program = Program::start("merge of the top, mounted", &image.directory, false);
        while !is_written("0") {
            std::thread::yield_now();
        }
        let whole = program.kill_after(Duration::ZERO, false, what);
        assert!(!whole && is_written("0") && is_written("1"), "{what}");
        image.write("old", 2 << 20);
        next(&image);
        if what != "unmount" {
            assert!(!is_written("0") || !levels.join("1").exists(), "{what}");
            image.write("after", 2 << 20);
        }
        let descriptor = image.open().descriptor().unwrap();
        let expected = if what == "snapshot" { 2 } else { 1 };
        assert_eq!(descriptor.images.len(), expected, "{what}");
        image.recover(what);
    }
}

/// A device that has the image's deltas and is stopped, as a program leaves it that was killed in the middle of attaching
/// or detaching. Errors say so, and an unmount frees it.
pub(crate) fn stopped(directory: &Path) {
    const PLOOP_IOC_STOP: u32 = 0x5002;
    let image = Image::create(directory);
    let mut handle = image.open();
    let attached = handle.mount(&MountParam::new()).unwrap();
    let device = File::open(&attached.device).unwrap();
    // SAFETY: the request has no argument.
    let code = unsafe { libc::ioctl(device.as_raw_fd(), PLOOP_IOC_STOP as _, 0) };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    drop(device);
    for error in [handle.is_mounted().err(), handle.snapshot().err()] {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains("unmount the image"), "{error}");
    }
    handle.umount().unwrap();
    assert!(!handle.is_mounted().unwrap());
    image.recover("after it was given free");
}

fn libploop_unmounts(image: &Image) {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(image.descriptor().as_os_str().as_bytes()).unwrap();
    let mut handle = std::ptr::null_mut();
    // SAFETY: the path is terminated, `handle` outlives the call that sets it, and is closed once.
    unsafe {
        assert_eq!(ploop::sys::ploop_open_dd(&mut handle, path.as_ptr()), 0);
        assert_eq!(ploop::sys::ploop_umount_image(handle), 0);
        ploop::sys::ploop_close_dd(handle);
    }
}
