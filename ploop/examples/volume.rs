//! What a volume plugin for containers does with ploop, as a command.
//!
//! ```text
//! volume --base /vz/volumes create web --size 10G
//! volume --base /vz/volumes mount web /mnt/web
//! volume --base /vz/volumes snapshot web
//! volume --base /vz/volumes list --json
//! volume --base /vz/volumes umount web
//! volume --base /vz/volumes restore web {0123abcd-4567-89ab-cdef-0123456789ab}
//! volume --base /vz/volumes remove web
//! ```
//!
//! A volume is a directory below the base, named like the volume, with an image in it. `create` and
//! `mount` need the ploop kernel driver; `create --bare` makes a volume without file system, with
//! which everything but mounting can be tried on any machine.
//!
//! | exit code | |
//! |---|---|
//! | 0 | done |
//! | 1 | failed for a reason that has no number of its own |
//! | 2 | wrong usage: the command line, a name, a size |
//! | 3 | there is no such volume, snapshot or directory |
//! | 4 | there is one already |
//! | 5 | in use, mounted or locked: try again later |
//! | 6 | the ploop kernel driver, or one of the tools, is missing |
//! | 7 | the volume is damaged |
//! | 8 | not permitted |

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ploop::{CreateParam, ErrorKind, Guid, ImageMode, MountParam, Ploop, Size, SwitchFlag, device};
use serde::Serialize;

/// Volumes in ploop images.
#[derive(Parser)]
#[command(name = "volume", version)]
struct Arguments {
    /// The directory the volumes are in
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a volume
    Create {
        name: Name,
        /// Its size, such as 10G or 512MiB
        #[arg(long)]
        size: Size,
        /// expanded, preallocated or raw
        #[arg(long, default_value = "expanded")]
        mode: ImageMode,
        /// Without file system; needs no driver
        #[arg(long)]
        bare: bool,
    },
    /// Mount a volume on a directory, and print its device
    Mount {
        name: Name,
        target: PathBuf,
        #[arg(long)]
        read_only: bool,
    },
    /// Unmount a volume; one that is not mounted is no error
    Umount { name: Name },
    /// Show the volumes and their snapshots
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Make a snapshot of a volume, mounted or not, and print its GUID
    Snapshot { name: Name },
    /// Bring a volume back to a snapshot; it must not be mounted
    Restore {
        name: Name,
        snapshot: Guid,
        /// Keep the present state as a snapshot, and print its GUID
        #[arg(long)]
        keep: bool,
    },
    /// Remove a volume with all its snapshots; it must not be mounted
    Remove { name: Name },
}

/// The name of a volume and of its directory: one component of a path, without special characters.
#[derive(Debug, Clone)]
struct Name(String);

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            Err("it must begin with a letter or a digit".into())
        } else if !text.chars().all(usable) {
            Err("it may have letters, digits, '-', '_' and '.' alone".into())
        } else if text.len() > 64 {
            Err("it may have 64 characters".into())
        } else {
            Ok(Name(text.to_owned()))
        }
    }
}

/// What went wrong, and the number to leave with.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

type Outcome<T> = Result<T, Failure>;

impl From<ploop::Error> for Failure {
    fn from(error: ploop::Error) -> Failure {
        Failure {
            code: match error.kind() {
                ErrorKind::InvalidInput => 2,
                ErrorKind::NotFound | ErrorKind::NoSnapshot | ErrorKind::NotMounted => 3,
                ErrorKind::AlreadyExists => 4,
                ErrorKind::Busy | ErrorKind::Locked => 5,
                ErrorKind::NoDriver | ErrorKind::Tool => 6,
                ErrorKind::Corrupt => 7,
                ErrorKind::PermissionDenied => 8,
                _ => 1,
            },
            message: error.to_string(),
        }
    }
}

/// The failure of a system call on this path.
fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let text = format!("cannot {what} {}", path.display());
    move |error| Failure {
        code: match error.kind() {
            io::ErrorKind::NotFound => 3,
            io::ErrorKind::AlreadyExists => 4,
            io::ErrorKind::PermissionDenied => 8,
            _ => 1,
        },
        message: format!("{text}: {error}"),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (text, outcome) = run(&arguments);
    // A reader that has gone away is no failure.
    let written = io::stdout().write_all(text.as_bytes());
    let outcome = outcome.and(match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure {
            code: 1,
            message: format!("cannot write the result: {error}"),
        }),
        _ => Ok(()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "volume: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// What is to be printed, also after a failure.
fn run(arguments: &Arguments) -> (String, Outcome<()>) {
    let volumes = Volumes {
        base: &arguments.base,
    };
    let line = |text: String| text + "\n";
    let result = match &arguments.command {
        Command::Create {
            name,
            size,
            mode,
            bare,
        } => volumes.create(name, *size, *mode, *bare),
        Command::Mount {
            name,
            target,
            read_only,
        } => volumes
            .mount(name, target, *read_only)
            .map(|device| line(device.display().to_string())),
        Command::Umount { name } => volumes.umount(name),
        Command::List { json } => return volumes.list(*json),
        Command::Snapshot { name } => volumes.snapshot(name).map(|guid| line(guid.to_string())),
        Command::Restore {
            name,
            snapshot,
            keep,
        } => volumes
            .restore(name, *snapshot, *keep)
            .map(|kept| kept.map_or(String::new(), |guid| line(guid.to_string()))),
        Command::Remove { name } => volumes.remove(name),
    };
    match result {
        Ok(text) => (text, Ok(())),
        Err(failure) => (String::new(), Err(failure)),
    }
}

/// A volume as `list` shows it.
#[derive(Serialize)]
struct Volume {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct State {
    size: Size,
    mode: ImageMode,
    /// What the delta files take on the host, in bytes.
    used: Size,
    /// From the base upwards; the present state is above the last.
    snapshots: Vec<Guid>,
    device: Option<PathBuf>,
    mounted_on: Option<PathBuf>,
}

struct Volumes<'a> {
    base: &'a Path,
}

impl Volumes<'_> {
    fn directory(&self, name: &Name) -> PathBuf {
        self.base.join(&name.0)
    }

    fn open(&self, name: &Name) -> Outcome<Ploop> {
        let directory = self.directory(name);
        if !directory.is_dir() {
            return Err(Failure {
                code: 3,
                message: format!("there is no volume {} in {}", name.0, self.base.display()),
            });
        }
        Ok(Ploop::open(directory.join("DiskDescriptor.xml"))?)
    }

    fn create(&self, name: &Name, size: Size, mode: ImageMode, bare: bool) -> Outcome<String> {
        let directory = self.directory(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(failed("make", &directory))?;
        let mut param = CreateParam::new(directory.join("root.hds"), size).mode(mode);
        if bare {
            param = param.fs(None);
        }
        if let Err(error) = Ploop::create(&param) {
            // Empty, since a failed creation leaves nothing. What is there is somebody else's.
            let _ = fs::remove_dir(&directory);
            return Err(error.into());
        }
        Ok(String::new())
    }

    fn mount(&self, name: &Name, target: &Path, read_only: bool) -> Outcome<PathBuf> {
        let param = MountParam::new()
            .target(target)
            .read_only(read_only)
            .fsck(!read_only);
        Ok(self.open(name)?.mount(&param)?.device)
    }

    fn umount(&self, name: &Name) -> Outcome<String> {
        match self.open(name)?.umount() {
            Err(error) if !error.is_not_mounted() => Err(error.into()),
            _ => Ok(String::new()),
        }
    }

    fn snapshot(&self, name: &Name) -> Outcome<Guid> {
        Ok(self.open(name)?.snapshot()?)
    }

    fn restore(&self, name: &Name, snapshot: Guid, keep: bool) -> Outcome<Option<Guid>> {
        let flags = if keep {
            SwitchFlag::SKIP_DESTROY
        } else {
            SwitchFlag::empty()
        };
        Ok(self.open(name)?.switch_snapshot_with(snapshot, flags)?)
    }

    fn remove(&self, name: &Name) -> Outcome<String> {
        let ploop = self.open(name)?;
        // Under any component name: a backup may have a snapshot attached.
        if let Some(device) = ploop.devices()?.first() {
            return Err(Failure {
                code: 5,
                message: format!(
                    "the volume {} is attached to {}; unmount it first",
                    name.0,
                    device.display()
                ),
            });
        }
        ploop.close();
        // Renamed first, so that a removal that is interrupted leaves no half of a volume.
        let directory = self.directory(name);
        let trash = self
            .base
            .join(format!(".removed-{}", Guid::generate().as_uuid()));
        fs::rename(&directory, &trash).map_err(failed("remove", &directory))?;
        fs::remove_dir_all(&trash).map_err(failed("remove", &trash))?;
        Ok(String::new())
    }

    /// A volume that cannot be read is listed with the reason, and then the exit code says so too.
    fn list(&self, json: bool) -> (String, Outcome<()>) {
        let volumes = match self.names() {
            Ok(names) => names.into_iter().map(|name| self.look_at(name)),
            Err(failure) => return (String::new(), Err(failure)),
        };
        let mut outcome = Ok(());
        let volumes: Vec<Volume> = volumes
            .map(|(volume, failure)| {
                if let Some(code) = failure {
                    outcome = Err(Failure {
                        code,
                        message: format!("the volume {} cannot be read", volume.name),
                    });
                }
                volume
            })
            .collect();
        if !json {
            return (table(&volumes), outcome);
        }
        match serde_json::to_string_pretty(&volumes) {
            Ok(text) => (text + "\n", outcome),
            Err(error) => (
                String::new(),
                Err(Failure {
                    code: 1,
                    message: error.to_string(),
                }),
            ),
        }
    }

    /// The directories below the base that have a volume's name, in order.
    fn names(&self) -> Outcome<Vec<Name>> {
        let entries = fs::read_dir(self.base).map_err(failed("list", self.base))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", self.base))?;
            let name = entry.file_name().to_str().map(str::parse);
            if let (Some(Ok(name)), true) = (name, entry.path().is_dir()) {
                names.push(name);
            }
        }
        names.sort_by(|a: &Name, b: &Name| a.0.cmp(&b.0));
        Ok(names)
    }

    fn look_at(&self, name: Name) -> (Volume, Option<u8>) {
        let (state, error, code) = match self.state(&name) {
            Ok(state) => (Some(state), None, None),
            Err(failure) => (None, Some(failure.message), Some(failure.code)),
        };
        let name = name.0;
        (Volume { name, state, error }, code)
    }

    fn state(&self, name: &Name) -> Outcome<State> {
        let ploop = self.open(name)?;
        let descriptor = ploop.descriptor()?;
        let mut used = 0;
        for image in &descriptor.images {
            use std::os::unix::fs::MetadataExt;

            let file = fs::metadata(&image.file).map_err(failed("examine", &image.file))?;
            used += file.blocks() * 512;
        }
        let device = ploop.device()?;
        let mounted_on = match &device {
            Some(device) => device::mount_point(device)?,
            None => None,
        };
        Ok(State {
            size: descriptor.size,
            mode: descriptor.mode,
            used: Size::from_bytes(used),
            snapshots: descriptor
                .chain(descriptor.top)
                .iter()
                .map(|image| image.guid)
                .filter(|guid| *guid != descriptor.top)
                .collect(),
            device,
            mounted_on,
        })
    }
}

/// For people: a line for each volume, and one below it for each of its snapshots.
fn table(volumes: &[Volume]) -> String {
    let width = volumes.iter().map(|volume| volume.name.len()).max();
    let width = width.unwrap_or(0).max(6);
    let mut text = format!(
        "{:<width$}  {:>10}  {:>10}  {:<12}  STATE\n",
        "VOLUME", "SIZE", "USED", "MODE"
    );
    for volume in volumes {
        let name = &volume.name;
        // Writing to a string does not fail.
        let _ = match (&volume.state, &volume.error) {
            (Some(state), _) => {
                let attached = match (&state.mounted_on, &state.device) {
                    (Some(target), _) => format!("on {}", target.display()),
                    (None, Some(device)) => format!("attached to {}", device.display()),
                    (None, None) => "not mounted".to_owned(),
                };
                writeln!(
                    text,
                    "{name:<width$}  {:>10}  {:>10}  {:<12}  {attached}",
                    state.size, state.used, state.mode
                )
            }
            (None, error) => {
                let error = error.as_deref().unwrap_or_default();
                writeln!(text, "{name:<width$}  {error}")
            }
        };
        for guid in volume.state.iter().flat_map(|state| &state.snapshots) {
            let _ = writeln!(text, "{:<width$}  snapshot {guid}", "");
        }
    }
    text
}
