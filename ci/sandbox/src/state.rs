//! The directory of a sandbox below `/run`, its lock, and what is left of sandboxes that died.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ploop_sandbox_wire as wire;
use rustix::fs::FlockOperation;

const BASE: &str = "/run/ploop-sandbox";
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a sandbox keeps what it made.
#[derive(Debug, Clone)]
pub(crate) struct State {
    dir: PathBuf,
}

/// Held by the launcher and the daemon of a sandbox: where nobody holds it, the sandbox is dead.
/// Both have the same open file, so that it is free when the last of them is gone.
pub(crate) struct Lock(pub(crate) File);

impl State {
    /// The state of the sandbox in this directory.
    pub(crate) fn new(dir: PathBuf) -> State {
        State { dir }
    }

    /// Makes the directory of a new sandbox, and takes its lock.
    pub(crate) fn create() -> Result<(State, Lock)> {
        let mode = 0o755;
        // Nobody may take a directory for that of a dead sandbox before its lock is held.
        let _list = lock_list()?;
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let dir = Path::new(BASE).join(format!("{:08x}", u32::from_ne_bytes(bytes)));
        DirBuilder::new()
            .mode(mode)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let state = State::new(dir);
        let lock = lock_of(&state)?.context("a new lock is held")?;
        for name in DIRECTORIES {
            DirBuilder::new().mode(mode).create(state.dir.join(name))?;
        }
        Ok((state, Lock(lock)))
    }

    /// The sandboxes that nobody runs any more. Their locks are taken, so that nobody else cleans
    /// them up.
    pub(crate) fn dead() -> Result<Vec<(State, Lock)>> {
        if !Path::new(BASE).exists() {
            return Ok(Vec::new());
        }
        let _list = lock_list()?;
        let mut dead = Vec::new();
        for entry in fs::read_dir(BASE).with_context(|| format!("cannot list {BASE}"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let state = State::new(entry.path());
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
        let _list = lock_list().map_err(io::Error::other)?;
        ignore_missing(fs::remove_file(self.lock()))?;
        ignore_missing(fs::remove_dir(&self.dir))?;
        // Others may be there.
        let _ = fs::remove_dir(BASE);
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
fn lock_list() -> Result<File> {
    loop {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(BASE)
            .with_context(|| format!("cannot make {BASE}"))?;
        let Ok(list) = File::open(BASE) else {
            continue;
        };
        let locked = lock(&list, PATIENCE).with_context(|| format!("cannot lock {BASE}"))?;
        if !locked {
            bail!("{BASE} was locked for {PATIENCE:?}: see by whom in /proc/locks");
        }
        let there = fs::metadata(BASE).ok().map(|metadata| metadata.ino());
        if there == Some(list.metadata()?.ino()) {
            return Ok(list);
        }
    }
}

/// The lock of a sandbox, if nobody holds it.
fn lock_of(state: &State) -> Result<Option<File>> {
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
