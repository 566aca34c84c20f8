//! `tar`, and GNU tar on the same file system, mounted by a loop device.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use ploop::Size;
use rustix::fs::{XattrFlags, setxattr};

use crate::images::{Cache, M};
use crate::turns::{self, Bars, Taken};
use crate::{PLOOP_IMAGE, turns::run};

const ROUNDS: usize = 11;
/// What our time may be of GNU tar's.
const BAR: f64 = 1.25;

pub(crate) fn table(dir: &Path, bars: &mut Bars) -> Result<(), String> {
    if !rustix::process::getuid().is_root() {
        return Err("it needs root, to mount".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("it needs loop devices".to_owned());
    }
    let title = format!("archives of the file system inside, into a file: medians of {ROUNDS}");
    bars.heading(&title, "tar --xattrs --acls");
    many_files(dir, bars);
    few_files(dir, bars);
    Ok(())
}

fn many_files(dir: &Path, bars: &mut Bars) {
    let mut random = fastrand::Rng::with_seed(1);
    let fill = |root: &Path| {
        for directory in 0..200 {
            let directory = root.join(format!("usr/share/directory-{directory}"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..100 {
                let path = directory.join(format!("file-{file}"));
                let mut contents = vec![0; random.usize(1..16 << 10)];
                random.fill(&mut contents);
                fs::write(&path, contents).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
                if file % 20 == 0 {
                    let value = b"unconfined_u:object_r:user_home_t:s0\0";
                    setxattr(&path, "user.label", value, XattrFlags::empty()).unwrap();
                    symlink("../file-0", directory.join(format!("link-{file}"))).unwrap();
                }
            }
        }
    };
    pairs(dir, "many", "20000 files of up to 16 KiB", fill, bars);
}

fn few_files(dir: &Path, bars: &mut Bars) {
    let mut random = fastrand::Rng::with_seed(2);
    let fill = |root: &Path| {
        let mut noise = vec![0; M as usize];
        for number in 0..4 {
            let mut file = File::create(root.join(format!("disk-{number}"))).unwrap();
            for _ in 0..192 {
                random.fill(&mut noise);
                file.write_all(&noise).unwrap();
            }
        }
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        for at in (0..1 << 30).step_by(8 << 20) {
            sparse.write_all_at(&noise[..1 << 16], at).unwrap();
        }
    };
    pairs(dir, "few", "4 files of 192 MiB, one with holes", fill, bars);
}

/// Makes a file system of what `fill` makes, and archives it in both ways.
fn pairs(dir: &Path, name: &str, what: &str, fill: impl FnOnce(&Path), bars: &mut Bars) {
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    let (raw, mount) = (dir.join("raw"), dir.join("mnt"));
    fs::create_dir(&mount).unwrap();
    let size = Size::from_gib(2);
    File::create(&raw).unwrap().set_len(size.bytes()).unwrap();
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&raw));
    {
        let mounted = Mounted::new(&raw, &mount, "loop");
        fill(mounted.0);
    }
    let image = dir.join("image");
    let command = || {
        let mut command = Command::new(PLOOP_IMAGE);
        command.arg("--quiet");
        command
    };
    run(command()
        .arg("import")
        .args([&raw, &image])
        .stdout(std::process::Stdio::null()));
    fs::remove_file(&raw).unwrap();
    run(command().arg("export").args([&image, &raw]));
    let file = image.join("root.hds");

    let out = dir.join("out.tar");
    let gnu = |at: &Path| -> Taken {
        let mut command = Command::new("tar");
        command.args(["--xattrs", "--acls", "--sparse", "--numeric-owner"]);
        run(command.arg("-cf").arg(&out).arg("-C").arg(at).arg("."))
    };
    let names = || {
        let output = Command::new("tar").arg("-tf").arg(&out).output().unwrap();
        let mut names: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|name| name.trim_end_matches('/').to_owned())
            .collect();
        names.sort();
        names
    };
    let mut listed: Vec<Vec<String>> = Vec::new();
    for cache in [Cache::Warm, Cache::Cold] {
        let mut ours = || {
            let _ = fs::remove_file(&out);
            cache.prepare(&file);
            let taken = run(command().arg("tar").arg(&image).arg("-o").arg(&out));
            if listed.len() < 2 {
                listed.push(names());
            }
            taken
        };
        // Mounted anew: neither side has read anything of the file system.
        let mut theirs = || {
            let _ = fs::remove_file(&out);
            cache.prepare(&raw);
            let mounted = Mounted::new(&raw, &mount, "loop,ro");
            gnu(mounted.0)
        };
        let [ours, theirs] = turns::medians(ROUNDS, [&mut ours, &mut theirs]);
        let name = format!("{what}, {}", cache.name());
        bars.row(&name, ours.wall, theirs.wall, BAR);
    }
    {
        let mounted = Mounted::new(&raw, &mount, "loop,ro");
        let _ = fs::remove_file(&out);
        gnu(mounted.0);
    }
    assert_eq!(listed[0], names(), "the archives have other files");
    fs::remove_dir_all(&dir).unwrap();
}

/// A file system that is mounted until this is dropped.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn new<'a>(raw: &Path, at: &'a Path, options: &str) -> Mounted<'a> {
        run(Command::new("mount").args(["-o", options]).args([raw, at]));
        Mounted(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0));
    }
}
