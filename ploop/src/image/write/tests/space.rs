//! Space: preallocation, discards, limits of a file's length, holes, and a full file system.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::image::check_image;

/// Discarded clusters at the end of the file are cut off when it is closed.
#[test]
fn discarded_space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
    let empty = std::fs::read(&path).unwrap();
    let mut writer = open(std::slice::from_ref(&path), false);
    writer.write_at(&vec![1; 10 * CLUSTER as usize], 0).unwrap();
    writer.flush().unwrap();
    let given = writer.discard(CLUSTER / 2, 19 * CLUSTER).unwrap();
    assert_eq!(given, 9 * CLUSTER);
    writer.write_at(&[2; 10], 15 * CLUSTER).unwrap();
    assert_eq!(writer.discard(0, 20 * CLUSTER).unwrap(), 2 * CLUSTER);
    writer.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == empty);
}

/// A file on a file system that is full, or cannot preallocate.
struct LimitedFile {
    file: File,
    /// The greatest length for which there is space.
    room: Arc<AtomicU64>,
    supported: bool,
}

impl Storage for LimitedFile {
    fn len(&self) -> io::Result<u64> {
        Storage::len(&self.file)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Storage::set_len(&self.file, len)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write(data, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(len > 0 && offset % CLUSTER == 0);
        if !self.supported {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if offset + len > self.room.load(Ordering::Relaxed) {
            // As ext4, which keeps the part that it has allocated.
            self.file.allocate(offset, CLUSTER / 2)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.allocate(offset, len)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        storage::write_zeros(self, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> &File {
        &self.file
    }
}

/// A writer to a new file of 20 clusters on a file system with room for a file of `room` clusters.
fn writer_on_limited_file(path: &Path, room: u64, supported: bool) -> (DiskWriter, Arc<AtomicU64>) {
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(path, FormatVersion::V2, cluster(), size).unwrap();
    let room = Arc::new(AtomicU64::new(room * CLUSTER));
    let host = LimitedFile {
        file: WritableDelta::open_file(path).unwrap(),
        room: room.clone(),
        supported,
    };
    let mut delta = WritableDelta::from_storage(path, Box::new(host), false).unwrap();
    delta.mark(true).unwrap();
    let top = Top::Delta(Box::new(delta));
    let writer = DiskWriter::from_levels(Vec::new(), top, cluster()).unwrap();
    (writer, room)
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len() / CLUSTER
}

#[test]
fn a_full_file_system_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let (mut writer, room) = writer_on_limited_file(&path, 7, true);
    writer.set_preallocation(4 * CLUSTER);
    // The table takes one cluster; then two are preallocated together, then one at a time, then none.
    for (at, expected) in [(0, 3), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)] {
        writer
            .write_at(&[at.max(1) as u8; 100], at * CLUSTER + 50)
            .unwrap();
        assert_eq!(len(&path), expected, "{at}");
    }
    for _ in 0..2 {
        let error = writer.write_at(&[9; 100], 6 * CLUSTER).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
    // There is no room for the clusters that the longer table would displace.
    let large = Size::from_bytes(9000 * CLUSTER);
    assert_eq!(writer.grow(large).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(writer.size(), Size::from_bytes(20 * CLUSTER));
    // Clusters that are there can be written, and freed ones are used again.
    writer.write_at(&[3; 100], 3 * CLUSTER).unwrap();
    assert_eq!(writer.discard(0, CLUSTER).unwrap(), CLUSTER);
    writer.flush().unwrap();
    writer.write_at(&[9; 100], 6 * CLUSTER + 7).unwrap();
    let mut now = vec![1; CLUSTER as usize];
    writer.read_at(&mut now, 6 * CLUSTER).unwrap();
    assert!(now[7..107] == [9; 100] && now.iter().filter(|byte| **byte != 0).count() == 100);
    room.store(u64::MAX, Ordering::Relaxed);
    writer.write_at(&[7; 100], 7 * CLUSTER).unwrap();
    writer.grow(large).unwrap();
    writer.close().unwrap();
    // All of it is there, and nothing else.
    let report = check_image(&path);
    assert!(report.findings.is_empty(), "{report}");
    let disk = Disk::open_image(&path).unwrap();
    for at in 1..8 {
        let mut byte = [0];
        disk.read_at(&mut byte, at * CLUSTER + 60).unwrap();
        let expected = [0, 1, 2, 3, 4, 5, 9, 7][at as usize];
        assert_eq!(byte, [expected], "{at}");
    }
}

#[test]
fn nothing_is_preallocated_where_that_is_impossible() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let (mut writer, _) = writer_on_limited_file(&path, 0, false);
    writer.set_preallocation(4 * CLUSTER);
    writer.write_at(&[1; 100], 50).unwrap();
    writer.write_at(&[2; 100], CLUSTER).unwrap();
    assert_eq!((len(&path), writer.allocation_head()), (3, 3));
    writer.close().unwrap();
    assert!(check_image(&path).findings.is_empty());
}

/// The end of a file that is not a whole cluster does not get into a new cluster.
#[test]
fn a_ragged_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    for ahead in [0, 3 * CLUSTER] {
        let path = dir.path().join(format!("delta{ahead}"));
        let size = Size::from_bytes(20 * CLUSTER);
        create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
        let file = WritableDelta::open_file(&path).unwrap();
        file.write_all_at(&[5; 1000], CLUSTER).unwrap();
        let mut writer = open(std::slice::from_ref(&path), false);
        writer.set_preallocation(ahead);
        writer.write_at(&[1; 10], 0).unwrap();
        writer.close().unwrap();
        let mut expected = vec![0; size.bytes() as usize];
        expected[..10].fill(1);
        assert!(contents(&Disk::open_image(&path).unwrap()) == expected);
        assert!(check_image(&path).findings.is_empty());
    }
}

#[test]
fn a_file_grows_to_its_largest_length_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&path), false);
    for ahead in [0, 10 * CLUSTER] {
        writer.set_preallocation(ahead);
        writer.set_max_len(Some(3 * CLUSTER + 100));
        let error = writer.write_at(&[1; 4 * CLUSTER as usize], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(writer.allocation_head(), 3);
        writer.flush().unwrap();
        assert_eq!(len(&path), 3);
        writer.release(&[0, 1]).unwrap();
        assert_eq!(writer.compact().unwrap(), 2);
    }
    writer.set_max_len(None);
    writer.write_at(&[1; 10 * CLUSTER as usize], 0).unwrap();
    assert_eq!((writer.allocation_head(), len(&path)), (11, 11));
    writer.close().unwrap();
}

/// Of a preallocated cluster, only the part with data is written: the rest is zero.
#[test]
fn preallocated_clusters_are_not_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta");
    let large = ClusterSize::DEFAULT;
    create_delta(&path, FormatVersion::V2, large, Size::from_gib(1)).unwrap();
    let mut writer = DiskWriter::open_files(&[&path], large, ChainOptions::new()).unwrap();
    writer.set_preallocation(64 << 20);
    for at in 0..60 {
        writer
            .write_at(&[1; 4096], at * large.bytes() + 8192)
            .unwrap();
    }
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 81 * large.bytes());
    writer.trim().unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 61 * large.bytes());
    // No holes.
    assert!(metadata.blocks() * 512 >= metadata.len());
    writer.close().unwrap();
    assert!(check_image(&path).findings.is_empty());
}

/// A copy becomes equal if only what was tracked is copied again.
#[test]
fn tracked_clusters_are_all_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    for (version, ahead) in [
        (FormatVersion::V1, 0),
        (FormatVersion::V2, 5 * CLUSTER),
        (FormatVersion::V2, 40 * CLUSTER),
    ] {
        let (base, path) = (dir.path().join("base"), dir.path().join("delta"));
        let size = Size::from_bytes(40 * CLUSTER);
        create_delta(&base, version, cluster(), size).unwrap();
        let mut writer = open(std::slice::from_ref(&base), false);
        writer.write_at(&[1; 9 * CLUSTER as usize], 100).unwrap();
        writer.set_preallocation(ahead);
        writer.snapshot(&path).unwrap();
        writer.write_at(&[1; 3 * CLUSTER as usize], 100).unwrap();
        assert!(writer.take_tracked().is_empty());
        writer.flush().unwrap();
        writer.track(true);
        let mut copy = std::fs::read(&path).unwrap();
        let mut random = Rng::with_seed(ahead);
        for round in 1..60 {
            for _ in 0..1 + random.u64(..5) {
                let at = random.u64(..39 * CLUSTER);
                let len = 1 + random.u64(..CLUSTER);
                let first = random.u32(..38);
                match random.u64(..14) {
                    0 => drop(writer.discard(at, CLUSTER).unwrap()),
                    1 => {
                        writer.write_zeroes(at, len).unwrap();
                        let whole = u64::from(first) * CLUSTER;
                        writer.write_zeroes(whole, 2 * CLUSTER).unwrap();
                    }
                    2 => writer.release(&[first, first + 1]).unwrap(),
                    3 => drop(writer.compact().unwrap()),
                    4 => writer.trim().unwrap(),
                    5 if round % 15 == 0 => {
                        let more = writer.size().bytes() + 3000 * CLUSTER;
                        writer.grow(Size::from_bytes(more)).unwrap();
                    }
                    _ => writer
                        .write_at(&vec![round as u8; len as usize], at)
                        .unwrap(),
                }
            }
            writer.flush().unwrap();
            let now = std::fs::read(&path).unwrap();
            // Preallocated space reads as zero, and need not be copied.
            let end = writer.allocation_head() as usize * CLUSTER as usize;
            for range in writer.take_tracked() {
                assert!(range.start % CLUSTER == 0 && range.end % CLUSTER == 0);
                let range = range.start as usize..(range.end as usize).min(end);
                if !range.is_empty() {
                    assert!(copy.len() >= range.start, "what is between is missing");
                    copy.resize(copy.len().max(range.end), 0xee);
                    copy[range.clone()].copy_from_slice(&now[range]);
                }
            }
            copy.truncate(end);
            assert!(copy == now[..end], "round {round}");
            assert!(now[end..].iter().all(|byte| *byte == 0));
        }
        writer.close().unwrap();
        for path in [base, path] {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// A longer table also displaces free clusters.
#[test]
fn free_clusters_are_not_in_the_table() {
    let dir = tempfile::tempdir().unwrap();
    for (ahead, given) in [(0, 0..1), (0, 1..3), (0, 0..4), (9 * CLUSTER, 0..2)] {
        let path = dir.path().join("delta");
        let size = Size::from_bytes(20 * CLUSTER);
        create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
        let mut writer = open(std::slice::from_ref(&path), false);
        writer.set_preallocation(ahead);
        writer.write_at(&[1; 4 * CLUSTER as usize], 0).unwrap();
        writer.release(&given.clone().collect::<Vec<_>>()).unwrap();
        writer.grow(Size::from_bytes(20_000 * CLUSTER)).unwrap();
        writer
            .write_at(&[2; 4 * CLUSTER as usize], 9000 * CLUSTER)
            .unwrap();
        for number in 0..4 {
            let mut now = vec![0; CLUSTER as usize];
            writer
                .read_at(&mut now, u64::from(number) * CLUSTER)
                .unwrap();
            let expected = u8::from(!given.contains(&number));
            assert!(now.iter().all(|byte| *byte == expected));
            let slot = writer.slot(9000 + number).unwrap();
            assert!(slot.is_some_and(|slot| slot >= 3));
        }
        writer.close().unwrap();
        let report = check_image(&path);
        assert!(report.is_sound(), "{report}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn clusters_are_where_the_writer_says() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&base, FormatVersion::V1, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&base), false);
    writer.write_at(&[1; 2 * CLUSTER as usize], 0).unwrap();
    writer.snapshot(&top).unwrap();
    writer.set_preallocation(8 * CLUSTER);
    for number in [5, 1, 7] {
        writer
            .write_at(&[number as u8; 10], number * CLUSTER)
            .unwrap();
    }
    assert_eq!((writer.levels(), writer.allocation_head()), (2, 4));
    let slots = [1, 5, 7, 0, 20, u32::MAX].map(|number| writer.slot(number).unwrap());
    assert_eq!(slots, [Some(2), Some(1), Some(3), None, None, None]);
    assert!(writer.lower_has(0).unwrap() && !writer.lower_has(5).unwrap());
    assert!(writer.top_has(5).unwrap() && !writer.top_has(0).unwrap());
    writer.flush().unwrap();
    let mut bytes = [0; 12];
    let file = File::open(&top).unwrap();
    file.read_exact_at(&mut bytes, 2 * CLUSTER).unwrap();
    // With the rest from below.
    assert!(bytes == [1; 12]);
    // The cluster in the middle is freed, and the last one moves to its slot.
    writer.release(&[1, 0]).unwrap();
    assert_eq!(writer.compact().unwrap(), 1);
    assert_eq!(writer.slot(7).unwrap(), Some(2));
    assert_eq!(len(&top), 3);
    // Zeros hide what is below, and drop what is not.
    writer.write_zeroes(0, 20 * CLUSTER).unwrap();
    let slots = [0, 1, 5, 7].map(|number| writer.top_has(number).unwrap());
    assert_eq!(slots, [true, true, false, false]);
    writer.close().unwrap();
    let files = [base, top].map(|path| DeltaFile::new(File::open(&path).unwrap(), path));
    let disk = Disk::from_files(files.into(), cluster(), ChainOptions::new()).unwrap();
    assert!(contents(&disk).iter().all(|byte| *byte == 0));
}

/// libploop takes unwritten space for damage, unless it is whole clusters. Once everything is synced, such space shows
/// as holes, if the file system reports them.
#[test]
fn no_cluster_is_left_half_written() {
    use rustix::fs::{SeekFrom, seek};

    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("delta");
    let size = Size::from_bytes(64 * CLUSTER);
    create_delta(&path, FormatVersion::V2, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&path), false);
    writer.set_preallocation(8 * CLUSTER);
    let mut model = vec![0; size.bytes() as usize];
    let mut random = Rng::with_seed(5);
    for round in 0..400u32 {
        let at = random.u64(..size.bytes() - 9000);
        let data = vec![(round % 251) as u8 + 1; 1 + random.usize(..9000)];
        writer.write_at(&data, at).unwrap();
        model[at as usize..][..data.len()].copy_from_slice(&data);
        let (from, len) = (random.u64(..size.bytes() - 5000), random.u64(..5000));
        writer.write_zeroes(from, len).unwrap();
        model[from as usize..][..len as usize].fill(0);
        if round % 40 == 7 {
            let (first, count) = (random.u64(..56), 1 + random.u64(..8));
            writer
                .write_zeroes(first * CLUSTER, count * CLUSTER)
                .unwrap();
            model[(first * CLUSTER) as usize..][..(count * CLUSTER) as usize].fill(0);
        }
        if round % 30 == 29 {
            writer.flush().unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            let mut at = 0;
            while at < len {
                let Ok(hole) = seek(&file, SeekFrom::Hole(at)) else {
                    // The kernel does not tell.
                    break;
                };
                let hole = hole.min(len);
                let data = seek(&file, SeekFrom::Data(hole)).unwrap_or(len);
                assert!(
                    hole % CLUSTER == 0 && data % CLUSTER == 0,
                    "{hole}..{data} was never written to"
                );
                at = data;
            }
        }
        let mut all = vec![0; model.len()];
        writer.read_at(&mut all, 0).unwrap();
        assert!(all == model, "after {round}");
    }
    writer.close().unwrap();
    assert!(contents(&Disk::open_image(&path).unwrap()) == model);
}

/// As the driver: when nothing is left, about as much as the file is long, and then as much again cluster by cluster.
#[test]
fn the_file_grows_ahead_in_proportion() {
    let dir = tempfile::tempdir().unwrap();
    for (limit, expected) in [
        (
            u64::MAX,
            [1, 3, 3, 4, 9, 9, 9, 9, 9, 10, 11, 12, 13, 27].as_slice(),
        ),
        (3 * CLUSTER, &[1, 3, 3, 4, 7, 7, 7, 8, 9, 12]),
        (0, &[1, 2, 3, 4]),
    ] {
        let path = dir.path().join(limit.to_string());
        create_delta(
            &path,
            FormatVersion::V2,
            cluster(),
            Size::from_bytes(20 * CLUSTER),
        )
        .unwrap();
        let mut writer = open(std::slice::from_ref(&path), false);
        writer.set_preallocation(limit);
        for (at, expected) in (0..).zip(expected) {
            assert_eq!(len(&path), *expected, "{limit} {at}");
            writer.write_at(&[1], at * CLUSTER).unwrap();
        }
        writer.close().unwrap();
        assert_eq!(len(&path), expected.len() as u64 + 1);
    }
}

/// A cluster that no delta has reads as zero already.
#[test]
fn zeros_for_nothing_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&base, FormatVersion::V2, cluster(), size).unwrap();
    let mut writer = open(std::slice::from_ref(&base), false);
    writer.write_at(&[1; CLUSTER as usize], 0).unwrap();
    writer.snapshot(&top).unwrap();
    writer.write_at(&[0; 3 * CLUSTER as usize], 0).unwrap();
    assert_eq!(writer.allocation_head(), 2);
    let slots = [0, 1, 2].map(|number| writer.slot(number).unwrap());
    assert_eq!(slots, [Some(1), None, None]);
    writer.close().unwrap();
}

/// A cluster in a hole is damage, and does not read as zero.
#[test]
fn holes_are_no_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["base", "top"].map(|name| dir.path().join(name));
    let size = Size::from_bytes(20 * CLUSTER);
    create_delta(&paths[0], FormatVersion::V2, cluster(), size).unwrap();
    let mut writer = open(&paths[..1], false);
    writer.write_at(&[1; 4 * CLUSTER as usize], 0).unwrap();
    writer.snapshot(&paths[1]).unwrap();
    writer.write_at(&[2; 2 * CLUSTER as usize], 0).unwrap();
    writer.close().unwrap();
    let files = paths.iter().map(|path| {
        let hole = 2 * CLUSTER..2 * CLUSTER + 4096;
        let file = DeltaFile::new(File::open(path).unwrap(), path);
        file.with_holes(vec![hole])
    });
    let mut writer =
        DiskWriter::from_files(files.collect(), cluster(), ChainOptions::new()).unwrap();
    let mut merged = false;
    loop {
        let mut byte = [0];
        for (at, expected) in [(0, Some(2)), (1, None), (2, Some(1)), (3, Some(1))] {
            let read = writer.read_at(&mut byte, at * CLUSTER).map(|_| byte[0]);
            assert_eq!(read.as_ref().ok(), expected.as_ref(), "{at} {merged}");
            if let Err(error) = read {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
        let error = writer.write_at(&[3], CLUSTER).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        if merged {
            break;
        }
        assert_eq!(writer.merge_down().unwrap_err().kind(), ErrorKind::Corrupt);
        merged = true;
    }
}
