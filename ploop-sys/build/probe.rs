//! Finds the library and its header, and checks the version.

use crate::env;
use std::path::{Path, PathBuf};

/// The version whose header the committed bindings were made from.
pub(crate) const BOUND_VERSION: &str = "1.15";

/// The oldest version of this ABI line, and the first that does not belong to it.
const RANGE: (&str, &str) = ("1.12", "2");

/// What was found.
pub(crate) struct Library {
    /// From the .pc file or from the file name; if there is neither, the version of the bindings.
    pub(crate) version: String,
    /// The directory of `libploop.so` or `libploop.a`; `None` where the linker is to find it.
    pub(crate) lib_dir: Option<PathBuf>,
    /// The directory that holds `ploop/libploop.h`, if it was found.
    pub(crate) include: Option<PathBuf>,
    /// Whether the linker must be told `lib_dir`.
    pub(crate) search: bool,
}

/// Finds the library by the user's variables, or else by pkg-config.
pub(crate) fn find() -> Result<Library, String> {
    let lib_dir = env::target_var("PLOOP_LIB_DIR").map(PathBuf::from);
    let include = env::target_var("PLOOP_INCLUDE_DIR").map(PathBuf::from);
    let no_pkg_config = env::switch("PLOOP_NO_PKG_CONFIG").unwrap_or(false);

    if let Some(dir) = &include {
        if !dir.join("ploop/libploop.h").is_file() {
            return Err(format!(
                "PLOOP_INCLUDE_DIR is {}, but there is no ploop/libploop.h in it",
                dir.display()
            ));
        }
    }
    let mut library = match lib_dir {
        Some(dir) => library_in_directory(dir)?,
        None if no_pkg_config => Library {
            version: BOUND_VERSION.to_owned(),
            lib_dir: None,
            include: None,
            search: false,
        },
        None => library_by_pkg_config()?,
    };
    if include.is_some() {
        library.include = include;
    }
    Ok(library)
}

/// The library in the directory that the user has set. There may be no .pc file; then the file name has the version.
fn library_in_directory(dir: PathBuf) -> Result<Library, String> {
    let shared = dir.join("libploop.so");
    if !shared.exists() && !dir.join("libploop.a").exists() {
        return Err(format!(
            "PLOOP_LIB_DIR is {}, but there is neither libploop.so nor libploop.a in it",
            dir.display()
        ));
    }
    let version = version_of_pc_file(&dir.join("pkgconfig/ploop.pc"))
        .or_else(|| version_of_file_name(&shared))
        .unwrap_or_else(|| BOUND_VERSION.to_owned());
    if !in_range(&version) {
        return Err(out_of_range(&version));
    }
    Ok(Library {
        include: include_near(&dir),
        version,
        lib_dir: Some(dir),
        search: true,
    })
}

fn library_by_pkg_config() -> Result<Library, String> {
    let found = query_pkg_config(true).map_err(|error| not_found(&error))?;
    if !in_range(&found.version) {
        return Err(out_of_range(&found.version));
    }
    let lib_dir = found.link_paths.into_iter().next();
    // The linker is not told of a system directory: before the others, it would hide libraries that the user has put
    // there.
    let search = query_pkg_config(false).is_ok_and(|found| !found.link_paths.is_empty());
    Ok(Library {
        version: found.version,
        include: lib_dir.as_deref().and_then(include_near),
        lib_dir,
        search,
    })
}

fn query_pkg_config(system_dirs_too: bool) -> Result<pkg_config::Library, pkg_config::Error> {
    // Without cflags and static: for either, pkg-config follows the private requirement of ploop.pc, libxml-2.0, and
    // fails where only libploop-dev is installed. The header needs no cflags, and `link` knows what a static library
    // needs. `link` also tells Cargo.
    pkg_config::Config::new()
        .probe_cflags(false)
        .statik(false)
        .print_system_libs(system_dirs_too)
        .cargo_metadata(false)
        .probe("ploop")
}

/// The directory of the header: `include` beside `lib` or `lib/<multiarch>`.
fn include_near(lib_dir: &Path) -> Option<PathBuf> {
    lib_dir
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("include"))
        .find(|dir| dir.join("ploop/libploop.h").is_file())
}

fn version_of_pc_file(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Version:"))?;
    Some(line.trim().to_owned())
}

/// The version in the name of the file to which `libploop.so` links, such as `libploop.so.1.15`.
fn version_of_file_name(shared: &Path) -> Option<String> {
    let file = shared.canonicalize().ok()?;
    let name = file.file_name()?.to_str()?;
    let version = name.strip_prefix("libploop.so.")?;
    // The major number alone is not enough.
    version.contains('.').then(|| version.to_owned())
}

fn in_range(version: &str) -> bool {
    let version = numbers(version);
    version >= numbers(RANGE.0) && version < numbers(RANGE.1)
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|n| n.parse().ok()).collect()
}

fn out_of_range(version: &str) -> String {
    format!(
        "libploop {version} was found, but these bindings are for libploop {} and later, below {} \
         (the ABI of libploop.so.1): the structures of other versions differ in size. \
         If a fitting one is installed elsewhere, name its directory in PLOOP_LIB_DIR.",
        RANGE.0, RANGE.1
    )
}

fn not_found(error: &pkg_config::Error) -> String {
    let cause = match error {
        pkg_config::Error::CrossCompilation => {
            "pkg-config is not set up for this target: set PKG_CONFIG_SYSROOT_DIR or a \
             target's own PKG_CONFIG, or name the library's directory in PLOOP_LIB_DIR"
                .to_owned()
        }
        pkg_config::Error::Command { cause, .. } => {
            format!("pkg-config cannot be run ({cause}): install package pkg-config")
        }
        pkg_config::Error::Failure { output, .. }
        | pkg_config::Error::ProbeFailure { output, .. } => {
            let words = String::from_utf8_lossy(&output.stderr);
            let first = words.lines().find(|l| !l.trim().is_empty());
            first
                .unwrap_or("pkg-config found no ploop.pc")
                .trim()
                .to_owned()
        }
        other => other.to_string(),
    };
    format!(
        "libploop was not found: {cause}\n\
         ploop-sys needs libploop {} or later, below {}, with its pkg-config file ploop.pc:\n\
         \x20 Debian, Ubuntu:  apt-get install libploop-dev pkg-config\n\
         \x20 RHEL-like:       dnf install ploop-devel pkgconf-pkg-config (from the OpenVZ repositories)\n\
         If it is installed elsewhere, name the directory of ploop.pc in PKG_CONFIG_PATH, or that of libploop.so in \
         PLOOP_LIB_DIR (and that of ploop/libploop.h in PLOOP_INCLUDE_DIR); each may carry the target as prefix. \
         PLOOP_STATIC=1 links libploop.a, PLOOP_NO_PKG_CONFIG=1 leaves finding it to the linker.\n\
         To only read images, crate `ploop` with `default-features = false, features = [\"image\"]` needs no C library.",
        RANGE.0, RANGE.1
    )
}
