//! What the safe calls cost beyond the raw ones of `ploop-sys`.
//!
//! ```text
//! cargo bench --bench overhead                 every call, raw and safe, by criterion
//! cargo bench --bench overhead -- merge        those with this in their name
//! cargo bench --bench overhead -- --bars       both in turn, pair by pair; fails where a bar is missed
//! cargo bench --bench overhead -- --syscalls   system calls per call, by strace
//! PLOOP_BENCH_SYNCED=1 cargo bench …           with what the safe calls bring to the disk in the end
//! ```
//!
//! The raw calls leave that to the file system, so it is left out of the safe ones unless asked for.
//!
//! Both do the same from the path to the result: open the image, do one thing, close it, as real
//! callers do. Calls that only look are made on an image that is open, on both sides, since opening
//! would hide what they cost; `is_mounted` excepted, which in C answers from what it read when it was
//! opened, and here reads again. What a call needs is prepared for each anew, from one template, outside of what is
//! measured. The images are in `TMPDIR`, which has to be on a disk: libploop cannot work on a tmpfs.

mod pairs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion};
use ploop::{
    ClusterSize, CreateParam, Guid, ImageMode, MergeParam, MergeTarget, Ploop, ReplaceParam,
    ReplaceTarget, Size, SnapshotParam,
};
use ploop_sys as sys;

/// A call that looks may take so much of the raw one's time, and so much more.
const LOOK_BAR: (f64, Duration) = (1.3, Duration::from_micros(50));
/// One that changes may take so much more than the raw one.
const CHANGE_BAR: (f64, Duration) = (1.0, Duration::from_micros(300));
/// `Guid::generate` is to be faster by this.
const GUID_BAR: f64 = 10.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let filter = arguments
        .iter()
        .rfind(|argument| !argument.starts_with("--"));
    let filter = filter.map_or("", String::as_str);
    ploop::durability::set_sync(std::env::var_os("PLOOP_BENCH_SYNCED").is_some());
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        return run(&arguments[at + 1..]);
    }
    if has("--bars") {
        return bars(filter);
    }
    if has("--syscalls") {
        return syscalls(filter);
    }
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_millis(500))
        .sample_size(30)
        .configure_from_args();
    for call in CALLS {
        let mut group = criterion.benchmark_group(call.name);
        for (side, f) in [("raw", call.raw), ("safe", call.safe)] {
            let stage = Stage::new(call);
            group.bench_function(side, |bencher| {
                bencher.iter_batched_ref(
                    || stage.prepare(),
                    |place| f(place),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}

/// One thing to do, in both ways.
struct Call {
    name: &'static str,
    /// Makes the image all of them start from.
    template: fn(&Path),
    /// Whether it leaves the image as it was, so that one image serves for all.
    looks: bool,
    raw: fn(&CallDirectory),
    safe: fn(&CallDirectory),
}

const CALLS: &[Call] = &[
    Call {
        name: "open_close",
        template: image,
        looks: true,
        raw: |place| raw::opened(place, |_| 0),
        safe: |place| Ploop::open(&place.xml).unwrap().close(),
    },
    Call {
        name: "create",
        template: |_| {},
        looks: false,
        raw: |place| {
            raw::create(place);
            raw::opened(place, |_| 0);
        },
        safe: |place| Ploop::create(&param(&place.base)).unwrap().close(),
    },
    Call {
        name: "create_descriptor",
        template: |_| {},
        looks: false,
        raw: |place| {
            raw::create_descriptor(place);
            raw::opened(place, |_| 0);
        },
        safe: |place| {
            Ploop::create_descriptor(&place.xml, &param(&place.base))
                .unwrap()
                .close();
        },
    },
    Call {
        name: "snapshot",
        template: image,
        looks: false,
        raw: |place| raw::snapshot(place),
        safe: |place| {
            let param = SnapshotParam::new().guid(FIRST.parse().unwrap());
            Ploop::open(&place.xml)
                .unwrap()
                .snapshot_with(&param)
                .unwrap();
        },
    },
    Call {
        name: "switch",
        template: two_snapshots,
        looks: false,
        raw: |place| raw::switch(place),
        safe: |place| {
            let guid = FIRST.parse().unwrap();
            Ploop::open(&place.xml)
                .unwrap()
                .switch_snapshot(guid)
                .unwrap();
        },
    },
    Call {
        name: "delete_leaf",
        template: |dir| {
            two_snapshots(dir);
            let mut ploop = Ploop::open(dir.join(XML)).unwrap();
            ploop.switch_snapshot(FIRST.parse().unwrap()).unwrap();
        },
        looks: false,
        raw: |place| raw::delete(place, SECOND),
        safe: |place| {
            let guid = SECOND.parse().unwrap();
            Ploop::open(&place.xml)
                .unwrap()
                .delete_snapshot(guid)
                .unwrap();
        },
    },
    Call {
        name: "delete_and_merge",
        template: two_snapshots,
        looks: false,
        raw: |place| raw::delete(place, FIRST),
        safe: |place| {
            let guid = FIRST.parse().unwrap();
            Ploop::open(&place.xml)
                .unwrap()
                .delete_snapshot(guid)
                .unwrap();
        },
    },
    Call {
        name: "merge_top",
        template: two_snapshots,
        looks: false,
        raw: |place| raw::merge(place),
        safe: |place| {
            let param = MergeParam::new(MergeTarget::Top);
            Ploop::open(&place.xml).unwrap().merge(&param).unwrap();
        },
    },
    Call {
        name: "convert_to_preallocated",
        template: image,
        looks: false,
        raw: |place| raw::convert(place, sys::PLOOP_EXPANDED_PREALLOCATED_MODE),
        safe: |place| {
            let mut ploop = Ploop::open(&place.xml).unwrap();
            ploop.convert(ImageMode::Preallocated).unwrap();
        },
    },
    Call {
        name: "convert_to_raw",
        template: image,
        looks: false,
        raw: |place| raw::convert(place, sys::PLOOP_RAW_MODE),
        safe: |place| {
            let mut ploop = Ploop::open(&place.xml).unwrap();
            ploop.convert(ImageMode::Raw).unwrap();
        },
    },
    Call {
        name: "replace",
        template: |dir| {
            image(dir);
            fs::copy(dir.join(BASE), dir.join(COPY)).unwrap();
        },
        looks: false,
        raw: |place| raw::replace(place),
        safe: |place| {
            let target = ReplaceTarget::Guid(Guid::TOP);
            let param = ReplaceParam::new(place.dir.join(COPY), target);
            Ploop::open(&place.xml).unwrap().replace(&param).unwrap();
        },
    },
    Call {
        name: LIMIT,
        template: image,
        looks: true,
        raw: |place| {
            // SAFETY: the handle was just opened.
            raw::opened(place, |di| unsafe {
                sys::ploop_set_max_delta_size(di, 4096)
            });
        },
        safe: |place| {
            Ploop::open(&place.xml)
                .unwrap()
                .set_max_delta_size(Size::from_sectors(4096))
                .unwrap();
        },
    },
    Call {
        name: "image_info",
        template: image,
        looks: true,
        raw: |place| raw::image_info(place),
        safe: |place| {
            place.with_ploop(|ploop| black_box(ploop.image_info().unwrap()));
        },
    },
    Call {
        name: "top_delta_file",
        template: image,
        looks: true,
        raw: |place| raw::top_delta_file(place),
        safe: |place| {
            place.with_ploop(|ploop| black_box(ploop.top_delta_file().unwrap()));
        },
    },
    Call {
        name: "is_mounted",
        template: image,
        looks: true,
        raw: |place| {
            // SAFETY: the handle was just opened.
            raw::opened(place, |di| unsafe { sys::ploop_is_mounted(di) });
        },
        safe: |place| {
            place.with_ploop(|ploop| black_box(ploop.is_mounted().unwrap()));
        },
    },
    Call {
        name: "descriptor",
        template: two_snapshots,
        looks: true,
        raw: |place| raw::read_descriptor(place),
        safe: |place| {
            black_box(Ploop::open(&place.xml).unwrap().descriptor().unwrap());
        },
    },
    Call {
        name: "fs_info",
        template: |dir| {
            image(dir);
            fs::write(dir.join(".statfs"), [1; 40]).unwrap();
        },
        looks: true,
        raw: |place| raw::fs_info(place),
        safe: |place| {
            black_box(ploop::fs_info(&place.xml).unwrap());
        },
    },
    Call {
        name: GENERATE,
        template: |_| {},
        looks: true,
        raw: |_| (0..100).for_each(|_| raw::generate()),
        safe: |_| {
            for _ in 0..100 {
                black_box(Guid::generate());
            }
        },
    },
];

/// Many at a time: one alone takes hardly more than looking at the clock.
const GENERATE: &str = "guid_generate_x100";
/// It leaves the image as it was, and is a change.
const LIMIT: &str = "set_max_delta_size";
const XML: &str = "DiskDescriptor.xml";
const BASE: &str = "root.hds";
const COPY: &str = "copy.hds";
const FIRST: &str = "{00000000-0000-4000-8000-000000000001}";
const SECOND: &str = "{00000000-0000-4000-8000-000000000002}";
/// 8 MiB in clusters of 64 KiB, a quarter of them with data.
const CLUSTER: u64 = 64 << 10;
const SIZE: Size = Size::from_mib(8);

fn param(base: &Path) -> CreateParam {
    CreateParam::new(base, SIZE)
        .cluster(ClusterSize::from_bytes(CLUSTER).unwrap())
        .fs(None)
}

fn image(dir: &Path) {
    Ploop::create(&param(&dir.join(BASE))).unwrap();
    fill(dir);
}

/// base ← FIRST ← SECOND ← top, all with data.
fn two_snapshots(dir: &Path) {
    image(dir);
    for guid in [FIRST, SECOND] {
        let param = SnapshotParam::new().guid(guid.parse().unwrap());
        let mut ploop = Ploop::open(dir.join(XML)).unwrap();
        ploop.snapshot_with(&param).unwrap();
        fill(dir);
    }
}

/// Puts data into the top delta, which is empty.
fn fill(dir: &Path) {
    let top = Ploop::open(dir.join(XML))
        .unwrap()
        .top_delta_file()
        .unwrap();
    let file = fs::OpenOptions::new().write(true).open(top).unwrap();
    for number in 0..SIZE.bytes() / CLUSTER / 4 {
        let at = CLUSTER * (number + 1);
        file.write_all_at(&vec![0xa5; CLUSTER as usize], at)
            .unwrap();
        let entry = u32::try_from(at / 512).unwrap().to_le_bytes();
        file.write_all_at(&entry, 64 + 4 * number).unwrap();
    }
}

/// A directory for one call.
struct CallDirectory {
    dir: PathBuf,
    base: PathBuf,
    xml: PathBuf,
    open: Rc<Open>,
    _owner: Option<tempfile::TempDir>,
}

/// An image that stays open between calls, on either side.
#[derive(Default)]
struct Open {
    raw: Cell<Option<NonNull<sys::ploop_disk_images_data>>>,
    safe: RefCell<Option<Ploop>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(handle) = self.raw.get() {
            // SAFETY: the handle was opened by `kept_open` and is closed only here.
            unsafe { sys::ploop_close_dd(handle.as_ptr()) }
        }
    }
}

impl CallDirectory {
    fn new(dir: &Path) -> CallDirectory {
        CallDirectory {
            dir: dir.to_owned(),
            base: dir.join(BASE),
            xml: dir.join(XML),
            open: Rc::default(),
            _owner: None,
        }
    }

    fn with_ploop<T>(&self, f: impl FnOnce(&mut Ploop) -> T) -> T {
        let mut ploop = self.open.safe.borrow_mut();
        f(ploop.get_or_insert_with(|| Ploop::open(&self.xml).unwrap()))
    }
}

struct Stage {
    template: tempfile::TempDir,
    looks: bool,
    open: Rc<Open>,
}

impl Stage {
    fn new(call: &Call) -> Stage {
        let template = tempfile::tempdir().unwrap();
        (call.template)(template.path());
        Stage {
            template,
            looks: call.looks,
            open: Rc::default(),
        }
    }

    fn prepare(&self) -> CallDirectory {
        if self.looks {
            let mut place = CallDirectory::new(self.template.path());
            place.open = Rc::clone(&self.open);
            return place;
        }
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.template.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let mut place = CallDirectory::new(dir.path());
        place._owner = Some(dir);
        place
    }
}

/// The same by way of C alone.
mod raw {
    use super::*;

    /// Debian's build reads 4096 bytes of some paths, however short they are.
    struct Padded([u8; 4096]);

    impl Padded {
        fn new(path: &Path) -> Padded {
            let mut bytes = [0; 4096];
            let path = path.as_os_str().as_bytes();
            bytes[..path.len()].copy_from_slice(path);
            Padded(bytes)
        }

        fn as_ptr(&self) -> *mut c_char {
            self.0.as_ptr().cast::<c_char>().cast_mut()
        }
    }

    fn c(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    fn c_path(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    type Handle = *mut sys::ploop_disk_images_data;

    pub(super) fn opened(place: &CallDirectory, f: impl FnOnce(Handle) -> i32) {
        let path = c_path(&place.xml);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the path is terminated; the handle is closed once, after its last use.
        unsafe {
            assert_eq!(sys::ploop_open_dd(&mut handle, path.as_ptr()), 0);
            let code = f(handle);
            if code != 0 {
                panic!("{:?}", CStr::from_ptr(sys::ploop_get_last_error()));
            }
            sys::ploop_close_dd(handle);
        }
    }

    /// As `opened`, on a handle that stays open.
    fn kept_open(place: &CallDirectory, f: impl FnOnce(Handle) -> i32) {
        let handle = place.open.raw.get().unwrap_or_else(|| {
            let path = c_path(&place.xml);
            let mut handle = std::ptr::null_mut();
            // SAFETY: the path is terminated.
            assert_eq!(unsafe { sys::ploop_open_dd(&mut handle, path.as_ptr()) }, 0);
            let handle = NonNull::new(handle).unwrap();
            place.open.raw.set(Some(handle));
            handle
        });
        assert_eq!(f(handle.as_ptr()), 0);
    }

    fn param(image: &Padded) -> sys::ploop_create_param {
        sys::ploop_create_param {
            size: SIZE.sectors(),
            image: image.as_ptr(),
            blocksize: (CLUSTER / 512) as u32,
            fmt_version: 1,
            ..Default::default()
        }
    }

    pub(super) fn create(place: &CallDirectory) {
        let image = Padded::new(&place.base);
        // SAFETY: the path has the bytes C reads.
        assert_eq!(unsafe { sys::ploop_create_image(&mut param(&image)) }, 0);
    }

    pub(super) fn create_descriptor(place: &CallDirectory) {
        let (image, xml) = (Padded::new(&place.base), Padded::new(&place.xml));
        // SAFETY: the paths have the bytes C reads.
        let code = unsafe { sys::ploop_create_dd(xml.as_ptr(), &mut param(&image)) };
        assert_eq!(code, 0);
    }

    pub(super) fn snapshot(place: &CallDirectory) {
        let guid = c(FIRST);
        let mut param = sys::ploop_snapshot_param {
            guid: guid.as_ptr().cast_mut(),
            ..Default::default()
        };
        // SAFETY: the handle is open; the text is terminated and outlives the call.
        opened(place, |di| unsafe {
            sys::ploop_create_snapshot(di, &mut param)
        });
    }

    pub(super) fn switch(place: &CallDirectory) {
        let guid = c(FIRST);
        // SAFETY: as in `snapshot`.
        opened(place, |di| unsafe {
            sys::ploop_switch_snapshot(di, guid.as_ptr(), 0)
        });
    }

    pub(super) fn delete(place: &CallDirectory, guid: &str) {
        let guid = c(guid);
        // SAFETY: as in `snapshot`.
        opened(place, |di| unsafe {
            sys::ploop_delete_snapshot(di, guid.as_ptr())
        });
    }

    pub(super) fn merge(place: &CallDirectory) {
        let mut param = sys::ploop_merge_param::default();
        // SAFETY: the handle is open; all of `param` is zero.
        opened(place, |di| unsafe {
            sys::ploop_merge_snapshot(di, &mut param)
        });
    }

    pub(super) fn convert(place: &CallDirectory, mode: i32) {
        // SAFETY: the handle is open.
        opened(place, |di| unsafe { sys::ploop_convert_image(di, mode, 0) });
    }

    pub(super) fn replace(place: &CallDirectory) {
        let (file, guid) = (c_path(&place.dir.join(COPY)), c(&Guid::TOP.to_string()));
        let mut param = sys::ploop_replace_param {
            file: file.as_ptr().cast_mut(),
            guid: guid.as_ptr().cast_mut(),
            ..Default::default()
        };
        // SAFETY: as in `snapshot`.
        opened(place, |di| unsafe {
            sys::ploop_replace_image(di, &mut param)
        });
    }

    pub(super) fn image_info(place: &CallDirectory) {
        let mut spec = sys::ploop_spec::default();
        // SAFETY: the handle is open; C fills in `spec`.
        kept_open(place, |di| unsafe { sys::ploop_get_spec(di, &mut spec) });
        black_box(spec);
    }

    pub(super) fn top_delta_file(place: &CallDirectory) {
        let mut out = vec![0 as c_char; 4096];
        // SAFETY: the handle is open; the buffer has the length given.
        kept_open(place, |di| unsafe {
            sys::ploop_get_top_delta_fname(di, out.as_mut_ptr(), 4096)
        });
        black_box(out);
    }

    pub(super) fn read_descriptor(place: &CallDirectory) {
        let path = Padded::new(&place.xml);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the path has the bytes C reads; the handle is closed once.
        unsafe {
            assert_eq!(sys::ploop_read_disk_descr(&mut handle, path.as_ptr()), 0);
            sys::ploop_close_dd(handle);
        }
    }

    pub(super) fn fs_info(place: &CallDirectory) {
        let path = Padded::new(&place.xml);
        let mut info = sys::ploop_info::default();
        // SAFETY: the path has the bytes C reads; C fills in `info`.
        let code = unsafe { sys::ploop_get_info_by_descr(path.as_ptr(), &mut info) };
        assert_eq!(code, 0);
        black_box(info);
    }

    pub(super) fn generate() {
        let mut out = [0 as c_char; 39];
        // SAFETY: the buffer has the length given, which is what C asks for.
        assert_eq!(unsafe { sys::ploop_uuid_generate(out.as_mut_ptr(), 39) }, 0);
        black_box(out);
    }
}

/// Raw and safe calls alternately, and the verdict.
fn bars(filter: &str) -> ExitCode {
    // What they cost is a property of the disk.
    ploop::durability::set_sync(false);
    pairs::print_heading();
    let mut missed = 0;
    for call in CALLS.iter().filter(|call| call.name.contains(filter)) {
        let stage = Stage::new(call);
        let timed = |f: fn(&CallDirectory)| {
            let place = stage.prepare();
            let start = Instant::now();
            f(&place);
            start.elapsed()
        };
        let measured = pairs::measure(|| timed(call.raw), || timed(call.safe));
        let (times, more) = match call {
            _ if call.name == GENERATE => (1.0 / GUID_BAR, Duration::ZERO),
            call if call.looks && call.name != LIMIT => LOOK_BAR,
            _ => CHANGE_BAR,
        };
        missed += usize::from(!measured.print(call.name, measured.raw.mul_f64(times) + more));
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Does one call many times, for `strace` to look at: `SIDE CALL COUNT`.
fn run(arguments: &[String]) -> ExitCode {
    let [side, name, count] = arguments else {
        return ExitCode::FAILURE;
    };
    let Some(call) = CALLS.iter().find(|call| call.name == name) else {
        return ExitCode::FAILURE;
    };
    let stage = Stage::new(call);
    // What is done once in a process is not to be counted.
    for f in [call.raw, call.safe] {
        f(&stage.prepare());
    }
    for _ in 0..count.parse().unwrap_or(0) {
        let place = stage.prepare();
        match side.as_str() {
            "raw" => (call.raw)(&place),
            "safe" => (call.safe)(&place),
            _ => {}
        }
    }
    ExitCode::SUCCESS
}

const COUNTED: u32 = 50;

/// System calls per call: those of many calls, less those of the same preparations without a call.
fn syscalls(filter: &str) -> ExitCode {
    println!("System calls per call; +n name: n more in the safe call than in the raw one.\n");
    println!("{:<26} {:>6} {:>6} {:>6}", "call", "raw", "safe", "more");
    for call in CALLS.iter().filter(|call| call.name.contains(filter)) {
        let [none, raw, safe] = ["none", "raw", "safe"].map(|side| counted(side, call.name));
        let (Some(none), Some(raw), Some(safe)) = (none, raw, safe) else {
            eprintln!("overhead: strace is not installed, or failed");
            return ExitCode::FAILURE;
        };
        let of = |counts: &BTreeMap<String, u64>, name: &str| {
            let count = counts.get(name).copied().unwrap_or(0) as f64;
            let prepared = none.get(name).copied().unwrap_or(0) as f64;
            (count - prepared) / f64::from(COUNTED)
        };
        let names: std::collections::BTreeSet<&String> = raw.keys().chain(safe.keys()).collect();
        let sum = |counts| names.iter().map(|name| of(counts, name)).sum::<f64>();
        let differing: Vec<String> = names
            .iter()
            .map(|name| (of(&safe, name) - of(&raw, name), name))
            .filter(|(more, _)| more.abs() >= 0.5)
            .map(|(more, name)| format!("{more:+.0} {name}"))
            .collect();
        let (raw, safe) = (sum(&raw), sum(&safe));
        println!(
            "{:<26} {raw:>6.1} {safe:>6.1} {:>+6.1}  {}",
            call.name,
            safe - raw,
            differing.join(", ")
        );
    }
    ExitCode::SUCCESS
}

/// What `strace -c -f` counts, by name.
fn counted(side: &str, name: &str) -> Option<BTreeMap<String, u64>> {
    let report = tempfile::NamedTempFile::new().ok()?;
    let output = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .arg(report.path())
        .arg(std::env::current_exe().ok()?)
        .args(["--run", side, name, &COUNTED.to_string()])
        .output()
        .ok()?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let text = fs::read_to_string(report.path()).ok()?;
    let row = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let count = words.next()?.parse().ok()?;
        words.next().map(|name| (name.to_owned(), count))
    };
    Some(
        text.lines()
            .filter_map(row)
            .filter(|(name, _)| name != "total")
            .collect(),
    )
}
