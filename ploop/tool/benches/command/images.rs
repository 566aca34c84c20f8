//! The images that the tables are about.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ploop::image::{Header, HeaderFlags};
use ploop::{ClusterSize, FormatVersion, Size};
use rustix::fs::{Advice, fadvise};

pub(crate) const M: u64 = 1 << 20;

/// A delta in clusters of 1 MiB, with noise in those that are chosen.
pub(crate) fn delta(path: &Path, size: Size, clusters: impl IntoIterator<Item = u32>) {
    let mut header = Header::new(FormatVersion::V2, ClusterSize::DEFAULT, size).unwrap();
    header.flags = HeaderFlags::empty();
    let file = File::create_new(path).unwrap();
    file.set_len(header.data_start()).unwrap();
    file.write_all_at(&header.to_bytes(), 0).unwrap();
    let first = u32::try_from(header.data_start() / M).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = vec![0; M as usize];
    for (slot, cluster) in (first..).zip(clusters) {
        random.fill(&mut noise);
        file.write_all_at(&noise, u64::from(slot) * M).unwrap();
        let entry = 64 + 4 * u64::from(cluster);
        file.write_all_at(&slot.to_le_bytes(), entry).unwrap();
    }
    file.sync_all().unwrap();
}

/// Whether the kernel has the contents of a file in memory when a turn begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    Warm,
    Cold,
}

impl Cache {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cache::Warm => "cached",
            Cache::Cold => "uncached",
        }
    }

    /// Brings a file to the disk and into this state.
    pub(crate) fn prepare(self, path: &Path) {
        let mut file = File::open(path).unwrap();
        match self {
            Cache::Warm => {
                std::io::copy(&mut file, &mut std::io::sink()).unwrap();
            }
            Cache::Cold => {
                file.sync_all().unwrap();
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            }
        }
    }
}
