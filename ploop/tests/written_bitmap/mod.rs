//! Format extensions with dirty bitmaps, laid out byte by byte behind the data of a delta.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of this")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A dirty bitmap.
#[derive(Debug, Clone)]
pub struct Bitmap {
    pub id: [u8; 16],
    /// The size of the disk.
    pub sectors: u64,
    /// Sectors per bit.
    pub granularity: u32,
    pub bits: Vec<bool>,
}

/// Offsets in the first cluster of an extension with one bitmap.
pub const CHECKSUM: u64 = 8;
pub const SECTORS: u64 = 48;
pub const GRANULARITY: u64 = 72;
pub const TABLE: u64 = 80;

/// Offsets in the header of a delta.
pub const MARK: u64 = 44;
pub const EXTENSION: u64 = 56;
pub const CLOSED: u32 = 0x312e_3276;

/// Appends an extension with these bitmaps, and returns its offset. Its clusters of bits come first, as those of
/// libploop do.
pub fn append(delta: &Path, cluster: u64, bitmaps: &[Bitmap]) -> u64 {
    let file = File::options().read(true).write(true).open(delta).unwrap();
    let mut end = file.metadata().unwrap().len();
    assert_eq!(end % cluster, 0);
    let mut features = Vec::new();
    for bitmap in bitmaps {
        let mut table: Vec<u64> = Vec::new();
        for part in bitmap.bits.chunks(8 * cluster as usize) {
            table.push(if part.iter().all(|bit| !bit) {
                0
            } else if part.iter().all(|bit| *bit) {
                1
            } else {
                let mut bytes = vec![0u8; cluster as usize];
                for (at, bit) in part.iter().enumerate() {
                    bytes[at / 8] |= u8::from(*bit) << (at % 8);
                }
                file.write_all_at(&bytes, end).unwrap();
                end += cluster;
                (end - cluster) / 512
            });
        }
        features.extend(0x2038_5fae_252c_b34au64.to_le_bytes());
        features.extend(0u64.to_le_bytes());
        features.extend((32 + 8 * table.len() as u32).to_le_bytes());
        features.extend(0u32.to_le_bytes());
        features.extend(bitmap.sectors.to_le_bytes());
        features.extend(bitmap.id);
        features.extend(bitmap.granularity.to_le_bytes());
        features.extend((table.len() as u32).to_le_bytes());
        features.extend(table.iter().flat_map(|place| place.to_le_bytes()));
    }
    features.resize(cluster as usize - 24, 0);
    file.write_all_at(&0xab23_4cef_23dc_ea87u64.to_le_bytes(), end)
        .unwrap();
    file.write_all_at(&features, end + 24).unwrap();
    sign(delta, cluster, end);
    file.write_all_at(&(end / 512).to_le_bytes(), EXTENSION)
        .unwrap();
    file.write_all_at(&CLOSED.to_le_bytes(), MARK).unwrap();
    end
}

/// Writes the checksum of the extension at `at` anew.
pub fn sign(delta: &Path, cluster: u64, at: u64) {
    let file = File::options().read(true).write(true).open(delta).unwrap();
    let mut features = vec![0; cluster as usize - 24];
    file.read_exact_at(&mut features, at + 24).unwrap();
    file.write_all_at(&md5(&features), at + CHECKSUM).unwrap();
}

/// By md5sum, of coreutils.
fn md5(bytes: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let output = Command::new("md5sum")
        .stdin(Stdio::from(file))
        .output()
        .expect("this test needs md5sum (coreutils)");
    let hex = String::from_utf8(output.stdout).unwrap();
    (0..32)
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}
