//! The file system under the image is full, or its disk fails.
//!
//! The image lies in an ext4 on a loop device, mounted in a mount namespace of the part's own. The disk
//! "fails" by becoming shorter: the loop device is given a size limit while the file system on it is
//! mounted, and every access beyond gets EIO from the block layer. Taking the limit off mends it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;

use super::daemon::{read_manifest, write_until_it_fails};
use super::image::Image;
use super::ioctl;
use super::program::points;
use super::sandbox::{self, Lines, RunningPart, run, tool};

const MIB: u64 = 1 << 20;

/// The ext4 that holds the image.
struct Host {
    disk: PathBuf,
    device: String,
    target: PathBuf,
}

impl Host {
    fn make(directory: &Path, size: u64) -> Host {
        let disk = directory.join("disk");
        File::create(&disk).unwrap().set_len(size).unwrap();
        // All that is not data, the journal too, at the beginning.
        let options = ["-q", "-F", "-E", "packed_meta_blocks=1", "-J", "size=8"];
        tool(
            "mkfs.ext4",
            &[&options[..], &[disk.to_str().unwrap()]].concat(),
        );
        let target = directory.join("host");
        fs::create_dir_all(&target).unwrap();
        let mut host = Host {
            disk,
            device: String::new(),
            target,
        };
        host.mount();
        host
    }

    fn mount(&mut self) {
        let disk = self.disk.to_str().unwrap();
        let device = tool("losetup", &["--show", "-f", disk]);
        self.device = device.trim().to_owned();
        tool("mount", &[&self.device, self.target.to_str().unwrap()]);
        // It is freed when it is unmounted, also if this process is killed.
        tool("losetup", &["-d", &self.device]);
    }

    fn unmount(&self) {
        tool("umount", &[self.target.to_str().unwrap()]);
    }

    /// Where the last of these files ends on the disk.
    fn end_of(&self, directory: &Path) -> u64 {
        let mut last = 0;
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_file() {
                let path = entry.path();
                let text = tool("filefrag", &["-v", "-b1048576", path.to_str().unwrap()]);
                let ends = text.lines().filter_map(|line| {
                    // extent: logical..logical: physical..physical: length: …
                    let (_, end) = line.split(':').nth(2)?.split_once("..")?;
                    end.trim().parse::<u64>().ok()
                });
                last = last.max(ends.max().unwrap_or(0));
            }
        }
        (last + 1) * MIB
    }

    /// Makes the disk end at this offset; 0 gives it its whole length back.
    fn limit(&self, end: u64) {
        let device = File::options()
            .read(true)
            .write(true)
            .open(&self.device)
            .unwrap();
        let mut status = ioctl::loop_status(&device).unwrap();
        status.lo_sizelimit = end;
        ioctl::loop_set_status(&device, status).unwrap();
    }
}

/// Writes until it fails. In a sandbox.
pub(crate) fn write(directory: &Path) {
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let image = Image::at(&directory.join("image"));
    image.mount();
    write_until_it_fails(&image.target(), seed);
    // Whatever the file system does with the error: nothing may hang.
    image.open().umount().unwrap();
}

const SEED: &str = "PLOOP_FAULT_WRITER";

/// With mounts of its own.
pub(crate) fn full(directory: &Path) {
    fault(directory, |host, image, random| {
        // Room for some more, but not for all.
        let ballast = host.target.join("ballast");
        let stat = rustix::fs::statvfs(&host.target).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let left = 8 * MIB + random.u64(..24 * MIB);
        let len = free.saturating_sub(left);
        tool(
            "fallocate",
            &["-l", &len.to_string(), ballast.to_str().unwrap()],
        );
        let _ = image;
        Box::new(move |host: &mut Host| {
            fs::remove_file(&ballast).unwrap();
            let _ = host;
        })
    });
}

/// With mounts of its own.
pub(crate) fn failing(directory: &Path) {
    fault(directory, |host, image, random| {
        let end = host.end_of(&image.directory);
        host.limit(end + (20 + random.u64(..60)) * MIB);
        Box::new(|host: &mut Host| {
            // Without what is still in the cache.
            host.limit(0);
            host.unmount();
            let (code, text) = run("e2fsck", &["-f", "-p", host.disk.to_str().unwrap()]);
            assert!(
                matches!(code, Some(0 | 1)),
                "the host's file system: {text}"
            );
            host.mount();
        })
    });
}

type Mend = Box<dyn FnOnce(&mut Host)>;

fn fault(directory: &Path, inject: fn(&Host, &Image, &mut Rng) -> Mend) {
    let (count, first) = points(1);
    for seed in first..first + count.div_ceil(5) {
        let mut random = Rng::with_seed(seed);
        let place = directory.join(seed.to_string());
        fs::create_dir(&place).unwrap();
        let mut host = Host::make(&place, 700 * MIB);
        let limit = Duration::from_secs(120);
        let part = |name: &str| sandbox::sandboxed(name, &host.target);
        let prepare = part("daemon-prepare");
        let mut write = part("host-write");
        let verify = part("daemon-verify");
        RunningPart::start(prepare, false).succeed(limit);
        let image = Image::at(&host.target.join("image"));
        let mend = inject(&host, &image, &mut random);

        write.env(SEED, seed.to_string());
        let mut running = RunningPart::start(write, true);
        let lines = Lines::of(running.stdout());
        let status = running.finish(limit);
        let mut manifest = String::new();
        while let Some(line) = lines.next(Duration::from_millis(200)) {
            manifest += &line;
            manifest.push('\n');
        }
        let status = status.unwrap_or_else(|why| panic!("seed {seed}: {why}\n{manifest}"));
        running.left_nothing();
        let failed = manifest.lines().find(|line| line.starts_with("failed "));
        let failed = failed.unwrap_or_else(|| {
            panic!(
                "seed {seed}: nothing failed: {status}\n{}\n{manifest}",
                running.output()
            )
        });
        sandbox::note!(
            "seed {seed}: {} files were synced; {failed}",
            read_manifest(&manifest).len()
        );
        assert!(status.success(), "seed {seed}: {}", running.output());
        mend(&mut host);
        fs::write(host.target.join("manifest"), &manifest).unwrap();
        let output = RunningPart::start(verify, false).succeed(limit);
        sandbox::show(&output);
        host.unmount();
    }
}

/// Starts one of the two.
pub(crate) fn with_own_mounts(part: &str) {
    let directory = sandbox::directory();
    let (count, _) = points(1);
    let running = RunningPart::start(sandbox::with_own_mounts(part, directory.path()), false);
    let output = running.succeed(Duration::from_secs(300 + 60 * count.div_ceil(5)));
    sandbox::show(&output);
}
