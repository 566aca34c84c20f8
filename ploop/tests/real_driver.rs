//! Images that the kernel driver wrote, with checksums of every state.
//!
//! `real_driver/README.md` says what they are. tar and xz unpack them: both are on nearly every
//! machine, and `ci/setup.sh test` installs them; where one is missing, these tests are shown as
//! ignored.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use ploop::image::{Descriptor, Disk, ExportOptions, Issue, OpenOptions, PartitionKind, check};
use ploop::{ErrorKind, Guid};
use sha2::{Digest, Sha256};

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let unpacked = if arguments.list {
        Err("only listed".to_owned())
    } else {
        unpack()
    };
    let dir = unpacked.as_ref().ok().map(|dir| dir.path().to_owned());
    let trial = |name: &str, test: fn(&Path) -> Outcome| {
        let dir = dir.clone();
        let trial = Trial::test(name, move || test(&dir.ok_or("there are no images")?));
        match &unpacked {
            Ok(_) => trial,
            // The kind is the one thing that is printed beside the name, so it tells the reason.
            Err(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
        }
    };
    let debugfs = Command::new("debugfs").arg("-V").output().is_ok();
    let files = trial("every_file_has_its_checksum", every_file_has_its_checksum);
    let files = if debugfs {
        files
    } else {
        files
            .with_kind("not installed: debugfs")
            .with_ignored_flag(true)
    };
    let mounts = Command::new("unshare").args(["-m", "true"]).status();
    let mounted = trial("a_read_only_mount_will_do", a_read_only_mount_will_do);
    let mounted = if mounts.is_ok_and(|status| status.success()) {
        mounted
    } else {
        eprintln!("real_driver: a_read_only_mount_will_do is ignored, it may not mount");
        mounted.with_ignored_flag(true)
    };
    let trials = vec![
        mounted,
        trial("every_state_has_its_checksum", every_state_has_its_checksum),
        trial("exports_are_the_same", exports_are_the_same),
        trial("extents_are_all_there_is", extents_are_all_there_is),
        trial("partitions_are_found", partitions_are_found),
        trial("an_image_in_use_is_refused", an_image_in_use_is_refused),
        trial("nothing_is_written", nothing_is_written),
        trial(
            "the_check_finds_them_in_order",
            the_check_finds_them_in_order,
        ),
        files,
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Set for the tests that run inside [`a_read_only_mount_will_do`].
const UNPACKED: &str = "PLOOP_TEST_UNPACKED";

/// The images, unpacked here or already.
enum Images {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Images {
    fn path(&self) -> &Path {
        match self {
            Images::Own(dir) => dir.path(),
            Images::Given(dir) => dir,
        }
    }
}

fn unpack() -> Result<Images, String> {
    if let Some(dir) = std::env::var_os(UNPACKED) {
        return Ok(Images::Given(PathBuf::from(dir)));
    }
    for program in ["tar", "xz"] {
        if Command::new(program).arg("--version").output().is_err() {
            return Err(format!("not installed: {program}"));
        }
    }
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_driver/images.tar.xz");
    let dir = tempfile::tempdir().unwrap();
    // The programs are there and so is the archive: what fails now is a failure.
    let status = Command::new("tar")
        .arg("xSf")
        .arg(&archive)
        .arg("-C")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(
        status.success(),
        "tar {status}: cannot unpack {}",
        archive.display()
    );
    Ok(Images::Own(dir))
}

/// The lines of a manifest: what, of which state, and its checksum.
struct Sum {
    snapshot: Option<Guid>,
    /// The size of the device, or the path of a file.
    of: Result<u64, String>,
    sha256: String,
}

fn manifest(dir: &Path) -> Vec<Sum> {
    let text = fs::read_to_string(dir.join("MANIFEST")).unwrap_or_default();
    let sums: Vec<Sum> = text
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let snapshot = (fields[0] != "top").then(|| fields[0].parse().unwrap());
            let (of, sha256) = match fields[1] {
                "device" => (Ok(fields[2].parse().unwrap()), fields[3]),
                "file" => (Err(fields[3].to_owned()), fields[2]),
                other => panic!("a line of {other}"),
            };
            Sum {
                snapshot,
                of,
                sha256: sha256.to_owned(),
            }
        })
        .collect();
    sums
}

const WITH_MANIFEST: [&str; 5] = ["chain", "v1small", "rawbase", "prealloc", "resized"];

fn open(dir: &Path, snapshot: Option<Guid>) -> Result<Disk, ploop::Error> {
    let descriptor = dir.join("DiskDescriptor.xml");
    match snapshot {
        None => Disk::open(descriptor),
        Some(guid) => Disk::open_snapshot(descriptor, guid),
    }
}

fn sha256(mut source: impl Read) -> String {
    let mut hasher = Sha256::new();
    std::io::copy(&mut source, &mut hasher).unwrap();
    hex(hasher)
}

fn hex(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn every_state_has_its_checksum(dir: &Path) -> Outcome {
    let mut checked = 0;
    for name in WITH_MANIFEST {
        let image = dir.join(name);
        for sum in manifest(&image) {
            if let Ok(size) = sum.of {
                let disk = open(&image, sum.snapshot)?;
                assert_eq!(disk.size().bytes(), size, "{name}");
                assert_eq!(sha256(disk), sum.sha256, "{name} {:?}", sum.snapshot);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 9);
    Ok(())
}

fn exports_are_the_same(dir: &Path) -> Outcome {
    for name in WITH_MANIFEST {
        let image = dir.join(name);
        for sum in manifest(&image) {
            let Ok(size) = sum.of else { continue };
            let disk = open(&image, sum.snapshot)?;
            let target = dir.join("exported");
            let mut last = None;
            disk.export(&target, &ExportOptions::new().overwrite(true), |progress| {
                assert!(last <= Some(progress.copied));
                last = Some(progress.copied);
                assert!(progress.copied <= progress.total);
            })?;
            assert_eq!(fs::metadata(&target)?.len(), size);
            assert_eq!(sha256(fs::File::open(&target)?), sum.sha256, "{name}");
        }
    }
    Ok(())
}

/// What is not in an extent is zero, and the mappings say where the rest is.
fn extents_are_all_there_is(dir: &Path) -> Outcome {
    for name in WITH_MANIFEST {
        let disk = open(&dir.join(name), None)?;
        let mut rebuilt = vec![0; disk.size().bytes() as usize];
        let mut end = None;
        for extent in disk.extents() {
            let extent = extent?;
            assert!(Some(extent.offset) > end, "extents are apart and in order");
            end = Some(extent.offset + extent.len);
            let at = extent.offset as usize;
            let part = &mut rebuilt[at..at + extent.len as usize];
            assert_eq!(disk.read_at(part, extent.offset)?, part.len());
        }
        let sums = manifest(&dir.join(name));
        let sum = sums
            .iter()
            .find(|sum| sum.snapshot.is_none() && sum.of.is_ok());
        let expected = &sum.unwrap().sha256;
        assert_eq!(&sha256(&rebuilt[..]), expected, "{name}");

        let files: Vec<fs::File> = disk.files().map(fs::File::open).collect::<Result<_, _>>()?;
        let mut mapped = vec![0; rebuilt.len()];
        for mapping in disk.mappings() {
            let mapping = mapping?;
            let mut file = &files[mapping.level];
            file.seek(SeekFrom::Start(mapping.file_offset))?;
            let at = mapping.offset as usize;
            file.read_exact(&mut mapped[at..at + mapping.len as usize])?;
        }
        assert!(mapped == rebuilt, "{name}");
    }
    Ok(())
}

fn partitions_are_found(dir: &Path) -> Outcome {
    for name in WITH_MANIFEST {
        let disk = open(&dir.join(name), None)?;
        let partitions = disk.partitions()?;
        assert_eq!(partitions.len(), 1, "{name}: {partitions:?}");
        let partition = &partitions[0];
        assert_eq!(partition.number, 1);
        assert!(matches!(partition.kind, PartitionKind::Gpt { .. }));
        let mut magic = [0; 2];
        disk.read_at(&mut magic, partition.offset + 1024 + 56)?;
        assert_eq!(magic, [0x53, 0xef], "{name}: no ext4 where it should be");
    }
    Ok(())
}

fn every_file_has_its_checksum(dir: &Path) -> Outcome {
    let mut checked = 0;
    for name in WITH_MANIFEST {
        let image = dir.join(name);
        for sum in manifest(&image) {
            let Err(path) = &sum.of else { continue };
            let mut disk = open(&image, sum.snapshot)?;
            let partition = &disk.partitions()?[0];
            let (offset, size) = (partition.offset, partition.size.bytes());
            disk.seek(SeekFrom::Start(offset))?;
            let file_system = dir.join("file_system");
            let mut plain = fs::File::create(&file_system)?;
            let mut buffer = vec![0; 1 << 20];
            let mut left = size;
            while left > 0 {
                let part = buffer.len().min(left as usize);
                disk.read_exact(&mut buffer[..part])?;
                if buffer[..part].iter().all(|byte| *byte == 0) {
                    plain.seek_relative(part as i64)?;
                } else {
                    plain.write_all(&buffer[..part])?;
                }
                left -= part as u64;
            }
            plain.set_len(size)?;
            let output = Command::new("debugfs")
                .args(["-R", &format!("cat {path}")])
                .arg(&file_system)
                .output()?;
            assert_eq!(sha256(&output.stdout[..]), sum.sha256, "{name} {path}");
            checked += 1;
        }
    }
    assert_eq!(checked, 16);
    Ok(())
}

fn an_image_in_use_is_refused(dir: &Path) -> Outcome {
    let descriptor = dir.join("crashed/DiskDescriptor.xml");
    let error = Disk::open(&descriptor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(
        error.path().and_then(Path::file_name).unwrap(),
        "root.hds",
        "{error}"
    );
    let image = dir.join("crashed/root.hds");
    assert_eq!(
        Disk::open_image(&image).unwrap_err().kind(),
        ErrorKind::Busy
    );

    let options = OpenOptions::new().allow_in_use(true);
    let through_descriptor = sha256(options.open(&descriptor)?);
    assert_eq!(sha256(options.open_image(&image)?), through_descriptor);
    assert_eq!(options.open(&descriptor)?.partitions()?.len(), 1);
    Ok(())
}

fn the_check_finds_them_in_order(dir: &Path) -> Outcome {
    for name in WITH_MANIFEST {
        let report = check(dir.join(name).join("DiskDescriptor.xml"));
        assert!(report.is_clean(), "{name}: {report}");
        let allocated: u64 = report
            .deltas
            .iter()
            .map(|delta| delta.allocated.bytes())
            .sum();
        assert!(allocated > 0, "{name}");
    }
    // Marked, with clusters that were never led to; the copy has holes.
    let report = check(dir.join("crashed/DiskDescriptor.xml"));
    assert!(report.is_sound() && !report.is_clean(), "{report}");
    for issue in [Issue::InUse, Issue::LostClusters, Issue::Sparse] {
        assert!(report.has(issue), "{issue:?}: {report}");
    }
    assert_eq!(report.findings.len(), 3, "{report}");
    Ok(())
}

/// Everything this crate does to read, and then the same bytes and times as before.
fn nothing_is_written(dir: &Path) -> Outcome {
    let state = |dir: &Path| {
        let mut state = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let modified = path.metadata().unwrap().modified().unwrap();
            let sum = sha256(fs::File::open(&path).unwrap());
            state.insert(path, (modified, sum));
        }
        state
    };
    let scratch = tempfile::tempdir()?;
    for name in [
        "chain", "v1small", "rawbase", "prealloc", "resized", "crashed",
    ] {
        let image = dir.join(name);
        let before = state(&image);
        let path = image.join("DiskDescriptor.xml");
        let descriptor = Descriptor::open(&path)?;
        let options = OpenOptions::new().allow_in_use(true);
        for shot in &descriptor.snapshots {
            let disk = options.open_snapshot(&path, shot.guid)?;
            disk.extents().for_each(drop);
            disk.partitions()?;
            disk.export(
                scratch.path().join("out"),
                &ExportOptions::new().overwrite(true),
                |_| {},
            )?;
        }
        assert!(state(&image) == before, "{name} changed");
    }
    Ok(())
}

/// The test above once more, in a mount name space in which the images cannot be written to.
fn a_read_only_mount_will_do(dir: &Path) -> Outcome {
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && \
                  ! touch \"$1/x\" 2>/dev/null && exec \"$2\" --exact nothing_is_written";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(dir)
        .arg(std::env::current_exe()?)
        .env(UNPACKED, dir)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    Ok(())
}
