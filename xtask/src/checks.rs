//! The steps of `cargo xtask ci` that build or check the workspace in another way than this toolchain on this machine.
//! Where the tool of one is missing, it is left out, and the end of the output says so: `skipped: miri (…)`.

mod consumer;
mod deny;
mod fuzz;
mod minimal;
mod miri;
mod msrv;
mod packages;
mod semver;
mod targets;
mod toolchain;

use crate::setup::Missing;
use crate::steps::Step;
use anyhow::Result;

/// One of these steps.
struct Check {
    name: &'static str,
    title: &'static str,
    /// Why it cannot run here, if it cannot.
    missing: fn() -> Result<Option<String>>,
    work: fn(&Settings) -> Result<()>,
}

/// Options of the command line for these steps.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// How long each fuzz target runs.
    pub(crate) fuzz_seconds: u64,
}

const ALL: [Check; 10] = [
    msrv::CHECK,
    targets::CHECK,
    minimal::CHECK,
    packages::CHECK,
    consumer::CHECK,
    miri::CHECK,
    fuzz::CHECK,
    deny::LICENCES,
    deny::ADVISORIES,
    semver::CHECK,
];

/// The steps that need `ci/setup.sh rust`.
pub(crate) const NEED_RUST: [&str; 2] = [msrv::CHECK.name, targets::CHECK.name];

pub(crate) fn steps<'a>(settings: Settings) -> impl Iterator<Item = Step<'a>> {
    ALL.into_iter()
        .map(move |check| Step::new(check.name, check.title, move || (check.work)(&settings)))
}

/// Removes the steps that cannot run here, and returns a line for each. Fails if one of them was asked for by name.
pub(crate) fn leave_out(steps: &mut Vec<Step<'_>>, asked_for: &[String]) -> Result<Vec<String>> {
    let mut skipped = Vec::new();
    for check in ALL {
        if !steps.iter().any(|step| step.name == check.name) {
            continue;
        }
        let Some(reason) = (check.missing)()? else {
            continue;
        };
        if asked_for.iter().any(|name| name == check.name) {
            return Err(Missing::new(format!("{} cannot run: {reason}", check.name)).into());
        }
        steps.retain(|step| step.name != check.name);
        skipped.push(format!("{} ({reason})", check.name));
    }
    Ok(skipped)
}

/// [`Check::missing`] of a step that can always run.
fn always() -> Result<Option<String>> {
    Ok(None)
}
