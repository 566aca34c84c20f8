//! `cargo xtask demo`: the examples, run.

use crate::packages::{self, Kind, Program};
use crate::sandbox::{self, Sandbox};
use crate::{Install, library, run, setup};
use anyhow::Result;
use clap::Args;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    install: Install,
}

/// How long one program of the demonstration may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The life of a volume, in one sandbox: devices and mounts live no longer than it does. `$0` is the example.
const VOLUME: &str = r#"
set -eu
scratch=$(mktemp -d)
clean_up() {
    umount "$scratch/mnt" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT
mkdir "$scratch/base" "$scratch/mnt"
volume() {
    printf '$ volume %s\n' "$*" >&2
    "$0" --base "$scratch/base" "$@"
}
volume create web --size 512MiB
volume mount web "$scratch/mnt"
df -h "$scratch/mnt"
echo before >"$scratch/mnt/file"
snapshot=$(volume snapshot web)
echo after >"$scratch/mnt/file"
volume list
volume umount web
volume restore web "$snapshot"
volume mount web "$scratch/mnt"
echo "the file says: $(cat "$scratch/mnt/file")"
test "$(cat "$scratch/mnt/file")" = before
volume umount web
volume remove web
"#;

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&["build", "test", "sandbox"], options.install.no_install)?;
    match library::run_with_named()? {
        true => Ok(()),
        false => examples(),
    }
}

/// Where the driver runs: in the kernel, in a sandbox, or nowhere.
enum Driver {
    Kernel,
    Sandbox(Sandbox),
    None,
}

impl Driver {
    fn command(&self, program: &Path) -> Result<Command> {
        match self {
            Driver::Sandbox(sandbox) => sandbox.command(program, None, LIMIT),
            Driver::Kernel | Driver::None => Ok(run::command(program)),
        }
    }
}

pub(crate) fn examples() -> Result<()> {
    // All of them, with the features that the tests are built with: what has been built for the tests is not built again.
    let programs = packages::build(&mut run::cargo("build --workspace --lib --bins --examples"))?;
    let driver = if sandbox::driver_is_there() {
        println!("The kernel has the ploop driver.");
        Driver::Kernel
    } else {
        let sandbox = Sandbox::among(&programs)?;
        match sandbox.missing()? {
            None => {
                println!("The kernel has no ploop driver: what needs it runs in the sandbox.");
                Driver::Sandbox(sandbox)
            }
            Some(reason) => {
                println!("No ploop driver, and no sandbox: {reason}");
                Driver::None
            }
        }
    };
    let example =
        |name| packages::find(&programs, Kind::Example, name).map(|it: &Program| it.path.as_path());
    show(&mut driver.command(example("lifecycle")?)?, "lifecycle")?;
    if matches!(driver, Driver::None) {
        return Ok(());
    }
    for name in ["mount", "sizes", "live_copy"] {
        show(&mut driver.command(example(name)?)?, name)?;
    }
    let mut command = driver.command(Path::new("bash"))?;
    command.arg("-c").arg(VOLUME).arg(example("volume")?);
    show(&mut command, "volume")
}

fn show(command: &mut Command, name: &str) -> Result<()> {
    println!("\n== example {name}");
    run::run_as(command, &format!("example {name}"))
}
