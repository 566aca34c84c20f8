//! Merging, in place and into a new file.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ploop::{
    ClusterSize, ErrorKind, FormatVersion, Guid, ImageMode, MergeParam, MergeTarget, Ploop, Size,
};

use super::directory::Contents;
use super::filled_image::{FilledImage, relative};

use crate::line::is_7;
use crate::refused::refused;

const ALL: [(ImageMode, FormatVersion); 4] = [
    (ImageMode::Expanded, FormatVersion::V1),
    (ImageMode::Expanded, FormatVersion::V2),
    (ImageMode::Preallocated, FormatVersion::V1),
    (ImageMode::Raw, FormatVersion::V1),
];

/// Merges `target` of a chain of base, four snapshots and a top, of which `from` remains and `gone`
/// go, in place and into new files.
fn merge(target: impl Fn(&[Guid]) -> (MergeTarget, Guid, Vec<Guid>)) {
    for (mode, format) in ALL {
        for new in [false, true] {
            let (mut filled, guids) = FilledImage::chain(mode, format, 4);
            let (target, from, gone) = target(&guids);
            let before = filled.descriptor();
            let lowest = *gone.first().unwrap();
            let files: Vec<PathBuf> = gone
                .iter()
                .chain([&from])
                .map(|guid| filled.file_of(*guid))
                .collect();
            let mut param = MergeParam::new(target);
            if new {
                param = param.new_delta(filled.path("merged.hds"));
            }
            let result = filled.ploop.merge(&param);
            let raw_base = mode == ImageMode::Raw && before.parent(lowest).is_none();
            if new && (raw_base || !filled.can_have_deltas()) {
                refused(result, ErrorKind::Unsupported);
                filled.verify();
                assert_eq!(filled.names().len(), before.images.len() + 1);
                continue;
            }
            result.unwrap();
            for guid in &gone {
                filled.states.remove(guid);
            }
            filled.verify();
            let after = filled.descriptor();
            assert_eq!(after.parent(from), before.parent(lowest));
            let (kept, removed) = if new {
                (filled.path("merged.hds"), &files[..])
            } else {
                (files[0].clone(), &files[1..])
            };
            assert_eq!(filled.file_of(from), kept);
            for file in removed {
                assert!(!file.exists(), "{}", file.display());
            }
            assert_eq!(filled.names().len(), after.images.len() + 1);
            // It goes on from there.
            filled.write([(6, 5000)]);
            if filled.can_have_deltas() {
                filled.snapshot();
            }
            filled.verify();
        }
    }
}

#[test]
fn the_top() {
    merge(|guids| (MergeTarget::Top, Guid::TOP, vec![guids[3]]));
}

#[test]
fn a_snapshot() {
    merge(|guids| (MergeTarget::Snapshot(guids[2]), guids[2], vec![guids[1]]));
}

#[test]
fn a_snapshot_into_the_base() {
    merge(|guids| (MergeTarget::Snapshot(guids[1]), guids[1], vec![guids[0]]));
}

#[test]
fn a_range() {
    merge(|guids| {
        let range = MergeTarget::Range {
            from: guids[3],
            to: guids[1],
        };
        (range, guids[3], vec![guids[1], guids[2]])
    });
}

#[test]
fn a_range_of_two() {
    merge(|guids| {
        let range = MergeTarget::Range {
            from: guids[2],
            to: guids[1],
        };
        (range, guids[2], vec![guids[1]])
    });
}

#[test]
fn a_range_up_to_the_top() {
    merge(|guids| {
        let range = MergeTarget::Range {
            from: Guid::TOP,
            to: guids[2],
        };
        (range, Guid::TOP, vec![guids[2], guids[3]])
    });
}

#[test]
fn everything() {
    merge(|guids| (MergeTarget::All, Guid::TOP, guids.to_vec()));
}

/// Named from a working directory that is not the image's.
#[test]
fn the_new_file_may_be_elsewhere() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    let elsewhere = tempfile::tempdir().unwrap();
    let new = fs::canonicalize(elsewhere.path())
        .unwrap()
        .join("merged.hds");
    let param = MergeParam::new(MergeTarget::Snapshot(guids[1])).new_delta(relative(&new));
    filled.ploop.merge(&param).unwrap();
    filled.states.remove(&guids[0]);
    filled.verify();
    assert_eq!(filled.file_of(guids[1]), new);
}

/// Also where the lock is that of this image's own descriptor.
#[test]
fn a_file_that_is_there_is_refused_at_once() {
    let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 2);
    filled
        .ploop
        .set_lock_timeout(Some(Duration::from_secs(600)));
    let beside = filled.path("beside");
    fs::write(&beside, "precious").unwrap();
    let before = Contents::of(filled.dir.path());
    for file in [filled.xml(), filled.path("root.hds"), beside] {
        let param = MergeParam::new(MergeTarget::All).new_delta(&file);
        refused(filled.ploop.merge(&param), ErrorKind::AlreadyExists);
        before.assert_unchanged(&file.to_string_lossy());
    }
}

#[test]
fn a_branch_beside_is_left_alone() {
    let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 3);
    // base ← 0 ← 1 ← 2, and 1 ← side ← top
    filled.switch(guids[1]);
    filled.fill(4);
    let side = filled.snapshot();
    filled.fill(5);
    for refused in [
        MergeTarget::Snapshot(guids[2]),
        MergeTarget::Snapshot(side),
        MergeTarget::All,
        MergeTarget::Range {
            from: guids[2],
            to: side,
        },
        MergeTarget::Range {
            from: guids[0],
            to: guids[1],
        },
        MergeTarget::Range {
            from: side,
            to: side,
        },
        MergeTarget::Snapshot(guids[0]),
    ] {
        let error = filled.ploop.merge(&MergeParam::new(refused)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{refused:?}");
    }
    filled.verify();
    // Below the fork and above it there is something to merge.
    filled
        .ploop
        .merge(&MergeParam::new(MergeTarget::Snapshot(guids[1])))
        .unwrap();
    filled.states.remove(&guids[0]);
    filled.verify();
    filled
        .ploop
        .merge(&MergeParam::new(MergeTarget::Top))
        .unwrap();
    filled.states.remove(&side);
    filled.verify();
}

/// Two images are merged to one new file: the one that comes second fails, and leaves the file of the first.
#[test]
fn two_merges_to_one_new_file() {
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let new = fs::canonicalize(dir.path()).unwrap().join("merged.hds");
        let barrier = std::sync::Barrier::new(2);
        let images =
            [(); 2].map(|()| FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 1).0);
        let merged = std::thread::scope(|scope| {
            let threads = images.map(|mut filled| {
                let (new, barrier) = (&new, &barrier);
                scope.spawn(move || {
                    let param = MergeParam::new(MergeTarget::All).new_delta(new);
                    barrier.wait();
                    let result = filled.ploop.merge(&param);
                    (filled, result)
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let mut done = 0;
        for (mut filled, result) in merged {
            match result {
                Ok(()) => {
                    done += 1;
                    assert_eq!(filled.file_of(Guid::TOP), new, "{round}");
                    filled.states.retain(|guid, _| *guid == Guid::TOP);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
            filled.verify();
        }
        assert_eq!(done, 1, "{round}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{round}");
    }
}

/// In the middle of it, or between two steps where libploop merges one delta at a time.
#[test]
fn a_range_that_is_killed_is_finished_by_the_next_change() {
    const IMAGE: &str = "PLOOP_TEST_MERGE_AND_DIE";
    if let Some(path) = std::env::var_os(IMAGE) {
        let mut image = Ploop::open(path).unwrap();
        println!("begins");
        image.merge(&MergeParam::new(MergeTarget::All)).unwrap();
        return;
    }
    let mut left = Vec::new();
    for milliseconds in [0, 10, 20, 40, 80, 160, 320, 640] {
        let (mut filled, _) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 8);
        let mut merging = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "merge::a_range_that_is_killed_is_finished_by_the_next_change",
            ])
            .env(IMAGE, filled.xml())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(merging.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap() == "begins"));
        thread::sleep(Duration::from_millis(milliseconds));
        merging.kill().unwrap();
        merging.wait().unwrap();
        // Any change looks after it. This one does not merge.
        filled.ploop.set_max_delta_size(Size::from_gib(1)).unwrap();
        let now = filled.ploop.descriptor().unwrap();
        left.push(now.images.len());
        let is_whole = |guid: &Guid| now.snapshot(*guid).is_some_and(|it| !it.temporary);
        filled.states.retain(|guid, _| is_whole(guid));
        assert!(filled.states.contains_key(&Guid::TOP));
        filled.snapshot();
        // One that was merged and not removed yet.
        filled.ploop.remove_leftovers().unwrap();
        // libploop writes the data of a delta before its table. The lower end is the one that was written to.
        filled.cut_short.insert(now.base().unwrap().file.clone());
        filled.verify();
        let names = filled.names();
        assert_eq!(
            names.len(),
            filled.descriptor().images.len() + 1,
            "{names:?}"
        );
    }
    println!("deltas that were left: {left:?}");
    assert!(left.iter().any(|left| *left > 1));
}

/// The program is killed after the old file was removed and before the new descriptor has its name. The old descriptor
/// names a file that is gone. The new one, and the file that it names, are complete.
#[test]
fn a_merge_to_a_new_file_that_is_cut_short_at_its_end() {
    for (target, lowest, gone) in [(MergeTarget::Top, 3, 3..4), (MergeTarget::All, 0, 0..4)] {
        let (mut filled, guids) = FilledImage::chain(ImageMode::Expanded, FormatVersion::V1, 4);
        let before = filled.descriptor();
        let files = before.images.iter().map(|image| image.file.clone());
        let old: Vec<(PathBuf, Vec<u8>)> = files
            .chain([filled.xml()])
            .map(|file| (file.clone(), fs::read(&file).unwrap()))
            .collect();
        let removed_first = filled.file_of(guids[lowest]);
        let param = MergeParam::new(target).new_delta(filled.path("merged.hds"));
        filled.ploop.merge(&param).unwrap();
        fs::rename(filled.xml(), filled.path("DiskDescriptor.xml.tmp")).unwrap();
        for (file, bytes) in old.iter().filter(|(file, _)| *file != removed_first) {
            fs::write(file, bytes).unwrap();
        }
        for guid in &guids[gone] {
            filled.states.remove(guid);
        }
        // The next operation puts it in place.
        filled.snapshot();
        let now = filled.descriptor();
        let is_named = |file: &PathBuf| now.images.iter().any(|image| image.file == *file);
        assert!(is_named(&filled.path("merged.hds")));
        // The merged file is left over. It is found by the name of the base if that belongs to another image.
        let merged = old.into_iter().map(|(file, _)| file);
        let merged: BTreeSet<PathBuf> = merged
            .filter(|file| *file != filled.xml() && file.exists() && !is_named(file))
            .collect();
        assert_eq!(merged.len(), before.images.len() - now.images.len() + 1);
        if lowest > 0 {
            filled.orphans = merged;
        }
        filled.verify();
    }
}

/// libploop 7 counts the clusters of format v1 in units of 1 MiB. Larger ones would overlap.
#[test]
fn clusters_that_libploop_would_misplace() {
    for (cluster, misplaced) in [(512 << 10, false), (1 << 20, false), (2 << 20, is_7())] {
        let cluster = ClusterSize::from_bytes(cluster).unwrap();
        let mut filled = FilledImage::with(ImageMode::Expanded, cluster, FormatVersion::V1);
        filled.write([(0, 1), (1, 2), (2, 3)]);
        let guid = filled.snapshot();
        filled.write([(1, 4), (3, 5), (4, 6), (5, 7), (6, 8)]);
        if misplaced {
            let before = Contents::of(filled.dir.path());
            let merge = MergeParam::new(MergeTarget::Top);
            refused(filled.ploop.merge(&merge), ErrorKind::Unsupported);
            refused(filled.ploop.delete_snapshot(guid), ErrorKind::Unsupported);
            before.assert_unchanged("a merge");
        } else {
            filled.ploop.delete_snapshot(guid).unwrap();
            filled.states.remove(&guid);
        }
        filled.verify();
    }
}

/// When libploop makes a snapshot or mounts, it merges temporary snapshots with what is above, whatever they are.
#[test]
fn temporary_snapshots_of_another_kind_are_not_merged() {
    let mut filled = FilledImage::new(ImageMode::Expanded);
    filled.write([(0, 1), (1, 2)]);
    let guid = filled.snapshot();
    filled.write([(1, 4), (3, 5)]);
    filled.verify();
    let text = fs::read_to_string(filled.xml()).unwrap();
    let shot = format!(
        "<GUID>{guid}</GUID>\n      <ParentGUID>{}</ParentGUID>\n",
        Guid::NONE
    );
    assert!(text.contains(&shot));
    let temporary = text.replace(&shot, &format!("{shot}      <Temporary/>\n"));
    fs::write(filled.xml(), temporary).unwrap();
    let cluster = ClusterSize::from_bytes(filled.cluster.bytes() * 2).unwrap();
    let other = FilledImage::with(ImageMode::Expanded, cluster, FormatVersion::V1);
    fs::copy(other.path("root.hds"), filled.path("root.hds")).unwrap();
    let before = Contents::of(filled.dir.path());
    refused(filled.ploop.snapshot().map(drop), ErrorKind::Corrupt);
    let top = filled.descriptor().top;
    refused(filled.ploop.delete_snapshot(top), ErrorKind::Corrupt);
    before.assert_unchanged("a snapshot");
}
