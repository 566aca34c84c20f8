//! Runs the tests one after another: on the driver of this kernel, or inside the sandbox. Those that cannot run here are
//! listed as ignored, with the reason.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, thread};

use libtest_mimic::{Arguments, Failed};

use crate::{image, program, sandbox, test_list};

/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(600);

/// How long all of them may take, in the sandbox.
const LIMIT_OF_ALL: Duration = Duration::from_secs(2100);

/// Set for the run inside the sandbox: a file to write to when the tests have run.
const INSIDE: &str = "PLOOP_CONFORMANCE_INSIDE";

/// Set with it: the driver that the sandbox stands for.
const DRIVER: &str = "PLOOP_CONFORMANCE_DRIVER";

/// What a test cannot do without.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// The command line tool of libploop, and the programs libploop runs.
    Tool,
    /// The driver itself: the sandbox does this otherwise, and why.
    Driver(&'static str),
    /// The driver of Virtuozzo 7.
    Virtuozzo7,
}

pub(crate) type Test = test_list::Test<Need>;

/// Where the tests find a driver.
enum World {
    Kernel,
    /// The one that stands for this driver: 6 or 7.
    Sandbox(String),
    /// Nowhere, and why.
    Nowhere(String),
}

impl World {
    /// What keeps a test from being run.
    fn missing(&self, needs: &[Need]) -> Option<String> {
        match self {
            World::Nowhere(why) => Some(why.clone()),
            World::Kernel | World::Sandbox(_) => needs.iter().find_map(|need| match need {
                Need::Tool if !program::is_there("ploop") => {
                    Some("not installed: ploop".to_owned())
                }
                Need::Driver(why) if matches!(self, World::Sandbox(_)) => {
                    Some(format!("not in the sandbox: {why}"))
                }
                Need::Virtuozzo7 if matches!(self, World::Kernel) && !is_virtuozzo_7() => {
                    Some("needs the driver of Virtuozzo 7".to_owned())
                }
                Need::Tool | Need::Driver(_) | Need::Virtuozzo7 => None,
            }),
        }
    }

    /// Whether a test runs here: each sandbox runs those about the driver that it stands for.
    fn has(&self, test: &Test) -> bool {
        let is_of_7 = test
            .needs
            .iter()
            .any(|need| matches!(need, Need::Virtuozzo7));
        match self {
            World::Sandbox(driver) => is_of_7 == (driver == "7"),
            World::Kernel | World::Nowhere(_) => true,
        }
    }
}

/// Whether this kernel is Virtuozzo 7's.
fn is_virtuozzo_7() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|text| text.contains(".vz7."))
}

pub(crate) fn run(tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Which device is the next depends on what other tests do.
    arguments.test_threads = Some(1);
    let world = if Path::new("/proc/vz/ploop_minor").exists() {
        match env::var(DRIVER) {
            Ok(driver) => World::Sandbox(driver),
            Err(_) => World::Kernel,
        }
    } else if env::var_os(INSIDE).is_some() {
        eprintln!("conformance: the sandbox runs, but there is no /proc/vz/ploop_minor in it");
        return ExitCode::FAILURE;
    } else if arguments.list {
        World::Nowhere("only listed".to_owned())
    } else {
        match sandbox::missing() {
            None => {
                // The driver of OpenVZ 6, and then that of Virtuozzo 7.
                let codes = ["6", "7"].map(run_inside);
                return codes
                    .into_iter()
                    .find(|code| *code != ExitCode::SUCCESS)
                    .unwrap_or(ExitCode::SUCCESS);
            }
            Some(why) => World::Nowhere(why.to_owned()),
        }
    };
    if matches!(world, World::Kernel | World::Sandbox(_)) && !arguments.list {
        // The preload library looks for libploop in the process; this also keeps the linker from leaving it out.
        eprintln!("libploop {}", ploop::kernel::library_version());
    }
    let trials = tests
        .into_iter()
        .filter(|test| world.has(test))
        .map(|test| {
            let missing = world.missing(test.needs);
            test.trial(missing, |test| bounded(test.body))
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

/// The tests about this driver, inside a sandbox that stands for it.
fn run_inside(driver: &str) -> ExitCode {
    try_run_inside(driver).unwrap_or_else(|why| {
        eprintln!("conformance: {why}");
        ExitCode::FAILURE
    })
}

fn try_run_inside(driver: &str) -> Result<ExitCode, String> {
    let text = |error: std::io::Error| error.to_string();
    let ran = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).map_err(text)?;
    let mut child = sandbox::with_this_program_and(&["--driver", driver])
        .args(env::args_os().skip(1))
        .env(INSIDE, ran.path())
        .env(DRIVER, driver)
        .spawn()
        .map_err(text)?;
    let status = sandbox::finish(&mut child, LIMIT_OF_ALL)?;
    if status.success() && fs::read_to_string(ran.path()).map_err(text)? != RAN {
        return Err("the sandbox says that all is well, but the tests did not run".to_owned());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
