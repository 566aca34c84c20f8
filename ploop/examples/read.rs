//! Shows the partitions of an image and the label of each: reads the disk as of now, without libploop and the driver.
//!
//! ```text
//! cargo run --example read -- /vz/private/101/root.hdd/DiskDescriptor.xml
//! ```

use std::error::Error;

use ploop::image::{Disk, PartitionKind};

/// Where the superblock of ext2, ext3 and ext4 is, and where the label and the signature are in it.
const SUPERBLOCK: u64 = 1024;
const LABEL: std::ops::Range<usize> = 120..136;
const SIGNATURE: std::ops::Range<usize> = 56..58;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("name a descriptor")?;
    let disk = Disk::open(path)?;
    for partition in disk.partitions()? {
        let mut superblock = [0; 1024];
        disk.read_at(&mut superblock, partition.offset + SUPERBLOCK)?;
        let file_system = match superblock[SIGNATURE] {
            [0x53, 0xef] => {
                let label = String::from_utf8_lossy(&superblock[LABEL]).into_owned();
                format!("ext, label {:?}", label.trim_end_matches('\0'))
            }
            _ => "another file system, or none".to_owned(),
        };
        let table = match partition.kind {
            PartitionKind::Gpt { .. } => "GPT",
            _ => "MBR",
        };
        println!(
            "{} ({table}): {}, {file_system}",
            partition.number, partition.size
        );
    }
    Ok(())
}
