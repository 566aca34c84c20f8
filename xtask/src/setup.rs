//! What has to be installed: asked of, and done by, `ci/setup.sh`.

use crate::run;
use anyhow::{Context as _, Result};
use std::fmt;
use std::process::Stdio;

/// Something is missing that may not or could not be installed.
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

/// Installs what a group holds, if it can be had here. Who needs it looks again.
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

/// Makes sure that what the groups of `ci/setup.sh` hold is there. Says what is going to be installed before it is.
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
             Install them yourself, or by `{script} {groups}`."
        ))
        .into());
    }
    println!("Missing packages: {missing}");
    println!("Installing them now by `{script} {groups}` (--no-install prevents this).");
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
