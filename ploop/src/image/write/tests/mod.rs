//! Tests of the image writer: against a model, and killed at every point.

mod crash;
mod files;
mod merge;
mod model;
pub(in crate::image) mod recorder;
mod space;

use std::path::PathBuf;

use fastrand::Rng;

use super::*;
use crate::Guid;
use crate::image::Disk;

const CLUSTER: u64 = 32 << 10;

fn cluster() -> ClusterSize {
    ClusterSize::from_bytes(CLUSTER).unwrap()
}

/// The whole disk through the reader.
fn contents(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size().bytes()).unwrap()];
    disk.read_at(&mut all, 0).unwrap();
    all
}

fn open(files: &[PathBuf], raw: bool) -> DiskWriter {
    DiskWriter::open_files(files, cluster(), ChainOptions::new().raw_base(raw)).unwrap()
}

fn descriptor(dir: &Path, files: &[PathBuf], size: Size, raw: bool) -> PathBuf {
    let kind = if raw { "Plain" } else { "Compressed" };
    let (mut images, mut shots, mut parent) = (String::new(), String::new(), Guid::NONE);
    for (level, file) in files.iter().enumerate() {
        let guid = if level + 1 == files.len() {
            Guid::TOP
        } else {
            Guid::generate()
        };
        let file = file.display();
        images +=
            &format!("<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>");
        shots += &format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>");
        parent = guid;
    }
    let path = dir.join("DiskDescriptor.xml");
    let xml = format!(
        "<d><Disk_Parameters><Disk_size>{}</Disk_size><Cylinders>1</Cylinders><Heads>1</Heads>\
         </Disk_Parameters><StorageData><Storage><Blocksize>64</Blocksize>{images}</Storage>\
         </StorageData><Snapshots>{shots}</Snapshots></d>",
        size.sectors()
    );
    std::fs::write(&path, xml).unwrap();
    path
}
