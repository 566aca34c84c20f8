//! The fuzz targets: what is done with an input. `tests/fuzz_corpus.rs` replays the corpus with them.
//!
//! ```text
//! cd ploop
//! export ASAN_OPTIONS=quarantine_size_mb=16
//! cargo +nightly fuzz run delta -- -max_total_time=600 -rss_limit_mb=256
//! ```
//!
//! The option limits the freed memory that the sanitizer keeps. By default that alone reaches the memory limit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ploop::Guid;
use ploop::image::{
    Descriptor, Disk, Header, OpenOptions, check as check_image, tracking_bitmaps, used_bitmap,
};

#[path = "../src/copy/stream.rs"]
#[allow(dead_code, unreachable_pub)]
mod stream;
#[path = "../src/image/offline/repair/undo_format.rs"]
#[allow(dead_code, unreachable_pub)]
mod undo_format;

/// An undo file of a repair.
pub fn undo(input: &[u8]) {
    use undo_format::{CONTENT, Content, Writer, read};
    let Ok(found) = read(input) else {
        return;
    };
    // What was understood is written again, and understood in the same way.
    let mut writer = Writer::new(Vec::new()).unwrap();
    if let Some((old, new)) = &found.descriptor {
        writer.descriptor(old, new).unwrap();
    }
    let bytes_of = |content: &Content| &input[content.position as usize..][..content.len as usize];
    for file in &found.files {
        assert!(file.table_end <= file.old_len && file.old_len <= file.longest);
        writer.file(file).unwrap();
        for change in &file.changes {
            assert!(change.offset + change.old.len() as u64 <= file.table_end);
            writer
                .change(change.offset, &change.old, &change.new)
                .unwrap();
        }
        for content in &file.contents {
            assert!(content.offset + content.len <= file.old_len);
            writer.content(content.offset, bytes_of(content)).unwrap();
        }
        for copy in &file.copies {
            writer.copy(copy).unwrap();
        }
    }
    let written = writer.finish().unwrap();
    let mut again = read(&written[..]).unwrap();
    let mut pairs = found.files.iter().zip(&mut again.files);
    assert!(pairs.all(|(first, second)| {
        let mut contents = first.contents.iter().zip(&mut second.contents);
        contents.all(|(first, second)| {
            let position = std::mem::replace(&mut second.position, first.position);
            let bytes = &written[position as usize..][..second.len as usize];
            bytes == bytes_of(first) && bytes.len() <= 40 * CONTENT
        })
    }));
    assert_eq!(found, again);
}

/// The stream of a copy.
pub fn copy(input: &[u8]) {
    #[derive(Default, PartialEq)]
    struct Memory {
        bytes: BTreeMap<u64, u8>,
        syncs: usize,
    }
    impl stream::Target for Memory {
        type Error = ();
        fn write(&mut self, bytes: &[u8], position: u64) -> Result<(), ()> {
            let end = position + bytes.len() as u64;
            assert!(i64::try_from(end).is_ok());
            self.bytes
                .extend((position..end).zip(bytes.iter().copied()));
            Ok(())
        }
        fn sync(&mut self) -> Result<(), ()> {
            self.syncs += 1;
            Ok(())
        }
    }
    let receive = |memory: usize| {
        let (mut left, mut target) = (input, Memory::default());
        let result = stream::receive(&mut left, &mut vec![0; memory], &mut target);
        assert!(target.bytes.len() + target.syncs <= input.len() - left.len());
        if result.is_ok() {
            let read = &input[..input.len() - left.len()];
            let end = &read[read.len() - stream::HEADER..];
            assert_eq!(end[..8], stream::header(0, 0)[..8]);
        }
        (target, result.is_ok())
    };
    let (found, is_whole) = receive(4096);
    let (again, is_whole_again) = receive(1);
    assert_eq!(is_whole, is_whole_again);
    // Of a block that is cut off, the smaller memory gets more.
    assert!(!is_whole || found == again);
}

/// The contents of a `DiskDescriptor.xml`.
pub fn descriptor(input: &[u8]) {
    let Ok(descriptor) = Descriptor::parse(input, "/vz") else {
        return;
    };
    descriptor.validate().unwrap();
    let top = descriptor.chain(descriptor.top);
    assert_eq!(top.first().copied(), descriptor.base());
    assert_eq!(top.last().copied(), descriptor.top_image());
    for shot in descriptor.snapshots.iter().take(100) {
        let depth = descriptor.depth(shot.guid).unwrap();
        let parent = descriptor.parent(shot.guid);
        assert_eq!(parent.is_none(), depth == 0);
        assert!(depth < descriptor.images.len());
    }
    assert_eq!(descriptor.children(Guid::NONE).count(), 1);
}

/// A delta. The first byte says how many times 32 KiB of zeros follow the rest, so that a small input can be an image
/// with clusters.
pub fn delta(input: &[u8]) {
    let Some((zeros, bytes)) = input.split_first() else {
        return;
    };
    let file = memory_file(*zeros, bytes);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Ok(header) = Header::read(&path) {
        let again = Header::parse(&header.to_bytes()).unwrap();
        assert_eq!(again.size, header.size);
        assert_eq!(again.in_use, header.in_use);
    }
    let report = ploop::image::check_image(&path);
    let used = used_bitmap(&path);
    assert!(used.is_ok() || !report.is_sound());
    for bitmap in tracking_bitmaps(&path).into_iter().flatten() {
        let size = bitmap.size.bytes();
        let mut extents = bitmap.extents().take(1000);
        assert!(extents.all(|extent| extent.len > 0 && extent.offset + extent.len <= size));
    }
    if let Ok(disk) = OpenOptions::new().salvage(true).open_image(&path) {
        walk_salvaged(&disk, report.is_sound());
    }
    let options = OpenOptions::new().allow_in_use(true);
    let Ok(disk) = options.open_image(&path) else {
        assert!(!report.is_sound());
        return;
    };
    walk(&disk, report.is_sound());
}

/// A descriptor, whose length is in the first two bytes, and a delta as in [`delta`], which is beside it under two names.
pub fn check(input: &[u8]) {
    let Some((len, rest)) = input.split_first_chunk() else {
        return;
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (xml, delta) = rest.split_at(len);
    let path = write_image(directory(), xml, delta);
    let report = check_image(&path);
    assert!(report.to_string().len() < 1 << 20);
    if let Ok(disk) = OpenOptions::new().allow_in_use(true).open(&path) {
        walk(&disk, report.is_sound());
    }
}

/// Writes the files of an image, and returns the path of the descriptor.
pub fn write_image(dir: &Path, xml: &[u8], delta: &[u8]) -> PathBuf {
    let path = dir.join("DiskDescriptor.xml");
    File::create(&path).unwrap().write_all(xml).unwrap();
    let (zeros, bytes) = delta.split_first().unwrap_or((&0, &[]));
    for name in [
        "root.hds",
        "root.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}",
    ] {
        let file = File::create(dir.join(name)).unwrap();
        fill(&file, *zeros, bytes);
    }
    path
}

/// Reads parts of a disk. If the check found the image sound, all reads must succeed.
fn walk(disk: &Disk, sound: bool) {
    let mut buffer = vec![0; 70_000];
    let size = disk.size().bytes();
    let mut end = 0;
    for extent in disk.extents().take(1000) {
        let Ok(extent) = extent else {
            assert!(!sound);
            break;
        };
        assert!(extent.len > 0 && (extent.offset > end || end == 0));
        end = extent.offset + extent.len;
        assert!(end <= size);
        let read = disk.read_at(&mut buffer, extent.offset);
        assert!(read.is_ok() || !sound);
    }
    for offset in [0, 511, size / 3, size - 1, size, u64::MAX] {
        let read = disk.read_at(&mut buffer, offset);
        assert!(read.is_ok() || !sound);
    }
    let _ = disk.partitions();
}

/// Reads parts of a disk of which nothing may fail.
fn walk_salvaged(disk: &Disk, sound: bool) {
    let lost = disk.lost();
    assert!(lost.is_empty() || !sound);
    let mut buffer = vec![1; 70_000];
    let size = disk.size().bytes();
    let mut end = 0;
    for part in lost.iter().take(100) {
        assert!(part.len > 0 && part.offset >= end);
        end = part.offset + part.len;
        assert!(end <= size);
        let len = buffer.len().min(part.len as usize);
        disk.read_at(&mut buffer[..len], part.offset).unwrap();
        assert!(buffer[..len].iter().all(|byte| *byte == 0));
    }
    for extent in disk.extents().take(100) {
        disk.read_at(&mut buffer, extent.unwrap().offset).unwrap();
    }
}

fn memory_file(zeros: u8, bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("fuzz", flags).unwrap());
    fill(&file, zeros, bytes);
    file
}

fn fill(file: &File, zeros: u8, bytes: &[u8]) {
    file.write_all_at(bytes, 0).unwrap();
    file.set_len(bytes.len() as u64 + (u64::from(zeros) << 15))
        .unwrap();
}

/// A directory in memory, the same for the whole process.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        dir.unwrap().keep()
    })
}
