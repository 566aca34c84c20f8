//! The directory of a sandbox below the base directory, its lock, and what is left of sandboxes that died.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ploop_sandbox_wire as wire;
use rustix::fs::FlockOperation;

const TIMEOUT: Duration = Duration::from_secs(30);

/// The base directory. Sandboxes of one base clean up after each other; those of different bases leave each other
/// alone.
#[derive(Debug, Clone)]
pub(crate) struct Base(PathBuf);

impl Base {
    /// The length of the socket's path below the base directory.
    const SOCKET_LEN: usize = "/01234567/socket".len();
    /// The longest path that fits into `sockaddr_un` with its final zero.
    const ADDRESS_LEN: usize = 107;

    /// The base directory at this path; made if missing.
    pub(crate) fn new(path: &Path) -> Result<Base> {
        let context = || format!("cannot use the base directory {}", path.display());
        make_base(path)?;
        // The kernel lists mounts by their real paths.
        let path = path.canonicalize().with_context(context)?;
        let metadata = fs::metadata(&path).with_context(context)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            bail!(
                "{}: others can write to it; choose a directory that only this user can write to",
                path.display()
            );
        }
        let len = path.as_os_str().len();
        let longest = Base::ADDRESS_LEN - Base::SOCKET_LEN;
        if len > longest {
            bail!(
                "{}: the path has {len} bytes; choose one of at most {longest}, so that it fits into the address of a socket",
                path.display()
            );
        }
        Ok(Base(path))
    }
}

/// The directory of one sandbox, with everything that it has to remove again.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDirectory {
    dir: PathBuf,
}

/// The lock of a sandbox. Its launcher and its daemon hold it by one open file, so it is free when both are gone: the
/// sandbox is dead then.
pub(crate) struct Lock(pub(crate) File);

impl SandboxDirectory {
    /// A directory that is there already.
    pub(crate) fn new(dir: PathBuf) -> SandboxDirectory {
        SandboxDirectory { dir }
    }

    /// Makes the directory of a new sandbox, and takes its lock.
    pub(crate) fn create(base: &Base) -> Result<(SandboxDirectory, Lock)> {
        let mode = 0o755;
        // A directory whose lock is free looks like that of a dead sandbox; so nobody may list it before the lock is
        // held.
        let _list = lock_list(&base.0)?;
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let dir = base.0.join(format!("{:08x}", u32::from_ne_bytes(bytes)));
        DirBuilder::new()
            .mode(mode)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let sandbox = SandboxDirectory::new(dir);
        let lock = lock_of(&sandbox)?.context("the lock of a new sandbox is held")?;
        for name in DIRECTORIES {
            DirBuilder::new()
                .mode(mode)
                .create(sandbox.dir.join(name))?;
        }
        Ok((sandbox, Lock(lock)))
    }

    /// The dead sandboxes, with their locks held, so that nobody else cleans them up.
    pub(crate) fn dead(base: &Base) -> Result<Vec<(SandboxDirectory, Lock)>> {
        let base = &base.0;
        let _list = lock_list(base)?;
        let mut dead = Vec::new();
        let context = || format!("cannot list {}", base.display());
        for entry in fs::read_dir(base).with_context(context)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let sandbox = SandboxDirectory::new(entry.path());
                if let Some(lock) = lock_of(&sandbox)? {
                    dead.push((sandbox, Lock(lock)));
                }
            }
        }
        Ok(dead)
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// The list of attached files.
    pub(crate) fn attached(&self) -> PathBuf {
        self.dir.join(wire::ATTACHED)
    }

    /// The mount point of the FUSE file system with what belongs into `/sys` and `/proc`.
    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// A bind mount of the real `/sys/block`.
    pub(crate) fn real_block(&self) -> PathBuf {
        self.dir.join("block")
    }

    /// A bind mount of the real `/sys/class/block`.
    pub(crate) fn real_class(&self) -> PathBuf {
        self.dir.join("class")
    }

    /// A bind mount of the real `/sys/dev/block`.
    pub(crate) fn real_numbers(&self) -> PathBuf {
        self.dir.join("numbers")
    }

    /// A bind mount of the real `/sys/devices/virtual/block`.
    pub(crate) fn real_virtual(&self) -> PathBuf {
        self.dir.join("virtual")
    }

    /// A bind mount of the real `/sys/module`.
    pub(crate) fn real_module(&self) -> PathBuf {
        self.dir.join("module")
    }

    /// Where the sandbox's `/dev` is made.
    pub(crate) fn dev(&self) -> PathBuf {
        self.dir.join("dev")
    }

    /// The sandbox's `/proc/devices`.
    pub(crate) fn drivers(&self) -> PathBuf {
        self.dir.join("devices")
    }

    /// The mount point of the FUSE file system with a device's virtual disk.
    pub(crate) fn data(&self, index: u32) -> PathBuf {
        self.dir.join("data").join(index.to_string())
    }

    /// Notes that a loop device belongs to this sandbox, so that it is removed even if the sandbox is killed.
    pub(crate) fn note_loop(&self, index: u32) -> io::Result<()> {
        File::create(self.loop_note(index)).map(drop)
    }

    /// Takes the note back.
    pub(crate) fn forget_loop(&self, index: u32) {
        // A note that stays does no harm: its device is gone.
        let _ = fs::remove_file(self.loop_note(index));
    }

    fn loop_note(&self, index: u32) -> PathBuf {
        self.dir.join("loops").join(index.to_string())
    }

    /// The numbers of the loop devices noted.
    pub(crate) fn loops(&self) -> Vec<u32> {
        names(&self.dir.join("loops"))
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    /// Removes the directory, file by file, and never what may still be mounted in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for index in names(&self.dir.join("data")) {
            fs::remove_dir(self.dir.join("data").join(index))?;
        }
        for index in names(&self.dir.join("loops")) {
            fs::remove_file(self.dir.join("loops").join(index))?;
        }
        for name in DIRECTORIES {
            ignore_missing(fs::remove_dir(self.dir.join(name)))?;
        }
        ignore_missing(fs::remove_file(self.socket()))?;
        ignore_missing(fs::remove_file(self.attached()))?;
        // A directory without its lock file looks dead. So nobody may list it until it is gone.
        let base = self.dir.parent().unwrap_or(&self.dir);
        let _list = lock_list(base).map_err(io::Error::other)?;
        ignore_missing(fs::remove_file(self.lock()))?;
        ignore_missing(fs::remove_dir(&self.dir))?;
        // Fails where another sandbox is in it.
        let _ = fs::remove_dir(base);
        Ok(())
    }
}

const DIRECTORIES: [&str; 9] = [
    "tree", "block", "class", "numbers", "virtual", "module", "dev", "data", "loops",
];

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Locks the base directory, which is the list of sandboxes. The last sandbox removes it, so it may have to be made
/// again.
fn lock_list(base: &Path) -> Result<File> {
    loop {
        make_base(base)?;
        let Ok(list) = File::open(base) else {
            continue;
        };
        let context = || format!("cannot lock {}", base.display());
        if !lock(&list, TIMEOUT).with_context(context)? {
            bail!(
                "{} was locked for {TIMEOUT:?}: see by whom in /proc/locks",
                base.display()
            );
        }
        let there = fs::metadata(base).ok().map(|metadata| metadata.ino());
        if there == Some(list.metadata()?.ino()) {
            return Ok(list);
        }
    }
}

fn make_base(base: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(base)
        .with_context(|| format!("cannot make {}", base.display()))
}

/// Takes the lock of a sandbox, if nobody holds it.
fn lock_of(sandbox: &SandboxDirectory) -> Result<Option<File>> {
    let path = sandbox.lock();
    let context = || format!("cannot lock {}", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(context)?;
    let locked = lock(&file, Duration::ZERO).with_context(context)?;
    Ok(locked.then_some(file))
}

/// Takes a lock; false if somebody else held it all the time.
fn lock(file: &File, timeout: Duration) -> io::Result<bool> {
    let until = Instant::now() + timeout;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}
