//! An image that is mounted and written to, on a host whose power is cut.
//!
//! Files are written and synced all the time, while snapshots are made and merged, the image is resized,
//! a delta is exchanged, and it is unmounted and mounted. After each cut the next mount works, every
//! file that was synced is there, byte by byte, and no operation that had returned is undone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ploop::image::{Issue, check};
use ploop::{Guid, Ploop, ReplaceParam, ReplaceTarget, ResizeMode, Size};

use fastrand::Rng;

use super::image::{Files, Image, differences, write_synced};
use super::recorder::Recorder;
use super::sandbox::{self, RunningPart, run};
use super::{Life, cuts, try_cuts};

const HOST: u64 = 700 << 20;

/// What an image's descriptor is to say.
#[derive(Clone, Debug, PartialEq)]
struct State {
    snapshots: BTreeSet<Guid>,
    size: Size,
}

impl State {
    fn of(image: &Image) -> State {
        let descriptor = image.open().descriptor().unwrap();
        let guids = descriptor.images.iter().map(|image| image.guid);
        State {
            snapshots: guids.filter(|guid| *guid != descriptor.top).collect(),
            size: descriptor.size,
        }
    }
}

/// An operation that returned, and when.
struct Step {
    name: &'static str,
    end: usize,
    after: State,
}

/// From this position on a file is not certain, or has been synced.
struct Event {
    position: usize,
    name: String,
    synced: Option<(u64, usize)>,
}

/// What was done, and when.
#[derive(Default)]
struct Record {
    steps: Vec<Step>,
    events: Arc<Mutex<Vec<Event>>>,
}

struct Subject<'a> {
    recorder: &'a Recorder,
    image: Image,
    random: Rng,
    record: Record,
}

impl Subject<'_> {
    fn write(&mut self) {
        for _ in 0..3 {
            let name = format!("file.{}", self.random.u64(..12));
            let (seed, len) = (self.random.u64(..), 1 + self.random.usize(..512 << 10));
            let target = self.image.target();
            write(self.recorder, &self.record.events, &target, name, seed, len);
        }
    }

    fn step(
        &mut self,
        name: &'static str,
        operation: impl FnOnce(&mut Ploop) -> ploop::Result<()>,
    ) {
        operation(&mut self.image.open()).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.record.steps.push(Step {
            name,
            end: self.recorder.position(),
            after: State::of(&self.image),
        });
    }

    fn live(&mut self) {
        let random = self.random.u64(..);
        let mount = |ploop: &mut Ploop, image: &Image| ploop.mount(&image.param()).map(drop);
        let image = Image::at(&self.image.directory);
        self.step("mount", |ploop| mount(ploop, &image));
        let writer = Arc::new(AtomicBool::new(true));
        thread::scope(|scope| {
            // In names of its own, all the time.
            let (target, events, recorder) = (
                self.image.target(),
                Arc::clone(&self.record.events),
                self.recorder,
            );
            let goes_on = Arc::clone(&writer);
            scope.spawn(move || {
                let mut random = Rng::with_seed(random);
                while goes_on.load(Ordering::Relaxed) {
                    let name = format!("meanwhile.{}", random.u64(..20));
                    let (seed, len) = (random.u64(..), 1 + random.usize(..64 << 10));
                    write(recorder, &events, &target, name, seed, len);
                    thread::sleep(Duration::from_millis(5));
                }
            });
            self.change();
            writer.store(false, Ordering::Relaxed);
        });
        self.write();
        if self.random.u64(..2) == 0 {
            // Some sandboxes unmount the file system for a moment, so nobody writes meanwhile.
            self.step(GROWTH, |image| {
                image.resize(Size::from_mib(448), ResizeMode::Online)
            });
            self.write();
        }
        self.step("unmount", Ploop::umount);
        self.step("snapshot, not mounted", |image| {
            image.snapshot().map(drop_guid)
        });
        self.step("mount", |ploop| mount(ploop, &image));
        self.write();
        self.step("merge of the top", delete_base);
        self.write();
        self.step("unmount", Ploop::umount);
    }

    fn change(&mut self) {
        self.write();
        self.step("snapshot", |image| image.snapshot().map(drop_guid));
        self.write();
        self.step("snapshot", |image| image.snapshot().map(drop_guid));
        self.write();
        self.step("merge below the top", delete_base);
        self.write();
        if self.random.u64(..2) == 0 {
            let base = self.image.open().base_delta_file().unwrap();
            let copy = base.with_file_name("copy.hdd");
            fs::copy(&base, &copy).unwrap();
            self.step("replace", |image| {
                image.replace(&ReplaceParam::new(&copy, ReplaceTarget::File(base)))
            });
        }
        self.write();
        self.step("delete of the base", delete_base);
        self.write();
    }
}

fn drop_guid(_: Guid) {}

fn delete_base(image: &mut Ploop) -> ploop::Result<()> {
    let base = image.descriptor()?.base().map(|base| base.guid);
    image.delete_snapshot(base.unwrap_or(Guid::NONE))
}

fn write(
    recorder: &Recorder,
    events: &Mutex<Vec<Event>>,
    target: &Path,
    name: String,
    seed: u64,
    len: usize,
) {
    let event = |synced| Event {
        position: recorder.position(),
        name: name.clone(),
        synced,
    };
    events.lock().unwrap().push(event(None));
    write_synced(target, &name, seed, len).unwrap();
    let synced = event(Some((seed, len)));
    events.lock().unwrap().push(synced);
}

impl Record {
    /// The files that must be there.
    fn synced(&self, position: usize) -> Files {
        let mut files = Files::new();
        for event in &*self.events.lock().unwrap() {
            if event.position > position {
                // Of two threads, so not in order for certain. One that begins then was not touched before.
                continue;
            }
            match event.synced {
                None => drop(files.remove(&event.name)),
                Some(content) => drop(files.insert(event.name.clone(), content)),
            }
        }
        files
    }
}

const GROWTH: &str = "growth";

impl Life for Record {
    fn steps(&self) -> Vec<(usize, &str)> {
        self.steps
            .iter()
            .map(|step| (step.end, step.name))
            .collect()
    }

    fn verify(&self, image: &Path, position: usize, number: u64) -> Result<(), String> {
        verify(image, self, position, number % 5 == 0)
    }
}

fn verify(place: &Path, record: &Record, position: usize, thorough: bool) -> Result<(), String> {
    let image = Image::at(place);
    let next = record.steps.iter().find(|step| step.end > position);
    let last = record.steps.iter().rposition(|step| step.end <= position);
    let allowed: Vec<&State> = match last {
        None => record.steps.first(),
        Some(last) => record.steps.get(last),
    }
    .into_iter()
    .chain(last.and_then(|last| record.steps.get(last + 1)))
    .map(|step| &step.after)
    .collect();
    let failed =
        |what: &str, error: ploop::Error| format!("{what}: {error}\n{}", check(image.descriptor()));
    let mut handle = image.open();
    let mounted = handle.mount(&image.param());
    mounted.map_err(|error| failed("the next mount", error))?;
    let different = differences(&image.target(), &record.synced(position));
    let state = State::of(&image);
    let unmounted = handle.umount();
    if !different.is_empty() {
        return Err(format!("synced files: {different:?}"));
    }
    if !allowed.contains(&&state) {
        return Err(format!("found {state:?} for {allowed:?}"));
    }
    unmounted.map_err(|error| failed("unmount", error))?;
    if thorough {
        let attached = handle.mount(&ploop::MountParam::new());
        let attached = attached.map_err(|error| failed("attaching", error))?;
        let partition = format!("{}p1", attached.device.display());
        if next.is_some_and(|next| next.name == GROWTH) {
            // Where it may not enlarge a mounted file system, the sandbox does so while it is not mounted, and not
            // through the journal as the kernel does: what is cut then is for e2fsck.
            let (code, text) = run("e2fsck", &["-f", "-y", &partition]);
            if !matches!(code, Some(0 | 1)) {
                return Err(format!("e2fsck does not mend it: {text}"));
            }
        }
        let (code, text) = run("e2fsck", &["-f", "-n", &partition]);
        let detached = handle.umount();
        if code != Some(0) {
            return Err(format!("e2fsck: {text}"));
        }
        detached.map_err(|error| failed("detaching", error))?;
        for guid in state.snapshots {
            let deleted = handle.delete_snapshot(guid);
            deleted.map_err(|error| failed("merging what is left", error))?;
        }
    }
    let removed = handle.remove_leftovers();
    removed.map_err(|error| failed("removing what is left", error))?;
    let report = check(image.descriptor());
    if !report.is_sound() || report.has(Issue::InUse) || report.has(Issue::Orphan) {
        return Err(report.to_string());
    }
    Ok(())
}

/// In a sandbox.
pub(crate) fn conduct(place: &Path) {
    let prepare = |image: &Path| drop(Image::create(image));
    let live = |recorder: &Recorder, image: &Path, random: &mut Rng| {
        let mut subject = Subject {
            recorder,
            image: Image::at(image),
            random: random.fork(),
            record: Record::default(),
        };
        subject.live();
        subject.record
    };
    let wrong = try_cuts(place, cuts() / 4, HOST, prepare, live);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Starts it.
pub(crate) fn run_in_sandbox() {
    let directory = sandbox::directory();
    let command = sandbox::sandboxed("online", directory.path());
    let output = RunningPart::start(command, false).succeed(Duration::from_secs(900));
    sandbox::show(&output);
}
