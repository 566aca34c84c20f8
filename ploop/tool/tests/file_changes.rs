//! `diff --files`: what changed between two states, as files.

mod ext_image;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use ext_image::{ExtImage, M, json, ploop_image, run, text};
use fs_ext4::Filesystem;
use fs_ext4::block_io::FileDevice;
use fs_ext4::runtime::Runtime;
use ploop::Guid;

/// What a driver does, at a time that no other program here has.
struct Clock;

impl Runtime for Clock {
    fn now_unix_seconds(&self) -> i64 {
        1_900_000_000
    }

    fn next_inode_generation(&self) -> u32 {
        4711
    }
}

/// Changes the raw disk as a mounted file system would.
fn mounted(image: &ExtImage, work: impl FnOnce(&Filesystem) -> fs_ext4::Result<()>) {
    let device = FileDevice::open_path_rw(&image.raw()).unwrap();
    let file_system = Filesystem::mount_with_runtime(Arc::new(device), Arc::new(Clock)).unwrap();
    work(&file_system).unwrap();
    drop(file_system);
    ExtImage::require_clean(&image.raw());
}

/// What `diff --files` prints, from a snapshot on.
fn diff(image: &ExtImage, from: Guid, options: &[&str]) -> Vec<String> {
    let (root, from) = (image.image(), from.to_string());
    let arguments = [&["diff", "--files", text(&root), "--from", &from], options].concat();
    let output = ploop_image(&arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| line.replace('\t', " ")).collect()
}

/// The image of a tree, and a snapshot of it.
fn image_of(options: &[&str], tree: impl FnOnce(&Path)) -> (ExtImage, Guid) {
    let image = ExtImage::new(options, 64 * M, tree);
    image.import(&["--cluster", "32K"]);
    let guid = image.snapshot();
    (image, guid)
}

fn tree(dir: &Path) {
    for name in ["etc", "dir/sub", "old", "keep"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    for name in [
        "etc/passwd",
        "etc/hosts",
        "dir/one",
        "dir/sub/two",
        "dir/sub/three",
        "old/x",
        "old/y",
        "keep/moved",
        "keep/linked",
        "same",
        "gone",
        "mode",
    ] {
        fs::write(dir.join(name), name.repeat(2000)).unwrap();
    }
    symlink("etc/hosts", dir.join("link")).unwrap();
    symlink("l".repeat(300), dir.join("long")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(30 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 20_000_000).unwrap();
    fs::set_permissions(dir.join("mode"), fs::Permissions::from_mode(0o640)).unwrap();
}

/// Where a block of a file is on the raw disk.
fn place(image: &ExtImage, file: &str, block: usize) -> u64 {
    let request = format!("bmap {file} {block}");
    let output = run("debugfs", &["-R", &request, text(&image.raw())]);
    let number: u64 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let dump = run("dumpe2fs", &["-h", text(&image.raw())]);
    let dump = String::from_utf8(dump.stdout).unwrap();
    let size = dump.lines().find_map(|it| it.strip_prefix("Block size:"));
    number * size.unwrap().trim().parse::<u64>().unwrap()
}

/// Writes over data of a file, and leaves its inode as it is.
fn write_over(image: &ExtImage, file: &str, block: usize, bytes: &[u8]) {
    let at = place(image, file, block);
    let raw = File::options().write(true).open(image.raw()).unwrap();
    raw.write_all_at(bytes, at).unwrap();
}

#[test]
fn files_that_were_added_removed_changed_and_moved() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    assert_eq!(diff(&image, from, &[]), [""; 0]);
    write_over(&image, "/same", 0, b"other");
    mounted(&image, |it| {
        it.apply_create("/etc/new", 0o644)?;
        it.apply_unlink("/gone")?;
        it.apply_chmod("/mode", 0o600)?;
        it.apply_link("/keep/linked", "/keep/second")?;
        it.apply_unlink("/link")?;
        it.apply_symlink("etc/passwd", "/link")?;
        it.apply_setxattr("/etc/passwd", "user.colour", b"blue")?;
        it.apply_chown("/etc/hosts", 70_000, 5)?;
        it.apply_rename("/dir", "/etc/renamed", false)?;
        it.apply_rename("/keep/moved", "/moved", false)?;
        it.apply_pwrite("/sparse", 10_000_000, b"more")?;
        it.apply_utimens("/keep", 1_900_000_000, 7, 1_900_000_000, 7)?;
        Ok(())
    });
    write_over(&image, "/etc/renamed/sub/three", 1, b"below a renamed one");
    image.write();
    let expected = [
        "M /etc/hosts owner",
        "A /etc/new",
        "M /etc/passwd xattrs",
        "R /dir /etc/renamed",
        "M /etc/renamed/sub/three content",
        "D /gone",
        "M /keep mtime",
        "A /keep/second",
        "M /link target,mtime",
        "M /mode mode",
        "R /keep/moved /moved",
        "M /same content",
        "M /sparse content,mtime",
    ];
    let found = diff(&image, from, &[]);
    assert_eq!(found, expected, "{found:#?}");

    // Seen from the other end.
    let to = image.snapshot();
    let back = diff(&image, to, &["--to", &from.to_string()]);
    let reversed: Vec<String> = back
        .iter()
        .map(|it| it.replace("D /gone", "A /gone"))
        .collect();
    for line in [
        "D /etc/new",
        "R /etc/renamed /dir",
        "M /dir/sub/three content",
        "A /gone",
        "D /keep/second",
        "R /moved /keep/moved",
    ] {
        assert!(reversed.iter().any(|it| it == line), "{line}: {back:#?}");
    }
    assert_eq!(back.len(), expected.len());
}

#[test]
fn every_kind_of_file_system() {
    for options in [
        &["-t", "ext4", "-O", "inline_data"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
        &["-t", "ext3"],
        &["-t", "ext2", "-I", "128"],
    ] {
        let (image, from) = image_of(options, tree);
        write_over(&image, "/same", 3, b"other");
        let new = image.path("new");
        fs::write(&new, "new").unwrap();
        image.debugfs(&[
            // Otherwise debugfs adds no entries to directories that are in their inodes.
            "expand_dir /",
            "expand_dir etc",
            "set_current_time 20300101120000",
            &format!("write {} etc/new", new.display()),
            "rm gone",
            "ln old renamed",
            "unlink old",
            "ln etc/hosts etc/hosts2",
            "unlink etc/hosts",
            "sif mode mode 0100600",
            "sif etc/passwd gid 70000",
            "ea_set etc/passwd user.colour blue",
            "rm link",
            "symlink link elsewhere",
        ]);
        image.write();
        let expected = [
            "R /etc/hosts /etc/hosts2",
            "A /etc/new",
            "M /etc/passwd owner,xattrs",
            "D /gone",
            "M /link target,mtime",
            "M /mode mode",
            "R /old /renamed",
            "M /same content",
        ];
        let found = diff(&image, from, &[]);
        assert_eq!(found, expected, "{options:?}: {found:#?}");
    }
}

#[test]
fn names_that_change_places() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    mounted(&image, |it| {
        // A log that is rotated.
        it.apply_rename("/etc/passwd", "/etc/passwd.1", false)?;
        it.apply_create("/etc/passwd", 0o644)?;
        // One that takes the place of another.
        it.apply_rename("/keep/moved", "/keep/linked", true)?;
        // Two directories.
        it.apply_rename("/dir", "/between", false)?;
        it.apply_rename("/old", "/dir", false)?;
        it.apply_rename("/between", "/old", false)?;
        // Into a directory that is new, out of one that goes.
        it.apply_mkdir("/fresh", 0o755)?;
        it.apply_rename("/old/sub/two", "/fresh/two", false)?;
        it.apply_unlink("/old/sub/three")?;
        it.apply_rmdir("/old/sub")?;
        Ok(())
    });
    image.write();
    let found = diff(&image, from, &[]);
    let expected = [
        "R /old /dir",
        "D /dir/sub",
        "D /dir/sub/three",
        "A /etc/passwd",
        "R /etc/passwd /etc/passwd.1",
        "A /fresh",
        "R /dir/sub/two /fresh/two",
        "D /keep/linked",
        "R /keep/moved /keep/linked",
        "R /dir /old",
    ];
    assert_eq!(found, expected, "{found:#?}");
}

/// The way of editors and package managers: a new file, and a rename over the old one.
#[test]
fn a_file_that_was_written_anew_is_the_same_file() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    mounted(&image, |it| {
        it.apply_create("/etc/hosts~", 0o644)?;
        it.apply_pwrite("/etc/hosts~", 0, b"127.0.0.1 localhost")?;
        it.apply_rename("/etc/hosts~", "/etc/hosts", true)?;
        it.apply_unlink("/mode")?;
        it.apply_symlink("same", "/mode")?;
        it.apply_unlink("/same")?;
        it.apply_mkdir("/same", 0o755)?;
        Ok(())
    });
    image.write();
    let expected = [
        "M /etc/hosts content,size,mtime",
        "T /mode type,mode,mtime",
        "D /same",
        "A /same",
    ];
    let found = diff(&image, from, &[]);
    assert_eq!(found, expected, "{found:#?}");
}

#[test]
fn blocks_that_lie_elsewhere_with_the_same_bytes_are_no_change() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    let contents = fs::read(image.path("tree/etc/hosts")).unwrap();
    mounted(&image, |it| {
        it.apply_create("/copy", 0o644)?;
        it.apply_pwrite("/copy", 0, &contents)?;
        it.apply_rename("/copy", "/etc/hosts", true)?;
        // A hole becomes zeros.
        it.apply_pwrite("/sparse", 5_000_000, &[0; 10_000])?;
        Ok(())
    });
    image.write();
    let found = diff(&image, from, &[]);
    let expected = ["M /etc/hosts mtime", "M /sparse mtime"];
    assert_eq!(found, expected, "{found:#?}");
}

#[test]
fn what_only_the_journal_has_is_compared() {
    let (image, from) = image_of(&["-t", "ext4", "-b", "4096"], tree);
    let block = image.path("block");
    fs::write(&block, [b'j'; 4096]).unwrap();
    let at = place(&image, "/etc/hosts", 0) / 4096;
    let write = format!("jw -b {at} {}", block.display());
    image.debugfs(&["jo", &write, "jc"]);
    image.write();
    assert_eq!(diff(&image, from, &[]), ["M /etc/hosts content"]);
    // In the earlier state, too.
    let second = image.snapshot();
    write_over(&image, "/etc/passwd", 0, b"x");
    image.write();
    assert_eq!(diff(&image, second, &[]), ["M /etc/passwd content"]);
}

#[test]
fn ten_thousand_files() {
    let (image, from) = image_of(&["-t", "ext4", "-N", "12000", "-b", "1024"], |dir| {
        for directory in 0..100 {
            let directory = dir.join(directory.to_string());
            fs::create_dir(&directory).unwrap();
            for number in 0..100 {
                fs::write(directory.join(number.to_string()), number.to_string()).unwrap();
            }
        }
    });
    let (image, from) = (&image, from);
    write_over(image, "/57/33", 0, b"5");
    mounted(image, |it| {
        it.apply_rename("/12", "/renamed", false)?;
        it.apply_unlink("/99/99")?;
        it.apply_chmod("/renamed/7", 0o600)
    });
    image.write();
    let expected = [
        "M /57/33 content",
        "D /99/99",
        "R /12 /renamed",
        "M /renamed/7 mode",
    ];
    assert_eq!(diff(image, from, &[]), expected);
}

#[test]
fn json_has_both_states() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    mounted(&image, |it| {
        it.apply_chmod("/mode", 0o600)?;
        it.apply_rename("/keep/moved", "/keep/away", false)?;
        it.apply_create("/keep/new", 0o644)?;
        it.apply_unlink("/gone")
    });
    image.write();
    let (root, guid) = (image.image(), from.to_string());
    let value = json(0, &["diff", "--files", text(&root), "--from", &guid]);
    let by_path = |path: &str| {
        let all = value.as_array().unwrap();
        all.iter().find(|it| it["path"] == path).unwrap().clone()
    };
    let mode = by_path("/mode");
    assert_eq!(mode["status"], "changed");
    assert_eq!(mode["changes"], serde_json::json!(["mode"]));
    assert_eq!(mode["before"]["mode"], 0o640);
    assert_eq!(mode["after"]["mode"], 0o600);
    let moved = by_path("/keep/away");
    assert_eq!(
        (&moved["status"], &moved["from"]),
        (&"moved".into(), &"/keep/moved".into())
    );
    assert_eq!(moved["before"]["inode"], moved["after"]["inode"]);
    let new = by_path("/keep/new");
    assert_eq!(
        (&new["status"], new["before"].is_null()),
        (&"added".into(), true)
    );
    let gone = by_path("/gone");
    assert_eq!(
        (&gone["status"], gone["after"].is_null()),
        (&"removed".into(), true)
    );
    assert_eq!(gone["before"]["size"], 8000);
}

#[test]
fn the_partition_is_found_or_named() {
    let (image, from) = image_of(&["-t", "ext4"], tree);
    let (root, guid) = (image.image(), from.to_string());
    let arguments = ["diff", text(&root), "--from", &guid, "--partition", "1"];
    assert_eq!(ploop_image(&arguments).status.code(), Some(2));
    let output = ploop_image(&[&arguments[..], &["--files"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("in the earlier state: the disk has no partition table"),
        "{words}"
    );
}

/// A file as an archive has it.
type State = (u8, u32, u64, u64, Vec<u8>);

/// All files of a state, by path.
fn files(image: &ExtImage, options: &[&str]) -> BTreeMap<String, State> {
    let root = image.image();
    let output = ploop_image(&[&["tar", text(&root)], options].concat());
    assert!(output.status.success());
    let mut archive = tar::Archive::new(&*output.stdout);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let path = format!("/{}", path.trim_start_matches("./").trim_end_matches('/'));
        let (kind, mode) = (header.entry_type().as_byte(), header.mode().unwrap());
        let (mtime, uid) = (header.mtime().unwrap(), header.uid().unwrap());
        let mut contents = Vec::new();
        if let Some(link) = entry.link_name_bytes() {
            contents.extend_from_slice(&link);
        }
        entry.read_to_end(&mut contents).unwrap();
        found.insert(path, (kind, mode, mtime, uid, contents));
    }
    found
}

/// Whatever is done to the files: the earlier tree and the list give the later tree, and what is not listed is equal.
#[test]
fn the_list_makes_the_later_tree_of_the_earlier_one() {
    let mut moves = 0;
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (image, from) = image_of(&["-t", "ext4", "-b", "1024"], |dir| {
            for number in 0..60 {
                let directory = dir.join(format!("{}/{}", number % 3, number % 4));
                fs::create_dir_all(&directory).unwrap();
                let name = directory.join(format!("f{}", number % 9));
                fs::write(name, number.to_string().repeat(900)).unwrap();
            }
        });
        let earlier = files(&image, &[]);
        let mut paths: Vec<String> = earlier.keys().skip(1).cloned().collect();
        mounted(&image, |it| {
            for number in 0..25 {
                let one = paths[random.usize(..paths.len())].clone();
                let other = paths[random.usize(..paths.len())].clone();
                let new = format!("{other}/n{number}");
                // Many of them cannot be done, which is as good as others.
                let done = match random.u8(..9) {
                    0 => it.apply_create(&new, 0o644).map(drop),
                    1 => it.apply_mkdir(&new, 0o755).map(drop),
                    2 => it.apply_symlink("somewhere", &new).map(drop),
                    3 => it.apply_unlink(&one),
                    4 => it.apply_chmod(&one, 0o711),
                    5 => it.apply_pwrite(&one, 100, new.as_bytes()).map(drop),
                    6 => it.apply_rename(&one, &new, false),
                    _ => it.apply_rename(&one, &other, true),
                };
                if done.is_ok() {
                    paths.push(new);
                }
            }
            Ok(())
        });
        image.write();
        let later = files(&image, &[]);
        let list = diff(&image, from, &[]);
        let mut left = later.clone();
        let mut listed: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for line in &list {
            let fields: Vec<&str> = line.split(' ').collect();
            let to = fields.get(2).copied().unwrap_or_default();
            let twice = listed.insert((fields[0], fields[1]), to);
            assert_eq!(twice, None, "{seed}: {line}");
            if fields[0] == "A" {
                assert!(left.remove(fields[1]).is_some(), "{seed}: {line}");
            }
        }
        // Where the directories of the earlier state are now.
        let mut places: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (path, state) in &earlier {
            let (above, name) = path.rsplit_once('/').unwrap();
            let above = places.get(above).cloned().flatten().unwrap_or_default();
            let place = if listed.contains_key(&("D", path)) {
                None
            } else if let Some(to) = listed.get(&("R", path)) {
                moves += 1;
                Some((*to).to_owned())
            } else {
                Some(format!("{above}/{name}"))
            };
            let key = if path == "/" { "" } else { path };
            places.insert(
                key.to_owned(),
                place.clone().map(|it| match it.as_str() {
                    "/" => String::new(),
                    _ => it,
                }),
            );
            let Some(place) = place else { continue };
            let now = left.remove(&place);
            let now = now.unwrap_or_else(|| panic!("{seed}: {path} is not at {place}: {list:#?}"));
            let differs = list.iter().any(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                match fields[..] {
                    ["M" | "T", it, _] => it == place,
                    ["R", _, it, _] => it == place,
                    _ => false,
                }
            });
            assert_eq!(now != *state, differs, "{seed}: {path} {place}: {list:#?}");
        }
        assert!(left.is_empty(), "{seed}: {:?}", left.keys());
    }
    assert!(moves > 20, "only {moves} moves");
}

/// Whatever is damaged, the command ends, and with a list or with a reason.
#[test]
fn damaged_file_systems_are_compared_or_refused() {
    let image = ExtImage::new(
        &["-t", "ext4", "-O", "^metadata_csum", "-b", "1024"],
        8 * M,
        |dir| {
            for number in 0..40 {
                let directory = dir.join(format!("{}/{}", number % 3, number % 7));
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(number.to_string()), "x".repeat(number * 200)).unwrap();
            }
        },
    );
    image.import(&["--cluster", "32K"]);
    let from = image.snapshot().to_string();
    let sound = fs::read(image.raw()).unwrap();
    let used: Vec<usize> = (0..sound.len() / 1024)
        .filter(|block| sound[block * 1024..][..1024].iter().any(|byte| *byte != 0))
        .take(300)
        .collect();
    let mut random = fastrand::Rng::with_seed(11);
    let root = image.image();
    let mut ends = [0, 0];
    for _ in 0..40 {
        let mut damaged = sound.clone();
        for _ in 0..random.usize(1..100) {
            let block = used[random.usize(..used.len())];
            damaged[block * 1024 + random.usize(..1024)] = random.u8(..);
        }
        fs::write(image.raw(), damaged).unwrap();
        image.write();
        let output = std::process::Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_ploop-image"), "diff", "--files"])
            .args([text(&root), "--from", &from])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(code @ 0..=1) => ends[code as usize] += 1,
            _ => panic!("{}: {words}", output.status),
        }
    }
    assert!(ends[0] > 3 && ends[1] > 3, "{ends:?}");
}

/// As `ls` and `tar` do: names of such a directory are no names.
#[test]
fn encrypted_names_are_not_shown_and_said_to_be_that() {
    const ENCRYPTED: [&str; 3] = [
        "feature encrypt",
        "set_inode_field dir flags 0x80800",
        "set_inode_field old flags 0x80800",
    ];
    const PLAIN: [&str; 3] = [
        "feature -encrypt",
        "set_inode_field dir flags 0x80000",
        "set_inode_field old flags 0x80000",
    ];
    let image = ExtImage::new(&["-t", "ext4"], 64 * M, tree);
    image.debugfs(&ENCRYPTED);
    image.import(&["--cluster", "32K"]);
    let from = image.snapshot();
    assert_eq!(diff(&image, from, &[]), [""; 0]);
    image.debugfs(&PLAIN);
    mounted(&image, |it| {
        it.apply_create("/old/secret", 0o644)?;
        it.apply_unlink("/dir/one")?;
        it.apply_unlink("/gone")?;
        // A directory that gets an encrypted name.
        it.apply_rename("/keep", "/dir/hidden", false)
    });
    image.debugfs(&ENCRYPTED);
    // One that was not there before.
    image.debugfs(&[
        "mkdir new",
        "mkdir new/secret",
        "set_inode_field new flags 0x80800",
    ]);
    image.write();

    let (root, from) = (image.image(), from.to_string());
    let arguments = ["diff", "--files", text(&root), "--from", &from];
    let output = ploop_image(&arguments);
    let found = String::from_utf8(output.stdout).unwrap().replace('\t', " ");
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    let expected = [
        "D /gone",
        "D /keep",
        "D /keep/linked",
        "D /keep/moved",
        "A /new",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    let warnings: Vec<&str> = words.lines().collect();
    let named = ["/dir", "/new", "/old"];
    assert_eq!(warnings.len(), named.len(), "{words}");
    for (warning, path) in warnings.iter().zip(named) {
        let expected = format!("warning: {path}: the names in this directory are encrypted");
        assert!(warning.starts_with(&expected), "{words}");
    }
    // JSON, too.
    let found = json(1, &arguments);
    let paths = found
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["path"].as_str());
    let expected = expected.map(|line| line.split(' ').nth(1));
    assert_eq!(paths.collect::<Vec<_>>(), expected);
}
