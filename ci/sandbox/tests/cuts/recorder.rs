//! A disk that remembers the order in which it was written, and what was flushed: a file in a FUSE file
//! system of this process, which a loop device is bound to. From the record any moment of a power cut
//! can be made again, with what was not flushed lost in part.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;

use super::fuse::{Connection, Mounted};
use super::sandbox::tool;
use super::virtual_disk::{self, Completion, DiskFileSystem, VirtualDisk};

/// What the disk was told.
enum Entry {
    Write { offset: u64, data: Box<[u8]> },
    Flush,
}

struct Shared {
    /// What it holds.
    file: File,
    len: u64,
    record: Mutex<Vec<Entry>>,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.record.lock().unwrap()
    }
}

/// The disk.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    /// As it was before the first entry.
    base: PathBuf,
    directory: PathBuf,
    _mount: Mounted,
    point: PathBuf,
}

impl Recorder {
    /// A disk that holds what the file `base` does. It stays as it is.
    pub(crate) fn new(directory: &Path, base: &Path) -> Recorder {
        let contents = directory.join("recorded");
        copy(base, &contents);
        let file = File::options().read(true).write(true).open(contents);
        let file = file.unwrap();
        let shared = Arc::new(Shared {
            len: file.metadata().unwrap().len(),
            file,
            record: Mutex::default(),
        });
        let point = directory.join("recorder");
        fs::create_dir(&point).unwrap();
        let disk: Arc<dyn VirtualDisk> = shared.clone();
        // One thread: what is recorded has one order.
        let connection = Connection::open().unwrap();
        let file_system = DiskFileSystem::new(&disk, &connection).unwrap();
        let mount = connection.mount(file_system, &point, 1).unwrap();
        Recorder {
            shared,
            base: base.to_owned(),
            directory: directory.to_owned(),
            _mount: mount,
            point,
        }
    }

    /// The file to bind a loop device to.
    pub(crate) fn disk(&self) -> PathBuf {
        self.point.join(virtual_disk::FILE)
    }

    /// How much has been recorded.
    pub(crate) fn position(&self) -> usize {
        self.shared.record().len()
    }

    /// The disk after a power cut at this position: what was flushed, and of the rest what chance has
    /// spared. Says what was lost.
    pub(crate) fn cut(&self, position: usize, random: &mut Rng) -> (PathBuf, String) {
        let disk = self.directory.join("cut");
        copy(&self.base, &disk);
        let file = File::options().write(true).open(&disk).unwrap();
        let record = self.shared.record();
        let entries = &record[..position];
        let flushed = entries
            .iter()
            .rposition(|entry| matches!(entry, Entry::Flush))
            .unwrap_or(0);
        // Everything, most of it, half of it, nothing.
        let lost_of_8 = [0, 1, 4, 8][random.usize(..4)];
        let (mut lost, mut torn) = (0, 0);
        for (number, entry) in entries.iter().enumerate() {
            let Entry::Write { offset, data } = entry else {
                continue;
            };
            if number > flushed && random.u64(..8) < lost_of_8 {
                lost += 1;
                continue;
            }
            let mut kept = data.len();
            // ext4 writes its superblock in place: two sectors with one checksum, which no journal mends.
            let is_superblock = *offset < 2048;
            if number > flushed && lost_of_8 > 0 && !is_superblock && random.u64(..8) == 0 {
                // Sectors are written whole.
                kept = 512 * random.usize(..=data.len() / 512);
                torn += usize::from(kept < data.len());
            }
            file.write_all_at(&data[..kept.min(data.len())], *offset)
                .unwrap();
        }
        let unflushed = position - flushed.min(position);
        let what = format!("{lost} lost and {torn} torn of the last {unflushed} writes");
        (disk, what)
    }
}

fn copy(from: &Path, to: &Path) {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    tool("cp", &["--sparse=always", from, to]);
}

impl VirtualDisk for Shared {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut record = self.record();
        self.file.write_all_at(data, offset)?;
        record.push(Entry::Write {
            offset,
            data: data.into(),
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.record().push(Entry::Flush);
        Ok(())
    }

    fn punch(&self, _: u64, _: u64, completion: Completion) {
        completion.complete(Err(io::ErrorKind::Unsupported.into()));
    }
}
