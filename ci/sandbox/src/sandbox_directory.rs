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

const PATIENCE: Duration = Duration::from_secs(30);

/// Where sandboxes keep their directories. Those of one base clean up after each other; those of different bases do not
/// know of each other.
#[derive(Debug, Clone)]
pub(crate) struct Base(PathBuf);

impl Base {
    /// The name of a sandbox and of the socket in it, with the slashes before them.
    const BELOW: usize = "/01234567/socket".len();
    /// What fits into the address of a socket, with the zero behind it.
    const ADDRESS: usize = 107;

    /// The base directory of this name, which is made if it is not there.
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
        let longest = Base::ADDRESS - Base::BELOW;
        if len > longest {
            bail!(
                "{}: its name has {len} bytes; choose one of at most {longest}, so that a socket's address holds it",
                path.display()
            );
        }
        Ok(Base(path))
    }
}

/// Where a sandbox keeps what it made.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDirectory {
    dir: PathBuf,
}

/// Held by the launcher and the daemon of a sandbox: where nobody holds it, the sandbox is dead.
/// Both have the same open file, so that it is free when the last of them is gone.
pub(crate) struct Lock(pub(crate) File);

impl SandboxDirectory {
    /// The state of the sandbox in this directory.
    pub(crate) fn new(dir: PathBuf) -> SandboxDirectory {
        SandboxDirectory { dir }
    }

    /// Makes the directory of a new sandbox, and takes its lock.
    pub(crate) fn create(base: &Base) -> Result<(SandboxDirectory, Lock)> {
        let mode = 0o755;
        // Nobody may take a directory for that of a dead sandbox before its lock is held.
        let _list = lock_list(&base.0)?;
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let dir = base.0.join(format!("{:08x}", u32::from_ne_bytes(bytes)));
        DirBuilder::new()
            .mode(mode)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let state = SandboxDirectory::new(dir);
        let lock = lock_of(&state)?.context("a new lock is held")?;
        for name in DIRECTORIES {
            DirBuilder::new().mode(mode).create(state.dir.join(name))?;
        }
        Ok((state, Lock(lock)))
    }

    /// The sandboxes that nobody runs any more. Their locks are taken, so that nobody else cleans
    /// them up.
    pub(crate) fn dead(base: &Base) -> Result<Vec<(SandboxDirectory, Lock)>> {
        let base = &base.0;
        let _list = lock_list(base)?;
        let mut dead = Vec::new();
        let context = || format!("cannot list {}", base.display());
        for entry in fs::read_dir(base).with_context(context)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let state = SandboxDirectory::new(entry.path());
                if let Some(lock) = lock_of(&state)? {
                    dead.push((state, Lock(lock)));
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

    /// Where the FUSE file system of what belongs into `/sys` and `/proc` is mounted.
    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// The real `/sys/block`.
    pub(crate) fn real_block(&self) -> PathBuf {
        self.dir.join("block")
    }

    /// The real `/sys/devices/virtual/block`.
    pub(crate) fn real_virtual(&self) -> PathBuf {
        self.dir.join("virtual")
    }

    /// The real `/sys/module`.
    pub(crate) fn real_module(&self) -> PathBuf {
        self.dir.join("module")
    }

    /// Where the sandbox's `/dev` is made.
    pub(crate) fn dev(&self) -> PathBuf {
        self.dir.join("dev")
    }

    /// Where the FUSE file system of a device's data is mounted.
    pub(crate) fn data(&self, index: u32) -> PathBuf {
        self.dir.join("data").join(index.to_string())
    }

    /// Notes that a loop device is this sandbox's, so that it is removed whatever happens.
    pub(crate) fn note_loop(&self, index: u32) -> io::Result<()> {
        File::create(self.loop_note(index)).map(drop)
    }

    /// Takes the note back.
    pub(crate) fn forget_loop(&self, index: u32) {
        // A note too many does no harm: the device it names is not there.
        let _ = fs::remove_file(self.loop_note(index));
    }

    fn loop_note(&self, index: u32) -> PathBuf {
        self.dir.join("loops").join(index.to_string())
    }

    /// The loop devices noted.
    pub(crate) fn loops(&self) -> Vec<u32> {
        names(&self.dir.join("loops"))
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    /// Removes the directory. By name, and never into what may be mounted there.
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
        // Without the lock's file nobody could tell that this directory is taken.
        let base = self.dir.parent().unwrap_or(&self.dir);
        let _list = lock_list(base).map_err(io::Error::other)?;
        ignore_missing(fs::remove_file(self.lock()))?;
        ignore_missing(fs::remove_dir(&self.dir))?;
        // Others may be there.
        let _ = fs::remove_dir(base);
        Ok(())
    }
}

const DIRECTORIES: [&str; 7] = ["tree", "block", "virtual", "module", "dev", "data", "loops"];

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

/// The lock of the list of sandboxes, which is held for a short time only: that of the directory,
/// which the last sandbox removes.
fn lock_list(base: &Path) -> Result<File> {
    loop {
        make_base(base)?;
        let Ok(list) = File::open(base) else {
            continue;
        };
        let context = || format!("cannot lock {}", base.display());
        if !lock(&list, PATIENCE).with_context(context)? {
            bail!(
                "{} was locked for {PATIENCE:?}: see by whom in /proc/locks",
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

/// The lock of a sandbox, if nobody holds it.
fn lock_of(state: &SandboxDirectory) -> Result<Option<File>> {
    let path = state.lock();
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

/// Takes a lock, waiting for a time at most.
fn lock(file: &File, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
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
