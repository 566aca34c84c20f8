//! Files inside, places of the output and ends of commands that are out of the ordinary.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

mod ext_image;
mod signalled;

use ext_image::{ExtImage, M, json, ploop_image, run, text};
use rustix::process::Signal;
use signalled::SIGNALS;

const BALLOON: &str = ".balloon-c3a5ae3d-ce7f-43c4-a1ea-c61e2b4504e8";

fn tree(tree: &Path) {
    for directory in ["a", "b", "c"] {
        fs::create_dir(tree.join(directory)).unwrap();
        for name in ["one", "two"] {
            fs::write(tree.join(directory).join(name), [directory, name].concat()).unwrap();
        }
    }
}

/// An image with a small tree, after requests of debugfs.
fn image(options: &[&str], requests: &[&str]) -> ExtImage {
    let image = ExtImage::new(options, 16 * M, tree);
    image.debugfs(requests);
    image.import(&[]);
    image
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a script of bash in a directory, in which `$P` is the command and `$I` the image.
fn script(image: &ExtImage, script: &str) -> Output {
    Command::new("bash")
        .args(["-c", script])
        .current_dir(image.dir.path())
        .env("P", env!("CARGO_BIN_EXE_ploop-image"))
        .env("I", image.image())
        .output()
        .unwrap()
}

/// What GNU tar lists, and whether it takes the archive for a whole one.
fn listed(dir: &Path, archive: &[u8]) -> (Vec<String>, bool) {
    let file = dir.join("listed.tar");
    fs::write(&file, archive).unwrap();
    let output = Command::new("tar")
        .args(["-tf", text(&file)])
        .output()
        .unwrap();
    let names = String::from_utf8_lossy(&output.stdout);
    let names = names.lines().map(str::to_owned).collect();
    (names, output.status.success())
}

/// The keys and values of the PAX header of an entry.
fn extensions(archive: &[u8], path: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if *entry.path_bytes() == *path.as_bytes() {
            let found = entry.pax_extensions().unwrap().into_iter().flatten();
            return found
                .map(|it| it.unwrap())
                .map(|it| (it.key_bytes().to_vec(), it.value_bytes().to_vec()))
                .collect();
        }
    }
    panic!("no {path}");
}

/// Replaces bytes of the raw disk, all of them that are found.
fn replace(image: &ExtImage, old: &[u8], new: &[u8]) {
    let bytes = fs::read(image.raw()).unwrap();
    let file = File::options().write(true).open(image.raw()).unwrap();
    let mut count = 0;
    for at in 0..bytes.len() - old.len() {
        if bytes[at] == old[0] && bytes[at..].starts_with(old) {
            file.write_all_at(new, at as u64).unwrap();
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn an_archive_that_is_cut_short_is_taken_for_a_whole_one_by_nobody() {
    // A file of no kind, after some that are written.
    let image = image(&["-t", "ext4"], &["set_inode_field b/two mode 0"]);
    let output = ploop_image(&["tar", text(&image.image())]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    let (names, is_whole) = listed(image.dir.path(), &output.stdout);
    assert!(names.contains(&"./b/one".to_owned()), "{names:?}");
    assert!(!is_whole);
    assert!(!output.stdout.ends_with(&[0; 1024]));

    let output = ploop_image(&["tar", text(&image.image()), "/a", "/nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());

    let out = image.path("out.tar");
    let output = ploop_image(&["tar", text(&image.image()), "-o", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(partial_files(image.dir.path()), Vec::<PathBuf>::new());
    assert!(!out.exists());
    // What can be had is whole.
    let output = ploop_image(&["tar", text(&image.image()), "/a", "/c", "-o", text(&out)]);
    assert!(output.status.success());
    let (names, is_whole) = listed(image.dir.path(), &fs::read(&out).unwrap());
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(is_whole);
    let again = ploop_image(&["tar", text(&image.image()), "-o", text(&out)]);
    assert!(words(&again).contains("is there already"));
}

fn partial_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|it| it.unwrap().path());
    paths
        .filter(|it| it.extension() == Some(OsStr::new("partial")))
        .collect()
}

#[test]
fn names_of_attributes_are_encoded_as_by_gnu_tar() {
    let image = image(
        &["-t", "ext4"],
        &["ea_set a/one user.a=b%3D value", "ea_set a/two user.c d"],
    );
    let output = ploop_image(&["tar", text(&image.image())]);
    assert!(output.status.success(), "{}", words(&output));
    let expected = (b"SCHILY.xattr.user.a%3Db%253D".to_vec(), b"value".to_vec());
    assert_eq!(extensions(&output.stdout, "./a/one"), [expected]);
    let expected = (b"SCHILY.xattr.user.c".to_vec(), b"d".to_vec());
    assert_eq!(extensions(&output.stdout, "./a/two"), [expected]);
}

/// In the inode, and in a block of its own.
#[test]
fn an_attribute_whose_name_is_not_utf8_is_archived_as_any_other() {
    for inode in ["256", "128"] {
        let options = ["-t", "ext4", "-O", "^metadata_csum", "-I", inode];
        let image = ExtImage::new(&options, 16 * M, tree);
        image.debugfs(&["ea_set a/one user.QQQQ value", "ea_set a/one user.other 2"]);
        replace(&image, b"QQQQ", b"Q\xff=Q");
        image.import(&[]);
        let output = ploop_image(&["tar", text(&image.image())]);
        assert!(output.status.success(), "{}", words(&output));
        let mut found = extensions(&output.stdout, "./a/one");
        found.sort();
        let expected = [
            (b"SCHILY.xattr.user.Q\xff%3DQ".to_vec(), b"value".to_vec()),
            (b"SCHILY.xattr.user.other".to_vec(), b"2".to_vec()),
        ];
        assert_eq!(found, expected, "{inode}");
        let out = image.path("out");
        let output = ploop_image(&["cp", "-r", text(&image.image()), "/", text(&out)]);
        assert!(output.status.success(), "{}", words(&output));
        assert_eq!(fs::read(out.join("a/one")).unwrap(), b"aone");
    }
}

#[test]
fn encrypted_files_are_left_out_and_named() {
    let image = image(
        &["-t", "ext4", "-O", "encrypt"],
        &[
            "set_inode_field a/one flags 0x80800",
            "set_inode_field b flags 0x80800",
            "symlink c/link target",
            "set_inode_field c/link flags 0x800",
        ],
    );
    let path = image.image();
    let output = ploop_image(&["cat", text(&path), "/a/one"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(words(&output).contains("encrypted"), "{}", words(&output));

    let output = ploop_image(&["tar", text(&path)]);
    assert_eq!(output.status.code(), Some(1));
    for name in ["./a/one", "./b:", "./c/link"] {
        assert!(words(&output).contains(name), "{}", words(&output));
    }
    let (names, is_whole) = listed(image.dir.path(), &output.stdout);
    assert!(is_whole);
    let expected = [
        "./",
        "./a/",
        "./a/two",
        "./c/",
        "./c/one",
        "./c/two",
        "./lost+found/",
    ];
    assert_eq!(names, expected);

    let out = image.path("out");
    let output = ploop_image(&["cp", "-r", text(&path), "/", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("encrypted"), "{}", words(&output));
    assert!(!out.join("a/one").exists() && !out.join("b").exists());
    assert_eq!(fs::read(out.join("c/two")).unwrap(), b"ctwo");
    assert!(ploop_image(&["ls", text(&path), "/c"]).status.success());
    let output = ploop_image(&["ls", text(&path), "/b"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("encrypted"), "{}", words(&output));
}

#[test]
fn what_is_left_of_a_damaged_directory_is_salvaged() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"];
    let image = ExtImage::new(&options, 16 * M, |root| {
        tree(root);
        // About fifty are in a block.
        for number in 0..200 {
            fs::write(root.join(format!("c/number-{number:04}")), "").unwrap();
        }
    });
    image.debugfs(&["symlink b/QQQQ target"]);
    replace(&image, b"QQQQ", b"Q/QQ");
    // The length of an entry is before its name.
    let bytes = fs::read(image.raw()).unwrap();
    let damaged = b"number-0060";
    let at = bytes.windows(damaged.len()).position(|it| it == damaged);
    let file = File::options().write(true).open(image.raw()).unwrap();
    file.write_all_at(&[3, 0], at.unwrap() as u64 - 4).unwrap();
    image.import(&[]);
    let path = image.image();
    for directory in ["/b", "/c"] {
        let output = ploop_image(&["ls", text(&path), directory]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
    }
    let listed_in = |directory: &str| {
        let found = json(1, &["ls", "--salvage", text(&path), directory]);
        let names = found.as_array().unwrap().iter();
        let names = names.map(|it| it["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<String>>()
    };
    assert_eq!(listed_in("/b"), ["one", "two"]);
    let left = listed_in("/c");
    // What is before it in the block, and all other blocks.
    for (name, is_there) in [("number-0059", true), ("number-0060", false), ("two", true)] {
        assert_eq!(
            left.iter().any(|it| it == name),
            is_there,
            "{name}: {left:?}"
        );
    }
    assert!(left.len() > 120 && left.len() < 201, "{left:?}");

    let output = ploop_image(&["tar", "--salvage", text(&path)]);
    assert_eq!(output.status.code(), Some(1));
    let lost = words(&output);
    assert_eq!(lost.lines().count(), 2, "{lost}");
    assert!(
        lost.lines()
            .all(|it| it.contains("entries that cannot be read")),
        "{lost}"
    );
    let (names, is_whole) = listed(image.dir.path(), &output.stdout);
    assert!(is_whole);
    assert!(names.contains(&"./b/two".to_owned()));
    let of_c = names.iter().filter(|name| name.starts_with("./c/"));
    assert_eq!(of_c.count(), left.len() + 1);

    let out = image.path("out");
    let output = ploop_image(&["cp", "--salvage", "-r", text(&path), "/b", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(out.join("two")).unwrap(), b"btwo");
}

#[test]
fn a_file_system_that_is_not_supported_is_not_taken_for_none() {
    let refused = |image: &ExtImage, reason: &str| {
        for arguments in [&["ls"][..], &["ls", "--salvage"]] {
            let output = ploop_image(&[arguments, &[text(&image.image())]].concat());
            assert_eq!(output.status.code(), Some(1));
            let words = words(&output);
            assert!(words.contains(reason), "{words}");
            assert!(!words.contains("no ext2"), "{words}");
        }
    };
    let unknown = image(&["-t", "ext4"], &["feature FEATURE_I28"]);
    refused(&unknown, "not supported here: incompat 0x10000000");

    let device = ExtImage::new(&["-t", "ext4"], 16 * M, tree);
    let raw = device.raw();
    fs::remove_file(&raw).unwrap();
    run(
        "mke2fs",
        &["-q", "-F", "-O", "journal_dev", text(&raw), "16M"],
    );
    device.import(&[]);
    refused(&device, "journal device");

    let options = ["-t", "ext4", "-O", "fast_commit,^metadata_csum"];
    let fast = ExtImage::new(&options, 32 * M, tree);
    let block = fast.path("block");
    fs::write(&block, [0; 1024]).unwrap();
    let write = format!("jw -b 30000 {}", text(&block));
    fast.debugfs(&["jo", &write, "jc"]);
    let blocks = run("debugfs", &["-R", "blocks <8>", text(&fast.raw())]).stdout;
    let blocks = String::from_utf8(blocks).unwrap();
    let first: u64 = blocks.split_whitespace().next().unwrap().parse().unwrap();
    // The journal says that it has fast commits, as the kernel has it.
    let raw = File::options()
        .read(true)
        .write(true)
        .open(fast.raw())
        .unwrap();
    let mut size = [0; 1];
    raw.read_exact_at(&mut size, 1024 + 24).unwrap();
    let at = (first << (10 + size[0])) + 0x28;
    let mut flags = [0; 4];
    raw.read_exact_at(&mut flags, at).unwrap();
    flags[3] |= 0x20;
    raw.write_all_at(&flags, at).unwrap();
    fast.import(&[]);
    refused(&fast, "fast commits");
}

#[test]
fn the_balloon_of_libploop_is_not_listed() {
    let image = ExtImage::new(&["-t", "ext4"], 16 * M, tree);
    image.import(&[]);
    let from = image.snapshot().to_string();
    let source = image.path("source");
    fs::write(&source, "balloon").unwrap();
    image.debugfs(&[
        &format!("write {} {BALLOON}", text(&source)),
        // It is one in the root directory only.
        "cd a",
        &format!("write {} {BALLOON}", text(&source)),
    ]);
    image.write();
    let path = image.image();
    let output = ploop_image(&["ls", text(&path)]);
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(list.contains("lost+found") && !list.contains("balloon"));
    let output = ploop_image(&["tar", text(&path)]);
    let (names, _) = listed(image.dir.path(), &output.stdout);
    let found: Vec<&String> = names.iter().filter(|it| it.contains("balloon")).collect();
    assert_eq!(found, [&format!("./a/{BALLOON}")]);
    let out = image.path("out");
    let output = ploop_image(&["cp", "-r", text(&path), "/", text(&out)]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(!out.join(BALLOON).exists());
    assert!(out.join("a").join(BALLOON).exists());
    let output = ploop_image(&["diff", "--files", text(&path), "--from", &from]);
    let changes = String::from_utf8(output.stdout).unwrap();
    let added: Vec<&str> = changes
        .lines()
        .filter(|it| it.contains("balloon"))
        .collect();
    assert_eq!(added, [format!("A\t/a/{BALLOON}")]);
    // As below the driver, whoever knows its name gets it.
    let output = ploop_image(&["cat", text(&path), BALLOON]);
    assert_eq!(output.stdout, b"balloon");
}

/// By the shell, so that it is opened in every way in which that can be.
#[test]
fn a_stream_that_is_a_file_of_the_image_is_refused() {
    let image = image(&["-t", "ext4"], &[]);
    let base = image.image().join("root.hds");
    let files = [base.clone(), image.descriptor()];
    let before = files.clone().map(|it| fs::read(it).unwrap());
    let assert_unchanged = |what: &str| {
        assert!(
            files.clone().map(|it| fs::read(it).unwrap()) == before,
            "{what}"
        );
    };
    for command in [
        "tar $I",
        "cat $I /a/one",
        "export $I -",
        "info $I",
        "check $I",
        "map $I",
        "ls $I",
        "repair $I",
        "repair $I/DiskDescriptor.xml",
        "info $I/root.hds",
        "check $I/root.hds",
        "map $I/root.hds",
        "export $I/root.hds -",
        "snapshot /nowhere",
        "restore-descriptor new.xml $I/root.hds",
        "--wrong-option",
    ] {
        for file in ["root.hds", "DiskDescriptor.xml"] {
            for way in [">>", "1<>"] {
                let output = script(&image, &format!("$P {command} {way} $I/{file}"));
                assert_eq!(output.status.code(), Some(1), "{command} {way} {file}");
                let words = words(&output);
                assert!(
                    words.contains(file) && words.contains("a file of"),
                    "{words}"
                );
            }
            for way in ["2>>", "2<>"] {
                let output = script(&image, &format!("$P {command} {way} $I/{file}"));
                assert_eq!(output.status.code(), Some(1), "{command} {way} {file}");
            }
        }
        assert_unchanged(command);
    }
    let output = script(&image, "$P cat $I /a/one >> other && cat other");
    assert_eq!(output.stdout, b"aone");
}

/// Which nothing but its descriptor tells from other files.
#[test]
fn a_stream_that_is_a_raw_base_is_refused() {
    let image = image(&["-t", "ext4"], &[]);
    let made = script(
        &image,
        "$P convert --mode raw $I && $P snapshot $I > /dev/null",
    );
    assert!(made.status.success(), "{}", words(&made));
    let raw = image.image().join("root.hds");
    let before = fs::read(&raw).unwrap();
    let top = "$I/$(ls $I | grep root.hds.)";
    for command in [
        "info $I",
        "repair $I/DiskDescriptor.xml",
        &format!("check {top}"),
    ] {
        for way in [">>", "1<>", "2>>", "2<>"] {
            let output = script(&image, &format!("$P {command} {way} $I/root.hds"));
            assert_eq!(output.status.code(), Some(1), "{command} {way}");
        }
    }
    assert!(fs::read(&raw).unwrap() == before);
    // Of another image than that which is named, and where none is.
    for command in [
        "info nowhere",
        "--version",
        "help",
        "snapshot nowhere",
        "--wrong-option",
    ] {
        for way in [">>", "1<>", "2>>", "2<>", "3<> $I/root.hds >&3 #"] {
            let output = script(&image, &format!("$P {command} {way} $I/root.hds"));
            assert_eq!(output.status.code(), Some(1), "{command} {way}");
        }
    }
    assert!(fs::read(&raw).unwrap() == before);
    for other in ["other", "report.xml"] {
        let output = script(&image, &format!("$P info $I > $I/{other}"));
        assert!(output.status.success(), "{}", words(&output));
    }
    let output = script(&image, "$P import $I/root.hds new >> $I/root.hds");
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(fs::read(&raw).unwrap() == before);
}

#[test]
fn a_reader_that_goes_away_is_told_by_the_status() {
    let image = ExtImage::new(&["-t", "ext4"], 32 * M, |tree| {
        fs::write(tree.join("big"), vec![7; 8 << 20]).unwrap();
    });
    image.import(&[]);
    for command in ["tar $I", "cat $I /big", "export $I -"] {
        let pipe = format!("set -o pipefail; $P {command} | head -c 100 > /dev/null");
        let output = script(&image, &pipe);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert_eq!(words(&output), "", "{command}");
    }
}

#[test]
fn a_pipe_in_the_place_of_an_image_is_refused_at_once() {
    let image = image(&["-t", "ext4"], &[]);
    let commands = [
        "info p",
        "check p",
        "map p",
        "export p -",
        "export p out",
        "ls p",
        "tar p",
        "snapshot p",
        "compact p",
        "repair p",
        "repair p.xml",
        "restore-descriptor new.xml p",
        "mount p d",
    ];
    assert!(script(&image, "mkfifo p p.xml; mkdir d").status.success());
    for command in commands {
        let output = script(&image, &format!("timeout 60 $P {command}"));
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{command}: {output:?}"
        );
    }
    let output = script(&image, "timeout 60 $P info p");
    assert!(words(&output).contains("a pipe"), "{}", words(&output));
}

#[test]
fn an_import_that_waits_for_a_pipe_ends_with_a_signal() {
    let image = image(&["-t", "ext4"], &[]);
    assert!(script(&image, "mkfifo p").status.success());
    for (number, signal) in SIGNALS.into_iter().enumerate() {
        let target = image.path(&number.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ploop-image"));
        command.args(["import", text(&image.path("p")), text(&target)]);
        let mut child = signalled::start(command.stderr(Stdio::piped())).unwrap();
        // The handlers are there before the directory is.
        wait_for(|| target.exists());
        // By now it waits, most of the time; it ends in the same way if not.
        thread::sleep(Duration::from_millis(200));
        signalled::send(&child, signal);
        let status = signalled::end_of(&mut child);
        assert_eq!(status.code(), Some(1));
        let mut words = String::new();
        child.stderr.unwrap().read_to_string(&mut words).unwrap();
        assert!(words.contains("cancelled"), "{words}");
        assert!(!target.exists());
    }
    // One that somebody writes to late, and in pieces, is read to its end.
    let late = "(sleep 0.3; head -c 1M raw; sleep 0.3; tail -c +1048577 raw) > p & $P import -q p new && $P export -q new - | cmp - raw";
    let output = script(&image, late);
    assert!(output.status.success(), "{}", words(&output));
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(1));
    }
}

/// The process is stopped while it writes, so the signal finds it at it.
#[test]
fn a_signal_leaves_no_part_under_the_final_name() {
    let image = ExtImage::new(&["-t", "ext4"], 128 * M, |tree| {
        fs::write(tree.join("big"), vec![7; 100 << 20]).unwrap();
    });
    image.import(&[]);
    let path = image.image();
    for (number, signal) in SIGNALS.into_iter().enumerate() {
        let out = image.path(&number.to_string());
        for arguments in [
            ["tar", text(&path), "-o", text(&out)],
            ["cp", text(&path), "/big", text(&out)],
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ploop-image"));
            command.args(arguments).stderr(Stdio::null());
            let mut child = signalled::start(&mut command).unwrap();
            let has_begun = || {
                let partial = partial_files(image.dir.path()).pop().unwrap_or(out.clone());
                fs::metadata(partial).is_ok_and(|it| it.len() > 0)
            };
            wait_for(has_begun);
            for signal in [Signal::STOP, signal, Signal::CONT] {
                signalled::send(&child, signal);
            }
            let status = signalled::end_of(&mut child);
            assert_eq!(status.code(), Some(1), "{arguments:?}");
            assert!(!out.exists(), "{arguments:?}");
            assert_eq!(partial_files(image.dir.path()), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn the_limit_of_the_size_of_files_is_reported() {
    let image = ExtImage::new(&["-t", "ext4"], 32 * M, |tree| {
        fs::write(tree.join("big"), vec![7; 8 << 20]).unwrap();
    });
    image.import(&[]);
    for command in ["tar $I -o out", "cp $I /big out", "export $I out"] {
        let output = script(&image, &format!("ulimit -f 4096; $P {command}"));
        assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
        let words = words(&output);
        assert!(words.contains("File too large"), "{command}: {words}");
        assert!(!image.path("out").exists(), "{command}");
        assert_eq!(partial_files(image.dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn cp_keeps_the_sticky_bit_and_no_set_id_bits() {
    let image = image(
        &["-t", "ext4"],
        &[
            "set_inode_field a mode 041777",
            "set_inode_field b mode 042755",
            "set_inode_field a/one mode 0104755",
        ],
    );
    let out = image.path("out");
    let output = ploop_image(&["cp", "-r", text(&image.image()), "/", text(&out)]);
    assert!(output.status.success(), "{}", words(&output));
    let mode = |name| fs::metadata(out.join(name)).unwrap().permissions().mode();
    assert_eq!(mode("a"), 0o041_777);
    assert_eq!(mode("b"), 0o040_755);
    assert_eq!(mode("a/one"), 0o100_755);
    let help = String::from_utf8(ploop_image(&["help", "cp"]).stdout).unwrap();
    assert!(help.contains("set-user-ID"), "{help}");
}

/// More files than are in memory at a time: all of them would take more than the limit.
#[test]
fn large_directories_are_listed_in_bounded_memory() {
    const COUNT: usize = 7000;
    let image = ExtImage::new(&["-t", "ext4", "-N", "30000"], 32 * M, |tree| {
        for directory in ["a", "b", "c", "d"] {
            fs::create_dir(tree.join(directory)).unwrap();
            for number in 0..COUNT {
                fs::write(tree.join(directory).join(format!("{number:05}")), "").unwrap();
            }
        }
    });
    image.import(&[]);
    let output = script(&image, "ulimit -v 65536; $P ls $I /a /b /c /d");
    assert!(output.status.success(), "{}", words(&output));
    let list = String::from_utf8(output.stdout).unwrap();
    assert_eq!(list.lines().count(), 4 * COUNT + 1);
    assert!(list.lines().last().unwrap().ends_with("  /d/06999"));
    let entries = ext_image::json(0, &["ls", text(&image.image()), "/c"]);
    assert_eq!(entries.as_array().unwrap().len(), COUNT);
    assert_eq!(entries[COUNT - 1]["name"], "06999");
}

/// Paths that are not UTF-8 are lists of bytes, in what each command prints.
#[test]
fn json_has_any_path() {
    let image = ExtImage::new(&["-t", "ext4"], 16 * M, tree);
    let dir = image.dir.path().join(OsStr::from_bytes(b"n\xff"));
    let run = |arguments: &[&OsStr], status: i32| {
        let output = Command::new(env!("CARGO_BIN_EXE_ploop-image"))
            .args(arguments)
            .arg("--json")
            .current_dir(image.dir.path())
            .output()
            .unwrap();
        let words = words(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {words}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        value
    };
    let bytes = |path: &Path| serde_json::to_value(path.as_os_str().as_bytes()).unwrap();
    let os = OsStr::new;
    let raw = image.raw();
    let descriptor = dir.join("DiskDescriptor.xml");
    let made = run(&[os("import"), raw.as_os_str(), dir.as_os_str()], 0);
    assert_eq!(made["descriptor"], bytes(&descriptor));
    let sub = dir.join("sub");
    let made = run(&[os("create"), sub.as_os_str(), os("--size"), os("8M")], 0);
    assert_eq!(made["descriptor"], bytes(&sub.join("DiskDescriptor.xml")));
    let from = run(&[os("snapshot"), dir.as_os_str()], 0);
    let from = from["guid"].as_str().unwrap();
    let info = run(&[os("info"), dir.as_os_str()], 0);
    assert_eq!(info["path"], bytes(&descriptor));
    let base = bytes(&dir.join("root.hds"));
    assert!(
        info["descriptor"]["images"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["file"] == base)
    );
    let check = run(&[os("check"), dir.as_os_str()], 0);
    assert_eq!(check["deltas"][0]["file"], base);
    let map = run(&[os("map"), dir.as_os_str()], 0);
    assert_eq!(map[0]["file"], base);
    let diff = [os("diff"), dir.as_os_str(), os("--from"), os(from)];
    run(&diff, 0);
    run(&[&diff[..], &[os("--files")]].concat(), 0);
    run(&[os("ls"), dir.as_os_str()], 0);
    let out = dir.join("out");
    run(&[os("export"), dir.as_os_str(), out.as_os_str()], 0);
    run(&[os("compact"), dir.as_os_str()], 0);
    run(&[os("switch"), dir.as_os_str(), os(from)], 0);

    // An in-use mark, which is cleared, and set again.
    let file = File::options()
        .write(true)
        .open(dir.join("root.hds"))
        .unwrap();
    file.write_all_at(&0x746f_6e59u32.to_le_bytes(), 44)
        .unwrap();
    let undo = dir.join("undo");
    let repair = [
        os("repair"),
        dir.as_os_str(),
        os("--undo"),
        undo.as_os_str(),
    ];
    let report = run(&repair, 0);
    assert_eq!(report["items"][0]["file"], base, "{report}");
    let revert = [
        os("repair"),
        dir.as_os_str(),
        os("--revert"),
        undo.as_os_str(),
    ];
    assert_eq!(run(&revert, 0)["files"], serde_json::json!([base]));
    run(&[os("repair"), dir.as_os_str()], 0);

    let new = dir.join("new.xml");
    let root = sub.join("root.hds");
    let restored = run(
        &[os("restore-descriptor"), new.as_os_str(), root.as_os_str()],
        0,
    );
    assert_eq!(restored["descriptor"], bytes(&new));
}
