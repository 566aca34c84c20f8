//! Runs the tests one after another: on the driver of this kernel, or inside the sandbox. Those that cannot run here are
//! listed as ignored, with the reason.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, thread};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{image, program};

/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(150);

/// How long all of them may take, in the sandbox.
const LIMIT_OF_ALL: Duration = Duration::from_secs(1800);

/// Set for the run inside the sandbox: a file to write to when the tests have run.
const INSIDE: &str = "PLOOP_CONFORMANCE_INSIDE";

/// What a test cannot do without.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// The command line tool of libploop, and the programs libploop runs.
    Tool,
    /// The driver itself: the sandbox does this otherwise, and why.
    Driver(&'static str),
}

pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) needs: &'static [Need],
    pub(crate) body: fn(),
}

/// `tests![NEEDS: name, name; …]`: a list of tests by the names of their functions.
#[macro_export]
macro_rules! tests {
    ($($needs:expr => $($test:ident),+;)+) => {
        vec![$($($crate::harness::Test {
            name: $crate::harness::name(module_path!(), stringify!($test)),
            needs: $needs,
            body: $test,
        }),+),+]
    };
}

/// The section and the test.
pub(crate) fn name(module: &str, test: &str) -> String {
    format!("{}::{test}", module.rsplit("::").next().unwrap_or(module))
}

/// Where the tests find a driver.
enum World {
    Kernel,
    Sandbox,
    /// Nowhere, and why.
    Nowhere(String),
}

impl World {
    /// What keeps a test from being run.
    fn missing(&self, needs: &[Need]) -> Option<String> {
        match self {
            World::Nowhere(why) => Some(why.clone()),
            World::Kernel | World::Sandbox => needs.iter().find_map(|need| match need {
                Need::Tool if !program::is_there("ploop") => {
                    Some("not installed: ploop".to_owned())
                }
                Need::Driver(why) if matches!(self, World::Sandbox) => {
                    Some(format!("not in the sandbox: {why}"))
                }
                Need::Tool | Need::Driver(_) => None,
            }),
        }
    }
}

pub(crate) fn run(tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Which device is the next depends on what other tests do.
    arguments.test_threads = Some(1);
    let world = if Path::new("/proc/vz/ploop_minor").exists() {
        if env::var_os(INSIDE).is_some() {
            World::Sandbox
        } else {
            World::Kernel
        }
    } else if env::var_os(INSIDE).is_some() {
        eprintln!("conformance: the sandbox runs, but there is no /proc/vz/ploop_minor in it");
        return ExitCode::FAILURE;
    } else if arguments.list {
        World::Nowhere("only listed".to_owned())
    } else {
        match Sandbox::find() {
            Ok(sandbox) => return run_inside(&sandbox),
            Err(why) => World::Nowhere(why),
        }
    };
    if matches!(world, World::Kernel | World::Sandbox) && !arguments.list {
        // The preload library looks for libploop in the process; this also keeps the linker from leaving it out.
        eprintln!("libploop {}", ploop::kernel::library_version());
    }
    let trials = tests
        .into_iter()
        .map(|test| {
            let missing = world.missing(test.needs);
            Trial::test(test.name, move || bounded(test.body))
                .with_ignored_flag(missing.is_some())
                .with_kind(missing.unwrap_or_default())
        })
        .collect();
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    image::remove_template();
    if let Some(file) = env::var_os(INSIDE) {
        if let Err(error) = fs::write(&file, RAN) {
            eprintln!("conformance: {}: {error}", Path::new(&file).display());
            return ExitCode::FAILURE;
        }
    }
    code
}

const RAN: &str = "ran";

/// Runs a test in a thread of its own; nobody waits for one that hangs.
fn bounded(body: fn()) -> Result<(), Failed> {
    let (done, is_done) = mpsc::channel();
    let test = move || {
        let result = catch_unwind(AssertUnwindSafe(body));
        let message = result.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            text.unwrap_or_else(|| "panicked".to_owned())
        });
        // Nobody listens any more if it took too long.
        let _ = done.send(message);
    };
    thread::Builder::new()
        .spawn(test)
        .map_err(|error| error.to_string())?;
    match is_done.recv_timeout(LIMIT) {
        Ok(result) => result.map_err(Failed::from),
        Err(_) => Err(format!("still running after {LIMIT:?}").into()),
    }
}

/// The sandbox's program and the library to preload.
struct Sandbox {
    program: &'static Path,
    preload: PathBuf,
}

impl Sandbox {
    /// If everything it needs is there.
    fn find() -> Result<Sandbox, String> {
        const LIBRARY: &str = "libploop_sandbox_preload.so";
        let program = Path::new(env!("CARGO_BIN_EXE_ploop-sandbox"));
        let own = env::current_exe()
            .map_err(|error| format!("the path of this program is unknown: {error}"))?;
        // Beside this program if Cargo built it for the tests, beside the sandbox if it was asked to build it.
        let preload = [&own, program]
            .iter()
            .filter_map(|path| Some(path.parent()?.join(LIBRARY)))
            .find(|path| path.exists())
            .ok_or_else(|| format!("{LIBRARY} is not built"))?;
        let output = program::run_for(Duration::from_secs(30), program, &[&"check"]);
        if output.code == Some(0) {
            return Ok(Sandbox { program, preload });
        }
        // A kind is one line.
        let text: Vec<&str> = output.text.split_whitespace().collect();
        Err(format!("no sandbox here: {}", text.join(" ")))
    }
}

/// The same tests again, inside.
fn run_inside(sandbox: &Sandbox) -> ExitCode {
    match try_run_inside(sandbox) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("conformance: {why}");
            ExitCode::FAILURE
        }
    }
}

fn try_run_inside(sandbox: &Sandbox) -> Result<ExitCode, String> {
    let text = |error: std::io::Error| error.to_string();
    let own = env::current_exe().map_err(text)?;
    let ran = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).map_err(text)?;
    let mut child = Command::new(sandbox.program)
        .args(["run", "--preload"])
        .arg(&sandbox.preload)
        .arg("--")
        .arg(own)
        .args(env::args_os().skip(1))
        .env(INSIDE, ran.path())
        // One of its own, so that nobody else cleans up there.
        .env(
            "PLOOP_SANDBOX_BASE",
            format!("/run/ploop-sandbox.{}", std::process::id()),
        )
        .spawn()
        .map_err(|error| format!("{} cannot be run: {error}", sandbox.program.display()))?;
    let Some(status) = program::ends(&mut child, LIMIT_OF_ALL) else {
        program::terminate(&child);
        if program::ends(&mut child, Duration::from_secs(30)).is_none() {
            let _ = child.kill();
        }
        return Err(format!("still running after {LIMIT_OF_ALL:?}, and stopped"));
    };
    if status.success() && fs::read_to_string(ran.path()).map_err(text)? != RAN {
        return Err("the sandbox says that all is well, but the tests did not run".to_owned());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
