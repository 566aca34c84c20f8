//! Images laid out byte by byte, as a test wants them.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of this")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ploop::image::{Header, HeaderFlags};
use ploop::{ClusterSize, FormatVersion, Guid, Size};

/// A delta to be written. Each cluster is filled from its seed.
#[derive(Debug, Clone)]
pub struct Delta {
    pub version: FormatVersion,
    pub cluster: u64,
    pub size: u64,
    /// The clusters of the disk that are allocated, in the order in which they lie in the file,
    /// with their seeds.
    pub clusters: Vec<(u32, u8)>,
}

impl Delta {
    pub fn new(version: FormatVersion, cluster: u64, size: u64) -> Delta {
        Delta {
            version,
            cluster,
            size,
            clusters: Vec::new(),
        }
    }

    pub fn header(&self) -> Header {
        let cluster = ClusterSize::from_bytes(self.cluster).unwrap();
        let size = Size::from_bytes(self.size);
        let mut header = Header::new(self.version, cluster, size).unwrap();
        header
            .flags
            .set(HeaderFlags::EMPTY, self.clusters.is_empty());
        header
    }

    /// The table entry that leads to this offset of the file.
    pub fn entry(&self, offset: u64) -> u32 {
        let unit = match self.version {
            FormatVersion::V1 => 512,
            FormatVersion::V2 => self.cluster,
        };
        u32::try_from(offset / unit).unwrap()
    }

    pub fn write(&self, path: &Path) -> File {
        let header = self.header();
        let file = File::options()
            .write(true)
            .read(true)
            .create(true)
            .truncate(true)
            .open(path)
            .unwrap();
        let mut end = header.data_start();
        file.set_len(end).unwrap();
        // As libploop does it; a large table stays a hole.
        if end <= 1 << 20 {
            file.write_all_at(&vec![0; usize::try_from(end).unwrap()], 0)
                .unwrap();
        }
        file.write_all_at(&header.to_bytes(), 0).unwrap();
        for (number, seed) in &self.clusters {
            let at = u64::from(*number) * self.cluster;
            file.write_all_at(&pattern(*seed, at, self.cluster), end)
                .unwrap();
            let entry = self.entry(end).to_le_bytes();
            file.write_all_at(&entry, entry_offset(*number)).unwrap();
            end += self.cluster;
        }
        file
    }
}

pub fn entry_offset(number: u32) -> u64 {
    64 + 4 * u64::from(number)
}

/// The contents of a part of a disk: no two clusters, and no two sectors of one, look the same. The
/// seed 0 stands for zeros.
pub fn pattern(seed: u8, at: u64, len: u64) -> Vec<u8> {
    if seed == 0 {
        return vec![0; usize::try_from(len).unwrap()];
    }
    (at..at + len)
        .map(|at| (at ^ (at >> 9).wrapping_mul(0x9d) ^ (at >> 15)) as u8 ^ seed)
        .collect()
}

/// The contents of the disk of a chain of deltas, the base first. A raw base ends with its file; the last cluster of a
/// delta is always whole.
pub fn contents(chain: &[Delta], raw: bool) -> Vec<u8> {
    let top = chain.last().unwrap();
    let size = usize::try_from(top.size).unwrap();
    let mut contents = Vec::new();
    for (level, delta) in chain.iter().enumerate() {
        let plain = raw && level == 0;
        let end = if plain { delta.size } else { u64::MAX };
        contents.resize(size.max(contents.len()), 0);
        for (number, seed) in &delta.clusters {
            let at = u64::from(*number) * top.cluster;
            if at < top.size.min(end) {
                let len = top.cluster.min(top.size.min(end) - at);
                let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
                contents[range].copy_from_slice(&pattern(*seed, at, len));
            }
        }
    }
    contents
}

/// A descriptor for a chain of files, the base first: their GUIDs are 1, 2, …, and the top's.
pub fn describe(dir: &Path, files: &[&str], size: u64, cluster: u64, raw: bool) -> PathBuf {
    let kind = if raw { "Plain" } else { "Compressed" };
    let mut images = String::new();
    let mut shots = String::new();
    let mut parent = Guid::NONE;
    for (level, file) in files.iter().enumerate() {
        let guid = if level + 1 == files.len() {
            Guid::TOP
        } else {
            snapshot(level)
        };
        images +=
            &format!("<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>");
        shots += &format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>");
        parent = guid;
    }
    let path = dir.join("DiskDescriptor.xml");
    let xml = format!(
        "<Parallels_disk_image><Disk_Parameters><Disk_size>{}</Disk_size>\
         <Cylinders>1</Cylinders><Heads>16</Heads><Sectors>1</Sectors></Disk_Parameters>\
         <StorageData><Storage><Blocksize>{}</Blocksize>{images}</Storage></StorageData>\
         <Snapshots><TopGUID>{}</TopGUID>{shots}</Snapshots></Parallels_disk_image>",
        size / 512,
        cluster / 512,
        Guid::TOP
    );
    std::fs::write(&path, xml).unwrap();
    path
}

/// The GUID [`describe`] gives to a level below the top.
pub fn snapshot(level: usize) -> Guid {
    format!("{{00000000-0000-0000-0000-{:012x}}}", level + 1)
        .parse()
        .unwrap()
}

/// A delta laid out as the first versions of Parallels did it: clusters of any number of sectors, and data from any sector
/// on.
#[derive(Debug, Clone)]
pub struct OldDelta {
    pub version: FormatVersion,
    pub cluster_sectors: u32,
    pub sectors: u32,
    /// What the header says of the first sector of the data; 0 in many of version 1.
    pub said_first: u32,
    /// The clusters of the disk that are allocated, in the order in which they lie in the file, with their seeds.
    pub clusters: Vec<(u32, u8)>,
}

impl OldDelta {
    pub fn cluster(&self) -> u64 {
        u64::from(self.cluster_sectors) * 512
    }

    pub fn entries(&self) -> u32 {
        self.sectors.div_ceil(self.cluster_sectors)
    }

    /// Where the data begins.
    pub fn first(&self) -> u64 {
        match self.said_first {
            0 => entry_offset(self.entries()).next_multiple_of(512),
            said => u64::from(said) * 512,
        }
    }

    pub fn write(&self, path: &Path) -> File {
        let signature = match self.version {
            FormatVersion::V1 => b"WithoutFreeSpace",
            FormatVersion::V2 => b"WithouFreSpacExt",
        };
        let mut bytes = signature.to_vec();
        let numbers = [
            2,
            16,
            40,
            self.cluster_sectors,
            self.entries(),
            self.sectors,
        ];
        for number in numbers.into_iter().chain([0, 0, self.said_first, 0, 0, 0]) {
            bytes.extend(number.to_le_bytes());
        }
        let mut at = self.first();
        bytes.resize(usize::try_from(at).unwrap(), 0);
        for (number, seed) in &self.clusters {
            let unit = match self.version {
                FormatVersion::V1 => 512,
                FormatVersion::V2 => self.cluster(),
            };
            let entry = u32::try_from(at / unit).unwrap();
            let place = usize::try_from(entry_offset(*number)).unwrap();
            bytes[place..place + 4].copy_from_slice(&entry.to_le_bytes());
            let start = u64::from(*number) * self.cluster();
            bytes.extend(pattern(*seed, start, self.cluster()));
            at += self.cluster();
        }
        std::fs::write(path, bytes).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// The contents of the disk.
    pub fn contents(&self) -> Vec<u8> {
        let mut contents = vec![0; self.sectors as usize * 512];
        for (number, seed) in &self.clusters {
            let start = u64::from(*number) * self.cluster();
            let len = self.cluster().min(contents.len() as u64 - start);
            let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
            contents[range].copy_from_slice(&pattern(*seed, start, len));
        }
        contents
    }
}
