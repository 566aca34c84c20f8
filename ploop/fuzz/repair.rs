//! The fuzz target `repair`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ploop::image::{OfflineImage, RepairChoice, RepairOptions, check};

use super::targets::{directory, write_image};

/// A repair by all choices, and what takes it back. The input is what the descriptor is like (1), the size of the disk in
/// clusters of 32 KiB (2), and a delta as in the target `delta`. The descriptor is made of that: a repair writes to the
/// files that it names.
pub fn repair(input: &[u8]) {
    let Some(([kind, size @ .., zeros], bytes)) = input.split_first_chunk::<4>() else {
        return;
    };
    // Small files are read and written often.
    let delta = [&[zeros % 16], bytes].concat();
    let xml = descriptor(*kind, u16::from_le_bytes(*size));
    let dir = directory().join("image");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    let path = write_image(&dir, xml.as_bytes(), &delta);
    let undo = directory().join("undo");
    let _ = fs::remove_file(&undo);
    let before = files(&dir);
    let Ok(mut image) = OfflineImage::open(&path) else {
        return;
    };
    let options = RepairOptions::new().undo(&undo);
    let options = RepairChoice::ALL
        .into_iter()
        .fold(options, RepairOptions::allow);
    let Ok(report) = image.repair(&options, |_| {}) else {
        return;
    };
    assert_eq!(report.is_sound, check(&path).is_sound());
    if !undo.exists() {
        assert!(report.recovered || files(&dir) == before);
    } else if !report.recovered {
        image.undo_repair(&undo).unwrap();
        assert!(files(&dir) == before);
    }
}

/// A descriptor of one delta or two, with a delta that is listed twice, or without the geometry.
fn descriptor(kind: u8, clusters: u16) -> String {
    const LOWER: &str = "{0d3ebf62-5322-4a35-a84c-e465aef3807c}";
    const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
    const NONE: &str = "{00000000-0000-0000-0000-000000000000}";
    let has = |bit: u8| kind & bit != 0;
    let image = |guid: &str, file: &str| {
        format!("<Image><GUID>{guid}</GUID><Type>Compressed</Type><File>{file}</File></Image>")
    };
    let shot = |guid: &str, parent: &str| {
        format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>")
    };
    let (mut images, mut shots) = (image(TOP, "root.hds"), shot(TOP, NONE));
    if has(1) {
        let file = format!("root.hds.{LOWER}");
        images = image(LOWER, "root.hds") + &image(TOP, &file);
        shots = shot(LOWER, NONE) + &shot(TOP, LOWER);
    }
    if has(2) {
        images += &images.clone();
    }
    let sectors = u32::from(clusters) * 64;
    let geometry = match has(4) {
        true => String::new(),
        false => {
            let cylinders = sectors / (16 * 63);
            format!("<Cylinders>{cylinders}</Cylinders><Heads>16</Heads><Sectors>63</Sectors>")
        }
    };
    format!(
        "<d><Disk_Parameters><Disk_size>{sectors}</Disk_size>{geometry}</Disk_Parameters><StorageData><Storage><Blocksize>64</Blocksize>{images}</Storage></StorageData><Snapshots>{shots}</Snapshots></d>"
    )
}

/// All files but the lock.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_none_or(|it| it != "lck"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}
