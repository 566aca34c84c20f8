//! Files out of the file system inside, compared with what other programs make of them.

mod ext_image;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ploop::image::{Image, ImageKind};
use ploop::{Descriptor, Guid, Size};
use tempfile::TempDir;

use ext_image::{ploop_image, run, text};

const SIZE: u64 = 64 << 20;

/// A tree of files, and an image whose file system has it.
struct FilledImage {
    dir: TempDir,
}

impl FilledImage {
    /// `options` for mke2fs.
    fn new(options: &[&str]) -> FilledImage {
        let dir = tempfile::tempdir().unwrap();
        let image = FilledImage { dir };
        make_tree(&image.tree());
        let (tree, file) = (image.tree(), image.file());
        let size = format!("{}M", SIZE >> 20);
        let arguments = [
            &["-q", "-F", "-d", text(&tree)],
            options,
            &[text(&file), &size],
        ]
        .concat();
        run("mke2fs", &arguments);
        let base = Image::new(Guid::TOP, &file, ImageKind::Plain);
        let descriptor = Descriptor::new(Size::from_bytes(SIZE), base);
        let xml = descriptor.to_xml(image.dir.path()).unwrap();
        fs::write(image.dir.path().join("DiskDescriptor.xml"), xml).unwrap();
        image
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("root.hds")
    }

    fn path(&self) -> &str {
        text(self.dir.path())
    }

    fn debugfs(&self, request: &str) {
        let output = run("debugfs", &["-w", "-R", request, text(&self.file())]);
        let words = String::from_utf8_lossy(&output.stderr);
        // The first line is its version.
        assert!(words.lines().count() <= 1, "{request}: {words}");
    }

    fn tar(&self, arguments: &[&str]) -> Vec<u8> {
        let output = ploop_image(&[&["tar", self.path()], arguments].concat());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
        output.stdout
    }
}

fn make_tree(tree: &Path) {
    let deep = tree.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::create_dir_all(tree.join("many")).unwrap();
    fs::write(tree.join("etc/os-release"), "ID=test\n").unwrap();
    fs::hard_link(tree.join("etc/os-release"), tree.join("etc/hard")).unwrap();
    symlink("../etc/os-release", tree.join("many/link")).unwrap();
    symlink("l".repeat(200), tree.join("long-link")).unwrap();
    symlink("/etc/hard", tree.join("absolute-link")).unwrap();
    symlink("loop", tree.join("loop")).unwrap();
    let random: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(tree.join("big"), &random).unwrap();
    fs::set_permissions(tree.join("big"), fs::Permissions::from_mode(0o4751)).unwrap();
    for number in 0..500 {
        fs::write(tree.join(format!("many/{number}")), number.to_string()).unwrap();
    }
    fs::write(tree.join("grün"), "").unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"no\xfftext")), "bytes").unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 9_000_000).unwrap();
    File::create(tree.join("hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 120_000_000);
    File::open(tree.join("grün"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
}

/// What is in a directory: names with kinds, modes, sizes, times, targets and contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(dir).unwrap().to_owned();
        if name == Path::new("lost+found") {
            continue;
        }
        let what = if metadata.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else if metadata.is_file() {
            let bytes = fs::read(&path).unwrap();
            let sum = bytes
                .iter()
                .fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
            format!("{} bytes {sum:x}, {} links", bytes.len(), metadata.nlink())
        } else {
            if metadata.is_dir() {
                left.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
            format!("{:?}", metadata.file_type())
        };
        let time = match metadata.is_dir() {
            // mke2fs sets its own.
            true => String::new(),
            // Nor does it write fractions of a second.
            false => metadata.mtime().to_string(),
        };
        found.insert(name, format!("{:o} {time} {what}", metadata.mode()));
    }
    found
}

fn untar(archive: &[u8], to: &Path) {
    fs::create_dir(to).unwrap();
    let mut child = Command::new("tar")
        .args(["-xpf", "-", "-C"])
        .arg(to)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(child.wait().unwrap().success());
}

fn require_equal(expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) {
    for (path, what) in expected {
        assert_eq!(found.get(path), Some(what), "{}", path.display());
    }
    assert_eq!(expected.len(), found.len());
}

#[test]
fn an_archive_of_every_kind_of_file_system_is_the_tree() {
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext4", "-O", "inline_data"],
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
        &["-t", "ext3"],
        &["-t", "ext2", "-I", "128"],
    ] {
        let image = FilledImage::new(options);
        let archive = image.tar(&[]);
        let out = image.dir.path().join("out");
        untar(&archive, &out);
        let (mut expected, mut found) = (contents(&image.tree()), contents(&out));
        if options.contains(&"inline_data") {
            // With this option mke2fs cuts off holes at the end.
            for name in ["sparse", "hole"] {
                expected.remove(Path::new(name));
                found.remove(Path::new(name));
            }
        }
        require_equal(&expected, &found);
        // Holes are holes.
        let stored = fs::metadata(out.join("sparse")).unwrap().blocks() * 512;
        assert!(stored < 1 << 20, "{stored}");
        assert!(archive.len() < 6 << 20, "{}", archive.len());
    }
}

#[test]
fn an_archive_has_owners_devices_and_attributes() {
    let image = FilledImage::new(&["-t", "ext4"]);
    image.debugfs("mknod null c 1 3");
    image.debugfs("mknod disk b 259 300");
    image.debugfs("set_inode_field big uid 70000");
    image.debugfs("set_inode_field big gid 3000000");
    // In the upper bits; the lower two belong to the seconds.
    image.debugfs(&format!(
        "set_inode_field big mtime_extra {}",
        120_000_000u32 << 2
    ));
    image.debugfs("ea_set big user.colour blue");
    image.debugfs("ea_set etc trusted.overlay.opaque y");
    let archive = image.tar(&["/null", "/disk", "/big", "/etc"]);
    let mut archive = tar::Archive::new(&*archive);
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let extensions: BTreeMap<String, Vec<u8>> = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(|it| it.unwrap())
            .map(|it| (it.key().unwrap().to_owned(), it.value_bytes().to_vec()))
            .collect();
        let header = entry.header();
        let device = (
            header.device_major().unwrap(),
            header.device_minor().unwrap(),
        );
        let attribute = |name: &str| extensions.get(&format!("SCHILY.xattr.{name}")).cloned();
        match &*name {
            "./null" => assert_eq!(device, (Some(1), Some(3))),
            "./disk" => assert_eq!(device, (Some(259), Some(300))),
            "./big" => {
                assert_eq!(header.uid().unwrap(), 70000);
                assert_eq!(extensions["gid"], b"3000000");
                let time = String::from_utf8_lossy(&extensions["mtime"]).into_owned();
                assert!(time.ends_with(".12"), "{time}");
                assert_eq!(attribute("user.colour").as_deref(), Some(&b"blue"[..]));
                assert_eq!(header.mode().unwrap(), 0o4751);
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                assert!(data == fs::read(image.tree().join("big")).unwrap());
            }
            "./etc/" => {
                let opaque = attribute("trusted.overlay.opaque");
                assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
            }
            _ => {}
        }
        names.push(name);
    }
    let expected = [
        "./null",
        "./disk",
        "./big",
        "./etc/",
        "./etc/hard",
        "./etc/os-release",
    ];
    assert_eq!(names, expected);
}

#[test]
fn what_the_journal_has_committed_is_read() {
    let image = FilledImage::new(&["-t", "ext4", "-b", "4096"]);
    let blocks = run(
        "debugfs",
        &["-R", "blocks /etc/os-release", text(&image.file())],
    );
    let block = String::from_utf8(blocks.stdout).unwrap();
    let newer = image.dir.path().join("newer");
    let mut bytes = b"ID=newer".to_vec();
    bytes.resize(4096, 0);
    fs::write(&newer, bytes).unwrap();
    // A transaction that is in the journal, and nowhere else.
    let mut debugfs = Command::new("debugfs")
        .args(["-w", "-f", "-"])
        .arg(image.file())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let script = format!("jo\njw -b {} {}\njc\n", block.trim(), newer.display());
    debugfs
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(debugfs.wait().unwrap().success());
    let bytes = fs::read(image.file()).unwrap();
    let at = block.trim().parse::<usize>().unwrap() * 4096;
    assert_eq!(&bytes[at..at + 8], b"ID=test\n", "it is in place already");

    let output = ploop_image(&["cat", image.path(), "/etc/os-release"]);
    assert_eq!(output.stdout, b"ID=newer");
    assert!(
        fs::read(image.file()).unwrap() == bytes,
        "the image was written to"
    );
}

#[test]
fn ls_and_cat_follow_links_inside_the_image() {
    let image = FilledImage::new(&["-t", "ext4"]);
    for path in [
        "/etc/os-release",
        "many/link",
        "/absolute-link",
        "/many/../etc/./hard",
    ] {
        let output = ploop_image(&["cat", image.path(), path]);
        assert_eq!(output.stdout, b"ID=test\n", "{path}");
    }
    for (path, message) in [
        ("/none", "there is no such file"),
        ("/etc/os-release/x", "there is no such file"),
        ("/loop", "too many symbolic links"),
        ("/etc", "no regular file"),
    ] {
        let output = ploop_image(&["cat", image.path(), path]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains(message), "{path}: {words}");
    }
    let output = ploop_image(&["ls", "--json", image.path(), "/"]);
    let entries: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entries = entries.as_array().unwrap();
    let by_name = |name: &str| entries.iter().find(|it| it["name"] == name).unwrap();
    assert_eq!(by_name("big")["mode"], 0o4751);
    assert_eq!(by_name("big")["size"], 3_000_000);
    assert_eq!(by_name("long-link")["target"], "l".repeat(200));
    assert_eq!(by_name("fifo")["kind"], "fifo");
    let output = ploop_image(&["ls", image.path(), "/etc"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().nth(1).unwrap().starts_with("-rw-"), "{lines}");
    assert!(lines.lines().nth(1).unwrap().ends_with("  hard"), "{lines}");
}

#[test]
fn cp_copies_trees_and_leaves_devices_out() {
    let image = FilledImage::new(&["-t", "ext4"]);
    let out = image.dir.path().join("out");
    let output = ploop_image(&["cp", image.path(), "/etc", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!out.exists());
    let output = ploop_image(&["cp", "-r", image.path(), "/", text(&out)]);
    // The fifo is not there, and that is said.
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("fifo"), "{words}");
    let expected = contents(&image.tree());
    let mut found = contents(&out);
    found.insert("fifo".into(), expected[Path::new("fifo")].clone());
    for (path, what) in &expected {
        // Neither hard links nor the set-ID bits are kept.
        let what = what
            .replace(", 2 links", ", 1 links")
            .replace("104751", "100751");
        assert_eq!(found.get(path), Some(&what), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    // Nothing is overwritten.
    let output = ploop_image(&["cp", "-r", image.path(), "/", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(contents(&out).len(), expected.len() - 1);
}

/// An entry with the name of a link that was copied before must not be written through the link.
#[test]
fn cp_does_not_follow_links_that_it_has_made() {
    let image = FilledImage::new(&[
        "-t",
        "ext4",
        "-O",
        "^metadata_csum,^dir_index",
        "-b",
        "4096",
    ]);
    let (outside, out) = (
        image.dir.path().join("outside"),
        image.dir.path().join("out"),
    );
    fs::create_dir(&outside).unwrap();
    image.debugfs("mkdir evil");
    image.debugfs(&format!("symlink evil/aa {}", outside.display()));
    image.debugfs("mkdir evil/ab");
    image.debugfs("write /dev/null evil/ab/planted");
    // Two entries with one name: a link, and a directory.
    let file = File::options()
        .read(true)
        .write(true)
        .open(image.file())
        .unwrap();
    let block = run("debugfs", &["-R", "blocks /evil", text(&image.file())]);
    let at = String::from_utf8(block.stdout)
        .unwrap()
        .trim()
        .parse::<u64>()
        .unwrap()
        * 4096;
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, at).unwrap();
    let name = bytes.windows(2).rposition(|it| it == b"ab").unwrap();
    file.write_all_at(b"aa", at + name as u64).unwrap();
    let output = ploop_image(&["cp", "-r", image.path(), "/evil", text(&out)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// Whatever is damaged in it, a file system is read or refused, in a reasonable time.
#[test]
fn damaged_file_systems_are_read_or_refused() {
    let image = FilledImage::new(&["-t", "ext4", "-O", "^metadata_csum", "-b", "1024"]);
    let sound = fs::read(image.file()).unwrap();
    let used: Vec<usize> = (0..sound.len() / 1024)
        .filter(|block| sound[block * 1024..][..1024].iter().any(|byte| *byte != 0))
        // The superblock, descriptors, inodes and directories come first.
        .take(300)
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    let file = File::options().write(true).open(image.file()).unwrap();
    let mut refused = 0;
    for _ in 0..60 {
        let mut changed = Vec::new();
        for _ in 0..random.usize(1..200) {
            let block = used[random.usize(..used.len())];
            let at = block * 1024 + random.usize(..1024);
            file.write_all_at(&[random.u8(..)], at as u64).unwrap();
            changed.push(at);
        }
        let status = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_ploop-image"), "tar", image.path()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        refused += usize::from(status.code() == Some(1));
        for at in changed {
            file.write_all_at(&sound[at..=at], at as u64).unwrap();
        }
    }
    assert!(refused > 5, "only {refused} of the damages mattered");
}
