//! `compact --free`: what the file systems inside do not use, compared with what dumpe2fs says.

mod ext_image;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use ext_image::{ExtImage, M, json, ploop_image, run, text};
use serde_json::json;

const CLUSTER: u64 = 32 << 10;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("many")).unwrap();
    for number in 0..200 {
        fs::write(dir.join(format!("many/{number}")), noise(number, 5000)).unwrap();
    }
    fs::write(dir.join("kept"), noise(1000, 3_000_000)).unwrap();
    fs::write(dir.join("gone"), noise(1001, 4_000_000)).unwrap();
}

/// The parts of a file system that dumpe2fs calls free, in bytes.
fn free_by_dumpe2fs(raw: &Path) -> Vec<Range<u64>> {
    let output = Command::new("dumpe2fs").arg(raw).output().unwrap();
    assert!(output.status.success());
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.map(|it| it.trim().parse::<u64>().unwrap())
    };
    let block = field("Block size:").unwrap();
    let cluster = field("Cluster size:").unwrap_or(block);
    let mut free = Vec::new();
    let lines = output.lines().map(str::trim);
    for line in lines.filter_map(|line| line.strip_prefix("Free blocks: ")) {
        // Of the whole file system: one number.
        for part in line.split(", ").filter(|it| !it.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let [first, last]: [u64; 2] = [first, last].map(|it| it.trim().parse().unwrap());
            free.push(first * block..last * block + cluster);
        }
    }
    let total = field("Free blocks:").unwrap() * block;
    let head = free.remove(0);
    assert_eq!(head.start, total, "the first such line is the number");
    free
}

/// The disk without what lies in clusters that are wholly free.
fn without_free(disk: &[u8], free: &[Range<u64>]) -> Vec<u8> {
    let mut expected = disk.to_vec();
    let mut whole = vec![0u64; disk.len().div_ceil(CLUSTER as usize)];
    for part in free {
        let end = part.end.min(disk.len() as u64);
        for at in (part.start..end).step_by(512) {
            whole[(at / CLUSTER) as usize] += 512;
        }
    }
    for (number, free) in whole.iter().enumerate() {
        let start = number * CLUSTER as usize;
        let end = (start + CLUSTER as usize).min(disk.len());
        if *free == (end - start) as u64 {
            expected[start..end].fill(0);
        }
    }
    expected
}

#[test]
fn layouts_of_ext4_have_free_what_dumpe2fs_says() {
    require_what_dumpe2fs_says(&[
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-b", "2048", "-G", "4", "-g", "4096"],
        &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"],
        &["-t", "ext4", "-b", "1024", "-O", "64bit,metadata_csum_seed"],
        &[
            "-t",
            "ext4",
            "-O",
            "quota,project,inline_data,mmp,orphan_file",
        ],
    ]);
}

#[test]
fn layouts_with_metadata_elsewhere_have_free_what_dumpe2fs_says() {
    require_what_dumpe2fs_says(&[
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^flex_bg,^64bit",
        ],
        &["-t", "ext4", "-b", "1024", "-O", "sparse_super2"],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^sparse_super,^resize_inode",
        ],
        &["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"],
        &["-t", "ext4", "-b", "4096", "-O", "bigalloc", "-C", "65536"],
    ]);
}

#[test]
fn layouts_of_old_file_systems_have_free_what_dumpe2fs_says() {
    require_what_dumpe2fs_says(&[
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"],
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg",
        ],
        &["-t", "ext4", "-b", "1024", "-O", "^64bit,^resize_inode"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-b", "4096", "-I", "128"],
        &["-t", "ext2", "-b", "1024", "-r", "0", "-O", "none"],
    ]);
}

fn require_what_dumpe2fs_says(layouts: &[&[&str]]) {
    // The last group is shorter than the others.
    let size = 43 * M + 20 * 1024;
    for layout in layouts {
        let image = ExtImage::new(layout, size, tree);
        let raw = image.raw();
        image.debugfs(&["rm gone", "rm many/17", "rm many/18"]);
        // Links counts of the deleted ones, and the like.
        let status = Command::new("e2fsck").args(["-fy", text(&raw)]).output();
        assert!(status.unwrap().status.code().unwrap() < 4, "{layout:?}");
        let free = free_by_dumpe2fs(&raw);
        // All that is free has something in it.
        let file = File::options().write(true).open(&raw).unwrap();
        for part in &free {
            let len = part.end.min(size) - part.start;
            let bytes = noise(part.start, len as usize);
            file.write_all_at(&bytes, part.start).unwrap();
        }
        ExtImage::require_clean(&raw);
        let mut before = fs::read(&raw).unwrap();
        // Behind the file system, in the cluster with its end.
        let behind = before.len().next_multiple_of(CLUSTER as usize) - before.len();
        before.extend(noise(2, behind));
        fs::write(&raw, &before).unwrap();
        image.import(&["--cluster", "32K"]);
        let root = image.image();
        let dry = json(0, &["compact", "--free", "--dry-run", text(&root)]);
        assert!(image.contents(None) == before, "{layout:?}");
        let done = json(0, &["compact", "--free", text(&root)]);
        assert_eq!(dry, done, "{layout:?}");
        let total: u64 = free.iter().map(|it| it.end.min(size) - it.start).sum();
        let expected = json!([{"partition": null, "free": total, "problem": null}]);
        assert_eq!(done["file_systems"], expected, "{layout:?}");
        assert!(total > 20 * M, "{layout:?}");
        let freed = done["deltas"][0]["free"].as_u64().unwrap();
        assert!(
            freed > total - 4 * M && freed <= total,
            "{layout:?}: {freed}"
        );

        let now = image.contents(None);
        assert!(now == without_free(&before, &free), "{layout:?}");
        fs::write(&raw, &now).unwrap();
        ExtImage::require_clean(&raw);
        let check = ploop_image(&["check", text(&root)]);
        assert_eq!(check.status.code(), Some(0));
        let cat = ploop_image(&["cat", text(&root), "/kept"]);
        assert!(cat.stdout == noise(1000, 3_000_000));
    }
}

#[test]
fn snapshots_keep_what_only_the_present_state_has_deleted() {
    let image = ExtImage::new(&["-t", "ext4"], 64 * M, tree);
    image.import(&["--cluster", "64K"]);
    let first = image.snapshot();
    image.debugfs(&["rm gone", "rm many/0"]);
    let new = image.path("new");
    fs::write(&new, noise(7, 5_000_000)).unwrap();
    image.debugfs(&[&format!("write {} new", new.display())]);
    image.write();
    let second = image.snapshot();
    image.debugfs(&["rm new", "rm many/1"]);
    fs::write(&new, noise(8, 1_000_000)).unwrap();
    image.debugfs(&[&format!("write {} newer", new.display()), "rm newer"]);
    image.write();
    let states = [first, second].map(|guid| image.contents(Some(guid)));
    let root = image.image();
    let files = |snapshot: &str| {
        let options = ["tar", text(&root), "--snapshot", snapshot];
        ploop_image(if snapshot.is_empty() {
            &options[..2]
        } else {
            &options
        })
        .stdout
    };
    let archive = files("");
    let sizes = || -> Vec<u64> {
        let descriptor = ploop::Descriptor::open(image.descriptor()).unwrap();
        let images = descriptor.images.iter();
        images
            .map(|it| fs::metadata(&it.file).unwrap().len())
            .collect()
    };
    let before = sizes();
    let done = json(0, &["compact", "--free", text(&root)]);
    let after = sizes();
    let free: Vec<u64> = (0..3)
        .map(|level| done["deltas"][level]["free"].as_u64().unwrap())
        .collect();
    assert_eq!(free[..2], [0, 0]);
    // What was written and deleted again since the last snapshot.
    assert!(free[2] >= 900_000, "{done}");
    assert!(after[2] <= before[2] - free[2], "{before:?} {after:?}");
    for (guid, state) in [first, second].into_iter().zip(&states) {
        assert!(image.contents(Some(guid)) == *state);
    }
    assert!(files("") == archive);
    fs::write(image.raw(), image.contents(None)).unwrap();
    ExtImage::require_clean(&image.raw());
}

/// Without the option nothing changes for any reader.
#[test]
fn only_whoever_asks_for_it_gets_it() {
    let image = ExtImage::new(&["-t", "ext4"], 64 * M, tree);
    image.debugfs(&["rm gone"]);
    image.import(&["--cluster", "32K"]);
    let before = image.contents(None);
    let root = image.image();
    let done = json(0, &["compact", text(&root)]);
    assert_eq!(done["deltas"][0]["free"], 0);
    assert_eq!(done["file_systems"], json!([]));
    assert!(image.contents(None) == before);
    let output = ploop_image(&["compact", "--free", text(&root)]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("The file system of the disk has"), "{words}");
    let now = image.contents(None);
    assert!(now != before);
    let is_gone = |disk: &[u8]| {
        let piece = &noise(1001, 4_000_000)[2 << 20..][..64];
        !disk.windows(64).any(|it| it == piece)
    };
    assert!(!is_gone(&before) && is_gone(&now));
}

/// A file system that may not be as its bitmaps say keeps all of it, and the output says why.
#[test]
fn where_the_bitmaps_may_be_wrong_nothing_is_freed() {
    type Spoil = fn(&ExtImage, &File);
    /// Where the bitmap of a group begins.
    fn bitmap(image: &ExtImage, group: &str) -> u64 {
        let output = Command::new("dumpe2fs").arg(image.raw()).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, group) = output.split_once(group).unwrap();
        let (_, block) = group.split_once("Block bitmap at ").unwrap();
        let digits = block.split(|it: char| !it.is_ascii_digit()).next();
        digits.unwrap().parse::<u64>().unwrap() * 4096
    }
    const PLAIN: &[&str] = &["-O", "^metadata_csum,^uninit_bg"];
    let cases: [(&str, &[&str], Spoil); 12] = [
        ("journal has to be replayed", &[], |image, _| {
            let block = image.path("block");
            fs::write(&block, [5; 4096]).unwrap();
            let blocks = run("debugfs", &["-R", "blocks /kept", text(&image.raw())]);
            let blocks = String::from_utf8(blocks.stdout).unwrap();
            let first = blocks.split_whitespace().next().unwrap();
            let write = format!("jw -b {first} {}", block.display());
            image.debugfs(&["jo", &write, "jc"]);
        }),
        ("journal has to be replayed", &[], |image, _| {
            image.debugfs(&["feature needs_recovery"]);
        }),
        ("not unmounted cleanly", &[], |image, _| {
            image.debugfs(&["ssv state 0"]);
        }),
        ("marked as having errors", &[], |image, _| {
            image.debugfs(&["ssv state 3"]);
        }),
        ("features that are not known", &[], |image, _| {
            image.debugfs(&["feature FEATURE_R27"]);
        }),
        ("wrong checksum", &[], |image, file| {
            let at = bitmap(image, "Group 1:") + 700;
            file.write_all_at(&[0x55], at).unwrap();
        }),
        ("cannot be read", &[], |_, file| {
            // In the descriptor of the second group.
            file.write_all_at(&[0x55], 4096 + 64 + 12).unwrap();
        }),
        ("cannot be read", &[], |_, file| {
            // The label, in the superblock.
            file.write_all_at(b"x", 1024 + 120).unwrap();
        }),
        ("by its bitmap", PLAIN, |image, file| {
            let at = bitmap(image, "Group 1:") + 1000;
            file.write_all_at(&[0x55], at).unwrap();
        }),
        ("own blocks as free", PLAIN, |image, file| {
            file.write_all_at(&[0xfe], bitmap(image, "Group 0:"))
                .unwrap();
        }),
        ("signature of swap", &[], |_, file| {
            file.write_all_at(b"SWAPSPACE2", 4086).unwrap();
        }),
        ("signature of LVM", &[], |_, file| {
            file.write_all_at(b"LABELONE", 512).unwrap();
        }),
    ];
    for (number, (reason, options, spoil)) in cases.into_iter().enumerate() {
        let options = [&["-t", "ext4", "-b", "4096"], options].concat();
        let image = ExtImage::new(&options, 192 * M, tree);
        image.debugfs(&["rm gone"]);
        let file = File::options().read(true).write(true).open(image.raw());
        spoil(&image, &file.unwrap());
        image.import(&[]);
        let before = image.contents(None);
        let root = image.image();
        let done = json(1, &["compact", "--free", text(&root)]);
        let problem = done["file_systems"][0]["problem"].as_str().unwrap();
        assert!(problem.contains(reason), "{number}: {done}");
        assert_eq!(done["file_systems"][0]["free"], json!(null));
        assert_eq!(done["deltas"][0]["free"], 0);
        assert!(image.contents(None) == before, "{number}");
        let output = ploop_image(&["compact", "--free", text(&root)]);
        assert_eq!(output.status.code(), Some(1));
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.contains(reason), "{number}: {words}");
    }
}

/// A disk with a master boot record. Partitions are in MiB.
fn partitioned(image: &ExtImage, partitions: &[(u64, u64)], size: u64) -> Vec<u8> {
    let mut disk = noise(3, (size * M) as usize);
    disk[..M as usize].fill(0);
    for (number, (start, len)) in partitions.iter().enumerate() {
        let entry = &mut disk[446 + 16 * number..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&(*start as u32 * 2048).to_le_bytes());
        entry[12..16].copy_from_slice(&(*len as u32 * 2048).to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let file_system = fs::read(image.raw()).unwrap();
    disk[M as usize..][..file_system.len()].copy_from_slice(&file_system);
    disk
}

/// Between partitions, behind a file system, and in other partitions nothing is free.
#[test]
fn of_partitions_only_those_with_a_file_system_count() {
    let image = ExtImage::new(&["-t", "ext4"], 32 * M, tree);
    image.debugfs(&["rm gone"]);
    // The file system ends 2 MiB before its partition; then 2 MiB, a partition with something else, and 2 MiB.
    let disk = partitioned(&image, &[(1, 34), (37, 4)], 43);
    let free = free_by_dumpe2fs(&image.raw());
    fs::write(image.raw(), &disk).unwrap();
    image.import(&["--cluster", "32K"]);
    let root = image.image();
    let done = json(0, &["compact", "--free", text(&root)]);
    let total: u64 = free.iter().map(|it| it.end - it.start).sum();
    let expected = json!([{"partition": 1, "free": total, "problem": null}]);
    assert_eq!(done["file_systems"], expected);
    let of_disk: Vec<_> = free.iter().map(|it| it.start + M..it.end + M).collect();
    assert!(image.contents(None) == without_free(&disk, &of_disk));
}

#[test]
fn partitions_that_overlap_are_left_alone() {
    let image = ExtImage::new(&["-t", "ext4"], 32 * M, tree);
    let disk = partitioned(&image, &[(1, 32), (20, 20)], 43);
    fs::write(image.raw(), &disk).unwrap();
    image.import(&[]);
    let root = image.image();
    let done = json(1, &["compact", "--free", text(&root)]);
    let problem = done["file_systems"][0]["problem"].as_str().unwrap();
    assert_eq!(problem, "partition 2 overlaps it");
    assert!(image.contents(None) == disk);
}

#[test]
fn a_disk_without_a_file_system() {
    let image = ExtImage::new(&["-t", "ext4"], 8 * M, |_| {});
    let disk = noise(4, 8 * M as usize);
    fs::write(image.raw(), &disk).unwrap();
    image.import(&[]);
    let root = image.image();
    let output = ploop_image(&["compact", "--free", text(&root)]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("no ext2, ext3 or ext4 file system"),
        "{words}"
    );
    assert!(image.contents(None) == disk);
}
