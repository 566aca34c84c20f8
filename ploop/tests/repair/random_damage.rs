//! Damage by chance: a repair never panics and never makes worse what can be read.

use std::collections::BTreeMap;

use fastrand::Rng;
use ploop::image::{RepairChoice, RepairItem, RepairOptions, check};
use ploop::{ErrorKind, FormatVersion, Guid};

use crate::damaged_image::{CLUSTER, Clusters, DamagedImage, FILES, assert_same, goes_on};

/// Damages a header, a table, the length of a file, or the descriptor.
fn damage(image: &DamagedImage, random: &mut Rng) {
    let name = FILES[random.usize(..FILES.len())];
    let small = |random: &mut Rng| random.u32(..12) * if random.bool() { 1 } else { 64 };
    match random.u32(..12) {
        0 | 1 => image.write(name, random.u64(..64), &[random.u8(..)]),
        2 => image.write(name, 4 * random.u64(4..16), &small(random).to_le_bytes()),
        3..=6 => image.set_entry(name, random.u32(..204), small(random)),
        7 => image.set_entry(name, random.u32(..204), random.u32(..)),
        8 => {
            let len = image.len(name);
            image.set_len(name, random.u64(..len + 2 * CLUSTER));
        }
        9 => image.write(name, 44, &0x746f_6e59u32.to_le_bytes()),
        10 => {
            let mut text = std::fs::read(&image.xml).unwrap();
            let at = random.usize(..text.len());
            text[at] = b'0' + random.u8(..10);
            std::fs::write(&image.xml, text).unwrap();
        }
        _ => {
            let start = random.u64(..CLUSTER);
            let len = random.usize(..600);
            image.write(name, start, &vec![0; len]);
        }
    }
}

/// Asserts that every cluster that was read right before is read now, and is the same.
fn assert_no_worse(
    image: &DamagedImage,
    before: &BTreeMap<Guid, Clusters>,
    after: &BTreeMap<Guid, Clusters>,
    what: &str,
) {
    for (guid, clusters) in before {
        let now = after.get(guid);
        let level = if *guid == Guid::TOP {
            2
        } else {
            guid.as_uuid().as_u128() as usize - 1
        };
        let right = image.contents(level.min(2));
        for (number, cluster) in clusters.iter().enumerate() {
            let Some(bytes) = cluster else {
                continue;
            };
            let start = number * CLUSTER as usize;
            let is_right = right.get(start..).is_some_and(|it| it.starts_with(bytes));
            if bytes.is_empty() || level > 2 || !is_right {
                continue;
            }
            let found = now.and_then(|now| now.get(number));
            // A disk that was too small may become larger.
            let is_same = |found: &Option<Vec<u8>>| {
                found.as_ref().is_some_and(|found| found.starts_with(bytes))
            };
            // A disk that was too large for what is in it may become smaller.
            let is_behind = found.is_none() && now.is_some() && bytes.iter().all(|byte| *byte == 0);
            assert!(
                found.is_some_and(is_same) || is_behind,
                "{what}: {guid}: cluster {number} is worse: {:?} for {:?}",
                found.map(|it| it.as_ref().map(|it| &it[..8])),
                &bytes[..8],
            );
        }
    }
}

#[test]
fn nothing_gets_worse() {
    let rounds = 100;
    let mut repaired = 0;
    for round in 0..rounds {
        let mut random = Rng::with_seed(round);
        let version = match random.bool() {
            true => FormatVersion::V1,
            false => FormatVersion::V2,
        };
        let image = DamagedImage::new(version);
        for _ in 0..random.u32(1..4) {
            damage(&image, &mut random);
        }
        let choices: Vec<RepairChoice> = RepairChoice::ALL
            .into_iter()
            .filter(|_| random.bool())
            .collect();
        let what = format!("round {round}, {choices:?}");
        let options = || {
            let all = choices.iter();
            all.fold(RepairOptions::new(), |options, choice| {
                options.allow(*choice)
            })
        };
        let damaged = image.files();
        let before = image.read();
        let report_before = check(&image.xml);
        println!("{what}");
        let sound_before = report_before.is_sound();
        let what = format!("{what}: {report_before}");
        let directory = tempfile::tempdir().unwrap();
        let undo = directory.path().join("undo");
        let mut open = image.open();
        let report = match open.repair(&options().undo(&undo), |_| {}) {
            Ok(report) => report,
            Err(error) => {
                let kind = error.kind();
                assert!(
                    [ErrorKind::Unsupported, ErrorKind::InvalidInput].contains(&kind),
                    "{what}: {error}"
                );
                assert_same(&image.files(), &damaged);
                continue;
            }
        };
        let what = format!("{what}\n{report:#?}");
        let after = image.read();
        assert_no_worse(&image, &before, &after, &what);
        assert!(!sound_before || report.is_sound, "{what}: {report:?}");
        assert_eq!(check(&image.xml).is_sound(), report.is_sound);
        let result = image.files();
        assert!(
            undo.exists() || report.recovered || result == damaged,
            "{what}"
        );
        // Only files of the image are touched.
        assert_eq!(
            result.keys().collect::<Vec<_>>(),
            damaged.keys().collect::<Vec<_>>(),
            "{what}"
        );
        println!("{what}");
        if !goes_on(&report) {
            let again = open.repair(&options(), |_| {}).unwrap();
            assert!(
                !again.items.iter().any(RepairItem::is_repaired),
                "{what}: {report:#?} {again:#?}"
            );
            assert_same(&image.files(), &result);
        }
        // What was done to finish an operation that seems to have been interrupted is not undone.
        if undo.exists() && !report.recovered {
            open.undo_repair(&undo).unwrap();
            assert_same(&image.files(), &damaged);
        }
        repaired += u32::from(report.is_complete());
    }
    assert!(repaired > rounds as u32 / 4, "{repaired} of {rounds}");
}
