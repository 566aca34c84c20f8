//! An image with an ext2, ext3 or ext4 file system that the tools of e2fsprogs change between snapshots.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ploop::Guid;
use ploop::image::{Disk, DiskWriter};
use tempfile::TempDir;

pub(crate) const M: u64 = 1 << 20;

/// The unit in which a change of the raw disk is written to the image.
const BLOCK: usize = 4096;

pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    output
}

pub(crate) fn ploop_image(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ploop-image"))
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `--json` prints, of a command that ends with `status`.
pub(crate) fn json(status: i32, arguments: &[&str]) -> serde_json::Value {
    let output = ploop_image(&[arguments, &["--json"]].concat());
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {words}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A raw disk, and an image that gets what it has.
pub(crate) struct ExtImage {
    pub(crate) dir: TempDir,
}

impl ExtImage {
    /// A disk with a file system of the files in `tree` from end to end. `options` are those of mke2fs.
    pub(crate) fn new(options: &[&str], size: u64, tree: impl FnOnce(&Path)) -> ExtImage {
        let image = ExtImage {
            dir: tempfile::tempdir().unwrap(),
        };
        let files = image.path("tree");
        fs::create_dir(&files).unwrap();
        tree(&files);
        let size = format!("{}K", size >> 10);
        let raw = image.raw();
        let arguments = [
            &["-q", "-F", "-d", text(&files)],
            options,
            &[text(&raw), &size],
        ]
        .concat();
        run("mke2fs", &arguments);
        image
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The raw disk. What is done to it is in the image after the next [`write`](ExtImage::write).
    pub(crate) fn raw(&self) -> PathBuf {
        self.path("raw")
    }

    /// The directory of the image.
    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    /// Makes the image, of what the raw disk has.
    pub(crate) fn import(&self, options: &[&str]) {
        let (raw, image) = (self.raw(), self.image());
        let output = ploop_image(&[&["import", text(&raw), text(&image)], options].concat());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
    }

    /// Writes to the image what has changed on the raw disk.
    pub(crate) fn write(&self) {
        let now = fs::read(self.raw()).unwrap();
        let before = self.contents(None);
        let mut writer = DiskWriter::open(self.descriptor()).unwrap();
        let blocks = now.chunks(BLOCK).zip(before.chunks(BLOCK)).enumerate();
        for (number, (now, before)) in blocks {
            if now != before {
                writer.write_at(now, (number * BLOCK) as u64).unwrap();
            }
        }
        writer.close().unwrap();
        assert!(self.contents(None) == now);
    }

    pub(crate) fn snapshot(&self) -> Guid {
        let mut image = ploop::image::OfflineImage::open(self.descriptor()).unwrap();
        image.snapshot().unwrap()
    }

    pub(crate) fn descriptor(&self) -> PathBuf {
        self.image().join("DiskDescriptor.xml")
    }

    /// The disk, as of a snapshot or as it is.
    pub(crate) fn contents(&self, snapshot: Option<Guid>) -> Vec<u8> {
        let disk = match snapshot {
            Some(guid) => Disk::open_snapshot(self.descriptor(), guid).unwrap(),
            None => Disk::open(self.descriptor()).unwrap(),
        };
        let mut bytes = vec![0; disk.size().bytes() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Runs requests of debugfs on the raw disk.
    pub(crate) fn debugfs(&self, requests: &[&str]) {
        let mut child = Command::new("debugfs")
            .args(["-w", "-f", "-"])
            .arg(self.raw())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let script = requests.join("\n") + "\n";
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        // The first line is its version.
        assert!(words.lines().count() <= 1, "{requests:?}: {words}");
    }

    /// Requires that e2fsck finds nothing in the file system of a raw disk.
    pub(crate) fn require_clean(raw: &Path) {
        let output = Command::new("e2fsck")
            .args(["-fn", text(raw)])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words}");
    }
}
