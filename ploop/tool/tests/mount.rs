//! The disks and partitions of an image as files. Needs FUSE, and root or fusermount3.

#[path = "../../tests/written_image/mod.rs"]
mod written_image;

mod signalled;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ploop::FormatVersion;
use ploop::image::Disk;
use rustix::fs::{SeekFrom, seek};
use rustix::process::Signal;
use written_image::{Delta, describe, snapshot};

const M: u64 = 1 << 20;

fn main() {
    let arguments = Arguments::from_args();
    let is_root = rustix::process::getuid().is_root();
    let has_tool = Command::new("fusermount3").arg("-V").output().is_ok();
    let missing = if !Path::new("/dev/fuse").exists() {
        Some("needs /dev/fuse")
    } else if !is_root && !has_tool {
        Some("needs root, or fusermount3 (package fuse3)")
    } else {
        None
    };
    let tests: [(&str, fn()); 2] = [
        (
            "every_state_is_a_directory_of_files",
            every_state_is_a_directory_of_files,
        ),
        ("a_signal_unmounts", a_signal_unmounts),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let trial = Trial::test(name, move || {
                test();
                Ok::<(), Failed>(())
            });
            match missing {
                Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
                None => trial,
            }
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

/// `ploop-image mount`, which is ended when this is dropped.
struct Mounted(Child);

impl Mounted {
    fn begin(image: &Path, directory: &Path) -> Mounted {
        fs::create_dir(directory).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ploop-image"));
        command.arg("mount").args([image, directory]);
        let mounted = Mounted(signalled::start(command.stdout(Stdio::null())).unwrap());
        let begin = Instant::now();
        while !directory.join("top").exists() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "it is not mounted"
            );
            thread::sleep(Duration::from_millis(10));
        }
        mounted
    }

    fn interrupt(&mut self) -> bool {
        self.end_with(Signal::INT)
    }

    fn end_with(&mut self, signal: Signal) -> bool {
        signalled::send(&self.0, signal);
        signalled::end_of(&mut self.0).success()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.interrupt();
        }
    }
}

/// A disk with a partition from 1 MiB on, and a snapshot below its top.
fn image(dir: &Path) -> PathBuf {
    let mut base = Delta::new(FormatVersion::V2, M, 8 * M);
    base.clusters = vec![(0, 0), (2, 2), (3, 4)];
    let mut top = base.clone();
    top.clusters = vec![(2, 3), (6, 5)];
    let file = base.write(&dir.join("root.hds"));
    top.write(&dir.join("top.hds"));
    // A master boot record in the first cluster: one partition of 4 MiB.
    let mut record = [0; 512];
    record[446 + 4] = 0x83;
    record[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    record[446 + 12..446 + 16].copy_from_slice(&8192u32.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    std::os::unix::fs::FileExt::write_all_at(&file, &record, M).unwrap();
    describe(dir, &["root.hds", "top.hds"], 8 * M, M, false)
}

fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size().bytes() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn every_state_is_a_directory_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let descriptor = image(dir.path());
    let directory = dir.path().join("mounted");
    let mut mounted = Mounted::begin(&descriptor, &directory);
    let guid = snapshot(0);
    let states = [
        ("top".to_owned(), Disk::open(&descriptor).unwrap()),
        (
            guid.to_string(),
            Disk::open_snapshot(&descriptor, guid).unwrap(),
        ),
    ];
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected = vec!["top".to_owned(), guid.to_string()];
    expected.sort();
    assert_eq!(names, expected);
    for (name, disk) in &states {
        let expected = contents(disk);
        let path = directory.join(name);
        assert!(fs::read(path.join("disk")).unwrap() == expected, "{name}");
        let partition = &expected[M as usize..][..4 * M as usize];
        assert!(fs::read(path.join("p1")).unwrap() == partition, "{name}");
        assert!(!path.join("p2").exists());
        assert!(File::options().write(true).open(path.join("disk")).is_err());
        // In pieces that are aligned to nothing.
        let mut file = File::open(path.join("disk")).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(2 * M - 77)).unwrap();
        let mut piece = vec![0; 300_001];
        file.read_exact(&mut piece).unwrap();
        assert!(piece == expected[2 * M as usize - 77..][..300_001]);

        let data: Vec<(u64, u64)> = disk
            .extents()
            .map(|it| it.unwrap())
            .map(|it| (it.offset, it.offset + it.len))
            .collect();
        assert_eq!(parts_with_data(&path.join("disk")), data, "{name}");
        // By this, programs tell whether there are holes.
        let stored: u64 = data.iter().map(|(start, end)| end - start).sum();
        let metadata = fs::metadata(path.join("disk")).unwrap();
        assert_eq!(metadata.blocks() * 512, stored, "{name}");
    }
    // Clusters 2 and 3 of the disk are 1 and 2 of the partition.
    let p1 = directory.join("top/p1");
    assert_eq!(parts_with_data(&p1), [(M, 3 * M)]);
    assert_eq!(fs::metadata(&p1).unwrap().blocks() * 512, 2 * M);
    assert!(mounted.interrupt());
}

fn parts_with_data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

fn a_signal_unmounts() {
    let dir = tempfile::tempdir().unwrap();
    let descriptor = image(dir.path());
    // That of a terminal that is closed, too.
    for (number, signal) in signalled::SIGNALS.into_iter().enumerate() {
        let directory = dir.path().join(number.to_string());
        let mut mounted = Mounted::begin(&descriptor, &directory);
        assert!(mounted.end_with(signal), "{signal:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
