//! goploop's benchmarks, each by the safe calls and by libploop's own: mounting read-only and unmounting;
//! and of a mounted image, whether it is mounted, its file system, and its size.
//!
//! ```text
//! cargo xtask bench mounted                with `--bars`; in the sandbox where there is no driver
//! cargo bench --bench mounted              both in turn, pair by pair
//! cargo bench --bench mounted -- fs_info   those with this in their name
//! cargo bench --bench mounted -- --bars    fails where a bar is missed
//! … -- --run safe fs_info 100              one side of one call many times, for strace or perf
//! ```
//!
//! As in goploop, the image has 384 MiB with a file system, and is opened once, by either side. Both work
//! on the same image.

mod pairs;

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use ploop::{CreateParam, FsInfo, ImageInfo, MountParam, Ploop, Size};
use ploop_sys as sys;

/// A safe call may take so much of the raw one's time.
const BAR: f64 = 1.1;
const SIZE: Size = Size::from_mib(384);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test` starts it too.
    if !has("--bench") {
        return ExitCode::SUCCESS;
    }
    if !ploop::kernel::is_driver_present() {
        eprintln!(
            "mounted: there is no ploop driver; cargo xtask bench mounted runs this in the sandbox"
        );
        return ExitCode::FAILURE;
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        return many_times(&arguments[at + 1..]);
    }
    let filter = arguments
        .iter()
        .rfind(|argument| !argument.starts_with("--"));
    let filter = filter.map_or("", String::as_str);
    let image = Image::new();
    let (mut raw, mut safe) = (Raw::open(&image), Safe::open(&image));
    pairs::print_heading();
    let mut missed = 0;
    for call in CALLS.iter().filter(|call| call.name.contains(filter)) {
        safe.set_mounted(call.of_mounted);
        if call.of_mounted {
            assert!(raw.is_mounted() && safe.is_mounted());
            assert_eq!(raw.fs_info(), safe.fs_info());
            assert_eq!(raw.image_info(), safe.image_info());
        }
        let times = pairs::measure(
            || {
                let start = Instant::now();
                (call.raw)(&mut raw);
                start.elapsed()
            },
            || {
                let start = Instant::now();
                (call.safe)(&mut safe);
                start.elapsed()
            },
        );
        missed += usize::from(!times.print(call.name, times.raw.mul_f64(BAR)));
    }
    safe.set_mounted(false);
    if missed > 0 && has("--bars") {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

struct Call {
    name: &'static str,
    of_mounted: bool,
    raw: fn(&mut Raw),
    safe: fn(&mut Safe),
}

const CALLS: [Call; 4] = [
    Call {
        name: "mount_umount",
        of_mounted: false,
        raw: |raw| {
            raw.mount();
            raw.umount();
        },
        safe: |safe| {
            safe.mount();
            safe.umount();
        },
    },
    Call {
        name: "is_mounted",
        of_mounted: true,
        raw: |raw| {
            black_box(raw.is_mounted());
        },
        safe: |safe| {
            black_box(safe.is_mounted());
        },
    },
    Call {
        name: "fs_info",
        of_mounted: true,
        raw: |raw| {
            black_box(raw.fs_info());
        },
        safe: |safe| {
            black_box(safe.fs_info());
        },
    },
    Call {
        name: "image_info",
        of_mounted: true,
        raw: |raw| {
            black_box(raw.image_info());
        },
        safe: |safe| {
            black_box(safe.image_info());
        },
    },
];

/// One side alone, often.
fn many_times(arguments: &[String]) -> ExitCode {
    let [side, name, count] = arguments else {
        eprintln!("mounted: --run SIDE CALL COUNT");
        return ExitCode::FAILURE;
    };
    let call = CALLS.iter().find(|call| call.name == name);
    let (Some(call), Ok(count)) = (call, count.parse::<u32>()) else {
        eprintln!("mounted: there is no call {name}, or {count} is no number");
        return ExitCode::FAILURE;
    };
    let image = Image::new();
    let (mut raw, mut safe) = (Raw::open(&image), Safe::open(&image));
    safe.set_mounted(call.of_mounted);
    for _ in 0..count {
        match side.as_str() {
            "raw" => (call.raw)(&mut raw),
            _ => (call.safe)(&mut safe),
        }
    }
    safe.set_mounted(false);
    ExitCode::SUCCESS
}

struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    fn new() -> Image {
        // The driver refuses tmpfs, which the place for temporary files may be.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let base = directory.path().join("root.hdd");
        Ploop::create(&CreateParam::new(base, SIZE)).unwrap();
        let image = Image { directory };
        fs::create_dir(image.target()).unwrap();
        image
    }

    fn descriptor(&self) -> PathBuf {
        self.directory.path().join("DiskDescriptor.xml")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

struct Safe {
    descriptor: PathBuf,
    ploop: Ploop,
    param: MountParam,
}

impl Safe {
    fn open(image: &Image) -> Safe {
        Safe {
            ploop: Ploop::open(image.descriptor()).unwrap(),
            descriptor: image.descriptor(),
            param: MountParam::new().target(image.target()).read_only(true),
        }
    }

    fn set_mounted(&mut self, mounted: bool) {
        match (self.is_mounted(), mounted) {
            (false, true) => self.mount(),
            (true, false) => self.umount(),
            _ => {}
        }
    }

    fn mount(&mut self) {
        black_box(self.ploop.mount(&self.param).unwrap());
    }

    fn umount(&mut self) {
        self.ploop.umount().unwrap();
    }

    fn is_mounted(&mut self) -> bool {
        self.ploop.is_mounted().unwrap()
    }

    fn fs_info(&self) -> FsInfo {
        ploop::fs_info(&self.descriptor).unwrap()
    }

    fn image_info(&mut self) -> ImageInfo {
        self.ploop.image_info().unwrap()
    }
}

/// The same by way of C alone.
struct Raw {
    /// Debian's build reads 4096 bytes of some paths, however short they are.
    descriptor: [u8; 4096],
    handle: *mut sys::ploop_disk_images_data,
    target: CString,
}

impl Raw {
    fn open(image: &Image) -> Raw {
        let mut raw = Raw {
            descriptor: [0; 4096],
            handle: std::ptr::null_mut(),
            target: c_path(&image.target()),
        };
        let path = c_path(&image.descriptor());
        raw.descriptor[..path.as_bytes().len()].copy_from_slice(path.as_bytes());
        // SAFETY: the path is terminated; the handle is closed once, when this is dropped.
        let code = unsafe {
            sys::ploop_set_verbose_level(sys::PLOOP_LOG_NOCONSOLE);
            sys::ploop_open_dd(&mut raw.handle, path.as_ptr())
        };
        done(code);
        raw
    }

    fn mount(&mut self) {
        let mut param = sys::ploop_mount_param {
            ro: 1,
            target: self.target.as_ptr().cast_mut(),
            mount_data: c"".as_ptr().cast_mut(),
            ..Default::default()
        };
        // SAFETY: the handle is open; the texts are terminated and outlive the call.
        done(unsafe { sys::ploop_mount_image(self.handle, &mut param) });
        black_box(param);
    }

    fn umount(&mut self) {
        // SAFETY: the handle is open.
        done(unsafe { sys::ploop_umount_image(self.handle) });
    }

    fn is_mounted(&mut self) -> bool {
        // SAFETY: the handle is open.
        match unsafe { sys::ploop_is_mounted(self.handle) } {
            code @ (0 | 1) => code == 1,
            code => panic!("{code}: {:?}", last_error()),
        }
    }

    fn fs_info(&self) -> FsInfo {
        let mut info = sys::ploop_info::default();
        let path = self.descriptor.as_ptr().cast::<c_char>().cast_mut();
        // SAFETY: the path has the bytes C reads; C fills in `info`.
        done(unsafe { sys::ploop_get_info_by_descr(path, &mut info) });
        FsInfo {
            block_size: info.fs_bsize,
            blocks: info.fs_blocks,
            blocks_free: info.fs_bfree,
            inodes: info.fs_inodes,
            inodes_free: info.fs_ifree,
        }
    }

    fn image_info(&mut self) -> ImageInfo {
        let mut spec = sys::ploop_spec::default();
        // SAFETY: the handle is open; C fills in `spec`.
        done(unsafe { sys::ploop_get_spec(self.handle, &mut spec) });
        ImageInfo {
            blocks: spec.size.try_into().unwrap(),
            block_size: spec.blocksize,
            version: spec.fmt_version.try_into().unwrap(),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the handle was opened by `open` and is closed only here.
        unsafe { sys::ploop_close_dd(self.handle) }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn done(code: i32) {
    assert_eq!(code, 0, "{:?}", last_error());
}

fn last_error() -> String {
    // SAFETY: C keeps a terminated text for each thread.
    let words = unsafe { CStr::from_ptr(sys::ploop_get_last_error()) };
    words.to_string_lossy().into_owned()
}
