//! Changes of large images without the driver: [`OfflineImage`], next to libploop's own and to QEMU.
//!
//! ```text
//! cargo bench -p ploop --features image-write --bench offline              the table
//! cargo bench -p ploop --features image-write --bench offline -- --bars    fails where a bar is missed
//! ```
//!
//! Both sides bring the result to the disk, and take turns; the table has the medians. What libploop leaves to the kernel
//! is synced after its call. It has no compaction without the driver: there the other side is `qemu-img convert` into a new
//! image, which leaves out the zeros. Needs 2 GiB in the
//! temporary directory (`TMPDIR`), which has to be on a disk.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ploop::image::{CompactOptions, Header, HeaderFlags, OfflineImage};
use ploop::{
    CreateParam, Descriptor, FormatVersion, ImageMode, MergeParam, MergeTarget, Ploop, Size,
};
use ploop_sys as sys;

const ROUNDS: usize = 7;
const SIZE: Size = Size::from_mib(512);
const CLUSTER: u64 = 1 << 20;
const XML: &str = "DiskDescriptor.xml";

/// Something that both sides do.
struct Job {
    name: &'static str,
    peer: &'static str,
    /// Makes the image that all turns start from.
    template: fn(&Path),
    ours: fn(&Path),
    theirs: fn(&Path),
}

const JOBS: &[Job] = &[
    Job {
        name: "merge, new clusters",
        peer: "ploop_merge_snapshot",
        template: |dir| {
            base(dir, |number| number % 2 == 0);
            upper(dir, |number| number % 2 == 1);
        },
        ours: merge,
        theirs: raw::merge,
    },
    Job {
        name: "merge, the same clusters",
        peer: "ploop_merge_snapshot",
        template: |dir| {
            base(dir, |number| number % 2 == 0);
            upper(dir, |number| number % 2 == 0);
        },
        ours: merge,
        theirs: raw::merge,
    },
    Job {
        name: "convert to raw",
        peer: "ploop_convert_image",
        template: |dir| base(dir, |number| number % 2 == 0),
        ours: |dir| convert(dir, ImageMode::Raw),
        theirs: |dir| raw::convert(dir, sys::PLOOP_RAW_MODE),
    },
    Job {
        name: "convert to preallocated",
        peer: "ploop_convert_image",
        template: |dir| base(dir, |number| number % 2 == 0),
        ours: |dir| convert(dir, ImageMode::Preallocated),
        theirs: |dir| raw::convert(dir, sys::PLOOP_EXPANDED_PREALLOCATED_MODE),
    },
    Job {
        name: "compact, half is zeros",
        peer: "qemu-img convert",
        template: |dir| {
            base(dir, |_| true);
            let file = File::options().write(true).open(base_of(dir)).unwrap();
            let zeros = vec![0; CLUSTER as usize];
            let first = Header::read(base_of(dir)).unwrap().data_start() / CLUSTER;
            for number in (0..SIZE.bytes() / CLUSTER).step_by(2) {
                file.write_all_at(&zeros, (first + number) * CLUSTER)
                    .unwrap();
            }
        },
        ours: |dir| {
            let mut image = OfflineImage::open(dir.join(XML)).unwrap();
            let report = image.compact(&CompactOptions::new(), |_| {}).unwrap();
            assert_eq!(report.freed(), Size::from_bytes(SIZE.bytes() / 2));
        },
        theirs: |dir| {
            let status = Command::new("qemu-img")
                .args([
                    "convert",
                    "-f",
                    "parallels",
                    "-O",
                    "parallels",
                    "-t",
                    "writeback",
                ])
                .args([base_of(dir), dir.join("new")])
                .status();
            assert!(status.unwrap().success());
        },
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if !has("--bench") {
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().rfind(|it| !it.starts_with("--"));
    println!("changes of a disk of {SIZE} in clusters of 1 MiB, medians of {ROUNDS}:");
    println!(
        "  {:<28}{:>14}{:>14}{:>8}  other side",
        "", "OfflineImage", "other side", "ratio"
    );
    let mut missed = Vec::new();
    for job in JOBS {
        if filter.is_some_and(|filter| !job.name.contains(filter.as_str())) {
            continue;
        }
        let [ours, theirs] = measure(job);
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let is_met = ratio < 1.0;
        println!(
            "  {:<28}{:>12.3} s{:>12.3} s{ratio:>8.2}  {}: {}",
            job.name,
            ours.as_secs_f64(),
            theirs.as_secs_f64(),
            job.peer,
            if is_met { "met" } else { "missed" }
        );
        if !is_met {
            missed.push(format!("{}: {ratio:.2}", job.name));
        }
    }
    if has("--bars") && !missed.is_empty() {
        println!("bars missed: {}", missed.join("; "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The medians of both sides.
fn measure(job: &Job) -> [Duration; 2] {
    let template = tempfile::tempdir().unwrap();
    (job.template)(template.path());
    let sides = [job.ours, job.theirs];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let side = (turn + round) % 2;
            let dir = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(template.path()).unwrap() {
                let entry = entry.unwrap();
                let to = dir.path().join(entry.file_name());
                fs::copy(entry.path(), &to).unwrap();
                File::open(to).unwrap().sync_all().unwrap();
            }
            let begin = Instant::now();
            sides[side](dir.path());
            times[side].push(begin.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    })
}

fn merge(dir: &Path) {
    let mut image = OfflineImage::open(dir.join(XML)).unwrap();
    let param = MergeParam::new(MergeTarget::Top);
    image.merge(&param, |_| {}).unwrap();
}

fn convert(dir: &Path, mode: ImageMode) {
    let mut image = OfflineImage::open(dir.join(XML)).unwrap();
    image.convert(mode, |_| {}).unwrap();
}

fn base_of(dir: &Path) -> std::path::PathBuf {
    dir.join("root.hds")
}

/// An image with noise in the clusters that are chosen.
fn base(dir: &Path, chosen: impl Fn(u32) -> bool) {
    // The version that libploop makes without a driver.
    let param = CreateParam::new(base_of(dir), SIZE)
        .fs(None)
        .format(FormatVersion::V1);
    Ploop::create(&param).unwrap();
    fill(&base_of(dir), chosen);
}

/// A snapshot, and noise in the new top.
fn upper(dir: &Path, chosen: impl Fn(u32) -> bool) {
    let xml = dir.join(XML);
    OfflineImage::open(&xml).unwrap().snapshot().unwrap();
    let descriptor = Descriptor::open(&xml).unwrap();
    fill(&descriptor.top_image().unwrap().file, chosen);
}

/// Puts noise into a delta, which is empty.
fn fill(path: &Path, chosen: impl Fn(u32) -> bool) {
    let mut header = Header::read(path).unwrap();
    header.flags.remove(HeaderFlags::EMPTY);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = vec![0; CLUSTER as usize];
    let first = u32::try_from(header.data_start() / CLUSTER).unwrap();
    let numbers = (0..header.entries()).filter(|number| chosen(*number));
    for (slot, number) in (first..).zip(numbers) {
        random.fill(&mut noise);
        file.write_all_at(&noise, u64::from(slot) * CLUSTER)
            .unwrap();
        let entry = slot * header.cluster.sectors();
        file.write_all_at(&entry.to_le_bytes(), 64 + 4 * u64::from(number))
            .unwrap();
    }
}

/// The same by way of C alone.
mod raw {
    use super::*;

    fn opened(dir: &Path, f: impl FnOnce(*mut sys::ploop_disk_images_data) -> i32) {
        let path = CString::new(dir.join(XML).as_os_str().as_bytes()).unwrap();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the path is terminated; the handle is closed once, after its last use.
        unsafe {
            assert_eq!(sys::ploop_open_dd(&mut handle, path.as_ptr()), 0);
            if f(handle) != 0 {
                panic!("{:?}", CStr::from_ptr(sys::ploop_get_last_error()));
            }
            sys::ploop_close_dd(handle);
        }
        for file in [&base_of(dir), &dir.join(XML), dir] {
            File::open(file).unwrap().sync_all().unwrap();
        }
    }

    pub(super) fn merge(dir: &Path) {
        let mut param = sys::ploop_merge_param::default();
        // SAFETY: the handle is open; all of `param` is zero.
        opened(dir, |di| unsafe {
            sys::ploop_merge_snapshot(di, &mut param)
        });
    }

    pub(super) fn convert(dir: &Path, mode: i32) {
        // SAFETY: the handle is open.
        opened(dir, |di| unsafe { sys::ploop_convert_image(di, mode, 0) });
    }
}
