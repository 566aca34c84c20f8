//! Installs what a command needs, by `ci/setup.sh`.

use crate::run;
use anyhow::{Context as _, Result};
use std::fmt;
use std::process::Stdio;

/// Something is missing that could not be installed, or must not be.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    pub(crate) fn new(what: String) -> Missing {
        Missing(what)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Tries to install a group of `ci/setup.sh`. The caller has to check what it needs.
pub(crate) fn offer(group: &str) -> Result<()> {
    let status = run::command("bash")
        .args(["ci/setup.sh", group])
        .stdin(Stdio::null())
        .status()
        .context("cannot run bash")?;
    if !status.success() {
        println!("ci/setup.sh {group}: {status}; going on without");
    }
    Ok(())
}

/// Makes sure that groups of `ci/setup.sh` are installed. Prints what is missing before it is installed.
pub(crate) fn ensure(groups: &[&str], no_install: bool) -> Result<()> {
    let script = "ci/setup.sh";
    let check = run::command("bash")
        .arg(script)
        .arg("--check")
        .args(groups)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run bash")?;
    let missing: Vec<&str> = std::str::from_utf8(&check.stdout)
        .context("ci/setup.sh --check")?
        .lines()
        .collect();
    if check.status.success() {
        return Ok(());
    }
    if missing.is_empty() {
        return Err(Missing(format!("{script} --check failed: {}", check.status)).into());
    }
    let missing = missing.join(" ");
    let groups = groups.join(" ");
    if no_install {
        return Err(Missing(format!(
            "these packages are missing, and --no-install forbids installing them: {missing}\n\
             Install them, or run `{script} {groups}`."
        ))
        .into());
    }
    println!("Missing packages: {missing}");
    println!("Installing them now with `{script} {groups}` (--no-install prevents this).");
    let status = run::command("bash")
        .arg(script)
        .args(groups.split(' '))
        .status()
        .context("cannot run bash")?;
    if !status.success() {
        return Err(Missing(format!("{script} could not install {missing}")).into());
    }
    Ok(())
}
