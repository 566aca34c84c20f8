//! Partition tables, whole, damaged, and of other disks.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use gpt::disk::LogicalBlockSize;
use ploop::image::{Disk, PartitionKind};
use ploop::{ErrorKind, Size};

use crate::written_image::describe;

const M: u64 = 1 << 20;

/// A plain disk with the given sectors.
fn plain(dir: &Path, sectors: &[(u64, Vec<u8>)]) -> Disk {
    let file = fs::File::create(dir.join("plain")).unwrap();
    file.set_len(64 * M).unwrap();
    for (at, bytes) in sectors {
        file.write_all_at(bytes, at * 512).unwrap();
    }
    Disk::open(describe(dir, &["plain"], 64 * M, M, true)).unwrap()
}

/// A boot record with entries of (type, first sector, sectors).
fn boot_record(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (entry, (kind, first, sectors)) in sector[446..].chunks_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn boot_records() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(plain(dir.path(), &[]).partitions().unwrap(), []);

    let first = boot_record(&[(0x83, 2048, 1000), (0, 0, 0), (0x0f, 10_000, 50_000)]);
    let disk = plain(
        dir.path(),
        &[
            (0, first.clone()),
            (10_000, boot_record(&[(0x83, 63, 100), (5, 200, 300)])),
            (10_200, boot_record(&[(0x82, 1, 200), (0, 0, 0)])),
        ],
    );
    let found: Vec<_> = disk
        .partitions()
        .unwrap()
        .into_iter()
        .map(|partition| {
            (
                partition.number,
                partition.offset / 512,
                partition.size.sectors(),
            )
        })
        .collect();
    assert_eq!(found, [(1, 2048, 1000), (5, 10_063, 100), (6, 10_201, 200)]);

    // A chain that bites its tail ends.
    let disk = plain(
        dir.path(),
        &[
            (0, first),
            (10_000, boot_record(&[(0x83, 63, 100), (5, 200, 300)])),
            (10_200, boot_record(&[(0x82, 1, 200), (5, 200, 300)])),
        ],
    );
    assert_eq!(disk.partitions().unwrap().len(), 3);
    let faults = disk.partition_table().unwrap().faults;
    assert_eq!(faults, ["the extended boot records lead back"]);
}

/// What lies on the disk is listed, and the rest is said.
#[test]
fn partitions_that_end_behind_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let record = boot_record(&[
        (0x83, 2048, 1000),
        (0x83, 65_536, 131_072),
        (0x83, 131_072, 1),
        (0x0f, u32::MAX, u32::MAX),
    ]);
    let table = plain(dir.path(), &[(0, record)]).partition_table().unwrap();
    let found: Vec<_> = table
        .partitions
        .iter()
        .map(|it| (it.number, it.offset / 512, it.size.sectors()))
        .collect();
    assert_eq!(found, [(1, 2048, 1000), (2, 65_536, 65_536)]);
    assert_eq!(
        table.faults,
        [
            "partition 2 ends at 96 MiB, and the disk has 64 MiB",
            "partition 3 begins at 64 MiB, and the disk has 64 MiB",
            "there is no extended boot record at sector 4294967295",
        ]
    );
    // With nothing to list, the fault is the error.
    let long = boot_record(&[(0x83, u32::MAX, u32::MAX)]);
    let error = plain(dir.path(), &[(0, long)]).partitions().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.message().starts_with("partition 1 begins at 2"),
        "{error}"
    );
}

/// A table with two partitions of 8 MiB, in sectors of `sector` bytes.
fn lay_out(path: &Path, sector: LogicalBlockSize) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .create_from_device(&file, None)
        .unwrap();
    for name in ["boot", "root"] {
        let kind = gpt::partition_types::LINUX_FS;
        table.add_partition(name, 8 * M, kind, 0, None).unwrap();
    }
    table.write().unwrap();
}

#[test]
fn guid_partition_tables() {
    for (sector, block) in [
        (512, LogicalBlockSize::Lb512),
        (4096, LogicalBlockSize::Lb4096),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain");
        let protective = boot_record(&[(0xee, 1, 131_071)]);
        let disk = plain(dir.path(), &[(0, protective)]);
        lay_out(&path, block);
        let table = disk.partition_table().unwrap();
        assert_eq!(u64::from(table.sector_size), sector);
        assert!(table.faults.is_empty(), "{table:?}");
        let partitions = table.partitions;
        assert_eq!(disk.partitions().unwrap(), partitions);
        assert_eq!(partitions.len(), 2);
        assert_eq!(partitions[1].number, 2);
        assert_eq!(partitions[1].offset, partitions[0].offset + 8 * M);
        assert_eq!(partitions[1].size, Size::from_mib(8));
        let PartitionKind::Gpt { name, .. } = &partitions[1].kind else {
            panic!("{partitions:?}");
        };
        assert_eq!(name, "root");

        // The first header is damaged, then the table, then the backup, too.
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let damage = |at: u64| {
            let mut old = [0; 8];
            file.read_exact_at(&mut old, at).unwrap();
            file.write_all_at(&[0xff; 8], at).unwrap();
            old
        };
        let header = sector + 40;
        let backup = 64 * M - sector + 40;
        let entries = 2 * sector + 60;
        for (at, fault) in [
            (header, "the header of the GUID partition table is damaged"),
            (
                entries,
                "the GUID partition table is damaged: partition table CRC mismatch",
            ),
        ] {
            let old = damage(at);
            let table = disk.partition_table().unwrap();
            assert_eq!(table.partitions, partitions, "{sector}");
            assert_eq!(table.faults, [fault]);
            file.write_all_at(&old, at).unwrap();
        }
        damage(entries);
        damage(backup);
        let error = disk.partitions().unwrap_err();
        assert_eq!(error.operation(), "read the partition table");
        assert_eq!(
            error.message(),
            "the GUID partition table is damaged: partition table CRC mismatch"
        );
        damage(header);
        let error = disk.partitions().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(
            error.message(),
            "both headers of the GUID partition table are damaged"
        );
    }
}

/// As when a file was cut short: the second partition is not whole, and the backup is gone.
#[test]
fn a_guid_partition_table_of_a_longer_disk() {
    let dir = tempfile::tempdir().unwrap();
    let protective = boot_record(&[(0xee, 1, 131_071)]);
    let disk = plain(dir.path(), &[(0, protective)]);
    let path = dir.path().join("plain");
    lay_out(&path, LogicalBlockSize::Lb512);
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(12 * M)
        .unwrap();
    drop(disk);
    let disk = Disk::open(describe(dir.path(), &["plain"], 12 * M, M, true)).unwrap();
    let table = disk.partition_table().unwrap();
    let sizes: Vec<_> = table.partitions.iter().map(|it| it.size).collect();
    let end = table.partitions[1].offset + 8 * M;
    let rest = 12 * M - table.partitions[1].offset;
    assert_eq!(sizes, [Size::from_mib(8), Size::from_bytes(rest)]);
    let end = Size::from_bytes(end);
    let fault = format!("partition 2 ends at {end}, and the disk has 12 MiB");
    assert_eq!(table.faults, [fault]);
}
