//! `mount`, and the FUSE export of `qemu-storage-daemon`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::Size;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::{self, Cache, M};
use crate::turns::{self, Bars, Taken};
use crate::{PLOOP_IMAGE, memory};

const ROUNDS: usize = 11;
const SIZE: Size = Size::from_gib(1);
const BLOCK: usize = 4096;
/// How much is read in blocks.
const PART: u64 = 128 * M;
const RANDOM_READS: u64 = 20_000;

pub(crate) fn table(dir: &Path, bars: &mut Bars) -> Result<(), String> {
    if !Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse".to_owned());
    }
    let image = dir.join("image.hds");
    images::delta(&image, SIZE, 0..(SIZE.bytes() / M) as u32);
    Cache::Warm.prepare(&image);
    let ours = Server::ploop_image(&image, &dir.join("mnt"))?;
    let theirs = Server::qemu(&image, &dir.join("export"))?;
    let same = [0, SIZE.bytes() / 2, SIZE.bytes() - BLOCK as u64].map(|at| {
        let [ours, theirs] = [&ours, &theirs].map(|server| {
            let mut block = [0; BLOCK];
            server
                .open(Reads::Cached)
                .read_exact_at(&mut block, at)
                .unwrap();
            block
        });
        ours == theirs
    });
    assert_eq!(same, [true; 3], "the two files differ");
    let title = format!(
        "reads of a mounted disk of {SIZE}, whose image is in memory and which the kernel has not read before: medians of {ROUNDS}"
    );
    bars.heading(&title, "qemu-storage-daemon");
    let jobs: [(&str, Reads, Job); 6] = [
        ("sequential, 1 MiB", Reads::Cached, |file| {
            sequential(file, M as usize, SIZE.bytes());
        }),
        ("sequential, 4 KiB", Reads::Cached, |file| {
            sequential(file, BLOCK, PART);
        }),
        ("random, 4 KiB", Reads::Random, |file| random(file, 1)),
        ("random, 4 KiB, 8 threads", Reads::Random, |file| {
            random(file, 8);
        }),
        ("sequential, 4 KiB, O_DIRECT", Reads::Direct, |file| {
            sequential(file, BLOCK, PART);
        }),
        ("random, 4 KiB, O_DIRECT", Reads::Direct, |file| {
            random(file, 1);
        }),
    ];
    for (name, reads, job) in jobs {
        let turn = |server: &Server| {
            let file = server.open(reads);
            let cpu = server.cpu();
            let begin = Instant::now();
            job(&file);
            Taken {
                wall: begin.elapsed(),
                cpu: server.cpu() - cpu,
            }
        };
        let [ours, theirs] = turns::medians(ROUNDS, [&mut || turn(&ours), &mut || turn(&theirs)]);
        bars.row(name, ours.wall, theirs.wall, 1.0);
    }
    let [ours, theirs] = [ours, theirs].map(|server| memory::peak_of(server.child.id()));
    println!("  memory of the servers at most: {ours} KiB, {theirs} KiB");
    Ok(())
}

type Job = fn(&File);

/// Through what a file is read.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    /// The memory of the kernel, which reads ahead.
    Cached,
    /// The memory of the kernel, which was told not to read ahead.
    Random,
    Direct,
}

fn sequential(file: &File, block: usize, len: u64) {
    let mut buffer = Buffer::new(block);
    for at in (0..len).step_by(block) {
        file.read_exact_at(buffer.bytes(), at).unwrap();
    }
}

/// Reads blocks anywhere, the same number with any number of threads.
fn random(file: &File, threads: u64) {
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                let mut buffer = Buffer::new(BLOCK);
                for _ in 0..RANDOM_READS / threads {
                    let at = random.u64(..SIZE.bytes() / BLOCK as u64) * BLOCK as u64;
                    file.read_exact_at(buffer.bytes(), at).unwrap();
                }
            });
        }
    });
}

/// A buffer that is aligned, as `O_DIRECT` wants it.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Buffer {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Buffer { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// A program that shows the disk as a file. It ends when this is dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) file: PathBuf,
}

impl Server {
    pub(crate) fn ploop_image(image: &Path, mount: &Path) -> Result<Server, String> {
        fs::create_dir(mount).unwrap();
        let mut command = Command::new(PLOOP_IMAGE);
        command.args(["--quiet", "mount"]).args([image, mount]);
        Server::start(&mut command, mount.join("top/disk"))
    }

    fn qemu(image: &Path, file: &Path) -> Result<Server, String> {
        fs::write(file, "").unwrap();
        let (image, mount) = (image.display(), file.display());
        let mut command = Command::new("qemu-storage-daemon");
        for (option, value) in [
            (
                "--blockdev",
                format!("file,filename={image},node-name=file,read-only=on"),
            ),
            (
                "--blockdev",
                "parallels,file=file,node-name=image,read-only=on".to_owned(),
            ),
            (
                "--export",
                format!("fuse,id=export,node-name=image,mountpoint={mount},allow-other=off"),
            ),
        ] {
            command.args([option, &value]);
        }
        Server::start(&mut command, file.to_owned())
    }

    /// The file is there once it has a length.
    fn start(command: &mut Command, file: PathBuf) -> Result<Server, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{program} cannot be started: {error}"))?;
        let mut server = Server { child, file };
        let begin = Instant::now();
        while server.file.metadata().map_or(0, |it| it.len()) == 0 {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("{program} ended with {status}"));
            }
            if begin.elapsed() > Duration::from_secs(30) {
                return Err(format!("{program} shows no file"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Opens the file, of which the kernel has nothing in memory then.
    fn open(&self, reads: Reads) -> File {
        let mut options = File::options();
        options.read(true);
        if reads == Reads::Direct {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let file = options.open(&self.file).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if reads == Reads::Random {
            fadvise(&file, 0, None, Advice::Random).unwrap();
        }
        file
    }

    /// What the server has used so far.
    fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(path).unwrap();
        // After the name, which may have spaces.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .map(|at: usize| fields[at].parse::<u64>().unwrap())
            .iter()
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(30) {
            // What is in use cannot be unmounted, so once may not be enough.
            let _ = kill_process(pid, Signal::INT);
            thread::sleep(Duration::from_millis(50));
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
