//! An image with an ext4 file system, and what is known to be in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use ploop::{CreateParam, MountGuard, MountParam, Ploop, Size};
use tempfile::TempDir;

pub(crate) struct Container {
    pub(crate) dir: TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Container {
    /// An image of this size in a directory of its own. The driver refuses tmpfs, so it is made beside
    /// what Cargo builds.
    pub(crate) fn new(size: Size) -> (Container, Ploop) {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let image = Ploop::create(&CreateParam::new(dir.path().join("root.hdd"), size)).unwrap();
        let container = Container {
            dir,
            files: BTreeMap::new(),
        };
        (container, image)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("mnt")
    }

    pub(crate) fn param(&self) -> MountParam {
        MountParam::new().target(self.target())
    }

    /// Writes a file of `len` bytes that depend on its name, and brings it to the disk.
    pub(crate) fn write(&mut self, name: &str, len: usize) {
        let seed = name
            .bytes()
            .fold(7u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let bytes: Vec<u8> = (0..len as u64)
            .map(|at| (seed.wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let mut file = File::create(self.target().join(name)).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        self.files.insert(name.to_owned(), bytes);
    }

    /// That the mounted file system holds these files as they were written, and no other.
    pub(crate) fn verify_at(&self, target: &Path, names: &[&str]) {
        let found: Vec<String> = fs::read_dir(target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lost+found" && !name.starts_with(".balloon"))
            .collect();
        assert_eq!(found.len(), names.len(), "{found:?}");
        for name in names {
            let bytes = fs::read(target.join(name)).unwrap();
            assert!(bytes == self.files[*name], "{name} differs");
        }
    }

    pub(crate) fn verify(&self, names: &[&str]) {
        self.verify_at(&self.target(), names);
    }

    /// Mounts, compares, unmounts.
    pub(crate) fn verify_image(&self, image: &mut Ploop, names: &[&str]) {
        let guard: MountGuard<'_> = image.mount_guard(&self.param().read_only(true)).unwrap();
        self.verify(names);
        guard.umount().unwrap();
    }

    /// The size of the mounted file system as `statfs` has it, in MiB.
    pub(crate) fn mounted_mib(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.target()).unwrap();
        (stat.f_blocks * stat.f_frsize) >> 20
    }
}
