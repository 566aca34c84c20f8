//! The program is killed in the middle of an operation, at moments that seeds choose.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ploop::{CreateParam, DiscardParam, Ploop, ResizeMode, Size, copy, device};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};

use super::image::{Image, SIZE};
use super::sandbox::{self, Lines, RunningPart, note};
use fastrand::Rng;

/// Of one operation, at most.
const LONG: Duration = Duration::from_secs(300);

/// An operation in one of its forms.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// The image is mounted meanwhile, and written to.
    online: bool,
    /// What runs below the program is killed with it.
    with_children: bool,
    /// Before it, with the image mounted.
    prepare: fn(&Image),
    /// The operation.
    perform: fn(&mut Ploop) -> ploop::Result<()>,
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "snapshot, mounted",
        online: true,
        with_children: false,
        prepare: one_level,
        perform: |image| image.snapshot().map(drop),
    },
    Operation {
        name: "snapshot",
        online: false,
        with_children: false,
        prepare: one_level,
        perform: |image| image.snapshot().map(drop),
    },
    Operation {
        name: "merge of the top, mounted",
        online: true,
        with_children: false,
        prepare: two_levels,
        perform: delete_base,
    },
    Operation {
        name: "merge of a middle delta, mounted",
        online: true,
        with_children: false,
        prepare: three_levels,
        perform: delete_base,
    },
    Operation {
        name: "merge",
        online: false,
        with_children: false,
        prepare: two_levels,
        perform: delete_base,
    },
    Operation {
        name: GROWTH,
        online: true,
        with_children: false,
        prepare: one_level,
        perform: |image| image.resize(Size::from_mib(512), ResizeMode::Online),
    },
    Operation {
        name: "shrinking, mounted",
        online: true,
        with_children: false,
        prepare: one_level,
        perform: |image| image.resize(Size::from_mib(320), ResizeMode::Online),
    },
    Operation {
        name: "growth",
        online: false,
        with_children: false,
        prepare: one_level,
        perform: |image| image.resize(Size::from_mib(512), ResizeMode::Offline),
    },
    Operation {
        name: "shrinking",
        online: false,
        with_children: false,
        prepare: one_level,
        perform: |image| image.resize(Size::from_mib(320), ResizeMode::Offline),
    },
    Operation {
        name: "copy, the program alone",
        online: true,
        with_children: false,
        prepare: |image| image.write("old", 24 << 20),
        perform: send_copy,
    },
    Operation {
        name: "copy, the sender too",
        online: true,
        with_children: true,
        prepare: |image| image.write("old", 24 << 20),
        perform: send_copy,
    },
    Operation {
        name: "discard, the program alone",
        online: true,
        with_children: false,
        prepare: with_space_to_give_back,
        perform: |image| image.discard(&DiscardParam::new()),
    },
    Operation {
        name: "discard, its children too",
        online: true,
        with_children: true,
        prepare: with_space_to_give_back,
        perform: |image| image.discard(&DiscardParam::new()),
    },
];

pub(crate) fn one_level(image: &Image) {
    image.write("old", 8 << 20);
}

pub(crate) fn two_levels(image: &Image) {
    image.write("old", 12 << 20);
    image.open().snapshot().unwrap();
    image.write("new", 12 << 20);
    image.write("old", 3 << 20);
}

pub(crate) fn three_levels(image: &Image) {
    two_levels(image);
    image.open().snapshot().unwrap();
    image.write("newest", 4 << 20);
    image.write("new", 1 << 20);
}

fn delete_base(image: &mut Ploop) -> ploop::Result<()> {
    let base = image.descriptor()?.base().map(|base| base.guid);
    image.delete_snapshot(base.unwrap_or(ploop::Guid::NONE))
}

fn with_space_to_give_back(image: &Image) {
    image.write("old", 4 << 20);
    image.write("given back", 40 << 20);
    image.write("kept", 4 << 20);
    fs::remove_file(image.target().join("given back")).unwrap();
    image.files.lock().unwrap().remove("given back");
    rustix::fs::syncfs(fs::File::open(image.target()).unwrap()).unwrap();
}

fn send_copy(image: &mut Ploop) -> ploop::Result<()> {
    let path = image.path().with_file_name("copy");
    let device = image.device()?.unwrap_or_default();
    let (input, output) = UnixStream::pair().unwrap();
    let (answer, answers) = UnixStream::pair().unwrap();
    let receiver = thread::spawn(move || copy::receive(path, input, Some(answer.as_fd())));
    let sent = copy::send(device, &output, Some(answers.as_fd()));
    drop((output, answers));
    sent.and(receiver.join().unwrap())
}

/// The part that is killed: it performs the operation its environment names.
pub(crate) fn perform(directory: &Path) {
    let name = std::env::var(OPERATION).unwrap();
    let mut image = None;
    if name != CREATION {
        image = Some(Ploop::open(directory.join("DiskDescriptor.xml")).unwrap());
    }
    super::exact::arm();
    say("ready");
    let result = match &mut image {
        None => create(directory).map(drop),
        Some(image) => {
            let operation = OPERATIONS.iter().find(|operation| operation.name == name);
            (operation.unwrap().perform)(image)
        }
    };
    match result {
        Ok(()) => say(DONE),
        Err(error) => say(&error.to_string()),
    }
}

/// Tools write to standard output, too.
const SAYS: &str = "program: ";
const DONE: &str = "done";

fn say(what: &str) {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{SAYS}{what}").unwrap();
    stdout.flush().unwrap();
}

const OPERATION: &str = "PLOOP_FAULT_OPERATION";
const CREATION: &str = "creation";

fn create(directory: &Path) -> ploop::Result<Ploop> {
    Ploop::create(&CreateParam::new(directory.join("root.hdd"), SIZE))
}

/// A program that performs an operation.
pub(crate) struct Program {
    child: Child,
    lines: Lines,
    started: Instant,
}

impl Program {
    /// Returns when it is about to begin.
    pub(crate) fn start(name: &str, directory: &Path, exact: bool) -> Program {
        let mut command = sandbox::part("perform", directory);
        command
            .env(OPERATION, name)
            .process_group(0)
            .stdout(Stdio::piped());
        if exact {
            command.env(super::exact::ARMED, "1");
        }
        let mut child = command.spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let program = Program {
            child,
            lines,
            started: Instant::now(),
        };
        let first = program.said(Duration::from_secs(30));
        assert_eq!(first.as_deref(), Some("ready"), "{name}");
        Program {
            started: Instant::now(),
            ..program
        }
    }

    /// What it says next.
    fn said(&self, limit: Duration) -> Option<String> {
        loop {
            let line = self.lines.next(limit)?;
            if let Some(said) = line.strip_prefix(SAYS) {
                return Some(said.to_owned());
            }
        }
    }

    /// Lets it come to its end, and tells how long it took.
    #[track_caller]
    fn finish(&mut self, what: &str) -> Duration {
        let last = self.said(LONG);
        let took = self.started.elapsed();
        assert_eq!(last.as_deref(), Some(DONE), "{what}");
        self.end(what);
        took
    }

    /// Kills it after that long, if it runs then. Whether it had come to its end.
    pub(crate) fn kill_after(&mut self, delay: Duration, with_children: bool, what: &str) -> bool {
        thread::sleep(delay.saturating_sub(self.started.elapsed()));
        let pid = Pid::from_child(&self.child);
        // It is not waited for yet, so the number is still its own.
        let killed = if with_children {
            kill_process_group(pid, Signal::KILL)
        } else {
            kill_process(pid, Signal::KILL)
        };
        killed.unwrap();
        self.end(what);
        // Its result does not matter: this is about what it has done by then.
        self.said(Duration::from_millis(10)).as_deref() == Some(DONE)
    }

    /// Waits for it and for all that it started: those are ours now.
    #[track_caller]
    pub(crate) fn end(&mut self, what: &str) -> std::process::ExitStatus {
        let status = sandbox::wait(&mut self.child, LONG);
        let Some(status) = status else {
            panic!("{what}: the program hangs");
        };
        let end = Instant::now() + LONG;
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Err(_) => return status,
                Ok(Some(_)) => {}
                Ok(None) => {
                    assert!(Instant::now() < end, "{what}: a child of the program hangs");
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

/// How many points there are, and the seed of the first.
pub(crate) fn points(default: u64) -> (u64, u64) {
    (
        sandbox::number("PLOOP_FAULT_POINTS", default),
        sandbox::number("PLOOP_FAULT_SEED", 1),
    )
}

/// For each of the seeds.
fn each_point(mut body: impl FnMut(u64, &mut Rng)) {
    let (count, first) = points(6);
    for seed in first..first + count {
        body(seed, &mut Rng::with_seed(seed));
    }
}

fn within(length: Duration, random: &mut Rng) -> Duration {
    Duration::from_micros(random.u64(..length.as_micros() as u64))
}

const GROWTH: &str = "growth, mounted";

/// Where the kernel does not let us, the sandbox unmounts the file system for a moment; then nobody may
/// write to it.
fn resizes_online() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut capabilities = status
        .lines()
        .filter_map(|line| line.strip_prefix("CapEff:\t"));
    let effective = u64::from_str_radix(capabilities.next().unwrap(), 16).unwrap();
    effective & CAP_SYS_RESOURCE != 0
}

/// Runs in a sandbox.
pub(crate) fn conduct(directory: &Path, wanted: fn(&str) -> bool) {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let operations: Vec<&Operation> = OPERATIONS.iter().filter(|o| wanted(o.name)).collect();
    let originals: Vec<(Image, Duration)> = operations
        .iter()
        .enumerate()
        .map(|(number, operation)| {
            let original = Image::create(&directory.join(format!("original.{number}")));
            original.mount();
            (operation.prepare)(&original);
            original.open().umount().unwrap();
            let mut length = Duration::ZERO;
            for round in 0..2 {
                let what = format!("{}, not killed", operation.name);
                let image = original.copy(&directory.join(format!("whole.{number}.{round}")));
                length = length.max(run(operation, &image, 0, &what, Program::finish));
                fs::remove_dir_all(&image.directory).unwrap();
            }
            note!("{}: {length:.1?}", operation.name);
            (original, length)
        })
        .collect();
    let mut ended = 0;
    each_point(|seed, random| {
        let number = random.usize(..operations.len());
        let (operation, (original, length)) = (operations[number], &originals[number]);
        let delay = within(*length, random);
        let what = format!("{}, seed {seed}, killed after {delay:.1?}", operation.name);
        let image = original.copy(&directory.join(format!("point.{seed}")));
        let whole = run(operation, &image, seed, &what, |program, what| {
            program.kill_after(delay, operation.with_children, what)
        });
        ended += u64::from(whole);
        note!("{what}{}", if whole { ", when it had ended" } else { "" });
        fs::remove_dir_all(&image.directory).unwrap();
    });
    note!("{ended} operations had ended before they were killed");
}

fn run<T>(
    operation: &Operation,
    image: &Image,
    seed: u64,
    what: &str,
    end: impl FnOnce(&mut Program, &str) -> T,
) -> T {
    let mut writer = None;
    if operation.online {
        image.mount();
    }
    if operation.online && (operation.name != GROWTH || resizes_online()) {
        writer = Some(image.keep_writing(seed));
    }
    let mut program = Program::start(operation.name, &image.directory, false);
    let result = end(&mut program, what);
    if let Some(writer) = writer {
        // As an administrator would, who finds it frozen by a copy that died.
        let _ = sandbox::run("fsfreeze", &["-u", image.target().to_str().unwrap()]);
        writer.stop(what);
    }
    if operation.online {
        image.write("after", 2 << 20);
    }
    image.recover(what);
    result
}

/// Runs in a sandbox.
pub(crate) fn conduct_creation(directory: &Path) {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let mut length = Duration::ZERO;
    for round in 0..2 {
        let place = directory.join(format!("whole.{round}"));
        fs::create_dir(&place).unwrap();
        let mut program = Program::start(CREATION, &place, false);
        length = length.max(program.finish("creation"));
    }
    note!("creation: {length:.1?}");
    let (mut ended, mut complete) = (0, 0);
    each_point(|seed, random| {
        let delay = within(length, random);
        let what = format!("creation, seed {seed}, killed after {delay:.1?}");
        let place = directory.join(format!("point.{seed}"));
        fs::create_dir_all(place.join("mnt")).unwrap();
        let mut program = Program::start(CREATION, &place, false);
        let whole = program.kill_after(delay, false, &what);
        ended += u64::from(whole);
        detach_all_below(&place, &what);
        let image = Image::at(&place);
        if image.descriptor().exists() {
            complete += 1;
        } else {
            assert!(!whole, "{what}: it said that it was done");
            create(&place).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        image.open().remove_leftovers().unwrap();
        for entry in fs::read_dir(&place).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with(".ploop-create-"), "{what}: {name}");
        }
        image.recover(&what);
        image.mount();
        image.write("file", 2 << 20);
        image.recover(&what);
        note!("{what}{}", if whole { ", when it had ended" } else { "" });
        fs::remove_dir_all(&place).unwrap();
    });
    note!("{complete} images were complete, {ended} operations had ended before they were killed");
}

/// What an administrator does with a device that a dead program left.
fn detach_all_below(directory: &Path, what: &str) {
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        // Also of one that does not run, or not yet.
        let base = fs::read_to_string(entry.path().join("pdelta/0/image")).unwrap_or_default();
        if name.starts_with("ploop") && Path::new(&base).starts_with(directory) {
            let device = PathBuf::from("/dev").join(name);
            device::umount(&device).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

/// Starts one of the parts that conduct.
pub(crate) fn in_sandbox(part: &str) {
    let directory = sandbox::directory();
    let running = RunningPart::start(sandbox::sandboxed(part, directory.path()), false);
    let (count, _) = points(6);
    let output = running.succeed(Duration::from_secs(600 + 60 * count));
    sandbox::show(&output);
}
