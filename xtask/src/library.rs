//! The libploop that the tests are linked with, and `PLOOP_TEST_LIB`, which names another one for `cargo xtask test` and
//! `cargo xtask demo`.

use crate::{packages, run};
use anyhow::{Context as _, Result, anyhow, bail};
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The reader of libraries that the build script of ploop-sys uses, too.
#[path = "../../ploop-sys/build/shared_library.rs"]
#[allow(dead_code)]
mod shared_library;

use shared_library::SharedLibrary;

/// Names a shared library, or its directory.
const VARIABLE: &str = "PLOOP_TEST_LIB";

/// A shared library.
pub(crate) struct Library {
    /// Without links.
    file: PathBuf,
    soname: String,
    /// From the `.pc` file or the file's name, where there is either.
    version: Option<String>,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_deref().unwrap_or("of an unknown version");
        write!(
            f,
            "libploop {version} ({}), {}",
            self.soname,
            self.file.display()
        )
    }
}

impl Library {
    fn of(file: &Path) -> Result<Library> {
        let file = file
            .canonicalize()
            .with_context(|| format!("{} cannot be found", file.display()))?;
        let directory = file.parent().unwrap_or(&file);
        let pc = fs::read_to_string(directory.join("pkgconfig/ploop.pc")).unwrap_or_default();
        let pc = pc.lines().find_map(|line| line.strip_prefix("Version:"));
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix("libploop.so.");
        let version = pc.or(name.filter(|version| version.contains('.')));
        Ok(Library {
            soname: SharedLibrary::read(&file)
                .map_err(|error| anyhow!(error))?
                .soname,
            version: version.map(|version| version.trim().to_owned()),
            file,
        })
    }

    /// The one that a build would link now: that of `PLOOP_LIB_DIR`, or the one that pkg-config knows.
    pub(crate) fn linked() -> Result<Library> {
        if let Some(directory) = env::var_os("PLOOP_LIB_DIR") {
            return Library::of(&Path::new(&directory).join("libploop.so"));
        }
        let pkg_config = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
        let ask = |what: &str| run::output(run::command(&pkg_config).args([what, "ploop"]));
        let directory = ask("--variable=libdir")?;
        let mut library = Library::of(&Path::new(directory.trim()).join("libploop.so"))?;
        library.version = Some(ask("--modversion")?.trim().to_owned());
        Ok(library)
    }

    /// The major number in the soname.
    fn line(&self) -> &str {
        self.soname.rsplit('.').next().unwrap_or_default()
    }
}

/// Whether this process tests the library that the variable names.
pub(crate) fn is_named() -> bool {
    named().is_some()
}

fn named() -> Option<PathBuf> {
    env::var_os(VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Where the variable names a library that this process does not build with: runs this command once more, built with that
/// library, in a target directory of its own. `false` where there is nothing to do.
pub(crate) fn run_with_named() -> Result<bool> {
    let Some(named) = named().filter(|_| env::var_os(IN_USE).is_none()) else {
        return Ok(false);
    };
    let named = named
        .canonicalize()
        .with_context(|| format!("{VARIABLE} is {}", named.display()))?;
    let file = if named.is_dir() {
        named.join("libploop.so")
    } else {
        named
    };
    let library = Library::of(&file).with_context(|| format!("{VARIABLE} names no library"))?;
    let target = PathBuf::from(packages::metadata()?.target_directory);
    let target = target.join(format!("line-{}", library.line()));
    let directory = directory_for_linker(&library, &target)?;
    println!("Tested: {library}");
    let mut path = directory.clone().into_os_string();
    if let Some(others) = env::var_os("LD_LIBRARY_PATH").filter(|it| !it.is_empty()) {
        path.push(":");
        path.push(others);
    }
    let mut command = run::command(env::current_exe()?);
    command
        .args(env::args_os().skip(1))
        .env(IN_USE, "1")
        .env("PLOOP_LIB_DIR", &directory)
        .env("LD_LIBRARY_PATH", path)
        .env("CARGO_TARGET_DIR", &target);
    if let Some(include) = include_of(&library) {
        command.env("PLOOP_INCLUDE_DIR", include);
    }
    let status = command.status().context("cannot run this command again")?;
    println!("Tested: {library}");
    if !status.success() {
        bail!("on {library}: {status}");
    }
    Ok(true)
}

/// Set for the process that builds with the named library.
const IN_USE: &str = "PLOOP_TEST_LIB_IN_USE";

/// A directory in which the library has the names that the linker and the loader look for: its own, or one of links.
fn directory_for_linker(library: &Library, target: &Path) -> Result<PathBuf> {
    let own = library.file.parent().unwrap_or(Path::new("/"));
    let has = |directory: &Path, name: &str| {
        let found = directory.join(name).canonicalize();
        found.is_ok_and(|found| found == library.file)
    };
    let names = ["libploop.so", &library.soname];
    if names.iter().all(|name| has(own, name)) {
        return Ok(own.to_owned());
    }
    let links = target.join("library");
    let make = |name: &OsStr| -> std::io::Result<()> {
        let link = links.join(name);
        let _ = fs::remove_file(&link);
        symlink(&library.file, link)
    };
    fs::create_dir_all(&links)
        .and_then(|()| names.iter().try_for_each(|name| make(name.as_ref())))
        .with_context(|| format!("cannot make links in {}", links.display()))?;
    Ok(links)
}

/// The directory of the library's own header, `include` beside `lib` or `lib/<multiarch>`.
fn include_of(library: &Library) -> Option<PathBuf> {
    let directories = library.file.ancestors().skip(2).take(2);
    directories
        .map(|directory| directory.join("include"))
        .find(|include| include.join("ploop/libploop.h").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_the_linker_s_name_gets_it_by_links() {
        let directory = env::temp_dir().join(format!("library-test-{}", std::process::id()));
        let (own, target) = (directory.join("lib"), directory.join("target"));
        fs::create_dir_all(&own).unwrap();
        let file = own.canonicalize().unwrap().join("libploop.so.7.0.280");
        fs::write(&file, "").unwrap();
        let library = Library {
            file: file.clone(),
            soname: "libploop.so.7".into(),
            version: None,
        };
        let links = directory_for_linker(&library, &target).unwrap();
        for name in ["libploop.so", "libploop.so.7"] {
            assert_eq!(links.join(name).canonicalize().unwrap(), file);
            symlink(&file, own.join(name)).unwrap();
        }
        let found = directory_for_linker(&library, &target).unwrap();
        assert_eq!(found.join("x"), file.with_file_name("x"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
